"""What others may do to this program, and what it may tell of others: their files, cells and names."""
