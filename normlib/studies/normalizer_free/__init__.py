"""Chapter 6 and the epilogue: skip connections, what replaces normalization in residual networks, and whether it is dead."""
