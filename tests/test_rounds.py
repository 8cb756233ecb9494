"""Chunks visited at the same time: the same bits wherever, the same optimum, and nothing lost."""

import collections
import itertools
import os
import signal
import threading
import time

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from dask.distributed import Client, LocalCluster, WorkerPlugin
from sklearn.exceptions import ConvergenceWarning

from dask_saga import SAGAClassifier, SAGARegressor, saga
from dask_saga.data.statistics import column_stats
from dask_saga.data.validation import read_chunk
from dask_saga.execution.cluster import ClientExecutor
from dask_saga.execution.executor import LocalExecutor
from dask_saga.fitting import checkpoint, loop
from dask_saga.fitting.chunk_source import Source, lanes
from dask_saga.fitting.rounds import FURTHER, VisitResult, VisitSpec, draw_rounds, merge_round, visit_chunk
from dask_saga.losses import LogLoss
from dask_saga.penalties import ElasticNet
from dask_saga.solver.preconditioned_problem import PreconditionedProblem
from dask_saga.solver.preconditioner_choice import choose_preconditioner
from dask_saga.solver.problem import Problem
from dask_saga.solver.state import new_solver_state
from dask_saga.solver.visit import chunk_saga, fresh_memory

from .conftest import make_rows

A, y = make_rows()
X, labels = da.from_array(A, chunks=(75, 8)), da.from_array(y, chunks=75)  # 8 chunks
LONG = {"random_state": 0, "tol": 0.0, "max_iter": 16}


def bits(model):
    memory = [one.gradients.tobytes() for one in model.state_.chunks.values()]
    return model.coef_.tobytes(), model.state_.head.gradient_sum.tobytes(), model.state_.digest, memory


@pytest.mark.slow
@pytest.mark.parametrize("n_parallel", [2, 3, 8])
def test_the_same_bits_in_memory_on_threads_and_on_a_cluster(client, n_parallel):
    settings = {"random_state": 0, "n_parallel": n_parallel}
    expected = bits(SAGAClassifier(**settings).fit(X, labels))
    for scheduler, persist in itertools.product(("threads", "sync", None), (True, False)):
        with dask.config.set(scheduler=scheduler):
            assert bits(SAGAClassifier(**settings).fit(X, labels, persist=persist)) == expected
    pairs = [(A[k : k + 75], y[k : k + 75]) for k in range(0, 600, 75)]
    ours = saga(pairs, penalty=ElasticNet(l2=1e-4), fit_intercept=True, tol=1e-4, **settings)
    assert ours.x.tobytes() == expected[0]
    assert bits(SAGAClassifier(random_state=0).fit(X, labels)) != expected


CASES = {
    "dense": (SAGAClassifier, {}, np.asarray),
    "sparse": (SAGAClassifier, {}, sp.csr_matrix),
    "L1": (SAGAClassifier, {"penalty": "l1", "alpha": 0.2}, np.asarray),
    "bounds": (SAGARegressor, {"penalty": ElasticNet(l2=1e-3, lower=0.0), "loss": "huber"}, np.asarray),
    "plain": (SAGAClassifier, {"step_size": 1e-3, "average": False, "precondition": False, "alpha": 0.1}, np.asarray),
}


