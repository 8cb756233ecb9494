"""Streams: chunks that come, come back, are replaced and leave."""

import copy
import pickle
from collections.abc import Mapping

import numpy as np
import pytest
import scipy.sparse as sp
from dask.base import tokenize
from dask.sizeof import sizeof
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge

from dask_saga import SAGAClassifier, SAGARegressor
from dask_saga.data.immutable_map import ImmutableMap
from dask_saga.data.statistics import column_stats, merge, typical, without
from dask_saga.data.validation import read_chunk
from dask_saga.losses import LogLoss, SquaredError
from dask_saga.penalties import ElasticNet
from dask_saga.solver.preconditioner_choice import choose_preconditioner
from dask_saga.solver.problem import Problem
from dask_saga.streams import replay

from . import oracles
from .conftest import make_rows
from .test_curvature import assert_sums

CLASSES = [-1.0, 1.0]
# Rows so many that the sum of their gradients is kept; so few that it is not.
MANY, FEW = 120, 30


def classifier(**kwargs):
    return SAGAClassifier(**{"alpha": 1e-2, "random_state": 0, **kwargs})


def assert_consistent(model, rows):
    """The state's sums are those of its chunks, whose rows are given by id."""
    state = model.state_
    assert set(state.chunks) == set(rows)
    scale = max([np.abs(A).max() for A in rows.values()], default=1.0)
    expected = oracles.gradient_sum_of(rows, state)
    np.testing.assert_allclose(state.head.gradient_sum[0], expected, rtol=0, atol=1e-10 * scale)
    average = expected / state.head.weight if rows else np.zeros_like(state.head.gradient_sum[0])
    np.testing.assert_allclose(state.head.gradient_average[0], average, rtol=0, atol=1e-10 * scale)
    assert state.head.rows == state.stats.rows == sum(memory.rows for memory in state.chunks.values())
    assert state.head.weight == pytest.approx(sum(memory.weight for memory in state.chunks.values()))


