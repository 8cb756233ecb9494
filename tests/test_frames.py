"""Frames as people have them: missing values, text, dates, repeated names, and the containers of other packages."""

import asyncio
import datetime
import decimal
import warnings

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from dask.distributed import Client
from sklearn.exceptions import DataConversionWarning

from dask_saga import SAGAClassifier, SAGARegressor, saga
from dask_saga.data.bad_values import check_finite
from dask_saga.inspection import duality_gap
from dask_saga.model_selection import IncrementalSearchCV

from .conftest import make_rows
from .test_bad_input import check_refused

N = 60
A, y = make_rows(n=N, p=3)
FRAME = pd.DataFrame(A, columns=list("abc"))
EVERY_SEVENTH = np.arange(N) % 7 == 0  # 9 of 60, and 3 of each block of 20


def with_b(values, dtype=None):
    return FRAME.assign(b=pd.Series(values, dtype=dtype))


def lazy(value):
    """The same data in three blocks."""
    if isinstance(value, (pd.DataFrame, pd.Series)):
        return dd.from_pandas(value, npartitions=3)
    return da.from_array(value, chunks=(20, *value.shape[1:]))


def calls(X, y=y, sample_weight=None, kind=SAGAClassifier):
    """Yield what reads the data: the name, the estimator and the call."""
    classes = {"classes": [-1.0, 1.0]} if kind is SAGAClassifier else {}
    fitted = kind(max_iter=50, random_state=0).fit(FRAME, np.where(A[:, 0] > 0, 1.0, -1.0))
    fresh = kind(random_state=0)
    yield "fit", fresh, lambda: fresh.fit(X, y, sample_weight)
    yield "partial_fit", fresh, lambda: fresh.partial_fit(X, y, sample_weight=sample_weight, **classes)
    yield "score", fitted, lambda: fitted.score(X, y, sample_weight)
    if sample_weight is None:
        yield "predict", fitted, lambda: fitted.predict(X)
        yield "forget", fitted, lambda: fitted.forget(X=X, y=y)


def refuse(X, error, message, **others):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of missing feature names
        for name, estimator, call in calls(X, **others):
            if not ("y" in others and name in ("predict", "forget")):
                check_refused(estimator, call, error, message)


# Missing values


def missing(values, as_dtype):
    return with_b(np.where(EVERY_SEVENTH, None, values), dtype=as_dtype)


MISSING = {
    "NaN": with_b(np.where(EVERY_SEVENTH, np.nan, 1.0)),
    "None among objects": missing(1, object),
    "None among text": missing("1", object),
    "Int64": missing(1, "Int64"),
    "Float64": missing(1.0, "Float64"),
    "boolean": missing(True, "boolean"),
    "Arrow": missing(1.0, "double[pyarrow]"),
    "Arrow integers": missing(1, "int64[pyarrow]"),
}


@pytest.mark.parametrize("case", MISSING)
def test_missing_values_are_counted_by_column(case):
    X = MISSING[case]
    refuse(X, ValueError, r"X contains NaN: 9 missing values in column 'b'; drop these rows .*SimpleImputer")
    model = SAGARegressor()
    check_refused(
        model,
        lambda: model.fit(lazy(X), lazy(y)),
        ValueError,
        "^chunk 0: X contains NaN: 3 missing values in column 'b'",
    )


