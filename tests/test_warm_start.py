"""``warm_start``: a fit that begins at the coefficients of one before."""

import copy

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from dask.base import tokenize
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer

from dask_saga import SAGAClassifier, SAGARegressor
from dask_saga.penalties import ElasticNet

from .conftest import make_rows

A, y = make_rows()
LARGE = make_rows(20000, 5)  # a sample of them leads
WARM = {"warm_start": True, "random_state": 0}
classes = np.digitize(A @ np.linspace(-1.0, 1.0, 8), [-1.0, 1.0])


def attributes(model):
    return {name: value for name, value in vars(model).items() if name.endswith("_")}


CASES = {
    "dense": lambda: (SAGAClassifier(**WARM), A, y),
    "a sample": lambda: (SAGAClassifier(**WARM), *LARGE),
    "chunks": lambda: (SAGAClassifier(**WARM), da.from_array(A, chunks=(90, 8)), da.from_array(y, chunks=90)),
    "sparse": lambda: (SAGAClassifier(**WARM, alpha=1e-3), sp.csr_array(A), y),
    "L1": lambda: (SAGAClassifier(**WARM, penalty="l1", alpha=1e-2), A, y),
    "classes": lambda: (SAGAClassifier(**WARM, alpha=1e-2), A, classes),
    "numbers": lambda: (SAGARegressor(**WARM), A, A[:, :2] @ [[1.0, 0.0], [0.5, 1.0]] + 1e-3 * A[:, 2:4] ** 2),
    "plain": lambda: (SAGAClassifier(**WARM, step_size=0.01, average=False, alpha=0.1), A, y),
}


@pytest.mark.parametrize("case", CASES)
def test_at_the_optimum_one_pass_tells(case):
    model, X, b = CASES[case]()
    model.set_params(tol=1e-6, max_iter=1000).fit(X, b)
    coef, intercept = model.coef_, model.intercept_
    model.set_params(tol=1e-5).fit(X, b)
    assert model.n_iter_ == 1
    assert model.converged_
    assert model.history_[0]["gradient_norm"] <= 1e-5
    assert np.array_equal(model.coef_, coef)
    assert np.array_equal(model.intercept_, intercept)


@pytest.mark.parametrize("case", CASES)
def test_the_optimum_is_that_of_a_fit_from_none(case):
    model, X, b = CASES[case]()
    model.set_params(tol=1e-9, max_iter=3000, memory_dtype="float64")
    cold = clone(model).fit(X, b)
    half = len(b) // 2
    model.fit(X[:half], b[:half]).fit(X, b)
    assert model.converged_
    np.testing.assert_allclose(model.coef_, cold.coef_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.intercept_, cold.intercept_, rtol=1e-5, atol=1e-6)
    assert model.state_.n_samples == len(b)  # chunks of the fit before are forgotten
    if case == "chunks":
        assert model.partial_fit(A[:90], y[:90]).state_.n_samples == len(b), "and those of this one known"


def test_a_path_takes_fewer_passes():
    X, b = load_breast_cancer(return_X_y=True)
    passes = {}
    for warm in (False, True):
        model = SAGAClassifier(penalty="l1", max_iter=2000, random_state=0, warm_start=warm)
        passes[warm] = sum(model.set_params(alpha=alpha).fit(X, b).n_iter_ for alpha in np.logspace(-1, -4, 10))
    assert passes[True] < passes[False]


def test_it_begins_where_partial_fit_ended_and_without_memory():
    X, b = LARGE
    model = SAGAClassifier(**WARM)
    for _ in range(30):
        model.partial_fit(X, b, classes=[-1.0, 1.0])
    light = model.without_memory()
    assert light.fit(X, b).n_iter_ == 1
    assert light.state_ is not None
    assert np.array_equal(light.coef_, model.coef_)
    assert model.fit(X, b).coef_.tobytes() == light.coef_.tobytes()


def test_the_same_bits_wherever_it_runs(client):
    models = []
    for scheduler in ("sync", "threads", None):
        X, b = (da.from_array(one, chunks=4000) for one in LARGE)
        model = SAGAClassifier(**WARM, tol=1e-8)
        with dask.config.set({"scheduler": scheduler} if scheduler else {}):
            models.append(model.fit(X[:8000], b[:8000]).fit(X, b))
    for model in models[1:]:
        assert model.coef_.tobytes() == models[0].coef_.tobytes()
        assert model.state_.digest == models[0].state_.digest


def test_where_zero_is_better_it_is_no_start():
    X, b = LARGE
    cold = SAGAClassifier(random_state=0).fit(X, b)
    model = SAGAClassifier(**WARM).fit(X, b)
    model.coef_ = -100.0 * model.coef_
    model.fit(X, b)
    assert model.coef_.tobytes() == cold.coef_.tobytes()
    assert model.state_.digest == cold.state_.digest


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_other_starts_have_other_tokens():
    starts = [SAGAClassifier(**WARM, max_iter=2).fit(A[rows], y[rows]) for rows in (slice(300), slice(300, 600))]
    assert len({tokenize(model.set_params(tol=0.0).fit(A, y)) for model in starts}) == 2


def test_parameters_may_have_changed():
    model = SAGAClassifier(**WARM).fit(A, y)
    assert model.coef_.min() < 0 < abs(model.intercept_[0])
    bounds = {"penalty": ElasticNet(l2=1e-2, lower=0.0), "fit_intercept": False, "tol": 1e-8}
    warm = model.set_params(**bounds).fit(A, y)
    cold = SAGAClassifier(**bounds, random_state=0).fit(A, y)
    assert warm.intercept_ == 0
    assert (warm.coef_ >= 0).all()
    np.testing.assert_allclose(warm.coef_, cold.coef_, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_checkpoint_comes_first(tmp_path):
    start = SAGAClassifier(**WARM, tol=0.0, max_iter=4).fit(A[:300], y[:300])
    whole = copy.copy(start).set_params(max_iter=8).fit(A, y)
    copy.copy(start).fit(A, y, checkpoint=tmp_path)
    assert start.n_iter_ == 4
    again = SAGAClassifier(**WARM, tol=0.0, max_iter=8).fit(A, y, checkpoint=tmp_path)  # as in another process
    assert again.coef_.tobytes() == whole.coef_.tobytes()


@pytest.mark.parametrize(
    ("X", "b", "message"),
    [
        (A[:, :5], y, "5 features"),
        (A, classes, r"classes \[0, 1, 2\], but coef_, from which warm_start=True starts, has \[-1.0, 1.0\]"),
        (da.from_array(A[:, :5], chunks=(90, 5)), da.from_array(y, chunks=90), "5 features"),
    ],
)
def test_data_of_another_shape_are_refused(X, b, message):
    model = SAGAClassifier(**WARM).fit(A, y)
    before = attributes(model)
    with pytest.raises(ValueError, match=message):
        model.fit(X, b)
    assert attributes(model) == before
    assert model.set_params(warm_start=False).fit(X, b).n_features_in_ == X.shape[1]


def test_another_number_of_targets_is_refused():
    model = SAGARegressor(**WARM).fit(A, y)
    before = attributes(model)
    with pytest.raises(ValueError, match="y has 2 columns, but coef_, from which warm_start=True starts, has 1"):
        model.fit(A, A[:, :2])
    assert attributes(model) == before
