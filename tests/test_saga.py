"""``saga``: the post's algorithm with the post's settings; the optimum with ours; chunks of any kind."""

from typing import NamedTuple

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp

from dask_saga import saga
from dask_saga.losses import LogLoss
from dask_saga.penalties import ElasticNet
from dask_saga.solver.identity import visit_seed
from dask_saga.solver.visit_plan import row_order

from . import oracles
from .conftest import make_rows

POST = {"shuffle": False, "average": False, "precondition": False, "memory_dtype": "float64"}


def split(A, b, k):
    return [(A[rows], b[rows]) for rows in np.array_split(np.arange(len(b)), k)]


@pytest.mark.parametrize("kind", ["arrays", "delayed", "dask arrays"])
def test_with_the_posts_settings_it_is_the_posts_algorithm(binary, kind):
    A, b = binary
    chunks = split(A, b, 4)
    given = chunks
    if kind == "delayed":
        given = [dask.delayed(tuple)(chunk) for chunk in chunks]
    elif kind == "dask arrays":
        given = [(da.from_array(X, chunks=X.shape), da.from_array(y, chunks=y.shape)) for X, y in chunks]
    step_size = 0.3 / (0.25 * (A**2).sum(axis=1).max())
    result = saga(given, max_iter=5, random_state=3, step_size=step_size, **POST)

    x, average = np.zeros(8), np.zeros(8)
    memory = [np.zeros(len(b)) for _, b in chunks]
    for epoch in range(5):
        for k, ((X, y), chunk_id) in enumerate(zip(chunks, result.state.chunks, strict=True)):
            order = row_order(visit_seed(3, chunk_id, epoch), np.arange(len(y)), len(y))
            orders = order[: len(y) // 2], order[len(y) // 2 :]
            for part in orders:
                x, memory[k], average = oracles.post_pass(
                    X, y, len(b), LogLoss(), x, memory[k], average, step_size, part
                )
    assert result.step_size == step_size
    np.testing.assert_allclose(result.x, x, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result.state.gradient_average, average, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(result.state.memory_gradients.values(), memory, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    assert result.intercept == 0.0


def test_callback_sees_every_pass_and_stops(binary):
    A, b = binary
    chunks, seen = split(A, b, 3), []

    def callback(info):
        seen.append(info)
        return np.True_ if info.epoch == 4 else "yes"

    result = saga(chunks, callback=callback, max_iter=50, random_state=0)
    assert [info.epoch for info in seen] == [1, 2, 3, 4] == [row["epoch"] for row in result.history]
    assert seen[-1].chunks is chunks
    assert seen[-1].visits == 12
    np.testing.assert_array_equal(seen[-1].x, result.x)
    objective = [oracles.objective(A, b, info.x, info.intercept, LogLoss(), ElasticNet()) for info in seen]
    assert objective[-1] < objective[0] < np.log(2)


def test_tol_is_never_met_falsely(binary):
    A, b = binary
    for k in (1, 5):
        result = saga(split(A, b, k), penalty=ElasticNet(l2=1e-3), tol=1e-3, max_iter=500, random_state=0)
        assert result.converged
        exact = oracles.reference(A, b, LogLoss(), ElasticNet(l2=1e-3), False)
        best = oracles.objective(A, b, exact[:-1], 0.0, LogLoss(), ElasticNet(l2=1e-3))
        gap = oracles.objective(A, b, result.x, 0.0, LogLoss(), ElasticNet(l2=1e-3)) - best
        assert gap <= 10 * 1e-3 * (np.log(2) - best)


class SmoothAbsolute(NamedTuple):
    """The absolute error with its corner rounded: a user's own loss with a parameter."""

    width: float = 0.5
    curvature = 2.0

    def value(self, z, y):
        return abs(z - y) - self.width / 2 if abs(z - y) > self.width else (z - y) ** 2 / (2 * self.width)

    def derivative(self, z, y):
        return max(-1.0, min(1.0, (z - y) / self.width))


class Shrink(NamedTuple):
    """A user's own penalty."""

    alpha: float

    def value(self, x):
        return 0.5 * self.alpha * (x - 1.0) ** 2

    def prox(self, v, step):
        return (v + step * self.alpha) / (1.0 + step * self.alpha)


@pytest.mark.slow
def test_own_loss_and_penalty(numbers):
    A, b = numbers
    result = saga(split(A, b, 4), SmoothAbsolute(), Shrink(0.1), max_iter=500, tol=1e-7, random_state=0)
    assert result.converged

    def objective(x):
        return oracles.objective(A, b, x, 0.0, SmoothAbsolute(), Shrink(0.1))

    best = objective(result.x)
    for j in range(8):
        for h in (-1e-3, 1e-3):
            assert objective(result.x + h * (np.arange(8) == j)) > best


def test_losses_of_one_name_are_not_confused(numbers):
    A, b = numbers

    def loss_around(centre):
        class Shifted(NamedTuple):
            curvature = 1.0

            def value(self, z, y):
                return 0.5 * (z - centre) ** 2

            def derivative(self, z, y):
                return z - centre

        return Shifted()

    for centre in (0.0, 10.0, 0.0):
        result = saga([(A, b)], loss_around(centre), fit_intercept=True, max_iter=200, tol=1e-6, random_state=0)
        assert result.converged
        assert result.intercept + A[0] @ result.x == pytest.approx(centre, abs=1e-3)


def test_stops_where_zero_is_the_optimum():
    A = np.array([[1.0], [1.0]])
    result = saga([(A, np.array([1.0, -1.0]))], max_iter=10, tol=1e-6)
    assert result.converged
    assert result.x == 0.0
    assert result.n_iter == 0


def test_rows_sorted_by_label_converge_in_few_and_many_chunks():
    A, b = make_rows(n=5000, p=10)
    order = np.argsort(b, kind="stable")
    A, b = A[order], b[order]
    penalty = ElasticNet(l2=1e-3)
    exact = oracles.reference(A, b, LogLoss(), penalty, True)
    best = oracles.objective(A, b, exact[:-1], exact[-1], LogLoss(), penalty)
    for k in (7, 40):
        result = saga(split(A, b, k), penalty=penalty, fit_intercept=True, max_iter=40, random_state=0)
        gap = oracles.objective(A, b, result.x, result.intercept, LogLoss(), penalty) - best
        assert gap <= 1e-6 * (np.log(2) - best)


def test_sparse_rows_sorted_by_a_category_converge_in_chunks_that_lack_most_levels():
    rng, n, levels = np.random.default_rng(2), 20000, (800, 100, 20)
    starts = np.cumsum([0, *levels])
    columns = np.stack(
        [rng.zipf(1.3, n) % count + start for count, start in zip(levels, starts[:-1], strict=True)], axis=1
    )
    columns = columns[np.argsort(columns[:, 1], kind="stable")]
    A = sp.csr_array((np.ones(3 * n), columns.ravel(), np.arange(0, 3 * n + 1, 3)), shape=(n, starts[-1]))
    b = np.where(A @ rng.standard_normal(starts[-1]) + rng.logistic(size=n) > 0, 1.0, -1.0)
    chunks = [(A[k : k + n // 8], b[k : k + n // 8]) for k in range(0, n, n // 8)]
    penalty = ElasticNet(l2=1e-4)
    result = saga(chunks, penalty=penalty, fit_intercept=True, max_iter=80, tol=1e-4, random_state=0)
    assert result.converged


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"chunks": []}, ValueError, "chunks is empty"),
        ({"chunks": [np.ones((3, 2))]}, TypeError, "chunk 0: chunks must hold pairs"),
        ({"chunks": [(np.ones((3, 2)), [1, -1, 1]), (np.ones((3, 3)), [1, -1, 1])]}, ValueError, "chunk 1.*3 features"),
        ({"chunks": [(np.ones((3, 2)), [1, -1, 1]), (np.ones((3, 2)), [1, -1])]}, ValueError, "chunk 1.*y has 2"),
        ({"chunks": [(np.ones((3, 2)), [1, 0, 1])]}, ValueError, r"chunk 0: y.*\(-1.0, 1.0\)"),
        ({"chunks": [(np.full((3, 2), np.nan), [1, -1, 1])]}, ValueError, "chunk 0.*X contains NaN"),
        ({"chunks": [(np.ones((0, 2)), np.ones(0))]}, ValueError, "no rows"),
        ({"chunks": [5]}, TypeError, "chunk 0: chunks must hold pairs"),
        ({"fit_intercept": "no"}, ValueError, "fit_intercept"),
        ({"random_state": -1}, ValueError, "random_state"),
        ({"max_iter": 2.5}, ValueError, "max_iter"),
        ({"step_size": None}, ValueError, "step_size"),
        ({"loss": "zero_one"}, ValueError, "loss"),
        ({"penalty": "l2"}, TypeError, "penalty"),
        ({"step_size": 0.0}, ValueError, "step_size"),
        ({"step_size": "large"}, ValueError, "step_size"),
        ({"step_size_scale": -1}, ValueError, "step_size_scale"),
        ({"max_iter": 0}, ValueError, "max_iter"),
        ({"tol": -1.0}, ValueError, "tol"),
        ({"memory_dtype": "int8"}, ValueError, "memory_dtype"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(change, error, match):
    arguments = {"chunks": [(np.eye(2), [1.0, -1.0])], **change}
    with pytest.raises(error, match=match):
        saga(**arguments)
