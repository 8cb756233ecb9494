"""Raw data, many losses, honest stopping: what default settings must get right."""

import warnings
from typing import NamedTuple

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import Lasso, LinearRegression, LogisticRegression, PoissonRegressor, Ridge
from threadpoolctl import threadpool_limits

from dask_saga import SAGAClassifier, SAGARegressor, saga
from dask_saga.data.statistics import column_stats
from dask_saga.data.validation import read_chunk
from dask_saga.fitting import loop
from dask_saga.inspection import duality_gap
from dask_saga.losses import LogLoss, NegativeBinomial, SquaredError
from dask_saga.penalties import ElasticNet
from dask_saga.solver import preconditioner_choice as metric_module
from dask_saga.solver.preconditioned_problem import PreconditionedProblem
from dask_saga.solver.preconditioner_choice import axis_limits, choose_preconditioner, limit_axes
from dask_saga.solver.problem import Problem
from dask_saga.solver.state import new_solver_state
from dask_saga.solver.step_control import next_step_multiplier
from dask_saga.solver.step_rule import STEP_RULE

from . import oracles
from .conftest import make_rows


def split(A, b, k):
    return [(A[rows], b[rows]) for rows in np.array_split(np.arange(len(b)), k)]


def gap(A, b, model, alpha):
    """Relative suboptimality of an estimator with default loss and penalty on rows as they are."""
    loss = LogLoss() if hasattr(model, "classes_") else SquaredError()
    x = np.append(model.coef_, model.intercept_)
    here, zero = (oracles.exact_objective(A, b, v, loss, ElasticNet(l2=alpha)) for v in (x, 0 * x))
    least = oracles.least_of_raw(A, b, loss, alpha)
    return (here - least) / (zero - least)


