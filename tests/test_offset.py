"""Offsets: numbers per row that are added to the linear predictions, in fit, partial_fit, predictions and scores."""

from typing import NamedTuple

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.special import expit
from sklearn.metrics import r2_score

from dask_saga import SAGAClassifier, SAGARegressor
from dask_saga.losses import resolve_loss
from dask_saga.penalties import ElasticNet

from .conftest import make_rows


class Asymmetric(NamedTuple):
    """A loss of the user's own: residuals above zero cost three times as much."""

    curvature: float = 3.0

    def value(self, z, y):
        return (0.5 if z > y else 1.5) * (z - y) ** 2

    def derivative(self, z, y):
        return (1.0 if z > y else 3.0) * (z - y)

    def second_derivative(self, z, y):
        return 1.0 if z > y else 3.0


REGRESSION, CLASSIFICATION = ["squared_error", "huber", "poisson"], ["log_loss", "squared_hinge", "smooth_hinge"]
PENALTIES = {"none": ElasticNet(), "l1": ElasticNet(l1=0.02), "l2": ElasticNet(l2=0.05)}
EXACT = {"tol": 1e-8, "max_iter": 2000, "random_state": 0, "memory_dtype": "float64"}


def data_for(loss, n=420):
    X, z = make_rows(n, classes=False)
    X, z, rng = X / X.std(axis=0), (z - z.mean()) / z.std(), np.random.default_rng(1)
    offset = rng.standard_normal(n)
    if loss in CLASSIFICATION:
        return X, np.where(rng.random(n) < expit(2 * z + offset), 1.0, -1.0), offset
    return X, rng.poisson(np.exp(z + offset - 1)).astype(float) if loss == "poisson" else z + offset, offset


def estimator(loss, penalty=None, **more):
    return (SAGAClassifier if loss in CLASSIFICATION else SAGARegressor)(loss, penalty=penalty, **{**EXACT, **more})


def gradient_mapping(model, X, y, weights, offset):
    """Step of a proximal gradient step of length 1 at the coefficients, from the loss in plain Python."""
    loss, coef = resolve_loss(model.loss), np.ravel(model.coef_)
    z = X @ coef + model.intercept_[0] + offset
    slopes = weights * np.array([loss.derivative(*pair) for pair in zip(z, y, strict=True)]) / weights.sum()
    step = [model.penalty.prox(v, 1.0) for v in coef - X.T @ slopes]
    return np.append(coef - step, slopes.sum())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunks", [1, 7])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("loss", [*REGRESSION, *CLASSIFICATION])
def test_the_optimum_has_no_gradient(loss, penalty, sparse, chunks, weighted):
    X, y, offset = data_for(loss)
    weights = np.random.default_rng(2).random(len(y)) + 0.1 if weighted else np.ones(len(y))
    rows = sp.csr_array(X) if sparse else X
    given = (rows, y, weights, offset)
    if chunks > 1:
        given = [da.from_array(one, chunks=(60, *one.shape[1:]), asarray=False, name=False) for one in given]
    model = estimator(loss, PENALTIES[penalty]).fit(given[0], given[1], given[2] if weighted else None, given[3])
    assert np.abs(gradient_mapping(model, X, y, weights, offset)).max() < 1e-6
    assert np.abs(gradient_mapping(model, X, y, weights, 0.0)).max() > 1e-3


@pytest.mark.parametrize("loss", ["squared_error", "huber"])
def test_an_offset_of_a_residual_moves_the_targets(loss):
    X, y, offset = data_for(loss)
    model, moved = estimator(loss).fit(X, y, offset=offset), estimator(loss).fit(X, y - offset)
    np.testing.assert_allclose(model.coef_, moved.coef_, rtol=1e-6)
    np.testing.assert_allclose(model.predict(X, offset), moved.predict(X) + offset, rtol=1e-6)


