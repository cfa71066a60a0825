"""Surface noise: the compiled core, how it is called, and a float64 oracle that shares no code with it."""
