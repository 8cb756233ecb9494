"""``chunk_saga``: a pure function, equal to a plain Python pass on every kind of rows."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.sparse as sp
from threadpoolctl import threadpool_info

from dask_saga import chunk_saga
from dask_saga.data.statistics import column_stats, merge
from dask_saga.data.validation import read_chunk
from dask_saga.execution.threads import one_blas_thread
from dask_saga.losses import LOSSES, MultinomialLogLoss
from dask_saga.penalties import PENALTIES
from dask_saga.solver import preconditioner_choice as metric_module
from dask_saga.solver.optimality import chunk_gradient
from dask_saga.solver.preconditioned_problem import PreconditionedProblem, row_norms
from dask_saga.solver.preconditioner_choice import choose_preconditioner
from dask_saga.solver.problem import Problem
from dask_saga.solver.state import new_solver_state
from dask_saga.solver.visit import fresh_memory
from dask_saga.solver.visit_plan import plan_visit, row_order

from . import oracles
from .conftest import make_rows

KINDS = {
    "C float64": lambda A: A,
    "F float64": np.asfortranarray,
    "C float32": lambda A: A.astype(np.float32),
    "CSR float64": sp.csr_array,
    "CSR float32": lambda A: sp.csr_matrix(A.astype(np.float32)),
    "CSC int64": lambda A: int64_indices(sp.csc_array(A)),
}


def int64_indices(A):
    A.indices, A.indptr = A.indices.astype(np.int64), A.indptr.astype(np.int64)
    return A


def sparse_enough(A):
    return np.where(np.abs(A) > 0.7 * np.abs(A).mean(axis=0), A, 0.0)


def problem_for(loss, penalty="elasticnet", **kwargs):
    return Problem(LOSSES[loss](), PENALTIES[penalty](0.01, 0.5), True, **kwargs)


def shares_left(start, end, visits):
    """The share of rows to come before each visit."""
    return np.linspace(start, end, visits, endpoint=False)


# Losses of each kind. Kernels see the members of a loss only, and other losses have the same ones: test_losses.py and
# test_optimum.py compare every loss.
KINDS_OF_LOSSES = (
    "log_loss", "squared_hinge", "modified_huber", "smooth_hinge", "squared_error", "huber", "poisson", "gamma",
)  # fmt: skip
OUTPUTS = {
    **{name: (LOSSES[name](), lambda A, b: b) for name in KINDS_OF_LOSSES},
    "squared_error of 2": (LOSSES["squared_error"](), lambda A, b: np.c_[b, A[:, 0]]),
    "multinomial": (MultinomialLogLoss(3), lambda A, b: np.digitize(A[:, 0], [-0.5, 0.5]).astype(float)),
}
STEPS = {
    "auto": {"step_size_scale": 2.0},  # so that implicit steps count
    "short": {"step_size_scale": 0.02},  # so that rows take steps together
    "given": {"step_size": 1e-3},
    "rotated": {"step_size_scale": 2.0},
}


@pytest.mark.parametrize("memory_dtype", ["float32", "float64"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_passes_equal_plain_python(kind, name, steps, weighted, memory_dtype, monkeypatch):
    loss, targets = OUTPUTS[name]
    A, b = make_rows(40, 5, classes=getattr(loss, "labels", None) == (-1.0, 1.0))
    A[3] *= 20.0  # a row that is visited more than once
    if hasattr(loss, "mean"):
        b = np.maximum(np.abs(b) / np.abs(b).max(), 1e-9)  # valid for all losses with a link
    b = targets(A, b)
    A = KINDS[kind](sparse_enough(A))
    weights = np.random.default_rng(1).random(40) * (np.arange(40) % 5 > 0) if weighted else None
    penalty = PENALTIES["l2" if steps == "rotated" else "elasticnet"](0.01, 0.5)._replace(upper=np.inf)
    if steps != "rotated":
        penalty = penalty._replace(lower=-0.5)
    problem = Problem(loss, penalty, True, memory_dtype=memory_dtype, **STEPS[steps])
    problem = problem._replace(outputs=getattr(loss, "outputs", 1))
    monkeypatch.setattr(metric_module, "ROTATES_FREELY", 1e9)
    chunk = read_chunk(A, b, weights, loss=loss)
    metric = choose_preconditioner(column_stats(chunk, problem), problem)
    assert (metric.rotation is not None) == (steps == "rotated" and not sp.issparse(A))
    k = 2 if name.endswith("of 2") else problem.outputs
    head, memory = new_solver_state(5, k), None
    w = np.ones(40) if weights is None else weights
    x, gradient_sum, gradients = np.zeros((k, 6)), np.zeros((k, 6)), np.zeros((40, k), memory_dtype)
    rows = sp.csr_array(A) if sp.issparse(A) else np.asarray(A)
    turned = (rows.toarray() - metric.shift) * (rows.toarray() != 0) if sp.issparse(A) else rows - metric.shift
    turned = turned if metric.rotation is None else turned @ metric.rotation
    norms = ((turned**2 * metric.scale).sum(axis=1) + 1).astype(np.float32)
    used, ratio = np.flatnonzero(w), np.count_nonzero(w) / w.sum()
    times = np.clip(np.ceil(norms * w * ratio / (2 * metric.mean_square)), 1, len(used)).astype(int)
    if steps == "given":
        times, norms = np.ones(40, int), None
    else:
        assert times.max() > 1
    more, plain = times[used].sum() / len(used), steps == "given" or loss.curvature is None
    for seed in (3, 4):
        factor = min(metric.step_factor, 1.0 if seed == 3 else np.inf)
        stepping = PreconditionedProblem(problem, metric._replace(step_factor=factor))
        hardest = 2 * metric.mean_square * stepping.step_size(head.step_multiplier) * (loss.curvature or np.inf)
        together = 4 if steps != "given" and hardest <= 1 else 1
        assert steps != "short" or together == 4 or loss.curvature is None
        head, memory = chunk_saga(chunk, head, memory, problem, metric, seed)
        order = row_order(seed, np.append(used, np.repeat(used, times[used] - 1)), len(used))
        turned_x, turned_sum = metric.x_to_solver(x), metric.sum_to_solver(gradient_sum)
        x, gradient_sum, gradients = oracles.saga_pass(
            rows, chunk.targets, w, order, ratio * more / times, norms, turned_x, turned_sum, gradients, metric,
            stepping.step_size(head.step_multiplier) / more, w.sum(), problem,
            left=None if plain else shares_left(1.0, 0.0, len(order)), together=1 if sp.issparse(A) else together,
        )  # fmt: skip
        x, gradient_sum = metric.x_to_user(x), metric.sum_to_user(gradient_sum)
    tolerance = 1e-8 if memory_dtype == "float64" else 1e-4
    np.testing.assert_allclose(head.x, x, rtol=tolerance, atol=tolerance * np.abs(x).max())
    np.testing.assert_allclose(head.gradient_sum, gradient_sum, rtol=tolerance, atol=tolerance * 400)
    np.testing.assert_allclose(memory.gradients, gradients, rtol=tolerance, atol=tolerance)
    assert memory.gradients.dtype == memory_dtype
    assert memory.visits == 2


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("name", ["log_loss", "multinomial"])
@pytest.mark.parametrize("kind", ["C float64", "CSR float64"])
def test_the_second_chunk_of_a_pass_equals_plain_python(kind, name, rotated, monkeypatch):
    loss, targets = OUTPUTS[name]
    A, b = make_rows(40, 5)
    A, b = sparse_enough(A), targets(A, b)
    problem = Problem(loss, PENALTIES["l2"](0.01, 0.5), True, memory_dtype="float64", **STEPS["auto"])
    problem = problem._replace(outputs=getattr(loss, "outputs", 1), precondition=rotated or kind != "C float64")
    monkeypatch.setattr(metric_module, "ROTATES_FREELY", 1e9)
    chunks = [read_chunk(KINDS[kind](A[part]), b[part], loss=loss) for part in (slice(0, 24), slice(24, 40))]
    metric = choose_preconditioner(merge(*(column_stats(chunk, problem) for chunk in chunks)), problem)
    assert (metric.rotation is not None) == (rotated and kind == "C float64")
    metric = metric._replace(step_factor=min(metric.step_factor, 1.0))
    head = new_solver_state(5, problem.outputs, weight=40.0, rows=40)
    first, memory = chunk_saga(chunks[0], head, fresh_memory(chunks[0], problem), problem, metric, 3)
    assert first.visited_weight == 24
    assert np.any(first.visited_sum != 24 * first.x)  # it is x on the way
    second, memory = chunk_saga(chunks[1], first, fresh_memory(chunks[1], problem), problem, metric, 4)
    x, anchor = map(metric.x_to_solver, (first.x, first.visited_sum / 24))
    total = metric.sum_to_solver(first.gradient_sum)
    preconditioned = PreconditionedProblem(problem, metric)
    plan = plan_visit(chunks[1], first, memory, preconditioned, 4)
    [order], norms = plan.orders, row_norms(chunks[1], preconditioned)
    rows, step = KINDS[kind](A[24:]), preconditioned.step_size() * plan.step
    x, total, gradients = oracles.saga_pass(
        rows, chunks[1].targets, np.ones(16), order, oracles.pull_of_rows(plan, np.ones(16)), norms, x, total,
        np.zeros((16, problem.outputs)), metric, step, 40.0, problem,
        left=shares_left(0.4, 0.0, len(order)), past=0.6, anchor=anchor,
    )  # fmt: skip
    x, total = metric.x_to_user(x), metric.sum_to_user(total)
    np.testing.assert_allclose(second.x, x, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(second.gradient_sum, total, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(memory.gradients, gradients, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", ["C float64", "CSR float64"])
def test_chunks_that_come_one_by_one_remember_where_x_was(kind):
    A = np.random.default_rng(0).standard_normal((6000, 5))
    b = A @ np.arange(5.0)
    problem = problem_for("squared_error", None)
    chunks = [read_chunk(KINDS[kind](A[part]), b[part]) for part in (slice(0, 3000), slice(3000, 6000))]
    metric = choose_preconditioner(merge(*(column_stats(chunk, problem) for chunk in chunks)), problem)
    head = new_solver_state(5)
    for chunk in chunks:  # the first is all that its visit knows of
        head, _ = chunk_saga(chunk, head, None, problem, metric, 0)
        np.testing.assert_allclose(head.x[0], np.append(np.arange(5.0), 0.0), atol=0.3)  # else it would be 1


def bytes_of(value):
    """Every array of nested tuples as bytes."""
    if isinstance(value, tuple):
        return [b for v in value for b in bytes_of(v)]
    if sp.issparse(value):
        return [value.data.tobytes(), value.indices.tobytes(), value.indptr.tobytes()]
    return [value.tobytes()] if isinstance(value, np.ndarray) else [repr(value).encode()]


@pytest.mark.parametrize("kind", ["C float64", "CSR float64"])
def test_inputs_are_never_written_and_results_repeat(kind, binary):
    A, b = binary
    A, problem = KINDS[kind](sparse_enough(A)), problem_for("log_loss")
    for array in (A, b) if not sp.issparse(A) else (A.data, A.indices, A.indptr, b):
        array.flags.writeable = False
    chunk = read_chunk(A, b)
    metric = choose_preconditioner(column_stats(chunk, problem), problem)
    head, memory = chunk_saga(chunk, new_solver_state(8), None, problem, metric, 0)
    for field in (head.x, head.gradient_sum, head.window_sum, memory.gradients):
        assert not field.flags.writeable
    before = bytes_of((chunk, head, memory, metric))
    global_state = np.random.get_state()[1].copy()  # noqa: NPY002
    one = chunk_saga(chunk, head, memory, problem, metric, 1)
    two = chunk_saga(chunk, head, memory, problem, metric, 1)
    other = chunk_saga(chunk, head, memory, problem, metric, 2)
    assert bytes_of((chunk, head, memory, metric)) == before
    assert bytes_of(one) == bytes_of(two) != bytes_of(other)
    assert np.array_equal(np.random.get_state()[1], global_state)  # noqa: NPY002


def test_strided_and_uncanonical_csr():
    data = np.arange(12.0)[::2] + 1
    A = sp.csr_array((np.ones(6), [2, 0, 1, 1, 0, 2], [0, 2, 4, 6]), shape=(3, 3))
    A.data = data
    before = A.toarray()
    chunk = read_chunk(A, np.array([1.0, -1.0, 1.0]))
    np.testing.assert_array_equal(chunk.rows.toarray(), before)
    assert chunk.rows.has_canonical_format
    np.testing.assert_array_equal(A.data, data)  # the user's own matrix stays as it was
    assert chunk.content == read_chunk(sp.csr_array(before), np.array([1.0, -1.0, 1.0])).content


def test_float32_rows_are_not_copied_to_float64():
    A = np.ones((10, 3), np.float32)
    chunk = read_chunk(A, np.tile([-1.0, 1.0], 5))
    assert chunk.rows.dtype == np.float32
    assert np.shares_memory(chunk.rows, A)


def test_gradient_and_lengths(binary):
    A, b = binary
    w = np.random.default_rng(0).random(len(b))
    problem = problem_for("log_loss")
    x = np.random.default_rng(1).standard_normal(9) / 10
    for rows in (A, sp.csr_array(A)):
        chunk = read_chunk(rows, b, w)
        value, gradient = chunk_gradient(chunk, x[None], problem)
        z = A @ x[:-1] + x[-1]
        m = w * np.array([problem.loss.derivative(u, v) for u, v in zip(z, b, strict=True)])
        np.testing.assert_allclose(gradient[0], np.append(m @ A, m.sum()))
        assert value == pytest.approx(sum(w * [problem.loss.value(u, v) for u, v in zip(z, b, strict=True)]))
        stats = column_stats(chunk, problem)
        metric = choose_preconditioner(stats, problem)
        norms = row_norms(chunk, PreconditionedProblem(problem, metric))
        np.testing.assert_allclose(norms, ((A - metric.shift) ** 2 * metric.scale).sum(axis=1) + 1)


def test_statistics_merge_exactly(binary):
    A, b = binary
    A = A + 1e9 * (np.arange(8) == 3)  # a unix time within a minute
    w = np.random.default_rng(0).random(len(b))
    problem = problem_for("log_loss", "l2")
    parts = [column_stats(read_chunk(A[k::7], b[k::7], w[k::7]), problem) for k in range(7)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merge(merged, part)
    mean = np.average(A, axis=0, weights=w)
    np.testing.assert_allclose(merged.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(merged.squares, w @ (A - mean) ** 2, rtol=1e-6)
    np.testing.assert_allclose(merged.products, (A - mean).T @ (w[:, None] * (A - mean)), rtol=1e-6, atol=1e-6)
    target = np.average(b, weights=w)
    assert merged.target == pytest.approx(target)
    np.testing.assert_allclose(merged.cross, (w * (b - target)) @ (A - mean), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(merged.low, A.min(axis=0))
    np.testing.assert_array_equal(merged.high, A.max(axis=0))
    assert merged.rows == 600
    sparse = column_stats(read_chunk(sp.csr_array(A), b, w), problem)
    np.testing.assert_allclose(sparse.mean, mean, rtol=1e-12)


@pytest.mark.parametrize("kind", ["CSR float64", "CSC int64"])
def test_statistics_of_sparse_columns_are_those_of_dense_ones(kind):
    rng = np.random.default_rng(0)
    A = np.where(rng.random((500, 6)) < 0.3, rng.standard_normal((500, 6)), 0.0) * 10.0 ** np.array(
        [0, 40, -50, 3, 0, 0]
    )
    A[:, 4], w = 1e6 + rng.random(500), rng.random(500)  # stored by all, as none is zero
    problem = problem_for("log_loss")
    dense, sparse = (column_stats(read_chunk(rows, np.ones(500), w), problem) for rows in (A, KINDS[kind](A)))
    np.testing.assert_allclose(sparse.mean, dense.mean, rtol=1e-10)
    np.testing.assert_allclose(sparse.squares, dense.squares, rtol=1e-8)
    np.testing.assert_array_equal(sparse.counts, np.count_nonzero(A, axis=0))
    np.testing.assert_array_equal(sparse.full, [False] * 4 + [True, False])
    np.testing.assert_array_equal((sparse.low[4], sparse.high[4]), (dense.low[4], dense.high[4]))
    rest = ~sparse.full
    np.testing.assert_allclose(sparse.high[rest], np.abs(A).max(axis=0)[rest], rtol=1e-6)
    np.testing.assert_array_equal(sparse.low[rest], -sparse.high[rest])


def test_statistics_of_rows_that_are_not_as_scipy_remembers():
    A = sp.csr_array(np.arange(1.0, 13.0).reshape(4, 3))
    assert A.has_canonical_format  # which scipy remembers
    A.indices[:3], A.indices[-3:] = [0, 2, 2], [0, 1, 1]
    stats = column_stats(read_chunk(A, np.ones(4)), problem_for("log_loss"))
    np.testing.assert_allclose(stats.mean, A.toarray().mean(axis=0))


def test_constant_and_empty_columns_keep_unit_scale():
    A = np.random.default_rng(0).standard_normal((50, 4))
    A[:, 1], A[:, 2] = 0.1, 0.0
    problem = problem_for("squared_error")
    for rows in (A, sp.csr_array(A)):
        metric = choose_preconditioner(column_stats(read_chunk(rows, np.ones(50)), problem), problem)
        assert metric.scale[2] == 1.0
        assert np.isfinite(metric.scale).all()
    assert choose_preconditioner(column_stats(read_chunk(A, np.ones(50)), problem), problem).scale[1] == 1.0


def test_memory_of_other_content_is_refused(binary):
    A, b = binary
    problem = problem_for("log_loss")
    one, other = read_chunk(A[:300], b[:300]), read_chunk(A[300:], b[300:])
    metric = choose_preconditioner(column_stats(one, problem), problem)
    with pytest.raises(ValueError, match="other content; pass the memory that the last visit"):
        chunk_saga(other, new_solver_state(8), fresh_memory(one, problem), problem, metric, 0)


def test_a_divergent_step_freezes_finite_values(numbers):
    A, b = numbers
    problem = problem_for("squared_error", step_size=1e6)
    chunk = read_chunk(A, b)
    metric = choose_preconditioner(column_stats(chunk, problem), problem)
    head, memory = chunk_saga(chunk, new_solver_state(8), None, problem, metric, 0)
    assert head.diverged
    assert not head.x.any()
    assert not memory.gradients.any()
    again, _ = chunk_saga(chunk, head, memory, problem, metric, 0)
    assert bytes_of(again.x) == bytes_of(head.x)


def test_blas_gets_its_threads_back():
    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    def enter_and_leave(k):
        for _ in range(50):
            with one_blas_thread():
                time.sleep(0.0002 * k)

    before = threads()
    with one_blas_thread():
        assert set(threads()) == {1}
    for _ in range(3):  # of which each time another one comes first, and dies
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(enter_and_leave, range(4)))
    assert threads() == before
