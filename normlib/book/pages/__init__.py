"""The Sphinx side: turns what chapters show into pages, and keeps their outputs fresh."""
