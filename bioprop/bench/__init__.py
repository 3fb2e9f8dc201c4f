"""Comparisons of rules: tables and plots of many runs."""
