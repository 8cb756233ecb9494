"""What must hold of any data: hypothesis draws rows, how they are cut and in which form they come."""

import copy
import pickle
import warnings

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from dask_saga import SAGAClassifier, SAGARegressor, saga
from dask_saga.losses import LOSSES
from dask_saga.penalties import ElasticNet

from . import oracles
from .breaking import PROPERTIES, either

# Beyond what is asserted, so that only the passes end it.
EXACT = {"tol": 1e-11, "max_iter": 5000, "memory_dtype": "float64", "random_state": 0}
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def reversed_twice(A):
    return A[::-1].copy()[::-1]


def read_only(A):
    A = A.copy()
    A.flags.writeable = False
    return A


def disordered(A):
    """CSR whose indices fall and whose first entry of each row is stored in two halves, in int64."""
    B = sp.csr_array(A[:, ::-1])
    twice = np.zeros(B.nnz, int)
    twice[B.indptr[:-1][np.diff(B.indptr) > 0]] = 1
    data, indices = np.repeat(B.data / (1 + twice), 1 + twice), np.repeat(A.shape[1] - 1 - B.indices, 1 + twice)
    indptr = np.concatenate([[0], np.cumsum(1 + twice)])[B.indptr]
    return sp.csr_array((data, indices.astype(np.int64), indptr.astype(np.int64)), shape=A.shape)


# Rows are multiples of 1/8, so that float32 and halves change nothing.
FORMS = {
    "numpy": np.ascontiguousarray, "float32": np.float32, "F": np.asfortranarray, "read-only": read_only,
    "reversed": reversed_twice, "list": np.ndarray.tolist, "pandas": pd.DataFrame,
    "pandas float32": lambda A: pd.DataFrame(A.astype("f4")), "csr": sp.csr_array, "csc matrix": sp.csc_matrix,
    "csr float32": lambda A: sp.csr_array(A.astype("f4")), "disordered": disordered,
    "swapped": lambda A: A.astype(">f8"),
}  # fmt: skip
DENSE = [name for name in FORMS if name[:2] not in ("cs", "di")]
seeds = st.integers(0, 2**32 - 1)


def draw_rows(data, kind, most_columns=6):
    """Rows and targets; columns on several scales and off centre, some of them empty or equal."""
    rng = np.random.default_rng(data.draw(seeds, "seed"))
    n, p = data.draw(st.integers(8, 90), "n"), data.draw(st.integers(1, most_columns), "p")
    size = 2.0 ** np.array(data.draw(st.lists(st.integers(-2, 3), min_size=p, max_size=p), "size"))
    A = rng.standard_normal((n, p)) + data.draw(st.sampled_from([0.0, 1.0, 5.0]), "centre")
    A = np.where(rng.random((n, p)) < data.draw(st.sampled_from([0.1, 0.5, 1.0]), "filled"), A, 0.0)
    if p > 2 and data.draw(st.booleans(), "special columns"):
        A[:, 0], A[:, 1] = 0.0, A[:, 2]
    A = np.round(A * size * 8) / 8
    z = (A / size) @ rng.standard_normal(p) + rng.standard_normal(n)
    if kind == "numbers":
        return A, z + 3.0
    b = np.where(z > np.median(z), 1.0, -1.0)
    b[:4] = 1.0, -1.0, 1.0, -1.0
    return A, b


def cuts(data, n):
    """Ends of slices of n rows."""
    inner = data.draw(st.lists(st.integers(1, n - 1), max_size=6, unique=True), "cuts")
    return list(zip([0, *sorted(inner)], [*sorted(inner), n], strict=True))


def assert_near(x, expected, A, tol=1e-6):
    """Coefficients, in units of their columns, and the intercept at their middle."""
    x, expected, A = np.atleast_2d(x), np.atleast_2d(expected), np.asarray(A, float)
    size = np.append(np.maximum(np.sqrt((A**2).mean(axis=0)), 1e-3), 1.0)
    scale = max(1.0, np.abs(expected * size).max())
    np.testing.assert_allclose(x * size, expected * size, rtol=0, atol=tol * scale)


