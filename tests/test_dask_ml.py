"""Inside dask-ml: Incremental and the four searches, synchronous and asynchronous."""

import asyncio
import inspect
import pickle
import re
import warnings

import dask
import dask.array as da
import dask.dataframe as dd
import dask_ml.model_selection
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sparse
from dask.distributed import Client
from dask_ml.wrappers import Incremental
from numba.core.dispatcher import Dispatcher
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from dask_saga import SAGAClassifier, SAGARegressor, model_selection

from .conftest import make_rows

A, y = make_rows(n=2000)
X, labels = da.from_array(A, chunks=(100, 8)), da.from_array(y, chunks=100)
SEARCHES = ["HyperbandSearchCV", "IncrementalSearchCV", "InverseDecaySearchCV", "SuccessiveHalvingSearchCV"]


def best():
    return LogisticRegression(C=1 / (1e-2 * 2000), solver="newton-cholesky", tol=1e-10).fit(A, y)


@pytest.mark.parametrize("on", ["cluster", "threads"])
@pytest.mark.parametrize("order", [{}, {"random_state": 0}, {"shuffle_blocks": False}])
def test_incremental_reaches_the_optimum(order, on, request):
    if on == "cluster":
        request.getfixturevalue("client")
    with dask.config.set(scheduler=None if on == "cluster" else "threads"):
        wrapped = Incremental(SAGAClassifier(alpha=1e-2, random_state=0), **order)
        wrapped.fit(X, labels, classes=[-1.0, 1.0])
        for _ in range(29):
            wrapped.partial_fit(X, labels, classes=[-1.0, 1.0])
        model = wrapped.estimator_
        assert len(model.state_.chunks) == 20
        assert model.state_.n_samples == 2000
        np.testing.assert_allclose(model.coef_, best().coef_, rtol=1e-3, atol=1e-5)
        assert wrapped.score(X, labels) == pytest.approx(model.score(A, y))
        np.testing.assert_array_equal(wrapped.predict(X).compute(), model.predict(A))
        np.testing.assert_allclose(wrapped.predict_proba(X).compute(), model.predict_proba(A))


@pytest.mark.parametrize("kind", [np.array, list, lambda classes: da.from_array(np.array(classes), chunks=1)])
def test_classes_of_any_kind(kind, client):
    wrapped = Incremental(SAGAClassifier(random_state=0)).fit(X, labels, classes=kind([-1.0, 1.0]))
    np.testing.assert_array_equal(wrapped.classes_, [-1.0, 1.0])


def test_lazy_classes_of_persisted_labels(client):
    kept = labels.persist()
    wrapped = Incremental(SAGAClassifier(random_state=0)).fit(X, kept, classes=da.unique(kept))
    np.testing.assert_array_equal(wrapped.classes_, [-1.0, 1.0])


def test_incremental_on_dataframes(client):
    frame = dd.from_pandas(pd.DataFrame(A, columns=list("abcdefgh")).assign(y=y), npartitions=10)
    rows = frame.drop(columns="y")
    wrapped = Incremental(SAGAClassifier(random_state=0)).fit(rows, frame.y, classes=[-1.0, 1.0])
    assert list(wrapped.feature_names_in_) == list("abcdefgh")
    np.testing.assert_array_equal(
        np.asarray(wrapped.predict(rows).compute()), wrapped.estimator_.predict(rows.compute())
    )


@pytest.mark.parametrize("convert", [sp.csr_matrix, sparse.COO.from_numpy])
def test_incremental_on_sparse_blocks_some_all_zero(convert, client):
    B = np.where(np.abs(A) > 2, A, 0.0)
    B[300:400] = 0.0
    blocks = da.from_array(B, chunks=(100, 8)).map_blocks(convert)
    wrapped = Incremental(SAGAClassifier(alpha=1e-2, random_state=0)).fit(blocks, labels, classes=[-1.0, 1.0])
    for _ in range(30):
        wrapped.partial_fit(blocks, labels, classes=[-1.0, 1.0])
    expected = LogisticRegression(C=1 / (1e-2 * 2000), solver="newton-cholesky", tol=1e-10).fit(B, y)
    np.testing.assert_allclose(wrapped.coef_, expected.coef_, rtol=1e-3, atol=1e-5)


