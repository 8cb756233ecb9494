"""Estimators that choose alpha by cross-validation: every model is that of a separate fit."""

import functools

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNetCV
from sklearn.metrics import get_scorer
from sklearn.model_selection import KFold, ShuffleSplit, StratifiedKFold, TimeSeriesSplit
from sklearn.utils.estimator_checks import check_estimator

from dask_saga import SAGAClassifier, SAGAClassifierCV, SAGARegressor, SAGARegressorCV, saga_path
from dask_saga.data.folds import Folds
from dask_saga.data.validation import read_chunk
from dask_saga.estimators.cv import chosen
from dask_saga.fitting import checkpoint, path_passes
from dask_saga.losses import CloglogLoss, MultinomialLogLoss
from dask_saga.solver import path as solver_path
from dask_saga.solver.optimality import chunk_gradient
from dask_saga.solver.problem import problem_for

from .conftest import make_rows

EXACT = {"tol": 1e-10, "memory_dtype": "float64", "random_state": 0, "max_iter": 3000}
ALPHAS = np.logspace(-1, -4, 4)
FOLDS = np.random.default_rng(5).permutation(600) % 5


def held_out_loss(model, X, y, w=None):
    """Mean loss of a fitted plain estimator on rows that it has not seen."""
    classes = getattr(model, "classes_", None)
    problem = problem_for(model._problem(), classes)
    chunk = read_chunk(X, y, w, classes=classes, loss=problem.loss)
    x = np.column_stack([np.atleast_2d(model.coef_), model.intercept_])
    return chunk_gradient(chunk, x, problem)[0] / chunk.weight


def separate(plain, X, y, w=None, folds=FOLDS, alphas=ALPHAS):
    """Scores of fits of their own, of shape (alphas, folds), and the coefficients of fits to all rows."""
    scores, coefs = [], []
    for alpha in alphas:
        model = clone(plain).set_params(alpha=alpha)
        scores.append([])
        for fold in np.unique(folds):
            left = folds != fold
            model.fit(X[left], y[left], None if w is None else w[left])
            scores[-1].append(held_out_loss(model, X[~left], y[~left], None if w is None else w[~left]))
        coefs.append(model.fit(X, y, w).coef_)
    return np.array(scores), np.array(coefs)


def targets_for(loss):
    A, y = make_rows(classes=loss in ("log_loss", "squared_hinge", "modified_huber", "smooth_hinge"))
    return A, np.abs(y) if loss == "poisson" else y


def kinds(loss):
    is_classifier = loss in ("log_loss", "squared_hinge", "modified_huber", "smooth_hinge")
    return (SAGAClassifierCV, SAGAClassifier) if is_classifier else (SAGARegressorCV, SAGARegressor)


@pytest.mark.parametrize("penalty", ["l2", "l1", "elasticnet"])
@pytest.mark.parametrize(
    "loss", ["log_loss", "squared_hinge", "modified_huber", "smooth_hinge", "squared_error", "huber", "poisson"]
)
def test_every_model_is_that_of_a_separate_fit(loss, penalty):
    A, y = targets_for(loss)
    with_cv, plain = kinds(loss)
    model = with_cv(loss, penalty=penalty, alphas=ALPHAS, cv=FOLDS, **EXACT).fit(A, y)
    scores, coefs = separate(plain(loss, penalty=penalty, **EXACT), A, y)
    assert model.converged_
    np.testing.assert_allclose(model.scores_[0], scores, rtol=0, atol=1e-8)
    np.testing.assert_allclose(model.coef_path_[0], coefs, rtol=1e-6, atol=1e-7)
    assert model.alpha_ == ALPHAS[scores.mean(axis=1).argmin()]
    np.testing.assert_array_equal(model.coef_, model.coef_path_[0, list(model.alphas_).index(model.alpha_)])


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("loss", ["log_loss", "squared_hinge"])
def test_several_classes(loss, sparse):
    A, z = make_rows(classes=False)
    y, X = np.digitize(z, np.quantile(z, [0.3, 0.6])), sp.csr_matrix(np.where(A > 1, A, 0)) if sparse else A
    model = SAGAClassifierCV(loss, alphas=ALPHAS, cv=FOLDS, **EXACT).fit(X, y)
    scores, coefs = separate(SAGAClassifier(loss, **EXACT), X, y)
    np.testing.assert_allclose(model.scores_[0], scores, rtol=0, atol=1e-8)
    np.testing.assert_allclose(model.coef_path_[0], coefs, rtol=1e-6, atol=1e-7)
    assert model.predict_proba(X).shape == (600, 3) if loss == "log_loss" else True


