"""Both executors offer what a fit asks of an executor, with the same parameters."""

import inspect
import threading

import pytest
from dask.distributed import Client, LocalCluster
from distributed import Status

from dask_saga.execution import cluster
from dask_saga.execution.cluster import ClientExecutor
from dask_saga.execution.executor import LocalExecutor, find_executor
from dask_saga.execution.protocol import Executor

METHODS = [name for name, value in vars(Executor).items() if inspect.isfunction(value) and not name.startswith("_")]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", [LocalExecutor, ClientExecutor])
def test_methods_have_the_signatures_of_the_protocol(kind, name):
    assert inspect.signature(getattr(kind, name)) == inspect.signature(getattr(Executor, name))


@pytest.mark.parametrize("kind", [LocalExecutor, ClientExecutor])
def test_executors_have_no_other_public_methods(kind):
    assert {name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")} == {*METHODS}


def test_isinstance():
    assert isinstance(find_executor(), Executor)
    assert not isinstance(object(), Executor)


def test_in_this_process_references_are_the_values():
    executor = LocalExecutor()
    calls = [(1, 2), (3, 4)]
    assert executor.submit(pow, 2, 3, name="saga-test") == 8
    for run in (executor.map, executor.map_parallel, executor.map_sequential):
        assert executor.gather(run(pow, calls, name="saga-test")) == [1, 81]
    assert list(executor.prefetch(abs, [-1, -2, -3])) == [1, 2, 3]


def set_status(name, dask_worker=None):
    dask_worker.status = Status[name]


def test_tasks_that_no_worker_can_run_are_told(monkeypatch, caplog):
    """A wait without end is silent otherwise: without a worker, and while all of them are paused."""
    monkeypatch.setattr(cluster, "WATCHED_SECONDS", 0.1)
    options = {"processes": False, "memory_limit": 0, "dashboard_address": ":0"}  # no limit: nothing resumes a worker
    with LocalCluster(n_workers=0, **options) as workers, Client(workers) as client:
        executor = ClientExecutor(client)
        threading.Timer(1.0, workers.scale, [1]).start()
        with pytest.warns(UserWarning, match="no worker is connected to the scheduler at .* start workers"):
            assert executor.gather([executor.submit(pow, 2, 3, name="saga-test")]) == [8]
        client.run(set_status, "paused")
        threading.Timer(1.0, client.run, [set_status, "running"]).start()
        with pytest.warns(UserWarning, match="workers are paused, because .* more memory or fewer threads"):
            assert executor.gather([executor.submit(pow, 2, 5, name="saga-test")]) == [32]
    assert [record.levelname for record in caplog.records if record.name == "dask_saga"] == ["WARNING"] * 2
