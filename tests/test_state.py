"""State: constant-time copies, exact resume, chunk identity, sizes and tokens."""

import copy
import pickle
import warnings
from collections.abc import Mapping

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from dask.base import tokenize
from dask.sizeof import sizeof
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from dask_saga import SAGAClassifier, SAGARegressor
from dask_saga.data.immutable_map import ImmutableMap
from dask_saga.estimators.partial_fit import LearnsByChunk
from dask_saga.kernels.jit import compiled
from dask_saga.solver.state import new_solver_state

from . import oracles
from .conftest import make_rows


def chunks_of(A, y, k):
    return [(A[rows], y[rows]) for rows in np.array_split(np.arange(len(y)), k)]


def classifier(**kwargs):
    return SAGAClassifier(**{"alpha": 1e-2, "random_state": 0, **kwargs})


def visits(estimator, chunks, passes):
    for _ in range(passes):
        for X, y in chunks:
            estimator.partial_fit(X, y, classes=[-1.0, 1.0])
    return estimator


def exact(A, y, alpha=1e-2, **kwargs):
    reference = LogisticRegression(C=1 / (alpha * len(y)), tol=1e-10, max_iter=10_000, solver="newton-cholesky")
    return reference.fit(A, y, **kwargs)


def assert_optimal(estimator, A, y, **kwargs):
    reference = exact(A, y, **kwargs)
    np.testing.assert_allclose(estimator.coef_, reference.coef_, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(estimator.intercept_, reference.intercept_, rtol=1e-4, atol=1e-6)


def bits(value):
    """Nested values with every array as bytes."""
    if isinstance(value, Mapping):
        return {key: bits(v) for key, v in value.items()}
    if isinstance(value, tuple):
        return [bits(v) for v in value]
    return value.tobytes() if isinstance(value, np.ndarray) else value


def same_state(one, other):
    return bits(one.state_) == bits(other.state_) and bits(one.coef_) == bits(other.coef_)


@pytest.mark.slow
def test_deepcopy_of_ten_million_rows_copies_none():
    X, y = np.zeros((10_000_000, 1), np.float32), np.zeros(10_000_000)
    X[::2], y[::2] = 1.0, 1.0
    estimator = classifier().partial_fit(X, y, classes=[0, 1])
    assert estimator.state_.n_samples == 10_000_000
    # Its time is in benchmarks/state.py.
    assert copy.deepcopy(estimator).state_ is estimator.state_


def test_every_way_to_a_state_makes_its_arrays_read_only():
    own = np.zeros((1, 3))
    head = new_solver_state(2)
    ways = [
        head._replace(x=own, window_start=own),
        type(head)(*head)._replace(x=own, window_start=own),
        type(head)._make([own] * len(head)),
        pickle.loads(pickle.dumps(head)),
        copy.copy(head),
    ]
    for state in ways:
        assert not any(part.flags.writeable for part in state if isinstance(part, np.ndarray))
        assert state.x is state.window_start, "one array remains one"
    assert own.flags.writeable
    assert np.shares_memory(ways[0].x, own)
    assert head._replace(rows=3).x is head.x
    with pytest.raises(ValueError, match="unexpected field names"):
        head._replace(other=own)


def test_a_kernel_is_compiled_once_for_read_only_and_writable_arrays():
    @compiled(writes="out", cache=False)
    def double(x, out):
        for i in range(x.size):
            out[i] = 2.0 * x[i]

    x, out = np.arange(3.0), np.empty(3)
    double(x, out)
    assert x.flags.writeable
    x.flags.writeable = False
    double(x, out)
    assert out.tolist() == [0.0, 2.0, 4.0]
    assert len(double.dispatcher.signatures) == 1
    with pytest.raises(TypeError, match="no arguments"):
        compiled(writes="y")(double.dispatcher.py_func)


def test_a_copy_goes_its_own_way(binary):
    chunks = chunks_of(*binary, 3)
    one = visits(classifier(), chunks, 2)
    before = bits(one.state_), one.coef_.copy()
    other = copy.deepcopy(one)
    visits(other, chunks, 1)
    assert bits(one.state_) == before[0]
    np.testing.assert_array_equal(one.coef_, before[1])
    assert not np.array_equal(one.coef_, other.coef_)


@pytest.mark.parametrize("random_state", [0, None])
def test_pickle_continues_bit_for_bit(binary, random_state):
    chunks = chunks_of(*binary, 3)
    one = visits(classifier(random_state=random_state), chunks, 2)
    other = pickle.loads(pickle.dumps(one))
    assert not other.state_.head.x.flags.writeable
    assert same_state(visits(one, chunks, 2), visits(other, chunks, 2))


def test_the_same_task_twice_gives_the_same_bits(binary):
    (X, y), *_ = chunks = chunks_of(*binary, 3)
    start = visits(classifier(), chunks, 1)
    one, other = (copy.deepcopy(start).partial_fit(X, y) for _ in range(2))
    assert same_state(one, other)


def test_a_revisit_adds_no_rows(binary):
    chunks = chunks_of(*binary, 3)
    estimator = visits(classifier(), chunks, 5)
    assert estimator.state_.n_samples == estimator.state_.head.rows == 600
    assert {memory.visits for memory in estimator.state_.chunks.values()} == {5} == {estimator.n_iter_}


def test_kinds_of_one_chunk_are_one_chunk(binary):
    A, y = binary
    frame = pd.DataFrame(A, columns=[f"c{j}" for j in range(8)])
    estimator = classifier().partial_fit(frame, y, classes=[-1, 1])
    with pytest.warns(UserWarning, match="feature names"):
        estimator.partial_fit(np.asfortranarray(A), y.astype(int))
    estimator.partial_fit(frame, pd.Series(y))
    assert len(estimator.state_.chunks) == 1
    sparse = classifier().partial_fit(sp.csr_array(A), y, classes=[-1, 1]).partial_fit(sp.csc_matrix(A), y)
    assert len(sparse.state_.chunks) == 1


@pytest.mark.parametrize("change", ["edited row", "permuted rows"])
def test_changed_content_is_a_new_chunk(binary, change):
    A, y = binary
    if change == "edited row":
        B, c = A.copy(), y
        B[17, 3] += 5.0
    else:
        B, c = A[::-1], y[::-1]
    estimator = visits(classifier(), [(A, y), (B, c)], 60)
    assert len(estimator.state_.chunks) == 2
    assert_optimal(estimator, np.r_[A, B], np.r_[y, c])


def test_a_repeated_block_counts_twice_in_fit_and_is_a_revisit_in_partial_fit(binary):
    A, y = binary
    B, c = np.r_[A, A[:200]], np.r_[y, y[:200]]
    X, labels = da.from_array(B, chunks=(200, 8)), da.from_array(c, chunks=200)
    estimator = classifier(tol=1e-7, max_iter=500).fit(X, labels)
    assert estimator.state_.n_samples == 800
    assert_optimal(estimator, B, c)
    estimator = visits(classifier(), chunks_of(B, c, 4), 60)
    assert estimator.state_.n_samples == 600
    assert_optimal(estimator, A, y)


def test_partial_fit_after_fit_knows_the_chunks(binary):
    A, y = binary
    X, labels = da.from_array(A, chunks=(200, 8)), da.from_array(y, chunks=200)
    estimator = classifier(tol=1e-6, max_iter=500).fit(X, labels)
    passes = estimator.n_iter_
    for block, part in chunks_of(A, y, 3):
        estimator.partial_fit(block, part)
    assert estimator.state_.n_samples == 600
    assert estimator.n_iter_ == passes + 1
    assert_optimal(estimator, A, y)


def test_chunk_id_names_a_chunk_and_refuses_other_content(binary):
    A, y = binary
    estimator = classifier().partial_fit(A[:300], y[:300], classes=[-1, 1], chunk_id="monday")
    estimator.partial_fit(A[:300], y[:300], chunk_id="monday").partial_fit(A[300:], y[300:], chunk_id=2)
    assert set(estimator.state_.chunks) == {"monday", 2}
    with pytest.raises(ValueError, match="chunk_id='monday' is known with other content"):
        estimator.partial_fit(A[300:], y[300:], chunk_id="monday")
    one, other = (classifier().partial_fit(A, y, classes=[-1, 1], chunk_id=key) for key in (2, np.int64(2)))
    assert same_state(one, other)
    with pytest.raises(TypeError, match="chunk_id"):
        estimator.partial_fit(A, y, chunk_id=3.5)


def test_a_revisit_with_other_weights_moves_to_their_optimum(binary):
    A, y = binary
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 3, 600).astype(float)
    chunks = chunks_of(A, y, 3)
    estimator = visits(classifier(), chunks, 5)
    for _ in range(80):
        for rows in np.array_split(np.arange(600), 3):
            estimator.partial_fit(A[rows], y[rows], sample_weight=weights[rows])
    assert estimator.state_.head.weight == weights.sum()
    reference = exact(A, y, alpha=1e-2 * weights.sum() / 600, sample_weight=weights)
    np.testing.assert_allclose(estimator.coef_, reference.coef_, rtol=1e-4, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12), st.booleans(), st.booleans())
