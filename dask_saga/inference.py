"""Standard errors, tests and confidence limits of fitted coefficients: ``summary``."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from dask import is_dask_collection
from scipy.special import gammaln, xlogy
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from .data.dask_blocks import dask_blocks
from .estimators.base import SAGABase
from .execution.executor import merged
from .execution.threads import one_blas_thread
from .fitting.loop import join_x
from .losses import LogLoss, MultinomialLogLoss, PoissonLoss, SquaredError, resolve_loss
from .penalties import ElasticNet
from .solver.hessian import block_hessians, coupled_hessian, score_products
from .solver.local_model import predictions, row_derivatives
from .solver.optimality import chunk_gradient

if TYPE_CHECKING:
    from .data.chunk import Chunk
    from .fitting.chunk_source import Source
    from .solver.problem import Problem

__all__ = ["summary"]


COVARIANCES = ("nonrobust", "HC0", "HC1")

# Number of results that one task merges.
MERGED_SUMS = 8

# A coefficient that is farther from the optimum than this share of its standard error causes a warning.
FARTHEST = 0.1

# Columns of a matrix of ones on the diagonal are dependent if its least eigenvalue is below this share of the largest.
DEPENDENT = 1e-13

# A column belongs to a dependency if its entry in the eigenvector exceeds this.
INVOLVED = 0.05


class _Sums(NamedTuple):
    """Sums over the rows of a chunk, or of several. Rows are ``(a - origin, 1)``, and K = k (p + 1).

    Parameters
    ----------
    weight : float
        Sum of the weights.
    value : float
        Sum of the weighted losses.
    gradient : ndarray of shape (K,)
    hessian : ndarray of shape (K, K)
    scores : ndarray of shape (K, K) or None
        Sum of the outer products of the rows' gradients. None if it is not needed.
    measures : ndarray of shape (m,)
        Sums of what the likelihood needs of the targets; see ``_Family``.
    clusters : DataFrame of shape (n_clusters, K) or None
        Sums of the gradients of each cluster, with the clusters as index.
    """

    weight: float
    value: float
    gradient: np.ndarray
    hessian: np.ndarray
    scores: np.ndarray | None
    measures: np.ndarray
    clusters: pd.DataFrame | None


class _Fit(NamedTuple):
    """Likelihood, deviance and scale of a fit."""

    llf: float
    llnull: float
    deviance: float
    pseudo_r2: float
    scale: float = 1.0


class _Family(NamedTuple):
    """How the likelihood follows from sums over the rows.

    Parameters
    ----------
    measures : callable
        ``measures(y, offset, loss, centre)`` returns an array of shape (n, m) of which the weighted sums are needed.
    fit : callable
        ``fit(sums, df, intercept)`` returns a ``_Fit``. df is the weight minus the number of coefficients.
    """

    measures: Callable[[np.ndarray, np.ndarray, Any, float], np.ndarray]
    fit: Callable[[_Sums, float, bool], _Fit]


def _class_indicators(y: np.ndarray, offset: np.ndarray, loss: Any, centre: float) -> np.ndarray:
    return np.column_stack([y[:, None] == np.array(loss.labels), offset != 0]).astype(float)


def _fit_classes(sums: _Sums, df: float, intercept: bool) -> _Fit:
    totals = sums.measures[:-1]
    null = float(xlogy(totals, totals / sums.weight).sum())
    if sums.measures[-1]:  # some rows have an offset: the model with an intercept only would need a fit of its own
        null = np.nan
    return _Fit(-sums.value, null, 2 * sums.value, 1.0 + sums.value / null)


def _count_measures(y: np.ndarray, offset: np.ndarray, loss: Any, centre: float) -> np.ndarray:
    return np.column_stack([y, xlogy(y, y) - y, gammaln(y + 1.0), np.exp(offset), y * offset])


def _fit_counts(sums: _Sums, df: float, intercept: bool) -> _Fit:
    total, saturated, constant, exposure, moved = sums.measures
    # The loss exp(z + o) - y (z + o) has the offset o in both terms.
    llf, llnull = -sums.value - constant, float(xlogy(total, total / exposure) + moved - total - constant)
    return _Fit(llf, llnull, 2 * (sums.value + saturated), 1.0 - llf / llnull)


def _moments(y: np.ndarray, offset: np.ndarray, loss: Any, centre: float) -> np.ndarray:
    residual = y - offset - centre
    return np.column_stack([residual, residual**2])


def _fit_normal(sums: _Sums, df: float, intercept: bool) -> _Fit:
    total, squares = sums.measures
    null = squares - total**2 / sums.weight if intercept else squares

    def likelihood(deviance: float) -> float:
        return float(-0.5 * sums.weight * (np.log(2 * np.pi * deviance / sums.weight) + 1.0))

    deviance = 2 * sums.value
    return _Fit(likelihood(deviance), likelihood(null), deviance, 1.0 - deviance / null, deviance / df)


FAMILIES: dict[type, _Family] = {
    LogLoss: _Family(_class_indicators, _fit_classes),
    MultinomialLogLoss: _Family(_class_indicators, _fit_classes),
    PoissonLoss: _Family(_count_measures, _fit_counts),
    SquaredError: _Family(_moments, _fit_normal),
}


def summary(
    model: Any,
    X: Any,
    y: Any,
    sample_weight: Any = None,
    offset: Any = None,
    *,
    covariance: Any = "nonrobust",
    level: float = 0.95,
) -> pd.DataFrame:
    """Return standard errors, z tests and confidence limits of the coefficients, from one pass over the data.

    The covariance of the coefficients is ``H^-1``, times the variance of the residuals for "squared_error". H is the
    Hessian of the sum of the losses at the coefficients. Robust covariances are ``H^-1 S H^-1``, where S is the sum of
    the outer products of the rows' gradients. They stay valid if the variance of the targets is not that of the model.

    Parameters
    ----------
    model : SAGAClassifier or SAGARegressor
        A fitted estimator, which is not modified. Its penalty must have no L1 part and no active bound. If it has an L2
        part, a warning says what the standard errors mean; fit with ``penalty=None`` to avoid it.
    X : array-like, scipy.sparse, DataFrame or Dask collection of shape (n, p)
        Rows of the fit. Each block of a Dask collection is read once, on the client's cluster if there is one.
    y : array-like or Dask collection of shape (n,)
        Targets or labels of the fit.
    sample_weight : array-like or Dask collection of shape (n,), default=None
        Row weights of the fit. A weight is the number of equal rows that a row stands for, so the scale of the weights
        matters. If `class_weight` was used, give the products of both weights. None gives every row weight 1.
    offset : array-like or Dask collection of shape (n,), default=None
        Offset of the fit.
    covariance : {"nonrobust", "HC0", "HC1"} or array-like or Dask collection of shape (n,), default="nonrobust"
        "nonrobust" assumes that the model is right; the loss must be "log_loss", "squared_error" or "poisson". "HC0"
        is robust, and "HC1" is "HC0" times ``n / (n - p)`` for p coefficients, for all losses. (In statsmodels, only
        OLS has this factor.) Both accept all losses with second derivatives. An array has the cluster of each row: the
        rows of a cluster may then depend on each other. Its factor is ``G / (G - 1) (n - 1) / (n - p)`` for G clusters.
    level : float, default=0.95
        Level of the confidence limits.

    Returns
    -------
    DataFrame
        One row per coefficient, first that of the intercept, with the columns "coef", "std err", "z", "P>|z|" and the
        two confidence limits, "[0.025" and "0.975]" for the default `level`. For more than two classes and "log_loss",
        coefficients are those of a class minus those of the first one, as only differences are determined. The
        index then has the class and the column.

        ``attrs`` has "nobs" (the sum of the weights), "df_resid", "cov_type" and, if the loss has a likelihood, "llf"
        (log-likelihood), "llnull" (that of the model with an intercept only), "deviance", "aic", "pseudo_r2" and
        "scale". "pseudo_r2" is 1 - llf / llnull (McFadden), and R^2 for "squared_error". "llnull" and "pseudo_r2" are
        nan for "log_loss" with an offset.

    Raises
    ------
    ValueError
        If standard errors are not defined: for L1 penalties, active bounds, several targets, one-vs-rest classes or
        columns that are linearly dependent. The message says what to change.
    TypeError
        If `model` is not an estimator of this package, or has a penalty of your own.

    Warns
    -----
    UserWarning
        If the penalty has an L2 part. The covariance is then ``A^-1 H A^-1`` with A = H + n l2 I. It is the variance of
        the penalised coefficients, which are biased towards zero. Tests and limits ignore this bias.
    ConvergenceWarning
        If a Newton step would move a coefficient by more than a tenth of its standard error.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from dask_saga import SAGARegressor
    >>> from dask_saga.inference import summary
    >>> X, y = load_diabetes(return_X_y=True, as_frame=True)
    >>> model = SAGARegressor(penalty=None, tol=1e-8).fit(X[["bmi", "bp"]], y)
    >>> print(summary(model, X[["bmi", "bp"]], y).round(1))
                coef  std err     z  P>|z|  [0.025  0.975]
    intercept  152.1      2.9  53.3    0.0   146.5   157.7
    bmi        790.4     65.4  12.1    0.0   662.3   918.5
    bp         402.2     65.4   6.2    0.0   274.1   530.3
    """
    if not isinstance(model, SAGABase):
        raise TypeError(f"model is a {type(model).__name__}; summary needs a fitted SAGAClassifier or SAGARegressor")
    check_is_fitted(model)
    if not 0 < level < 1:
        raise ValueError(f"level={level!r} must be between 0 and 1, such as 0.95")
    if isinstance(covariance, str) and covariance not in COVARIANCES:
        raise ValueError(f"covariance={covariance!r} is unknown; choose one of {list(COVARIANCES)}, or give clusters")
    cov_type, clusters = (covariance, None) if isinstance(covariance, str) else ("cluster", covariance)
    problem = model._problem()
    l2 = _checked_l2(model, problem)
    x, origin = join_x(model.coef_, model.intercept_), _origin(model, problem)
    source, problem, _ = model._read(X, y, sample_weight, problem, False, fits=False, offset=offset)
    with source:
        _check_loss(model, problem, cov_type)
        labels = None if clusters is None else _cluster_blocks(source, X, y, clusters)
        sums = _sum_all(source, x, problem, origin, cov_type, labels)
    return _table(model, x, origin, sums, l2, cov_type, level)


def _checked_l2(model: SAGABase, problem: Problem) -> np.ndarray:
    """Return the L2 weight of each column. Raise an error for penalties without standard errors."""
    penalty, coef = problem.penalty, np.atleast_2d(model.coef_)
    if not isinstance(penalty, ElasticNet):
        raise TypeError(f"penalty is a {type(penalty).__name__}; summary knows the built-in penalties: fit with None")
    if np.any(np.asarray(penalty.l1) > 0):
        raise ValueError(
            "the penalty has an L1 part, which sets coefficients to exactly zero. Their distribution is not normal, so "
            "they have no standard errors. Fit the columns that remain with penalty=None, on other rows if they were "
            "selected by these"
        )
    if ((coef <= penalty.lower) | (coef >= penalty.upper)).any():
        raise ValueError(
            "some coefficients are at a bound of the penalty. Their distribution is not normal, so they have no "
            "standard errors. Fit without the bounds, or without these columns"
        )
    l2 = np.broadcast_to(np.asarray(penalty.l2, dtype=float), coef.shape[1:])
    if l2.any():
        warnings.warn(
            "The penalty has an L2 part, so the coefficients are biased towards zero. The standard errors describe "
            "their variance only, and tests and limits ignore the bias; fit with penalty=None to avoid this.",
            stacklevel=3,
        )
    return l2


def _check_loss(model: SAGABase, problem: Problem, cov_type: str) -> None:
    if len(model.intercept_) > 1 and not hasattr(problem.loss, "outputs"):
        raise ValueError(
            f"the model has {len(model.intercept_)} {'one-vs-rest classes' if model._labelled else 'targets'}; summary "
            "needs one model of a single output: fit a model for each of them"
        )
    if type(problem.loss) not in FAMILIES and cov_type == "nonrobust":
        raise ValueError(
            f"loss={model.loss!r} is no likelihood, so covariance='nonrobust' has no meaning; use covariance='HC0'"
        )
    if hasattr(problem.loss, "outputs") and type(problem.loss) is not MultinomialLogLoss:
        raise ValueError(f"loss={model.loss!r} couples its outputs by a Hessian that summary does not know")


def _origin(model: SAGABase, problem: Problem) -> np.ndarray:
    """Return the point about which rows are taken: near their mean, because the Hessian is then better conditioned."""
    metric = model.state_.metric if model.state_ is not None else None
    return np.zeros(model.n_features_in_) if metric is None or not problem.fit_intercept else metric.shift


def _cluster_blocks(source: Source, X: Any, y: Any, clusters: Any) -> list:
    """Return the clusters of the rows of each chunk."""
    if not is_dask_collection(X):
        if is_dask_collection(clusters):
            raise TypeError("covariance is a Dask collection, but X is not; compute it first: covariance.compute()")
        return [np.asarray(clusters)]
    labels = [block[3] for block in dask_blocks(X, y, covariance=clusters)]
    return source.executor.load(labels) if is_dask_collection(clusters) else labels


def _sum_all(
    source: Source, x: np.ndarray, problem: Problem, origin: np.ndarray, cov_type: str, labels: list | None
) -> _Sums:
    nbytes = 8.0 * x.size**2 * (2 if cov_type.startswith("HC") else 1)
    call = (x, problem, origin, cov_type.startswith("HC"))
    sums = source.map(_sums_of, *call, name="saga-inference", named=True, nbytes=nbytes, paired=labels)
    [whole] = source.executor.gather(merged(source.executor, _merge, sums, MERGED_SUMS))
    if whole is None or not whole.weight > 0:
        raise ValueError("X has no rows of positive weight")
    return whole


def _sums_of(
    chunk: Chunk, x: np.ndarray, problem: Problem, origin: np.ndarray, robust: bool, name: Any, clusters: Any = None
) -> _Sums | None:
    """Return the sums of one chunk, or None if it has no rows."""
    n, loss = len(chunk.targets), problem.loss
    if not n:
        return None
    z, weights = predictions(chunk.rows, x), chunk.row_weights
    slopes, curvatures = row_derivatives(chunk, z, problem)
    value, gradient = chunk_gradient(chunk, x, problem)
    gradient[:, :-1] -= gradient[:, -1:] * origin
    measures, family = np.zeros(0), FAMILIES.get(type(loss))
    if family is not None:
        centre = float(x[0, :-1] @ origin + x[0, -1])
        targets = chunk.targets[:, 0]
        measures = weights @ family.measures(targets.real, targets.imag, loss, centre)
    scores = None
    with one_blas_thread():  # several would compete with the thread that loads the next block
        if isinstance(loss, MultinomialLogLoss):
            hessian = coupled_hessian(chunk, loss.probability(z), origin)
        else:
            [hessian] = block_hessians(chunk, curvatures, origin)
        if robust:  # a row of weight w stands for w rows, each of which has the gradient of weight 1
            roots = np.sqrt(np.where(weights > 0, weights, 1.0))[:, None]
            scores = score_products(chunk, slopes / roots, origin)
    labelled = None if clusters is None else _cluster_sums(chunk, slopes, origin, clusters, name)
    return _Sums(chunk.weight, value, gradient.ravel(), hessian, scores, measures, labelled)


def _cluster_sums(chunk: Chunk, slopes: np.ndarray, origin: np.ndarray, clusters: Any, name: Any) -> pd.DataFrame:
    """Return the sum of the gradients of the rows of each cluster, with the clusters as index."""
    labels, place = np.asarray(clusters), "" if name is None else f"chunk {name}: "
    if labels.shape != slopes.shape[:1]:
        raise ValueError(f"{place}X has {len(slopes)} rows, but covariance, the clusters, has shape {labels.shape}")
    codes, index = pd.factorize(labels)
    if (codes < 0).any():
        raise ValueError(f"{place}covariance, the clusters, has missing values; give every row a cluster")
    parts = []
    for own in slopes.T:
        selected = sp.csr_array((own, (codes, np.arange(len(own)))), shape=(len(index), len(own)))
        products, totals = selected @ chunk.rows, selected.sum(axis=1)
        products = products.toarray() if sp.issparse(products) else products
        parts += [products - totals[:, None] * origin, totals[:, None]]
    return pd.DataFrame(np.hstack(parts), index=index)


def _merge(*parts: _Sums | None) -> _Sums | None:
    return functools.reduce(_add, [part for part in parts if part is not None], None)


def _add(one: _Sums | None, other: _Sums) -> _Sums:
    if one is None:
        return other
    scores = None if one.scores is None or other.scores is None else one.scores + other.scores
    clusters = None
    if one.clusters is not None and other.clusters is not None:
        clusters = one.clusters.add(other.clusters, fill_value=0.0)
    return _Sums(
        one.weight + other.weight, one.value + other.value, one.gradient + other.gradient, one.hessian + other.hessian,
        scores, one.measures + other.measures, clusters,
    )  # fmt: skip


def _table(
    model: SAGABase, x: np.ndarray, origin: np.ndarray, sums: _Sums, l2: np.ndarray, cov_type: str, level: float
) -> pd.DataFrame:
    """Return the result of ``summary`` from the sums over all rows."""
    coef = x[1:] - x[0] if len(x) > 1 else x
    k, d = coef.shape
    kept = np.ones((k, d), dtype=bool)
    kept[:, -1] = model.fit_intercept
    names, kept = _names(model, k), kept.ravel()
    values, hessian, ridge = coef.ravel()[kept], _last(sums.hessian, kept), _last(_ridge(x, sums.weight * l2), kept)
    df = sums.weight - len(values)
    if not df > 0:
        raise ValueError(
            f"the weights sum to {sums.weight:g} for {len(values)} coefficients; standard errors need more rows"
        )
    likelihood = _likelihood_of(model, sums, df)
    scores = _score_matrix(sums, hessian, kept, df, cov_type, likelihood.get("scale", 1.0))
    to_zero = np.eye(d)
    to_zero[-1, :-1] = -origin  # the intercept at the origin becomes that at zero
    inverse = _last(np.kron(np.eye(k), to_zero), kept) @ _inverse(hessian + ridge, names, kept)
    errors = np.sqrt(((inverse @ scores) * inverse).sum(axis=1))
    _check_optimum(inverse @ (_last(sums.gradient, kept) + ridge @ values), errors)
    table = _frame(values, errors, names[kept], level)
    if model.fit_intercept:  # that of each class comes first
        table = table.iloc[np.roll(np.arange(k * d).reshape(k, d), 1, axis=1).ravel()]
    table.attrs = {"nobs": sums.weight, "df_resid": df, "cov_type": cov_type, **likelihood}
    return table


def _ridge(x: np.ndarray, l2: np.ndarray) -> np.ndarray:
    """Return the Hessian of the L2 penalty in the coefficients, or in the differences from the first class.

    Penalised coefficients of k classes have the mean zero. So the penalty of their differences t from the first class
    is l2/2 (t't - (1't)^2 / k).
    """
    k = len(x)
    shares = np.eye(k - 1) - 1.0 / k if k > 1 else np.eye(1)
    return np.kron(shares, np.diag(np.append(l2, 0.0)))


def _last(array: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return the kept ones of the last coordinates of each axis. The first class of several has none."""
    index = [size - len(kept) + np.flatnonzero(kept) for size in array.shape]
    return array[np.ix_(*index)]


