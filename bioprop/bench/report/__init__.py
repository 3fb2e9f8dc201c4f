"""Runs as a report: tables, figures and where the numbers come from, in one file and as parts."""