def test_several_targets():
    A, y = make_rows(classes=False)
    Y = np.column_stack([y, y**2])
    model = SAGARegressorCV(penalty="l1", alphas=ALPHAS, cv=FOLDS, **EXACT).fit(A, Y)
    scores, coefs = separate(SAGARegressor(penalty="l1", **EXACT), A, Y)
    np.testing.assert_allclose(model.scores_[0], scores, rtol=1e-8)
    np.testing.assert_allclose(model.coef_path_[0], coefs, rtol=1e-5, atol=1e-7)
    assert model.coef_.shape == (2, 8)


def test_own_loss_is_fitted_too():
    from typing import NamedTuple

    class LogCosh(NamedTuple):
        @property
        def curvature(self):
            return 1.0

        def value(self, z, y):
            return np.log(np.cosh(z - y))

        def derivative(self, z, y):
            return np.tanh(z - y)

    A, y = make_rows(classes=False)
    y = y / np.abs(y).max()
    model = SAGARegressorCV(LogCosh(), alphas=ALPHAS, cv=FOLDS, **EXACT).fit(A, y)
    scores, _ = separate(SAGARegressor(LogCosh(), **EXACT), A, y)
    np.testing.assert_allclose(model.scores_[0], scores, rtol=0, atol=1e-8)


def test_models_that_no_sample_serves_are_fitted_separately(binary, monkeypatch):
    A, y = binary
    expected = SAGAClassifierCV(alphas=ALPHAS, cv=FOLDS, **EXACT).fit(A, y)
    monkeypatch.setattr(solver_path, "MOST_PATH_COEFFICIENTS", 1)
    for n_threads in (1, 2):
        model = SAGAClassifierCV(alphas=ALPHAS, cv=FOLDS, n_threads=n_threads, **EXACT).fit(A, y)
        np.testing.assert_allclose(model.scores_, expected.scores_, rtol=0, atol=1e-8)
        np.testing.assert_allclose(model.coef_path_, expected.coef_path_, rtol=1e-6)
        assert len(model.history_) == 24
    plain = SAGAClassifierCV(alphas=ALPHAS, cv=FOLDS, step_size=1e-3, average=False, max_iter=5, tol=0.0)
    with pytest.warns(ConvergenceWarning, match="24 of 24 models"):  # asks for plain SAGA
        assert not plain.fit(A, y).converged_


def test_failing_steps_lead_to_separate_fits(binary, monkeypatch):
    A, y = binary
    expected = SAGAClassifierCV(alphas=ALPHAS, cv=FOLDS, **EXACT).fit(A, y)

    def fail(sample, problem, members, x, gradients, limits, *bases):
        return x, np.full(len(x), np.inf)

    monkeypatch.setattr(path_passes, "path_steps", fail)
    model = SAGAClassifierCV(alphas=ALPHAS, cv=FOLDS, **EXACT).fit(A, y)
    np.testing.assert_allclose(model.scores_, expected.scores_, rtol=0, atol=1e-8)


def test_a_sample_of_the_rows_suffices(monkeypatch):
    A, y = make_rows(n=6000)
    monkeypatch.setattr(solver_path, "LEAST_BYTES", 2**16)
    monkeypatch.setattr(solver_path, "SAMPLE_PART", 0.0)
    model = SAGAClassifierCV(alphas=ALPHAS, cv=FOLDS.repeat(10), **EXACT).fit(A, y)
    scores, _ = separate(SAGAClassifier(**EXACT), A, y, folds=FOLDS.repeat(10))
    np.testing.assert_allclose(model.scores_[0], scores, rtol=0, atol=1e-8)


