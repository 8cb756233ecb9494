"""Many and large fits on one cluster: bounded tasks and memory, nothing left (``tests/load.py``)."""

import pytest

from . import load
from .breaking import LONG

# The most tasks on the scheduler, for the short and the long form, and MiB of the largest worker.
BOUNDS = {
    "concurrent fits": ((1000, 600), (8000, 900)),
    "chunks": ((600, 600), (100_000, 1500)),
    "rows": ((300, 700), (600, 3500)),
    "columns": ((400, 700), (400, 3500)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDS)
def test_tasks_and_memory_are_bounded(name):
    [row] = load.run([name], LONG)
    tasks, memory = BOUNDS[name][LONG]
    assert row["left"] == 0
    assert row["tasks"] <= tasks
    assert row["worker"] <= memory
