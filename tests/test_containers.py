"""What is no array or frame is refused with one message by every method; lists that hold data go on working."""

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

from dask_saga import SAGAClassifier, SAGARegressor, saga
from dask_saga.data.containers import check_containers
from dask_saga.inspection import duality_gap

from .conftest import make_rows

A, y = make_rows(n=60, p=3)
METHODS = ["fit", "partial_fit", "predict", "decision_function", "score", "forget", "duality_gap"]


class Dataset:
    """Looks like xarray's, which need not be installed."""

    __module__ = "xarray.core.dataset"


class Sub(Dataset):
    """A subclass from another package."""

    __module__ = "elsewhere"


REFUSED = {
    "Delayed": lambda values, client: dask.delayed(values),
    "list of Delayed": lambda values, client: [dask.delayed(value) for value in values],
    "tuple of Delayed": lambda values, client: tuple(dask.delayed(value) for value in values),
    "list of rows of Delayed": lambda values, client: [[dask.delayed(value)] for value in values],
    "Delayed beside numbers": lambda values, client: [1.0, dask.delayed(2.0)],
    "Future": lambda values, client: client.scatter(values),
    "list of Future": lambda values, client: client.scatter(list(values)),
    "Bag": lambda values, client: db.from_sequence(values.tolist(), npartitions=2),
    "Item": lambda values, client: db.from_sequence(values.tolist(), npartitions=2).count(),
    "Dataset": lambda values, client: Dataset(),
    "subclass of Dataset": lambda values, client: Sub(),
}
MESSAGES = {
    "Delayed": "{0} is a Delayed; give a dask array or {1}, or delayed pairs to saga, or its value: {0}.compute()",
    "list of Delayed": "{0} is a list of Delayed; give a dask array or {1}, or delayed pairs to saga, "
    "or their values: dask.compute(*{0})",
    "tuple of Delayed": "{0} is a tuple of Delayed; give a dask array or {1}, or delayed pairs to saga, "
    "or their values: dask.compute(*{0})",
    "Future": "{0} is a Future; give a dask array or {1}, or futures of pairs to saga, or its value: {0}.result()",
    "list of Future": "{0} is a list of Future; give a dask array or {1}, or futures of pairs to saga, "
    "or their values: client.gather({0})",
    "Bag": "{0} is a dask Bag; give a dask array or {1}, or columns of {0}.to_dataframe()",
    "Item": "{0} is a dask Item; give a dask array or {1}, or its value: {0}.compute()",
    "Dataset": "{0} is an xarray Dataset; give a dask array or {1}, or columns of {0}.to_dataframe() "
    "or {0}.to_dask_dataframe()",
}
SAME_MESSAGE = {
    "list of rows of Delayed": "list of Delayed",
    "Delayed beside numbers": "list of Delayed",
    "subclass of Dataset": "Dataset",
}


def message_for(case, name):
    text = MESSAGES[SAME_MESSAGE.get(case, case)].format(name, "dataframe" if name == "X" else "series")
    if name == "sample_weight":
        text = text.replace(", or delayed pairs to saga", "").replace(", or futures of pairs to saga", "")
    return text


def call(kind, method, arguments):
    settings = {"alpha": 1e-2, "fit_intercept": False, "max_iter": 3, "tol": 1.0, "random_state": 0}
    model = kind(**settings)
    if method == "partial_fit" and kind is SAGAClassifier:
        arguments = {**arguments, "classes": [-1.0, 1.0]}
    if method not in ("fit", "partial_fit"):
        model.fit(A, y)
    if method == "duality_gap":
        return duality_gap(model, **arguments)
    return getattr(model, method)(**arguments)


def cases():
    for method in METHODS:
        names = {"predict": "X", "decision_function": "X", "forget": "Xy"}.get(method, ("X", "y", "sample_weight"))
        for name in names:
            for kind in [SAGAClassifier] if method == "decision_function" else [SAGAClassifier, SAGARegressor]:
                yield pytest.param(kind, method, name, names, id=f"{kind.__name__}-{method}-{name}")


@pytest.mark.parametrize(("kind", "method", "name", "names"), list(cases()))
def test_every_method_refuses_what_is_no_array(kind, method, name, names, client):
    good = {"X": A, "y": y, "sample_weight": np.ones(60)}
    for case, make in REFUSED.items():
        arguments = {key: good[key] for key in names} | {name: make(good[name], client)}
        with pytest.raises(TypeError) as caught:
            call(kind, method, arguments)
        assert str(caught.value) == message_for(case, name)


