"""Refinements: passes that tell the exact gradient while a sample leads."""

import warnings

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning

from dask_saga import SAGAClassifier, SAGARegressor
from dask_saga.data.statistics import measure
from dask_saga.data.validation import read_chunk
from dask_saga.fitting import convergence, fit_state, loop
from dask_saga.fitting.preparation import _examine
from dask_saga.losses import Huber, LogLoss, MultinomialLogLoss, SquaredError
from dask_saga.penalties import ElasticNet
from dask_saga.solver import subsample
from dask_saga.solver.optimality import chunk_gradient, factors_at_zero
from dask_saga.solver.preconditioned_problem import PreconditionedProblem
from dask_saga.solver.preconditioner_choice import choose_preconditioner
from dask_saga.solver.problem import Problem
from dask_saga.solver.subsample import make_sample, sample_rows, subsample_step

from .conftest import make_rows

ROWS = 30000  # an eighth of which is sample enough


def objective(A, y, alpha, weights=None):
    """Value and gradient of the estimators' log-loss objective, by numpy."""
    rows, weights = np.column_stack([A, np.ones(len(A))]), np.ones(len(A)) if weights is None else weights

    def both(w):
        z = y * (rows @ w)
        slopes = -y * weights / (1 + np.exp(z)) / weights.sum()
        gradient = rows.T @ slopes + alpha * np.append(w[:-1], 0.0)
        return np.average(np.logaddexp(0, -z), weights=weights) + alpha / 2 * (w[:-1] @ w[:-1]), gradient

    return both


def blocks(A, y, k=5):
    rows = tuple(len(part) for part in np.array_split(np.empty(len(y)), k))
    return da.from_array(A, chunks=(rows, -1), asarray=not sp.issparse(A)), da.from_array(y, chunks=(rows,))


def infos(model, *data, **how):
    seen = []
    model.fit(*data, callback=seen.append, **how)
    return seen


@pytest.mark.parametrize("chunks", [1, 5])
def test_its_history_is_exact(chunks):
    A, y = make_rows(ROWS, 6)
    data = (A, y) if chunks == 1 else blocks(A, y, chunks)
    model = SAGAClassifier(alpha=1e-3, tol=1e-5, memory_dtype="float64", random_state=0)
    both, seen = objective(A, y, 1e-3), infos(model, *data)
    assert model.converged_
    assert 1 <= len(seen) <= 5
    for info in seen:
        assert info.objective == pytest.approx(both(np.append(info.x, info.intercept))[0], rel=1e-12)
        assert info.visits == info.epoch * chunks


def test_memory_is_that_of_the_coefficients():
    A, y = make_rows(ROWS, 6)
    model = SAGAClassifier(alpha=1e-3, tol=1e-5, memory_dtype="float64", random_state=0).fit(*blocks(A, y))
    z = y * (A @ model.coef_[0] + model.intercept_[0])
    memory = np.concatenate([m.gradients[:, 0] for m in model.state_.chunks.values()])
    np.testing.assert_allclose(memory, -y / (1 + np.exp(z)), rtol=1e-10)
    expected = np.column_stack([A, np.ones(ROWS)]).T @ memory
    np.testing.assert_allclose(model.state_.head.gradient_sum[0], expected, atol=1e-8 * np.abs(A).max())
    assert {m.visits for m in model.state_.chunks.values()} == {model.n_iter_}


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("l1", "l2"), [(0.0, 1e-3), (1e-2, 1e-3), (0.0, 0.0)])
def test_it_brings_the_optimum_much_nearer(sparse, l1, l2):
    """Where a start from the sample alone stays as far as the sample tells."""
    A, y = make_rows(ROWS, 6)
    problem = Problem(LogLoss(), ElasticNet(l1, l2), True)
    chunk = read_chunk(sp.csr_array(A) if sparse else A, y)
    axes = choose_preconditioner(measure(chunk, problem)[0], problem)
    sample = make_sample(sample_rows(chunk, 1), PreconditionedProblem(problem, axes))
    x = subsample_step(sample, np.zeros((1, 7)), None, problem, 0)
    model = SAGAClassifier(penalty=problem.penalty, tol=1e-9, max_iter=1000, memory_dtype="float64").fit(chunk.rows, y)
    best, size = np.append(model.coef_, model.intercept_), np.append(A.std(axis=0), 1.0)
    away = [np.linalg.norm((x - best) * size)]
    for turn in (1, 2):
        x = subsample_step(sample, x, chunk_gradient(chunk, x, problem)[1] / chunk.weight, problem, turn)
        away.append(np.linalg.norm((x - best) * size))
    assert away[1] < 0.3 * away[0]
    assert away[2] < 0.3 * away[1]