def test_the_chunk_of_the_missing_values():
    X, weights = FRAME.copy(), np.ones(N)
    X.loc[45, "c"] = np.nan
    model = SAGARegressor(max_iter=50, random_state=0).fit(FRAME, A[:, 0])
    message = "^chunk 2: X contains NaN: 1 missing value in column 'c'"
    for data in (lazy(X), lazy(X).to_dask_array(lengths=True)):
        column = message if isinstance(data, dd.DataFrame) else message.replace("'c'", "2")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # arrays have no names
            check_refused(model, lambda d=data: model.fit(d, lazy(y)), ValueError, column)
            check_refused(model, lambda d=data: model.predict(d).compute(), ValueError, column)
            check_refused(model, lambda d=data: model.score(d, lazy(y)), ValueError, column)
    weights[45] = np.nan
    with pytest.raises(ValueError, match=r"^chunk 2: sample_weight contains NaN: 1 missing value; give a weight"):
        SAGARegressor().fit(lazy(A), lazy(y), lazy(weights))
    for kind, text in ((SAGARegressor, "y contains NaN: 1"), (SAGAClassifier, "y contains NaN: 1")):
        with pytest.raises(ValueError, match=f"^chunk 2: {text} missing value; drop or correct"):
            kind().fit(lazy(A), lazy(np.where(np.arange(N) == 45, np.nan, y)))
    with pytest.raises(ValueError, match=r"^chunk '7': X contains NaN: 1 missing value in column 'c'"):
        SAGARegressor().partial_fit(X, y, chunk_id="7")
    with pytest.raises(ValueError, match=r"^chunk 1: X contains NaN: 1 missing value in column 2"):
        saga([(A, y), (X, y)])


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_array, np.asfortranarray, lambda X: X.astype(np.float32)])
@pytest.mark.parametrize(("value", "text"), [(np.nan, "NaN: 7 missing values"), (np.inf, "infinity: 7 values")])
def test_many_columns_are_named_in_part(convert, value, text):
    X = np.random.default_rng(0).standard_normal((N, 9))
    X[3, :6], X[50, 0] = value, -value
    X = convert(X)
    message = f"X contains {text} in the columns 0, 1, 2, 3, 4 and 1 more; "
    model = SAGARegressor()
    check_refused(model, lambda: model.fit(X, y), ValueError, message)
    check_refused(model, lambda: model.partial_fit(X, y), ValueError, message)


def test_infinity_and_huge_values():
    refuse(
        with_b(np.where(EVERY_SEVENTH, np.inf, 1.0)), ValueError, "X contains infinity: 9 values in column 'b'; correct"
    )
    model = SAGARegressor()
    huge = with_b(np.where(EVERY_SEVENTH, 1e200, 1.0))
    for X in (huge, lazy(huge)):
        with pytest.raises(ValueError, match=r"X has values beyond 1e\+50 in column 'b'; give it in larger units"):
            model.fit(X, lazy(y) if X is not huge else y)
    check_finite(np.full(3, 1e308))  # the sum overflows


@pytest.mark.parametrize("kind", [SAGAClassifier, SAGARegressor])
def test_missing_targets_and_weights(kind):
    targets = np.where(EVERY_SEVENTH, np.nan, y)
    refuse(FRAME, ValueError, r"y contains NaN: 9 missing values; drop or correct them", y=targets, kind=kind)
    weights = np.where(EVERY_SEVENTH, np.nan, 1.0)
    refuse(FRAME, ValueError, "sample_weight contains NaN: 9 missing values", sample_weight=weights, kind=kind)
    labels = pd.Series(np.where(EVERY_SEVENTH, None, "a"))
    for data, target in ((FRAME, labels), (lazy(FRAME), lazy(labels))):
        with pytest.raises(ValueError, match=r"y contains missing labels \([39] of NaN, None or NA\); drop these rows"):
            SAGAClassifier().fit(data, target)


def test_masked_entries_are_missing():
    masked = np.ma.masked_array(A, mask=np.repeat(EVERY_SEVENTH[:, None], 3, axis=1))
    for X in (masked, da.from_array(masked, chunks=(20, 3))):
        with pytest.raises(ValueError, match=r"X contains NaN: (27|9) missing values in the columns 0, 1, 2"):
            SAGARegressor().fit(X, y if X is masked else lazy(y))
    with pytest.raises(ValueError, match="y contains NaN: 9 missing values"):
        SAGARegressor().fit(A, np.ma.masked_array(y, mask=EVERY_SEVENTH))
    plain = SAGARegressor(random_state=0).fit(A, y)
    np.testing.assert_array_equal(SAGARegressor(random_state=0).fit(np.ma.masked_array(A), y).coef_, plain.coef_)


# Columns that are no numbers

