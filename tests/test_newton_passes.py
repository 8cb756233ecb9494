"""Newton passes of ``fit``: the Hessian of coupled classes, when steps are taken, and how far a few of them lead."""

import warnings

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import softmax
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from dask_saga import SAGAClassifier, SAGARegressor
from dask_saga.data.statistics import column_stats
from dask_saga.data.validation import read_chunk
from dask_saga.fitting import newton_passes
from dask_saga.losses import LogLoss, MultinomialLogLoss
from dask_saga.penalties import ElasticNet, penalty_values
from dask_saga.solver.hessian import block_hessians, coupled_hessian
from dask_saga.solver.line_search import STEPS
from dask_saga.solver.local_model import curvature_model, local_model, merge_models, plan_model
from dask_saga.solver.newton import direction_of
from dask_saga.solver.preconditioned_problem import PreconditionedProblem
from dask_saga.solver.preconditioner_choice import choose_preconditioner
from dask_saga.solver.problem import Problem
from dask_saga.solver.quadratic_step import proximal_step

from .conftest import make_rows

SMALL = {"iris": load_iris, "wine": load_wine, "digits": load_digits, "cancer": load_breast_cancer}


def three_classes(n=300, p=4, sparse=False, weighted=False):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((n, p)) * [1, 2, 1, 3] + [0, 5, 0, 0]
    A = sp.csr_array(A * (rng.random(A.shape) < 0.6)) if sparse else A
    return read_chunk(
        A, rng.integers(3, size=n).astype(float), rng.integers(0, 3, n) if weighted else None,
        loss=MultinomialLogLoss(3),
    )  # fmt: skip


def dense_rows(chunk, origin):
    rows = chunk.rows.toarray() if sp.issparse(chunk.rows) else chunk.rows
    return np.column_stack([rows - origin, np.ones(len(rows))])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_hessians_are_sums_over_rows(sparse, weighted):
    chunk, rng = three_classes(sparse=sparse, weighted=weighted), np.random.default_rng(1)
    origin = np.zeros(4) if sparse else chunk.rows.mean(axis=0)
    P, rows, weights = softmax(rng.standard_normal((300, 3)), axis=1), dense_rows(chunk, origin), chunk.row_weights
    inner = np.einsum("ic,cd->icd", P, np.eye(3)) - P[:, :, None] * P[:, None, :]
    expected = np.einsum("i,icd,ij,il->cjdl", weights, inner, rows, rows).reshape(15, 15)
    np.testing.assert_allclose(coupled_hessian(chunk, P, origin), expected, rtol=1e-10, atol=1e-9)
    blocks = np.einsum("ic,ij,il->cjl", P, rows, rows)
    np.testing.assert_allclose(block_hessians(chunk, P, origin), blocks, rtol=1e-10, atol=1e-9)


def coupled_problem(penalty, fit_intercept, chunk, x):
    problem = Problem(MultinomialLogLoss(3), penalty, fit_intercept, outputs=3)
    stats = column_stats(chunk, problem)
    preconditioned = PreconditionedProblem(problem, choose_preconditioner(stats, problem))
    return problem, preconditioned, plan_model(stats, 3, 1)._replace(coupled=True)


@pytest.mark.parametrize("penalty", [ElasticNet(l2=0.01), ElasticNet(l1=0.05), ElasticNet(0, 0.01, -0.05, 0.1)])
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_the_step_of_coupled_classes_minimises_their_model(penalty, fit_intercept):
    """No other step within the bounds is better, by the exact gradient and Hessian of the loss in user coordinates."""
    chunk, rng = three_classes(), np.random.default_rng(2)
    x = np.column_stack([rng.uniform(-0.05, 0.1, (3, 4)), rng.standard_normal(3) * fit_intercept])
    problem, preconditioned, plan = coupled_problem(penalty, fit_intercept, chunk, x)
    model = local_model(chunk, x, preconditioned, plan)
    assert model.is_coupled
    found = direction_of(model, x, 300.0, problem, model.gradient)
    rows, P = dense_rows(chunk, 0.0), softmax(chunk.rows @ x[:, :-1].T + x[:, -1], axis=1)
    gradient, hessian = model.gradient.ravel() / 300, coupled_hessian(chunk, P, np.zeros(4)) / 300
    np.testing.assert_allclose(gradient, ((P - np.eye(3)[chunk.targets[:, 0].astype(int)]).T @ rows / 300).ravel())

    def value(move):
        there = x + move
        if (there[:, :-1] < penalty.lower).any() or (there[:, :-1] > penalty.upper).any():
            return np.inf
        d = move.ravel()
        return gradient @ d + 0.5 * d @ hessian @ d + penalty_values(penalty, there[:, :-1]).sum()

    least = value(found.move)
    assert value(0 * x) - least == pytest.approx(found.decrease, rel=1e-6)
    for size in (1e-1, 1e-2, 1e-3, 1e-4):
        for _ in range(200):
            apart = size * rng.standard_normal((3, 5)) * (rng.random((3, 5)) < 0.3)
            apart[:, -1] *= fit_intercept
            assert value(found.move + apart) >= least - 1e-12


