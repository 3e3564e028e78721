"""What the five drafts say, where it needs no training."""