@pytest.mark.slow
@PROPERTIES
@given(st.data())
def test_any_cut_order_and_form_has_one_optimum(data):
    kind = data.draw(st.sampled_from(["log_loss", "squared_error", "squared_hinge", "huber"]), "loss")
    A, b = draw_rows(data, "numbers" if kind in ("squared_error", "huber") else "labels")
    penalty = ElasticNet(
        l1=data.draw(st.sampled_from([0.0, 0.0, 0.05]), "l1"), l2=data.draw(st.sampled_from([0.05, 0.3]), "l2")
    )
    fit_intercept = data.draw(st.booleans(), "fit_intercept")
    expected = oracles.reference(A, b, LOSSES[kind](), penalty, fit_intercept)
    order = np.random.default_rng(data.draw(seeds, "order")).permutation(len(b))
    chunks = []
    for start, end in cuts(data, len(b)):
        form = FORMS[data.draw(st.sampled_from(list(FORMS)), "form")]
        pair = form(A[order[start:end]]), b[order[start:end]]
        chunks.append(pair)
    if data.draw(st.booleans(), "delayed"):
        chunks = [dask.delayed(pair) for pair in chunks]
    found = saga(chunks, kind, penalty, fit_intercept=fit_intercept, **EXACT)
    assert_near(np.append(found.x, found.intercept), expected, A)


@pytest.mark.slow
@PROPERTIES
@given(st.data())
def test_fits_of_dask_numpy_and_several_classes_agree(data):
    A, b = draw_rows(data, "labels")
    classes = data.draw(st.sampled_from([2, 3]), "classes")
    labels = np.where(b > 0, "yes", "no") if classes == 2 else np.arange(len(b)) % 3
    settings = {**EXACT, "alpha": 0.1, "n_parallel": data.draw(st.sampled_from([1, 1, 3]), "n_parallel")}
    whole = SAGAClassifier(**settings).fit(A, labels)
    order = np.random.default_rng(data.draw(seeds, "order")).permutation(len(b))
    lengths = tuple(end - start for start, end in cuts(data, len(b)))
    X = da.from_array(A[order], chunks=(lengths, -1))
    if data.draw(st.booleans(), "sparse"):
        X = X.map_blocks(sp.csr_array)
    with dask.config.set(scheduler="synchronous"):
        lazy = SAGAClassifier(**settings).fit(X, da.from_array(labels[order], chunks=(lengths,)))
    # Of several classes only differences of the intercepts count: all together they may move.
    ends = [
        np.c_[model.coef_, model.intercept_ - (model.intercept_.mean() if classes > 2 else 0.0)]
        for model in (lazy, whole)
    ]
    assert_near(*ends, A)


def test_small_sparse_chunks_of_several_classes():
    rng = np.random.default_rng(534)
    A = rng.standard_normal((40, 3)) + 5
    A = np.round(np.where(rng.random((40, 3)) < 0.1, A, 0.0) * np.array([1.0, 1.0, 4.0]) * 8) / 8
    order = np.random.default_rng(534).permutation(40)
    X = da.from_array(A[order], chunks=(20, 3)).map_blocks(sp.csr_array)
    with dask.config.set(scheduler="synchronous"):
        model = SAGAClassifier(alpha=0.1, tol=1e-6, max_iter=500, random_state=0)
        model.fit(X, da.from_array(order % 3, chunks=20))
    assert model.converged_


