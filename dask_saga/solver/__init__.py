"""The algorithm: states, coordinates, and the steps that lead from one state to the next. Nothing here runs tasks."""