def test_coupled_models_of_chunks_merge_to_that_of_all():
    chunk, x = three_classes(), np.full((3, 5), 0.1)
    _, preconditioned, plan = coupled_problem(ElasticNet(), True, chunk, x)
    parts = [
        chunk._replace(rows=chunk.rows[part], targets=chunk.targets[part])
        for part in (slice(0, 100), slice(100, 101), slice(101, 300))
    ]
    merged = merge_models(*(curvature_model(part, x, preconditioned, plan) for part in parts))
    whole = curvature_model(chunk, x, preconditioned, plan)
    assert not whole.gradient.any()
    for one, other in zip(merged[:5], whole[:5], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.joins
@pytest.mark.parametrize(("name", "passes"), [("iris", 8), ("wine", 8), ("digits", 25), ("cancer", 8)])
@pytest.mark.parametrize("chunks", [1, 7])
def test_small_sets_need_few_passes(name, passes, chunks):
    """F is strongly convex, so its gradient bounds the distance to the optimum. No other solver is needed."""
    X, y = SMALL[name](return_X_y=True)
    n, alpha = len(y), 1e-3
    data = (X, y) if chunks == 1 else (da.from_array(X, (n // chunks, -1)), da.from_array(y, n // chunks))
    model = SAGAClassifier(alpha=alpha, tol=0, max_iter=passes, random_state=0)
    with pytest.warns(ConvergenceWarning):
        model.fit(*data)
    P, Y = model.predict_proba(X), np.eye(y.max() + 1)[y]
    value = alpha / 2 * (model.coef_**2).sum() - np.log(P[np.arange(n), y]).mean()
    slopes = (P - Y)[:, -len(model.coef_) :] / n
    gradient = slopes.T @ X + alpha * model.coef_
    assert np.abs(slopes.sum(axis=0)).max() <= 1e-6  # of the intercepts, which have no penalty
    assert (gradient**2).sum() / (2 * alpha) <= 1e-6 * (np.log(Y.shape[1]) - value)


def nearly_separable(n=20_000, p=10):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(n, p)) * np.logspace(0, 2, p)
    return X, X / X.std(axis=0) @ rng.normal(size=p) + 0.05 * rng.logistic(size=n) > 0


@pytest.mark.parametrize("chunks", [1, 8])
def test_nearly_separable_classes_need_few_passes(chunks):
    X, y = nearly_separable()
    n = len(y)
    data = (X, y) if chunks == 1 else (da.from_array(X, (n // chunks, -1)), da.from_array(y, n // chunks))
    model = SAGAClassifier(alpha=1 / n, tol=1e-6, random_state=0).fit(*data)
    best = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-12, max_iter=100).fit(X, y)

    def F(model):
        return np.logaddexp(0, -np.where(y, 1, -1) * model.decision_function(X)).mean() + (model.coef_**2).sum() / 2 / n

    assert model.converged_
    assert model.n_iter_ <= 5
    assert F(model) - F(best) <= 1e-6 * (np.log(2) - F(best))


@pytest.mark.parametrize("settings", [{"step_size": 0.01}, {"average": False}])
def test_plain_saga_takes_no_newton_step(settings, monkeypatch):
    A, y = make_rows(500, 4)
    asked = []
    true = newton_passes.newton_pass
    monkeypatch.setattr("dask_saga.fitting.loop.newton_pass", lambda *call: asked.append(1) or true(*call))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SAGAClassifier(tol=0, max_iter=20, random_state=0, **settings).fit(A, y)
        assert not asked
        SAGAClassifier(tol=0, max_iter=5, random_state=0).fit(A, y)
    assert asked


def test_a_longer_step_is_taken_where_the_curvature_falls(monkeypatch):
    X, y = load_iris(return_X_y=True)
    used = []
    true = newton_passes.best_along

    def spy(fit, x, move, lengths):
        better, gained = true(fit, x, move, lengths)
        used.append((len(lengths), np.abs(better - x).max() / np.abs(move).max()))
        return better, gained

    monkeypatch.setattr(newton_passes, "best_along", spy)
    SAGAClassifier(alpha=1e-4, random_state=0).fit(X, y)
    assert any(length == pytest.approx(2) or length == pytest.approx(4) for _, length in used)
    assert all(count < len(STEPS) for count, _ in used)


def test_a_newton_step_that_overshoots_is_not_taken():
    """From zero, one step on the Poisson loss leads to exp(30) for a row that is far out."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((400, 3))
    A[0, 0] = 60.0
    y = rng.poisson(np.exp(np.clip(A[:, 0], -2, 2))).astype(float)
    model = SAGARegressor(loss="poisson", alpha=1e-3, random_state=0).fit(A, y)
    objectives = [row["objective"] for row in model.history_]
    assert model.converged_
    assert max(objectives) <= 1.0 + 1e-9  # F(0) is 1


def test_a_column_without_curvature_moves_to_zero_if_the_penalty_prefers_it():
    """Its rows are all saturated, so the loss is linear in its coefficient, and the minimum is at a kink or nowhere."""
    problem = Problem(LogLoss(), ElasticNet(l1=0.1))
    x, slope = np.array([0.5, 0.3, 0.3, -0.2]), np.array([-0.1, 0.02, 0.2, 0.0])
    move, decrease = proximal_step(np.diag([1.0, 0.0, 0.0, 0.0]), slope, x, problem)
    np.testing.assert_allclose(move, [0.0, -0.3, 0.0, 0.2], atol=1e-12)
    assert decrease == pytest.approx((0.1 + 0.02) * 0.3 + 0.1 * 0.2)
