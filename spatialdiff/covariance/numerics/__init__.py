"""Linear algebra that several structures share."""
