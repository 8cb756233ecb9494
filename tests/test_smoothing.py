"""Losses with corners: fits reach the optimum of the loss itself, by the linear program of HiGHS or a dual bound."""

from functools import cache

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import linprog, minimize
from sklearn.linear_model import QuantileRegressor

from dask_saga import SAGAClassifier, SAGARegressor, saga
from dask_saga.inspection import duality_gap
from dask_saga.losses import AbsoluteError, EpsilonInsensitive, Hinge, Quantile, SmoothHinge
from dask_saga.penalties import ElasticNet

from .test_optimum import SIZE, N, P, numbers, signs

# Each loss, its targets, and its corners as a maximum of linear functions of the residual: slopes and constants.
# The residual is z - y, or -y z for labels.
PROBLEMS = {
    "absolute_error": (AbsoluteError(), numbers, [-1.0, 1.0], [0.0, 0.0]),
    "quantile": (Quantile(0.8), numbers, [-0.8, 0.2], [0.0, 0.0]),
    "epsilon_insensitive": (EpsilonInsensitive(0.5), numbers, [-1.0, 0.0, 1.0], [-0.5, 0.0, -0.5]),
    "hinge": (Hinge(), signs, [0.0, 1.0], [0.0, 1.0]),
}
PENALTIES = {
    "none": ElasticNet(),
    "l1": ElasticNet(l1=0.05),
    "box": ElasticNet(l1=0.01, lower=-0.03, upper=0.08),
}
SETTINGS = {"tol": 1e-6, "max_iter": 500, "memory_dtype": "float64", "random_state": 0}


@cache
def data(name, sparse):
    rng = np.random.default_rng(7)
    A = rng.standard_normal((N, P)) * SIZE + np.linspace(-1, 1, P)
    A = np.where(np.abs(A) > 0.5 * SIZE, A, 0.0) if sparse else A
    z = A / SIZE @ np.array([1.5, 0.0, -1.0, 0.6, 0.0, 0.9, -0.5, 0.0])
    return A, PROBLEMS[name][1](z, rng.standard_normal(N), rng)


def objective(name, A, y, x, penalty, weights=None):
    loss, _, slopes, constants = PROBLEMS[name]
    z = A @ x[:-1] + x[-1]
    residuals = -y * z if hasattr(loss, "labels") else z - y
    losses = np.max(np.multiply.outer(residuals, slopes) + constants, axis=1)
    return np.average(losses, weights=weights) + penalty.value(x[:-1]).sum()


def least(name, A, y, penalty, weights=None):
    """F at the optimum, by a linear program in the positive and negative parts of x and the losses of the rows."""
    loss, _, slopes, constants = PROBLEMS[name]
    weights = np.ones(len(y)) if weights is None else weights
    sign, aim = (-y, 0 * y) if hasattr(loss, "labels") else (np.ones(len(y)), y)
    B = np.c_[A, np.ones(len(y))] * sign[:, None]
    cost = np.r_[np.full(P, penalty.l1), 0.0, np.full(P, penalty.l1), 0.0, weights / weights.sum()]
    rows = sp.vstack([sp.hstack([sp.csr_array(s * np.c_[B, -B]), -sp.eye_array(len(y))]) for s in slopes])
    bounds = [(0, penalty.upper)] * P + [(0, None)] + [(0, -penalty.lower)] * P + [(0, None)] + [(None, None)] * len(y)
    limits = np.concatenate([s * aim - c for s, c in zip(slopes, constants, strict=True)])
    found = linprog(cost, rows, limits, bounds=bounds, method="highs")
    assert found.status == 0
    return found.fun


def parts(A, y, k, sparse):
    return [(sp.csr_array(A[i]) if sparse else A[i], y[i]) for i in np.array_split(np.arange(N), k)]


@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_objective_is_that_of_the_linear_program(name, penalty, sparse, k):
    (A, y), penalty = data(name, sparse), PENALTIES[penalty]
    best = least(name, A, y, penalty)
    for tol in (1e-3, 1e-6):
        settings = {**SETTINGS, "tol": tol}
        result = saga(parts(A, y, k, sparse), PROBLEMS[name][0], penalty, fit_intercept=True, **settings)
        assert result.converged
        assert result.n_iter == len(result.history) == result.history[-1]["epoch"]
        assert objective(name, A, y, np.append(result.x, result.intercept), penalty) <= best * (1 + tol)


@pytest.mark.parametrize("name", PROBLEMS)
def test_weights_are_those_of_the_linear_program(name):
    (A, y), penalty = data(name, False), ElasticNet(l1=0.05)
    weights = np.random.default_rng(3).integers(0, 4, N).astype(float)
    kind = SAGAClassifier if hasattr(PROBLEMS[name][0], "labels") else SAGARegressor
    model = kind(PROBLEMS[name][0], penalty=penalty, **SETTINGS).fit(A, y, sample_weight=weights)
    x = np.append(model.coef_, model.intercept_)
    assert objective(name, A, y, x, penalty, weights) <= least(name, A, y, penalty, weights) * (1 + 1e-6)


