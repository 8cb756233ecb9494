"""Both executors offer what a fit asks of an executor, with the same parameters."""

import inspect

import pytest

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
