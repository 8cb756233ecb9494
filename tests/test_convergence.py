"""When a fit has converged, by two measures of which one knows no scale, and Newton steps where it has not."""

import warnings

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from dask_saga import SAGAClassifier, SAGARegressor
from dask_saga.data.statistics import column_stats
from dask_saga.data.validation import read_chunk
from dask_saga.fitting import convergence
from dask_saga.losses import (
    LOSSES,
    LogLoss,
    MultinomialLogLoss,
    SquaredError,
    SquaredHinge,
    target_interval,
)
from dask_saga.penalties import ElasticNet, penalty_values
from dask_saga.solver.line_search import STEPS, best_on_line, chunk_values, rising_rows
from dask_saga.solver.local_model import has_extreme_columns, local_model, merge_models, plan_model
from dask_saga.solver.newton import newton_direction
from dask_saga.solver.preconditioned_problem import PreconditionedProblem
from dask_saga.solver.preconditioner_choice import choose_preconditioner
from dask_saga.solver.problem import Problem

from .conftest import make_rows
from .test_losses import loss_named
from .test_saga import SmoothAbsolute


def one_bad_cell(n=20_000, seed=0, value=1e6):
    """A row of the class that its bad cell votes for: saturated where the column has its coefficient."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 4))
    y = X @ [1, -2, 0.5, 0] + rng.logistic(size=n) > 0
    X[np.flatnonzero(y)[0], 0] = value
    return X, y


def objective(model, X, y, alpha=1e-4):
    """Mean log loss and L2 penalty of a fitted classifier."""
    margins = np.where(y, 1, -1) * model.decision_function(X)
    return np.logaddexp(0, -margins).mean() + alpha / 2 * (model.coef_**2).sum()


def newton_cholesky(X, y, alpha=1e-4):
    rows = X.toarray() if sp.issparse(X) else X
    return LogisticRegression(C=1 / (alpha * len(y)), solver="newton-cholesky", tol=1e-10, max_iter=1000).fit(rows, y)


@pytest.mark.parametrize("tol", [1e-3, 1e-4, 1e-6])
@pytest.mark.parametrize("kind", ["dense", "CSR", "float32"])
def test_one_bad_cell_hides_nothing(kind, tol):
    X, y = one_bad_cell()
    data = {"dense": X, "CSR": sp.csr_array(X), "float32": X.astype(np.float32)}[kind]
    model = SAGAClassifier(tol=tol, random_state=0).fit(data, y)
    best, start = objective(newton_cholesky(X, y), X, y), np.log(2)
    assert model.converged_
    assert objective(model, X, y) - best <= 10 * tol * (start - best)


def test_the_norm_alone_would_stop_too_early(monkeypatch, only_visits):
    """What the test above would find if neither the decrease were looked at nor Newton steps taken from the start."""
    X, y = one_bad_cell()

    def by_norm(fit, examined, tol):
        return examined.norm <= tol * fit.norm_at_zero

    monkeypatch.setattr(convergence, "is_converged", by_norm)
    model = SAGAClassifier(random_state=0).fit(X, y)
    best = objective(newton_cholesky(X, y), X, y)
    assert model.converged_
    assert objective(model, X, y) - best > 0.1 * (np.log(2) - best)


@pytest.mark.parametrize("label", [True, False])
@pytest.mark.parametrize("penalty", ["l2", "l1", None])
@pytest.mark.parametrize("chunks", [1, 10])
def test_codes_for_missing_values(label, penalty, chunks):
    """Whatever their rows vote for, all methods agree on the coefficients in the end."""
    rng = np.random.default_rng(1)
    n, alpha = 20_000, 1e-4
    X = rng.standard_normal((n, 28)) @ (np.eye(28) + 0.3)
    y = X[:, :4] @ [0.3, -0.6, 0.2, 0.1] + rng.logistic(size=n) > 0
    rows = np.flatnonzero(y == label)[:3]
    X[rows, 0] = -999_999.0
    data = (X, y) if chunks == 1 else (da.from_array(X, (n // chunks, -1)), da.from_array(y, n // chunks))
    settings = {"penalty": penalty, "alpha": alpha, "random_state": 0, "max_iter": 500}
    model = SAGAClassifier(**settings).fit(*data)
    best = SAGAClassifier(**settings | {"tol": 1e-9, "memory_dtype": "float64"}).fit(*data)

    def F(model):
        values = penalty_values(model._problem().penalty, model.coef_)
        return np.logaddexp(0, -np.where(y, 1, -1) * model.decision_function(X)).mean() + values.sum()

    assert model.converged_
    assert best.converged_
    assert F(model) - F(best) <= 1e-3 * (np.log(2) - F(best))
    if penalty == "l2":
        assert abs(F(best) - objective(newton_cholesky(X, y), X, y)) < 1e-9


def test_heavy_tails_of_sparse_rows_converge():
    rng = np.random.default_rng(0)
    n, p, alpha = 3000, 500, 1e-5
    X = sp.random_array(
        (n, p), density=0.02, format="csr", rng=rng, data_sampler=lambda size: rng.lognormal(0, 2, size)
    )
    z = X @ rng.standard_normal(p)
    y = np.sign(z) * np.log1p(np.abs(z)) + rng.logistic(size=n) > 0
    model = SAGAClassifier(alpha=alpha, tol=1e-6, random_state=0).fit(X, y)
    assert model.converged_
    assert objective(model, X, y, alpha) - objective(newton_cholesky(X, y, alpha), X, y, alpha) < 1e-7


@pytest.mark.parametrize("penalty", ["l2", "l1"])
@pytest.mark.parametrize("kind", ["dense", "CSR"])
def test_the_difference_of_two_far_columns_counts(kind, penalty):
    """A start and an end in seconds since 1970, of which only the duration counts."""
    rng = np.random.default_rng(0)
    n = 20_000
    start, duration = 1.6e9 + rng.uniform(0, 3e7, n), rng.lognormal(8, 0.5, n)
    X = np.column_stack([start, start + duration, rng.standard_normal((n, 2))])
    y = 2 * (np.log(duration) - 8) + X[:, 2] + rng.logistic(size=n) > 0
    model = SAGAClassifier(penalty=penalty, random_state=0).fit(sp.csr_array(X) if kind == "CSR" else X, y)
    clean = SAGAClassifier(penalty=penalty, random_state=0).fit(np.column_stack([duration, X[:, 2:]]), y)
    assert model.converged_
    assert abs(model.score(X, y) - clean.score(np.column_stack([duration, X[:, 2:]]), y)) < 2e-3


def test_a_step_of_ones_own_is_left_alone_but_does_not_converge_too_early():
    X, y = one_bad_cell(2000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = SAGAClassifier(step_size=1e-4, tol=1e-3, max_iter=30, random_state=0).fit(X, y)
    best = objective(newton_cholesky(X, y), X, y)
    assert objective(model, X, y) - best <= 1e-2 * (np.log(2) - best) or not model.converged_


@pytest.mark.slow
def test_bits_of_newton_steps_are_the_same_everywhere(client, tmp_path):
    X, y = one_bad_cell(12_000)
    blocks = da.from_array(X, (2000, -1)), da.from_array(y, 2000)
    settings = {"penalty": "l1", "tol": 1e-7, "random_state": 0}
    with dask.config.set(scheduler="threads"):
        here = SAGAClassifier(**settings).fit(*blocks)
    there = SAGAClassifier(**settings).fit(*blocks)
    assert here.coef_.tobytes() == there.coef_.tobytes()
    assert here.state_.digest == there.state_.digest
    for stop in range(1, here.n_iter_):  # wherever it is interrupted, at a Newton step or between
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            path = tmp_path / str(stop)
            SAGAClassifier(**settings | {"max_iter": stop}).fit(*blocks, checkpoint=path)
        resumed = SAGAClassifier(**settings).fit(*blocks, checkpoint=path)
        assert resumed.n_iter_ == here.n_iter_
        assert resumed.coef_.tobytes() == here.coef_.tobytes()


# The local model, beside plain NumPy.


def problem_and_chunk(loss, fit_intercept=True, sparse=False, weighted=False, penalty=None, n=400, p=5):
    A, y = make_rows(n, p)
    rng = np.random.default_rng(0)
    if isinstance(loss, MultinomialLogLoss):
        y = rng.integers(loss.n_classes, size=n).astype(float)
    elif not getattr(loss, "labels", None):
        y = np.abs(y + rng.standard_normal(n))
        y = y / y.max() if target_interval(loss).high == 1.0 else y
    A = A * (rng.random(A.shape) < 0.5) if sparse else A
    chunk = read_chunk(sp.csr_array(A) if sparse else A, y, rng.integers(0, 3, n) if weighted else None, loss=loss)
    problem = Problem(loss, ElasticNet() if penalty is None else penalty, fit_intercept)
    return problem._replace(outputs=getattr(loss, "outputs", 1)), chunk


def exact_model(problem, chunk, x):
    """Gradient and Hessians of the weighted sum, the intercept last, by finite differences of F in float64."""
    rows = chunk.rows.toarray() if sp.issparse(chunk.rows) else chunk.rows
    rows = np.column_stack([rows, np.full(len(rows), float(problem.fit_intercept))])

    def slopes(z):
        out = np.empty_like(z)
        for i, (own, target) in enumerate(zip(z, chunk.targets, strict=True)):
            if hasattr(problem.loss, "outputs"):
                problem.loss.derivative(own, target[0], out[i])
            else:
                out[i] = problem.loss.derivative(own[0], target[0])
        return out * chunk.row_weights[:, None]

    z, width = rows @ x.T, 1e-5
    hessians = []
    for k in range(len(x)):
        apart = width * np.eye(len(x))[k]
        curvature = (slopes(z + apart) - slopes(z - apart))[:, k] / (2 * width)
        hessians.append((rows.T * curvature) @ rows)
    return slopes(z).T @ rows, np.array(hessians)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("loss", [*map(loss_named, LOSSES), MultinomialLogLoss(3), SmoothAbsolute()])
def test_the_model_has_the_derivatives_of_the_loss(loss, fit_intercept, sparse, weighted):
    problem, chunk = problem_and_chunk(loss, fit_intercept, sparse, weighted)
    x = 0.1 * np.random.default_rng(1).standard_normal((problem.outputs, 6))
    x[:, -1] *= fit_intercept
    stats = column_stats(chunk, problem)
    preconditioned = PreconditionedProblem(problem, choose_preconditioner(stats, problem))
    plan = plan_model(stats, problem.outputs, 1)
    model = local_model(chunk, x, preconditioned, plan)
    gradient, hessians = exact_model(problem, chunk, x)
    np.testing.assert_allclose(model.gradient[:, :-1], gradient[:, :-1], rtol=1e-9, atol=1e-9)
    for k, hessian in enumerate(hessians):
        total, mean = model.curvature[k], model.mean[k]
        inner = model.hessian[k] + total * np.outer(mean, mean)
        np.testing.assert_allclose(inner, hessian[:-1, :-1], rtol=1e-2, atol=1e-2 * np.abs(hessian).max())
        if fit_intercept:
            np.testing.assert_allclose(total, hessian[-1, -1], rtol=1e-2)


@pytest.mark.parametrize("sparse", [False, True])
def test_models_of_chunks_merge_to_that_of_all(sparse):
    problem, chunk = problem_and_chunk(LogLoss(), sparse=sparse, n=900)
    x, stats = np.full((1, 6), 0.1), column_stats(chunk, problem)
    preconditioned = PreconditionedProblem(problem, choose_preconditioner(stats, problem))
    plan = plan_model(stats, 1, 1)
    parts = [
        chunk._replace(rows=chunk.rows[part], targets=chunk.targets[part])
        for part in (slice(0, 100), slice(100, 101), slice(101, 900))
    ]
    merged = merge_models(*(local_model(part, x, preconditioned, plan) for part in parts))
    whole = local_model(chunk, x, preconditioned, plan)
    for one, other in zip(merged[:5], whole[:5], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def test_few_rows_stand_for_all():
    problem, chunk = problem_and_chunk(LogLoss(), n=60_000, p=50)
    x, stats = np.full((1, 51), 0.1), column_stats(chunk, problem)
    preconditioned = PreconditionedProblem(problem, choose_preconditioner(stats, problem))
    plan = plan_model(stats, 1, 1)
    assert plan.rows < 10_000
    some, every = (local_model(chunk, x, preconditioned, plan._replace(rows=rows)) for rows in (plan.rows, 10**6))
    for name in ("curvature", "hessian"):
        true = getattr(every, name)
        assert np.abs(getattr(some, name) - true).max() < 0.1 * np.abs(true).max()


@pytest.mark.parametrize(
    "penalty",
    [ElasticNet(), ElasticNet(l2=0.1), ElasticNet(l1=0.05), ElasticNet(0.05, 0.1), ElasticNet(0, 0.1, -0.05, 0.1),
     ElasticNet(l1=0.02, lower=0.0)],
)  # fmt: skip
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_the_direction_leads_to_the_minimum_of_the_model(penalty, fit_intercept):
    problem, chunk = problem_and_chunk(LogLoss(), fit_intercept, penalty=penalty)
    x = np.zeros((1, 6))
    stats = column_stats(chunk, problem)
    preconditioned = PreconditionedProblem(problem, choose_preconditioner(stats, problem))
    model = local_model(chunk, x, preconditioned, plan_model(stats, 1, 1))
    found = newton_direction(model, x, 400.0, problem)
    gradient, [hessian] = exact_model(problem, chunk, x)
    gradient, hessian = gradient[0] / 400, hessian / 400

    def value(move):
        inside = ((move[:-1] >= penalty.lower) & (move[:-1] <= penalty.upper)).all()
        smooth = gradient @ move + 0.5 * move @ hessian @ move
        return smooth + penalty.value(move[:-1]).sum() if inside else np.inf

    best, rng = value(found.move[0]), np.random.default_rng(0)
    assert best < 0
    np.testing.assert_allclose(-best, found.decrease, rtol=1e-3)
    for size in (1e-3, 1e-2, 1e-1):
        for _ in range(200):
            near = found.move[0] + size * rng.standard_normal(6) * np.append(np.ones(5), fit_intercept)
            near[:-1] = np.clip(near[:-1], penalty.lower, penalty.upper)
            assert value(near) >= best - 1e-9


def test_a_row_that_is_not_yet_saturated_hides_no_decrease():
    """At z = 10 it has most of the column's curvature, and a step further none."""
    X, y = one_bad_cell(5000)
    problem, chunk = (
        Problem(LogLoss(), ElasticNet(l2=1e-4), True),
        read_chunk(X, np.where(y, 1.0, -1.0), loss=LogLoss()),
    )
    x, stats = np.array([[1e-5, -1.724, 0.452, 0.006, 0.0]]), column_stats(chunk, problem)
    assert has_extreme_columns(stats)
    preconditioned = PreconditionedProblem(problem, choose_preconditioner(stats, problem))
    plan = plan_model(stats, 1, 1)
    blind = newton_direction(local_model(chunk, x, preconditioned, plan._replace(extreme=False)), x, len(y), problem)
    seeing = newton_direction(local_model(chunk, x, preconditioned, plan), x, len(y), problem)
    assert blind.decrease < 2e-3 < 2e-2 < seeing.decrease
    assert 0.7 < seeing.move[0, 0] < 1.3


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("loss", [LogLoss(), SquaredHinge(), MultinomialLogLoss(3)])
def test_values_on_a_line(loss, sparse):
    problem, chunk = problem_and_chunk(loss, sparse=sparse, weighted=True, penalty=ElasticNet(0.01, 0.1))
    rng = np.random.default_rng(0)
    x, move = 0.1 * rng.standard_normal((2, problem.outputs, 6))
    lengths = np.array((0.0, *STEPS))
    values = chunk_values(chunk, x, move, lengths, problem)
    rising = rising_rows(chunk, x, move, problem, 5, 0.0)
    rows = chunk.rows.toarray() if sparse else chunk.rows

    def losses(at):
        z = np.column_stack([rows, np.ones(len(rows))]) @ at.T
        own = [loss.value(a if len(x) > 1 else a[0], b[0]) for a, b in zip(z, chunk.targets, strict=True)]
        return np.array(own) * chunk.row_weights

    np.testing.assert_allclose(values, [losses(x + t * move).sum() for t in (0.0, *STEPS)], rtol=1e-9)
    rises = losses(x + move) - losses(x)
    assert sorted(rising.numbers[:, 1]) == sorted(np.argsort(-rises)[:5])
    assert not len(rising_rows(chunk, x, move, problem, 5, 2 * rises.max()).weights)
    better, decrease = best_on_line(x, move, lengths, values, chunk.weight, problem)
    totals = [losses(x + t * move).sum() / chunk.weight + (0.01 * np.abs(c) + 0.05 * c**2).sum()
              for t in (0.0, *STEPS) for c in [(x + t * move)[:, :-1]]]  # fmt: skip
    np.testing.assert_allclose(decrease, totals[0] - min(totals), atol=1e-9)
    np.testing.assert_allclose(better, x + (0.0, *STEPS)[int(np.argmin(totals))] * move)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05, 0.1])