def test_incremental_with_one_class_blocks(client):
    order = np.argsort(y, kind="stable")
    blocks, sorted_labels = da.from_array(A[order], chunks=(100, 8)), da.from_array(y[order], chunks=100)
    wrapped = Incremental(SAGAClassifier(alpha=1e-2, random_state=0)).fit(blocks, sorted_labels, classes=[-1.0, 1.0])
    for _ in range(40):
        wrapped.partial_fit(blocks, sorted_labels, classes=[-1.0, 1.0])
    np.testing.assert_allclose(wrapped.coef_, best().coef_, rtol=1e-3, atol=1e-4)


def test_incremental_regressor_and_grid_search(client):
    target = X @ np.arange(8)
    wrapped = Incremental(SAGARegressor(random_state=0))
    search = GridSearchCV(wrapped, {"estimator__alpha": [1e-4, 1e3]}, cv=2, error_score="raise")
    search.fit(A, A @ np.arange(8))
    assert search.best_params_ == {"estimator__alpha": 1e-4}
    wrapped.fit(X, target)
    assert wrapped.score(X, target) > 0.9


def search_for(name, **kwargs):
    parameters = {"step_size_scale": np.logspace(-3, 8, 60), "alpha": np.logspace(-6, -1, 30)}
    estimator = kwargs.pop("estimator", SAGAClassifier(random_state=0))
    more = {
        "HyperbandSearchCV": {"max_iter": 9},
        "SuccessiveHalvingSearchCV": {"n_initial_parameters": 8, "n_initial_iter": 2},
    }
    settings = more.get(name, {"n_initial_parameters": 5, "max_iter": 5})
    return getattr(model_selection, name)(estimator, parameters, random_state=0, test_size=0.2, **settings, **kwargs)


@pytest.mark.parametrize("name", SEARCHES)
def test_searches(name, client):
    search = search_for(name).fit(X, labels, classes=[-1.0, 1.0])
    assert np.isfinite(search.cv_results_["test_score"]).all()
    assert search.best_score_ > 0.75
    assert search.score(X, labels) > 0.75
    assert len(search.best_estimator_.state_.chunks) >= 1


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_with_an_asynchronous_client(name):
    async def run():
        async with Client(
            processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0", asynchronous=True
        ):
            return await search_for(name).fit(X, labels, classes=[-1.0, 1.0])

    search = asyncio.run(run())
    assert np.isfinite(search.cv_results_["test_score"]).all()
    assert search.best_score_ > 0.75


def test_a_search_in_which_steps_diverge(client):
    target = da.from_array(A @ np.arange(8) + np.random.default_rng(0).standard_normal(2000), chunks=100)
    parameters = {"step_size_scale": np.logspace(-2, 9, 200)}
    search = model_selection.HyperbandSearchCV(
        SAGARegressor(random_state=0), parameters, max_iter=27, random_state=0, test_size=0.2
    )
    search.fit(X, target)
    scores, calls = search.cv_results_["test_score"], len(search.cv_results_["params"])
    assert calls > 20
    assert np.isfinite(scores).all()
    assert (scores < 0.5).any()
    assert any(params["step_size_scale"] > 1e3 for params in search.cv_results_["params"])
    full = SAGARegressor(random_state=0).fit(X, target)
    assert search.best_estimator_.score(X, target) == pytest.approx(full.score(X, target), rel=0.01)
    assert not search.best_estimator_.diverged_


def test_a_search_without_classes_says_so_at_once(client):
    with pytest.raises(ValueError, match="classes must be given"):
        search_for("HyperbandSearchCV").fit(X, labels)


def test_a_search_of_balanced_classes_says_so_at_once(client):
    search = search_for("HyperbandSearchCV")
    search.estimator.set_params(class_weight="balanced")
    with pytest.raises(ValueError, match="class_weight='balanced' needs all data"):
        search.fit(X, labels, classes=[-1.0, 1.0])


@pytest.mark.slow
def test_a_search_on_sparse_blocks(client):
    B = da.from_array(np.where(np.abs(A) > 2, A, 0.0), chunks=(100, 8))
    search = search_for("IncrementalSearchCV").fit(B.map_blocks(sparse.COO.from_numpy), labels, classes=[-1.0, 1.0])
    assert np.isfinite(search.best_score_)
    with pytest.raises(TypeError, match="from_scipy_sparse"):
        search_for("HyperbandSearchCV").fit(B.map_blocks(sp.csr_matrix), labels, classes=[-1.0, 1.0])


