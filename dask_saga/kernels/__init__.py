"""Numba-compiled loops over rows and columns. They work on plain arrays and know nothing of Dask."""
