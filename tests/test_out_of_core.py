"""Chunks that are loaded again for each visit: the same bits, few at a time, and no change unnoticed."""

import itertools
import threading
import time
import tracemalloc
import weakref

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from dask import delayed
from dask.distributed import Client, LocalCluster, get_task_stream, get_worker
from dask.utils import key_split

from dask_saga import SAGAClassifier, SAGARegressor, saga
from dask_saga.data.dask_blocks import dask_blocks, most_bytes
from dask_saga.data.statistics import measure
from dask_saga.data.validation import read_chunk
from dask_saga.execution.cluster import TASKS_AHEAD, ClientExecutor
from dask_saga.execution.deferred import DeferredCall, defer_blocks
from dask_saga.execution.executor import LocalExecutor
from dask_saga.fitting.chunk_source import HELD_SHARE, Source
from dask_saga.losses import LOSSES, LogLoss
from dask_saga.penalties import PENALTIES
from dask_saga.solver.optimality import chunk_gradient
from dask_saga.solver.problem import Problem
from dask_saga.solver.subsample import sample_rows

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


COUNTED = []


def counted(k):
    return COUNTED[k]


class Counted:
    """Blocks that count how often they are read, and how many are alive."""

    def __init__(self, blocks=6):
        self.blocks = blocks
        self.reads = self.alive = self.most = 0
        self.lock = threading.Lock()

        COUNTED.append(self)

    def __reduce__(self):
        return counted, (COUNTED.index(self),)  # pickled and loaded in this process it is itself

    def read(self, k):
        block = A[100 * (k % 6) : 100 * (k % 6 + 1)].copy()
        with self.lock:
            self.reads, self.alive = self.reads + 1, self.alive + 1
            self.most = max(self.most, self.alive)
        weakref.finalize(block, self.forget)
        return block

    def forget(self):
        with self.lock:
            self.alive -= 1

    def array(self):
        parts = [da.from_delayed(delayed(self.read, pure=False)(k), (100, 8), float) for k in range(self.blocks)]
        return da.concatenate(parts)


def test_one_load_a_visit_and_few_blocks_at_a_time(only_visits):
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


def as_frame(source):
    columns = [f"c{j}" for j in range(8)]
    meta = pd.DataFrame(A[:0], columns=columns)
    rows = dd.from_map(lambda k: pd.DataFrame(source.read(k), columns=columns), range(6), meta=meta)
    return rows.drop(columns="c7"), rows.c7 > 0


def as_array(source):
    rows = source.array()
    return rows[:, :-1], rows[:, -1] > 0


@pytest.mark.parametrize("make", [as_frame, as_array])
@pytest.mark.parametrize("persist", [True, False])
@pytest.mark.parametrize("on", ["cluster", "threads"])
def test_rows_and_targets_of_one_source_are_one_read(make, persist, on, request, only_visits):
    scheduler = request.getfixturevalue("client_of_threads") if on == "cluster" else on
    source = Counted()
    with dask.config.set(scheduler=scheduler), pytest.warns(match="max_iter=2"):
        SAGAClassifier(max_iter=2, tol=1e-12, random_state=0).fit(*make(source), persist=persist)
    # Loaded again: for the labels, the preparing pass, and two passes.
    assert source.reads == (6 if persist else 6 * 4)


def test_blocks_are_made_within_the_tasks_that_want_them(client):
    with get_task_stream(client) as stream, pytest.warns(match="max_iter=3"):
        SAGAClassifier(max_iter=3, tol=1e-12, random_state=0).fit(X, labels, persist=False)
    names = [key_split(task["key"]) for task in stream.data]
    assert len(names) > 30
    assert {name for name in names if not name.startswith("saga-")} == set()


def test_blocks_that_cannot_be_made_there_are_loaded_as_before(client):
    held = SAGAClassifier(random_state=0).fit(X, labels)
    whole = da.from_delayed(delayed(lambda: A, pure=False)(), A.shape, float)
    with dask.annotate(priority=1):
        noted = [(delayed(lambda k: A[k : k + 100], pure=False)(k), y[k : k + 100]) for k in range(0, 600, 100)]
    lazy, there = dask_blocks(X, labels), dask_blocks(*dask.persist(X, labels))
    future = client.submit(lambda: A[:100])
    assert not any(block is recipe for block, recipe in zip(lazy, defer_blocks(lazy), strict=True))
    for blocks in (there, dask_blocks(whole.rechunk((100, 8)), labels), noted, [(delayed(np.abs)(future), None)]):
        assert defer_blocks(blocks) is blocks
    for rows, targets in (dask.persist(X, labels), (whole.rechunk((100, 8)), labels)):
        for persist in (True, False):
            model = SAGAClassifier(random_state=0).fit(rows, targets, persist=persist)
            assert model.coef_.tobytes() == held.coef_.tobytes()


