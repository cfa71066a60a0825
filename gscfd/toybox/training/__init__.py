"""Training of the toybox teachers."""