@pytest.mark.parametrize("case", CASES)
def test_the_optimum_is_that_of_one_chunk_at_a_time(case):
    kind, settings, layout = CASES[case]
    tight = {"random_state": 0, "tol": 1e-8, "max_iter": 3000, "memory_dtype": "float64", **settings}
    rows, weights = X.map_blocks(layout), da.from_array(np.linspace(0.0, 2.0, 600), chunks=75)
    one, four = (kind(n_parallel=width, **tight).fit(rows, labels, weights) for width in (1, 4))
    assert one.converged_
    assert four.converged_
    np.testing.assert_allclose(four.coef_, one.coef_, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(four.coef_ == 0, one.coef_ == 0)
    if case in ("L1", "bounds"):
        assert (one.coef_ == 0).any()
        assert (one.coef_ != 0).any()


def test_the_head_after_a_round():
    problem = Problem(LogLoss(), ElasticNet(), precondition=False)
    chunks = [read_chunk(A[i:j], y[i:j], loss=problem.loss) for i, j in ((0, 100), (100, 400))]
    metric = choose_preconditioner(column_stats(read_chunk(A, y, loss=problem.loss), problem), problem)
    start = new_solver_state(8, weight=400.0, rows=400, preconditioner_key=problem.preconditioner_key)
    preconditioned = PreconditionedProblem(problem, metric)
    spec, before = VisitSpec(7, False, True, False), VisitResult(start, None)
    visits = [visit_chunk(preconditioned, spec, chunk, None, None, before) for chunk in chunks]
    ends = [chunk_saga(chunk, start, fresh_memory(chunk, problem), problem, metric, 7)[0] for chunk in chunks]
    head = merge_round(preconditioned, *visits)
    gradient_sum = ends[0].gradient_sum + ends[1].gradient_sum
    np.testing.assert_allclose(head.gradient_sum, gradient_sum, rtol=1e-12)
    further = (400**2 / (100**2 + 300**2)) ** FURTHER
    x = further * (0.25 * ends[0].x + 0.75 * ends[1].x)
    step = min(preconditioned.step_size(), 0.3 / metric.L)
    x[:, :-1] -= step * metric.scale * gradient_sum[:, :-1] / 400
    np.testing.assert_allclose(head.x[:, :-1], x[:, :-1], rtol=1e-10)
    assert head.window_count == 1
    np.testing.assert_array_equal(head.window_sum, head.x)
    assert head.window_energy == pytest.approx(ends[0].window_energy + ends[1].window_energy)
    assert merge_round(preconditioned, visits[0]) is visits[0].head


@pytest.mark.parametrize(("n", "width"), [(8, 1), (8, 3), (5, 5), (41, 8)])
def test_a_pass_visits_every_chunk_once_and_a_round_every_lane(n, width):
    parts = lanes(n, width)
    for rng in (None, np.random.default_rng(0)):
        rounds = draw_rounds(parts, rng)
        assert sorted(itertools.chain(*rounds)) == list(range(n))
        assert len(rounds) == -(-n // width)
        for members in rounds:
            used = [next(k for k, part in enumerate(parts) if member in part) for member in members]
            assert len(set(used)) == len(members)


def test_the_chunks_of_a_round_run_at_the_same_time(monkeypatch):
    met = threading.Barrier(2, timeout=30)

    def wait(*args):
        met.wait()
        return visit_chunk(*args)

    monkeypatch.setattr(loop, "visit_chunk", wait)
    with dask.config.set(scheduler="threads"), pytest.warns(ConvergenceWarning):
        SAGAClassifier(n_parallel=2, random_state=0, max_iter=2, tol=0.0).fit(X, labels)


def test_auto():
    class Wide(LocalExecutor):
        def threads(self):
            return 4

    blocks = [(A[:5], y[:5], None)] * 40
    assert Source(Wide(), blocks, n_parallel="auto").width == 4
    assert Source(Wide(), blocks[:10], n_parallel="auto").width == 2
    assert Source(Wide(), blocks[:3], n_parallel="auto").width == 1
    assert Source(Wide(), blocks[:3], n_parallel=8).width == 3


def test_what_is_loaded_comes_from_all_lanes_in_turn():
    A, y = make_rows(n=70)
    read = []

    def note(block, name, order):
        read.append(name)
        return read_chunk(*block, loss=LogLoss(), order=order)

    blocks = [(A[k : k + 10], np.sign(y[k : k + 10] - 0.5)) for k in range(0, 70, 10)]
    with Source(LocalExecutor(), blocks, persist=False, n_parallel=2) as source:
        source.begin(note)
        firsts = source.map(lambda chunk, name: (chunk.rows[0, 0], name), name="first", named=True)
    assert read == [0, 3, 1, 4, 2, 5, 6]
    assert firsts == [(A[10 * k, 0], k) for k in range(7)]


def test_a_cluster_knows_its_threads(client):
    executor = ClientExecutor(client)
    assert executor.threads() == 2
    executor.assign_lanes(3)
    assert sorted({worker for lane in executor.lane_workers for worker in lane["workers"]}) == sorted(client.nthreads())


@pytest.mark.parametrize("n_parallel", [0, 1.5, "many"])
def test_n_parallel_is_checked(n_parallel):
    for fit in (SAGAClassifier(n_parallel=n_parallel).fit, lambda X, y: saga([(X, y)], n_parallel=n_parallel)):
        with pytest.raises(ValueError, match="The 'n_parallel' parameter of"):
            fit(A, y)


class Notes(WorkerPlugin):
    """Writes down each task that a worker has run, so that it outlives the worker."""

    name = "notes"

    def __init__(self, path):
        self.path = path

    def transition(self, key, start, finish, **more):
        if finish == "memory" and start == "executing" and str(key).startswith("saga-chunk"):
            with open(self.path, "a") as file:
                file.write(f"{key}\n")


@pytest.mark.parametrize("n_parallel", [1, 2])
def test_visits_that_run_twice_change_nothing(client, tmp_path, n_parallel, only_visits):
    settings = {**LONG, "n_parallel": n_parallel}
    stop = 5
    expected = SAGAClassifier(**settings).fit(X, labels, callback=lambda info: info.epoch == stop)

    def kill(info):
        if info.epoch == 3:
            for pid in client.run(os.getpid).values():  # all, as of two at a time each has what the other has
                os.kill(pid, signal.SIGKILL)
        return info.epoch == stop

    client.register_plugin(Notes(str(tmp_path / "notes")))
    try:
        model = SAGAClassifier(**settings).fit(X, labels, callback=kill)
    finally:
        client.wait_for_workers(2)
        client.unregister_worker_plugin("notes")
    ran = collections.Counter((tmp_path / "notes").read_text().split())
    assert max(ran.values()) > 1
    assert bits(model) == bits(expected)


def load(k):
    return A[75 * k : 75 * k + 75]


def test_all_workers_are_lost_while_tasks_wish_for_one(client):
    blocks = [da.from_delayed(dask.delayed(load, pure=False)(k), (75, 8), A.dtype) for k in range(8)]
    settings = {**LONG, "n_parallel": 2}
    expected = SAGAClassifier(**settings).fit(X, labels, callback=lambda info: info.epoch == 5)

    def kill(info):
        if info.epoch == 2:
            for pid in client.run(os.getpid).values():
                os.kill(pid, signal.SIGKILL)
        return info.epoch == 5

    model = SAGAClassifier(**settings).fit(da.concatenate(blocks), labels, persist=False, callback=kill)
    client.wait_for_workers(2)
    assert bits(model) == bits(expected)


def test_tasks_that_wish_for_a_lost_worker_run_on_a_new_one():
    with LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster, Client(cluster) as client:
        executor = ClientExecutor(client)
        executor.assign_lanes(2)
        cluster.sync(cluster.scheduler.retire_workers, names=[0])
        future = executor.submit(sum, [1, 2], name="saga-visit", lane=0)
        while not cluster.scheduler.unrunnable:
            time.sleep(0.01)
        cluster.scale(2)
        assert future.result(timeout=30) == 3


class Died(Exception):
    pass


@pytest.mark.filterwarnings("ignore:max_iter=16:sklearn.exceptions.ConvergenceWarning")
def test_checkpoints_and_the_width_of_auto(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "AGE_RATIO", 0.0)

    def die(info):
        if info.epoch == 4:
            raise Died

    expected = SAGAClassifier(n_parallel=3, **LONG).fit(X, labels)
    with pytest.raises(Died):
        SAGAClassifier(n_parallel=3, **LONG).fit(X, labels, checkpoint=tmp_path / "a", callback=die)
    with pytest.raises(ValueError, match="other n_parallel"):
        SAGAClassifier(n_parallel=2, **LONG).fit(X, labels, checkpoint=tmp_path / "a")
    # What "auto" was on the machine that died it stays.
    model = SAGAClassifier(n_parallel="auto", **LONG).fit(X, labels, checkpoint=tmp_path / "a")
    assert bits(model) == bits(expected)


def test_a_pass_that_is_interrupted_never_was(monkeypatch, only_visits):
    calls = []

    def interrupted(*args):
        calls.append(None)
        if len(calls) == 8 * 3 + 5:
            raise KeyboardInterrupt
        return visit_chunk(*args)

    expected = SAGAClassifier(n_parallel=2, **LONG).fit(X, labels, callback=lambda info: info.epoch == 3)
    monkeypatch.setattr(loop, "visit_chunk", interrupted)
    model = SAGAClassifier(n_parallel=2, **LONG)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, labels)
    assert bits(model) == bits(expected)
