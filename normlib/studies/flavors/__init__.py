"""The studies of chapter 3, Layer, Group and the other flavors."""
