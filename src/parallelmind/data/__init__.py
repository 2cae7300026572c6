"""Records and training data."""