@pytest.mark.parametrize("sparse", [False, True])
def test_codes_in_many_rows_hide_nothing(share, sparse):
    """None of the rows has much of the column's curvature, all together have all of it."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20_000, 4))
    y = 2 * X[:, 0] - 2 * X[:, 1] + rng.logistic(size=len(X)) > 0
    X[np.flatnonzero(~y)[: int(share * len(X))], 0] = -999_999.0
    model = SAGAClassifier(random_state=0).fit(sp.csr_array(X) if sparse else X, y)
    best = objective(newton_cholesky(X, y), X, y)
    assert model.converged_
    assert objective(model, X, y) - best <= 1e-3 * (np.log(2) - best)


def test_bounds_do_not_hide_what_is_left():
    """Rounding beyond a bound must not make F infinite."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20_000, 4)) * [1, 1, 1, 1e-3]
    y = 2 * X[:, 0] - 2 * X[:, 1] + rng.logistic(size=len(X)) > 0
    X[np.flatnonzero(y)[:3], 0] = 1e6
    penalty = ElasticNet(0.0, 1e-4, lower=-0.1, upper=0.1)
    model = SAGAClassifier(penalty=penalty, random_state=0).fit(X, y)
    clean = SAGAClassifier(penalty=penalty, random_state=0).fit(
        np.delete(X, np.flatnonzero(y)[:3], 0), np.delete(y, np.flatnonzero(y)[:3])
    )
    assert model.converged_
    np.testing.assert_allclose(model.coef_, clean.coef_, atol=1e-3)
    assert np.abs(model.coef_).max() <= 0.1