def test_the_sum_is_always_that_of_the_memory(sequence, sparse, float64):
    A, y = make_rows(n=150, p=5)
    A = sp.csr_array(np.where(np.abs(A) > 1, A, 0.0)) if sparse else A
    estimator = classifier(memory_dtype="float64" if float64 else "float32")
    by_id = {}
    for k, weighted in sequence:
        rows = slice(30 * k, 30 * k + 30)
        weights = np.linspace(0, 2, 30) if weighted else None
        estimator.partial_fit(A[rows], y[rows], classes=[-1, 1], sample_weight=weights, chunk_id=k)
        by_id[k] = A[rows]
    head = estimator.state_.head
    scale = np.abs(A).max()
    np.testing.assert_allclose(
        head.gradient_sum[0], oracles.gradient_sum_of(by_id, estimator.state_), atol=1e-10 * scale
    )
    for key, memory in estimator.state_.chunks.items():
        if memory.total is not None:
            dense = by_id[key].toarray() if sparse else by_id[key]
            total = memory.gradients[:, 0].astype(float) @ np.c_[dense, np.ones(30)]
            np.testing.assert_allclose(memory.total[0], total, atol=1e-10 * scale)


def test_total_is_kept_where_it_is_small_beside_the_gradients(binary):
    A, y = binary
    assert classifier().partial_fit(A, y, classes=[-1, 1]).state_.chunks
    for rows, kept in ((600, True), (20, False)):
        [memory] = classifier().partial_fit(A[:rows], y[:rows], classes=[-1, 1]).state_.chunks.values()
        assert (memory.total is not None) == kept