@pytest.mark.slow
@PROPERTIES
@given(st.data())
def test_permuted_columns_permute_coefficients(data):
    A, b = draw_rows(data, "labels")
    order = np.array(data.draw(st.permutations(range(A.shape[1])), "order"))
    form = FORMS[data.draw(st.sampled_from(list(FORMS)), "form")]
    penalty, settings = data.draw(st.sampled_from(["l2", "elasticnet"]), "penalty"), {**EXACT, "alpha": 0.1}
    one = SAGAClassifier(penalty=penalty, **settings).fit(form(A), b)
    other = SAGAClassifier(penalty=penalty, **settings).fit(form(A[:, order]), b)
    assert_near(np.append(other.coef_, other.intercept_), np.append(one.coef_[0][order], one.intercept_), A[:, order])


@PROPERTIES
@given(st.data())
def test_a_scaled_column_without_penalty_scales_its_coefficient(data):
    rng = np.random.default_rng(data.draw(seeds, "seed"))
    n, p = 80, data.draw(st.integers(1, 4), "p")
    A = rng.standard_normal((n, p)) + rng.standard_normal(p)
    y = A @ rng.standard_normal(p) + rng.standard_normal(n)
    j, factor = data.draw(st.integers(0, p - 1), "j"), 10.0 ** data.draw(st.integers(-12, 12), "exponent")
    B = A.copy()
    B[:, j] *= factor
    form = FORMS[data.draw(st.sampled_from([*DENSE[:1], "csr"]), "form")]
    loss = data.draw(st.sampled_from(["squared_error", "huber"]), "loss")
    one, other = (SAGARegressor(loss, penalty=None, **EXACT).fit(form(rows), y) for rows in (A, B))
    back = other.coef_.copy()
    back[j] *= factor
    assert_near(np.append(back, other.intercept_), np.append(one.coef_, one.intercept_), A)


@PROPERTIES
@given(st.data())
def test_weights_equal_repetition(data):
    kind = data.draw(st.sampled_from(["labels", "numbers"]), "kind")
    A, b = draw_rows(data, kind)
    times = np.random.default_rng(data.draw(seeds, "times")).integers(0, 4, size=len(b))
    times[:4] = np.maximum(times[:4], 1)
    estimator = (SAGAClassifier if kind == "labels" else SAGARegressor)(alpha=0.1, **EXACT)
    form = FORMS[data.draw(st.sampled_from(list(FORMS)), "form")]
    repeated = copy.copy(estimator).fit(form(np.repeat(A, times, axis=0)), np.repeat(b, times))
    lengths = tuple(end - start for start, end in cuts(data, len(b)))
    X, y, w = da.from_array(A, chunks=(lengths, -1)), da.from_array(b, chunks=(lengths,)), times.astype(float)
    with dask.config.set(scheduler="synchronous"):
        weighted = copy.copy(estimator).fit(X, y, da.from_array(w, chunks=(lengths,)))
    scaled = copy.copy(estimator).fit(form(A), b, 1e-3 * w)
    expected = np.append(repeated.coef_, repeated.intercept_)
    for model in (weighted, scaled):
        assert_near(np.append(model.coef_, model.intercept_), expected, A)


def steps_of_a_stream(data, kind, count):
    """Chunks by name in any form, and calls on an estimator in turn."""
    A, b = draw_rows(data, kind)
    parts = cuts(data, len(b))
    forms = [FORMS[data.draw(st.sampled_from(list(FORMS)), "form")] for _ in parts]
    chunks = {k: (form(A[s:e]), b[s:e], A[s:e]) for k, (form, (s, e)) in enumerate(zip(forms, parts, strict=True))}
    steps = []
    for _ in range(count):
        k, what = data.draw(st.integers(0, len(parts) - 1)), data.draw(st.sampled_from("vvvvvwwf"))
        steps.append((k, what, data.draw(st.integers(1, 3))))
    return chunks, steps


def take(model, chunks, step):
    k, what, size = step
    if what == "f":
        if k in getattr(getattr(model, "state_", None), "chunks", {}):
            model.forget(k, *chunks[k][:2])
        return
    weights = np.linspace(0.0, size, len(chunks[k][1]) + 1)[1:] if what == "w" else None
    classes = {"classes": [-1.0, 1.0]} if isinstance(model, SAGAClassifier) else {}
    model.partial_fit(*chunks[k][:2], sample_weight=weights, chunk_id=k, **classes)


