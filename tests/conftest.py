"""Data and one LocalCluster of processes for all tests."""

import numpy as np
import pytest

from dask_saga.fitting import newton_passes, preparation


def make_rows(n=600, p=8, seed=0, classes=True):
    """Rows on mixed scales and off centre, with labels in {-1, 1} or numbers."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, p)) * np.logspace(0, 1, p) + np.linspace(-1, 1, p)
    z = (A / np.logspace(0, 1, p)) @ rng.standard_normal(p) + rng.standard_normal(n)
    return A, np.where(z > np.median(z), 1.0, -1.0) if classes else z + 3.0


@pytest.fixture(autouse=True)
def chunks_stay_apart(request, monkeypatch):
    """The tests' chunks are so small that fit would visit them together."""
    if "joins" not in request.keywords:
        monkeypatch.setattr(preparation, "JOINED_BYTES", 0)


@pytest.fixture
def only_visits(monkeypatch):
    """Passes visit the chunks. Newton steps, which small data take at once, read them more often."""
    monkeypatch.setattr(newton_passes, "CHEAP", 0.0)


@pytest.fixture
def binary():
    return make_rows()


@pytest.fixture
def numbers():
    return make_rows(classes=False)


@pytest.fixture(scope="session")
def cluster():
    import dask
    from dask.distributed import LocalCluster

    # A LocalCluster looks 15 s after a loss whether the worker is back, and gives it up where a test has just killed
    # the next one of that name.
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
    ):
        yield cluster


@pytest.fixture
def client(cluster):
    from dask.distributed import Client

    with Client(cluster) as client:
        yield client
