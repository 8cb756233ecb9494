"""The algorithm: solver states, coordinates, and the steps from one state to the next.

The functions run in the calling process. The layers above decide which of them run as tasks.
"""