def test_weights_are_repeated_rows(binary):
    (A, y), rng = binary, np.random.default_rng(0)
    w = rng.integers(0, 4, len(y))
    weighted = SAGAClassifierCV(alphas=ALPHAS, cv=FOLDS, **EXACT).fit(A, y, w)
    repeated = SAGAClassifierCV(alphas=ALPHAS, cv=FOLDS.repeat(w), **EXACT).fit(A.repeat(w, axis=0), y.repeat(w))
    np.testing.assert_allclose(weighted.scores_, repeated.scores_, rtol=0, atol=1e-8)
    np.testing.assert_allclose(weighted.coef_path_, repeated.coef_path_, rtol=1e-6)
    grids = [SAGAClassifierCV(penalty="l1", cv=f, random_state=0).fit(*data) for f, data in [
        (FOLDS, (A, y, w)), (FOLDS.repeat(w), (A.repeat(w, axis=0), y.repeat(w)))
    ]]  # fmt: skip
    np.testing.assert_allclose(grids[0].alphas_, grids[1].alphas_)
    assert grids[0].alpha_ == pytest.approx(grids[1].alpha_)


def test_class_weight(binary):
    A, y = binary
    weights = {-1.0: 1.0, 1.0: 3.0}
    model = SAGAClassifierCV(alphas=ALPHAS, cv=FOLDS, class_weight=weights, **EXACT).fit(A, y)
    same = SAGAClassifierCV(alphas=ALPHAS, cv=FOLDS, **EXACT).fit(A, y, np.where(y > 0, 3.0, 1.0))
    np.testing.assert_allclose(model.scores_, same.scores_, rtol=0, atol=1e-8)


def test_as_scikit_learn(numbers):
    A, y = numbers
    how = {"l1_ratio": [0.5, 1.0], "cv": 5}
    ours = SAGARegressorCV(penalty="elasticnet", alphas=ALPHAS, **how, **EXACT).fit(A, y)
    theirs = ElasticNetCV(alphas=ALPHAS, tol=1e-12, max_iter=100_000, **how).fit(A, y)
    np.testing.assert_allclose(2 * ours.scores_, theirs.mse_path_, rtol=0, atol=1e-7)
    assert (ours.alpha_, ours.l1_ratio_) == (pytest.approx(theirs.alpha_), theirs.l1_ratio_)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-7)
    grid = SAGARegressorCV(penalty="elasticnet", alphas=3, **how, random_state=0).fit(A, y).alphas_
    largest = np.abs((A - A.mean(axis=0)).T @ (y - y.mean())).max() / len(y)
    np.testing.assert_allclose(grid, largest * np.outer([2.0, 1.0], [1.0, 1e-3**0.5, 1e-3]))


