"""Records that travel: a bundle is written, opened and checked, and its records are taken in."""
