"""The searches on frames, in memory and on Dask: what they are given, the names of columns, and what is refused."""

import asyncio

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sparse
from dask.distributed import Client
from sklearn.linear_model import SGDClassifier

from dask_saga import SAGAClassifier, SAGARegressor, model_selection
from dask_saga.model_selection import _groups

from .conftest import make_rows

A, y = make_rows(n=1000, p=4)
NAMES = list("dbca")
FRAME = pd.DataFrame(A, columns=NAMES)
LABELS = pd.Series(y, index=np.arange(1000)[::-1], name="late")  # rows belong together by place, not by index
SEARCHES = ["HyperbandSearchCV", "IncrementalSearchCV", "InverseDecaySearchCV", "SuccessiveHalvingSearchCV"]


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flights")
    for k in range(10):  # so small that Dask reads several of one column with one task
        part = FRAME.assign(late=y, name="a carrier")[k * 100 : (k + 1) * 100]
        part.to_parquet(folder / f"{k}.parquet")
    return dd.read_parquet(folder)


def search_for(name, estimator=None, **settings):
    few = {
        "HyperbandSearchCV": {"max_iter": 4},
        "SuccessiveHalvingSearchCV": {"n_initial_parameters": 4, "n_initial_iter": 2},
    }.get(name, {"n_initial_parameters": 3, "max_iter": 3})
    estimator = SAGAClassifier(random_state=0) if estimator is None else estimator
    parameters = {"alpha": np.logspace(-6, -1, 30)}
    settings = {"test_size": 0.2, **few, **settings}
    return getattr(model_selection, name)(estimator, parameters, random_state=0, **settings)


def fitted(X, y, name="IncrementalSearchCV", **settings):
    return search_for(name, **settings).fit(X, y, classes=[-1.0, 1.0])


def check_names(search, X, target, frame=FRAME):
    best = search.best_estimator_
    assert best.feature_names_in_.tolist() == list(frame.columns)
    assert best.feature_names_in_.dtype == object
    for predictions in (best.predict(X), search.predict(X)):
        np.testing.assert_array_equal(np.asarray(predictions), best.predict(frame))
    assert search.score(X, target) > 0.7
    with pytest.raises(ValueError, match="feature names"):
        best.predict(frame[sorted(frame.columns)])
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        best.predict(frame.to_numpy())


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHES)
def test_names_survive_a_search_on_a_dask_dataframe(name, client):
    lazy = dd.from_pandas(FRAME.assign(late=y), npartitions=10)
    X = lazy[NAMES]
    search = fitted(X, lazy["late"], name)
    check_names(search, X, lazy["late"])
    # The rows are those of the arrays that the partitions hold.
    arrays = fitted(X.to_dask_array(lengths=True), lazy["late"].to_dask_array(lengths=True), name)
    assert not hasattr(arrays.best_estimator_, "feature_names_in_")
    assert search.best_params_ == arrays.best_params_
    np.testing.assert_array_equal(search.best_estimator_.coef_, arrays.best_estimator_.coef_)


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("test_size", [0.2, None])
def test_names_survive_a_search_on_pandas(name, test_size, client):
    search = fitted(FRAME, LABELS, name, test_size=test_size)
    check_names(search, FRAME, LABELS)
    arrays = fitted(A, y, name, test_size=test_size)
    np.testing.assert_array_equal(search.best_estimator_.coef_, arrays.best_estimator_.coef_)