def test_resumed_between_a_newton_step_and_a_subsample_step(tmp_path):
    X, y = one_bad_cell(60_000)
    settings = {"tol": 1e-2, "random_state": 0}
    here = SAGAClassifier(**settings).fit(X, y)
    for stop in range(1, here.n_iter_):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            SAGAClassifier(**settings, max_iter=stop).fit(X, y, checkpoint=tmp_path / str(stop))
        resumed = SAGAClassifier(**settings).fit(X, y, checkpoint=tmp_path / str(stop))
        assert resumed.coef_.tobytes() == here.coef_.tobytes()


def test_no_extreme_columns_in_ordinary_rows():
    for rows in (make_rows(20_000, 6)[0], sp.csr_array(np.eye(500)[np.arange(5000) % 500])):
        problem = Problem(SquaredError(), ElasticNet())
        assert not has_extreme_columns(column_stats(read_chunk(rows, np.zeros(rows.shape[0])), problem))


def test_regression_on_a_bad_cell():
    X, _ = one_bad_cell()
    y = X @ [0.0, -2, 0.5, 0] + np.random.default_rng(0).standard_normal(len(X))
    for loss in ("huber", "squared_error"):
        model = SAGARegressor(loss=loss, random_state=0).fit(X, y)
        assert model.converged_
        np.testing.assert_allclose(model.coef_, [0, -2, 0.5, 0], atol=0.03)


@pytest.mark.slow
def test_probabilities_keep_the_sum_of_the_coefficients():
    """What all classes share changes no probability: Newton steps leave it at zero, as SAGA's do."""
    A, _ = make_rows(600, 4)
    y = np.random.default_rng(0).integers(3, size=600)
    model = SAGAClassifier(alpha=1e-3, tol=1e-9, random_state=0, memory_dtype="float64").fit(A, y)
    assert model.converged_
    np.testing.assert_allclose(model.intercept_.sum(), 0.0, atol=1e-9)
    np.testing.assert_allclose(expit(model.coef_.sum(axis=0)), 0.5, atol=1e-7)
