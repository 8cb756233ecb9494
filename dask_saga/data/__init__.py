"""From what the user gives to chunks as the kernels read them, and their column statistics."""