def test_the_searches_are_those_of_dask_ml_but_for_a_coroutine_and_a_default():
    for name in SEARCHES:
        ours, theirs = getattr(model_selection, name), getattr(dask_ml.model_selection, name)
        assert issubclass(ours, theirs)
        kinds = ours.__mro__[: ours.__mro__.index(theirs)]
        functions = [f.__name__ for kind in kinds for f in vars(kind).values() if inspect.isfunction(f)]
        assert functions == (["__init__", "_fit"] if name == "IncrementalSearchCV" else ["_fit"])
        assert inspect.iscoroutinefunction(ours._fit)
        # Nothing of theirs was replaced.
        assert all(inspect.getmodule(f).__name__.startswith("dask_ml") for f in (theirs._fit, theirs.fit))


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_over_all_that_users_search_for(name, client):
    parameters = {
        "loss": ["log_loss", "squared_hinge", "modified_huber"],
        "penalty": ["l2", "l1", "elasticnet", None],
        "alpha": np.logspace(-6, -1, 30),
        "step_size_scale": np.logspace(-3, 3, 60),
    }
    results = []
    for _ in range(2 if name == "InverseDecaySearchCV" else 1):
        search = search_for(name)
        search.set_params(parameters=parameters, patience=3)
        search.fit(X, labels, classes=[-1.0, 1.0])
        assert np.isfinite(search.cv_results_["test_score"]).all()
        results.append((search.best_params_, search.best_score_, search.best_estimator_.coef_.tolist()))
    assert results[0] == results[-1]
    assert results[0][1] > 0.7


def test_a_search_on_a_dataframe(client):
    frame = dd.from_pandas(pd.DataFrame(A, columns=list("abcdefgh")).assign(y=y), npartitions=10)
    rows = frame.drop(columns="y").to_dask_array(lengths=True)
    search = search_for("HyperbandSearchCV").fit(rows, frame.y.to_dask_array(lengths=True), classes=[-1.0, 1.0])
    assert search.best_score_ > 0.75


def test_what_a_search_trains_ahead_leaves_no_trace(client):
    search = search_for("HyperbandSearchCV").fit(X, labels, classes=[-1.0, 1.0])
    calls = search.model_history_[search.cv_results_["model_id"][search.best_index_]][-1]["partial_fit_calls"]
    memories = search.best_estimator_.state_.chunks.values()
    assert sum(memory.visits for memory in memories) == calls
    assert search.best_estimator_.state_.n_samples == sum(len(memory.gradients) for memory in memories) <= 1600


def test_incremental_hands_every_block_the_same_arguments(client):
    wrapped = Incremental(SAGAClassifier(random_state=0))
    with pytest.raises(ValueError, match="chunk_id='all' is known with other content"):
        wrapped.fit(X, labels, classes=[-1.0, 1.0], chunk_id="all")
    wrapped.fit(X, labels, classes=[-1.0, 1.0], sample_weight=None, check_content=True)
    assert len(wrapped.state_.chunks) == 20


@pytest.mark.parametrize("block", ["read-only", "F-ordered", "empty", "one row"])
def test_incremental_on_odd_blocks(block):
    def odd(part):
        part = np.asfortranarray(part) if block == "F-ordered" else np.array(part)
        part.flags.writeable = block != "read-only"
        return part

    lengths = {"empty": (100, 0, 1900), "one row": (1, 999, 1000)}.get(block, (500,) * 4)
    B, c = X.rechunk((lengths, 8)).map_blocks(odd, dtype=float), labels.rechunk((lengths,))
    wrapped = Incremental(SAGAClassifier(alpha=1e-2, random_state=0), shuffle_blocks=False)
    with dask.config.set(scheduler="sync"):
        for _ in range(40):
            wrapped.partial_fit(B, c, classes=[-1.0, 1.0])
    np.testing.assert_allclose(wrapped.coef_, best().coef_, rtol=1e-3, atol=1e-4)


