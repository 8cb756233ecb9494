"""Bad input gets an error that names the argument, and the chunk, and leaves the estimator as it was."""

import pickle
import warnings

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from dask_saga import SAGAClassifier, SAGARegressor, saga
from dask_saga.data.validation import read_rows
from dask_saga.penalties import ElasticNet

from .conftest import make_rows

A, y = make_rows(n=60, p=3)
X, labels = da.from_array(A, chunks=(20, 3)), da.from_array(y, chunks=20)


def edited(value, at=(25, 1)):
    B = A.copy()
    B[at] = value
    return B


def malformed(name, at, value):
    """CSR that scipy makes, and that points outside of its arrays."""
    B = sp.csr_array(np.where(A > 0, A, 0.0))
    getattr(B, name)[at] = value
    return B


def no_entries():
    """Of no entries scipy does not check the pointers."""
    B = sp.csr_array((60, 3))
    B.indptr[1] = 10**6
    return B


BAD_DATA = {
    "index too large": ((malformed("indices", -1, 10**6), y), ValueError, "X: .*ind(ices|ex values) must be < 3"),
    "index negative": ((malformed("indices", 5, -1), y), ValueError, "X: .*ind(ices|ex values) must be >= 0"),
    "pointers fall": ((malformed("indptr", 1, 100), y), ValueError, "X: ind.*non-decreasing"),
    "pointers beyond no entries": ((no_entries(), y), ValueError, "X: indptr must be a non-decreasing"),
    "long integers": (([[10**400, 1, 2]] * 60, y), ValueError, "X: int too large"),
    "long weights": ((A, y, [10**400] * 60), ValueError, "sample_weight: int too large"),
    "huge where weights are zero": ((edited(1e300), y, np.arange(60) != 25.0), ValueError, "X has values beyond 1e.50"),
    "NaN where weights are zero": ((edited(np.nan), y, np.arange(60) != 25.0), ValueError, "X contains NaN"),
    "sparse inf, weights zero": ((sp.csr_array(edited(np.inf)), y, np.arange(60) != 25.0), ValueError, "X.* infinity"),
    "huge weights": ((A, y, np.full(60, 1e307)), ValueError, "sample_weight.* sums to inf; scale it"),
    "denormal weights": ((A, y, np.full(60, 5e-324)), ValueError, "sample_weight.* sums to 3.*e-322; scale it"),
    "NaN": ((edited(np.nan), y), ValueError, "X contains NaN"),
    "inf": ((edited(np.inf), y), ValueError, "X contains infinity"),
    "sparse NaN": ((sp.csr_array(edited(np.nan)), y), ValueError, "X contains NaN"),
    "complex": ((A.astype(complex), y), ValueError, "X.*[Cc]omplex"),
    "object": ((np.where(A > 5, "a", A.astype(object)), y), ValueError, "X: could not convert"),
    "huge": ((edited(1e200), y), ValueError, "X has values beyond 1e\\+50 in column 1"),
    "strings": ((np.full((60, 3), "a"), y), ValueError, "X: could not convert"),
    "1-d X": ((A[:, 0], y), ValueError, "X.*2D"),
    "3-d X": ((A[None], y), ValueError, "X.*dim 3"),
    "no columns": ((A[:, :0], y), ValueError, "X: Found array with 0 feature"),
    "short y": ((A, y[:-1]), ValueError, "X has 60 rows, but y has 59; give one target"),
    "no y": ((A, None), ValueError, r"\by\b.*None"),
    "3-d y": ((A, np.c_[y, y][:, :, None]), ValueError, r"\by\b"),
    "NaN in y": ((A, np.where(y > 0, np.nan, y)), ValueError, r"\by\b.*NaN"),
    "negative weight": ((A, y, np.linspace(-1, 1, 60)), ValueError, "sample_weight must not be negative"),
    "zero weights": ((A, y, np.zeros(60)), ValueError, "sample_weight is zero"),
    "NaN weight": ((A, y, np.full(60, np.nan)), ValueError, "sample_weight contains NaN"),
    "missing weight": (
        (A, y, pd.array([None, *(y[1:] > 0)], dtype="boolean")),
        ValueError,
        "sample_weight contains NaN",
    ),
    "missing target": ((A, pd.array([None, *(y[1:] > 0)], dtype="boolean")), ValueError, r"\by\b.*(NaN|missing)"),
    "short weights": ((A, y, np.ones(59)), ValueError, "sample_weight has 59"),
    "2-d weights": ((A, y, np.ones((60, 2))), ValueError, "sample_weight must be a 1D array"),
}
BAD_PARAMETERS = {
    "loss": "zero_one", "penalty": "l3", "alpha": -1.0, "l1_ratio": 1.5, "step_size": 0.0, "step_size_scale": -2.0,
    "max_iter": 0, "tol": -1.0, "memory_dtype": "float16", "fit_intercept": "yes", "precondition": None,
    "random_state": "seed",
}  # fmt: skip