def _score_matrix(
    sums: _Sums, hessian: np.ndarray, kept: np.ndarray, df: float, cov_type: str, scale: float
) -> np.ndarray:
    """Return the covariance of the gradient at the coefficients."""
    if sums.scores is not None:
        return _last(sums.scores, kept) * (sums.weight / df if cov_type == "HC1" else 1.0)
    if sums.clusters is None:
        return scale * hessian
    count, scores = len(sums.clusters), sums.clusters.to_numpy()
    if count < 2:
        raise ValueError("covariance has a single cluster; give at least two")
    scores = scores[:, scores.shape[1] - len(kept) + np.flatnonzero(kept)]
    return scores.T @ scores * (count / (count - 1) * (sums.weight - 1) / df)


def _inverse(matrix: np.ndarray, names: pd.Index, kept: np.ndarray) -> np.ndarray:
    """Invert a Hessian. Raise an error that names the columns if they are linearly dependent."""
    roots = np.sqrt(np.diagonal(matrix))
    scales = np.where(roots > 0, roots, 1.0)
    values, vectors = np.linalg.eigh(matrix / np.outer(scales, scales))
    if values[0] <= DEPENDENT * len(values) * values[-1]:
        involved = names[kept][np.abs(vectors[:, 0]) > INVOLVED].tolist()
        raise ValueError(
            f"the columns {involved} are linearly dependent, so their coefficients are not determined and have no "
            "standard errors; leave one of these columns out"
        )
    return (vectors / values) @ vectors.T / np.outer(scales, scales)


