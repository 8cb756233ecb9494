"""Numba-compiled loops over rows and columns. They work on NumPy arrays and do not depend on Dask."""
