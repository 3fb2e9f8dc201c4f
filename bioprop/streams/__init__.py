"""Recurrent models that learn from streams, forward in time."""
