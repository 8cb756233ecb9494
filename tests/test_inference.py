"""``summary``: standard errors as in statsmodels and as in a NumPy oracle, in memory and on Dask."""

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.special import expit, softmax
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning

from dask_saga import SAGAClassifier, SAGARegressor
from dask_saga.inference import summary
from dask_saga.penalties import ElasticNet

from .conftest import make_rows

LOSSES = ["log_loss", "squared_error", "poisson"]
EXACT = {"tol": 1e-9, "max_iter": 1000, "random_state": 0, "memory_dtype": "float64"}
NAMES = list("abcdefgh")


def data_for(loss, n=600):
    X, z = make_rows(n, classes=False)
    X = pd.DataFrame(X / X.std(axis=0), columns=NAMES)
    z = z / z.std()
    rng = np.random.default_rng(1)
    if loss == "log_loss":
        return X, np.where(rng.random(n) < expit(z - 1), "yes", "no")
    return X, rng.poisson(np.exp(z - 1)).astype(float) if loss == "poisson" else z


def fit(loss, X, y, sample_weight=None, penalty=None, **more):
    kind = SAGAClassifier if loss == "log_loss" else SAGARegressor
    return kind(loss, penalty=penalty, **{**EXACT, **more}).fit(X, y, sample_weight)


def moments(loss, X, y, theta, weights, intercept=True):
    """Rows with the intercept first, and the first and second derivatives of each row's loss in the predictions."""
    rows = np.column_stack([np.ones(len(X)), X]) if intercept else np.asarray(X)
    z = rows @ theta
    mean, curvature = {
        "log_loss": (expit(z), expit(z) * expit(-z)),
        "poisson": (np.exp(z), np.exp(z)),
        "squared_error": (z, np.ones(len(z))),
    }[loss]
    targets = (y == "yes") if loss == "log_loss" else y
    return rows, mean - targets, curvature * weights


def oracle_errors(loss, X, y, theta, weights, covariance, intercept=True, l2=0.0):
    rows, slopes, curvatures = moments(loss, X, y, theta, weights, intercept)
    n, p = weights.sum(), rows.shape[1]
    hessian = rows.T @ (curvatures[:, None] * rows)
    ridge = n * l2 * np.diag([0.0] * intercept + [1.0] * X.shape[1])
    if isinstance(covariance, str):
        scores = rows.T @ ((weights * slopes**2)[:, None] * rows) * (n / (n - p) if covariance == "HC1" else 1.0)
    else:
        sums = pd.DataFrame((weights * slopes)[:, None] * rows).groupby(np.asarray(covariance)).sum().to_numpy()
        scores = sums.T @ sums * len(sums) / (len(sums) - 1) * (n - 1) / (n - p)
    if isinstance(covariance, str) and covariance == "nonrobust":
        scale = weights @ slopes**2 / (n - p) if loss == "squared_error" else 1.0
        scores = scale * hessian
    inverse = np.linalg.inv(hessian + ridge)
    return np.sqrt(np.diag(inverse @ scores @ inverse))


CLUSTERS = np.random.default_rng(2).integers(0, 23, 600)


def named(covariance):
    return covariance if isinstance(covariance, str) else f"clusters-{covariance.dtype.kind}"


