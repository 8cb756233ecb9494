"""Subclasses whose constructor has parameters of its own work wherever the estimators do."""

import pickle

import dask.array as da
import numpy as np
import pytest
from dask.base import tokenize
from dask_ml.wrappers import Incremental
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from dask_saga import SAGAClassifier, SAGARegressor
from dask_saga.model_selection import HyperbandSearchCV, IncrementalSearchCV

from .conftest import make_rows

A, y = make_rows(n=400, p=3)
X, labels = da.from_array(A, chunks=(100, 3)), da.from_array(y, chunks=100)


class Strong(SAGAClassifier):
    """Names its penalty weight otherwise."""

    def __init__(self, strength=1.0, random_state=0):
        super().__init__(alpha=strength, random_state=random_state)
        self.strength = strength


class StrongRegressor(SAGARegressor):
    """The same for numbers."""

    def __init__(self, strength=1.0, random_state=0):
        super().__init__(alpha=strength, random_state=random_state)
        self.strength = strength


class Forgetful(SAGARegressor):
    """Keeps its parameter only as the one of the base class."""

    def __init__(self, strength=1.0):
        super().__init__(alpha=strength, random_state=0)


class Needs(SAGARegressor):
    """Has a parameter without a default, and a rule for it."""

    _parameter_constraints: dict = {**SAGARegressor._parameter_constraints, "strength": [float]}

    def __init__(self, strength):
        super().__init__(alpha=strength, random_state=0)
        self.strength = strength


PAIRS = [
    (Strong(0.1), SAGAClassifier(alpha=0.1, random_state=0)),
    (StrongRegressor(0.1), SAGARegressor(alpha=0.1, random_state=0)),
    (Forgetful(0.1), SAGARegressor(alpha=0.1, random_state=0)),
    (Needs(0.1), SAGARegressor(alpha=0.1, random_state=0)),
]
CLONED = [pair for pair in PAIRS if not isinstance(pair[0], Forgetful)]  # scikit-learn clones none of its kind


def same(model, plain):
    np.testing.assert_array_equal(model.coef_, plain.coef_)
    np.testing.assert_array_equal(model.intercept_, plain.intercept_)
    np.testing.assert_array_equal(model.predict(A), plain.predict(A))
    assert model.score(X, labels) == plain.score(X, labels)


def learned(model):
    classes = {"classes": [-1.0, 1.0]} if isinstance(model, SAGAClassifier) else {}
    for k in range(4):
        model.partial_fit(A[k * 100 : k * 100 + 100], y[k * 100 : k * 100 + 100], **classes)
    return model


@pytest.mark.parametrize(("model", "plain"), PAIRS)
def test_fit_and_partial_fit(model, plain):
    same(model.fit(A, y), plain.fit(A, y))
    same(model.fit(X, labels), plain.fit(X, labels))
    del model.state_, plain.state_, model.coef_, plain.coef_
    same(learned(model), learned(plain))
    restored = pickle.loads(pickle.dumps(model))
    same(restored, plain)
    assert vars(restored).keys() == vars(model).keys()
    assert tokenize(restored) == tokenize(model)
    same(restored.forget(X=A[:100], y=y[:100]), plain.forget(X=A[:100], y=y[:100]))


@pytest.mark.parametrize(("model", "plain"), CLONED)
def test_clones_and_parameters(model, plain):
    twin = clone(model)
    assert twin.get_params() == model.get_params()
    same(twin.fit(A, y), plain.fit(A, y))
    assert tokenize(clone(model)) == tokenize(clone(model)) != tokenize(type(model)(0.2))
    assert twin.set_params(strength=0.3) is twin
    assert (twin.strength, twin.alpha) == (0.3, 0.3)
    with pytest.raises(ValueError, match="alpha"):
        twin.set_params(alpha=1.0)


@pytest.mark.parametrize(("model", "plain"), CLONED)
def test_dask_ml_wraps_them(model, plain, client):
    classes = {"classes": [-1.0, 1.0]} if isinstance(model, SAGAClassifier) else {}
    same(
        Incremental(clone(model), shuffle_blocks=False).fit(X, labels, **classes).estimator_,
        Incremental(clone(plain), shuffle_blocks=False).fit(X, labels, **classes).estimator_,
    )


@pytest.mark.parametrize("kind", [HyperbandSearchCV, IncrementalSearchCV])
def test_a_search_sets_what_follows_from_their_parameters(kind, client):
    space = {"strength": [1e-4, 1e2, 1e3]}
    most = {"max_iter": 3} if kind is HyperbandSearchCV else {"n_initial_parameters": 3, "max_iter": 2}
    search = kind(Strong(), space, random_state=0, test_size=0.2, **most).fit(X, labels, classes=[-1.0, 1.0])
    best = search.best_estimator_
    assert best.alpha == best.strength == search.best_params_["strength"] == 1e-4


def test_a_grid_search_sets_what_follows_from_their_parameters():
    search = GridSearchCV(StrongRegressor(), {"strength": [1e-4, 1e3]}, cv=2).fit(A, A[:, 0])
    assert search.best_estimator_.alpha == search.best_params_["strength"] == 1e-4


def test_messages_name_the_subclass():
    with pytest.raises(ValueError, match="'alpha' parameter of StrongRegressor"):
        StrongRegressor(-1.0).fit(A, y)
    with pytest.raises(ValueError, match="'strength' parameter of Needs"):
        Needs(1).fit(A, y)


def test_parameters_that_an_old_pickle_lacks_get_their_defaults():
    model = Strong(0.1).fit(A, y)
    state = model.__getstate__()
    del state["curvature"], state["n_threads"]
    restored = Strong.__new__(Strong)
    restored.__setstate__(state)
    assert (restored.curvature, restored.n_threads, restored.alpha) == ("auto", 1, 0.1)