steps = st.tuples(
    st.sampled_from(["visit", "visit", "replace", "forget", "forget by content"]),
    st.integers(0, 3),
    st.sampled_from([None, 2.0, "mixed"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, min_size=1, max_size=14), st.sampled_from([FEW, MANY]), st.booleans(), st.booleans())
def test_the_sums_are_always_those_of_the_chunks(sequence, n, sparse, float64):
    """The average is that of the memory, and the curvature that of the chunks' models."""
    A, y = make_rows(n=8 * n, p=5)
    A = sp.csr_array(np.where(np.abs(A) > 1, A, 0.0)) if sparse else A
    model = classifier(memory_dtype="float64" if float64 else "float32")
    model.partial_fit(A[:n], y[:n], classes=CLASSES, chunk_id=0)
    here, used = {0: 0}, {0: None}  # chunk id to which content, and with which weights
    for what, k, weights in sequence:
        part = here.get(k, k)
        data = A[part * n : part * n + n], y[part * n : part * n + n]
        if isinstance(weights, str):
            weights = np.linspace(0, 2, n)
        if what == "visit":
            model.partial_fit(*data, sample_weight=weights, chunk_id=k)
            here[k], used[k] = part, np.full(n, 1.0 if weights is None else weights)
        elif k not in here:
            with pytest.raises(ValueError, match="not known"):
                model.forget(k)
        elif what == "replace":
            other = k + 4 if part == k else k
            fresh = A[other * n : other * n + n], y[other * n : other * n + n]
            if model.state_.chunks[k].total is None:
                with pytest.raises(ValueError, match="needs its old data"):
                    model.partial_fit(*fresh, sample_weight=weights, chunk_id=k, replace=True)
                model.forget(k, *data)
            model.partial_fit(*fresh, sample_weight=weights, chunk_id=k, replace=True)
            assert model.n_iter_ == 1
            here[k], used[k] = other, np.full(n, 1.0 if weights is None else weights)
        elif what == "forget" and model.state_.chunks[k].total is not None:
            model.forget(k)
            del here[k]
        else:
            model.forget(k, *data)
            del here[k]
        assert_consistent(model, {k: A[part * n : part * n + n] for k, part in here.items()})
        assert_sums(
            model, {k: (A[part * n : part * n + n], y[part * n : part * n + n], used[k]) for k, part in here.items()}
        )


@pytest.mark.parametrize("n", [FEW, MANY])
def test_what_is_left_has_the_optimum_of_the_others(n):
    A, y = make_rows(n=5 * n)
    parts = [(A[k * n : k * n + n], y[k * n : k * n + n]) for k in range(5)]
    model = classifier(memory_dtype="float64")
    for _ in range(3):
        for X, b in parts:
            model.partial_fit(X, b, classes=CLASSES)
    model.forget(X=parts[0][0], y=parts[0][1]).forget(X=parts[3][0], y=parts[3][1])
    left = [parts[k] for k in (1, 2, 4)]
    for _ in range(60):
        for X, b in left:
            model.partial_fit(X, b)
    B, c = (np.concatenate(columns) for columns in zip(*left, strict=True))
    best = LogisticRegression(C=1 / (1e-2 * len(c)), tol=1e-10, solver="newton-cholesky").fit(B, c)
    np.testing.assert_allclose(model.coef_, best.coef_, rtol=1e-5, atol=1e-7)
    assert len(model.state_.chunks) == 3


def test_a_replaced_chunk_has_no_part_in_the_optimum():
    A, b = make_rows(n=360, classes=False)
    model = SAGARegressor(alpha=0.1, random_state=0, memory_dtype="float64")
    for _ in range(3):
        model.partial_fit(A[:120], 1e3 * b[:120], chunk_id="a").partial_fit(A[120:240], b[120:240], chunk_id="b")
    model.partial_fit(A[240:], b[240:], chunk_id="a", replace=True)
    assert list(model.state_.chunks) == ["b", "a"]
    for _ in range(60):
        model.partial_fit(A[120:240], b[120:240], chunk_id="b").partial_fit(A[240:], b[240:], chunk_id="a")
    np.testing.assert_allclose(model.coef_, Ridge(alpha=24).fit(A[120:], b[120:]).coef_, rtol=1e-6)


def test_replace_with_the_same_content_is_a_revisit(binary):
    model = classifier().partial_fit(*binary, classes=CLASSES, chunk_id=0)
    other = copy.deepcopy(model).partial_fit(*binary, chunk_id=0, replace=True)
    assert other.n_iter_ == 2
    np.testing.assert_array_equal(other.coef_, model.partial_fit(*binary, chunk_id=0).coef_)


def test_a_bad_chunk_leaves_no_trace_in_the_steps(binary):
    A, y = binary
    good, bad = (A[:400], y[:400]), (np.where(np.arange(8) == 3, -99999.0, A[400:]), y[400:])
    alone = classifier(alpha=1e-3).partial_fit(*good, classes=CLASSES)
    model = classifier(alpha=1e-3).partial_fit(*good, classes=CLASSES).partial_fit(*bad).forget(X=bad[0], y=bad[1])
    for _ in range(30):
        alone.partial_fit(*good)
        model.partial_fit(*good)
    np.testing.assert_allclose(model.state_.metric.scale, alone.state_.metric.scale, rtol=0.05)
    np.testing.assert_allclose(model.coef_, alone.coef_, rtol=1e-4)


def test_forget_lets_a_diverged_estimator_go_on(numbers):
    A, b = numbers
    model = SAGARegressor(step_size=1e-6, random_state=0).partial_fit(A[:300], b[:300])
    with pytest.warns(match="diverged"):
        model.partial_fit(1e48 * A[300:], b[300:], chunk_id="bad")
    assert model.diverged_
    model.forget("bad", 1e48 * A[300:], b[300:])
    before = model.coef_
    assert not model.partial_fit(A[:300], b[:300]).diverged_
    assert not np.array_equal(model.coef_, before)


def test_all_chunks_can_leave(binary):
    A, y = binary
    model = classifier().partial_fit(A[:300], y[:300], classes=CLASSES, chunk_id=0)
    model.partial_fit(A[300:], y[300:], chunk_id=1).forget(0).forget(1)
    head = model.state_.head
    assert (head.rows, head.weight, model.state_.n_samples) == (0, 0.0, 0)
    assert not head.gradient_sum.any()
    assert np.isfinite(model.predict_proba(A)).all()
    for _ in range(60):
        model.partial_fit(A, y)
    best = LogisticRegression(C=1 / 6, tol=1e-10, solver="newton-cholesky").fit(A, y)
    np.testing.assert_allclose(model.coef_, best.coef_, rtol=1e-4)


def test_repeated_content_leaves_one_at_a_time(binary):
    import dask.array as da

    A, y = np.tile(binary[0], (3, 1)), np.tile(binary[1], 3)
    model = classifier().fit(da.from_array(A, chunks=(600, 8)), da.from_array(y, chunks=600))
    for left in (2, 1, 0):
        assert len(model.forget(X=binary[0], y=binary[1]).state_.chunks) == left
    with pytest.raises(ValueError, match="not the content of a known chunk"):
        model.forget(X=binary[0], y=binary[1])


def test_what_forget_refuses_changes_nothing(binary):
    A, y = binary
    with pytest.raises(NotFittedError):
        classifier().forget(0)
    model = classifier().partial_fit(A[:FEW], y[:FEW], classes=CLASSES, chunk_id="few")
    model.partial_fit(A[FEW:], y[FEW:], chunk_id=1)
    state = model.state_
    for given_, message in (
        ({}, "needs the chunk_id"),
        ({"X": A}, "needs the chunk_id"),
        ({"chunk_id": "none"}, "chunk_id='none' is not known"),
        ({"chunk_id": "few"}, "'few' has so few rows"),
        ({"chunk_id": 1, "X": A, "y": y}, "not the content of chunk_id=1"),
        ({"X": A, "y": y}, "not the content of a known chunk"),
        ({"chunk_id": 1, "X": A[:, :3], "y": y}, "expecting 8 features"),
    ):
        with pytest.raises(ValueError, match=message):
            model.forget(**given_)
    with pytest.raises(TypeError, match=r"chunk_id=2\.5"):
        model.forget(2.5)
    for options, message in (
        ({"replace": True}, "replace=True needs a chunk_id"),
        ({"check_content": False}, "check_content=False needs a chunk_id"),
        ({"chunk_id": 1, "replace": True, "check_content": False}, "replace=True needs check_content"),
        ({"chunk_id": 1, "check_content": False}, "known with other content"),
        ({"chunk_id": 1}, "known with other content"),
    ):
        with pytest.raises(ValueError, match=message):
            model.partial_fit(A[:FEW], y[:FEW], **options)
    assert model.state_ is state


def test_forget_and_replace_are_the_same_after_a_pickle(binary):
    A, y = binary
    one = classifier().partial_fit(A[:300], y[:300], classes=CLASSES, chunk_id=0)
    one.partial_fit(A[300:], y[300:], chunk_id=1)
    assert one.state_.chunks[0].total is not None
    other = pickle.loads(pickle.dumps(one))
    for model in (one, other):
        model.forget(0).partial_fit(A[:200], y[:200], chunk_id=1, replace=True)
    assert tokenize(one) == tokenize(other)
    np.testing.assert_array_equal(one.coef_, other.coef_)


def test_a_pickle_ships_memory_out_of_band(binary):
    A, y = np.tile(binary[0], (100, 1)), np.tile(binary[1], 100)
    model = classifier().partial_fit(A, y, classes=CLASSES)
    buffers = []
    band = pickle.dumps(model, protocol=5, buffer_callback=buffers.append)
    assert len(band) < 6000
    assert sum(memoryview(buffer).nbytes for buffer in buffers) > 4 * len(y)
    other = pickle.loads(band, buffers=buffers).partial_fit(A, y)
    np.testing.assert_array_equal(other.coef_, model.partial_fit(A, y).coef_)


@pytest.mark.parametrize("n", [600, 60_000])
def test_a_row_takes_at_most_five_bytes_and_a_chunk_little(binary, n):
    A, y = np.resize(binary[0], (n, 8)), np.resize(binary[1], n)
    model = classifier().partial_fit(A, y, classes=CLASSES)
    memory = model.state_.chunks[next(iter(model.state_.chunks))]
    arrays = [memory.gradients, memory.total, *memory.stats]
    assert sum(array.nbytes for array in arrays if isinstance(array, np.ndarray)) <= 5 * n


@pytest.mark.parametrize(("curvature", "least"), [(False, 0), (True, 2 * 21 * 8)])  # two x of each chunk's model
def test_a_stream_of_small_batches_takes_about_a_kilobyte_each(curvature, least):
    A, y = make_rows(n=32 * 200, p=20)
    model = classifier(curvature=curvature)
    for k in range(200):
        model.partial_fit(A[32 * k : 32 * k + 32], y[32 * k : 32 * k + 32], classes=CLASSES)
        if k == 99:
            before = len(pickle.dumps(model)), sizeof(model)
    assert len(pickle.dumps(model)) - before[0] < 100 * (800 + least)
    assert sizeof(model) - before[1] < 100 * (800 + least)


def test_coordinates_are_chosen_anew_only_for_new_data(monkeypatch):
    from dask_saga.solver import incremental

    chosen, choose = [], incremental.choose_preconditioner
    monkeypatch.setattr(incremental, "choose_preconditioner", lambda *given_: chosen.append(1) or choose(*given_))
    A, y = make_rows(n=4000, p=5)
    model = classifier()
    for k in range(100):
        rows = slice(40 * k, 40 * k + 40)
        model.partial_fit(A[rows], y[rows], classes=CLASSES, chunk_id=k)
    assert len(chosen) < 60
    before = len(chosen)
    model.partial_fit(A[:40], y[:40], chunk_id=0)
    assert len(chosen) == before
    B = A[:40].copy()
    B[3, 2] = 1e5
    scale = model.state_.metric.scale
    model.partial_fit(B, y[:40], chunk_id="far off")
    assert len(chosen) == before + 1
    assert model.state_.metric.scale.min() < 1e-3 * scale.min()


def test_tokens_tell_what_was_forgotten(binary):
    A, y = binary
    model = classifier().partial_fit(A[:300], y[:300], classes=CLASSES, chunk_id=0)
    model.partial_fit(A[300:], y[300:], chunk_id=1)
    one, other = copy.deepcopy(model).forget(0), copy.deepcopy(model).forget(1)
    assert len({tokenize(m) for m in (model, one, other)}) == 3


def test_content_that_is_promised_is_not_hashed(binary, monkeypatch):
    from dask_saga.data import validation

    A, y = binary
    expected = classifier().partial_fit(A, y, classes=CLASSES, chunk_id=0).partial_fit(A, y, chunk_id=0)
    monkeypatch.setattr(validation, "content_hash", None)
    model = classifier().partial_fit(A, y, classes=CLASSES, chunk_id=0, check_content=False)
    model.partial_fit(A, y, chunk_id=0, check_content=False)
    np.testing.assert_array_equal(model.coef_, expected.coef_)
    monkeypatch.undo()
    model.partial_fit(A, y, chunk_id=0)  # nothing to compare with
    assert model.n_iter_ == 3
    assert len(model.forget(0).state_.chunks) == 0


def test_a_light_copy_predicts_and_no_more(binary):
    A, y = binary
    model = classifier().partial_fit(np.tile(A, (100, 1)), np.tile(y, 100), classes=CLASSES)
    light = model.without_memory()
    np.testing.assert_array_equal(light.predict_proba(A), model.predict_proba(A))
    assert light.score(A, y) == model.score(A, y)
    assert len(pickle.dumps(light)) < 3000 < len(pickle.dumps(model))
    for refused in (lambda: light.partial_fit(A, y), lambda: light.forget(X=A, y=y)):
        with pytest.raises(ValueError, match="without_memory"):
            refused()
    assert model.state_ is not None
    assert light.fit(A, y).state_ is not None
    twin = copy.copy(model)
    twin.coef_ = 2 * model.coef_
    assert tokenize(twin.without_memory()) != tokenize(model.without_memory()) != tokenize(model)


# Column statistics


def stats_of(A, y, weights=None):
    problem = Problem(SquaredError(), ElasticNet(l2=1e-4), fit_intercept=True)
    return column_stats(read_chunk(A, y, weights), problem)


@pytest.mark.parametrize("sparse", [False, True])
def test_statistics_of_what_is_left(sparse):
    A, y = make_rows(n=300, classes=False)
    A[:, 2] += 1e6
    A = sp.csr_array(np.where(np.abs(A) > 1, A, 0.0)) if sparse else A
    weights = np.linspace(0.5, 2, 300)
    one, other = stats_of(A[:200], y[:200], weights[:200]), stats_of(A[200:], y[200:], weights[200:])
    rest = without(merge(one, other), other)
    for name in ("rows", "weight", "mean", "squares", "counts", "target", "cross", "products"):
        expected, found = getattr(one, name), getattr(rest, name)
        if expected is None:
            assert found is None
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-7, err_msg=name)
    assert (rest.low <= one.low).all()
    assert (rest.high >= one.high).all()


