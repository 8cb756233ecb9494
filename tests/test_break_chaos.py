"""Workers that die, stop, come and go, clients that are lost, full disks, flipped bytes (``tests/chaos.py``)."""

import pytest

from . import chaos
from .breaking import either


@pytest.mark.slow
def test_chaos():
    # The short form is a worker killed, a client lost and a disk that is full.
    events = either(("kill", "drop the client", "full disk"), chaos.EVENTS)
    found = chaos.run(either(1, 8), either(3, 50), events)
    print(found)
    assert sum(found["counts"].values()) == either(3, 50)
