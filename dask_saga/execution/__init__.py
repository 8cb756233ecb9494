"""Run tasks in this process, in threads, or on a cluster. This layer does not import other layers of the package."""