def test_squared_error_starts_at_its_optimum_there_too():
    b = A @ np.arange(8) + np.random.default_rng(0).standard_normal(600)
    rows, targets = da.from_array(A @ np.triu(np.ones((8, 8))), chunks=(100, 8)), da.from_array(b, chunks=100)
    held, loaded = (SAGARegressor(random_state=0).fit(rows, targets, persist=p) for p in (True, False))
    assert held.state_.metric.rotation is not None
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


def read(block, name, order):
    return read_chunk(*block, loss=LogLoss())


ENTRIES = 600 * 8
BOUNDS = {  # what is known of the size, the first block's rows, the memory, and whether chunks are held
    "fits": (8.0 * ENTRIES, 100, 8 * ENTRIES / HELD_SHARE, True),
    "too large": (8.0 * ENTRIES, 100, 8 * ENTRIES / HELD_SHARE - 1, False),
    "unknown, fits": (np.nan, 100, 8 * ENTRIES / HELD_SHARE, True),
    "unknown, too large": (np.nan, 100, 8 * ENTRIES / HELD_SHARE - 1, False),
    "less than it could be": (80.0 * ENTRIES, 100, 8 * ENTRIES / HELD_SHARE, True),
    "an empty block first": (np.nan, 0, 8 * ENTRIES / HELD_SHARE - 1, False),
}


@pytest.mark.parametrize("case", BOUNDS)
def test_auto_holds_what_fits(case, monkeypatch):
    nbytes, first, memory, holds = BOUNDS[case]
    monkeypatch.setattr(LocalExecutor, "memory", lambda self: memory)
    cuts = [0, first, *range(first + 100, 600, 100), 600]
    blocks = [(A[i:j], y[i:j], None) for i, j in itertools.pairwise(cuts)]
    source = Source(LocalExecutor(), blocks, nbytes=nbytes, rows=600, persist="auto")
    source.begin(read)
    assert source.holds == holds


def test_integers_count_as_what_they_become():
    assert most_bytes(X) == most_bytes(X.astype("i1")) == 2 * most_bytes(X.astype("f4")) == 8 * 600 * 8
    assert np.isnan(most_bytes(frame()))


def test_a_cluster_knows_its_memory(client):
    limits = [worker["memory_limit"] for worker in client.scheduler_info()["workers"].values()]
    assert ClientExecutor(client).memory() == pytest.approx(sum(limits))