@pytest.mark.parametrize("covariance", ["nonrobust", "HC0", "HC1", CLUSTERS, np.array(list("abc") * 200)], ids=named)
@pytest.mark.parametrize("loss", LOSSES)
def test_standard_errors_of_the_oracle(loss, covariance):
    X, y = data_for(loss)
    model = fit(loss, X, y)
    before = dict(vars(model))
    table = summary(model, X, y, covariance=covariance)
    assert list(table.index) == ["intercept", *NAMES]
    assert list(table.columns) == ["coef", "std err", "z", "P>|z|", "[0.025", "0.975]"]
    np.testing.assert_array_equal(table["coef"], np.append(model.intercept_, model.coef_))
    errors = oracle_errors(loss, X, y, table["coef"], np.ones(len(y)), covariance)
    np.testing.assert_allclose(table["std err"], errors, rtol=1e-9)
    np.testing.assert_allclose(table["z"], table["coef"] / errors, rtol=1e-9)
    np.testing.assert_allclose(table["P>|z|"], 2 * norm.sf(abs(table["z"])), rtol=1e-9)
    np.testing.assert_allclose(table["0.975]"], table["coef"] + norm.ppf(0.975) * errors, rtol=1e-9)
    np.testing.assert_allclose(table["coef"] - table["[0.025"], table["0.975]"] - table["coef"])
    assert table.attrs["cov_type"] == (covariance if isinstance(covariance, str) else "cluster")
    assert vars(model) == before