@pytest.mark.parametrize("loss", ["log_loss", "squared_hinge", "smooth_hinge", "squared_error", "poisson"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_the_grid_begins_where_all_coefficients_are_zero(loss, outputs):
    A, y = targets_for(loss)
    if outputs == 3:
        y = np.column_stack([y, y**2, y + A[:, 0] ** 2]) if loss in ("squared_error", "poisson") else y
        y = np.digitize(A @ np.ones(8), [-3, 5]) if y.ndim == 1 else y
    y = np.where(np.arange(600) < 150, -1.0, y) if loss == "squared_hinge" and outputs == 1 else y
    with_cv, plain = kinds(loss)
    grid = with_cv(loss, penalty="l1", alphas=3, **{**EXACT, "tol": 1e-8}).fit(A, y)
    assert np.abs(grid.coef_path_[0, 0]).max() < 1e-6
    largest = grid.alphas_[0]
    fit = functools.partial(plain(loss, penalty="l1", **{**EXACT, "tol": 1e-8}).set_params, alpha=largest * 1.0001)
    assert not fit().fit(A, y).coef_.any()
    assert fit(alpha=largest * 0.99).fit(A, y).coef_.any()


def test_one_standard_error():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.standard_normal((2, 10, 5)) - 0.1 * np.abs(np.arange(10) - 6)[None, :, None]
        means = scores.mean(axis=2)
        r, a = np.unravel_index(means.argmax(), means.shape)
        assert chosen(scores, "min") == (r, a)
        least = means[r, a] - np.std(scores[r, a], ddof=1) / 5**0.5
        plain = min(j for j in range(10) if means[r, j] >= least)  # alphas fall, so the first is the largest
        assert chosen(scores, "1se") == (r, plain)
    A, y = make_rows(n=100)
    fits = [SAGAClassifierCV(select=select, random_state=0).fit(A, y) for select in ("min", "1se")]
    assert fits[0].alpha_ < fits[1].alpha_


def test_refit(binary):
    A, y = binary
    mean = SAGAClassifierCV(alphas=ALPHAS, cv=FOLDS, refit=False, **EXACT).fit(A, y)
    fits = [SAGAClassifier(alpha=mean.alpha_, **EXACT).fit(A[f != FOLDS], y[f != FOLDS]).coef_ for f in range(5)]
    np.testing.assert_allclose(mean.coef_, np.mean(fits, axis=0), rtol=1e-6)


@pytest.mark.parametrize("scoring", ["accuracy", "roc_auc", "neg_log_loss", "f1"])
def test_scorers_of_classifiers(binary, scoring):
    A, y = binary
    model = SAGAClassifierCV(alphas=ALPHAS, cv=FOLDS, scoring=scoring, **EXACT).fit(A, y)
    for j, alpha in enumerate(ALPHAS):
        own = SAGAClassifier(alpha=alpha, **EXACT).fit(A[FOLDS != 2], y[FOLDS != 2])
        assert model.scores_[0, j, 2] == pytest.approx(get_scorer(scoring)(own, A[FOLDS == 2], y[FOLDS == 2]))
    assert model.alpha_ == ALPHAS[model.scores_[0].mean(axis=1).argmax()]


def test_scorers_of_several_classes_and_of_regressors(numbers):
    A, z = numbers
    y = np.array(["a", "b", "c"])[np.digitize(z, np.quantile(z, [0.3, 0.6]))]
    w = np.random.default_rng(0).random(600)
    model = SAGAClassifierCV(alphas=[0.01], cv=FOLDS, scoring="roc_auc_ovr", **EXACT).fit(A, y)
    own = SAGAClassifier(alpha=0.01, **EXACT).fit(A[FOLDS != 0], y[FOLDS != 0])
    assert model.scores_[0, 0, 0] == pytest.approx(get_scorer("roc_auc_ovr")(own, A[FOLDS == 0], y[FOLDS == 0]))
    model = SAGARegressorCV(alphas=[0.01], cv=FOLDS, scoring="r2", **EXACT).fit(A, z, w)
    own = SAGARegressor(alpha=0.01, **EXACT).fit(A[FOLDS != 0], z[FOLDS != 0], w[FOLDS != 0])
    left_out = FOLDS == 0
    assert model.scores_[0, 0, 0] == pytest.approx(own.score(A[left_out], z[left_out], w[left_out]))


# Data of every kind.


def test_containers_give_the_same_models(binary):
    A, y = binary
    expected = SAGAClassifierCV(alphas=ALPHAS, cv=FOLDS, **EXACT).fit(A, y)
    X, labels, folds = (da.from_array(one, chunks=(150, *one.shape[1:])) for one in (A, y, FOLDS))
    frame = pd.DataFrame(A, columns=list("abcdefgh")).assign(label=y, fold=FOLDS)
    lazy = dd.from_pandas(frame, npartitions=4)
    cases = [
        (sp.csr_matrix(A), y, FOLDS),
        (np.asfortranarray(A), y, FOLDS.tolist()),
        (frame[list("abcdefgh")], frame["label"], frame["fold"]),
        (X, labels, folds),
        (X, labels, FOLDS),
        (X, y, [(np.flatnonzero(f != FOLDS), f == FOLDS) for f in range(5)]),
        (lazy[list("abcdefgh")], lazy["label"], lazy["fold"]),
    ]
    for X, y, folds in cases:
        for persist in (True, False):
            model = SAGAClassifierCV(alphas=ALPHAS, cv=folds, **EXACT).fit(X, y, persist=persist)
            np.testing.assert_allclose(model.scores_, expected.scores_, rtol=0, atol=1e-8)
            np.testing.assert_allclose(model.coef_path_, expected.coef_path_, rtol=1e-6)
    assert list(model.feature_names_in_) == list("abcdefgh")


def test_folds_of_dask_collections_need_no_labels(binary):
    A, y = binary
    X, labels = da.from_array(A, chunks=(200, 8)), da.from_array(y, chunks=200)
    model = SAGAClassifierCV(alphas=ALPHAS, cv=3, **EXACT).fit(X, labels)
    folds = np.concatenate([Folds(None, (0, 1, 2)).of_block(None, k, 200) for k in range(3)])
    assert np.abs(np.bincount(folds) - 200).max() <= 2
    np.testing.assert_array_equal(
        model.scores_, SAGAClassifierCV(alphas=ALPHAS, cv=folds, **EXACT).fit(X, labels).scores_
    )
    kfold = SAGAClassifierCV(alphas=ALPHAS, cv=KFold(3), **EXACT).fit(X, labels)
    own = SAGAClassifierCV(alphas=ALPHAS, cv=KFold(3), **EXACT).fit(A, y)
    np.testing.assert_allclose(kfold.scores_, own.scores_, rtol=0, atol=1e-8)


def test_shared_passes_read_each_block_once(binary):
    A, y = make_rows(n=20_000)
    X, labels = da.from_array(A, chunks=(5000, 8)), da.from_array(y, chunks=5000)
    model = SAGAClassifierCV(alphas=20, cv=5, random_state=0).fit(X, labels, persist=False)
    assert model.converged_
    passes = model.history_[-1]["bytes_read"] / A.nbytes
    assert passes == len(model.history_) + 1 <= 6


@pytest.mark.slow
def test_a_cluster_changes_no_bit(client, binary):
    A, y = binary
    X, labels = da.from_array(A, chunks=(150, 8)), da.from_array(y, chunks=150)
    model = SAGAClassifierCV(alphas=ALPHAS, scoring="accuracy", **EXACT)
    there = [clone(model).fit(X, labels, persist=persist) for persist in (True, False)]
    with dask.config.set(scheduler="threads"):
        here = clone(model).fit(X, labels)
    for fit in there:
        np.testing.assert_array_equal(fit.scores_, here.scores_)
        np.testing.assert_array_equal(fit.coef_path_, here.coef_path_)


@pytest.mark.slow
def test_separate_fits_on_a_cluster_have_the_same_bits(client):
    A, y = make_rows(n=400, p=1100)  # too many columns for a Hessian
    X, labels = da.from_array(A, chunks=(100, 1100)), da.from_array(y, chunks=100)
    model = SAGAClassifierCV(penalty="l1", alphas=[0.1, 0.05], cv=3, tol=1e-3, max_iter=1000, random_state=0)
    there = [clone(model).fit(X, labels, persist=persist) for persist in (True, False)]
    with dask.config.set(scheduler="threads"):
        here = clone(model).fit(X, labels)
    assert len(here.history_) == 8
    for fit in there:
        np.testing.assert_array_equal(fit.coef_path_, here.coef_path_)


# Invalid input: errors before any pass.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alphas": []}, "alphas is empty"),
        ({"alphas": [1.0, -1.0]}, "alphas has -1.0"),
        ({"alphas": [np.nan]}, "alphas has nan"),
        ({"alphas": 0}, "alphas"),
        ({"penalty": None}, "penalty"),
        ({"penalty": "elasticnet", "l1_ratio": [0.5, 2.0]}, "l1_ratio"),
        ({"select": "max"}, "select"),
        ({"scoring": "unknown"}, "scoring"),
        ({"cv": 1}, "cv=1"),
        ({"cv": np.where(FOLDS == 0, -1, FOLDS)}, "fold -1"),
        ({"cv": np.zeros(600)}, "1 fold"),
        ({"cv": FOLDS[:-1]}, "cv"),
        ({"cv": ShuffleSplit(3, random_state=0)}, "row"),
        ({"cv": TimeSeriesSplit(3)}, "train"),
        ({"cv": [([0], [1]), ([1], [0])]}, "fold 0 does not train"),
        ({"cv": [(np.arange(300, 600), np.arange(300)), (np.arange(600), [])]}, "fold 1 has no rows"),
        ({"cv": [(np.arange(600), np.arange(600, 700))]}, "row numbers"),
        ({"cv": "five"}, "cv"),
    ],
)
def test_invalid_parameters(binary, change, message, monkeypatch):
    monkeypatch.setattr(path_passes, "prepare", None)  # no pass
    with pytest.raises((ValueError, TypeError), match=message):
        SAGAClassifierCV(**change).fit(*binary)