@pytest.fixture(scope="module")
def client_of_threads():
    """Of a cluster in this process, so that what runs there can be counted here."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def test_few_blocks_at_a_time_on_a_cluster_and_a_client_that_is_not_the_default(client_of_threads):
    source = Counted(blocks=24)
    with dask.config.set(scheduler=client_of_threads):
        model = SAGAClassifier(random_state=0, tol=1e-2).fit(source.array(), da.tile(labels, 4), persist=False)
    assert model.converged_
    assert source.reads >= 24 * 3
    assert source.most <= 2 * (TASKS_AHEAD + 2)


BEGUN: list = []  # of loads and work, in this order
PATIENCE = {"seconds": 60.0}


def load_block(k):
    assert get_worker().name is not None  # readers may ask for theirs
    BEGUN.append(f"load {k}")
    return np.zeros(k)


def work(rows, k):
    """Whether the next load begins before this ends, given some time."""
    BEGUN.append(f"work {k}")
    until = time.monotonic() + PATIENCE["seconds"]
    while f"load {k + 1}" not in BEGUN and time.monotonic() < until and k < 3:
        time.sleep(0.001)
    return f"load {k + 1}" in BEGUN, rows.size


@pytest.mark.parametrize("has_room", [True, False])
def test_a_task_reads_the_next_block_while_it_works_if_there_is_room(has_room, client_of_threads, monkeypatch):
    BEGUN.clear()
    monkeypatch.setattr("dask_saga.execution.cluster.ROOM_SHARE", 100.0)  # of a small worker this process takes much
    monkeypatch.setitem(PATIENCE, "seconds", 60.0 if has_room else 0.2)
    executor = ClientExecutor(client_of_threads)
    calls = [(DeferredCall(np.asarray, DeferredCall(load_block, k)), k) for k in range(4)]
    size = 1.0 if has_room else 100 * executor.memory()
    ahead, sizes = zip(
        *executor.gather(executor.map_sequential(work, calls, name="saga-test", nbytes=size)), strict=True
    )
    assert ahead == (has_room,) * 3 + (False,)
    assert sizes == (0, 1, 2, 3)
    assert [one for one in BEGUN if "load" in one] == [f"load {k}" for k in range(4)]


def fail_to_load(k):
    if k == 3:
        raise OSError("three")
    return np.zeros(k)


def fail_to_work(rows, k):
    if k == 2:
        raise ZeroDivisionError("two")
    return k


@pytest.mark.parametrize(("function", "error"), [(fail_to_work, ZeroDivisionError), (np.add, OSError)])
def test_the_error_of_the_first_chunk_that_fails(function, error, client_of_threads):
    executor = ClientExecutor(client_of_threads)
    calls = [(DeferredCall(np.asarray, DeferredCall(fail_to_load, k)), k) for k in range(4)]
    with pytest.raises(error):
        executor.gather(executor.map_sequential(function, calls, name="saga-test", nbytes=1.0))
    assert not [t for t in threading.enumerate() if t.name.startswith("saga-ahead")]


def test_visits_load_few_ahead_whatever_ran_before(client_of_threads, monkeypatch):
    """Reads in parallel may go further ahead on large clusters, visits not."""
    monkeypatch.setattr(ClientExecutor, "threads", lambda self: 16)
    source = Counted(blocks=24)

    def watch(info):
        if info.epoch == 1:
            source.most = source.alive  # forget what came before
        return info.epoch == 2

    model = SAGAClassifier(random_state=0, step_size=1e-3, tol=0.0)  # so that all passes are visits
    with dask.config.set(scheduler=client_of_threads):
        model.fit(source.array(), da.tile(labels, 4), persist=False, callback=watch)
    assert source.reads == 24 * (1 + 2)
    assert source.most <= 2 * (TASKS_AHEAD + 2)


GROUPS = {  # blocks, lanes, bytes of all chunks, bytes of a result: sizes of the groups
    "ever fewer": (40, 1, 1e6, 8, [10, 7, 5, 4, 3, 2, 2, *[1] * 7]),
    "no more than 16": (100, 1, 1e6, 8, [16, 16, 16, 13, 9, 7, 5, 4, 3, 2, 2, *[1] * 7]),
    "large chunks": (8, 1, 8 * 2.0**30, 8, [1] * 8),
    "large results": (12, 1, 1e6, 2**24, [2, 2, 2, *[1] * 6]),
    "sizes unknown": (8, 1, np.nan, 8, [1] * 8),
    "results unknown": (8, 1, 1e6, np.nan, [1] * 8),
    "two lanes": (16, 2, 1e6, 8, [4, 4, 2, 2, *[1] * 4]),
}


@pytest.mark.parametrize("case", GROUPS)
def test_tasks_read_ever_fewer_chunks(case, client_of_threads):
    n, width, nbytes, result, sizes = GROUPS[case]
    blocks = dask_blocks(da.zeros((n, 2), chunks=(1, 2)), da.zeros(n, chunks=1), None)
    executor = ClientExecutor(client_of_threads)
    with Source(executor, blocks, nbytes=nbytes, persist=False, n_parallel=width) as source:
        groups = source._groups(2, result)
    assert [len(group) for group in groups] == sizes
    assert sorted(itertools.chain(*groups)) == list(range(n))
    assert all(len({source.lane(k) for k in group}) == 1 for group in groups)


@pytest.mark.parametrize("on", ["cluster", "threads"])
def test_weights_that_change_between_reads_are_refused(on, request):
    if on == "cluster":
        request.getfixturevalue("client")
    draw = delayed(lambda: np.random.default_rng().random(100), pure=False)
    weights = da.concatenate([da.from_delayed(draw(), (100,), float) for _ in range(6)])
    with (
        dask.config.set(scheduler=None if on == "cluster" else "threads"),
        pytest.raises(ValueError, match=r"chunk \d: .* persisted first"),
    ):
        SAGAClassifier(random_state=0).fit(X, labels, weights, persist=False)


@pytest.mark.joins
def test_small_data_are_one_chunk_whether_held_or_not():
    held, loaded = (SAGAClassifier(random_state=1).fit(X, labels, persist=persist) for persist in (True, False))
    assert held.history_[0]["visits"] == 1
    assert loaded.coef_.tobytes() == held.coef_.tobytes()
    assert loaded.state_.digest == held.state_.digest


def test_a_failed_fit_leaves_no_thread_and_no_more_than_a_block():
    source, kept, before = Counted(), [], set(threading.enumerate())

    def fail(info):
        raise RuntimeError

    for _ in range(3):
        try:
            with dask.config.set(scheduler="sync"):  # without threads of Dask's own
                SAGAClassifier(random_state=0).fit(source.array(), labels, persist=False, callback=fail)
        except RuntimeError as error:
            kept.append(error)  # as notebooks keep the last one
    assert len(kept) == 3
    ours = ("ThreadPoolExecutor", "saga-ahead")
    assert not [t.name for t in set(threading.enumerate()) - before if t.name.startswith(ours)]
    assert source.alive <= len(kept)  # the one of the last visit, in the frame of each


def test_nothing_is_loaded_after_a_load_that_failed():
    loaded = []

    def load(k):
        loaded.append(k)
        if k == 1:
            raise OSError("one")
        return k

    chunks = LocalExecutor().prefetch(load, [0, 1, 2])
    assert next(chunks) == 0
    with pytest.raises(OSError, match="one"):
        next(chunks)
    assert loaded == [0, 1]


def test_delayed_pairs():
    pairs = [delayed(lambda k: (A[k : k + 200], y[k : k + 200]))(k) for k in (0, 200, 400)]
    held, loaded = (saga(pairs, max_iter=5, random_state=0, persist=persist) for persist in (True, False))
    assert loaded.x.tobytes() == held.x.tobytes()


def test_persist_is_checked():
    for fit in (SAGAClassifier().fit, lambda X, y, persist: saga([(X, y)], persist=persist)):
        with pytest.raises(ValueError, match="persist='no' must be True, False or 'auto'"):
            fit(X, labels, persist="no")


@pytest.mark.parametrize("layout", ["F", "strided"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
def test_rows_that_are_read_once_stay_as_they_lie(loss, weighted, layout, monkeypatch):
    monkeypatch.setattr("dask_saga.data.chunk.BLOCK_BYTES", 1000)  # so that there are many blocks
    B, b = make_rows(n=203, classes=loss == "log_loss")
    lies = np.asfortranarray(B) if layout == "F" else np.repeat(B, 2, axis=1)[:, ::2]
    weights = np.random.default_rng(0).random(203) * (np.arange(203) % 7 > 0) if weighted else None
    problem = Problem(LOSSES[loss](), PENALTIES["l2"](1e-3, 0.5), True)
    x, told = np.ones((1, 9)), []
    for rows, order in ((lies, "C"), (lies, None)):
        chunk = read_chunk(rows, b, weights, order=order)
        assert np.shares_memory(chunk.rows, rows) == (order is None)
        gradients = np.empty((203, 1))
        stats, zero = measure(chunk, problem, 1, np.ones((203, 1)) if weights is None else weights[:, None])
        sample = sample_rows(chunk, 1)
        assert sample.rows.flags.c_contiguous
        value, gradient = chunk_gradient(chunk, x, problem, gradients)
        told.append([chunk.content, *stats, zero, sample.rows, value, gradient, gradients])
    for one, other in zip(*told, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_pass_over_rows_that_lie_by_columns_copies_little_of_them():
    B, b = make_rows(n=40_000, p=50)
    B, problem = np.asfortranarray(B), Problem(LogLoss(), PENALTIES["l2"](1e-3, 0.5), True)
    chunk_gradient(read_chunk(B, b, order=None), np.zeros((1, 51)), problem)  # compiles
    tracemalloc.start()
    chunk = read_chunk(B, b, finite=False, order=None)
    chunk_gradient(chunk, np.zeros((1, 51)), problem, np.empty((40_000, 1), np.float32))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 0.15 * B.nbytes  # a block at a time, and the targets


def test_memory_for_which_there_is_no_room_stays_on_the_cluster(client, monkeypatch, tmp_path):
    X, labels = da.from_array(A, chunks=(150, 8)), da.from_array(y, chunks=150)
    whole = SAGAClassifier(random_state=0).fit(X, labels)
    monkeypatch.setattr("dask_saga.execution.cluster.GATHERED_SHARE", 0.0)
    model = SAGAClassifier(random_state=0, warm_start=True)
    with pytest.warns(UserWarning, match=r"600 rows is too large .* start a fit with warm_start=True"):
        model.fit(X, labels)
    assert model.coef_.tobytes() == whole.coef_.tobytes()
    assert (model.step_size_, model.diverged_, model.n_iter_) == (whole.step_size_, whole.diverged_, whole.n_iter_)
    assert model.state_ is None
    assert model.score(X, labels) == whole.score(X, labels)
    with pytest.raises(ValueError, match="has no gradient memory"):
        model.partial_fit(A[:150], y[:150])
    with pytest.warns(UserWarning, match="600 rows"):
        assert model.fit(X, labels).n_iter_ == 1
    with pytest.raises(ValueError, match="checkpoint: the gradient memory"):
        model.fit(X, labels, checkpoint=tmp_path)
    assert saga([(X[:150], labels[:150]), (X[150:], labels[150:])], max_iter=2).state is None
    with dask.config.set(scheduler="threads"):  # there it is in this process already
        assert model.fit(X, labels).state_ is not None