def test_statistics_where_little_is_left_or_known():
    A, y = make_rows(n=300, classes=False)
    B = A.copy()
    B[200:, 3] = 1e12
    one, other = stats_of(B[:200], y[:200]), stats_of(B[200:], y[200:])
    rest = without(merge(one, other), other)
    assert (rest.squares > 0).all()
    assert np.linalg.eigvalsh(rest.products).min() > -1e-6 * np.trace(rest.products)
    np.testing.assert_allclose(np.delete(rest.squares, 3), np.delete(one.squares, 3), rtol=1e-9)
    whole = stats_of(A, y)
    rest = without(whole, typical(whole, 100))
    np.testing.assert_allclose(rest.mean, whole.mean)
    np.testing.assert_allclose(rest.products, whole.products * 2 / 3)
    assert without(whole, whole).rows == 0
    heavier = typical(whole, 100)._replace(weight=1e4)
    assert without(whole, heavier).weight == pytest.approx(200)


def test_steps_follow_a_window_over_columns_that_drift():
    rng = np.random.default_rng(0)
    model = classifier(curvature=False)
    for month in range(40):
        time = 1e6 * month + 1e6 * rng.random(400)
        X = np.c_[time, rng.standard_normal((400, 3))]
        model.partial_fit(X, np.sign(X[:, 1] + rng.standard_normal(400)), classes=CLASSES, chunk_id=month)
        while len(model.state_.chunks) > 4:
            model.forget(next(iter(model.state_.chunks)))
    assert list(model.state_.chunks) == [36, 37, 38, 39]
    assert model.state_.metric.shift[0] == pytest.approx(1e6 * 38, rel=0.03)
    assert 1 / np.sqrt(model.state_.metric.scale[0]) == pytest.approx(4e6 / np.sqrt(12), rel=0.3)


