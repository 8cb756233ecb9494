"""How much the suites that try to break the package do: a short form by default, a long one by ``ci/break``."""

import os

from hypothesis import HealthCheck, Phase, settings

LONG = os.environ.get("DASK_SAGA_BREAK") == "long"

# A first example compiles; a failing fit goes to its last pass, so that to shrink it would take an hour.
PROPERTIES = settings(
    max_examples=150 if LONG else 8,
    derandomize=not LONG,
    deadline=None,
    database=None,
    print_blob=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def either(short, long):
    """What the form that runs asks for."""
    return long if LONG else short