def test_incremental_scores_as_it_is_told():
    with dask.config.set(scheduler="sync"):
        wrapped = Incremental(SAGARegressor(random_state=0), scoring="neg_mean_squared_error")
        wrapped.fit(X, X @ np.arange(8))
        assert wrapped.score(X, X @ np.arange(8)) < 0


def test_incremental_predicts_without_the_memory_where_it_is_told_so(client):
    wrapped = Incremental(SAGAClassifier(random_state=0)).fit(
        da.tile(X, (50, 1)).rechunk((20_000, 8)), da.tile(labels, 50).rechunk(20_000), classes=[-1.0, 1.0]
    )
    expected = wrapped.predict(X).compute()
    assert len(pickle.dumps(wrapped.estimator_)) > 50_000
    wrapped.estimator_ = wrapped.estimator_.without_memory()
    assert len(pickle.dumps(wrapped.estimator_)) < 3000
    np.testing.assert_array_equal(wrapped.predict(X).compute(), expected)
    np.testing.assert_array_equal(wrapped.predict_proba(X).compute().argmax(axis=1), (expected > 0).astype(int))


def test_no_dispatcher_is_in_a_graph(client, monkeypatch):
    from dask_saga.execution.cluster import ClientExecutor

    sent, submit = [], ClientExecutor.submit

    def noted(self, function, *args, **kwargs):
        sent.extend([function, *args])
        return submit(self, function, *args, **kwargs)

    monkeypatch.setattr(ClientExecutor, "submit", noted)
    model = SAGAClassifier(random_state=0, max_iter=3, tol=0.5).fit(X, labels)
    graph = dict(model.predict(X).__dask_graph__())
    sent += [item for task in graph.values() for item in (getattr(task, "func", None), *getattr(task, "args", ()))]
    assert len(sent) > 100
    assert not any(isinstance(item, Dispatcher) for item in sent)


def test_incremental_search_does_not_warn_of_a_parameter_that_nobody_gave(client):
    settings = {"n_initial_parameters": 3, "max_iter": 3, "random_state": 0}
    parameters = {"alpha": np.logspace(-6, -1, 30)}
    search = model_selection.IncrementalSearchCV(SAGAClassifier(random_state=0), parameters, **settings)
    for one in (search, clone(search), clone(clone(search)).set_params(max_iter=2)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            one.fit(A, y, classes=[-1.0, 1.0])
    given = clone(search).set_params(decay_rate=1.0)
    with pytest.warns(FutureWarning, match="InverseDecaySearchCV to use decay_rate=1.0"):
        given.fit(A, y, classes=[-1.0, 1.0])


@pytest.mark.parametrize("name", SEARCHES)
def test_parameters_are_those_of_dask_ml(name):
    ours, theirs = (
        inspect.signature(getattr(one, name)).parameters for one in (model_selection, dask_ml.model_selection)
    )
    assert list(ours) == list(theirs)
    different = {key for key in ours if ours[key].default != theirs[key].default}
    assert different == ({"decay_rate"} if name == "IncrementalSearchCV" else set())
    values = {key: object() for key in ours}
    estimator = SAGAClassifier(alpha=1.0)
    values.update(estimator=estimator, parameters={"alpha": [1.0]})
    search = getattr(model_selection, name)(**values)
    known = search.get_params(deep=False)
    assert known.keys() == values.keys()
    assert all(known[key] is values[key] for key in values)
    plain = clone(getattr(model_selection, name)(estimator, {"alpha": [1.0]}))
    assert plain.get_params()["estimator__alpha"] == 1.0
    assert type(plain).__module__ == "dask_saga.model_selection"


@pytest.mark.parametrize("name", SEARCHES)
def test_docstrings_describe_every_parameter(name):
    search = getattr(model_selection, name)
    described = re.findall(r"^(\w+) : (.*)\n    \S", search.__doc__, re.MULTILINE)
    assert [one for one, _ in described] == list(inspect.signature(search).parameters)
    assert all("default=" in kind for _, kind in described[2:])
    assert search.__doc__.splitlines()[0] == f"The ``{name}`` of dask-ml, for current versions of Dask and for frames."


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_survive_pickling(name):
    search = pickle.loads(pickle.dumps(search_for(name)))
    assert type(search) is getattr(model_selection, name)
    assert search.get_params(deep=False).keys() == search_for(name).get_params(deep=False).keys()
