"""Every loss x penalty x intercept x layout x chunking ends at the optimum of an independent reference."""

from functools import cache

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import lsq_linear
from sklearn import linear_model
from sklearn.svm import LinearSVC
from sklearn.utils.class_weight import compute_class_weight

from dask_saga import SAGAClassifier, SAGARegressor, saga
from dask_saga.losses import LOSSES, MultinomialLogLoss
from dask_saga.penalties import ElasticNet

from . import oracles

N, P = 400, 8
SIZE = np.logspace(0, 1, P)
TIGHT = {"tol": 1e-9, "max_iter": 3000, "memory_dtype": "float64", "random_state": 0}


def signs(z, noise, rng):
    return np.where(z + 0.5 * noise > 0.1, 1.0, -1.0) * np.where(rng.random(N) < 0.08, -1.0, 1.0)


def numbers(z, noise, rng):
    return z + 1.0 + noise * np.where(rng.random(N) < 0.1, 8.0, 1.0)


def counts(z, noise, rng):
    return rng.poisson(np.exp(0.4 * z + 0.3)).astype(float)


def rare_counts(z, noise, rng):
    return rng.poisson(np.exp(0.6 * z - 1.5) * rng.gamma(1.0, 1.0, N)).astype(float)


def amounts(z, noise, rng):
    return np.exp(0.4 * z + 0.3) * rng.gamma(2.0, 0.5, N)


def claims(z, noise, rng):
    return amounts(z, noise, rng) * (rng.random(N) < 0.6)


def proportions(z, noise, rng):
    return rng.binomial(5, 1 / (1 + np.exp(-z))) / 5


def codes(z, noise, rng):
    # An odd number of classes: of an even one, L1 leaves a whole interval of optima.
    along = np.linspace(-0.6, 0.6, 5)
    scores = along * z[:, None] + np.abs(along) * z[::-1, None]
    return np.argmax(scores + rng.gumbel(size=(N, 5)), axis=1).astype(float)


def outputs(z, noise, rng):
    return np.c_[numbers(z, noise, rng), numbers(-2 * z, noise[::-1], rng), noise - 2.0]


# Each problem's loss, targets, and a strength of penalty that sets some coefficients to zero, not all.
PROBLEMS = {
    "log_loss": ("log_loss", signs, 0.1),
    "squared_error": ("squared_error", numbers, 0.5),
    "squared_error, 3 outputs": ("squared_error", outputs, 0.5),
    "huber": ("huber", numbers, 0.3),
    "squared_hinge": ("squared_hinge", signs, 0.3),
    "modified_huber": ("modified_huber", signs, 0.3),
    "smooth_hinge": ("smooth_hinge", signs, 0.15),
    "poisson": ("poisson", counts, 0.2),
    "gamma": ("gamma", amounts, 0.1),
    "tweedie": ("tweedie", claims, 0.3),
    "negative_binomial": ("negative_binomial", rare_counts, 0.1),
    "binomial": ("binomial", proportions, 0.1),
    "expectile": ("expectile", numbers, 0.5),
    "probit": ("probit", signs, 0.1),
    "cloglog": ("cloglog", signs, 0.1),
    "multinomial": ("multinomial", codes, 0.05),
}
PENALTIES = {
    "none": lambda strength: ElasticNet(),
    "l2": lambda strength: ElasticNet(l2=strength),
    "l1": lambda strength: ElasticNet(l1=strength),
    "elasticnet": lambda strength: ElasticNet(l1=0.8 * strength, l2=0.2 * strength),
    "non-negative": lambda strength: ElasticNet(l2=0.1 * strength, lower=0.0),
    "box": lambda strength: ElasticNet(l2=0.1 * strength, lower=-0.03, upper=0.08),
}


