"""Convert user data to the chunks that the kernels read, and compute column statistics of these chunks."""