def test_a_ridge_penalty_reaches_the_dual_bound():
    """Without an intercept, any derivatives of the losses give a bound. L-BFGS-B finds the best ones."""
    A, y = data("quantile", False)
    l2, level = 0.1, 0.8

    def dual(slopes):
        g = A.T @ slopes / N
        return slopes @ y / N + g @ g / (2 * l2), y / N + A @ g / (l2 * N)

    options = {"maxiter": 20000, "maxfun": 40000, "ftol": 1e-15, "gtol": 1e-12}
    found = minimize(dual, np.zeros(N), jac=True, method="L-BFGS-B", bounds=[(-level, 1 - level)] * N, options=options)
    model = SAGARegressor(Quantile(level), alpha=l2, fit_intercept=False, **SETTINGS).fit(A, y)
    primal = objective("quantile", A, y, np.append(model.coef_, 0.0), ElasticNet(l2=l2))
    assert primal <= -found.fun * (1 + 2e-6)


@pytest.mark.slow
def test_quantiles_of_5000_rows_are_those_of_highs():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((5000, 10)) * np.logspace(0, 1, 10) + 3
    y = A @ rng.standard_normal(10) + (1 + 0.5 * np.abs(A[:, 0])) * rng.standard_t(3, 5000) + 50
    for level in (0.5, 0.9):
        model = SAGARegressor(Quantile(level), penalty=None, **SETTINGS).fit(A, y)
        best = QuantileRegressor(quantile=level, alpha=0.0, solver="highs").fit(A, y)
        losses = [np.mean(np.maximum(level * r, (level - 1) * r)) for r in (y - model.predict(A), y - best.predict(A))]
        assert losses[0] <= losses[1] * (1 + 1e-6)
        assert np.mean(y < model.predict(A)) == pytest.approx(level, abs=2e-3)


@pytest.mark.parametrize("persist", [True, False])
def test_fits_on_dask_count_all_passes(persist, monkeypatch):
    monkeypatch.setattr("dask_saga.fitting.preparation.JOINED_BYTES", 0)
    A, y = data("quantile", False)
    X, targets = da.from_array(A, chunks=(100, P)), da.from_array(y, chunks=100)
    epochs = []
    model = SAGARegressor("quantile", penalty=None, random_state=0, max_iter=300, tol=1e-3)
    model.fit(X, targets, persist=persist, callback=lambda info: epochs.append((info.epoch, info.visits)))
    assert epochs == [(row["epoch"], row["visits"]) for row in model.history_]
    assert [row["epoch"] for row in model.history_] == list(range(1, model.n_iter_ + 1))
    assert (np.diff([row["seconds"] for row in model.history_]) > 0).all()
    assert len(model.state_.chunks) == 4


def test_a_fit_ends_where_a_callback_or_max_iter_says():
    A, y = data("quantile", False)
    stopped = SAGARegressor("quantile", random_state=0).fit(A, y, callback=lambda info: info.epoch == 8)
    assert stopped.n_iter_ == 8
    assert not stopped.converged_
    with pytest.warns(UserWarning, match="max_iter=3"):
        assert SAGARegressor("quantile", random_state=0, max_iter=3).fit(A, y).n_iter_ == 3


def test_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="checkpoint: a fit with loss=Quantile"):
        SAGARegressor("quantile").fit(*data("quantile", False), checkpoint=tmp_path)


def test_partial_fit_uses_the_width_of_the_loss():
    A, y = data("hinge", False)
    smooth, hinge = (SAGAClassifier(loss, alpha=0.1, random_state=0) for loss in (SmoothHinge(0.3), Hinge(0.3)))
    for model in (smooth, hinge):
        for i in (0, 200, 0, 200):
            model.partial_fit(A[i : i + 200], y[i : i + 200], classes=[-1.0, 1.0])
    np.testing.assert_allclose(hinge.coef_, smooth.coef_, rtol=1e-9)


@pytest.mark.parametrize("y", [0.0, 3.0])
def test_constant_targets(y):
    A, _ = data("quantile", False)
    model = SAGARegressor("absolute_error", random_state=0).fit(A, np.full(N, y))
    assert model.converged_
    np.testing.assert_allclose(model.predict(A), y, atol=1e-9)


def test_a_large_penalty_leaves_the_quantile_of_the_targets():
    A, y = data("quantile", False)
    model = SAGARegressor(Quantile(0.8), penalty="l1", alpha=1e3, random_state=0, tol=1e-6).fit(A, y)
    assert not model.coef_.any()
    assert np.mean(y < model.intercept_) == pytest.approx(0.8, abs=5e-3)


def test_duality_gap_refuses_a_loss_with_corners():
    A, y = data("quantile", False)
    model = SAGARegressor("quantile", alpha=0.1, fit_intercept=False, random_state=0).fit(A, y)
    with pytest.raises(ValueError, match="duality_gap is for smooth losses"):
        duality_gap(model, A, y)
