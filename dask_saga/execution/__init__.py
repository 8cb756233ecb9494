"""Run tasks in this process, in threads, or on a cluster. This layer imports nothing else of the package."""
