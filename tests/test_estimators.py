"""The estimators as scikit-learn sees them: its checks, its optima, its tools, labels of any kind."""

import inspect
import math
import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sklearn
from dask.distributed import Client
from sklearn import config_context
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet, LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.fixes import parse_version

from dask_saga import SAGAClassifier, SAGARegressor
from dask_saga.data.targets import count_labels

from .conftest import make_rows

TIGHT = {"tol": 1e-9, "max_iter": 3000, "memory_dtype": "float64", "random_state": 0}
# They compare predictions to 1e-7 after default fits, which stop at tol=1e-4.
EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": "needs tol far below the default",
    "check_sample_weight_equivalence_on_sparse_data": "needs tol far below the default",
}


class SteepLog(NamedTuple):
    """A user's loss for a classifier, with a curvature that depends on a field."""

    slope: float = 3.0
    labels = (-1.0, 1.0)

    @property
    def curvature(self):
        return self.slope**2 / 4

    def value(self, z, y):
        return math.log1p(math.exp(-abs(self.slope * z))) + max(-self.slope * y * z, 0.0)

    def derivative(self, z, y):
        return -self.slope * y / (1.0 + math.exp(min(self.slope * y * z, 700.0)))


@pytest.mark.parametrize("estimator", [SAGAClassifier(), SAGARegressor()])
@pytest.mark.filterwarnings("ignore")
def test_check_estimator(estimator):
    results = check_estimator(estimator, expected_failed_checks=EXPECTED_FAILURES, on_skip=None)
    assert {result["check_name"] for result in results if result["status"] == "xfail"} <= set(EXPECTED_FAILURES)
    assert sum(result["status"] == "passed" for result in results) > 50


