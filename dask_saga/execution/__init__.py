"""Where tasks run: in this process, in threads, or on a cluster. Imports nothing else of the package."""
