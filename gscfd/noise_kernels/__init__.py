"""Surface noise: calls of the compiled core, and a float64 reference that shares no code with it."""