DAYS = pd.Series(pd.Timestamp("2020-01-01") + pd.to_timedelta(np.arange(N), unit="D"))
DATES = "X has dates or times in column 'b' .*; give numbers, such as the days"
TEXT = "could not convert string to float: 'x' in column 'b'; encode text"
NO_NUMBERS = {
    "dates": (with_b(DAYS), TypeError, DATES),
    "dates with a zone": (with_b(DAYS.dt.tz_localize("UTC")), TypeError, DATES),
    "dates alone": (pd.DataFrame({"a": DAYS, "b": DAYS, "c": DAYS}), TypeError, "in the columns 'a', 'b', 'c'"),
    "durations": (with_b(DAYS - DAYS[0]), TypeError, "X has durations in column 'b' .*such as seconds"),
    "periods": (with_b(DAYS.dt.to_period("D")), TypeError, DATES),
    "Arrow dates": (with_b(DAYS.astype("timestamp[us][pyarrow]")), TypeError, DATES),
    "complex": (with_b(np.full(N, 1j)), ValueError, "Complex data not supported: X has complex numbers in column 'b'"),
    "text": (with_b(["x"] * N), ValueError, TEXT),
    "text objects": (with_b(["x"] * N, object), ValueError, TEXT),
    "text at the end": (with_b(["1"] * 59 + ["x"]), ValueError, TEXT),
    "Arrow text": (with_b(["x"] * N, "string[pyarrow]"), ValueError, TEXT),
    "text categories": (with_b(["x"] * N, "category"), ValueError, TEXT),
    "arrays of text": (np.full((N, 3), "x"), ValueError, "could not convert .* in the columns 0, 1, 2; encode text"),
    "arrays of dates": (np.repeat(DAYS.to_numpy()[:, None], 3, 1), TypeError, "X has dates or times \\(datetime64"),
}


@pytest.mark.parametrize("case", NO_NUMBERS)
def test_columns_that_are_no_numbers(case):
    X, error, message = NO_NUMBERS[case]
    refuse(X, error, message)
    model = SAGARegressor()
    check_refused(model, lambda: model.fit(lazy(X), lazy(y)), error, message)


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (datetime.date(2020, 1, 1), "'datetime.date' in column 'b'; give numbers, such as the days"),
        ({}, "'dict' in column 'b'; give numbers"),
    ],
)
def test_objects_that_are_no_numbers(value, advice):
    refuse(with_b([value] * N, object), TypeError, advice)


def test_dates_as_targets_and_weights():
    for other in (DAYS, DAYS.to_numpy(), DAYS - DAYS[0]):
        with pytest.raises(TypeError, match=r"y has (dates or times|durations).*give numbers"):
            SAGARegressor().fit(FRAME, other)
        with pytest.raises(TypeError, match=r"sample_weight has (dates or times|durations).*give numbers"):
            SAGARegressor().fit(FRAME, y, other)


def test_targets_and_weights_that_are_text():
    for other in (
        pd.Series(["x"] * N),
        np.array(["x"] * N),
        np.array(["x"] * N, dtype=object),
        pd.Series(["x"] * N, dtype="category"),
    ):
        with pytest.raises(ValueError, match=r"y: .*; give numbers, or use SAGAClassifier, whose labels may be text"):
            SAGARegressor().fit(FRAME, other)
        with pytest.raises(ValueError, match=r"sample_weight: .*; give numbers$"):
            SAGARegressor().fit(FRAME, y, other)


def test_names_and_series_in_place_of_data():
    for X, target, name in ((FRAME, "late", "y"), (lazy(FRAME), "late", "y"), ("rows.parquet", y, "X")):
        with pytest.raises(TypeError, match=f"^{name} is a str; give .*the column of that name"):
            SAGAClassifier().fit(X, target)
    with pytest.raises(ValueError, match=r"a single column is X\.to_frame\(\)"):
        SAGARegressor().fit(lazy(FRAME)["a"], lazy(y))