@pytest.mark.parametrize("name", ["HyperbandSearchCV", "IncrementalSearchCV"])
def test_names_survive_with_an_asynchronous_client(name):
    lazy = dd.from_pandas(FRAME.assign(late=y), npartitions=5)

    async def run():
        settings = {"processes": False, "n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}
        async with Client(asynchronous=True, **settings):
            return [
                await fitted(X, target, name)
                for X, target in ((lazy[NAMES], lazy["late"]), (FRAME, LABELS), (A.tolist(), y.tolist()))
            ]

    *named, other = asyncio.run(run())
    for search in named:
        assert search.best_estimator_.feature_names_in_.tolist() == NAMES
        search.best_estimator_.predict(FRAME)
    assert not hasattr(other.best_estimator_, "feature_names_in_")


def test_columns_of_small_parquet_files(parquet, client):
    """Dask would read y with fewer tasks than X, and so give it fewer blocks."""
    assert len(parquet["late"].to_delayed()) < parquet.npartitions == 10
    search = fitted(parquet[NAMES], parquet["late"], "HyperbandSearchCV")
    check_names(search, parquet[NAMES], parquet["late"])
    lazy = dd.from_pandas(FRAME.assign(late=y), npartitions=10)
    same = fitted(lazy[NAMES], lazy["late"], "HyperbandSearchCV")
    np.testing.assert_array_equal(search.best_estimator_.coef_, same.best_estimator_.coef_)


def partition(k):
    part = FRAME[k * 200 : (k + 1) * 200]
    return part if k % 2 else part[sorted(NAMES)]


def test_partitions_with_columns_in_another_order(client):
    X = dd.from_map(partition, range(5), meta=FRAME[:0], enforce_metadata=False)
    target = da.from_array(y, chunks=200)
    search, same = fitted(X, target), fitted(dd.from_pandas(FRAME, npartitions=5), target)
    assert search.best_estimator_.feature_names_in_.tolist() == NAMES
    np.testing.assert_array_equal(search.best_estimator_.coef_, same.best_estimator_.coef_)


@pytest.mark.slow
def test_collections_of_different_kinds(client):
    lazy = dd.from_pandas(FRAME.assign(late=y), npartitions=5)
    X, target = da.from_array(A, chunks=(200, 4)), da.from_array(y, chunks=200)
    unknown = {"X": lazy[NAMES].to_dask_array(), "y": lazy["late"].to_dask_array()}
    expected = fitted(X, target).best_estimator_.coef_
    for given in (
        (lazy[NAMES], target),
        (X, lazy["late"]),
        (X, y),
        (X, LABELS),
        (X, y.tolist()),
        (unknown["X"], unknown["y"]),
        (unknown["X"], lazy["late"]),
        (lazy.astype({"a": "Float64"})[NAMES], lazy["late"].astype("string[pyarrow]").astype("float64")),
    ):
        np.testing.assert_allclose(fitted(*given).best_estimator_.coef_, expected, rtol=1e-8)
    blocks = X.map_blocks(sparse.COO.from_numpy)
    expected = fitted(blocks, target).best_estimator_.coef_  # steps on sparse rows are others
    np.testing.assert_allclose(fitted(blocks, lazy["late"]).best_estimator_.coef_, expected, rtol=1e-8)
    for given in ((list(A), list(y)), ([da.from_array(row, chunks=4) for row in A[:50]], y[:50]), (A, LABELS)):
        assert np.isfinite(fitted(*given).best_score_)


def test_small_and_empty_partitions(client):
    lengths = [0, 1, 300, 2, 0, 400, 8, 1, 0, 287, 1, 0]
    ends = np.cumsum(lengths)
    parts = [FRAME.assign(late=y)[end - n : end] for n, end in zip(lengths, ends, strict=True)]
    lazy = dd.from_map(lambda k: parts[k], range(len(parts)), meta=parts[0])
    search = fitted(lazy[NAMES], lazy["late"], "HyperbandSearchCV")
    assert search.best_estimator_.feature_names_in_.tolist() == NAMES
    assert search.best_score_ > 0.7


def test_joined_blocks():
    assert _groups([20, 30, 10]) == [[0], [1], [2]]
    assert _groups([0, 1, 300, 2, 0, 400, 8, 1]) == [[0, 1, 2], [3, 4, 5, 6, 7]]
    assert _groups([300, 0, 0]) == [[0, 1, 2]]
    assert _groups([3, 4]) == [[0, 1]]
    with pytest.raises(ValueError, match="X has no rows"):
        _groups([0, 0])


def test_names_of_other_kinds(client):
    numbered = fitted(pd.DataFrame(A), y)
    assert not hasattr(numbered.best_estimator_, "feature_names_in_")
    numbered.best_estimator_.predict(pd.DataFrame(A))
    for X in (pd.DataFrame(A, columns=["a", "b", "c", 0]), dd.from_pandas(pd.DataFrame(A, columns=["a", "b", "c", 0]))):
        with pytest.raises(TypeError, match="all input features have string names"):
            fitted(X, dd.from_pandas(LABELS) if isinstance(X, dd.DataFrame) else LABELS)


def test_estimators_of_others_get_names_too(client):
    lazy = dd.from_pandas(FRAME.assign(late=y), npartitions=5)
    search = fitted(lazy[NAMES], lazy["late"], estimator=SGDClassifier(loss="log_loss", random_state=0))
    assert search.best_estimator_.feature_names_in_.tolist() == NAMES
    search.best_estimator_.predict(FRAME)


@pytest.mark.slow
def test_regression_of_two_targets(client):
    targets = A[:, :2] @ np.array([[1.0, 0.0], [1.0, 2.0]])
    lazy = dd.from_pandas(pd.DataFrame(targets, columns=["one", "two"]), npartitions=5)
    for X, target in ((FRAME, targets), (dd.from_pandas(FRAME, npartitions=5), lazy)):
        search = search_for("IncrementalSearchCV", SAGARegressor(random_state=0), max_iter=6).fit(X, target)
        assert search.best_estimator_.coef_.shape == (2, 4)
        assert search.best_score_ > 0.9


@pytest.mark.parametrize(
    ("X", "target", "error", "message"),
    [
        (dask.delayed(A), y, TypeError, r"X is a Delayed; give a dask array or dataframe.*X\.compute\(\)"),
        (A, dask.delayed(y), TypeError, "y is a Delayed; give a dask array or series"),
        (A, None, ValueError, "requires y to be passed, but the target y is None"),
        (FRAME, y[:-1], ValueError, "X has 1000 rows, but y has 999"),
        (FRAME, da.from_array(y), TypeError, "y or sample_weight is a Dask collection, but X is not"),
        (dd.from_pandas(FRAME, npartitions=5), y, ValueError, "y is in memory, but X is a Dask collection whose"),
        (
            dd.from_pandas(FRAME, npartitions=5),
            da.from_array(y, chunks=((200, 100, 300, 200, 200),)),
            ValueError,
            "chunk 1: X has 200 rows, but y has 100",
        ),
        (dd.from_pandas(FRAME, npartitions=5), da.from_array(y, chunks=250), ValueError, "X has 5 blocks, but y has 4"),
        (sp.csr_matrix(A), y, TypeError, r"X is sparse and in memory.*from_array\(sparse\.COO\(X\), chunks="),
        (FRAME.assign(a="late"), y, ValueError, "^X: could not convert string to float"),
    ],
)
def test_what_a_search_refuses_early(X, target, error, message, client):
    with pytest.raises(error, match=message):
        fitted(X, target)


def test_a_search_of_no_rows(client):
    lazy = dd.from_pandas(FRAME.assign(late=y), npartitions=2)
    lazy = lazy[lazy.a > 1e6]
    with pytest.raises(ValueError, match="X has no rows"):
        fitted(lazy[NAMES], lazy["late"])


@pytest.mark.slow
def test_the_remedy_for_sparse_rows(client):
    rows = sp.csr_matrix(np.where(np.abs(A) > 1, A, 0.0))
    X = da.from_array(sparse.COO(rows), chunks=(200, -1))
    assert np.isfinite(fitted(X, y).best_score_)