@cache
def data(problem, sparse):
    """Rows on scales from 1 to 10, off centre; sparse ones with rows of zeros."""
    rng = np.random.default_rng(7)
    A = rng.standard_normal((N, P)) * SIZE + np.linspace(-1, 1, P)
    if sparse:
        A = np.where(np.abs(A) > 0.5 * SIZE, A, 0.0)
        A[::20] = 0.0
    z = A / SIZE @ np.array([1.5, 0.0, -1.0, 0.6, 0.0, 0.9, -0.5, 0.0])
    b = PROBLEMS[problem][1](z, rng.standard_normal(N), rng)
    return sp.csr_array(A) if sparse else A, b


def loss_and_penalty(problem, penalty):
    name, _, strength = PROBLEMS[problem]
    loss = MultinomialLogLoss(5) if name == "multinomial" else LOSSES[name]()
    return loss, PENALTIES[penalty](strength)


@cache
def optimum(problem, penalty, fit_intercept, sparse):
    """The reference, F there and F at zero."""
    A, b = data(problem, sparse)
    loss, penalty = loss_and_penalty(problem, penalty)
    best = oracles.reference(A, b, loss, penalty, fit_intercept)
    return best, *(oracles.exact_objective(A, b, x, loss, penalty) for x in (best, 0 * best))


def same_shift(x):
    """Intercepts of several classes count up to a common shift, which changes no probability."""
    return np.c_[x[:, :-1], x[:, -1:] - x[:, -1].mean()]


def split(A, b, k):
    return [(A[rows], b[rows]) for rows in np.array_split(np.arange(len(b)), k)]


def test_every_loss_has_a_problem():
    smooth = {
        name for name, kind in LOSSES.items() if not hasattr(kind, "smoothed")
    }  # test_smoothing.py has the others
    assert {name for name, *_ in PROBLEMS.values()} == smooth | {"multinomial"}


@pytest.mark.parametrize("name", oracles.POINTWISE)
def test_slope_and_bend_are_derivatives(name):
    fields = {"Huber": (1.35,), "SmoothHinge": (0.7,), "Tweedie": (1.4,), "NegativeBinomial": (0.5,)}.get(name, ())
    fields = (0.8,) if name == "Expectile" else fields
    z, h = np.linspace(-4, 4, 402), 1e-5
    for y in (-1.0, 1.0):
        value, slope, bend = oracles.POINTWISE[name](z, y, *fields)
        over, under = (oracles.POINTWISE[name](z + d, y, *fields) for d in (h, -h))
        np.testing.assert_allclose(slope, (over[0] - under[0]) / (2 * h), atol=1e-7 * np.max(np.abs(value)))
        np.testing.assert_allclose(bend, (over[1] - under[1]) / (2 * h), atol=1e-7 * np.max(np.abs(value)))


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("fit_intercept", [False, True], ids=["no intercept", "intercept"])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_reference_is_a_minimum_where_the_penalty_tells(problem, penalty, fit_intercept, sparse):
    A, b = data(problem, sparse)
    best, least, at_zero = optimum(problem, penalty, fit_intercept, sparse)
    loss, term = loss_and_penalty(problem, penalty)
    for j in np.ndindex(best.shape):
        for h in (-1e-4, 1e-4) if j[-1] < P or fit_intercept else ():
            near = best.copy()
            near[j] += h
            assert oracles.exact_objective(A, b, near, loss, term) > least
    assert least < 0.95 * at_zero
    inner = best[..., :-1]
    for special in {"l1": [0.0], "elasticnet": [0.0], "non-negative": [0.0], "box": [-0.03, 0.08]}.get(penalty, []):
        assert np.sum(inner == special) > 0
    assert np.any((inner != 0) & (inner > term.lower) & (inner < term.upper))
    if problem == "modified_huber":  # else it is squared_hinge
        assert np.min(b * (A @ inner + best[-1])) < -1


