"""normlib."""