@pytest.mark.parametrize("loss", ["log_loss", "poisson", "squared_error"])
def test_glm_of_statsmodels(loss):
    sm = pytest.importorskip("statsmodels.api")
    X, y, offset = data_for(loss)
    model = estimator(loss).fit(X, y, offset=offset)
    family = {"log_loss": sm.families.Binomial, "poisson": sm.families.Poisson, "squared_error": sm.families.Gaussian}
    y = y > 0 if loss == "log_loss" else y
    theirs = sm.GLM(y.astype(float), sm.add_constant(X), family[loss](), offset=offset).fit(tol=1e-12)
    np.testing.assert_allclose(np.append(model.intercept_, model.coef_), theirs.params, rtol=1e-5)
    means = model.predict_proba(X, offset)[:, 1] if loss == "log_loss" else model.predict(X, offset)
    np.testing.assert_allclose(means, theirs.predict(sm.add_constant(X), offset=offset), rtol=1e-5)


@pytest.mark.slow
def test_a_loss_of_the_users_own():
    X, y, offset = data_for("squared_error")
    model, moved = estimator(Asymmetric()).fit(X, y, offset=offset), estimator(Asymmetric()).fit(X, y - offset)
    np.testing.assert_allclose(model.coef_, moved.coef_, rtol=1e-6)


def test_an_exposure_is_the_same_as_rates_with_weights():
    X, y, offset = data_for("poisson")
    exposure = np.exp(offset)
    model = estimator("poisson").fit(X, y, offset=offset)
    rates = estimator("poisson").fit(X, y / exposure, exposure)
    np.testing.assert_allclose(model.coef_, rates.coef_, rtol=1e-6)


def test_one_offset_for_each_target():
    X, y, offset = data_for("squared_error")
    y, offsets = np.column_stack([y, -y]), np.column_stack([offset, 2 * offset])
    model = estimator("squared_error").fit(X, y, offset=offsets)
    moved = estimator("squared_error").fit(X, y - offsets)
    np.testing.assert_allclose(model.coef_, moved.coef_, rtol=1e-6)
    np.testing.assert_allclose(model.predict(X, offsets), moved.predict(X) + offsets, rtol=1e-6)
    same = estimator("squared_error").fit(X, y, offset=offset)
    np.testing.assert_allclose(same.coef_, estimator("squared_error").fit(X, y - offset[:, None]).coef_, rtol=1e-6)


def test_a_number_moves_the_intercept():
    X, y, _ = data_for("poisson")
    model, moved = estimator("poisson").fit(X, y), estimator("poisson").fit(X, y, offset=2.0)
    np.testing.assert_allclose(moved.intercept_, model.intercept_ - 2.0, rtol=1e-6)
    np.testing.assert_allclose(moved.predict(X, 2.0), model.predict(X), rtol=1e-6)


def test_dask_predicts_and_scores_the_same():
    X, y, offset = data_for("poisson")
    frame = pd.DataFrame(X, columns=list("abcdefgh")).assign(y=y, offset=offset)
    names, parts = list("abcdefgh"), dd.from_pandas(frame, npartitions=3)
    model = estimator("poisson").fit(frame[names], y, offset=offset)
    lazy = estimator("poisson").fit(parts[names], parts["y"], offset=parts["offset"])
    np.testing.assert_allclose(lazy.coef_, model.coef_, rtol=1e-6)
    expected = model.predict(frame[names], offset)
    np.testing.assert_allclose(model.predict(parts[names], parts["offset"]).compute(), expected)
    np.testing.assert_allclose(model.predict(parts[names], 0.5).compute(), model.predict(frame[names], 0.5))
    assert model.score(frame[names], y, offset=offset) == pytest.approx(r2_score(y, expected))
    assert model.score(parts[names], parts["y"], offset=parts["offset"]) == pytest.approx(r2_score(y, expected))
    array = estimator("poisson").fit(X, y, offset=offset)
    blocks = da.from_array(X, chunks=(100, 8))
    for given in (offset, da.from_array(offset, chunks=100)):
        np.testing.assert_allclose(array.predict(blocks, given).compute(), expected, rtol=1e-6)


def test_a_classifier_predicts_with_its_offset():
    X, y, offset = data_for("log_loss")
    model = estimator("log_loss").fit(X, y, offset=offset)
    z = X @ model.coef_[0] + model.intercept_[0] + offset
    np.testing.assert_allclose(model.decision_function(X, offset), z)
    np.testing.assert_allclose(model.predict_proba(X, offset)[:, 1], expit(z))
    np.testing.assert_allclose(model.predict_log_proba(X, offset)[:, 1], np.log(expit(z)))
    np.testing.assert_array_equal(model.predict(X, offset), np.where(z > 0, 1.0, -1.0))
    assert model.score(X, y, offset=offset) == np.mean(model.predict(X, offset) == y)
    lazy = da.from_array(X, chunks=(100, 8))
    np.testing.assert_allclose(model.predict_proba(lazy, da.from_array(offset, chunks=100)).compute()[:, 1], expit(z))