def logistic(A, b, term, fit_intercept):
    C = 1 / (term.l2 * len(b)) if term.l2 else np.inf
    settings = {"C": C, "fit_intercept": fit_intercept, "tol": 1e-12, "max_iter": 1000}
    return linear_model.LogisticRegression(solver="newton-cholesky", **settings).fit(A, b)


def least_squares(A, b, term, fit_intercept):
    settings = {"fit_intercept": fit_intercept, "tol": 1e-14, "max_iter": 100_000}
    if term.l1:
        ratio = term.l1 / (term.l1 + term.l2)
        return linear_model.ElasticNet(alpha=term.l1 + term.l2, l1_ratio=ratio, **settings).fit(A, b)
    if term.l2:
        return linear_model.Ridge(alpha=term.l2 * len(b), solver="cholesky", fit_intercept=fit_intercept).fit(A, b)
    return linear_model.LinearRegression(fit_intercept=fit_intercept).fit(A, b)


def poisson(A, b, term, fit_intercept):
    settings = {"fit_intercept": fit_intercept, "tol": 1e-12, "max_iter": 1000}
    return linear_model.PoissonRegressor(alpha=term.l2, solver="newton-cholesky", **settings).fit(A, b)


def gamma(A, b, term, fit_intercept):
    settings = {"fit_intercept": fit_intercept, "tol": 1e-12, "max_iter": 1000}
    return linear_model.GammaRegressor(alpha=term.l2, solver="newton-cholesky", **settings).fit(A, b)


def tweedie(A, b, term, fit_intercept):
    settings = {"fit_intercept": fit_intercept, "tol": 1e-12, "max_iter": 1000, "link": "log"}
    return linear_model.TweedieRegressor(power=1.5, alpha=term.l2, solver="newton-cholesky", **settings).fit(A, b)


def squared_hinge(A, b, term, fit_intercept):
    # With an intercept LinearSVC penalises it.
    settings = {"fit_intercept": False, "dual": False, "tol": 1e-8, "max_iter": 100_000, "random_state": 0}
    return LinearSVC(C=1 / ((term.l1 + term.l2) * len(b)), penalty="l1" if term.l1 else "l2", **settings).fit(A, b)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    ("problem", "penalties", "intercepts", "rival"),
    [
        ("log_loss", ["none", "l2"], [False, True], logistic),
        ("multinomial", ["none", "l2"], [False, True], logistic),
        ("squared_error", ["none", "l2", "l1", "elasticnet"], [False, True], least_squares),
        ("squared_error, 3 outputs", ["none", "l2", "l1", "elasticnet"], [False, True], least_squares),
        ("poisson", ["none", "l2"], [False, True], poisson),
        ("gamma", ["none", "l2"], [False, True], gamma),
        ("tweedie", ["none", "l2"], [False, True], tweedie),
        ("squared_hinge", ["l2", "l1"], [False], squared_hinge),
    ],
)
def test_reference_is_scikit_learns(problem, penalties, intercepts, rival, sparse):
    A, b = data(problem, sparse)
    A = A.toarray() if sparse else A
    for penalty in penalties:
        for fit_intercept in intercepts:
            best, *_ = optimum(problem, penalty, fit_intercept, sparse)
            fitted = rival(A, b, loss_and_penalty(problem, penalty)[1], fit_intercept)
            theirs = np.c_[np.atleast_2d(fitted.coef_), np.broadcast_to(fitted.intercept_, len(np.atleast_2d(best)))]
            np.testing.assert_allclose(theirs.reshape(best.shape), best, rtol=1e-6, atol=1e-7 * np.max(np.abs(best)))
            np.testing.assert_array_equal(theirs[:, :-1] == 0, np.atleast_2d(best)[:, :-1] == 0)