NUMBERS = {
    "bool": EVERY_SEVENTH,
    "Int64": pd.array(np.arange(N), dtype="Int64"),
    "boolean": pd.array(EVERY_SEVENTH, dtype="boolean"),
    "Float64": pd.array(A[:, 1], dtype="Float64"),
    "Arrow double": pd.array(A[:, 1], dtype="double[pyarrow]"),
    "Arrow integers": pd.array(np.arange(N), dtype="int64[pyarrow]"),
    "Arrow bool": pd.array(EVERY_SEVENTH, dtype="bool[pyarrow]"),
    "numeric categories": pd.Categorical(np.arange(N) % 3),
    "Decimal": pd.Series([decimal.Decimal(k) for k in range(N)], dtype=object),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_columns_that_are_numbers(case):
    X = FRAME.assign(b=NUMBERS[case])
    plain = SAGAClassifier(random_state=0).fit(X.astype(float).to_numpy(), y)
    for data, target in ((X, y), (lazy(X), lazy(y))):
        model = SAGAClassifier(random_state=0).fit(data, target)
        np.testing.assert_array_equal(model.coef_, plain.coef_) if data is X else None
        assert model.feature_names_in_.tolist() == list("abc")
        assert model.score(data, target) == plain.score(X.astype(float).to_numpy(), y)


def test_a_dask_frame_of_arrow_types():
    X = dd.from_pandas(FRAME.astype("double[pyarrow]"), npartitions=3)
    target = dd.from_pandas(pd.Series(y).astype("double[pyarrow]"), npartitions=3)
    plain = SAGAClassifier(random_state=0).fit(lazy(FRAME), lazy(y))
    model = SAGAClassifier(random_state=0).fit(X, target)
    np.testing.assert_array_equal(model.coef_, plain.coef_)
    np.testing.assert_array_equal(model.predict(X).compute(), plain.predict(FRAME))


def test_repeated_names():
    X = pd.concat([FRAME, FRAME[["a"]]], axis=1)
    message = "^(X: )?X has several columns named 'a'; rename them, or keep one of each$"
    model = SAGARegressor()
    check_refused(model, lambda: model.fit(lazy(X), lazy(y)), ValueError, message)
    refuse(X, ValueError, message)
    fitted = SAGARegressor(max_iter=50).fit(FRAME, y)
    with pytest.raises(ValueError, match=message):
        fitted.predict(lazy(X))


# Messages, once


@pytest.mark.parametrize("method", ["fit", "fit on Dask", "fit on a frame", "partial_fit", "lists"])
def test_the_column_vector_warning_comes_once(method):
    column = y[:, None]
    model = SAGAClassifier(random_state=0, class_weight={-1.0: 1.0, 1.0: 2.0})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if method == "fit":
            model.fit(A, column)
        elif method == "fit on Dask":
            model.fit(lazy(A), lazy(column))
        elif method == "fit on a frame":
            model.fit(lazy(FRAME), lazy(pd.DataFrame(column)))
        elif method == "lists":
            model.fit(A.tolist(), column.tolist())
        else:
            model.partial_fit(A, column, classes=[-1.0, 1.0])
    [warning] = caught
    assert warning.category is DataConversionWarning
    assert "column-vector y" in str(warning.message)
    assert warning.filename == __file__


def test_an_asynchronous_client():
    X, target = lazy(A), lazy(y)
    model = SAGAClassifier(random_state=0, fit_intercept=False, alpha=0.1).fit(A, y)

    async def run():
        settings = {"processes": False, "n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}
        async with Client(asynchronous=True, **settings):
            waiting = [
                lambda: SAGAClassifier().fit(X, target),
                lambda: model.score(X, target),
                lambda: duality_gap(model, X, target),
                lambda: saga([(X, target)]),
                lambda: SAGAClassifier().fit([da.from_array(row) for row in A], y),
                lambda: SAGAClassifier().partial_fit(A, y, classes=da.from_array(np.array([-1.0, 1.0]))),
            ]
            for call in waiting:
                with pytest.raises(RuntimeError, match=r"client is asynchronous.*asyncio\.to_thread"):
                    call()
            SAGAClassifier(random_state=0).fit(A, y)  # waits for nothing
            model.predict(X)
            return await asyncio.to_thread(SAGAClassifier(random_state=0).fit, X, target)

    plain = SAGAClassifier(random_state=0).fit(X, target)
    np.testing.assert_array_equal(asyncio.run(run()).coef_, plain.coef_)


# Containers of other packages


def frames_of(name):
    """A frame of another package, its labels, and the same with a missing value."""
    gaps = with_b(np.where(EVERY_SEVENTH, np.nan, 1.0))
    if name == "polars":
        polars = pytest.importorskip("polars")
        return polars.from_pandas(FRAME), polars.Series(y), polars.from_pandas(gaps)
    pyarrow = pytest.importorskip("pyarrow")
    if name == "Arrow table":
        return pyarrow.Table.from_pandas(FRAME), pyarrow.chunked_array([y]), pyarrow.Table.from_pandas(gaps)
    return pyarrow.RecordBatch.from_pandas(FRAME), pyarrow.array(y), pyarrow.RecordBatch.from_pandas(gaps)


@pytest.mark.parametrize("name", ["polars", "Arrow table", "Arrow batch"])
def test_frames_of_other_packages(name):
    X, labels, gaps = frames_of(name)
    plain = SAGAClassifier(random_state=0).fit(FRAME, y)
    model = SAGAClassifier(random_state=0).fit(X, labels, sample_weight=labels.to_numpy() * 0 + 1)
    np.testing.assert_allclose(model.coef_, plain.coef_, rtol=1e-9)
    assert model.feature_names_in_.tolist() == list("abc")
    for data in (X, FRAME):  # names of one are those of the other
        np.testing.assert_array_equal(model.predict(data), plain.predict(FRAME))
    assert model.score(X, labels) == plain.score(FRAME, y)
    learned = SAGAClassifier(random_state=0).partial_fit(X, labels, classes=[-1.0, 1.0]).partial_fit(FRAME, y)
    assert len(learned.state_.chunks) == 1
    refuse(gaps, ValueError, "X contains NaN: 9 missing values in column 'b'")
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(FRAME.rename(columns={"a": "other"}))


def test_columns_of_polars_and_arrow_that_are_no_numbers():
    polars, pyarrow = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    frame = polars.from_pandas(FRAME)
    for values in (datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1), datetime.time(1)):
        refuse(frame.with_columns(b=polars.lit(values)), TypeError, "X has dates or times in column 'b'")
    refuse(frame.with_columns(b=polars.lit("x")), ValueError, "in column 'b'; encode text")
    refuse(pyarrow.Table.from_pandas(with_b(DAYS)), TypeError, "X has dates or times in column 'b' \\(timestamp")
    refuse(pyarrow.Table.from_pandas(with_b(["x"] * N)), ValueError, "in column 'b'; encode text")
    with pytest.raises(TypeError, match=r"^X is a polars LazyFrame; give .* or its value: X\.collect\(\)$"):
        SAGARegressor().fit(frame.lazy(), y)
    reader = pyarrow.Table.from_pandas(FRAME).to_reader()
    with pytest.raises(TypeError, match=r"^X is a pyarrow RecordBatchReader; give .* or its value: X\.read_all\(\)$"):
        SAGARegressor().fit(reader, y)
    with pytest.raises(TypeError, match=r"^X is a dict; give .* or a frame: pandas\.DataFrame\(X\)$"):
        SAGARegressor().fit({"a": A[:, 0]}, y)


@pytest.mark.parametrize("chunked", [False, True])
def test_data_arrays(chunked, client):
    xarray = pytest.importorskip("xarray")
    X = xarray.DataArray(A, dims=("time", "feature"), coords={"feature": list("abc")})
    labels = xarray.DataArray(y, dims="time")
    target = A @ [1.0, 2.0, 3.0]
    data, b = (X.chunk({"time": 20}), labels.chunk({"time": 20})) if chunked else (X, labels)
    plain = SAGAClassifier(random_state=0).fit(*((lazy(FRAME), lazy(y)) if chunked else (FRAME, y)))
    model = SAGAClassifier(random_state=0).fit(data, b, sample_weight=b * 0 + 1)
    np.testing.assert_allclose(model.coef_, plain.coef_, rtol=1e-9)
    assert model.feature_names_in_.tolist() == list("abc")
    predicted = model.predict(data)
    assert dask.is_dask_collection(predicted) == chunked
    np.testing.assert_array_equal(np.asarray(predicted), plain.predict(FRAME))
    assert model.score(data, b) == plain.score(FRAME, y)
    assert np.isfinite(duality_gap(SAGARegressor(fit_intercept=False).fit(data, target[:, None]), data, b))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(data.assign_coords(feature=list("abd")))
    search = IncrementalSearchCV(SAGAClassifier(random_state=0), {"alpha": [1e-4]}, 1, max_iter=2, test_size=0.2)
    assert search.fit(data, b, classes=[-1.0, 1.0]).best_estimator_.feature_names_in_.tolist() == list("abc")
    if chunked:
        with pytest.raises(TypeError, match="X is a Dask collection; partial_fit takes one chunk"):
            model.partial_fit(data, b)
    else:
        assert len(SAGARegressor().partial_fit(data, b).partial_fit(FRAME, y).state_.chunks) == 1


def test_data_arrays_without_names():
    xarray = pytest.importorskip("xarray")
    for coords in ({}, {"feature": [1, 2, 3]}):
        X = xarray.DataArray(A, dims=("time", "feature"), coords=coords)
        assert not hasattr(SAGARegressor().fit(X, y), "feature_names_in_")
    result = saga([(X, xarray.DataArray(y)), (X.chunk({"time": 20}), y)], max_iter=5, random_state=0)
    np.testing.assert_array_equal(result.x, saga([(A, y), (lazy(A), y)], max_iter=5, random_state=0).x)
    with pytest.raises(ValueError, match="Expected 2D array for X, got 1D array"):
        SAGARegressor().fit(X.chunk()[:, 0], y)


def test_zarr_arrays(tmp_path):
    zarr = pytest.importorskip("zarr")
    stored = zarr.open(str(tmp_path / "rows.zarr"), mode="w", shape=A.shape, chunks=(20, 3), dtype="f8")
    stored[:] = A
    plain = SAGAClassifier(random_state=0).fit(A, y)
    model = SAGAClassifier(random_state=0).fit(stored, y)
    np.testing.assert_array_equal(model.coef_, plain.coef_)
    np.testing.assert_array_equal(model.predict(stored), plain.predict(A))
    chunked = da.from_zarr(str(tmp_path / "rows.zarr"))
    expected = SAGAClassifier(random_state=0).fit(lazy(A), lazy(y))
    np.testing.assert_array_equal(SAGAClassifier(random_state=0).fit(chunked, lazy(y)).coef_, expected.coef_)


# float32


def all_predictions(model, X):
    names = ["predict", "decision_function", "predict_proba"]
    if getattr(model, "loss", None) == "log_loss":  # the others may give the probability 0
        names.append("predict_log_proba")
    return {name: getattr(model, name)(X) for name in names if hasattr(model, name)}


THREE = np.digitize(A[:, 0], [-0.5, 0.5])
MODELS = {
    "two classes": (SAGAClassifier(random_state=0), y),
    "three classes": (SAGAClassifier(random_state=0), THREE),
    "one-vs-rest": (SAGAClassifier(loss="modified_huber", random_state=0), THREE),
    "numbers": (SAGARegressor(random_state=0), A[:, 0]),
    "counts": (SAGARegressor(loss="poisson", random_state=0), np.abs(y)),
    "two targets": (SAGARegressor(random_state=0), A[:, :2]),
}


@pytest.mark.parametrize("case", MODELS)
def test_float32_rows_give_float32_predictions(case):
    model, target = MODELS[case]
    single = FRAME.astype(np.float32)
    model.fit(FRAME.to_numpy(), target)
    assert model.coef_.dtype == np.float64
    expected = all_predictions(model, single.to_numpy().astype(float))
    containers = [single.to_numpy(), sp.csr_array(single.to_numpy()), lazy(single.to_numpy()), lazy(single)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of feature names
        for X in containers:
            for name, given in all_predictions(model, X).items():
                labels = name == "predict" and isinstance(model, SAGAClassifier)
                dtype = model.classes_.dtype if labels else np.float32
                assert given.dtype == dtype, name
                if dask.is_dask_collection(given):
                    assert given._meta.dtype == dtype
                    given = given.compute()
                    assert given.dtype == dtype
                np.testing.assert_allclose(given, expected[name], rtol=1e-4, atol=1e-5)
    for name, given in expected.items():
        assert given.dtype == (model.classes_.dtype if hasattr(model, "classes_") and name == "predict" else np.float64)


def test_float32_rows_far_from_zero_lose_no_digits():
    rows = (1e6 + np.arange(1000.0))[:, None].astype(np.float32)
    model = SAGARegressor(alpha=0.0, random_state=0, tol=1e-8).fit(rows, rows[:, 0] - 1e6)
    assert np.abs(model.predict(rows) - np.arange(1000.0)).max() < 1e-2


def test_partitions_of_another_type_than_the_meta_says():
    single = FRAME.astype(np.float32)
    X = dd.from_map(lambda k: FRAME if k else single, range(2), meta=single[:0], enforce_metadata=False)
    predicted = SAGARegressor(random_state=0).fit(FRAME, y).predict(X)
    assert predicted.dtype == predicted.compute().dtype == np.float32