def awkward(n=20_000, seed=0):
    """A unix time within a day, heavy tails, rare levels, a count, a constant, two nearly equal columns."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((n, 8))
    level = np.minimum(rng.geometric(0.15, n), 30)
    A = np.column_stack(
        [
            1.7e9 + 86400 * rng.random(n),
            rng.lognormal(8, 1.5, n),
            rng.poisson(0.1, n),
            np.full(n, 0.1),
            noise[:, 0],
            noise[:, 0] + 1e-2 * noise[:, 1],
            *(level == k for k in range(1, 20)),
        ]
    ).astype(float)
    z = (A[:, 0] - 1.7e9) / 43200 + np.log(A[:, 1]) - 9 + A[:, 2] + noise[:, 0] + (level % 3) + noise[:, 2]
    return A, np.where(z > np.median(z), 1.0, -1.0), z


@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize("order", ["as it comes", "by label"])
def test_raw_columns_converge_at_default_settings(k, order):
    A, b, _ = awkward()
    if order == "by label":
        rows = np.argsort(b, kind="stable")
        A, b = A[rows], b[rows]
    X, y = da.from_array(A, chunks=(-(-len(b) // k), -1)), da.from_array(b, chunks=-(-len(b) // k))
    model = SAGAClassifier(max_iter=50, tol=1e-7, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
    assert gap(A, b, model, 1e-4) < 1e-6


def test_many_rows_take_shorter_steps_and_few_passes(monkeypatch):
    """7 passes with the usual step, which columns of small curvature keep."""
    monkeypatch.setattr(metric_module, "ROTATES_FREELY", 1e-9)
    rng = np.random.default_rng(0)
    A = rng.standard_normal((50_000, 5))
    b = np.where(A.sum(axis=1) + rng.logistic(size=50_000) > 0, 1, -1)
    model = SAGAClassifier(tol=0.0, max_iter=5, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(A, b)
    assert model.state_.metric.step_factor < 1
    assert gap(A, b, model, 1e-4) < 1e-6
    slow = A @ (rng.standard_normal((5, 5)) * np.logspace(0, -2, 5)[:, None])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(slow, b)
    assert model.state_.metric.step_factor == 1


@pytest.mark.parametrize("k", [1, 40])
def test_one_row_that_holds_an_axis_alone(k):
    """Sizes of diamonds: columns nearly equal but for a few entries, whose chunks alone know an axis."""
    rng = np.random.default_rng(0)
    size = rng.lognormal(0, 0.2, 20_000)
    A = size[:, None] * np.array([1.0, 1.0, 0.6]) + 0.01 * rng.standard_normal((20_000, 3))
    A[[500, 9000], [1, 2]] *= 10
    b = 1000 * size**2 + 10 * rng.standard_normal(20_000)
    X, y = da.from_array(A, chunks=(20_000 // k, -1)), da.from_array(b, chunks=20_000 // k)
    model = SAGARegressor(max_iter=50, tol=1e-8, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
    assert gap(A, b, model, 1e-4) < 1e-6


@pytest.mark.parametrize("sparse", [False, True])
def test_float32_rows_give_the_answer_of_float64(sparse):
    A, b, _ = awkward()
    A = A.astype(np.float32).astype(float)  # the same values in both
    A = sp.csr_array(A) if sparse else A
    fits = [
        SAGAClassifier(alpha=1e-3, tol=1e-6, max_iter=500, random_state=0).fit(A.astype(dtype), b)
        for dtype in (np.float32, np.float64)
    ]
    predictions = [model.decision_function(A) for model in fits]
    np.testing.assert_allclose(*predictions, atol=1e-4 * np.abs(predictions[1]).max())
    scale = np.abs(fits[1].coef_).max(axis=0)
    np.testing.assert_allclose(fits[0].coef_, fits[1].coef_, rtol=1e-4, atol=1e-4 * scale.max())


def test_sparse_columns_far_from_zero_converge_where_every_row_stores_them():
    A, b, _ = awkward()
    A[:, 2] = A[:, 2] * (A[:, 2] > 0)
    model = SAGAClassifier(max_iter=50, tol=1e-6, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(sp.csr_array(A[:, [0, 1, 2, 4, 6, 7, 8]]), b)
    assert gap(A[:, [0, 1, 2, 4, 6, 7, 8]], b, model, 1e-4) < 1e-6


@pytest.mark.parametrize("tol", [1e-2, 1e-3, 1e-4, 1e-6])
@pytest.mark.parametrize("k", [1, 7])
def test_converged_is_never_claimed_far_from_the_optimum(tol, k):
    A, b, z = awkward(5000)
    for kind, target in ((SAGAClassifier, b), (SAGARegressor, z)):
        X, y = da.from_array(A, chunks=(-(-5000 // k), -1)), da.from_array(target, chunks=-(-5000 // k))
        model = kind(tol=tol, max_iter=1000, random_state=0).fit(X, y)
        assert model.converged_
        assert gap(A, target, model, 1e-4) < 10 * tol


def test_rotation_is_chosen_where_columns_are_correlated_only():
    rng = np.random.default_rng(0)
    plain = rng.standard_normal((5000, 40)) * np.logspace(-3, 3, 40)
    mixed = plain @ (rng.standard_normal((40, 40)) + np.eye(40))
    for A, penalty, rotated in (
        (plain, ElasticNet(l2=1e-4), False),
        (mixed, ElasticNet(l2=1e-4), True),
        (mixed, ElasticNet(l1=1e-4), False),
        (mixed, ElasticNet(l2=1e-4, lower=0.0), False),
        (sp.csr_array(mixed), ElasticNet(l2=1e-4), False),
    ):
        z = np.sign(np.asarray(A @ (np.ones(40) / np.abs(plain).mean(axis=0))))
        result = saga([(A, np.where(z > 0, 1.0, -1.0))], penalty=penalty, fit_intercept=True, max_iter=1)
        assert (result.state.metric.rotation is not None) == rotated


def test_rotation_is_chosen_where_a_sample_is_turned_once():
    """All rows would tell scaled columns so like these in a few passes, the sample not in its visits."""
    rng = np.random.default_rng(0)
    plain = rng.standard_normal((5000, 40))
    like = plain @ (0.15 * rng.standard_normal((40, 40)) + np.eye(40))
    b = np.where(plain.sum(axis=1) > 0, 1.0, -1.0)
    for loss in (LogLoss(), SquaredError()):
        problem = Problem(loss, ElasticNet(l2=1e-4), True)
        rotates = {}
        for name, A in (("plain", plain), ("like", like)):
            stats = column_stats(read_chunk(A, b, loss=loss), problem)._replace(rows=2_000_000)
            rotates[name] = [choose_preconditioner(stats, problem, n).rotation is not None for n in (None, 0, 50_000)]
        newton = bool(getattr(loss, "quadratic", False))
        assert rotates["plain"] == [False, newton, newton]
        assert rotates["like"] == [False, newton, True]


def test_rotated_metric_whitens_columns_of_any_units():
    A, b, _ = awkward(3000)
    A = A[:, [0, 1, 2, 4, 5, 6, 7]] * np.logspace(-6, 6, 7)
    problem = Problem(LogLoss(), ElasticNet(l2=1e-12), True)
    metric = choose_preconditioner(column_stats(read_chunk(A, b), problem), problem)
    assert metric.rotation is not None
    u = (A - A.mean(axis=0)) @ metric.rotation * np.sqrt(metric.scale)
    np.testing.assert_allclose(u.T @ u / len(A), np.eye(7), atol=1e-3)


def test_the_same_bits_with_one_blas_thread_and_two(monkeypatch):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((3000, 120)) @ (rng.standard_normal((120, 120)) + np.eye(120))
    b = np.where(A @ rng.standard_normal(120) > 0, 1.0, -1.0)
    bits = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            result = saga(split(A, b, 3), penalty=ElasticNet(l2=1e-3), fit_intercept=True, max_iter=3, random_state=0)
        assert result.state.metric.rotation is not None
        bits.append(result.x.tobytes())
    assert bits[0] == bits[1]


def head_after(**fields):
    """A head at the end of a window of two visits that moved x."""
    ones = np.ones((1, 3))
    head = new_solver_state(2, weight=10.0, rows=10)
    defaults = {"x": ones, "window_sum": 2 * ones, "window_count": 2, "window_energy": 1.0, "last_energy": 1.0}
    return head._replace(**{**defaults, **fields})


def test_the_step_follows_what_visits_do():
    problem = Problem(LogLoss(), ElasticNet(), True)
    rng = np.random.default_rng(0)
    chunk = read_chunk(rng.standard_normal((50, 2)), np.tile([-1.0, 1.0], 25))
    preconditioned = PreconditionedProblem(problem, choose_preconditioner(column_stats(chunk, problem), problem))
    for fields, circles, step_multiplier in (
        ({"window_ratio": 2 * 5.0}, False, 0.1),  # visits settle
        ({"window_ratio": 2 * 2.0}, False, 0.25),
        ({"window_ratio": 0.0, "window_energy": 5.0}, False, 1 / 3),  # moves grow
        ({"window_ratio": 0.0, "window_energy": 0.9}, True, 1 / 3),  # x circles and does not calm
        ({"window_ratio": 0.0, "window_energy": 0.1}, True, 1.0),
        ({"window_ratio": 0.0, "step_multiplier": 0.1, "last_step_multiplier": 0.1}, False, 0.2),  # nothing in the way
        ({"window_ratio": 2 * 0.5, "step_multiplier": 0.1, "last_step_multiplier": 0.1}, False, 0.1),
        ({"window_ratio": 0.0, "last_move": np.ones((1, 3))}, False, 1.5),  # two windows the same way
        (
            {"window_ratio": 0.0, "last_move": -np.ones((1, 3)), "step_multiplier": 3.0, "last_step_multiplier": 3.0},
            False,
            2.0,
        ),
    ):
        head = head_after(**fields)
        assert next_step_multiplier(head, head.x - head.window_start, preconditioned, circles) == pytest.approx(
            step_multiplier
        ), fields
    for other in (problem._replace(average=False), problem._replace(step_size=0.1)):
        other = preconditioned._replace(problem=other)
        assert next_step_multiplier(head_after(window_ratio=10.0), np.ones((1, 3)), other, True) == 1.0


@pytest.mark.parametrize("sparse", [False, True])
def test_axes_of_which_a_chunk_knows_little_get_shorter_steps(sparse):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((4000, 3)) * (rng.random((4000, 3)) < 0.5 if sparse else 1.0)
    problem = Problem(LogLoss(), ElasticNet(l1=1e-3), True)
    b = np.tile([-1.0, 1.0], 2000)
    read = (lambda rows: sp.csr_array(rows)) if sparse else np.asarray
    metric = choose_preconditioner(column_stats(read_chunk(read(A), b), problem), problem)

    def limited(rows, **how):
        stats = column_stats(read_chunk(read(rows), b[: len(rows)]), problem)
        limits = axis_limits(stats, PreconditionedProblem(problem, metric))
        limited = limit_axes(PreconditionedProblem(problem._replace(**how), metric), limits)
        return limited.preconditioner.scale / metric.scale

    part = 1.1 * A[:1000]
    np.testing.assert_array_equal(limited(part), 1.0)
    part[:, 2] = 7.0  # it cannot be told from the intercept
    step = PreconditionedProblem(problem, metric).step_size()
    few = STEP_RULE.axis_slack / (step * metric.scale[2] * 1000 * metric.curvature)
    few = few / (metric.spread[2] * (metric.inverse_density[2] if sparse else 1.0))
    np.testing.assert_allclose(limited(part), [1, 1, few], rtol=0.01)
    np.testing.assert_array_equal(limited(part, step_size=0.1), 1.0)
    part[:, 2] = 0.0  # not stored, it does not move; else as if constant
    np.testing.assert_allclose(limited(part), [1, 1, 1 if sparse else few], rtol=0.01)


@pytest.mark.parametrize("sort", [False, True])
def test_partial_fit_reaches_the_optimum_chunk_by_chunk(sort):
    A, b, _ = awkward(6000)
    if sort:
        rows = np.argsort(b, kind="stable")
        A, b = A[rows], b[rows]
    chunks, rng = split(A, b, 12), np.random.default_rng(0)
    model = SAGAClassifier(alpha=1e-3, random_state=0)
    for _ in range(80):
        for k in rng.permutation(12):
            model.partial_fit(*chunks[k], classes=[-1, 1])
    assert gap(A, b, model, 1e-3) < 1e-6


@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e4])
@pytest.mark.parametrize("k", [1, 10])
@pytest.mark.parametrize("kind", [SAGAClassifier, SAGARegressor])
def test_a_wrong_step_is_mended_unseen(kind, k, scale):
    A, b = make_rows(n=3000, classes=kind is SAGAClassifier)
    X, y = da.from_array(A, chunks=(3000 // k, -1)), da.from_array(b, chunks=3000 // k)
    model = kind(step_size_scale=scale, max_iter=300, tol=1e-5, random_state=0).fit(X, y)
    assert model.converged_
    assert not model.diverged_
    assert gap(A, b, model, 1e-4) < 1e-6


@pytest.mark.parametrize("kind", [SAGAClassifier, SAGARegressor])
def test_a_step_beyond_all_numbers_leaves_finite_coefficients(kind, only_visits):
    A, b = make_rows(classes=kind is SAGAClassifier)
    loss = "huber" if kind is SAGARegressor else "log_loss"  # squared error would start at its optimum
    with pytest.warns(ConvergenceWarning):
        model = kind(loss=loss, step_size_scale=1e308, max_iter=20, random_state=0).fit(A, b)
    assert np.isfinite(model.coef_).all()
    assert not model.converged_


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("outputs", [1, 2])
def test_squared_error_starts_at_its_optimum_where_the_axes_are_known(fit_intercept, weighted, outputs):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((900, 6)) @ rng.standard_normal((6, 6)) * np.logspace(0, 3, 6) + 5.0
    b = A @ rng.standard_normal((6, outputs)) + rng.standard_normal((900, outputs))
    b, w = b[:, 0] if outputs == 1 else b, rng.integers(0, 3, 900).astype(float) if weighted else None
    X, y = da.from_array(A, chunks=(300, -1)), da.from_array(b, chunks=300 if outputs == 1 else (300, -1))
    settings = {"alpha": 0.1, "fit_intercept": fit_intercept, "random_state": 0, "memory_dtype": "float64"}
    model = SAGARegressor(tol=1e-6, **settings).fit(X, y, None if w is None else da.from_array(w, chunks=300))
    assert model.state_.metric.rotation is not None
    assert model.converged_
    assert model.n_iter_ == 1
    total = 900 if w is None else w.sum()
    best = Ridge(alpha=0.1 * total, fit_intercept=fit_intercept, solver="svd").fit(A, b, w)
    np.testing.assert_allclose(model.coef_, best.coef_, rtol=1e-4)
    # Not the intercept: columns are up to 1000 times further from zero than from their means.
    np.testing.assert_allclose(model.predict(A), best.predict(A), atol=1e-5 * b.std())
    plain = SAGARegressor(step_size=1e-12, max_iter=1, tol=0.0, **settings)
    with pytest.warns(ConvergenceWarning):
        assert np.abs(plain.fit(X, y).coef_).max() < 1e-3


@pytest.mark.parametrize("penalty", ["l2", "elasticnet", ElasticNet(l2=0.05, lower=-0.1, upper=0.2)])
@pytest.mark.parametrize("classes", [2, 3])
def test_duality_gap_bounds_the_distance(penalty, classes, binary):
    A, _ = binary
    y = np.digitize(A[:, 0] + A[:, 1] / 10, [0.0, 1.0][: classes - 1])
    settings = {"penalty": penalty, "alpha": 0.05, "fit_intercept": False, "random_state": 0}
    best = SAGAClassifier(**settings, tol=1e-10, max_iter=5000, memory_dtype="float64").fit(A, y)
    model = SAGAClassifier(**settings, tol=1e-2).fit(A, y)

    def objective(model):
        p = model.predict_proba(A)[np.arange(len(y)), y]
        return -np.log(p).mean() + best._problem().penalty.value(model.coef_).sum()

    bound = duality_gap(model, A, y)
    assert objective(model) - objective(best) <= bound < 1.0
    assert duality_gap(best, A, y) < 1e-9
    X, labels = da.from_array(A, chunks=(100, -1)), da.from_array(y, chunks=100)
    assert duality_gap(model, X, labels) == pytest.approx(bound)


def test_duality_gap_is_refused_where_there_is_none(binary):
    A, y = binary
    for settings, message in (
        ({}, "duality_gap needs fit_intercept=False: .* a column of ones"),
        ({"fit_intercept": False, "penalty": "l1"}, "duality_gap needs .* an L2 part, but .* penalty='l1'"),
        ({"fit_intercept": False, "penalty": None}, "duality_gap needs .* an L2 part, but .* penalty=None"),
        ({"fit_intercept": False, "alpha": 0.0}, "duality_gap needs .* a positive alpha"),
    ):
        model = SAGAClassifier(tol=0.1, random_state=0, **settings).fit(A, y)
        with pytest.raises(ValueError, match=message):
            duality_gap(model, A, y)
    with pytest.raises(NotFittedError):
        duality_gap(SAGAClassifier(fit_intercept=False), A, y)
    with pytest.raises(TypeError, match="estimator is a LogisticRegression"):
        duality_gap(LogisticRegression().fit(A, y), A, y)


def test_several_outputs_on_dask_are_lazy_and_right(binary):
    A, _ = binary
    y = np.digitize(A[:, 0], [-0.5, 0.5])
    X, labels = da.from_array(A, chunks=(250, -1)), da.from_array(y, chunks=250)
    model = SAGAClassifier(random_state=0).fit(X, labels)
    for name, shape in (("decision_function", (600, 3)), ("predict_proba", (600, 3)), ("predict", (600,))):
        lazy, here = getattr(model, name)(X), getattr(model, name)(A)
        assert isinstance(lazy, da.Array)
        assert lazy.shape == here.shape == shape
        assert lazy.dtype == here.dtype
        assert type(lazy._meta) is np.ndarray
        assert lazy._meta.ndim == len(shape)
        np.testing.assert_allclose(lazy.compute(), here)
    np.testing.assert_allclose(model.predict_proba(A).sum(axis=1), 1.0)
    assert model.score(X, labels) == pytest.approx((model.predict(A) == y).mean())
    targets = np.c_[A[:, 0] + A[:, 1], A[:, 2] - 1]
    both = SAGARegressor(random_state=0, tol=1e-8, max_iter=500).fit(X, da.from_array(targets, chunks=(250, 2)))
    best = Ridge(alpha=1e-4 * 600).fit(A, targets)
    np.testing.assert_allclose(both.predict(X).compute(), best.predict(A), atol=1e-4)
    assert both.score(X, da.from_array(targets, chunks=(250, 2))) == pytest.approx(best.score(A, targets), abs=1e-6)


def test_poisson_predicts_counts_and_refuses_negative_ones():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((2000, 4)) * np.array([1, 10, 100, 0.1])
    y = rng.poisson(np.exp(A / np.array([1, 10, 100, 0.1]) @ np.array([0.5, -0.3, 0.8, 0.0]) + 2))
    model = SAGARegressor("poisson", alpha=1e-3, tol=1e-8, max_iter=1000, random_state=0).fit(A, y)
    best = PoissonRegressor(alpha=1e-3, solver="newton-cholesky", tol=1e-12).fit(A, y)
    np.testing.assert_allclose(model.predict(A), best.predict(A), rtol=1e-4)
    np.testing.assert_allclose(model.predict(da.from_array(A, chunks=(500, -1))).compute(), model.predict(A))
    with pytest.raises(ValueError, match=rf"y must be at least 0\.0 for this loss, but has -1\.0 in row {y.argmin()};"):
        SAGARegressor("poisson").fit(A, y - y.min() - 1)


@pytest.mark.parametrize(
    ("loss", "bad", "valid"),
    [
        ("gamma", 0.0, r"above 0\.0"),
        ("tweedie", -0.5, r"at least 0\.0"),
        ("negative_binomial", -1.0, r"at least 0\.0"),
        ("binomial", 1.5, r"at least 0\.0 and at most 1\.0"),
    ],
)
def test_targets_out_of_range_are_errors_that_name_the_chunk_and_the_row(loss, bad, valid):
    A, y = np.random.default_rng(0).standard_normal((60, 3)), np.full(60, 0.5)
    y[27] = bad
    blocks = da.from_array(A, chunks=(20, 3)), da.from_array(y, chunks=20)
    message = f"y must be {valid} for this loss, but has {bad} in row"
    with pytest.raises(ValueError, match=f"chunk 1: {message} 7;"):
        SAGARegressor(loss).fit(*blocks)
    with pytest.raises(ValueError, match=f"{message} 27;"):
        SAGARegressor(loss).partial_fit(A, y)


def test_proportions_weighted_by_trials_are_logistic_regression():
    rng = np.random.default_rng(0)
    A, trials = rng.standard_normal((300, 3)), rng.integers(1, 9, 300)
    successes = rng.binomial(trials, 1 / (1 + np.exp(-A @ [1.0, -0.5, 0.2])))
    settings = {"alpha": 1e-2, "tol": 1e-9, "memory_dtype": "float64", "random_state": 0}
    model = SAGARegressor("binomial", **settings).fit(A, successes / trials, sample_weight=trials)
    labels, weights = np.repeat([1, 0], 300), np.r_[successes, trials - successes]
    same = SAGAClassifier(**settings).fit(np.r_[A, A], labels, sample_weight=weights)
    np.testing.assert_allclose(model.coef_, same.coef_[0], rtol=1e-5)
    np.testing.assert_allclose(model.predict(A), same.predict_proba(A)[:, 1], rtol=1e-5)


@pytest.mark.parametrize("name", ["negative_binomial", "gamma", "binomial", "probit", "cloglog"])
def test_families_are_those_of_statsmodels(name):
    sm = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(0)
    A = rng.standard_normal((800, 3))
    z = A @ [0.5, -0.3, 0.2] + 0.4
    families, links = sm.families, sm.families.links
    loss, family, y = {
        "negative_binomial": (
            NegativeBinomial(2.0),
            families.NegativeBinomial(links.Log(), alpha=0.5),
            rng.poisson(np.exp(z) * rng.gamma(2.0, 0.5, 800)),
        ),
        "gamma": ("gamma", families.Gamma(links.Log()), np.exp(z) * rng.gamma(2.0, 0.5, 800)),
        "binomial": ("binomial", families.Binomial(), rng.binomial(5, 1 / (1 + np.exp(-z))) / 5),
        "probit": ("probit", families.Binomial(links.Probit()), z + rng.standard_normal(800) > 0),
        "cloglog": ("cloglog", families.Binomial(links.CLogLog()), rng.random(800) > np.exp(-np.exp(z))),
    }[name]
    kind = SAGAClassifier if name in ("probit", "cloglog") else SAGARegressor
    model = kind(loss, penalty=None, tol=1e-8, memory_dtype="float64", random_state=0).fit(A, y)
    best = sm.GLM(y.astype(float), sm.add_constant(A), family=family).fit(tol=1e-12)
    np.testing.assert_allclose(np.append(model.intercept_, model.coef_), best.params, rtol=1e-5)


@pytest.mark.parametrize("loss", ["probit", "cloglog"])
def test_labels_are_those_of_the_larger_probability(loss):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((500, 3))
    y = np.where(A @ [1.0, -0.5, 0.2] + rng.standard_normal(500) > -0.2, "yes", "no")
    model = SAGAClassifier(loss, random_state=0).fit(A, y)
    p = model.predict_proba(A)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    np.testing.assert_array_equal(model.predict(A), model.classes_[p.argmax(axis=1)])
    np.testing.assert_array_equal(model.predict(da.from_array(A, chunks=(100, 3))).compute(), model.predict(A))
    assert p[:, 1].mean() == pytest.approx(np.mean(y == "yes"), abs=0.02)


def test_modified_huber_probabilities_are_those_of_sgd(binary):
    A, _ = binary
    y = np.digitize(A[:, 0], [-0.5, 0.5])
    p = SAGAClassifier("modified_huber", alpha=1e-2, random_state=0).fit(A, y).predict_proba(A)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    assert ((p >= 0) & (p <= 1)).all()
    assert not hasattr(SAGAClassifier("squared_hinge", alpha=1e-2).fit(A, y), "predict_proba")


def test_balanced_is_for_fit(binary):
    A, y = binary
    with pytest.raises(ValueError, match="class_weight='balanced' needs all data"):
        SAGAClassifier(class_weight="balanced").partial_fit(A, y, classes=[-1, 1])
    with pytest.raises(ValueError, match="class_weight"):
        SAGAClassifier(class_weight="even").fit(A, y)


def correlated(n=2000, p=10):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((n, 1)) + 0.03 * rng.standard_normal((n, p))
    return A, A[:, 0] - A[:, 1] + 0.1 * rng.standard_normal(n)


def test_a_penalty_of_another_kind_ends_the_rotation():
    A, b = correlated()
    model = SAGARegressor(curvature=False, random_state=0).partial_fit(A, b)
    assert model.state_.metric.rotation is not None
    model.set_params(penalty=ElasticNet(lower=0.0))
    for _ in range(50):
        model.partial_fit(A, b)
    assert model.state_.metric.rotation is None
    assert (model.coef_ >= 0).all()


def test_blocks_without_rows_or_weight_take_part_in_a_rotation():
    A, b = correlated()
    best = SAGARegressor(tol=1e-7, max_iter=500, random_state=0).fit(A[:1000], b[:1000])
    empty = da.from_array(A[:1000], chunks=((500, 0, 500), -1)), da.from_array(b[:1000], chunks=((500, 0, 500),))
    weightless = da.from_array(A, chunks=(500, -1)), da.from_array(b, chunks=500)
    weights = da.from_array(np.repeat([1.0, 0.0], 1000), chunks=500)
    for data in (empty, (*weightless, weights)):
        model = SAGARegressor(tol=1e-7, max_iter=500, random_state=0).fit(*data)
        assert model.state_.metric.rotation is not None
        np.testing.assert_allclose(model.coef_, best.coef_, rtol=1e-3, atol=1e-3)


def test_columns_that_depend_on_each_other_or_are_constant_rotate():
    rng = np.random.default_rng(0)
    one, other = 1e4 * rng.standard_normal((2, 2000))
    A = np.column_stack([one] * 100 + [other] * 100 + [one + other] * 99 + [np.full(2000, 1e9 / 3)])
    target = one / 1e4 + rng.standard_normal(2000)
    for penalty in ("l2", None):
        model = SAGARegressor(penalty=penalty, random_state=0).fit(A, target)
        assert model.score(A, target) == pytest.approx(np.corrcoef(one, target)[0, 1] ** 2, abs=0.01)
        assert np.abs(model.coef_).max() < 1.0


@pytest.mark.parametrize("mean", [1e5, 1.7e9])
def test_targets_far_from_zero_do_not_hide_the_coefficients(mean):
    x = np.random.default_rng(0).standard_normal((2000, 1))
    model = SAGARegressor(random_state=0).fit(x, 3 * x[:, 0] + mean)
    assert model.converged_
    assert model.coef_[0] == pytest.approx(3.0, rel=1e-2)


def test_one_row_is_enough():
    model = SAGARegressor(random_state=0).fit([[1.0]], [3.0])
    assert model.intercept_[0] == pytest.approx(3.0, rel=1e-3)
    for _ in range(100):
        model.partial_fit([[1.0]], [3.0])
    assert model.predict([[1.0]])[0] == pytest.approx(3.0)


def test_sparse_rows_whose_weight_was_zero_are_not_centred_by_surprise():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((2000, 3)) + np.array([100, 0, 0])
    A[1000:, 0] = 0.0
    target, rows = A @ [0.5, 1.0, 1.0] + rng.standard_normal(2000), sp.csr_array(A)
    model = SAGARegressor(random_state=0).partial_fit(rows, target, sample_weight=np.repeat([1.0, 0.0], 1000))
    for _ in range(200):
        model.partial_fit(rows, target, sample_weight=np.ones(2000))
    assert model.score(rows, target) == pytest.approx(SAGARegressor().fit(rows, target).score(rows, target), abs=1e-3)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.01])
def test_poisson_of_rare_counts(rate, fit_intercept):
    rng = np.random.default_rng(0)
    A, y = rng.standard_normal((3000, 3)), rng.poisson(rate, 3000)
    model = SAGARegressor("poisson", fit_intercept=fit_intercept, random_state=0).fit(A, y)
    assert model.converged_
    if fit_intercept:
        assert model.predict(A).mean() == pytest.approx(y.mean(), abs=1e-3)


def test_fit_leaves_the_axes_that_partial_fit_finds():
    A, b, _ = awkward(3000)
    chunks = split(A, b, 8)
    X, y = da.from_array(A, chunks=(375, -1)), da.from_array(b, chunks=375)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = SAGAClassifier(max_iter=1, random_state=0).fit(X, y)
    streamed = SAGAClassifier(curvature=False, random_state=0)
    for chunk in chunks:
        streamed.partial_fit(*chunk, classes=[-1, 1])
    np.testing.assert_allclose(fitted.state_.metric.scale, streamed.state_.metric.scale, rtol=1e-6)


@pytest.mark.parametrize("weights", [{-1: -1.0, 1: 1.0}, {-1: np.nan, 1: 1.0}])
def test_class_weights_are_checked(weights, binary):
    with pytest.raises(ValueError, match="class_weight"):
        SAGAClassifier(class_weight=weights).fit(*binary)


def test_bounds_hold_where_no_row_says_anything():
    rng = np.random.default_rng(0)
    A = sp.csr_array(np.c_[rng.standard_normal((100, 2)), np.zeros(100)])
    model = SAGARegressor(penalty=ElasticNet(lower=0.5, l2=0.1), random_state=0).fit(A, rng.standard_normal(100))
    assert model.converged_
    assert (model.coef_ >= 0.5).all()


def test_a_sparse_chunk_without_weight_beside_dense_ones():
    A, b = make_rows(classes=False)

    def second_is_sparse(block, block_id=None):
        return sp.csr_array(block) if block_id == (1, 0) else block

    X = da.from_array(A, chunks=(200, 8)).map_blocks(second_is_sparse, meta=A[:0])
    weights = np.repeat([1.0, 0.0, 2.0], 200)
    settings = {"tol": 1e-9, "max_iter": 2000, "random_state": 0, "memory_dtype": "float64"}
    model = SAGARegressor(**settings).fit(X, da.from_array(b, chunks=200), da.from_array(weights, chunks=200))
    best = SAGARegressor(**settings).fit(A, b, weights)
    np.testing.assert_allclose(model.coef_, best.coef_, rtol=1e-5)


@pytest.mark.parametrize("unit", [1e-40, 1e40])
def test_columns_in_any_unit(unit):
    A, b = make_rows(classes=False)
    mixed = A @ np.triu(np.ones((8, 8)))
    model = SAGARegressor(penalty=None, tol=1e-8, max_iter=500, random_state=0).fit(mixed * unit, b)
    np.testing.assert_allclose(model.coef_ * unit, LinearRegression().fit(mixed, b).coef_, rtol=1e-5)


@pytest.mark.parametrize("kind", ["rows of heavy-tailed length", "one long row", "correlated columns and one long row"])
@pytest.mark.parametrize("seed", [3, 4])
def test_steps_that_are_raised_lead_nowhere_far(kind, seed):
    """They were raised again and again, until the loss was 1e50 times that at zero."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((3000, 10))
    if kind == "rows of heavy-tailed length":
        A = A * rng.standard_t(1, (3000, 1))
    else:
        A[0] *= 300
    if "correlated" in kind:
        A = A @ (rng.standard_normal((10, 10)) + np.eye(10))
    b = A @ np.ones(10) + rng.standard_normal(3000)
    model = SAGARegressor(penalty="l1", max_iter=1000, random_state=seed).fit(A, b)
    assert model.converged_
    assert max(row["gradient_norm"] for row in model.history_) < 1.0
    best = Lasso(alpha=1e-4, tol=1e-10, max_iter=100_000).fit(A, b)

    def objective(fit):
        return ((A @ fit.coef_ + fit.intercept_ - b) ** 2).mean() / 2 + 1e-4 * abs(fit.coef_).sum()

    assert objective(model) - objective(best) < 1e-4 * (b**2).mean(), "tol of that at zero"


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_steps_of_the_user_are_not_undone(monkeypatch, only_visits):
    """They would be no shorter the next time."""
    monkeypatch.setattr(loop, "_is_diverging", lambda *passes: True)
    monkeypatch.setattr(loop, "roll_back", lambda *passes: 1 / 0)
    A, b = make_rows()
    for plain in ({"step_size": 1e-3}, {"average": False}):
        SAGAClassifier(penalty="l1", max_iter=3, tol=0.0, **plain).fit(A, b)
    with pytest.raises(ZeroDivisionError):
        SAGAClassifier(penalty="l1", max_iter=3, tol=0.0).fit(A, b)