@pytest.mark.parametrize("penalty", ["non-negative", "box"])
def test_reference_within_bounds_is_scipys(penalty):
    A, b = data("squared_error", False)
    best, *_ = optimum("squared_error", penalty, True, False)
    term = loss_and_penalty("squared_error", penalty)[1]
    # Rows sqrt(n l2) e_j add n l2 x_j^2 to the squares.
    rows = np.r_[np.c_[A, np.ones(N)], np.sqrt(N * term.l2) * np.eye(P, P + 1)]
    bounds = np.append(np.full(P, term.lower), -np.inf), np.append(np.full(P, term.upper), np.inf)
    found = lsq_linear(rows, np.append(b, np.zeros(P)), bounds, method="bvls", tol=1e-14)
    np.testing.assert_allclose(found.x, best, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("fit_intercept", [False, True], ids=["no intercept", "intercept"])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_optimum_is_the_references_and_converged_is_true(problem, penalty, fit_intercept, sparse, k):
    A, b = data(problem, sparse)
    best, least, at_zero = optimum(problem, penalty, fit_intercept, sparse)
    loss, penalty = loss_and_penalty(problem, penalty)
    for tol in (1e-3, 1e-5, 1e-11):
        settings = {**TIGHT, "tol": tol}
        result = saga(split(A, b, k), loss, penalty, fit_intercept=fit_intercept, **settings)
        x = np.c_[np.atleast_2d(result.x), np.atleast_1d(result.intercept)].reshape(best.shape)
        assert result.converged
        assert oracles.exact_objective(A, b, x, loss, penalty) - least <= 10 * tol * (at_zero - least)
    np.testing.assert_array_equal((x == 0)[..., :-1], (best == 0)[..., :-1])
    if problem == "multinomial":
        x, best = same_shift(x), same_shift(best)
    np.testing.assert_allclose(x, best, rtol=1e-5, atol=1e-7 * np.max(np.abs(best)))


def labels_of_three():
    A, b = data("multinomial", False)
    return A, np.array(list("aabbc"))[b.astype(int)]


def in_chunks(A, y, k):
    """Arrays as they are, or as Dask arrays of k chunks."""
    rows = -(-len(y) // k)
    return (A, y) if k == 1 else (da.from_array(A, chunks=(rows, P)), da.from_array(y, chunks=rows))


def coefficients(model):
    """An estimator's, with the intercept last."""
    return np.c_[np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)]


def assert_close(x, best, rtol=1e-5):
    np.testing.assert_allclose(x, best, rtol=rtol, atol=0.01 * rtol * np.max(np.abs(best)))


@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("penalty", ["l2", "l1"])
@pytest.mark.parametrize("loss", ["squared_hinge", "modified_huber", "smooth_hinge", "probit", "cloglog"])
def test_losses_of_two_labels_are_one_vs_rest(loss, penalty, k):
    A, y = labels_of_three()
    term = ElasticNet(**{penalty: 0.1})
    targets = [np.where(y == label, 1.0, -1.0) for label in "abc"]
    best = np.stack([oracles.reference(A, b, LOSSES[loss](), term, True) for b in targets])

    def objective(x):
        return sum(oracles.exact_objective(A, b, row, LOSSES[loss](), term) for b, row in zip(targets, x, strict=True))

    for tol in (1e-3, 1e-9):
        model = SAGAClassifier(loss, penalty=penalty, alpha=0.1, **{**TIGHT, "tol": tol}).fit(*in_chunks(A, y, k))
        assert list(model.classes_) == ["a", "b", "c"]
        assert model.converged_
        gap = objective(coefficients(model)) - objective(best)
        assert gap <= 10 * tol * (objective(0 * best) - objective(best))
    np.testing.assert_array_equal(model.coef_ == 0, best[:, :-1] == 0)
    assert_close(coefficients(model), best)
    scores = A @ best[:, :-1].T + best[:, -1]
    np.testing.assert_allclose(model.decision_function(A), scores, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(model.predict(A), np.array(list("abc"))[scores.argmax(axis=1)])


@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_log_loss_is_logistic_regression(classes, k):
    A, b = data("multinomial", False)
    y = np.array({2: list("aabab"), 3: list("bcaab"), 5: list("ecdab")}[classes])[b.astype(int)]
    theirs = logistic(A, y, ElasticNet(l2=0.02), True)
    model = SAGAClassifier(alpha=0.02, **TIGHT).fit(*in_chunks(A, y, k))
    assert model.converged_
    assert model.coef_.shape == theirs.coef_.shape
    assert_close(coefficients(model), coefficients(theirs))
    np.testing.assert_allclose(model.predict_proba(A), theirs.predict_proba(A), rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(model.predict(A), theirs.predict(A))


@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_several_targets_are_ridges(fit_intercept, k):
    A, b = data("squared_error, 3 outputs", False)
    best, *_ = optimum("squared_error, 3 outputs", "l2", fit_intercept, False)
    rows = -(-N // k)
    X, y = (A, b) if k == 1 else (da.from_array(A, chunks=(rows, P)), da.from_array(b, chunks=(rows, 3)))
    model = SAGARegressor(alpha=0.5, fit_intercept=fit_intercept, **TIGHT).fit(X, y)
    assert model.converged_
    assert model.coef_.shape == (3, P)
    assert model.intercept_.shape == (3,)
    assert_close(coefficients(model), best)
    np.testing.assert_allclose(model.predict(A), A @ best[:, :-1].T + best[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_weights_are_repeated_rows(problem, sparse):
    A, b = data(problem, sparse)
    name, targets, strength = PROBLEMS[problem]
    kind = SAGAClassifier if targets in (signs, codes) else SAGARegressor
    name = "log_loss" if name == "multinomial" else name
    weights = np.random.default_rng(3).integers(0, 4, N)
    repeated = np.repeat(np.arange(N), weights)
    weighted = kind(name, alpha=strength, **TIGHT).fit(A, b, sample_weight=weights)
    plain = kind(name, alpha=strength, **TIGHT).fit(A[repeated], b[repeated])
    assert weighted.converged_
    assert plain.converged_
    assert_close(coefficients(weighted), coefficients(plain), rtol=1e-6)
    best = oracles.reference(A, b, *loss_and_penalty(problem, "l2"), True, weights)
    assert_close(coefficients(weighted), np.atleast_2d(best))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("class_weight", [{"a": 3.0, "b": 0.5, "c": 1.5}, "balanced"], ids=["dict", "balanced"])
@pytest.mark.parametrize("weighted", [False, True], ids=["rows alike", "sample_weight"])
def test_class_weights_are_logistic_regressions(classes, class_weight, weighted):
    A, y = labels_of_three()
    y = y if classes == 3 else np.where(y == "c", "a", y)
    if class_weight != "balanced":
        class_weight = {label: class_weight[label] for label in "abc"[:classes]}
    rows = np.random.default_rng(4).integers(0, 4, N).astype(float) if weighted else np.ones(N)
    # Weights count as repeated rows, in "balanced" as well.
    of_class = compute_class_weight(class_weight, classes=np.unique(y), y=np.repeat(y, rows.astype(int)))
    total = np.sum(rows * of_class[np.searchsorted(np.unique(y), y)])
    theirs = linear_model.LogisticRegression(
        C=1 / (0.02 * total), class_weight=class_weight, solver="newton-cholesky", tol=1e-12, max_iter=1000
    ).fit(np.repeat(A, rows.astype(int), axis=0), np.repeat(y, rows.astype(int)))
    model = SAGAClassifier(alpha=0.02, class_weight=class_weight, **TIGHT)
    model.fit(A, y, sample_weight=rows if weighted else None)
    assert model.converged_
    assert_close(coefficients(model), coefficients(theirs))
    even = SAGAClassifier(alpha=0.02, **TIGHT).fit(A, y, sample_weight=rows)
    assert np.max(np.abs(coefficients(even) - coefficients(model))) > 0.1 * np.max(np.abs(coefficients(model)))


@pytest.mark.parametrize("exponent", [-14, -11, 11, 14])
@pytest.mark.parametrize("loss", ["squared_error", "huber"])
def test_one_column_in_other_units_than_the_rest(loss, exponent):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((80, 4)) @ np.triu(np.ones((4, 4))) + rng.standard_normal(4)
    y = A @ rng.standard_normal(4) + rng.standard_normal(80)
    B = A * np.array([10.0**exponent, 1, 1, 1])
    settings = {**TIGHT, "penalty": None, "tol": 1e-10}
    one, other = (SAGARegressor(loss, **settings).fit(rows, y) for rows in (A, B))
    assert other.state_.metric.rotation is not None
    assert other.converged_
    np.testing.assert_allclose(other.coef_ * [10.0**exponent, 1, 1, 1], one.coef_, rtol=1e-6)


@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("value", [0.0, 5e-324, 1e-170, 1.0])
@pytest.mark.parametrize("layout", [np.asarray, sp.csr_array])
@pytest.mark.parametrize("precondition", [False, True])
def test_columns_that_tell_nothing(precondition, layout, value, fit_intercept):
    A, y = np.full((6, 2), value), np.array([1.0, 2.0, 3.0, 1.0, 2.0, 4.0])
    model = SAGARegressor(fit_intercept=fit_intercept, precondition=precondition, alpha=0.1, max_iter=2000)
    model.fit(layout(A), y)
    assert model.converged_
    prediction = 0.0 if value < 1 else 13 / 6 * 2 / (2 + 0.1)
    np.testing.assert_allclose(model.predict(A), 13 / 6 if fit_intercept else prediction, rtol=1e-3, atol=1e-6)
    labels = SAGAClassifier("squared_hinge", fit_intercept=fit_intercept, precondition=precondition).fit(A, y > 2)
    assert np.isfinite(labels.decision_function(A)).all()


@pytest.mark.parametrize("k", [1, 5])
def test_labels_that_columns_tell_nothing_of(k):
    # Rounding leaves a gradient at zero that is no smaller after any pass.
    A, y = np.full((45, 2), 0.3), np.arange(45) % 3
    model = SAGAClassifier(alpha=0.1, random_state=0).fit(da.from_array(A, chunks=(45 // k, 2)), y)
    assert model.converged_
    assert model.n_iter_ == 0
    assert np.abs(model.coef_).max() < 1e-12
    assert model.partial_fit(A[:9], y[:9]).n_iter_ == 1


@pytest.mark.parametrize("layout", [np.asarray, sp.csr_array])
def test_float32_rows_of_which_some_weigh_nothing(layout):
    rng = np.random.default_rng(0)
    A, w = rng.standard_normal((60, 3)).astype("f4"), np.arange(60) % 3.0
    y = A @ np.arange(3.0) + rng.standard_normal(60)
    one = SAGARegressor(random_state=0, tol=1e-7, max_iter=500).fit(layout(A), y, w)
    other = SAGARegressor(random_state=0, tol=1e-7, max_iter=500).fit(
        layout(np.repeat(A, w.astype(int), axis=0)), np.repeat(y, w.astype(int))
    )
    np.testing.assert_allclose(one.coef_, other.coef_, rtol=1e-4)


@pytest.mark.parametrize("seed", range(12))
def test_weights_whose_sum_is_rounded(seed):
    # Of one chunk the share may be a little more than all.
    rng = np.random.default_rng(seed)
    A, w = rng.standard_normal((40, 3)), rng.random(40) * 10.0 ** rng.integers(-9, 9)
    y = A @ np.arange(3.0) + rng.standard_normal(40)
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        model = SAGARegressor("huber", alpha=0.1, random_state=0).fit(A, y, w)
        first = SAGARegressor("huber", alpha=0.1, random_state=0)
        for _ in range(3):
            first.partial_fit(A, y, w * rng.random(40))
    assert model.converged_
    assert not first.diverged_