# The mapping


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=60))
def test_a_shared_map_is_an_immutable_dict(changes):
    from dask_saga.data import immutable_map

    expected, model, seen = {}, ImmutableMap(), []
    before, immutable_map.LEAST_RECENT = immutable_map.LEAST_RECENT, 3
    try:
        for number, (adds, key) in enumerate(changes):
            if adds:
                expected = {**expected, key: number}
                model = model.set(key, number)
            else:
                expected = {k: v for k, v in expected.items() if k != key}
                model = model.without(key)
            seen.append((model, expected))
        for one, other in seen:
            assert isinstance(one, Mapping)
            assert list(one.items()) == list(other.items())
            assert len(one) == len(other)
            assert list(pickle.loads(pickle.dumps(one)).items()) == list(other.items())
            assert all((key in one) == (key in other) for key in range(13))
    finally:
        immutable_map.LEAST_RECENT = before


# Replay


def test_replay_spends_its_budget_on_old_chunks():
    for budget in (0.0, 0.5, 1.0, 2.5):
        visits = list(replay(range(100), budget, random_state=0))
        assert len(visits) == 100 + int(99 * budget)  # there is none beside the first
        new = [k for n, k in enumerate(visits) if k not in visits[:n]]
        assert new == list(range(100))
    for window in (1, 5, 20):
        newest, ages = 0, []
        for k in replay(range(500), 3, window=window, random_state=0):
            newest = max(newest, k)
            ages.append(newest - k)
        assert max(ages) == window - 1
    assert list(replay("abcdef", random_state=1)) == list(replay("abcdef", random_state=1))
    assert list(replay("abc", 0)) == list("abc")
    for bad, name in (({"budget": -1.0}, "budget"), ({"budget": np.nan}, "budget"), ({"window": 0}, "window")):
        with pytest.raises(ValueError, match=f"{name}=.* must be"):
            replay("abc", **bad)


