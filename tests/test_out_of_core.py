"""Chunks that are loaded again for each visit: the same bits, few at a time, and no change unnoticed."""

import threading
import weakref

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from dask import delayed

from dask_saga import SAGAClassifier, SAGARegressor, saga
from dask_saga.executors import LocalExecutor
from dask_saga.source import HELD_SHARE, Source

from .conftest import make_rows

A, y = make_rows()
X, labels = da.from_array(A, chunks=(100, 8)), da.from_array(y, chunks=100)


def frame():
    columns = pd.DataFrame(A, columns=[f"c{j}" for j in range(8)]).assign(late=np.where(y > 0, "yes", "no"))
    return dd.from_pandas(columns, npartitions=5)


KINDS = {
    "array": lambda: (X, labels),
    "dataframe": lambda: (frame().drop(columns="late"), frame().late),
    "sparse": lambda: (X.map_blocks(sp.csr_matrix), labels),
    "y in memory": lambda: (X, y),
}


@pytest.mark.parametrize("on", ["cluster", "threads"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_of_chunks_that_are_held(kind, on, request):
    if on == "cluster":
        request.getfixturevalue("client")
    rows, targets = KINDS[kind]()
    with dask.config.set(scheduler=None if on == "cluster" else "threads"):
        held, loaded = (
            SAGAClassifier(random_state=0, class_weight="balanced").fit(rows, targets, persist=persist)
            for persist in (True, False)
        )
    assert loaded.coef_.tobytes() == held.coef_.tobytes()
    assert loaded.state_.digest == held.state_.digest
    for one, other in zip(loaded.state_.chunks.values(), held.state_.chunks.values(), strict=True):
        np.testing.assert_array_equal(one.gradients, other.gradients)


class Counted:
    """Blocks that count how often they are read, and how many are alive."""

    def __init__(self):
        self.reads = self.alive = self.most = 0
        self.lock = threading.Lock()

    def read(self, k):
        block = A[100 * k : 100 * (k + 1)].copy()
        with self.lock:
            self.reads, self.alive = self.reads + 1, self.alive + 1
            self.most = max(self.most, self.alive)
        weakref.finalize(block, self.forget)
        return block

    def forget(self):
        with self.lock:
            self.alive -= 1

    def array(self):
        parts = [da.from_delayed(delayed(self.read, pure=False)(k), (100, 8), float) for k in range(6)]
        return da.concatenate(parts)


def test_one_load_a_visit_and_few_blocks_at_a_time():
    source = Counted()
    model = SAGAClassifier(max_iter=4, tol=1e-12, random_state=0)
    with pytest.warns(match="max_iter=4"):
        model.fit(source.array(), labels, persist=False)
    assert source.reads == 6 * (1 + 4)
    assert source.most <= 3
    source = Counted()
    with pytest.warns(match="max_iter=4"):
        model.fit(source.array(), labels, persist=True)
    assert source.reads == source.most == 6


def test_squared_error_starts_at_its_optimum_there_too():
    b = A @ np.arange(8) + np.random.default_rng(0).standard_normal(600)
    rows, targets = da.from_array(A @ np.triu(np.ones((8, 8))), chunks=(100, 8)), da.from_array(b, chunks=100)
    held, loaded = (SAGARegressor(random_state=0).fit(rows, targets, persist=p) for p in (True, False))
    assert held.state_.metric.basis is not None
    assert held.n_iter_ == 1
    assert loaded.coef_.tobytes() == held.coef_.tobytes()


@pytest.mark.parametrize("on", ["cluster", "threads"])
def test_values_that_change_between_reads_are_refused(on, request):
    if on == "cluster":
        request.getfixturevalue("client")
    model = SAGAClassifier(random_state=0).fit(A, y)
    before = model.coef_, model.state_

    def unstable(k):
        return A[100 * k : 100 * (k + 1)] + (np.random.default_rng().random() if k == 3 else 0.0)

    rows = da.concatenate([da.from_delayed(delayed(unstable, pure=False)(k), (100, 8), float) for k in range(6)])
    with (
        dask.config.set(scheduler=None if on == "cluster" else "threads"),
        pytest.raises(ValueError, match=r"chunk 3: .* persisted first"),
    ):
        model.fit(rows, labels, persist=False)
    assert (model.coef_, model.state_) == before


@pytest.mark.parametrize(
    ("nbytes", "memory", "holds"),
    [(HELD_SHARE * 1e6, 1e6, True), (HELD_SHARE * 1e6 + 1, 1e6, False), (np.nan, 1e9, True), (np.nan, 1e4, False)],
)
def test_auto_holds_what_fits(nbytes, memory, holds, monkeypatch):
    monkeypatch.setattr(LocalExecutor, "memory", lambda self: memory)
    assert Source(LocalExecutor(), [(A[:100], y[:100])] * 6, nbytes, "auto").holds == holds


def test_a_cluster_knows_its_memory(client):
    from dask_saga.executors import ClientExecutor

    limits = [worker["memory_limit"] for worker in client.scheduler_info()["workers"].values()]
    assert ClientExecutor(client).memory() == pytest.approx(sum(limits))


def test_delayed_pairs():
    pairs = [delayed(lambda k: (A[k : k + 200], y[k : k + 200]))(k) for k in (0, 200, 400)]
    held, loaded = (saga(pairs, max_iter=5, random_state=0, persist=persist) for persist in (True, False))
    assert loaded.x.tobytes() == held.x.tobytes()


def test_persist_is_checked():
    with pytest.raises(ValueError, match="persist='no' must be True, False or 'auto'"):
        SAGAClassifier().fit(X, labels, persist="no")
