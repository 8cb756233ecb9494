"""Several threads in one visit: equal to plain Python, reproducible, exact sums, the same optimum."""

import itertools
import os
import signal
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from numba import njit
from sklearn.exceptions import ConvergenceWarning

from dask_saga import SAGAClassifier, SAGARegressor, chunk_saga
from dask_saga.data import statistics
from dask_saga.data.statistics import column_stats
from dask_saga.data.validation import read_chunk
from dask_saga.execution import threads as threads_module
from dask_saga.kernels.table_merge import wait
from dask_saga.losses import LOSSES, LogLoss
from dask_saga.penalties import PENALTIES, ElasticNet
from dask_saga.solver import preconditioner_choice as metric_module
from dask_saga.solver.optimality import chunk_gradient
from dask_saga.solver.preconditioned_problem import PreconditionedProblem, row_norms
from dask_saga.solver.preconditioner_choice import choose_preconditioner
from dask_saga.solver.problem import Problem
from dask_saga.solver.state import new_solver_state
from dask_saga.solver.threaded_visit import DENSE_ROUNDS, SPARSE_ROUNDS
from dask_saga.solver.visit import fresh_memory
from dask_saga.solver.visit_plan import plan_visit

from . import oracles
from .conftest import make_rows


@pytest.fixture(autouse=True)
def _shares_small_chunks(monkeypatch):
    for module in ("solver.visit_plan", "solver.preconditioned_problem", "data.statistics", "solver.optimality"):
        monkeypatch.setattr(f"dask_saga.{module}.thread_count", lambda n_threads, entries: n_threads)
    monkeypatch.setattr("dask_saga.solver.threaded_visit.ROUND_ENTRIES", 1)
    monkeypatch.setattr("dask_saga.solver.threaded_visit.SPARSE_ROUND_ENTRIES", 1)


def rows_of(kind, n=1600, p=6):
    A, b = make_rows(n, p)
    A = np.where(np.abs(A) > 0.5, A, 0.0)
    A[3] *= 10.0  # a row that is visited more than once
    return sp.csr_array(A) if kind == "sparse" else A, b


def problem_for(kind, n_threads, **how):
    penalty = "l2" if kind == "rotated" else "elasticnet"
    return Problem(LOSSES["log_loss"](), PENALTIES[penalty](0.01, 0.5), True, n_threads=n_threads, **how)