def test_replacing_a_chunk_of_few_rows_asks_for_its_old_data(binary):
    A, b = binary
    model = SAGAClassifier(random_state=0).partial_fit(A, b, classes=np.unique(b), chunk_id="many")
    model.partial_fit(A[:20], b[:20], chunk_id="few")
    with pytest.raises(ValueError, match="replace=True needs its old data: first forget\\('few', X_old, y_old\\)"):
        model.partial_fit(A[20:40], b[20:40], chunk_id="few", replace=True)
    model.forget("few", A[:20], b[:20]).partial_fit(A[20:40], b[20:40], chunk_id="few")
    assert model.state_.n_samples == len(A) + 20


def test_products_of_which_too_much_left_are_not_rotated(monkeypatch):
    # Differences of large sums may leave products that belong to no columns.
    monkeypatch.setattr("dask_saga.solver.preconditioner_choice.ROTATES_FREELY", 1e9)
    A, b = make_rows(200, 3)
    problem = Problem(LogLoss(), ElasticNet(l2=1e-4), True)
    stats = column_stats(read_chunk(A @ np.triu(np.ones((3, 3))), b, loss=problem.loss), problem)
    assert choose_preconditioner(stats, problem).rotation is not None
    size = np.sqrt(stats.squares)
    impossible = np.array([[1.0, 0.99, -0.99], [0.99, 1.0, 0.99], [-0.99, 0.99, 1.0]]) * np.outer(size, size)
    metric = choose_preconditioner(stats._replace(products=impossible), problem)
    assert metric.rotation is None
    assert np.isfinite(metric.scale).all()
