"""Exported models: the estimators of scikit-learn and the SQL expressions give the same predictions."""

import math
import pickle
import sqlite3
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, SGDClassifier
from sklearn.multioutput import MultiOutputRegressor
from sklearn.svm import LinearSVC
from sklearn.utils.validation import check_is_fitted

from dask_saga import SAGAClassifier, SAGARegressor
from dask_saga.losses import CloglogLoss, MultinomialLogLoss

from .conftest import make_rows

NAMES = ["age", 'a "quoted" name', "select", "x y", "Straße", "e", "f", "g"]


class CauchitLoss(NamedTuple):
    """Its probability is not known to scikit-learn."""

    curvature: float = 0.25
    labels: tuple = (-1.0, 1.0)

    def value(self, z, y):
        return math.log1p(math.exp(-y * z))

    def derivative(self, z, y):
        return -y / (1.0 + math.exp(y * z))

    def probability(self, z):
        return expit(2 * z)


class ScaledMean(NamedTuple):
    """Its mean is not known to scikit-learn."""

    curvature: float = 1.0

    def value(self, z, y):
        return 0.5 * (z - y) ** 2

    def derivative(self, z, y):
        return z - y

    def mean(self, z):
        return 2 * z


def labels_for(classes, seed=0):
    X, z = make_rows(classes=False, seed=seed)
    edges = np.quantile(z, np.linspace(0, 1, classes + 1)[1:-1])
    return X, np.array(["it's", "b", "c", "d"])[np.searchsorted(edges, z)]


def classifier(loss, classes, **more):
    X, y = labels_for(classes)
    frame = pd.DataFrame(X, columns=NAMES)
    return SAGAClassifier(loss, random_state=0, **more).fit(frame, y), frame


def regressor(loss, targets, **more):
    X, y = make_rows(classes=False)
    y = np.abs(y)[:, None] ** np.linspace(1, 0.5, targets)
    frame = pd.DataFrame(X, columns=NAMES)
    return SAGARegressor(loss, random_state=0, **more).fit(frame, y if targets > 1 else y[:, 0]), frame


def in_database(frame, expressions):
    """Evaluate SQL expressions for the rows of a frame; their results are columns."""
    with sqlite3.connect(":memory:") as base:
        base.create_function("EXP", 1, lambda v: None if v is None else math.exp(v), deterministic=True)
        frame.to_sql("rows", base, index=False)
        found = base.execute(f"SELECT {', '.join(expressions)} FROM rows").fetchall()
    base.close()
    return [np.array(column) for column in zip(*found, strict=True)]


CLASSIFIERS = [
    ("log_loss", LogisticRegression),
    ("modified_huber", SGDClassifier),
    ("squared_hinge", LinearSVC),
    ("smooth_hinge", LinearSVC),
]


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("loss", "kind"), CLASSIFIERS)
def test_a_classifier_of_sklearn_predicts_the_same(loss, kind, classes):
    model, frame = classifier(loss, classes)
    exported = pickle.loads(pickle.dumps(model.to_sklearn()))
    assert type(exported) is kind
    check_is_fitted(exported)
    assert list(exported.feature_names_in_) == NAMES
    assert exported.n_features_in_ == len(NAMES)
    assert exported.n_iter_ == model.n_iter_
    np.testing.assert_array_equal(exported.predict(frame), model.predict(frame))
    np.testing.assert_allclose(exported.decision_function(frame), model.decision_function(frame), rtol=1e-10)
    assert hasattr(exported, "predict_proba") == hasattr(model, "predict_proba")
    if hasattr(model, "predict_proba"):
        np.testing.assert_allclose(exported.predict_proba(frame), model.predict_proba(frame), rtol=1e-10, atol=1e-15)
    before = model.coef_.copy()
    exported.coef_ += 1.0
    np.testing.assert_array_equal(model.coef_, before)