@PROPERTIES
@given(st.data())
def test_the_average_is_that_of_the_memory(data):
    kind = data.draw(st.sampled_from(["labels", "numbers"]), "kind")
    chunks, steps = steps_of_a_stream(data, kind, either(8, 20))
    settings = {"random_state": 0, "memory_dtype": data.draw(st.sampled_from(["float32", "float64"]), "memory_dtype")}
    penalty, loss = (
        data.draw(st.sampled_from(["l2", "l1"]), "penalty"),
        "log_loss" if kind == "labels" else "squared_error",
    )
    model = (SAGAClassifier if kind == "labels" else SAGARegressor)(loss, penalty=penalty, **settings)
    for step in steps:
        take(model, chunks, step)
        if not hasattr(model, "state_"):
            continue
        state = model.state_
        known = {k: chunks[k][2] for k in state.chunks}
        recomputed = oracles.gradient_sum_of(known, state) if known else np.zeros_like(state.head.gradient_sum[0])
        # Rounding of what was added and taken away again on the way.
        size = sum(np.abs(m.gradients[:, :1].astype(float)).T @ np.c_[np.abs(known[k]), np.ones(len(known[k]))]
                   for k, m in state.chunks.items()) + np.abs(model.coef_).max() + 1.0  # fmt: skip
        assert (np.abs(state.head.gradient_sum[0] - recomputed) <= 1e-8 * size).all()
        assert state.head.weight == pytest.approx(sum(m.weight for m in state.chunks.values()), rel=1e-12, abs=1e-9)
        if state.head.weight > 0:
            np.testing.assert_array_equal(state.head.gradient_average, state.head.gradient_sum / state.head.weight)


@PROPERTIES
@given(st.data())
def test_pickling_at_any_point_changes_no_bit(data):
    kind = data.draw(st.sampled_from(["labels", "numbers"]), "kind")
    chunks, steps = steps_of_a_stream(data, kind, either(6, 12))
    model = (SAGAClassifier if kind == "labels" else SAGARegressor)(
        penalty=data.draw(st.sampled_from(["l2", "elasticnet"]), "penalty"),
        n_threads=data.draw(st.sampled_from([1, 2]), "threads"),
        random_state=data.draw(st.sampled_from([0, None]), "random_state"),
    )  # fmt: skip
    if data.draw(st.booleans(), "fitted"):
        whole = pd.concat([pd.DataFrame(rows) for *_, rows in chunks.values()]).to_numpy()
        model.set_params(max_iter=3).fit(whole, np.concatenate([b for _, b, _ in chunks.values()]))
    elif model.random_state is None:  # the entropy is drawn with the first chunk, and kept
        take(model, chunks, (0, "v", 1))
    point, copies = data.draw(st.integers(0, len(steps) - 1), "point"), []
    for k, step in enumerate(steps):
        if k == point:
            protocol = data.draw(st.sampled_from(range(2, pickle.HIGHEST_PROTOCOL + 1)), "protocol")
            copies = [
                pickle.loads(pickle.dumps(model, protocol)),
                cloudpickle.loads(cloudpickle.dumps(model)),
                copy.deepcopy(model),
            ]
        for one in (model, *copies):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                take(one, chunks, step)
        for one in copies:
            assert vars(one).keys() == vars(model).keys()
            if hasattr(model, "coef_"):
                assert one.coef_.tobytes() == model.coef_.tobytes()
                assert one.intercept_.tobytes() == model.intercept_.tobytes()
                assert one.state_.head.gradient_sum.tobytes() == model.state_.head.gradient_sum.tobytes()
                assert one.state_.digest == model.state_.digest
