"""How the toybox teachers are trained."""
