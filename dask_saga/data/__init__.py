"""Turn user data into the chunks that the kernels read, and compute column statistics of them."""