@pytest.mark.parametrize("name", ["y", "sample_weight"])
def test_beside_a_dask_array(name):
    X, labels = da.from_array(A, chunks=(20, 3)), da.from_array(y, chunks=20)
    arguments = {"X": X, "y": labels, name: dask.delayed(y)}
    for method in ("fit", "score"):
        with pytest.raises(TypeError, match=f"^{name} is a Delayed; give a dask array or series"):
            call(SAGAClassifier, method, arguments)


def test_classes_that_are_a_future(client):
    with pytest.raises(TypeError, match=r"^classes is a Future; .* or its value: classes\.result\(\)"):
        SAGAClassifier().partial_fit(A, y, classes=client.submit(list, (-1.0, 1.0)))
    model = SAGAClassifier().partial_fit(A, y, classes=dask.delayed([-1.0, 1.0]))  # a Dask collection is computed
    assert model.classes_.tolist() == [-1.0, 1.0]


ACCEPTED = {
    "list of lists": (A.tolist(), y.tolist()),
    "tuple of tuples": (tuple(map(tuple, A.tolist())), tuple(y.tolist())),
    "list of arrays": (list(A), list(y)),
    "list of dask arrays": ([da.from_array(row, chunks=2) for row in A], y),
    "list of dask numbers": (A, list(da.from_array(y, chunks=20))),
    "list of series": ([pd.Series(row) for row in A], y),
    "dask array": (da.from_array(A, chunks=(20, 3)), da.from_array(y, chunks=20)),
    "dask dataframe": (dd.from_pandas(pd.DataFrame(A), npartitions=3), dd.from_pandas(pd.Series(y), npartitions=3)),
    "array": (A, y),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_lists_of_data_and_collections_are_taken(case):
    X, labels = ACCEPTED[case]
    expected = SAGAClassifier(random_state=0).fit(A, y).predict(A)
    model = SAGAClassifier(random_state=0).fit(X, labels, sample_weight=2.0)
    np.testing.assert_array_equal(np.asarray(model.predict(X)), expected)
    assert model.score(X, labels) == np.mean(expected == y)


def test_what_the_check_lets_pass():
    class Other:
        """A data set of another package."""

    Other.__name__ = "Dataset"
    for value in (None, 2.0, [], [[]], [None, "a", 1], [[1.0], None], [(1, 2)], Other(), pd.DataFrame(A)):
        check_containers(X=value, y=value)


def test_datasets_of_xarray(client):
    xarray = pytest.importorskip("xarray")
    data = xarray.Dataset({"a": ("t", A[:, 0]), "b": ("t", A[:, 1]), "label": ("t", y)})
    for one in (data, data.chunk({"t": 20})):
        with pytest.raises(TypeError, match="X is an xarray Dataset; give"):
            SAGAClassifier().fit(one, y)
        for frame in (one.to_dataframe(), one.to_dask_dataframe()):
            model = SAGAClassifier(random_state=0).fit(frame[["a", "b"]], frame["label"])
            assert model.feature_names_in_.tolist() == ["a", "b"]


@pytest.mark.parametrize("case", [case for case in REFUSED if case not in ("Delayed", "Future")])
def test_saga_names_the_chunk(case, client):
    make = REFUSED[case]
    for name, pair in (("X", [make(A, client), y]), ("y", (A, make(y, client)))):
        with pytest.raises(TypeError) as caught:
            saga([(A, y), pair], max_iter=2)
        assert str(caught.value) == f"chunk 1: {message_for(case, name)}"


@pytest.mark.parametrize("kind", ["pairs of futures", "a future beside an array", "pairs of Delayed", "futures"])
def test_saga_takes_what_a_pair_may_be(kind, client):
    parts = [(A[k : k + 20], y[k : k + 20]) for k in (0, 20, 40)]
    chunks = {
        "pairs of futures": lambda A, b: (client.scatter(A), client.scatter(b)),
        "a future beside an array": lambda A, b: (client.scatter(A), b),
        "pairs of Delayed": lambda A, b: (dask.delayed(A), dask.delayed(b)),
        "futures": lambda A, b: client.submit(tuple, [A, b]),
    }[kind]
    settings = {"random_state": 0, "max_iter": 20, "tol": 1e-3}
    expected, lazy = saga(parts, **settings), [chunks(*part) for part in parts]
    for persist in (True, False):
        result = saga(lazy, persist=persist, **settings)
        np.testing.assert_array_equal(result.x, expected.x)