def test_folds_that_cannot_be_fitted(binary, monkeypatch):
    A, y = binary
    monkeypatch.setattr(path_passes, "prepare", None)
    with pytest.raises(ValueError, match="fold 1 has a single class"):
        SAGAClassifierCV(cv=np.where(y > 0, np.arange(600) % 2, 0)).fit(A, y)
    with pytest.raises(ValueError, match="fold 4 has no rows of positive weight"):
        SAGAClassifierCV(cv=FOLDS).fit(A, y, np.where(FOLDS == 4, 0.0, 1.0))
    classes = np.where((FOLDS == 3) & (np.arange(600) % 7 == 0), 5.0, y)
    with pytest.raises(ValueError, match=r"without fold 3 there are no rows of class .*5"):
        SAGAClassifierCV(cv=FOLDS).fit(A, classes)
    X, labels = da.from_array(A, chunks=(200, 8)), da.from_array(y, chunks=200)
    with pytest.raises(ValueError, match="needs the values of y"):
        SAGAClassifierCV(cv=StratifiedKFold(3)).fit(X, labels)
    with pytest.raises(ValueError, match="number of rows"):
        SAGAClassifierCV(cv=KFold(3)).fit(X[X[:, 0] > -100], labels[X[:, 0] > -100])
    with pytest.raises(ValueError, match="3 blocks, but cv has 2"):
        SAGAClassifierCV(cv=da.from_array(FOLDS, chunks=300)).fit(X, labels)


