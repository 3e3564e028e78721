"""What code is a record of: the digest of what a trial reaches, and where code and numbers come from."""
