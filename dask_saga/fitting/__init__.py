"""A fit over all chunks: passes, stopping, checkpoints, and how its state gets to the executor and back."""
