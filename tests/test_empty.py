"""Zero rows: they are predicted as zero predictions, change no estimator, and cannot be fitted."""

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sparse
from dask_ml.wrappers import Incremental, ParallelPostFit

from dask_saga import SAGAClassifier, SAGARegressor, saga
from dask_saga.inspection import duality_gap
from dask_saga.losses import MultinomialLogLoss

from .conftest import make_rows

A, y = make_rows(n=60, p=3)
three = np.digitize(A[:, 0], [-0.5, 0.5])
FRAME = pd.DataFrame(A, columns=list("abc"))
X, labels = da.from_array(A, chunks=(20, 3)), da.from_array(y, chunks=20)
lazy = dd.from_pandas(FRAME.assign(y=y, number=np.arange(60)), npartitions=3)
NONE = lazy[lazy.a > 1e6]

ROWS = {
    "numpy": lambda: A[:0],
    "float32": lambda: A[:0].astype("f4"),
    "Fortran order": lambda: np.asfortranarray(A)[:0],
    "CSR": lambda: sp.csr_array(A)[:0],
    "CSC": lambda: sp.csc_matrix(A)[:0],
    "COO": lambda: sparse.COO.from_numpy(A)[:0],
    "filtered frame": lambda: FRAME[FRAME.a > 1e6],
    "frame of objects": lambda: pd.DataFrame(columns=list("abc")),
}
MODELS = {
    "two classes": (lambda: SAGAClassifier(random_state=0), y),
    "labels that are strings": (lambda: SAGAClassifier(random_state=0), np.where(y > 0, "late", "on time")),
    "three classes": (lambda: SAGAClassifier(random_state=0), three),
    "one-vs-rest": (lambda: SAGAClassifier(loss="modified_huber", tol=1e-2, random_state=0), three),
    "regression": (lambda: SAGARegressor(random_state=0), A[:, 0]),
    "two targets": (lambda: SAGARegressor(random_state=0), A[:, :2]),
    "poisson": (lambda: SAGARegressor(loss="poisson", random_state=0), y + 1.0),
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("case", MODELS)
@pytest.mark.filterwarnings("ignore:divide by zero encountered in log")  # of five rows, by "modified_huber"
def test_predictions_of_no_rows(case, kind):
    make, target = MODELS[case]
    rows = ROWS[kind]()
    model = make().fit(FRAME if hasattr(rows, "columns") else A, target)
    checked = 0
    for name in ("predict", "decision_function", "predict_proba", "predict_log_proba"):
        if not hasattr(model, name):
            continue
        method = getattr(model, name)
        five = FRAME[:5] if hasattr(rows, "columns") else A[:5].astype(rows.dtype)
        some, none = method(five), method(rows)
        assert isinstance(none, np.ndarray)
        assert none.shape == (0, *some.shape[1:])
        assert none.dtype == some.dtype
        checked += 1
    assert checked == (4 if isinstance(model, SAGAClassifier) else 1)


@pytest.mark.parametrize("rows", [FRAME.iloc[:0, :2], FRAME[:0].rename(columns={"c": "z"}), np.empty((0, 0)), []])
def test_no_rows_are_checked_as_rows_are(rows):
    model = SAGARegressor(random_state=0).fit(FRAME, y)
    with pytest.raises(ValueError, match=r"feature names|0 feature\(s\)|2D array"):
        model.predict(rows)


@pytest.mark.parametrize("kind", [SAGAClassifier, SAGARegressor])
def test_dask_ml_predicts_a_filtered_frame(kind, client):
    model = kind(random_state=0).fit(lazy[list("abc")], lazy["y"])
    classes = {"classes": [-1.0, 1.0]} if kind is SAGAClassifier else {}
    incremental = Incremental(kind(random_state=0)).fit(lazy[list("abc")], lazy["y"], **classes)
    for limit in (A[25, 0], 1e6):
        some = lazy[lazy.a >= limit][list("abc")]
        expected = model.predict(some.compute())
        assert len(expected) == (0 if limit == 1e6 else np.sum(A[:, 0] >= limit))
        for predictions in (
            model.predict(some),
            ParallelPostFit(model).predict(some),
            some.map_partitions(model.predict, meta=np.empty(0)),
        ):
            np.testing.assert_array_equal(np.asarray(predictions.compute()), expected)
        assert len(incremental.predict(some).compute()) == len(expected)
        assert len(incremental.predict(some.compute())) == len(expected)


@pytest.mark.parametrize("kind", [SAGAClassifier, SAGARegressor])
def test_score_of_no_rows(kind):
    model = kind(random_state=0).fit(FRAME, y)
    for rows, target in ((FRAME[:0], y[:0]), (NONE[list("abc")], NONE.y)):
        with pytest.raises(ValueError, match="X has no rows"):
            model.score(rows, target)


NO_ROWS = {
    "in memory": (A[:0], y[:0]),
    "list as y": (A[:0], []),
    "with weights": (A[:0], y[:0], y[:0]),
    "sparse": (sp.csr_array(A)[:0], y[:0]),
    "frame": (FRAME[:0], pd.Series(y[:0])),
    "strings": (A[:0], np.array([], dtype="U3")),
    "categories": (A[:0], pd.Series([], dtype="category")),
    "nullable integers": (A[:0], pd.Series([], dtype="Int64")),
    "dask array": (X[:0], labels[:0]),
    "dask array, unknown lengths": (X[X[:, 0] > 1e6], labels[X[:, 0] > 1e6]),
    "dask dataframe": (NONE[list("abc")], NONE["y"]),
    "one partition": (NONE[list("abc")].repartition(npartitions=1), NONE["y"].repartition(npartitions=1)),
}
ESTIMATORS = {
    "classifier": SAGAClassifier(),
    "balanced": SAGAClassifier(class_weight="balanced"),
    "multinomial": SAGAClassifier(loss=MultinomialLogLoss(3)),
    "regressor": SAGARegressor(),
}


@pytest.mark.parametrize("case", NO_ROWS)
@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("persist", ["auto", False])
def test_fit_of_no_rows(case, name, persist):
    model = ESTIMATORS[name]
    with pytest.raises(ValueError, match=r"^X has no rows$"):
        model.fit(*NO_ROWS[case], persist=persist)
    assert not hasattr(model, "n_features_in_")


@pytest.mark.parametrize("case", ["in memory", "frame", "dask dataframe"])
def test_fit_of_no_rows_with_warm_start(case):
    model = SAGAClassifier(warm_start=True, random_state=0).fit(FRAME if case != "in memory" else A, y)
    before = model.coef_
    with pytest.raises(ValueError, match=r"^X has no rows$"):
        model.fit(*NO_ROWS[case])
    assert model.coef_ is before


@pytest.mark.parametrize("kind", [SAGAClassifier, SAGARegressor])
@pytest.mark.parametrize(
    ("rows", "target", "message"),
    [
        (A, y[:0], "X has 60 rows, but y has 0"),
        (A[:0], y, "X has 0 rows, but y has 60"),
        (X, labels[:0], "X has 60 rows, but y has 0"),
        (lazy[list("abc")], NONE["y"], "chunk 0: X has 20 rows, but y has 0"),
        (NONE[list("abc")], lazy["y"], "chunk 0: X has 0 rows, but y has 20"),
        (A[:0, :0], y[:0], r"X: Found array with 0 feature\(s\)"),
    ],
)
def test_fit_where_only_one_is_empty(rows, target, message, kind):
    with pytest.raises(ValueError, match=message):
        kind().fit(rows, target)


@pytest.mark.parametrize("kind", [SAGAClassifier, SAGARegressor])
def test_some_empty_partitions_are_no_error(kind):
    whole = kind(random_state=0).fit(A, y)
    frame = lazy[(lazy.number < 20) | (lazy.number >= 40)]
    some = kind(random_state=0).fit(frame[list("abc")], frame["y"])
    rows = np.r_[0:20, 40:60]
    assert some.score(FRAME.iloc[rows], y[rows]) > whole.score(A, y) - 0.2
    assert [len(memory.gradients) for memory in some.state_.chunks.values()] == [20, 0, 20]


def test_duality_gap_of_no_rows():
    model = SAGARegressor(fit_intercept=False, random_state=0).fit(FRAME, y)
    for arguments in ((FRAME[:0], y[:0]), (NONE[list("abc")], NONE["y"]), (FRAME, y, np.zeros(60))):
        with pytest.raises(ValueError, match="X has no rows of positive weight"):
            duality_gap(model, *arguments)
    assert np.isfinite(duality_gap(model, FRAME, y))


@pytest.mark.parametrize("kind", [SAGAClassifier, SAGARegressor])
@pytest.mark.parametrize("method", ["fit", "partial_fit", "predict"])
def test_missing_values_name_the_column(method, kind):
    rows = A.copy()
    rows[25, 1] = np.nan
    model = kind(random_state=0)
    classes = {"classes": [-1.0, 1.0]} if method == "partial_fit" and kind is SAGAClassifier else {}
    if method == "predict":
        model.fit(A, y)
    for one in (rows, sp.csr_array(rows)):
        with pytest.raises(ValueError, match="X contains NaN: 1 missing value in column 1; drop"):
            getattr(model, method)(one, *([] if method == "predict" else [y]), **classes)


@pytest.mark.parametrize("kind", [SAGAClassifier, SAGARegressor])
@pytest.mark.parametrize("weights", [None, np.arange(60) != 25.0])
def test_missing_values_name_the_column_and_the_chunk(kind, weights, client):
    rows = A.copy()
    rows[25, 1] = np.nan
    weights = weights if weights is None else da.from_array(weights, chunks=20)
    for scheduler in ("threads", client):
        with dask.config.set(scheduler=scheduler), pytest.raises(ValueError, match=r"^chunk 1: X contains NaN: 1"):
            kind().fit(da.from_array(rows, chunks=(20, 3)), labels, weights)


@pytest.mark.parametrize("count", [1, 2])
def test_missing_values_in_saga_name_the_chunk(count):
    rows = A.copy()
    rows[-1, 1] = np.nan
    with pytest.raises(ValueError, match=f"chunk {count - 1}: X contains NaN: 1 missing value in column 1;"):
        saga(list(zip(np.array_split(rows, count), np.array_split(y, count), strict=True)))


def test_other_errors_of_values_stay():
    rows = A.copy()
    rows[25, 1] = 1e200
    with pytest.raises(ValueError, match=r"^X has values beyond 1e"):
        SAGARegressor().fit(rows, y)