def test_newtons_step_is_exact_for_a_quadratic_loss():
    A, y = make_rows(ROWS, 6, classes=False)
    A = A @ (np.random.default_rng(1).standard_normal((6, 6)) * np.logspace(0, -3, 6)[:, None])
    problem, chunk = Problem(SquaredError(), ElasticNet(l2=1e-2), True), read_chunk(A, y)
    axes = choose_preconditioner(measure(chunk, problem)[0], problem)
    assert axes.rotation is not None
    rows = np.column_stack([A, np.ones(ROWS)])
    exact = np.linalg.solve(rows.T @ rows / ROWS + np.diag([1e-2] * 6 + [0.0]), rows.T @ y / ROWS)
    x = np.random.default_rng(0).standard_normal((1, 7))
    stepped = subsample_step(
        PreconditionedProblem(problem, axes), x, chunk_gradient(chunk, x, problem)[1] / ROWS, problem, 1
    )
    np.testing.assert_allclose(stepped[0], exact, rtol=1e-6)
    model = SAGARegressor(alpha=1e-2, random_state=0).fit(A, y)
    assert model.n_iter_ == 1
    np.testing.assert_allclose(np.append(model.coef_, model.intercept_), exact, rtol=1e-8)


@pytest.mark.parametrize("held", [True, False])
def test_chunks_and_loads_do_not_change_it(held):
    A, y = make_rows(ROWS, 6)
    best = minimize(objective(A, y, 1e-3), np.zeros(7), jac=True, tol=1e-12).x
    for chunks in (1, 7):
        model = SAGAClassifier(alpha=1e-3, tol=1e-6, random_state=0).fit(*blocks(A, y, chunks), persist=held)
        assert model.converged_
        assert model.n_iter_ <= 6
        np.testing.assert_allclose(np.append(model.coef_, model.intercept_), best, rtol=1e-4, atol=1e-5)


