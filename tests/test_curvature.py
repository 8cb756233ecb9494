"""Curvature in the state: ``partial_fit`` nears the optimum in a few visits, and its sums are those of its chunks."""

import math
import pickle
from typing import NamedTuple

import numpy as np
import pytest
import scipy.sparse as sp

from dask_saga import SAGAClassifier, SAGARegressor
from dask_saga.data.validation import read_chunk
from dask_saga.losses import (
    CloglogLoss,
    GammaLoss,
    Huber,
    LogLoss,
    ModifiedHuber,
    MultinomialLogLoss,
    NegativeBinomial,
    PoissonLoss,
    ProbitLoss,
    SquaredError,
)
from dask_saga.penalties import ElasticNet
from dask_saga.solver import curvature as models
from dask_saga.solver.curvature import chunk_hessian
from dask_saga.solver.local_model import predictions

from . import oracles
from .conftest import make_rows

CLASSES = [-1.0, 1.0]


def parts_of(A, y, count, order=None):
    """Return `count` chunks of the rows in some order."""
    order = np.arange(len(y)) if order is None else order
    return [(A[rows], y[rows]) for rows in np.array_split(order, count)]


def train(model, parts, passes=1, classes=None):
    """Visit all chunks `passes` times."""
    for _ in range(passes):
        for k, (A, y) in enumerate(parts):
            model.partial_fit(A, y, chunk_id=k, **({} if classes is None else {"classes": classes}))
    return model


def gap(model, A, y, loss, penalty):
    """Return the relative suboptimality by the exact objective."""
    best = oracles.reference(A, y, loss, penalty, True)
    x = np.column_stack([np.atleast_2d(model.coef_), np.ravel(model.intercept_)])
    dense = A.toarray() if sp.issparse(A) else A
    at, least, zero = (oracles.exact_objective(dense, y, v, loss, penalty) for v in (x, best, np.zeros_like(x)))
    return (at - least) / (zero - least)


