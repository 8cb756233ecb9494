"""The regressor ``SAGARegressor`` with its losses, prediction and R^2 score."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from sklearn.base import RegressorMixin

from ..losses import LOSSES, resolve_loss, target_interval
from .base import SAGABase, loss_constraint
from .partial_fit import LearnsByChunk
from .prediction import elementwise, r2

__all__ = ["SAGARegressor"]


class SAGARegressor(RegressorMixin, LearnsByChunk):
    """Linear regression fitted by SAGA, chunk by chunk.

    It minimises ``(1/W) sum_i w_i f(a_i'x + c, b_i) + alpha R(x)`` over the coefficients x and the intercept c. Here
    a_i is a row of X, b_i its target, w_i its weight, and W the sum of the weights. For squared error and L2,
    ``Ridge(alpha=alpha * n)`` therefore has the same optimum.

    Parameters
    ----------
    loss : str or object, default="squared_error"
        Name of the loss, or an object of ``dask_saga.losses`` with other parameters.

        - "squared_error" is ``(z - y)^2 / 2``. "expectile" gives other weights to targets above the prediction:
          ``Expectile(level=0.9)``.
        - "huber" is ``Huber(epsilon=1.35)``, with epsilon in units of y; use it for data with outliers.
        - "absolute_error" predicts the median, "quantile" a quantile: ``Quantile(level=0.9)``. "epsilon_insensitive",
          ``EpsilonInsensitive(epsilon=0.1)``, is that of support vector regression. They have corners, which `fit`
          smooths less and less; `partial_fit` uses their `width`.
        - "poisson" and "negative_binomial", ``NegativeBinomial(theta=1.0)``, are for counts, "gamma" for positive
          amounts, and "tweedie", ``Tweedie(power=1.5)``, for amounts of which many are zero. They have a log link;
          predictions are expected targets.
        - "binomial" is for proportions from 0 to 1, with the numbers of trials as `sample_weight`. It has a logit link.

        You can also define your own loss (see ``dask_saga.losses``).
    penalty : {"l2", "l1", "elasticnet"}, None or object, default="l2"
        The penalty R. "l1" gives sparse coefficients. ``ElasticNet(l2=1e-4, lower=0.0)`` of ``dask_saga.penalties``
        keeps coefficients non-negative. You can also define your own separable penalty. An object does not use `alpha`
        and `l1_ratio`.
    alpha : float, default=1e-4
        Weight of the penalty relative to the mean loss, at least 0. Raise it against overfitting; a larger value also
        speeds up convergence.
    l1_ratio : float, default=0.15
        Share of the L1 part in "elasticnet", from 0 to 1. Raise it for sparser coefficients.
    fit_intercept : bool, default=True
        Whether to fit an intercept, which is never penalised. Set False if the data are centred.
    step_size : "auto" or float, default="auto"
        Step size. "auto" starts at ``step_size_scale / L``, where L is the mean Lipschitz constant of the rows; the
        solver lowers or raises it during the fit. A float is a fixed step, without step control, subsample steps and
        Newton steps. Together with ``average=False`` and ``precondition=False`` it gives the plain SAGA of the paper.
    step_size_scale : float, default=0.3
        Factor of the "auto" step, above 0. The default is about the 1/(3L) of the paper. Lower it if a fit diverges. A
        search over it is worthwhile only if the model sees its data once or twice.
    precondition : bool, default=True
        Whether the solver centres and scales the columns inside its steps, and rotates dense columns to their principal
        axes where that saves time. Raw columns then converge like standardised ones, and the optimum stays that of the
        raw columns. In sparse rows, only columns that every row stores are centred. Set False for steps in the
        coordinates of the data, as in plain SAGA; fits are then slow unless the columns have similar scales.
    average : bool, default=True
        Whether to average the coefficients at the ends of chunk visits over a pass if they circle the optimum. An
        "auto" step is also shortened if differences between chunks keep them circling. Set False for the coefficients
        after the last visit, as in plain SAGA; this also switches off step control and Newton steps.
    curvature : "auto" or bool, default="auto"
        Whether `partial_fit` uses second derivatives. A visit then minimises the chunk's own loss plus quadratic models
        of all other chunks. One or two passes come close to the optimum, unless the rows are sorted by label. `fit`
        does not use it.

        - "auto" uses them if the step parameters have their defaults, there are at most 639 columns (fewer for the
          multinomial loss, where columns + 1 is multiplied by the number of classes), and the chunk has more rows than
          columns.
        - True skips these conditions. The loss still needs second derivatives, and most rows must be in chunks with a
          model.
        - False takes SAGA steps. Set it to save memory: for p columns and k outputs, models take up to nine times the
          gradient memory, plus 8 k (p + 1)^2 bytes.
    max_iter : int, default=100
        Maximum number of passes of `fit`; a pass visits every row once. Raise it if `fit` warns that it has not
        converged.
    tol : float, default=1e-4
        Relative tolerance. `fit` stops once two measures are at most `tol`. The first is the norm of the proximal
        gradient, relative to its value at zero coefficients. The second is the decrease of the objective that a Newton
        step predicts, relative to the decrease so far. Lower it for more accurate coefficients.
    n_parallel : int or "auto", default=1
        Number of chunks that `fit` visits concurrently from the same coefficients. The results are averaged. Raise it
        if a cluster has idle threads. Each value is reproducible on any scheduler, but values differ from each other.
        "auto" uses one chunk per thread of the cluster (or of this process without one), but at most a fifth of the
        chunks.
    n_threads : int, default=1
        Maximum number of threads that share the visit of one large chunk. Raise it for large chunks if cores are idle.
        Each value gives reproducible results.
    memory_dtype : {"float32", "float64"}, default="float32"
        dtype of the gradient memory (one number per row and output). float32 is enough unless targets times weights are
        outside of 1e-30 to 1e30, or `tol` is very small.
    warm_start : bool, default=False
        If True, `fit` starts from the current coefficients, which come from an earlier `fit` or `partial_fit`. Its
        first pass evaluates the gradients there and fills the gradient memory with them. Set it for a path of penalties
        or after rows were added.
    random_state : int, RandomState or None, default=None
        Seed of all random orders. None draws a random seed once. Set an int for reproducible results.
    verbose : int, default=0
        If positive, `fit` shows a progress bar of its passes. Set 1 for long fits.

    Attributes
    ----------
    coef_ : ndarray of shape (n_features,), or (n_targets, n_features) for several columns of y
        Coefficients.
    intercept_ : ndarray of shape (1,) or (n_targets,)
        Intercepts; zero if not fitted.
    n_features_in_ : int
        Number of columns of X.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Column names of X, defined only if all are strings.
    n_iter_ : int
        Number of passes of `fit`. After `partial_fit`, the number of visits of the last chunk.
    history_ : list of dict
        One row per pass of `fit` with the keys epoch, objective (estimated, in units of the mean loss), gradient_norm
        (relative to its value at zero), seconds, visits (chunk visits so far) and bytes_read.
    step_size_ : float
        Step size of the last pass.
    state_ : SAGAState or None
        Solver state: the coefficients and the gradient memory of all chunks. The keys of ``state_.chunks`` are the ids
        of the chunks in order of arrival. None in a copy `without_memory`, and after a `fit` on a cluster whose
        gradient memory would exceed half of the memory that this process may use.
    converged_ : bool
        Whether the last `fit` reached `tol`.
    diverged_ : bool
        Whether a step produced numbers that are not finite. The coefficients are then the last finite ones.

    See Also
    --------
    SAGAClassifier : The classifier; its documentation cites the SAGA paper.
    saga : The solver as a function of a list of chunks.

    Examples
    --------
    >>> from dask_ml.datasets import make_regression
    >>> from dask_saga import SAGARegressor
    >>> X, y = make_regression(n_samples=1000, n_features=5, chunks=250, random_state=0)
    >>> SAGARegressor(random_state=0).fit(X, y).score(X, y) > 0.99
    True
    """

    _labelled = False
    _parameter_constraints: dict = {**SAGABase._parameter_constraints, "loss": loss_constraint(_labelled)}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        loss = LOSSES[self.loss]() if isinstance(self.loss, str) and self.loss in LOSSES else self.loss
        tags.target_tags.positive_only = target_interval(loss).low >= 0.0
        return tags

    def partial_fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        chunk_id: Hashable = None,
        replace: bool = False,
        check_content: bool = True,
        offset: Any = None,
    ) -> SAGARegressor:
        """Make one pass over one chunk, which may be new or known.

        A known chunk is identified by its content or by `chunk_id`, and its gradient memory is used again. A new chunk
        is added to the problem.

        Parameters
        ----------
        X : array-like, scipy.sparse or DataFrame of shape (n, p)
            Rows of one chunk in memory. An empty chunk changes nothing.
        y : array-like of shape (n,) or (n, n_targets)
            Targets of the rows.
        sample_weight : array-like of shape (n,), default=None
            Row weights, at least zero. They may differ between visits of the same chunk. None gives every row weight 1.
        chunk_id : str or int, default=None
            Name of the chunk. None identifies the chunk by its content. Set it to replace the chunk later, to forget it
            by name, or if different chunks may have equal content, such as single rows: they would count as one.
        replace : bool, default=False
            Whether new content under a known `chunk_id` replaces the old content exactly; otherwise it is an error. An
            old chunk with few rows cannot be replaced: call `forget` with its data first.
        check_content : bool, default=True
            Whether to check by a hash that a known `chunk_id` has its former content. Set False to save the time of the
            hash if you are sure of it.
        offset : array-like of shape (n,), default=None
            Numbers that are added to the linear predictions, as in `fit`. They belong to the content of the chunk.

        Returns
        -------
        self : object
            The estimator after one pass over the chunk.

        Raises
        ------
        ValueError, TypeError
            For invalid arguments. The message names the argument, and the estimator stays unchanged.
        """
        return self._partial_fit(X, y, None, sample_weight, chunk_id, replace, check_content, offset)

    def predict(self, X: Any, offset: Any = None) -> Any:
        """Predict targets for the rows of X; for a loss with a link these are expected targets.

        Parameters
        ----------
        X : array-like, sparse, DataFrame or Dask collection of shape (n, p)
            Rows to predict. The result is lazy for a Dask collection.
        offset : array-like or Dask collection of shape (n,), default=None
            Numbers that are added to the linear predictions, as in `fit`. None adds nothing.

        Returns
        -------
        ndarray or dask array of shape (n,) or (n, n_targets)
            Predicted targets.
        """
        z, loss = self._linear(X, offset), resolve_loss(self.loss)
        return elementwise(z, loss.mean) if hasattr(loss, "mean") else z

    def score(self, X: Any, y: Any, sample_weight: Any = None, offset: Any = None) -> float:
        """Return the coefficient of determination R^2 of the predictions.

        Parameters
        ----------
        X : array-like, sparse, DataFrame or Dask collection of shape (n, p)
            Rows to predict. A Dask collection is evaluated block by block.
        y : array-like or Dask collection of shape (n,) or (n, n_targets)
            True targets. Scores of several targets are averaged.
        sample_weight : array-like or Dask collection of shape (n,), default=None
            Row weights, at least zero. None gives every row weight 1.
        offset : array-like or Dask collection of shape (n,), default=None
            Numbers that are added to the linear predictions, as in `fit`. None adds nothing.

        Returns
        -------
        float
            The score; 1.0 is best, and 0.0 is that of the mean target.
        """
        return r2(self.without_memory().predict, X, y, sample_weight, offset)