def test_a_multinomial_loss_of_two_classes():
    model, frame = classifier(MultinomialLogLoss(2), 2)
    exported = model.to_sklearn()
    np.testing.assert_allclose(exported.predict_proba(frame), model.predict_proba(frame), rtol=1e-10, atol=1e-15)
    np.testing.assert_array_equal(exported.predict(frame), model.predict(frame))


@pytest.mark.filterwarnings("ignore")  # of the converter
@pytest.mark.parametrize("loss", ["log_loss", "modified_huber", "squared_hinge", "squared_error", "poisson"])
@pytest.mark.parametrize("outputs", [2, 3])
def test_the_onnx_model_predicts_the_same(loss, outputs):
    skl2onnx = pytest.importorskip("skl2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    is_classifier = loss in dict(CLASSIFIERS)
    model, frame = classifier(loss, outputs) if is_classifier else regressor(loss, outputs - 1)
    rows = frame.to_numpy().astype(np.float32)
    options = {"zipmap": False} if hasattr(model, "predict_proba") else None
    graph = skl2onnx.to_onnx(model.to_sklearn(), rows[:1], options=options)
    found = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"X": rows})
    expected = model.predict(pd.DataFrame(rows, columns=NAMES))
    if is_classifier:
        np.testing.assert_array_equal(found[0], expected)
    else:
        np.testing.assert_allclose(found[0].reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)
    if hasattr(model, "predict_proba"):
        np.testing.assert_allclose(found[1], model.predict_proba(frame), atol=1e-5)


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize(
    ("loss", "kind"), [("squared_error", LinearRegression), ("huber", LinearRegression), ("poisson", PoissonRegressor)]
)
def test_a_regressor_of_sklearn_predicts_the_same(loss, kind, targets):
    model, frame = regressor(loss, targets, fit_intercept=targets > 1)
    exported = pickle.loads(pickle.dumps(model.to_sklearn()))
    assert type(exported) is (MultiOutputRegressor if targets > 1 and kind is PoissonRegressor else kind)
    check_is_fitted(exported)
    assert list(exported.feature_names_in_) == NAMES
    np.testing.assert_allclose(exported.predict(frame), model.predict(frame), rtol=1e-10)


def test_arrays_without_names():
    X, y = make_rows()
    model = SAGAClassifier(random_state=0).fit(X, y)
    assert not hasattr(model.to_sklearn(), "feature_names_in_")
    np.testing.assert_array_equal(model.to_sklearn().predict(X), model.predict(X))
    with pytest.raises(ValueError, match=r"without column names; give the table's columns: to_sql\(columns"):
        model.to_sql()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "loss"), [(SAGAClassifier, CauchitLoss()), (SAGARegressor, ScaledMean())])
def test_a_loss_with_its_own_link_has_no_equivalent(kind, loss):
    X, y = make_rows()
    model = kind(loss, random_state=0).fit(X, y)
    member = "probability" if kind is SAGAClassifier else "mean"
    with pytest.raises(ValueError, match=f"defines its own `{member}`, which cannot be exported"):
        model.to_sklearn()
    with pytest.raises(ValueError, match=f"defines its own `{member}`, which cannot be exported"):
        model.to_sql(NAMES, method="predict_proba" if kind is SAGAClassifier else "predict")
    if kind is SAGAClassifier:  # its labels depend on the sign of z only
        [found] = in_database(pd.DataFrame(X, columns=NAMES), [model.to_sql(NAMES)])
        np.testing.assert_array_equal(found, model.predict(X))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("loss", [loss for loss, _ in CLASSIFIERS])