LOSSES = {
    "log_loss": LogLoss(),
    "multinomial": MultinomialLogLoss(3),
    "modified_huber": ModifiedHuber(),
    "squared_error": SquaredError(),
    "huber": Huber(),
    "poisson": PoissonLoss(),
    "gamma": GammaLoss(),
    "negative_binomial": NegativeBinomial(),
    "probit": ProbitLoss(),
    "cloglog": CloglogLoss(),
}
PENALTIES = {
    "l2": ElasticNet(l2=1e-2),
    "l1": ElasticNet(l1=1e-2),
    "bounds": ElasticNet(l2=1e-2, lower=0.0, upper=0.3),
    "none": ElasticNet(),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("sparse", [False, True])
def test_three_passes_reach_the_optimum(name, penalty, sparse):
    loss, penalty = LOSSES[name], PENALTIES[penalty]
    rng = np.random.default_rng(0)
    A = rng.standard_normal((600, 5)) @ (np.eye(5) + 0.5 * rng.standard_normal((5, 5))) + [0, 3, 0, 0, -2]
    A = np.where(np.abs(A) > 0.7, A, 0.0) if sparse else A
    z = 0.5 * A @ rng.standard_normal(5) + rng.logistic(size=600)
    z = z - np.median(z)
    y = np.where(z > 0, 1.0, -1.0)
    counts = rng.poisson(np.exp(np.clip(z, -2, 2)))
    y = {"poisson": counts, "negative_binomial": counts, "gamma": counts + 0.5}.get(
        name, y if hasattr(loss, "labels") else z
    )
    y = np.digitize(z, [-1, 1]).astype(float) if name == "multinomial" else y
    kind = SAGAClassifier if getattr(loss, "labels", None) or name == "multinomial" else SAGARegressor
    model = kind(name if name != "multinomial" else "log_loss", penalty=penalty, random_state=0, memory_dtype="float64")
    rows = sp.csr_array(A) if sparse else A
    train(model, parts_of(rows, y, 6), 3, np.unique(y) if kind is SAGAClassifier else None)
    assert model.state_.curvature is not None
    assert gap(model, A, y, loss, penalty) < 1e-7


@pytest.mark.parametrize("count", [3, 20])
def test_one_pass_comes_close_in_any_order(count):
    """The rows drift, and are sorted: steps of gradients alone are then far off."""
    A, y = make_rows(n=4000, p=6)
    A = A + 2 * np.sin(np.linspace(0, 6, 4000)[:, None] + np.arange(6))
    parts, loss, penalty = parts_of(A, y, count), LogLoss(), ElasticNet(l2=1e-2)
    gaps = {}
    for curvature in (True, False):
        model = train(SAGAClassifier(alpha=1e-2, random_state=0, curvature=curvature), parts, 1, CLASSES)
        gaps[curvature] = gap(model, A, y, loss, penalty)
    print(gaps)
    assert gaps[True] < 2e-2
    assert gaps[True] < gaps[False] / 5


def assert_sums(model, rows):
    """The sums in the state are those of the models of its chunks. `rows` maps ids to X, y and perhaps weights."""
    state, problem = model.state_, model._problem()
    hessian, product, weight = 0.0, 0.0, 0.0
    for key, memory in state.chunks.items():
        own = memory.curvature
        if own is None:
            continue
        X, y, weights = (*rows[key], None)[:3]
        chunk = read_chunk(X, y, weights, classes=np.array(CLASSES), class_weights=None, loss=problem.loss)
        h = own.hessian
        if h is None:
            h = chunk_hessian(chunk, predictions(chunk.rows, own.x), state.curvature, problem, own.is_first)
        hessian, product, weight = hessian + h, product + own.product, weight + own.weight
    if state.curvature is None:
        assert weight == 0
        return
    scale = np.abs(hessian).max()
    np.testing.assert_allclose(state.curvature.hessian, hessian, rtol=0, atol=1e-9 * scale)
    np.testing.assert_allclose(state.curvature.product, product, rtol=0, atol=1e-9 * max(scale, np.abs(product).max()))
    assert state.curvature.weight == pytest.approx(weight)


@pytest.mark.parametrize("n", [8, 200])  # Hessians are computed again; they are kept
def test_sums_are_those_of_the_chunks(n):
    A, y = make_rows(n=8 * n, p=5)
    parts = parts_of(A, y, 8)
    model, rng, here = SAGAClassifier(alpha=1e-2, random_state=0), np.random.default_rng(n), {}
    for number in range(120):
        k = int(rng.integers(5))
        what = rng.choice(["visit", "visit", "visit", "replace", "forget"]) if len(here) > 1 else "visit"
        if what == "visit":
            here.setdefault(k, k)
            model.partial_fit(*parts[here[k]], classes=CLASSES, chunk_id=k)
        elif k in here:
            old = here.pop(k)
            model.forget(k, *parts[old])
            if what == "replace":
                here[k] = (old + 3) % 8
                model.partial_fit(*parts[here[k]], chunk_id=k)
        if number % 10 == 9:
            assert_sums(model, {key: parts[part] for key, part in here.items()})
    kept = [memory.curvature.hessian is not None for memory in model.state_.chunks.values()]
    assert all(kept) if n == 200 else not any(kept)


def test_a_chunk_that_is_forgotten_without_its_rows_takes_all_models_along():
    """Its Hessian was not kept and cannot be computed, so the models start anew. The optimum stays the right one."""
    A, y = make_rows(n=1140, p=40)
    parts = parts_of(A, y, 6)  # 190 rows of 40 columns: the sum of gradients is kept, the Hessian is not
    model = train(SAGAClassifier(alpha=1e-2, random_state=0, memory_dtype="float64"), parts, 2, CLASSES)
    assert model.state_.chunks[0].total is not None
    model.forget(0)
    assert model.state_.curvature is None
    assert all(memory.curvature is None for memory in model.state_.chunks.values())
    for _ in range(3):
        for k, part in enumerate(parts[1:], 1):
            model.partial_fit(*part, chunk_id=k)
    assert gap(model, A[190:], y[190:], LogLoss(), ElasticNet(l2=1e-2)) < 1e-7
    assert_sums(model, dict(enumerate(parts)))


def test_other_weights_of_a_known_chunk():
    """A second visit with other weights: the first model is subtracted, or all are dropped if that is impossible."""
    for n in (20, 200):
        A, y = make_rows(n=3 * n, p=5)
        model = train(SAGAClassifier(alpha=1e-2, random_state=0), parts_of(A, y, 3), 2, CLASSES)
        weights = np.linspace(1, 2, n)
        for _ in range(4):
            for k, part in enumerate(parts_of(A, y, 3)):
                model.partial_fit(*part, chunk_id=k, sample_weight=weights)
        whole = SAGAClassifier(alpha=1e-2, random_state=0, tol=1e-8, max_iter=1000, memory_dtype="float64")
        whole.fit(A, y, sample_weight=np.tile(weights, 3))
        np.testing.assert_allclose(model.coef_, whole.coef_, rtol=1e-4)


@pytest.mark.parametrize(
    "given", [{"step_size": 0.1}, {"step_size_scale": 0.1}, {"average": False}, {"curvature": False}]
)
def test_a_step_of_the_users_own_takes_steps(given):
    A, y = make_rows()
    model = train(SAGAClassifier(random_state=0, **given), parts_of(A, y, 2), 2, CLASSES)
    assert model.state_.curvature is None
    model.set_params(curvature=True)
    assert train(model, parts_of(A, y, 2)).state_.curvature is not None


def test_few_rows_of_many_columns_take_steps():
    rng = np.random.default_rng(0)
    A, y = rng.standard_normal((8, 400)), np.tile(CLASSES, 4)
    assert SAGAClassifier(random_state=0).partial_fit(A, y, classes=CLASSES).state_.curvature is None
    A, y = rng.standard_normal((8, 4)), np.tile(CLASSES, 4)
    assert SAGAClassifier(random_state=0).partial_fit(A, y, classes=CLASSES).state_.curvature is not None


def test_steps_follow_curvature_and_curvature_follows_steps():
    """Both write the same gradient memory, so they can take turns."""
    A, y = make_rows(n=600, p=5)
    parts, penalty = parts_of(A, y, 4), ElasticNet(l2=1e-2)
    model = train(SAGAClassifier(alpha=1e-2, random_state=0, memory_dtype="float64"), parts, 1, CLASSES)
    train(model.set_params(curvature=False), parts[:2])
    assert model.state_.chunks[0].curvature is None
    assert model.state_.chunks[3].curvature is not None
    assert_sums(model, dict(enumerate(parts)))
    train(model, parts, 100)
    assert gap(model, A, y, LogLoss(), penalty) < 1e-4
    train(model.set_params(curvature="auto"), parts, 3)
    assert gap(model, A, y, LogLoss(), penalty) < 1e-8


def test_chunks_of_a_fit_have_no_model_at_first():
    import dask.array as da

    A, y = make_rows(n=600, p=5)
    X, t = da.from_array(A, chunks=(150, 5)), da.from_array(y, chunks=150)
    model = SAGAClassifier(alpha=1e-2, random_state=0).fit(X, t)
    before = gap(model, A, y, LogLoss(), ElasticNet(l2=1e-2))
    model.partial_fit(A[:150], y[:150])
    assert 0 < model.state_.curvature.weight < model.state_.head.weight
    after = gap(model, A, y, LogLoss(), ElasticNet(l2=1e-2))
    assert after < 2 * before + 1e-6


@pytest.mark.parametrize(
    "rows",
    [
        [1, 1, 1, 1, 1, 1],  # one row each
        [200, 1, 200, 1],
        [3, 500, 3],
    ],
)
def test_chunks_of_any_length(rows):
    A, y = make_rows(n=sum(rows), p=3)
    y[:2] = CLASSES
    ends = np.cumsum(rows)
    parts = [(A[e - n : e], y[e - n : e]) for n, e in zip(rows, ends, strict=True)]
    model = SAGAClassifier(alpha=1e-2, random_state=0, memory_dtype="float64", curvature=True)
    train(model, parts, 5, CLASSES)
    assert gap(model, A, y, LogLoss(), ElasticNet(l2=1e-2)) < 1e-6


def test_rows_sorted_by_label_and_chunks_of_zeros():
    """The first chunks are of one class, and a chunk may be all zeros: no visit may go far astray for them."""
    A, y = make_rows(n=1200, p=5)
    order = np.argsort(y, kind="stable")
    parts = [*parts_of(A, y, 8, order), (np.zeros((40, 5)), np.tile(CLASSES, 20))]
    X, t = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    gaps = {}
    for curvature in ("auto", False):
        model = SAGAClassifier(alpha=1e-2, random_state=0, curvature=curvature)
        gaps[curvature] = []
        for _ in range(3):
            train(model, parts, 1, CLASSES)
            gaps[curvature].append(gap(model, X, t, LogLoss(), ElasticNet(l2=1e-2)))
    assert all(one <= 2 * other for one, other in zip(gaps["auto"], gaps[False], strict=True))
    assert gaps["auto"][-1] < 1e-5


def test_separable_classes_without_a_penalty_stay_finite():
    A, _ = make_rows(n=400, p=3)
    y = np.where(A[:, 0] > 0, 1.0, -1.0)
    model = train(SAGAClassifier(penalty=None, random_state=0), parts_of(A, y, 4), 3, CLASSES)
    assert not model.diverged_
    assert np.isfinite(model.coef_).all()
    assert model.score(A, y) > 0.99


def test_columns_that_appear_late():
    """A column is zero in all chunks but the last one."""
    A, y = make_rows(n=900, p=4)
    A[:600, 3] = 0.0
    model = train(SAGAClassifier(alpha=1e-2, random_state=0, memory_dtype="float64"), parts_of(A, y, 6), 3, CLASSES)
    assert gap(model, A, y, LogLoss(), ElasticNet(l2=1e-2)) < 1e-8


def test_raw_columns_far_from_zero():
    A, y = make_rows(n=900, p=4)
    X = A * [1.0, 1e3, 1e-3, 1.0] + [0.0, 1e6, 0.0, 1e4]
    parts = parts_of(X, y, 6, np.random.default_rng(0).permutation(900))
    model = train(SAGAClassifier(alpha=1e-6, random_state=0, memory_dtype="float64"), parts, 3, CLASSES)
    z = model.decision_function(X)
    F = np.logaddexp(0, -y * z).mean() + 0.5e-6 * (model.coef_**2).sum()
    assert F - oracles.least_of_raw(X, y, LogLoss(), 1e-6) < 1e-9


def test_some_rows_give_the_hessian_of_many_columns(monkeypatch):
    """Any matrices lead to the right optimum, as the gradients are those of all rows."""
    monkeypatch.setattr(models, "ALL_ROWS", 2)
    monkeypatch.setattr(models, "LEAST_ROWS", 60)
    A, y = make_rows(n=2400, p=8)
    model = train(SAGAClassifier(alpha=1e-2, random_state=0, memory_dtype="float64"), parts_of(A, y, 6), 6, CLASSES)
    assert gap(model, A, y, LogLoss(), ElasticNet(l2=1e-2)) < 1e-8
    assert_sums(model, dict(enumerate(parts_of(A, y, 6))))


def test_equal_states_give_equal_bits_after_a_pickle():
    A, y = make_rows(n=600, p=5)
    parts = parts_of(A, y, 4)
    model = train(SAGAClassifier(alpha=1e-2, random_state=0), parts, 1, CLASSES)
    text = pickle.dumps(model)
    others = [pickle.loads(text), pickle.loads(text), model]
    for other in others:
        train(other, parts, 2)
    assert len({other.coef_.tobytes() for other in others}) == 1
    assert len({other.state_.curvature.hessian.tobytes() for other in others}) == 1
    assert len({other.state_.digest for other in others}) == 1


def test_intercepts_of_classes_keep_their_sum():
    """A common shift of all intercepts changes no probability, and rounding errors must not add up to one."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((2000, 8))
    y = (A @ rng.standard_normal((8, 3)) + rng.gumbel(size=(2000, 3))).argmax(axis=1)
    model = train(SAGAClassifier(random_state=0), parts_of(A, y, 4), 15, np.arange(3))
    assert abs(model.intercept_.sum()) < 1e-4
    assert np.abs(model.intercept_).max() < 10


@pytest.mark.parametrize("loss", ["smooth_hinge", "squared_hinge", "modified_huber"])
def test_losses_without_curvature_in_places(loss):
    A, y = make_rows(n=1200, p=5)
    gaps = []
    for curvature in ("auto", False):
        model = SAGAClassifier(loss, alpha=1e-3, random_state=0, curvature=curvature, memory_dtype="float64")
        gaps.append(gap(train(model, parts_of(A, y, 6), 3, CLASSES), A, y, model._problem().loss, ElasticNet(l2=1e-3)))
    assert gaps[0] < 1e-6
    assert gaps[0] < gaps[1]


def test_a_visit_that_is_not_finite_takes_steps():
    """exp(z) overflows for one row. SAGA steps withstand it."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((300, 3))
    y = rng.poisson(np.exp(A[:, 0] / 2)).astype(float)
    model = SAGARegressor("poisson", random_state=0).partial_fit(A[:150], y[:150])
    B = A[150:].copy()
    B[0, 0] = 1e5
    model.partial_fit(B, y[150:])
    assert np.isfinite(model.coef_).all()
    assert not model.diverged_


def test_targets_of_any_unit():
    A, y = make_rows(n=600, p=5, classes=False)
    for unit in (1e-7, 1e7):
        model = train(SAGARegressor(alpha=0.0, random_state=0), parts_of(A, unit * y, 4), 2)
        assert model.score(A, unit * y) > 0.5


def test_new_chunks_of_few_rows_after_a_fit_do_no_harm():
    import dask.array as da

    A, y = make_rows(n=6400, p=10)
    X, t = da.from_array(A[:6000], chunks=(1500, 10)), da.from_array(y[:6000], chunks=1500)
    model = SAGAClassifier(random_state=0).fit(X, t)
    penalty = ElasticNet(l2=1e-4)
    before = gap(model, A, y, LogLoss(), penalty)
    for _ in range(3):
        for k in range(20):
            model.partial_fit(A[6000 + 20 * k : 6020 + 20 * k], y[6000 + 20 * k : 6020 + 20 * k], chunk_id=k)
    assert gap(model, A, y, LogLoss(), penalty) < 2 * before + 1e-5


def test_a_chunk_of_much_more_weight_that_leaves():
    """What it leaves has no digits of the others' models, which start anew."""
    A, y = make_rows(n=500, p=5)
    parts = parts_of(A, y, 5)
    model = SAGAClassifier(alpha=1e-2, random_state=0, memory_dtype="float64")
    for k, part in enumerate(parts):
        model.partial_fit(*part, chunk_id=k, classes=CLASSES, sample_weight=1e10 if k == 4 else 1.0)
    model.partial_fit(*parts[4], chunk_id=4, sample_weight=1e10)
    model.forget(4)
    train(model, parts[:4], 4)
    assert gap(model, A[:400], y[:400], LogLoss(), ElasticNet(l2=1e-2)) < 1e-8
    assert_sums(model, dict(enumerate(parts)))


def test_a_huge_cell_that_is_corrected():
    """Its square has no digits of the other chunks' Hessians left, so all models start anew."""
    A, y = make_rows(n=800, p=5, classes=False)
    parts = parts_of(A, y, 4)
    wrong = parts[3][0].copy()
    wrong[0, 0] = 1e9
    model = SAGARegressor(alpha=1e-2, random_state=0, memory_dtype="float64")
    train(model, [*parts[:3], (wrong, parts[3][1])], 2)
    model.partial_fit(*parts[3], chunk_id=3, replace=True)
    train(model, parts, 4)
    assert gap(model, A, y, SquaredError(), ElasticNet(l2=1e-2)) < 1e-8


class OwnLog(NamedTuple):
    """A loss without a second derivative."""

    curvature = 0.25
    labels = (-1.0, 1.0)

    def value(self, z, y):
        return math.log1p(math.exp(-abs(z))) + max(-y * z, 0.0)

    def derivative(self, z, y):
        return -y / (1.0 + math.exp(min(y * z, 700.0)))


class OwnLogWithCurvature(NamedTuple):
    """The same with its second derivative."""

    curvature = 0.25
    labels = (-1.0, 1.0)

    def value(self, z, y):
        return math.log1p(math.exp(-abs(z))) + max(-y * z, 0.0)

    def derivative(self, z, y):
        return -y / (1.0 + math.exp(min(y * z, 700.0)))

    def second_derivative(self, z, y):
        p = 1.0 / (1.0 + math.exp(-abs(z)))
        return p * (1.0 - p)


def test_an_own_loss_takes_curvature_if_it_has_a_second_derivative():
    A, y = make_rows()
    parts = parts_of(A, y, 2)
    assert train(SAGAClassifier(OwnLog(), random_state=0), parts, 1, CLASSES).state_.curvature is None
    model = train(SAGAClassifier(OwnLogWithCurvature(), alpha=1e-2, random_state=0), parts, 3, CLASSES)
    assert model.state_.curvature is not None
    assert gap(model, A, y, LogLoss(), ElasticNet(l2=1e-2)) < 1e-7


def test_another_penalty_starts_the_models_anew():
    A, y = make_rows(n=600, p=5)
    parts = parts_of(A, y, 4)
    model = train(SAGAClassifier(alpha=1e-2, random_state=0, memory_dtype="float64"), parts, 2, CLASSES)
    train(model.set_params(alpha=1.0), parts, 3)
    assert gap(model, A, y, LogLoss(), ElasticNet(l2=1.0)) < 1e-8


def test_many_columns_of_y():
    A, y = make_rows(n=600, p=5, classes=False)
    Y = np.column_stack([y, -2 * y + A[:, 0], A[:, 1]])
    model = train(SAGARegressor(alpha=1e-2, random_state=0, memory_dtype="float64"), parts_of(A, Y, 4), 2)
    for k in range(3):
        best = oracles.reference(A, Y[:, k], SquaredError(), ElasticNet(l2=1e-2), True)
        np.testing.assert_allclose(np.append(model.coef_[k], model.intercept_[k]), best, rtol=1e-6, atol=1e-8)


def test_no_intercept():
    A, y = make_rows(n=600, p=5)
    model = SAGAClassifier(alpha=1e-2, fit_intercept=False, random_state=0, memory_dtype="float64")
    train(model, parts_of(A + 1.0, y, 4), 3, CLASSES)
    best = oracles.reference(A + 1.0, y, LogLoss(), ElasticNet(l2=1e-2), False)
    assert model.intercept_ == 0.0
    np.testing.assert_allclose(model.coef_[0], best[:-1], rtol=1e-5)