@pytest.mark.parametrize("covariance", ["nonrobust", "HC0", "HC1", "cluster"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.filterwarnings("ignore:cov_type not fully supported")
def test_glm_of_statsmodels(loss, weighted, covariance):
    sm = pytest.importorskip("statsmodels.api")
    from statsmodels.stats.sandwich_covariance import cov_white_simple

    X, y = data_for(loss)
    weights = np.random.default_rng(3).integers(1, 4, len(y)).astype(float) if weighted else None
    ours = summary(
        fit(loss, X, y, weights), X, y, weights, covariance=CLUSTERS if covariance == "cluster" else covariance
    )
    family = {"log_loss": sm.families.Binomial, "poisson": sm.families.Poisson, "squared_error": sm.families.Gaussian}
    glm = sm.GLM(
        (y == "yes").astype(float) if loss == "log_loss" else y,
        sm.add_constant(X),
        family[loss](),
        freq_weights=weights,
    )
    more = {"cov_type": "cluster", "cov_kwds": {"groups": CLUSTERS}} if covariance == "cluster" else {}
    theirs = glm.fit(tol=1e-12, **(more or {"cov_type": covariance.replace("HC1", "HC0")}))
    np.testing.assert_allclose(ours["coef"], theirs.params, rtol=1e-6, atol=1e-9)
    errors, n = np.array(theirs.bse), ours.attrs["nobs"]
    if covariance == "HC1":  # statsmodels has this factor for OLS only
        errors = errors * np.sqrt(n / (n - 9))
        if not weighted:
            np.testing.assert_allclose(errors**2, np.diag(cov_white_simple(theirs, use_correction=True)))
    if not (covariance == "cluster" and weighted):  # statsmodels counts rows there, not weights
        np.testing.assert_allclose(ours["std err"], errors, rtol=1e-6)
        np.testing.assert_allclose(ours["P>|z|"], 2 * norm.sf(abs(theirs.params / errors)), rtol=1e-5, atol=1e-12)
    assert ours.attrs["deviance"] == pytest.approx(theirs.deviance)
    assert ours.attrs["df_resid"] == theirs.df_resid
    assert ours.attrs["scale"] == pytest.approx(theirs.scale)


@pytest.mark.parametrize("loss", LOSSES)
def test_likelihoods_of_statsmodels(loss):
    sm = pytest.importorskip("statsmodels.api")
    X, y = data_for(loss)
    rows = sm.add_constant(X)
    theirs = {
        "log_loss": lambda: sm.Logit((y == "yes").astype(float), rows).fit(disp=0, tol=1e-10),
        "poisson": lambda: sm.Poisson(y, rows).fit(disp=0, tol=1e-10),
        "squared_error": lambda: sm.OLS(y, rows).fit(),
    }[loss]()
    table = summary(fit(loss, X, y), X, y)
    np.testing.assert_allclose(table["std err"], theirs.bse, rtol=1e-6)
    r2 = theirs.rsquared if loss == "squared_error" else theirs.prsquared
    found = {name: table.attrs[name] for name in ("llf", "aic", "pseudo_r2", "nobs", "df_resid")}
    assert found == pytest.approx(
        {"llf": theirs.llf, "aic": theirs.aic, "pseudo_r2": r2, "nobs": theirs.nobs, "df_resid": theirs.df_resid}
    )
    if loss == "squared_error":
        robust = summary(fit(loss, X, y), X, y, covariance="HC1")
        np.testing.assert_allclose(robust["std err"], theirs.get_robustcov_results("HC1").bse, rtol=1e-6)
    else:
        assert table.attrs["llnull"] == pytest.approx(theirs.llnull)


@pytest.mark.parametrize("covariance", ["nonrobust", "HC0"])
@pytest.mark.parametrize("loss", LOSSES)
def test_an_offset(loss, covariance):
    sm = pytest.importorskip("statsmodels.api")
    X, y = data_for(loss)
    offset = np.random.default_rng(3).standard_normal(len(y))
    kind = SAGAClassifier if loss == "log_loss" else SAGARegressor
    model = kind(loss, penalty=None, **EXACT).fit(X, y, offset=offset)
    table = summary(model, X, y, offset=offset, covariance=covariance)
    family = {"log_loss": sm.families.Binomial, "poisson": sm.families.Poisson, "squared_error": sm.families.Gaussian}
    targets = (y == "yes").astype(float) if loss == "log_loss" else y
    theirs = sm.GLM(targets, sm.add_constant(X), family[loss](), offset=offset).fit(tol=1e-12, cov_type=covariance)
    np.testing.assert_allclose(table["std err"], theirs.bse, rtol=1e-6)
    assert table.attrs["deviance"] == pytest.approx(theirs.deviance)
    if loss == "log_loss":
        assert np.isnan([table.attrs["llnull"], table.attrs["pseudo_r2"]]).all()
        assert table.attrs["llf"] == pytest.approx(theirs.llf)
    if loss == "poisson":
        assert table.attrs["llf"] == pytest.approx(theirs.llf)
        assert table.attrs["llnull"] == pytest.approx(theirs.llnull)


def classes_of(X, y):
    return X, np.array(["low", "middle", "top"])[np.digitize(y, np.quantile(y, [0.3, 0.7]))]


@pytest.mark.parametrize("covariance", ["nonrobust", "HC0", CLUSTERS], ids=named)
def test_several_classes_of_statsmodels(covariance):
    sm = pytest.importorskip("statsmodels.api")
    X, y = classes_of(*data_for("squared_error"))
    table = summary(fit("log_loss", X, y), X, y, covariance=covariance)
    how = {"cov_type": covariance} if isinstance(covariance, str) else {}
    how = how or {"cov_type": "cluster", "cov_kwds": {"groups": CLUSTERS}}
    codes = np.unique(y, return_inverse=True)[1]
    theirs = sm.MNLogit(codes, sm.add_constant(X)).fit(disp=0, maxiter=100, tol=1e-10, **how)
    assert list(table.index) == [(label, name) for label in ("middle", "top") for name in ("intercept", *NAMES)]
    np.testing.assert_allclose(table["coef"], np.ravel(theirs.params, "F"), rtol=1e-6)
    np.testing.assert_allclose(table["std err"], np.ravel(theirs.bse, "F"), rtol=1e-6)
    assert table.attrs["llf"] == pytest.approx(theirs.llf)
    assert table.attrs["pseudo_r2"] == pytest.approx(theirs.prsquared)
    assert table.attrs["aic"] == pytest.approx(theirs.aic)


@pytest.mark.parametrize("l2", [0.0, 0.02])
def test_several_classes_of_the_oracle(l2):
    X, y = classes_of(*data_for("squared_error"))
    model = fit("log_loss", X, y, penalty=ElasticNet(l2=l2))
    if l2:
        with pytest.warns(UserWarning, match="biased towards zero"):
            table = summary(model, X, y)
    else:
        table = summary(model, X, y)
    rows = np.column_stack([X, np.ones(len(X))])
    p = softmax(rows @ np.column_stack([model.coef_, model.intercept_]).T, axis=1)
    factors = np.einsum("ic,ce->ice", p, np.eye(3)) - p[:, :, None] * p[:, None, :]
    hessian = np.einsum("ice,ij,ik->cjek", factors, rows, rows).reshape(27, 27)
    inverse = np.linalg.pinv(hessian + 600 * l2 * np.kron(np.eye(3), np.diag([1.0] * 8 + [0.0])), rcond=1e-10)
    contrast = np.kron([[-1, 1, 0], [-1, 0, 1]], np.roll(np.eye(9), 1, axis=0))
    errors = np.sqrt(np.diag(contrast @ inverse @ hessian @ inverse @ contrast.T))
    np.testing.assert_allclose(table["std err"], errors, rtol=1e-7)


@pytest.mark.parametrize("covariance", ["nonrobust", "HC1", CLUSTERS], ids=named)
@pytest.mark.parametrize("loss", LOSSES)
def test_an_l2_penalty_warns(loss, covariance):
    X, y = data_for(loss)
    model = fit(loss, X, y, penalty="l2", alpha=0.02)
    with pytest.warns(UserWarning, match=r"biased towards zero.*fit with penalty=None"):
        table = summary(model, X, y, covariance=covariance)
    errors = oracle_errors(loss, X, y, table["coef"], np.ones(len(y)), covariance, l2=0.02)
    np.testing.assert_allclose(table["std err"], errors, rtol=1e-9)


@pytest.mark.parametrize("covariance", ["nonrobust", "HC0", CLUSTERS], ids=named)
@pytest.mark.parametrize("loss", LOSSES)
def test_without_an_intercept(loss, covariance):
    X, y = data_for(loss)
    table = summary(fit(loss, X, y, fit_intercept=False), X, y, covariance=covariance)
    assert list(table.index) == NAMES
    errors = oracle_errors(loss, X, y, table["coef"], np.ones(len(y)), covariance, intercept=False)
    np.testing.assert_allclose(table["std err"], errors, rtol=1e-9)


def same(table, other, rtol=1e-8):
    pd.testing.assert_frame_equal(table, other, rtol=rtol, atol=1e-12, check_names=False)
    kinds = [one.attrs.pop("cov_type") for one in (table, other)]
    assert kinds[0] == kinds[1]
    assert table.attrs == pytest.approx(other.attrs, rel=1e-7)
    other.attrs["cov_type"] = kinds[0]


@pytest.mark.parametrize("covariance", ["nonrobust", "HC0", "cluster"])
@pytest.mark.parametrize("loss", LOSSES)
def test_chunks_frames_and_sparse_rows_give_the_same(loss, covariance):
    X, y = data_for(loss)
    model, rows = fit(loss, X, y), X.to_numpy()
    clusters = CLUSTERS if covariance == "cluster" else covariance
    table = summary(model, X, y, covariance=clusters)
    lazy_y = da.from_array(y.astype(object) if loss == "log_loss" else y, chunks=100)
    lazy = da.from_array(CLUSTERS, chunks=100) if covariance == "cluster" else covariance
    plain = fit(loss, rows, y)
    chunks = da.from_array(rows, chunks=(100, 8))
    same(summary(plain, chunks, lazy_y, covariance=clusters).set_axis(table.index), table)
    same(summary(plain, chunks, lazy_y, covariance=lazy).set_axis(table.index), table)
    same(summary(plain.without_memory(), sp.csr_array(rows), y, covariance=clusters).set_axis(table.index), table)
    frame = dd.from_pandas(X.assign(y=y, group=CLUSTERS), npartitions=3)
    lazy = frame["group"] if covariance == "cluster" else covariance
    same(summary(model, frame[NAMES], frame["y"], covariance=lazy), table)


def test_each_block_is_read_once():
    X, y = data_for("poisson")
    model, reads = fit("poisson", X.to_numpy(), y), []

    def counted(block):
        reads.append(len(block))
        return block

    rows = da.from_array(X.to_numpy(), chunks=(100, 8)).map_blocks(counted, meta=np.empty((0, 0)))
    summary(model, rows, da.from_array(y, chunks=100), covariance=CLUSTERS)
    assert reads == [100] * 6


def test_blocks_without_rows():
    X, y = data_for("poisson")
    model = fit("poisson", X, y)
    frame = dd.from_pandas(X.assign(y=y), npartitions=4)
    some = frame[frame["a"] > -1e9].map_partitions(lambda part: part[part.index > 200])
    with pytest.warns(ConvergenceWarning, match="standard errors away from the optimum of these data"):
        table = summary(model, some[NAMES], some["y"], covariance="HC0")
    assert table.attrs["nobs"] == 399
    none = frame.map_partitions(lambda part: part[:0])
    with pytest.raises(ValueError, match="X has no rows of positive weight"):
        summary(model, none[NAMES], none["y"])


def test_a_cluster_of_workers(client):
    X, y = data_for("log_loss")
    model = fit("log_loss", X.to_numpy(), y)
    chunks, labels = da.from_array(X.to_numpy(), chunks=(100, 8)), da.from_array(y, chunks=100)
    for covariance, lazy in [("HC1", "HC1"), (CLUSTERS, CLUSTERS), (CLUSTERS, da.from_array(CLUSTERS, chunks=100))]:
        table = summary(model, X.to_numpy(), y, covariance=covariance)
        same(summary(model, chunks, labels, covariance=lazy), table)
        same(summary(model, *client.persist([chunks, labels]), covariance=lazy), table)


@pytest.mark.parametrize("covariance", ["nonrobust", "HC0", "HC1", CLUSTERS], ids=named)
def test_a_weight_counts_equal_rows(covariance):
    X, y = data_for("poisson")
    weights = np.random.default_rng(3).integers(0, 4, len(y))
    again = np.repeat(np.arange(len(y)), weights)
    model = fit("poisson", X, y, weights)
    table = summary(model, X, y, weights, covariance=covariance)
    repeated = covariance if isinstance(covariance, str) else covariance[again]
    same(summary(model, X.iloc[again], y[again], covariance=repeated), table)


@pytest.mark.parametrize("loss", ["huber", "squared_hinge"])
def test_losses_without_a_likelihood_have_robust_errors_only(loss):
    X, y = data_for("squared_error")
    y, kind = (y > 0, SAGAClassifier) if loss == "squared_hinge" else (y, SAGARegressor)
    model = kind(loss, penalty=None, **EXACT).fit(X, y)
    table = summary(model, X, y, covariance="HC0")
    assert set(table.attrs) == {"nobs", "df_resid", "cov_type"}
    rows = np.column_stack([np.ones(len(X)), X])
    z = rows @ table["coef"]
    if loss == "huber":
        slopes, curvatures = np.clip(z - y, -1.35, 1.35), abs(z - y) < 1.35
    else:
        signs = np.where(y, 1.0, -1.0)
        slopes, curvatures = -2 * signs * np.maximum(1 - signs * z, 0), 2.0 * (signs * z < 1)
    inverse = np.linalg.inv(rows.T @ (curvatures[:, None] * rows))
    errors = np.sqrt(np.diag(inverse @ (rows.T @ (slopes[:, None] ** 2 * rows)) @ inverse))
    np.testing.assert_allclose(table["std err"], errors, rtol=1e-9)
    with pytest.raises(ValueError, match=r"is no likelihood.*use covariance='HC0'"):
        summary(model, X, y)


def test_columns_far_from_zero_and_in_different_units():
    X, y = data_for("squared_error")
    units, shifts = np.logspace(-6, 6, 8), np.linspace(-1e4, 1e4, 8)
    table = summary(fit("squared_error", X, y), X, y)
    far = (X + shifts) * units
    moved = summary(fit("squared_error", far, y, tol=1e-12), far, y)
    np.testing.assert_allclose((moved["std err"] * np.append(1, units))[1:], table["std err"][1:], rtol=1e-6)


def test_the_level_of_the_limits():
    X, y = data_for("poisson")
    table = summary(fit("poisson", X, y), X, y, level=0.9)
    np.testing.assert_allclose(table["0.95]"] - table["[0.05"], 2 * norm.ppf(0.95) * table["std err"])


class Own(ElasticNet):
    """A penalty that is not known."""


def test_what_has_no_standard_errors():
    X, y = data_for("squared_error")
    targets = np.column_stack([y, -y])
    classes = classes_of(X, y)[1]
    bounded = ElasticNet(lower=0.0)
    cases = [
        (SAGARegressor(penalty="l1"), y, {}, "has an L1 part.*not normal.*penalty=None"),
        (SAGARegressor(penalty=bounded), y, {}, "at a bound of the penalty"),
        (SAGARegressor(penalty=None), targets, {}, "has 2 targets; summary needs one model"),
        (SAGAClassifier("squared_hinge", penalty=None), classes, {"covariance": "HC0"}, "has 3 one-vs-rest classes"),
        (SAGARegressor(penalty=None), y, {"covariance": "HC4"}, "covariance='HC4' is unknown; choose one of"),
        (SAGARegressor(penalty=None), y, {"covariance": "cluster"}, "covariance='cluster' is unknown"),
        (SAGARegressor(penalty=None), y, {"covariance": np.zeros(600)}, "has a single cluster"),
        (SAGARegressor(penalty=None), y, {"covariance": np.zeros(7)}, r"X has 600 rows, but covariance.*\(7,\)"),
        (SAGARegressor(penalty=None), y, {"covariance": [np.nan] * 600}, "has missing values; give every row"),
        (SAGARegressor(penalty=None), y, {"level": 95}, "level=95 must be between 0 and 1"),
    ]
    for model, target, how, message in cases:
        with pytest.raises(ValueError, match=message):
            summary(model.set_params(random_state=0).fit(X, target), X, target, **how)
    with pytest.raises(ValueError, match="9 for 9 coefficients; standard errors need more rows"):
        summary(SAGARegressor(penalty=None, tol=1e-2).fit(X[:9], y[:9]), X[:9], y[:9])
    lazy = da.from_array(CLUSTERS, chunks=100)
    with pytest.raises(TypeError, match=r"covariance is a Dask collection, but X is not"):
        summary(fit("squared_error", X, y), X, y, covariance=lazy)
    with pytest.raises(TypeError, match="summary needs a fitted SAGAClassifier or SAGARegressor"):
        summary("model", X, y)


def test_bounds_that_are_not_active_change_nothing():
    X, y = data_for("squared_error")
    table = summary(fit("squared_error", X, y, penalty=ElasticNet(lower=-1e3, upper=1e3)), X, y)
    same(table, summary(fit("squared_error", X, y), X, y), rtol=1e-5)


def test_dependent_columns_are_named():
    X, y = data_for("squared_error")
    X = X.assign(twice=2 * X["c"], constant=3.0)
    for names, extra in [(["c", "twice"], "twice"), (["constant"], "constant")]:
        some = X[[*NAMES, extra]]
        with pytest.raises(ValueError, match=rf"columns \[{', '.join(map(repr, names))}\] are linearly dependent"):
            summary(SAGARegressor(penalty=None, random_state=0).fit(some, y), some, y)


def test_a_fit_far_from_the_optimum_warns():
    X, y = data_for("log_loss")
    model = fit("log_loss", X, y)
    model.coef_ = model.coef_ + 0.1
    with pytest.warns(ConvergenceWarning, match=r"standard errors away from the optimum.*smaller tol"):
        summary(model, X, y)


def test_the_default_tolerance_is_enough():
    X, y = data_for("log_loss")
    summary(SAGAClassifier(penalty=None, random_state=0).fit(X, y), X, y)