@pytest.mark.parametrize(("p", "shared"), [(1000, 2), (20000, 1)])
def test_rows_are_shared_only_where_copies_of_x_are_small_beside_them(p, shared):
    n, each = 15000, 20
    rng = np.random.default_rng(0)
    columns = np.sort(rng.integers(p // each, size=(n, each)) + np.arange(0, p, p // each)[:each], axis=1)
    A = sp.csr_array((np.ones(n * each), columns.ravel(), np.arange(0, n * each + 1, each)), shape=(n, p))
    problem = Problem(LogLoss(), ElasticNet(l2=1e-3), n_threads=2)
    chunk = read_chunk(A, np.where(rng.random(n) < 0.5, 1, -1), loss=problem.loss)
    head, memory = new_solver_state(p, weight=float(n), rows=n), fresh_memory(chunk, problem)
    metric = choose_preconditioner(column_stats(chunk, problem), problem)
    assert len(plan_visit(chunk, head, memory, PreconditionedProblem(problem, metric), 0).orders) == shared


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("step_size", ["auto", 1e-2])
@pytest.mark.parametrize("n_threads", [2, 3])
@pytest.mark.parametrize("kind", ["dense", "sparse", "sparse, columns rare", "rotated"])
def test_two_visits_equal_plain_python(kind, n_threads, step_size, weighted, monkeypatch):
    monkeypatch.setattr(metric_module, "ROTATES_FREELY", 1e9)
    kind, rare = kind.split(",")[0], "," in kind
    A, b = rows_of(kind)
    n, p = A.shape
    weights = np.random.default_rng(1).random(n) * (np.arange(n) % 5 > 0) if weighted else None
    problem = problem_for(kind, n_threads, step_size=step_size)
    chunk = read_chunk(A, b, weights, loss=problem.loss)
    metric = choose_preconditioner(column_stats(chunk, problem), problem)
    assert (metric.rotation is not None) == (kind == "rotated")
    preconditioned = PreconditionedProblem(problem, metric)
    norms = row_norms(chunk, preconditioned) if step_size == "auto" else None
    w = np.ones(n) if weights is None else weights
    head, memory = new_solver_state(p), None
    x, gradient_sum, gradients = np.zeros((1, p + 1)), np.zeros((1, p + 1)), np.zeros((n, 1), np.float32)
    sparse = kind == "sparse"
    most, each = (SPARSE_ROUNDS, 8) if sparse else (DENSE_ROUNDS, 32)
    rounds = min(most, max(1, chunk.entries // (n_threads * each * (p + 1))))
    assert rounds > 1
    for seed in (3, 4):
        counted = head._replace(weight=w.sum(), rows=np.count_nonzero(w))
        if memory is None:
            memory = chunk_saga(chunk, counted._replace(diverged=True), None, problem, metric, 0)[1]
        plan = plan_visit(chunk, counted, memory, preconditioned, seed)
        visits = sum(map(len, plan.orders)) / (2 * rounds * n_threads) / metric.inverse_density
        limit = np.median(visits) if rare else 1.0
        monkeypatch.setattr("dask_saga.solver.threaded_visit.OFTEN", limit)
        visited = [set(order.tolist()) for order in plan.orders]
        assert sum(map(len, visited)) == len(set.union(*visited)) == np.count_nonzero(w)
        head, memory = chunk_saga(chunk, head, None if seed == 3 else memory, problem, metric, seed)
        x, gradient_sum = metric.x_to_solver(x), metric.sum_to_solver(gradient_sum)
        factor = min(metric.step_factor, 1.0 if seed == 3 else np.inf)
        stepping = PreconditionedProblem(problem, metric._replace(step_factor=factor))
        step = stepping.step_size() * plan.step * (np.sqrt(n_threads) if problem.automatic else 1.0)
        short = (
            problem.automatic
            and kind != "sparse"
            and step * plan.change_scale * plan.length_threshold * problem.loss.curvature <= 1
        )
        often = np.full(p + 1, True)
        if sparse:
            often[:-1] = visits > limit
            assert 0 < often[:-1].sum() < p if rare else often.all()
        # Of a distance a column's steps between meetings leave the share r, r**n_threads if one followed another.
        steps = sum(map(len, plan.orders)) / n_threads / np.where(often, 2 * rounds, 2)
        scaled = step * metric.scale
        scaled = scaled / (1.0 + scaled * metric.inverse_density * problem.penalty.l2)  # as the penalty shrinks it
        left_by_round = np.exp(-0.25 * steps * metric.curvature * np.append(metric.spread * scaled, step))
        further = np.minimum((1 - left_by_round**n_threads) / (1 - left_by_round), 1.5)
        bounds = [[len(order) * k // (2 * rounds) for k in range(2 * rounds + 1)] for order in plan.orders]
        done = np.sum(bounds, axis=0)
        lefts = 1.0 - done / done[-1] if problem.automatic else np.ones(len(done))
        parts_of_rounds = zip(
            *(
                [order[start:end] for start, end in itertools.pairwise(own)]
                for order, own in zip(plan.orders, bounds, strict=True)
            ),
            strict=True,
        )
        of_threads = [(x, gradient_sum)] * n_threads
        for turn, ((start, end), parts) in enumerate(zip(itertools.pairwise(lefts), parts_of_rounds, strict=True), 1):
            for t, part in enumerate(parts):
                *of_threads[t], gradients = oracles.saga_pass(
                    A, chunk.targets, w, part, oracles.pull_of_rows(plan, w), norms, *of_threads[t], gradients, metric,
                    step, w.sum(), problem, left=np.linspace(start, end, len(part), endpoint=False),
                    together=4 if short else 1,
                )  # fmt: skip
            moves, changes = (np.array([own[k] for own in of_threads]) - at for k, at in enumerate((x, gradient_sum)))
            shares = np.array([len(part) for part in (plan.orders if sparse else parts)], float)[:, None, None]
            if sparse:  # of one thread alone, or where all agree, moves are taken as they are
                shares = shares * ((moves != 0) | (changes != 0))
            mean = (shares * moves).sum(axis=0) / np.maximum(shares.sum(axis=0), 1)
            if sparse:
                highest, lowest = (np.where(shares > 0, moves, -sign * np.inf) * sign for sign in (1, -1))
                agreed = highest.max(axis=0) == -lowest.max(axis=0)
                mean = np.where(agreed, highest.max(axis=0), further * mean)
                mean[~shares.any(axis=0)] = 0.0
            some = often | (turn % rounds == 0)
            x, gradient_sum = x + some * mean, gradient_sum + some * changes.sum(axis=0)
            of_threads = [
                [np.where(some, at, own) for at, own in zip((x, gradient_sum), both, strict=True)]
                for both in of_threads
            ]
        x, gradient_sum = metric.x_to_user(x), metric.sum_to_user(gradient_sum)
        np.testing.assert_allclose(head.x, x, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(head.gradient_sum, gradient_sum, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(memory.gradients, gradients, rtol=1e-5, atol=1e-8)
        x, gradient_sum, gradients = head.x.copy(), head.gradient_sum.copy(), memory.gradients.copy()


@pytest.mark.parametrize("kind", ["dense", "sparse", "rotated"])
def test_what_is_known_of_the_rows_does_not_depend_on_threads(kind, monkeypatch):
    monkeypatch.setattr(metric_module, "ROTATES_FREELY", 1e9)
    monkeypatch.setattr("dask_saga.data.chunk.BLOCK_BYTES", 2048)  # so that there are many blocks
    A, b = rows_of(kind)
    found = []
    for n_threads in (1, 3):
        problem = problem_for(kind, n_threads)
        chunk = read_chunk(A, b, loss=problem.loss)
        stats = column_stats(chunk, problem)
        metric = choose_preconditioner(stats, problem)
        gradients = np.zeros((len(b), 1))
        value, gradient = chunk_gradient(chunk, np.ones((1, A.shape[1] + 1)), problem, gradients)
        found.append(
            [*stats, *metric, row_norms(chunk, PreconditionedProblem(problem, metric)), value, gradient, gradients]
        )
    for one, three in zip(*found, strict=True):
        if one is not None:
            np.testing.assert_allclose(np.asarray(three, float), np.asarray(one, float), rtol=1e-12, atol=1e-12)
    for one, three in zip(found[0][:12], found[1][:12], strict=True):  # the statistics, bit for bit
        assert np.array_equal(one, three)


@pytest.mark.parametrize("loss", ["log_loss", "modified_huber"])
@pytest.mark.parametrize("penalty", ["l2", "l1"])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_the_optimum_is_that_of_one_thread(kind, penalty, loss):
    A, b = rows_of(kind)
    fits = [
        SAGAClassifier(loss, penalty=penalty, alpha=0.01, tol=1e-9, max_iter=2000, memory_dtype="float64",
                       n_threads=n_threads, random_state=0).fit(A, b)
        for n_threads in (1, 2, 4)
    ]  # fmt: skip
    for other in fits[1:]:
        np.testing.assert_allclose(other.coef_, fits[0].coef_, rtol=1e-6, atol=1e-7)
        assert np.array_equal(other.coef_ != 0, fits[0].coef_ != 0)
        np.testing.assert_allclose(
            other.state_.head.gradient_sum[:, :-1],
            sum((memory.gradients.astype(float).T @ A) for memory in other.state_.chunks.values()),
            atol=1e-10,
        )


@pytest.mark.parametrize("n_threads", [2, 4])
def test_bounds_hold_after_any_visit_and_zeros_are_exact(n_threads):
    rng, p = np.random.default_rng(0), 60
    A = sp.csr_array(sp.random(3000, p, 0.2, random_state=0))
    slopes = np.where(np.arange(p) < 6, 3.0 * (-1.0) ** np.arange(p), 0.0)
    b = np.where(rng.random(3000) < 1 / (1 + np.exp(-(A @ slopes))), 1, -1)
    settings = {"memory_dtype": "float64", "random_state": 0, "tol": 1e-8}

    def coefficients(threads, max_iter, **how):
        model = SAGAClassifier(penalty=ElasticNet(**how), n_threads=threads, max_iter=max_iter, **settings)
        return model.fit(A, b).coef_

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for passes in (1, 2, 3):
            low = coefficients(n_threads, passes, l2=1e-4, lower=0.0)
            assert low.min() == 0.0
            assert coefficients(n_threads, passes, l2=1e-4, upper=0.5).max() == 0.5
    for how in ({"l1": 3e-3}, {"l2": 1e-4, "lower": 0.0}):
        one, more = coefficients(1, 500, **how), coefficients(n_threads, 500, **how)
        assert np.array_equal(one == 0.0, more == 0.0)
        assert (one == 0.0).sum() > 20
        np.testing.assert_allclose(more, one, atol=1e-5)


@pytest.mark.parametrize("n_threads", [2, 4])
def test_rare_columns_that_come_together(n_threads):
    """Each moves little in a round, all of a topic much: threads that added their moves up would end beyond."""
    rng, topics, n = np.random.default_rng(0), 20, 4000
    topic = rng.integers(topics, size=n)
    A = np.kron(np.eye(topics), np.ones(30))[topic] * rng.uniform(0.8, 1.2, (n, 1))
    b = np.where(rng.random(n) < 0.1 + 0.8 * (topic % 2), 1, -1)
    settings = {"alpha": 1e-4, "tol": 1e-8, "memory_dtype": "float64", "random_state": 0}
    one, more = (SAGAClassifier(n_threads=k, max_iter=400, **settings).fit(sp.csr_array(A), b) for k in (1, n_threads))
    assert more.converged_
    np.testing.assert_allclose(more.coef_, one.coef_, atol=1e-4)


def test_an_intercept_far_from_zero_and_several_outputs(monkeypatch):
    monkeypatch.setattr(statistics, "MOST_ROTATED", 1)  # rotated, it would start at the optimum
    A, _ = rows_of("dense")
    Y = np.c_[A @ np.arange(6.0) + 50.0, A[:, 0] - 30.0]
    model = SAGARegressor(alpha=1e-3, tol=1e-9, max_iter=2000, memory_dtype="float64", n_threads=2, random_state=0)
    model.fit(A, Y)
    assert model.state_.metric.rotation is None
    centred = A - A.mean(axis=0)
    best = np.linalg.solve(centred.T @ centred / len(A) + 1e-3 * np.eye(6), centred.T @ Y / len(A)).T
    np.testing.assert_allclose(model.coef_, best, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(model.intercept_, Y.mean(axis=0) - best @ A.mean(axis=0), rtol=1e-7)


def test_threads_of_threads_give_the_bits_of_each_by_itself():
    """As in a Dask worker with several threads."""
    A, b = rows_of("dense", 2000)

    def coefficients(seed):
        with np.errstate(all="ignore"):
            model = SAGAClassifier(n_threads=3, max_iter=3, tol=0.0, random_state=seed, curvature=False)
            model.partial_fit(A, b, classes=[-1, 1]).partial_fit(A, b)
            return model.coef_.tobytes()

    alone = [coefficients(seed) for seed in range(4)]
    assert len(set(alone)) == 4
    for _ in range(3):
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(coefficients, range(4))) == alone


def test_a_block_without_weight_leaves_x_where_it_is():
    A, b = rows_of("dense")
    X, y = da.from_array(A, chunks=(400, -1)), da.from_array(b, chunks=400)
    weights = da.from_array(np.repeat([1.0, 0.0, 2.0, 1.0], 400), chunks=400)
    settings = {"tol": 1e-9, "max_iter": 2000, "memory_dtype": "float64", "random_state": 0}
    one, two = (SAGAClassifier(n_threads=k, **settings).fit(X, y, weights) for k in (1, 2))
    assert two.converged_
    np.testing.assert_allclose(two.coef_, one.coef_, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("n", [5, 9])
def test_fewer_rows_than_rounds_lose_nothing_of_the_sum(n, kind, monkeypatch):
    monkeypatch.setattr("dask_saga.solver.visit_plan.ENTRIES_A_COEFFICIENT", 0.0)
    monkeypatch.setattr("dask_saga.solver.threaded_visit.ENTRIES_A_COEFFICIENT", 0.0)
    A, b = make_rows(n, 40)
    A[np.arange(40) % n != np.arange(n)[:, None]] = 0.0  # each column is one row's, and so one thread's
    problem = problem_for(kind, 2, memory_dtype="float64")
    chunk = read_chunk(sp.csr_array(A) if kind == "sparse" else A, b, loss=problem.loss)
    metric = choose_preconditioner(column_stats(chunk, problem), problem)
    head, memory = new_solver_state(40), None
    for seed in range(4):
        head, memory = chunk_saga(chunk, head, memory, problem, metric, seed)
    assert len(plan_visit(chunk, head, memory, PreconditionedProblem(problem, metric), 0).orders) == 2
    np.testing.assert_allclose(head.gradient_sum, memory.gradients.T @ np.column_stack([A, np.ones(n)]), atol=1e-12)


def test_fewer_rows_than_threads():
    A, b = make_rows(3, 40)
    one, four = (
        SAGARegressor(alpha=0.1, tol=1e-8, max_iter=2000, memory_dtype="float64", n_threads=k, random_state=0)
        .fit(A, b)
        .coef_
        for k in (1, 4)
    )
    np.testing.assert_allclose(four, one, rtol=1e-5, atol=1e-7)


@njit(nogil=True)
def count_together(t, found, arrived, failed, turns, failing):
    """Count to `turns` with the others, unless one is failing; how often a number of another was not seen."""
    unseen = 0
    for turn in range(turns):
        if failing == t:
            raise OSError("failing")
        found[t] = turn
        if not wait(arrived, failed, found.size * (2 * turn + 1)):
            return -1
        unseen += np.count_nonzero(found != turn)
        if not wait(arrived, failed, found.size * (2 * turn + 2)):
            return -1
    return unseen


@pytest.mark.parametrize("count", [2, 3, 5])  # more than there are cores, too
def test_threads_that_meet_see_what_the_others_did(count):
    found, unseen = np.zeros(count, int), []
    threads_module.run_together(count, lambda t, *meeting: unseen.append(count_together(t, found, *meeting, 200, -1)))
    assert unseen == [0] * count


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_thread_that_fails_lets_the_others_go(failing):
    found, ends = np.zeros(3, int), []
    with pytest.raises(OSError, match="failing"):
        threads_module.run_together(3, lambda t, *meeting: ends.append(count_together(t, found, *meeting, 9, failing)))
    assert set(ends) <= {-1}  # some may not have begun


def test_one_that_leaves_does_not_free_blas_for_the_others():
    def counts():
        controllers = threads_module._blas()[0].lib_controllers
        return [library.num_threads for library in controllers]

    before = counts()
    inside, left = threading.Barrier(2), threading.Event()
    seen = []

    def first():
        with threads_module.one_blas_thread():
            inside.wait(10)
        left.set()

    def second():
        with threads_module.one_blas_thread():
            inside.wait(10)
            assert left.wait(10)
            seen.append(counts())
            with threads_module.one_blas_thread():
                pass
            seen.append(counts())

    with ThreadPoolExecutor(2) as pool:
        for task in (pool.submit(first), pool.submit(second)):
            task.result()
    assert seen == [[1] * len(before)] * 2
    assert counts() == before


def test_small_chunks_are_not_shared(monkeypatch):
    monkeypatch.undo()
    assert threads_module.thread_count(4, 1000) == 1
    assert threads_module.thread_count(4, 3 * threads_module.LEAST_ENTRIES) == 3
    A, b = rows_of("dense")
    one, four = (SAGAClassifier(n_threads=k, random_state=0).fit(A, b) for k in (1, 4))
    assert one.coef_.tobytes() == four.coef_.tobytes()


def test_n_threads_must_be_a_positive_integer():
    A, b = rows_of("dense")
    for bad in (0, -1, 1.5, "auto"):
        with pytest.raises(ValueError, match="n_threads"):
            SAGAClassifier(n_threads=bad).fit(A, b)


def test_threads_that_read_leave_the_warning_filters():
    """scikit-learn's checks change them for a while, and what one thread restores another may have changed."""
    A, y, w = [[1.0, 2.0]] * 3, [1.0, 2.0, 3.0], [1.0, 1.0, 1.0]
    before, interval = list(warnings.filters), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(lambda _: read_chunk(A, y, w).content, range(1000)))) == 1
        assert list(warnings.filters) == before
    finally:
        sys.setswitchinterval(interval)
        warnings.filters[:] = before


def _where(_):
    return threading.get_ident()


def test_helpers_live_on_for_their_caller_alone():
    def helpers():
        """Those of two threads that wait for each other."""
        both = threading.Barrier(2)

        def here(_):
            both.wait(10)
            return threading.get_ident()

        with threads_module.threads(2) as each:
            return set(each(here, range(2))) - {threading.get_ident()}

    first = helpers()
    assert len(first) == 1
    assert helpers() == first
    with ThreadPoolExecutor(1) as pool:
        assert not pool.submit(helpers).result() & first
    with threads_module.threads(2):  # those are taken meanwhile
        assert not helpers() & first


def test_helpers_of_an_error_are_not_used_again():
    """An interrupt may have left their locks taken."""
    found = []

    def fails(k):
        found.append(threading.get_ident())
        raise KeyboardInterrupt

    with threads_module.threads(2) as each:
        list(each(_where, range(2)))
    idle = list(threads_module._own.__dict__[os.getpid()])
    with pytest.raises(KeyboardInterrupt), threads_module.threads(2) as each:
        each(fails, range(2))
    assert found
    assert not set(idle[-1:]) & set(threads_module._own.__dict__[os.getpid()])


def test_an_interrupt_before_a_thread_meets_the_others_lets_them_go(monkeypatch):
    caller, begun, late = threading.get_ident(), threading.Event(), threading.Event()

    class Numbers:
        def __init__(self):
            self.numbers = itertools.count()

        def __next__(self):
            if threading.get_ident() == caller:
                begun.wait(20)
                raise KeyboardInterrupt
            return next(self.numbers)

    monkeypatch.setattr(threads_module, "itertools", SimpleNamespace(count=Numbers))

    def run(t, arrived, failed):
        def release():
            late.set()
            failed[0] = 1

        begun.set()
        timer = threading.Timer(20, release)
        timer.start()
        count_together(t, np.zeros(2, int), arrived, failed, 1, -1)
        timer.cancel()
        return True

    with pytest.raises(KeyboardInterrupt):
        threads_module.run_together(2, run)
    assert begun.is_set()
    assert not late.is_set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked there")
def test_a_forked_process_has_helpers_of_its_own():
    with threads_module.threads(2) as each:
        list(each(_where, range(9)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child = os.fork()
    if not child:
        with threads_module.threads(2) as each:
            os._exit(len(list(each(_where, range(9)))))
    end = time.monotonic() + 20
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
        time.sleep(0.01)
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(ended[1]) == 9
