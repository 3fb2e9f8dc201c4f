"""Rules x configurations x fields x seeds: planned, trained, and put into a table."""
