"""Run a fit over all chunks: passes, stopping, checkpoints, and the transfer of the state to the executor and back."""
