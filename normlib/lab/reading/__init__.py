"""Reading records: the best there are, what is fresh, what differs, and the verdicts."""