@pytest.mark.parametrize("sparse", [False, True])
def test_weights_equal_repetition_and_removal(sparse):
    A, y = make_rows(n=200)
    A = sp.csr_array(np.where(np.abs(A) > 0.5, A, 0.0)) if sparse else A
    weights = np.random.default_rng(0).integers(0, 4, 200)
    repeated = np.repeat(np.arange(200), weights)
    for kind, target in ((SAGAClassifier, y), (SAGARegressor, y + A[:, [0]].sum(axis=1))):
        weighted = kind(alpha=1e-2, **TIGHT).fit(A, target, sample_weight=weights)
        plain = kind(alpha=1e-2, **TIGHT).fit(A[repeated], target[repeated])
        np.testing.assert_allclose(weighted.coef_, plain.coef_, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("penalty", ["l2", "l1", "elasticnet", None])
@pytest.mark.parametrize("sparse", [False, True])
def test_classifier_has_logistic_regressions_optimum(binary, penalty, fit_intercept, sparse, dtype):
    A, y = binary
    alpha = 3e-2
    ratio = {"l2": 0.0, "l1": 1.0, "elasticnet": 0.4, None: 0.0}[penalty]
    A = (sp.csr_array(np.where(np.abs(A) > 0.5, A, 0.0)) if sparse else A).astype(dtype)
    ours = SAGAClassifier(penalty=penalty, alpha=alpha, l1_ratio=0.4, fit_intercept=fit_intercept, **TIGHT).fit(A, y)
    assert ours.converged_
    if ratio:
        reference = sklearns_saga(A, y, alpha, ratio, fit_intercept)
    else:
        C = 1 / (alpha * 600) if penalty else np.inf
        fit = LogisticRegression(C=C, fit_intercept=fit_intercept, solver="newton-cholesky", tol=1e-12, max_iter=1000)
        fit.fit(A.toarray().astype(float) if sparse else A.astype(float), y)
        reference = np.append(fit.coef_, fit.intercept_)
    found = np.append(ours.coef_, ours.intercept_)
    np.testing.assert_allclose(found, reference, rtol=1e-5 if dtype == np.float64 else 1e-4, atol=2e-6)
    np.testing.assert_array_equal(found[:-1] == 0, reference[:-1] == 0)


def sklearns_saga(A, y, alpha, ratio, fit_intercept):
    """scikit-learn's saga at a tight tolerance on the same columns."""
    A = A.toarray().astype(float) if sp.issparse(A) else A.astype(float)
    # Before 1.8 the penalty had to be named.
    named = {} if parse_version(sklearn.__version__) >= parse_version("1.8") else {"penalty": "elasticnet"}
    settings = {"solver": "saga", "fit_intercept": fit_intercept, "tol": 1e-10, "max_iter": 100_000, **named}
    fit = LogisticRegression(C=1 / (alpha * len(y)), l1_ratio=ratio, **settings)
    fit.fit(A, y)
    return np.append(fit.coef_, fit.intercept_)


@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("penalty", ["l2", "l1", "elasticnet"])
def test_regressor_has_ridges_and_elastic_nets_optimum(numbers, penalty, fit_intercept):
    A, y = numbers
    ours = SAGARegressor(penalty=penalty, alpha=0.3, l1_ratio=0.4, fit_intercept=fit_intercept, **TIGHT).fit(A, y)
    if penalty == "l2":
        reference = Ridge(alpha=0.3 * 600, fit_intercept=fit_intercept, tol=1e-12)
    else:
        ratio = 1.0 if penalty == "l1" else 0.4
        reference = ElasticNet(alpha=0.3, l1_ratio=ratio, fit_intercept=fit_intercept, tol=1e-12, max_iter=100_000)
    reference.fit(A, y)
    np.testing.assert_allclose(ours.coef_, reference.coef_, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(ours.intercept_[0], reference.intercept_, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(ours.coef_ == 0, reference.coef_ == 0)
    assert ours.score(A, y) == pytest.approx(reference.score(A, y))


LABELS = {
    "strings": lambda y: np.where(y > 0, "late", "on time"),
    "object strings": lambda y: np.where(y > 0, "late", "on time").astype(object),
    "booleans": lambda y: y > 0,
    "integers": lambda y: np.where(y > 0, 7, -3),
    "column vector": lambda y: np.where(y > 0, 7, -3)[:, None],
    "categorical": lambda y: pd.Series(pd.Categorical(np.where(y > 0, "late", "on time"))),
    "nullable integer": lambda y: pd.Series(np.where(y > 0, 7, -3), dtype="Int64"),
    "nullable boolean": lambda y: pd.Series(y > 0, dtype="boolean"),
    "pyarrow string": lambda y: pd.Series(np.where(y > 0, "late", "on time"), dtype="string[pyarrow]"),
    "list": lambda y: np.where(y > 0, "late", "on time").tolist(),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.filterwarnings("ignore:A column-vector y")
def test_labels_of_any_kind(binary, kind):
    A, y = binary
    labels = LABELS[kind](y)
    flat = np.asarray(labels).ravel()
    fitted = SAGAClassifier(random_state=0, tol=1e-3).fit(A, labels)
    assert set(fitted.classes_) == set(flat)
    assert np.mean(fitted.predict(A) == flat) == fitted.score(A, labels) > 0.8
    streamed = SAGAClassifier(random_state=0)
    for rows in np.array_split(np.arange(600), 3):
        part = labels[rows[0] : rows[-1] + 1]
        streamed.partial_fit(A[rows], part, classes=sorted(set(flat.tolist())))
    assert list(streamed.classes_) == list(fitted.classes_)
    assert fitted.classes_.dtype.kind in "iubOU"


@pytest.mark.parametrize(("first", "later"), [([0, 1], bool), ([False, True], int), ([0.0, 1.0], int)])
def test_zero_and_one_are_false_and_true(binary, first, later):
    A, y = binary
    model = SAGAClassifier(random_state=0).partial_fit(A, (y > 0).astype(later), classes=first)
    assert list(model.classes_) == first


def test_missing_and_mixed_labels_are_refused(binary):
    A, y = binary
    for labels in (np.where(y > 0, "a", None), pd.Series(y, dtype="Int64").where(y > 0), np.where(y > 0, np.nan, 1.0)):
        with pytest.raises(ValueError, match=r"\by\b"):
            SAGAClassifier().fit(A, labels)
    with pytest.raises(TypeError, match="y mixes labels"):
        SAGAClassifier().fit(A, np.array(["a", 1] * 300, dtype=object))


def test_probabilities(binary):
    A, y = binary
    model = SAGAClassifier(random_state=0).fit(A, y)
    p = model.predict_proba(A)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    np.testing.assert_allclose(p[:, 1], 1 / (1 + np.exp(-model.decision_function(A))))
    np.testing.assert_allclose(model.predict_log_proba(A), np.log(p))
    assert 0.0 < model.predict_proba(5 * A).min() < 1e-16
    assert not hasattr(SAGARegressor(), "predict_proba")


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_in_pipeline_grid_search_and_calibration(binary):
    A, y = binary
    pipe = make_pipeline(StandardScaler(), SAGAClassifier(random_state=0))
    search = GridSearchCV(pipe, {"sagaclassifier__alpha": [1e-3, 1e-1]}, cv=3).fit(A, y)
    assert search.best_score_ > 0.8
    assert CalibratedClassifierCV(SAGAClassifier(random_state=0), cv=3).fit(A, y).score(A, y) > 0.8


def test_metadata_routing(binary):
    A, y = binary
    weights = np.linspace(0, 2, 600)
    with config_context(enable_metadata_routing=True):
        model = SAGAClassifier(random_state=0).set_fit_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        routed = make_pipeline(scaler, model).fit(A, y, sample_weight=weights)
        plain = SAGAClassifier(random_state=0).fit(StandardScaler().fit_transform(A), y, sample_weight=weights)
        np.testing.assert_array_equal(routed[-1].coef_, plain.coef_)
        SAGAClassifier().set_partial_fit_request(classes=True, sample_weight=True)


def test_learnt_attributes_are_real(binary):
    A, y = binary
    model = SAGAClassifier(random_state=0).fit(A, y)
    learnt = {
        "coef_",
        "intercept_",
        "classes_",
        "n_iter_",
        "history_",
        "step_size_",
        "state_",
        "converged_",
        "diverged_",
    }
    assert learnt <= set(vars(model))
    assert model.coef_.shape == (1, 8)
    assert model.intercept_.shape == (1,)
    assert len(model.history_) == model.n_iter_
    assert list(pd.DataFrame(model.history_).columns) == [
        "epoch", "objective", "gradient_norm", "seconds", "visits", "bytes_read"
    ]  # fmt: skip
    assert SAGARegressor().fit(A, y).coef_.shape == (8,)


def test_max_iter_reached_warns(binary):
    A, y = binary
    with pytest.warns(ConvergenceWarning, match="max_iter=2 passes ended at a relative gradient norm"):
        model = SAGAClassifier(max_iter=2, tol=1e-12).fit(A, y)
    assert not model.converged_
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = SAGAClassifier(tol=1e-12).fit(A, y, callback=lambda info: info.epoch == 2)
    assert model.n_iter_ == 2


@pytest.mark.parametrize("max_iter", [20, 25, 30, 40, 60])
def test_a_warning_is_never_given_below_tol(binary, max_iter):
    A, y = binary
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = SAGAClassifier(alpha=1e-2, tol=1e-9, max_iter=max_iter, random_state=0).fit(A, y)
    assert model.converged_ == (model.history_[-1]["gradient_norm"] <= 1e-9)
    assert bool(caught) != model.converged_


def test_divergence_is_finite_and_told(numbers):
    A, y = numbers
    with pytest.warns(ConvergenceWarning, match="diverged"):
        model = SAGARegressor(step_size=1e9).fit(A, y)
    assert model.diverged_
    assert np.isfinite(model.coef_).all()
    assert np.isfinite(model.score(A, y))
    stream = SAGARegressor(step_size=1e9)
    with pytest.warns(ConvergenceWarning, match="Lower step_size"):
        stream.partial_fit(A, y)
    for _ in range(2):
        stream.partial_fit(A, y)
        assert stream.diverged_
        assert np.isfinite(stream.predict(A)).all()


class DoubledLog(NamedTuple):
    """As a tuple it equals LogLoss(): both are empty."""

    curvature = 0.5
    labels = (-1.0, 1.0)

    def value(self, z, y):
        return 2.0 * math.log1p(math.exp(-abs(z))) + 2.0 * max(-y * z, 0.0)

    def derivative(self, z, y):
        return -2.0 * y / (1.0 + math.exp(min(y * z, 700.0)))


@pytest.mark.parametrize(
    "change", [{"precondition": False}, {"loss": SteepLog()}, {"loss": DoubledLog()}, {"fit_intercept": False}]
)
def test_partial_fit_after_set_params_measures_its_steps_anew(binary, change):
    A, y = binary
    A = A + 2.0
    model = SAGAClassifier(alpha=1e-2, random_state=0, curvature=False).fit(A, y).set_params(**change)
    fresh = SAGAClassifier(alpha=1e-2, random_state=0, curvature=False, **change).partial_fit(A, y, classes=[-1, 1])
    for _ in range(300):
        model.partial_fit(A, y)
    assert model.state_.metric.L == fresh.state_.metric.L
    best = SAGAClassifier(alpha=1e-2, tol=1e-6, max_iter=3000, random_state=0, **change).fit(A, y)
    assert best.converged_
    tolerance = 0.1 if change == {"precondition": False} else 1e-3
    np.testing.assert_allclose(model.coef_, best.coef_, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(model.intercept_, best.intercept_, rtol=tolerance, atol=tolerance)


def test_own_losses_are_refused_in_plain_words(binary):
    A, y = binary

    class Plain:
        curvature = 1.0

        def value(self, z, y):
            return 0.0

        derivative = value

    class Broken(NamedTuple):
        curvature = 1.0

        def value(self, z, y):
            return undefined  # noqa: F821

        def derivative(self, z, y):
            return 0.0

    class Unlabelled(NamedTuple):
        curvature = 1.0

        def value(self, z, y):
            return z

        def derivative(self, z, y):
            return 1.0

    for loss, match in (
        (Plain(), "NamedTuple"),
        (SteepLog, r"give an instance: SteepLog\(\)"),
        (Broken(), "Broken.value.*undefined"),
        (Unlabelled(), "labels = "),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            SAGAClassifier(loss=loss).fit(A, y)


def test_parameter_names_are_free_for_client_submit():
    taken = set(inspect.signature(Client.submit).parameters) - {"self", "args", "kwargs"}
    for kind in (SAGAClassifier, SAGARegressor):
        assert not taken & set(kind().get_params())


def test_raw_columns_converge_with_default_settings():
    rng, n = np.random.default_rng(0), 20_000
    A = np.c_[rng.normal(2010, 5, n), rng.lognormal(8, 0.5, n), rng.random((n, 3)), 1.3e9 + rng.random(n) * 3600]
    z = (A[:, 0] - 2010) / 5 + 2 * np.log(A[:, 1]) - 16 + A[:, 2:5].sum(axis=1) + rng.standard_normal(n)
    y = z > np.median(z)
    scaler = StandardScaler().fit(A)
    best = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(scaler.transform(A), y)
    best = log_loss(y, best.predict_proba(scaler.transform(A)))
    model = SAGAClassifier(penalty=None, tol=0.0, random_state=0)
    model.fit(A, y, callback=lambda info: info.epoch == 50)
    assert log_loss(y, model.predict_proba(A)) - best < 1e-6 * (np.log(2) - best)


@pytest.mark.parametrize(
    "labels",
    [
        np.array([-128, 127, -128, 0] * 100, np.int8),
        np.array([2**64 - 1, 2**64 - 3] * 5, np.uint64),
        np.array([-(2**63), -(2**63) + 4] * 5, np.int64),
        np.array([5, 3, 10**9]),
        np.array([True, False, True]),
        np.array([], np.int64),
    ],
)
def test_labels_are_counted_whatever_their_range(labels):
    distinct, counts = count_labels(labels, np.empty(0))
    expected, numbers = np.unique(labels, return_counts=True)
    np.testing.assert_array_equal(distinct, expected)
    assert distinct.dtype == labels.dtype
    np.testing.assert_array_equal(counts, numbers)