def fitted(kind=SAGAClassifier):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(max_iter=3, random_state=0).fit(pd.DataFrame(A, columns=list("abc")), y)


def check_refused(estimator, call, error, match):
    before, bits = dict(vars(estimator)), pickle.dumps(vars(estimator))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(error, match=match):
            call()
    assert vars(estimator).keys() == before.keys()
    assert all(vars(estimator)[name] is value for name, value in before.items())
    assert pickle.dumps(vars(estimator)) == bits


@pytest.mark.parametrize("kind", [SAGAClassifier, SAGARegressor])
@pytest.mark.parametrize("when", ["fresh", "fitted"])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(case, method, when, kind):
    arguments, error, match = BAD_DATA[case]
    estimator = kind() if when == "fresh" else fitted(kind)
    extra = {"classes": [-1.0, 1.0]} if method == "partial_fit" and kind is SAGAClassifier else {}
    weights = {"sample_weight": arguments[2]} if len(arguments) > 2 else {}
    check_refused(estimator, lambda: getattr(estimator, method)(*arguments[:2], **weights, **extra), error, match)


@pytest.mark.parametrize("targets", [np.where(y > 0, 1e308, -1e308), [10**400] * 60, np.full(60, -1e60)])
@pytest.mark.parametrize("method", ["fit", "partial_fit", "score"])
def test_targets_whose_squares_overflow(method, targets):
    estimator = fitted(SAGARegressor)
    rows = pd.DataFrame(A, columns=list("abc"))
    check_refused(estimator, lambda: getattr(estimator, method)(rows, targets), ValueError, r"\by\b.*(large|beyond)")


@pytest.mark.parametrize("value", [[[1.0, 2.0, 10**400]], [[1j, 0, 0]], 3.0, np.zeros((2, 0)), [[1.0], [1.0, 2.0]]])
def test_predict_names_x(value):
    for model in (SAGAClassifier(max_iter=3, tol=1.0).fit(A, y), SAGARegressor(max_iter=3, tol=1.0).fit(A, y)):
        check_refused(model, lambda m=model: m.predict(value), (ValueError, TypeError), r"\bX\b")


def test_predictions_of_malformed_rows():
    model = SAGARegressor(max_iter=3, tol=1.0).fit(A, y)
    for rows in (malformed("indices", -1, 10**6), no_entries()):
        check_refused(model, lambda r=rows: model.predict(r), ValueError, "X: .*ind")


@pytest.mark.parametrize("name", ["alpha", "step_size", "step_size_scale"])
def test_parameters_that_no_float_holds(name):
    for estimator in (SAGAClassifier(**{name: 10**400}), SAGARegressor(**{name: 10**400})):
        check_refused(estimator, lambda e=estimator: e.fit(A, y), ValueError, f"{name} is an integer too large")
    if name != "alpha":
        with pytest.raises(ValueError, match=f"{name} is an integer too large"):
            saga([(A, y)], **{name: 10**400})
    with pytest.raises(ValueError, match="finite l1"):
        SAGAClassifier(penalty=ElasticNet(l1=np.inf)).fit(A, y)


@pytest.mark.parametrize("kind", [SAGAClassifier, SAGARegressor])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("name", BAD_PARAMETERS)
def test_bad_parameters(name, method, kind):
    estimator = kind(**{name: BAD_PARAMETERS[name]})
    extra = {"classes": [-1.0, 1.0]} if method == "partial_fit" and kind is SAGAClassifier else {}
    check_refused(estimator, lambda: getattr(estimator, method)(A, y, **extra), ValueError, f"'{name}' parameter")