def test_a_sample_that_leads_nowhere_is_left(monkeypatch):
    """Where refinements gain nothing, the fit goes on from the best place, by steps, with its memory and objective."""
    A, y = make_rows(ROWS, 6)
    true, calls = subsample.subsample_step, []

    def astray(sample, x, gradient, problem, turn):
        calls.append(turn)
        return true(sample, x, gradient, problem, turn) if turn < 2 else x + 1.0

    monkeypatch.setattr(loop, "subsample_step", astray)
    model = SAGAClassifier(alpha=1e-3, tol=1e-7, max_iter=40, memory_dtype="float64", random_state=0)
    seen, both = infos(model, A, y), objective(A, y, 1e-3)
    assert calls == [1, 2]
    assert model.converged_
    assert seen[1].gradient_norm == seen[0].gradient_norm
    assert seen[1].objective == pytest.approx(both(np.append(seen[0].x, seen[0].intercept))[0], rel=1e-12)
    np.testing.assert_array_equal(seen[1].x, seen[0].x)
    # The pass that found nothing left no trace in what goes on.
    [memory] = model.state_.chunks.values()
    assert memory.visits == model.n_iter_ - 1
    best = minimize(both, np.zeros(7), jac=True, tol=1e-12).x
    np.testing.assert_allclose(np.append(model.coef_, model.intercept_), best, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:max_iter=:sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("stop", [1, 2, 3, 4])
@pytest.mark.parametrize("leads", [True, False])
def test_it_resumes_with_the_same_bits(tmp_path, stop, leads, monkeypatch):
    if not leads:
        true = subsample.subsample_step
        monkeypatch.setattr(loop, "subsample_step", lambda *given: true(*given) if given[-1] < 2 else given[1] + 1.0)
    data = blocks(*make_rows(ROWS, 6))

    def model(passes):
        return SAGAClassifier(alpha=1e-3, tol=0.0, max_iter=passes, random_state=0)

    whole = model(5).fit(*data)
    model(stop).fit(*data, checkpoint=str(tmp_path))
    resumed = model(5).fit(*data, checkpoint=str(tmp_path))
    np.testing.assert_array_equal(resumed.coef_, whole.coef_)
    assert resumed.state_.digest == whole.state_.digest
    for one, other in zip(resumed.history_, whole.history_, strict=True):
        assert (one["objective"], one["gradient_norm"]) == (other["objective"], other["gradient_norm"])
    for one, other in zip(resumed.state_.chunks.values(), whole.state_.chunks.values(), strict=True):
        np.testing.assert_array_equal(one.gradients, other.gradients)


def test_an_optimum_of_the_sample_at_zero_is_no_convergence():
    """A column that so few rows store that the sample has none of them."""
    rng = np.random.default_rng(0)
    A = np.zeros((20000, 2))
    A[:, 0] = rng.standard_normal(20000)
    y = np.where(rng.random(20000) < 0.5, 1.0, -1.0)
    drawn = sample_rows(read_chunk(A, y), 1)
    A[:30, 1], y[:30] = 3.0, 1.0
    assert len(drawn.targets) == 2500
    penalty = ElasticNet(l1=4e-4, l2=1e-4)
    model = SAGAClassifier(penalty=penalty, tol=1e-6, max_iter=300, random_state=0).fit(A, y)
    dense = SAGAClassifier(penalty=penalty, step_size=0.02, tol=1e-6, max_iter=3000, random_state=0).fit(A, y)
    assert model.converged_
    assert dense.coef_[0, 1] > 0.01
    np.testing.assert_allclose(model.coef_, dense.coef_, rtol=1e-2, atol=1e-4)


def test_a_tolerance_that_float32_does_not_tell_is_confirmed(monkeypatch):
    A, y = make_rows(ROWS, 6)
    asked = []
    true = convergence.examine
    monkeypatch.setattr(convergence, "examine", lambda *call, **how: asked.append(1) or true(*call, **how))
    SAGAClassifier(alpha=1e-3, tol=1e-4, random_state=0).fit(A, y)
    SAGAClassifier(alpha=1e-3, tol=1e-7, memory_dtype="float64", random_state=0).fit(A, y)
    assert not asked
    assert SAGAClassifier(alpha=1e-3, tol=1e-7, random_state=0).fit(A, y).converged_
    assert asked


def test_memories_may_travel_or_not(monkeypatch):
    data = blocks(*make_rows(ROWS, 6))
    model = SAGAClassifier(alpha=1e-3, random_state=0).fit(*data)
    monkeypatch.setattr(fit_state, "SENT_BYTES", 0)
    other = SAGAClassifier(alpha=1e-3, random_state=0).fit(*data)
    np.testing.assert_array_equal(model.coef_, other.coef_)


def test_a_cluster_gives_the_same_bits(client):
    data = blocks(*make_rows(ROWS, 6))
    here = SAGAClassifier(alpha=1e-3, random_state=0)
    with dask.config.set(scheduler="threads"):
        here.fit(*data)
    there = SAGAClassifier(alpha=1e-3, random_state=0).fit(*data)
    np.testing.assert_array_equal(here.coef_, there.coef_)
    assert here.state_.digest == there.state_.digest


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", [np.asarray, np.float32, sp.csr_array])
@pytest.mark.parametrize(
    ("loss", "classes"),
    [(LogLoss(), 2), (LogLoss(), 3), (MultinomialLogLoss(3), 3), (Huber(), 0), (SquaredError(), 0)],
)
def test_one_pass_tells_what_two_did(loss, classes, kind, weighted):
    """The gradient at zero that comes with the statistics of columns is that which a pass of its own tells."""
    rng = np.random.default_rng(0)
    n, p = 1003, 5
    A = rng.standard_normal((n, p)) * (rng.random((n, p)) < 0.4) + np.array([0, 0, 0, 0, 1e5])
    w = rng.random(n) * (rng.random(n) < 0.8) if weighted else None
    if classes == 2:
        chunk = read_chunk(kind(A), np.where(rng.random(n) < 0.3, 1, -1), w, loss=loss)
    elif classes:
        chunk = read_chunk(kind(A), rng.integers(3, size=n), w, classes=np.arange(3), loss=loss)
    else:
        chunk = read_chunk(kind(A), rng.standard_normal(n), w, loss=loss)
    outputs = max(classes, 1) if classes != 2 else 1
    problem = Problem(loss, ElasticNet(l2=1e-3), True, outputs=outputs)
    gradients = np.empty((n, outputs))
    expected, sums = chunk_gradient(chunk, np.zeros((outputs, p + 1)), problem, gradients)
    told = _examine(chunk, problem, 1, None, None)
    assert told.value == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(told.zero, sums, rtol=1e-9, atol=1e-9)
    if outputs == 1:
        np.testing.assert_allclose(factors_at_zero(chunk, problem)[1], gradients, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("bounds", [(0.5, 2.0), (-2.0, -0.5)])
@pytest.mark.parametrize("stored", [0, 2])
def test_a_column_that_the_sample_lacks_keeps_its_bounds(bounds, stored):
    rng = np.random.default_rng(0)
    A = np.where(rng.random((ROWS, 4)) < 0.3, rng.standard_normal((ROWS, 4)), 0.0)
    A[:stored, 3], A[stored:, 3] = 1.0, 0.0
    y = A[:, 0] + rng.standard_normal(ROWS) > 0
    penalty = ElasticNet(l2=1e-3, lower=bounds[0], upper=bounds[1])
    sparse, dense = (
        SAGAClassifier(penalty=penalty, tol=1e-6, random_state=0).fit(rows, y) for rows in (sp.csr_array(A), A)
    )
    assert sparse.converged_
    np.testing.assert_allclose(sparse.coef_, dense.coef_, atol=1e-4)
    assert (sparse.coef_ >= bounds[0]).all()
    assert (sparse.coef_ <= bounds[1]).all()


@pytest.mark.parametrize("lower", [-np.inf, 1e-3, 0.01, 0.2])
def test_a_start_that_is_worse_than_zero_is_not_taken(lower):
    """The rows that rule a Poisson loss are not in the sample."""
    rng = np.random.default_rng(4)
    A = rng.standard_normal((20000, 3))
    A[:, 0] = np.where(rng.random(20000) < 3e-4, 300.0, rng.random(20000))
    z = np.where(A[:, 0] > 100, 0.0, 1.5 * A[:, 0]) + 0.2 * A[:, 1]
    y = rng.poisson(np.exp(np.clip(z, -5, 5))).astype(float)
    penalty = ElasticNet(l2=1e-4 if lower < 0 else 1e-3, lower=lower)
    model = SAGARegressor(loss="poisson", penalty=penalty, tol=1e-5, random_state=0).fit(A, y)
    assert model.converged_
    assert model.history_[0]["objective"] < 1.1  # at zero it is 1


@pytest.mark.parametrize("loss", ["squared_hinge", "log_loss"])
def test_the_objective_does_not_rise(loss):
    """Few rows with one huge value: the gradient's norm alone would take it for better."""
    rng, n = np.random.default_rng(1), 24000
    A = rng.standard_normal((n, 4))
    A[:, 0] = np.where(rng.random(n) < 2e-4, 3000.0, rng.random(n))
    y = np.where(A[:, 0] > 100, 0.0, 3 * A[:, 0]) + A[:, 1] + rng.standard_normal(n) > 1.5
    model = SAGAClassifier(loss=loss, tol=1e-5, random_state=0).fit(A, y)
    assert model.converged_
    assert max(row["objective"] for row in model.history_) <= (1.0 if loss == "squared_hinge" else np.log(2))
    assert model.n_iter_ <= 8  # from there 20 and 23


def test_stops_of_small_gradients_are_confirmed_where_memory_is_float32():
    """One row of 40,000 breaks the balance: the mean of gradients of size 1 is 1e-5, of which float32 tells 1e-3."""
    n = 40000
    A, y = np.repeat([1.0, -1.0], n // 2), -np.ones(n)
    y[:2601] = y[n // 2 : n // 2 + 2600] = 1.0
    order = np.random.default_rng(0).permutation(n)
    A, y = A[order, None], y[order]
    both, claims = objective(A, y, 1e-4), []
    for dtype in ("float32", "float64"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # float32 may not get there, but must not say it did
            model = SAGAClassifier(tol=1e-4, max_iter=10, memory_dtype=dtype, random_state=0).fit(A, y)
        slope = [abs(both(w)[1][0]) for w in (np.append(model.coef_, model.intercept_), np.zeros(2))]
        claims.append(model.converged_)
        assert slope[0] <= 1.01e-4 * slope[1] or not model.converged_
    assert claims[1]


@pytest.mark.parametrize("seed", range(3))
def test_chunks_that_return_after_refinements_begin_a_pass(seed):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((24000, 5))
    y = np.where(2 * A[:, 0] - 0.5 + rng.logistic(size=len(A)) > 0, 1, -1)
    best, off = minimize(objective(A, y, 1e-4), np.zeros(6), jac=True, method="BFGS", options={"gtol": 1e-8}).x, []
    for order in range(4):
        model = SAGAClassifier(tol=0.0, max_iter=3, random_state=order)
        with pytest.warns(ConvergenceWarning):
            model.fit(A[:16000], y[:16000])
        for _ in range(3):
            model.partial_fit(A[16000:], y[16000:]).partial_fit(A[:16000], y[:16000])
        off.append(np.abs(np.append(model.coef_, model.intercept_) - best).max())
    # Without, 5e-3 and more are left.
    assert np.exp(np.log(off).mean()) < 2.5e-3
