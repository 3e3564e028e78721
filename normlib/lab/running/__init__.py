"""Running: what is missing, where trials run, and what happens there."""