def test_a_loss_of_the_other_kind():
    for estimator, loss in ((SAGAClassifier(), "squared_error"), (SAGARegressor(), "log_loss")):
        estimator.set_params(loss=loss)
        check_refused(estimator, lambda e=estimator: e.fit(A, y), ValueError, "loss")


def test_one_class_in_fit():
    estimator = SAGAClassifier()
    check_refused(estimator, lambda: estimator.fit(A, np.ones(60)), ValueError, "y holds 1 class")


def test_classes():
    fresh, known = SAGAClassifier(), fitted()
    check_refused(fresh, lambda: fresh.partial_fit(A, y), ValueError, "classes must be given")
    check_refused(fresh, lambda: fresh.partial_fit(A, y, classes=[1.0]), ValueError, "classes holds 1 class")
    check_refused(fresh, lambda: fresh.partial_fit(A, y, classes=[0.0, 1.0]), ValueError, r"y has labels \[-1.0\]")
    check_refused(fresh, lambda: fresh.partial_fit(A, y, classes=[0, None]), ValueError, "classes contains missing")
    check_refused(fresh, lambda: fresh.partial_fit(A, y, classes=[0, np.nan]), ValueError, "classes contains NaN")
    check_refused(known, lambda: known.partial_fit(A, 2 * y), ValueError, "y has labels")
    check_refused(known, lambda: known.partial_fit(A, y, classes=[1, 2]), ValueError, "classes=.*differs")


@pytest.mark.parametrize("method", ["partial_fit", "predict", "score"])
def test_other_columns_later(method):
    estimator = fitted()
    rest = () if method == "predict" else (y,)
    check_refused(estimator, lambda: getattr(estimator, method)(A[:, :2], *rest), ValueError, "2 features")
    renamed = pd.DataFrame(A, columns=list("abd"))
    check_refused(estimator, lambda: getattr(estimator, method)(renamed, *rest), ValueError, "feature names")


def test_dask_input_to_partial_fit():
    estimator = SAGAClassifier()
    for arguments in ((X, labels), (A, labels), (dd.from_pandas(pd.DataFrame(A), npartitions=2), y)):
        check_refused(
            estimator, lambda a=arguments: estimator.partial_fit(*a, classes=[-1, 1]), TypeError, "Dask.*Incremental"
        )


@pytest.mark.parametrize("value", [1e200, np.inf])
def test_values_are_checked_before_threads_multiply(value):
    rows = np.random.default_rng(0).standard_normal((12000, 40))
    targets = rows[:, 0] + 1.0
    rows[7000, 3] = value
    model = SAGARegressor(n_threads=2)
    check_refused(model, lambda: model.fit(rows, targets), ValueError, "X.* (values beyond|infinity)")


def test_lists_are_of_float64():
    rows = [row.astype("f4") for row in A]
    assert read_rows(rows).dtype == np.float64
    with pytest.raises(ValueError, match="to float: 'a'"):
        read_rows([["a", 1.0]])


def test_a_delayed_x():
    estimator = SAGAClassifier()
    check_refused(estimator, lambda: estimator.fit(dask.delayed(A), dask.delayed(y)), TypeError, "X is a Delayed")