def test_averaging_is_a_no_op_for_one_chunk(binary):
    A, y = binary
    estimator = visits(classifier(step_size=1e-2), [(A, y)], 5)
    plain = visits(classifier(step_size=1e-2, average=False), [(A, y)], 5)
    np.testing.assert_array_equal(estimator.coef_, plain.coef_)


def test_averaging_rescues_a_fixed_order(binary):
    A, y = make_rows(n=4000)
    chunks, best = chunks_of(A, y, 20), exact(A, y)
    gaps = {}
    for average in (True, False):
        estimator = visits(classifier(average=average), chunks, 12)
        gaps[average] = np.abs(estimator.coef_ - best.coef_).max()
    assert gaps[True] < 0.1 * gaps[False]


def test_an_empty_chunk_changes_nothing(binary):
    A, y = binary
    fresh = classifier()
    before = dict(vars(fresh))
    assert vars(fresh.partial_fit(A[:0], y[:0], classes=[-1, 1])) == before
    estimator = classifier().partial_fit(A, y, classes=[-1, 1])
    state = estimator.state_
    assert estimator.partial_fit(A[:0], y[:0]).state_ is state


def test_one_row_and_one_class_chunks(binary):
    A, y = binary
    order = np.argsort(y, kind="stable")
    bounds = [(0, 1), (1, 300), (300, 599), (599, 600)]
    chunks = [(A[order[i:j]], y[order[i:j]]) for i, j in bounds]
    estimator = visits(classifier(), chunks, 150)
    assert_optimal(estimator, A, y)


def test_dask_sees_the_true_size(binary):
    A, y = binary
    X, labels = np.tile(A, (500, 1)), np.tile(y, 500)
    estimator = classifier().partial_fit(X, labels, classes=[-1, 1])
    assert 300_000 * 4 < sizeof(estimator) < 300_000 * 4 + 10_000
    assert sizeof(estimator.state_) > 300_000 * 4


def test_tokens_tell_histories_apart(binary):
    (X, y), (Z, w), _ = chunks_of(*binary, 3)

    def token(*steps, **parameters):
        estimator = classifier(**parameters)
        for part, labels, weights in steps:
            estimator.partial_fit(part, labels, classes=[-1, 1], sample_weight=weights)
        return tokenize(estimator)

    a, b = (X, y, None), (Z, w, None)
    with dask.config.set({"tokenize.ensure-deterministic": True}):
        tokens = [
            token(),
            token(alpha=1.0),
            token(a),
            token(a, a),
            token(a, b),
            token(b, a),
            token(a, alpha=1.0),
            token((X, y, np.full(200, 2.0))),
            token((X, -y, None)),
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            blocks = da.from_array(np.r_[X, Z], chunks=(200, 8)), da.from_array(np.r_[y, w], chunks=200)
            tokens.append(tokenize(classifier(max_iter=1).fit(*blocks).set_params(max_iter=100)))
        changed = classifier(alpha=1.0).partial_fit(X, y, classes=[-1, 1]).set_params(alpha=1e-2)
        tokens.append(tokenize(changed))
        tokens.append(tokenize(SAGARegressor(alpha=1e-2, random_state=0).partial_fit(X, y)))
        assert token(a, b) == token(a, b)
    assert len(set(tokens)) == len(tokens)


def test_the_state_introduces_itself_briefly(binary):
    A, y = binary
    estimator = classifier().partial_fit(A, y, classes=[-1, 1])
    assert repr(estimator.state_) == "<SAGAState of 1 chunks, 600 rows, 8 columns>"


def test_a_light_tokenize_does_not_read_the_memory(binary):
    import dask_ml.model_selection  # noqa: F401 - it registers tokens of its own for all estimators

    class Fresh(LearnsByChunk):
        """A type whose way to a token Dask has not looked up before, nor that of its bases."""

        _labelled = False
        partial_fit = SAGARegressor.partial_fit

    A, y = binary
    estimator = Fresh("squared_error", random_state=0).partial_fit(A, y)
    small = tokenize(estimator)
    estimator.state_ = estimator.state_._replace(chunks=ImmutableMap())
    assert tokenize(estimator) == small
