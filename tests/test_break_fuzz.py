"""Hostile calls end in an answer or a documented error, never in a crash, a hang or NaN (``tests/fuzz.py``)."""

import pytest

from . import fuzz
from .breaking import either


@pytest.mark.slow
def test_hostile_calls():
    calls = either(250, 10_000)
    # Other numbers than the short form's, which those who change the package see at each run.
    first = either(0, 100_000)
    total = fuzz.run(first, first + calls, calls)
    print({key: value for key, value in total.items() if key != "failures"})
    report = "\n".join(f"--- python -m tests.fuzz --here {k} {k + 1}\n{text}" for k, text in total["failures"].items())
    assert not total["failures"], report
    assert total["calls"] >= calls
    assert total["outcomes"]["answered"] > calls / 5
