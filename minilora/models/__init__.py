"""Models people use: one family a file, and what all of them share."""