def test_an_error_leaves_the_estimator_unchanged(binary):
    model = SAGAClassifierCV(alphas=ALPHAS, random_state=0).fit(*binary)
    before = dict(vars(model))
    with pytest.raises(ValueError, match="NaN"):
        model.fit(np.full((600, 8), np.nan), binary[1])
    assert vars(model) == before


# Behaviour as an estimator.


def test_alphas_are_sorted(binary):
    fits = [SAGAClassifierCV(alphas=a, cv=FOLDS, random_state=0).fit(*binary) for a in (ALPHAS, ALPHAS[[2, 0, 3, 1]])]
    np.testing.assert_array_equal(fits[0].alphas_, fits[1].alphas_)
    np.testing.assert_array_equal(fits[0].scores_, fits[1].scores_)


def test_it_has_no_partial_fit(binary):
    model = SAGAClassifierCV(alphas=ALPHAS).fit(*binary)
    assert not hasattr(model, "partial_fit")
    assert not hasattr(model, "forget")
    assert model.score(*binary) > 0.7


def test_callback_and_history(binary):
    seen = []
    model = SAGAClassifierCV(alphas=ALPHAS, cv=FOLDS, **EXACT)
    model.fit(*binary, callback=lambda info: seen.append(info) or len(seen) == 2)
    assert [info.epoch for info in seen] == [1, 2]
    assert model.history_ == [info._asdict() for info in seen]
    assert not model.converged_
    assert np.isfinite(model.scores_).all()


def test_interrupt_keeps_completed_passes(binary):
    def stop(info):
        if info.epoch == 2:
            raise KeyboardInterrupt

    for scoring in (None, "accuracy"):
        model = SAGAClassifierCV(alphas=ALPHAS, cv=FOLDS, scoring=scoring, **EXACT)
        with pytest.raises(KeyboardInterrupt):
            model.fit(*binary, callback=stop)
        assert model.scores_.shape == (1, 4, 5)
        assert model.coef_.shape == (1, 8)
        assert model.alpha_ in ALPHAS


def test_a_warning_counts_the_models_that_have_not_converged(binary):
    with pytest.warns(ConvergenceWarning, match=r"\d+ of 24 models have not reached tol=1e-10"):
        SAGAClassifierCV(alphas=ALPHAS, cv=FOLDS, **{**EXACT, "max_iter": 2}).fit(*binary)