def test_a_loss_whose_curvature_is_told_too_small_is_fitted_all_the_same():
    class Steep(NamedTuple):
        curvature = 0.01

        def value(self, z, y):
            return 0.5 * (z - y) ** 2

        def derivative(self, z, y):
            return z - y

    A, b = make_rows(classes=False)
    model = SAGARegressor(loss=Steep(), penalty="l1", alpha=1e-3, max_iter=1000, random_state=0).fit(A, b)
    best = Lasso(alpha=1e-3, tol=1e-10).fit(A, b)
    assert model.converged_
    np.testing.assert_allclose(model.coef_, best.coef_, rtol=1e-2, atol=1e-3)


def test_converged_where_the_columns_tell_nothing_is_the_mean():
    """Columns far from zero, of which none counts: the norm at zero is that of centred columns."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(7, 1000)
    far = rng.standard_normal((1000, 5)) + 2000
    model = SAGARegressor("poisson", penalty="l1", alpha=1.0, random_state=0).fit(far, counts)
    assert model.converged_
    assert not model.coef_.any()
    assert model.predict(far[:1]) == pytest.approx(counts.mean(), rel=1e-3)
    same = np.full((1000, 1), 1e6)
    assert SAGARegressor("poisson", random_state=0).fit(same, counts).predict(same[:1]) == pytest.approx(
        counts.mean(), rel=1e-3
    )
    years, late = np.tile([2024.0, 2025.0], 500)[:, None], np.repeat(np.arange(500) < 450, 2)
    model = SAGAClassifier(random_state=0).fit(years, late)
    np.testing.assert_allclose(model.predict_proba(years[:2])[:, 1], 0.9, atol=1e-4)


@pytest.mark.parametrize("alpha", [1e4, 1e6])
def test_a_large_penalty_does_not_keep_the_intercept_from_converging(alpha):
    A, _ = make_rows()
    model = SAGAClassifier(alpha=alpha, random_state=0).fit(A, np.where(A[:, 0] > 1.0, 1.0, -1.0))
    assert model.converged_
    share = (A[:, 0] > 1.0).mean()
    assert model.intercept_[0] == pytest.approx(np.log(share / (1 - share)), rel=1e-3)