@pytest.mark.parametrize("loss", ["log_loss", "poisson", "squared_error"])
def test_a_stream_converges_and_forgets(loss):
    X, y, offset = data_for(loss)
    classes = {"classes": [-1.0, 1.0]} if loss == "log_loss" else {}
    model, exact = estimator(loss, alpha=0.01), estimator(loss, alpha=0.01).set_params(penalty="l2")
    model.set_params(penalty="l2")
    parts = [slice(k, k + 70) for k in range(0, 420, 70)]
    for _ in range(30):
        for part in parts:
            model.partial_fit(X[part], y[part], offset=offset[part], **classes)
    np.testing.assert_allclose(model.coef_, exact.fit(X, y, offset=offset).coef_, rtol=1e-4, atol=1e-6)
    assert len(model.state_.chunks) == 6  # each was recognised by its content
    with pytest.raises(ValueError, match="not"):
        model.forget(X=X[:70], y=y[:70])
    model.forget(X=X[:70], y=y[:70], offset=offset[:70])
    assert len(model.state_.chunks) == 5


def test_chunks_are_joined_and_loaded_again(tmp_path):
    X, y, offset = data_for("poisson")
    lazy = [da.from_array(one, chunks=(60, *one.shape[1:])) for one in (X, y, offset)]
    held = estimator("poisson").fit(*lazy[:2], offset=lazy[2])
    again = estimator("poisson").fit(*lazy[:2], offset=lazy[2], persist=False, checkpoint=tmp_path)
    np.testing.assert_array_equal(held.coef_, again.coef_)


@pytest.mark.joins
def test_small_chunks_are_joined():
    X, y, offset = data_for("poisson")
    lazy = [da.from_array(one, chunks=(60, *one.shape[1:])) for one in (X, y, offset)]
    model = estimator("poisson").fit(*lazy[:2], offset=lazy[2])
    np.testing.assert_allclose(model.coef_, estimator("poisson").fit(X, y, offset=offset).coef_, rtol=1e-6)


def test_on_a_cluster(client):
    X, y, offset = data_for("log_loss")
    lazy = [da.from_array(one, chunks=(60, *one.shape[1:])) for one in (X, y, offset)]
    model = estimator("log_loss").fit(*lazy[:2], offset=lazy[2])
    assert np.abs(gradient_mapping(model.set_params(penalty=ElasticNet()), X, y, np.ones(420), offset)).max() < 1e-6


def test_offsets_that_do_not_fit():
    X, y, offset = data_for("poisson")
    labels = np.digitize(y, [0.5, 1.5])
    lazy = da.from_array(X, chunks=(100, 8))
    cases = [
        (lambda: SAGARegressor("poisson").fit(X, y, offset=offset[:5]), r"X has 420 rows.*\(5, 1\)"),
        (lambda: SAGARegressor("poisson").fit(X, y, offset=np.full(420, np.nan)), "offset.*NaN"),
        (lambda: SAGARegressor("poisson").fit(X, y, offset=np.ones((420, 2))), r"offset has shape \(420, 2\)"),
        (lambda: SAGAClassifier().fit(X, labels, offset=offset), "not supported for more than two classes"),
        (lambda: SAGAClassifier("squared_hinge").fit(X, labels, offset=offset), "more than two classes"),
        (lambda: SAGAClassifier().fit(X, labels).predict(X, offset), "more than two classes"),
        (lambda: SAGARegressor().fit(X, y).predict(X, offset[:5]), "X has 420 rows, but offset has shape"),
        (lambda: SAGARegressor().fit(lazy, da.from_array(y, chunks=100), offset=da.ones(420, chunks=50)), "blocks"),
        (lambda: SAGARegressor().fit(X, y).predict(lazy, da.ones(420, chunks=50)), "X has 5 blocks, but offset has 9"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="offset is a Dask collection, but X is not"):
        SAGARegressor().fit(X, y).predict(X, da.ones(420, chunks=50))