BAD_DASK = {
    "columns": ((da.zeros((10**7, 40), chunks=(10**7, 20)), da.zeros(10**7, chunks=10**7)),
                r"X is blocked along its columns.*would take 3200 MB; .*X\.rechunk\(\{0: 'auto', 1: -1"),
    "columns of unknown length": ((X[X[:, 0] > -9].rechunk({1: 2}), labels),
                                  r"along its columns.*unknown length; .*X\.compute_chunk_sizes\(\)\.rechunk"),
    "number of blocks": ((X, labels.rechunk(30)), "X has 3 blocks, but y has 2"),
    "block lengths": ((X, labels.rechunk(((20, 30, 10),))), "chunk 1: X has 20 rows, but y has 30"),
    "unknown lengths": ((dd.from_pandas(pd.DataFrame(A), npartitions=3), labels.rechunk(((20, 30, 10),))),
                        "chunk 1: X has 20 rows, but y has 30"),
    "NaN": ((da.from_array(edited(np.nan), chunks=(20, 3)), labels), "chunk 1: .*X contains NaN"),
    "infinity, float32": ((da.from_array(edited(np.inf).astype("f4"), chunks=(20, 3)), labels), "chunk 1: .*infinity"),
    "huge": ((da.from_array(edited(1e200), chunks=(20, 3)), labels), "chunk 1: X has values beyond"),
    "label": ((X, da.from_array(np.where(np.arange(60) == 45, np.nan, y), chunks=20)), "chunk 2: y contains NaN"),
    "one class": ((X, da.ones_like(labels)), "y holds 1 class"),
    "weights": ((X, labels, da.from_array(-np.ones(60), chunks=20)), "chunk 0: sample_weight must not be negative"),
    "zero weights": ((X, labels, da.zeros(60, chunks=20)), "sample_weight is zero"),
    "weight blocks": ((X, labels, da.ones(60, chunks=30)), "X has 3 blocks, but sample_weight has 2"),
    "y only": ((A, labels), "X is not"),
    "y one number": ((X, labels.sum()), "y is a single number"),
    "1-d": ((X[:, 0], labels), "2D"),
    "empty": ((X[:0], labels[:0]), "X has no rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_DASK)
def test_bad_dask_data(case):
    arguments, match = BAD_DASK[case]
    for estimator in (SAGAClassifier(), fitted()):
        check_refused(estimator, lambda e=estimator: e.fit(*arguments), (ValueError, TypeError), match)


@pytest.mark.parametrize("kind", [SAGAClassifier, SAGARegressor])
def test_score(kind):
    estimator = fitted(kind)
    rows = pd.DataFrame(A, columns=list("abc"))
    lazy = (dd.from_pandas(rows, npartitions=1), lambda values: da.from_array(values, chunks=len(values)))
    for X, part in ((rows, lambda values: values), lazy):
        for arguments, match in (
            ((X, part(np.where(y > 0, np.nan, y))), r"\by\b.*NaN"),
            ((X, part(y[:-1])), "X has 60 rows, but y has 59"),
            ((X, part(y), part(np.zeros(60))), "sample_weight is zero"),
            ((X, part(y), part(-np.ones(60))), "sample_weight must not be negative"),
            ((X[:0] if X is rows else X, part(y[:0] if X is rows else y[:-1])), "X"),
            ((X, part(y), part(np.full(60, 1e307))), "sample_weight.*scale it"),
        ):
            check_refused(estimator, lambda a=arguments: estimator.score(*a), ValueError, match)


def test_not_fitted():
    from sklearn.exceptions import NotFittedError

    for call in (SAGAClassifier().predict, SAGARegressor().predict):
        for rows in (A, X):
            with pytest.raises(NotFittedError):
                call(rows)


def test_classes_in_partial_fit_are_labels_as_in_fit():
    with pytest.raises(ValueError, match="Unknown label type"):
        SAGAClassifier().partial_fit(A, y, classes=[0.0, 0.5, 1.0])


def test_labels_with_and_without_sign():
    """As float they would be one: both are beyond 2^53."""
    labels = (A[:, 0] > 0).astype(np.int64) + 2**60
    signed = SAGAClassifier(random_state=0).partial_fit(A, labels, classes=np.unique(labels))
    unsigned = SAGAClassifier(random_state=0).partial_fit(A, labels.astype(np.uint64), classes=np.unique(labels))
    assert unsigned.coef_.tobytes() == signed.coef_.tobytes()
    beyond = labels.astype(np.uint64)
    beyond[0] = 2**64 - 1
    with pytest.raises(ValueError, match=r"y has labels \[18446744073709551615\] that are not among the classes"):
        signed.partial_fit(A, beyond)


def test_persist_is_checked_of_arrays_in_memory():
    with pytest.raises(ValueError, match="persist='maybe' must be True, False or 'auto'"):
        SAGAClassifier().fit(A, y, persist="maybe")


@pytest.mark.parametrize("bounds", [(np.inf, np.inf), (-np.inf, -np.inf), (1.0, 0.0)])
def test_bounds_without_room(bounds):
    with pytest.raises(ValueError, match="lower <= upper with room between"):
        SAGAClassifier(penalty=ElasticNet(1e-3, lower=bounds[0], upper=bounds[1])).fit(A, y)
