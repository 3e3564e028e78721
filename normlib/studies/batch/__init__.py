"""The studies of chapter 2, Batch Normalization."""
