"""Data sets as arrays in memory, and the commands that fetch them."""