def _check_optimum(step: np.ndarray, errors: np.ndarray) -> None:
    """Warn if a Newton step would move a coefficient by much of its standard error."""
    farthest = float((np.abs(step) / errors).max())
    if not farthest <= FARTHEST:
        warnings.warn(
            f"A coefficient is {farthest:.2g} standard errors away from the optimum of these data. Fit with a smaller "
            "tol, and give summary the rows, targets, weights and offsets of the fit.",
            ConvergenceWarning,
            stacklevel=4,
        )


def _likelihood_of(model: SAGABase, sums: _Sums, df: float) -> dict[str, float]:
    """Return the attributes that need a likelihood, or no attributes if the loss has none."""
    family = FAMILIES.get(type(resolve_loss(model.loss)))
    if family is None:
        return {}
    fit = family.fit(sums, df, bool(model.fit_intercept))
    parameters = sums.weight - df
    return {**fit._asdict(), "aic": 2 * (parameters - fit.llf)}


def _names(model: SAGABase, k: int) -> pd.Index:
    """Return the names of all coefficients: the columns and the intercept, for each class after the first."""
    columns = getattr(model, "feature_names_in_", [f"x{j}" for j in range(model.n_features_in_)])
    names = [*columns, "intercept"]
    if len(model.intercept_) == 1:
        return pd.Index(names)
    return pd.MultiIndex.from_product([model.classes_[1:], names], names=["class", None])


def _frame(values: np.ndarray, errors: np.ndarray, names: pd.Index, level: float) -> pd.DataFrame:
    z, width, tail = values / errors, norm.isf(0.5 * (1 - level)) * errors, 0.5 * (1 - level)
    columns = {
        "coef": values,
        "std err": errors,
        "z": z,
        "P>|z|": 2 * norm.sf(np.abs(z)),
        f"[{tail:.6g}": values - width,
        f"{1 - tail:.6g}]": values + width,
    }
    return pd.DataFrame(columns, index=names)
