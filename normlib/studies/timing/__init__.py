"""Studies of time and memory; they run alone."""
