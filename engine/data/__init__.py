"""Data sets: the file convention, the generators, and what a data set is in memory."""