def test_sql_of_a_classifier(loss, classes):
    model, frame = classifier(loss, classes, penalty="l1", alpha=0.01)
    z = in_database(frame, np.atleast_1d(model.to_sql(method="decision_function")))
    np.testing.assert_allclose(np.squeeze(np.transpose(z)), model.decision_function(frame), rtol=1e-10)
    [found] = in_database(frame, [model.to_sql()])
    np.testing.assert_array_equal(found, model.predict(frame))
    if hasattr(model, "predict_proba"):
        p = in_database(frame, model.to_sql(method="predict_proba"))
        np.testing.assert_allclose(np.transpose(p), model.predict_proba(frame), rtol=1e-10, atol=1e-15)
    else:
        with pytest.raises(ValueError, match="has no probabilities; use method='predict'"):
            model.to_sql(method="predict_proba")


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("loss", ["squared_error", "huber", "poisson"])
def test_sql_of_a_regressor(loss, targets):
    model, frame = regressor(loss, targets)
    found = in_database(frame, np.atleast_1d(model.to_sql()))
    np.testing.assert_allclose(np.squeeze(np.transpose(found)), model.predict(frame), rtol=1e-10)


@pytest.mark.parametrize("values", [[-3, 7], [False, True], [0.0, 1.0], [10, 20, 30]])
def test_sql_labels_that_are_not_text(values):
    X, y = labels_for(len(values))
    y = np.array(values)[np.unique(y, return_inverse=True)[1]]
    model = SAGAClassifier(random_state=0).fit(X, y)
    [found] = in_database(pd.DataFrame(X, columns=NAMES), [model.to_sql(NAMES)])
    np.testing.assert_array_equal(found, model.predict(X))


@pytest.mark.parametrize("loss", ["log_loss", "modified_huber"])
@pytest.mark.parametrize("classes", [2, 4])
def test_sql_of_a_null_is_null(loss, classes):
    model, frame = classifier(loss, classes)
    frame = frame.head(3).copy()
    frame.iloc[1, 2] = None
    expressions = [model.to_sql(), *model.to_sql(method="predict_proba")]
    for column in in_database(frame, expressions):
        assert [value is None for value in column.tolist()] == [False, True, False]


def test_sql_of_many_columns_is_not_too_deep():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((5, 1500))
    model = SAGARegressor(random_state=0).fit(X, X[:, 0])
    model.coef_ = rng.standard_normal(25_000)
    model.n_features_in_ = 25_000
    expression = model.to_sql([f"c{j}" for j in range(25_000)])
    for j in range(25_000)[:3]:
        assert f'* "c{j}"' in expression
    depth = np.cumsum([(c == "(") - (c == ")") for c in expression])
    assert depth[-1] == 0
    assert depth.max() <= 4
    with sqlite3.connect(":memory:") as base:
        values = rng.standard_normal(25_000)
        given = ", ".join(f"{value!r} AS c{j}" for j, value in enumerate(values[:1500].tolist()))
        model.coef_, model.n_features_in_ = model.coef_[:1500], 1500
        [found] = base.execute(
            f"SELECT {model.to_sql([f'c{j}' for j in range(1500)])} FROM (SELECT {given})"
        ).fetchone()
    base.close()
    assert found == pytest.approx(values[:1500] @ model.coef_ + model.intercept_[0])


def test_bad_arguments():
    X, y = make_rows(classes=False)
    model = SAGARegressor(random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="columns has 2 names, but the model was fitted with 8 columns"):
        model.to_sql(["a", "b"])
    for columns in ("abcdefgh", range(8)):
        with pytest.raises(TypeError, match="columns must be a list of names"):
            model.to_sql(columns)
    with pytest.raises(ValueError, match="method='proba' is unknown; choose one of"):
        model.to_sql(NAMES, method="proba")
    with pytest.raises(ValueError, match="method='predict_proba' is for classifiers; use 'predict'"):
        model.to_sql(NAMES, method="predict_proba")


def test_sql_labels_are_those_of_the_loss():
    """The complementary log-log loss predicts its second class above another linear prediction than zero."""
    model, frame = classifier("cloglog", 2)
    z = model.decision_function(frame)
    assert ((z > 0) != (z > CloglogLoss().threshold)).any()
    [found] = in_database(frame, [model.to_sql()])
    np.testing.assert_array_equal(found, model.predict(frame))
