"""Compiled loops over rows and columns."""
