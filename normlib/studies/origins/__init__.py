"""The studies of chapter 1, Origins."""