@pytest.mark.parametrize("coefficients", [1, 1000])
def test_checkpoints_resume_with_the_same_bits(binary, tmp_path, monkeypatch, coefficients):
    monkeypatch.setattr(solver_path, "MOST_PATH_COEFFICIENTS", coefficients)
    monkeypatch.setattr(checkpoint, "SECONDS", -1.0)
    monkeypatch.setattr(checkpoint, "AGE_RATIO", -1.0)
    model = SAGAClassifierCV(alphas=ALPHAS, cv=FOLDS, **EXACT)
    expected = clone(model).fit(*binary)

    def stop(info):
        if info.epoch == 7:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        clone(model).fit(*binary, checkpoint=tmp_path, callback=stop)
    for _ in range(2):  # the second one has nothing left to do
        resumed = clone(model).fit(*binary, checkpoint=tmp_path)
        np.testing.assert_array_equal(resumed.scores_, expected.scores_)
        np.testing.assert_array_equal(resumed.coef_path_, expected.coef_path_)
        assert len(resumed.history_) == len(expected.history_)
    with pytest.raises(ValueError, match="other data"):
        clone(model).set_params(cv=FOLDS[::-1]).fit(*binary, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="other parameters"):
        clone(model).set_params(alphas=[0.1]).fit(*binary, checkpoint=tmp_path)


def test_repeated_fits_have_the_same_bits(binary):
    A, y = make_rows(n=6000)
    fits = [SAGAClassifierCV(alphas=5, random_state=0, n_threads=k).fit(A, y) for k in (1, 1, 2, 2)]
    for one, other in (fits[:2], fits[2:]):
        np.testing.assert_array_equal(one.coef_path_, other.coef_path_)
        np.testing.assert_array_equal(one.scores_, other.scores_)


def test_warm_start_begins_at_the_path_before(binary):
    model = SAGAClassifierCV(alphas=ALPHAS, cv=FOLDS, warm_start=True, **{**EXACT, "tol": 1e-6}).fit(*binary)
    before = len(model.history_)
    assert len(model.fit(*binary).history_) <= before


def test_verbose_counts_models(binary, capsys):
    SAGAClassifierCV(alphas=ALPHAS, verbose=1).fit(*binary)
    assert "24/24" in capsys.readouterr().err


def test_path_without_folds(numbers):
    A, y = numbers
    path = saga_path(A, y, alphas=ALPHAS, **EXACT)
    for j, alpha in enumerate(ALPHAS):
        own = SAGARegressor(penalty="l1", alpha=alpha, **EXACT).fit(A, y)
        np.testing.assert_allclose(path.coef[j], own.coef_, rtol=1e-7, atol=1e-9)
        assert path.intercept[j] == pytest.approx(own.intercept_)
    assert path.converged.all()
    assert saga_path(A, y > y.mean(), alphas=3, loss="log_loss", penalty="l2").coef.shape == (3, 1, 8)
    with pytest.raises(ValueError, match="has no alpha"):
        saga_path(A, y, penalty=None)


def test_multinomial_path_has_every_class(numbers):
    A, z = numbers
    y = np.digitize(z, np.quantile(z, [0.3, 0.6]))
    path = saga_path(A, y, alphas=[0.1], loss="log_loss", penalty="l2", **EXACT)
    own = SAGAClassifier(MultinomialLogLoss(3), alpha=0.1, **EXACT).fit(A, y)
    np.testing.assert_allclose(path.coef[0], own.coef_, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SAGAClassifierCV, SAGARegressorCV])
def test_checks_of_scikit_learn(kind):
    check = "check_sample_weight_equivalence_on_{}_data"
    failing = {check.format(data): "needs tol far below the default" for data in ("dense", "sparse")}
    results = check_estimator(kind(alphas=3, cv=3, random_state=0), expected_failed_checks=failing, on_skip=None)
    assert {result["check_name"] for result in results if result["status"] == "xfail"} <= set(failing)
    assert sum(result["status"] == "passed" for result in results) > 50


def test_scores_use_the_labels_of_the_loss():
    """The complementary log-log loss predicts its second class above another linear prediction than zero."""
    A, y = make_rows(300, 3)
    model = SAGAClassifierCV(loss="cloglog", alphas=[1e-2], cv=KFold(3), scoring="accuracy", **EXACT).fit(A, y)
    own = []
    for train, test in KFold(3).split(A):
        plain = SAGAClassifier(loss="cloglog", alpha=1e-2, **EXACT).fit(A[train], y[train])
        own.append(plain.score(A[test], y[test]))
        z = plain.decision_function(A[test])
        assert ((z > 0) != (z > CloglogLoss().threshold)).any()
    np.testing.assert_allclose(model.scores_[0, 0], own, rtol=1e-12)
