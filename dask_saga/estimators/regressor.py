"""The regressor."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from sklearn.base import RegressorMixin

from ..losses import resolve_loss
from .base import SAGABase, loss_constraint
from .prediction import elementwise, r2

__all__ = ["SAGARegressor"]


class SAGARegressor(RegressorMixin, SAGABase):
    """Linear regression fitted by SAGA, chunk by chunk.

    Minimises ``(1/W) sum_i w_i f(a_i'x + c, b_i) + alpha R(x)`` where W is the sum of
    the weights, so ``Ridge(alpha=alpha * n)`` has the same optimum.

    Parameters
    ----------
    loss : {"squared_error", "huber", "poisson"} or object, default="squared_error"
        ``(z - y)^2 / 2``; ``Huber(epsilon=1.35)`` in units of y; half the Poisson deviance with a log
        link, whose predictions are expected counts; or a loss of your own, see ``dask_saga.losses``.
    penalty : {"l2", "l1", "elasticnet"}, None or object, default="l2"
        R. An object takes neither `alpha` nor `l1_ratio`: ``ElasticNet(l2=1e-4, lower=0.0)`` of
        ``dask_saga.penalties`` keeps coefficients non-negative, and yours may do anything separable.
    alpha : float, default=1e-4
        Weight of the penalty against the mean loss.
    l1_ratio : float, default=0.15
        Share of the L1 part in "elasticnet".
    fit_intercept : bool, default=True
        The intercept is never penalised.
    step_size : "auto" or float, default="auto"
        "auto" starts at ``step_size_scale / L``, L the mean Lipschitz constant of the rows, and is cut or
        raised as the passes go. A float is the step of plain SAGA, as in the paper.
    step_size_scale : float, default=0.3
        Multiplies "auto" only; 0.3 is about the 1/(3L) of the paper.
    precondition : bool, default=True
        Centre and scale the columns inside the solver's steps, and rotate dense ones to their principal
        axes where that pays, so that raw columns converge. The optimum is that of the columns as they
        are. Sparse rows are centred in columns that every row stores only.
    average : bool, default=True
        Average chunk-end iterates over a pass where they circle the optimum, and cut
        "auto" steps where chunks unlike each other keep them circling. False is the
        plain algorithm.
    max_iter : int, default=100
        Passes of `fit` at most.
    tol : float, default=1e-4
        `fit` stops where two measures are at most `tol`: the norm of the proximal gradient relative to that at zero,
        and the decrease of the objective that a Newton step promises relative to what was gained so far.
    n_parallel : int or "auto", default=1
        Chunks that `fit` visits at a time, from the same coefficients; these then become the mean of theirs. Each gives
        bits of its own, whatever it runs on. "auto": one for each thread of the cluster, or of this
        process, but no more than a fifth of the chunks.
    n_threads : int, default=1
        Threads that share a visit of a large chunk, at most. Results are reproducible for each number.
    memory_dtype : {"float32", "float64"}, default="float32"
        Of the gradient memory, one number a row and output. float32 costs no accuracy where targets times
        weights lie between 1e-30 and 1e30.
    warm_start : bool, default=False
        Whether `fit` begins at the coefficients that there are, of a `fit` before or of `partial_fit`. Its first pass
        then tells the gradients there, and fills the memory with them.
    random_state : int, RandomState or None, default=None
        Seeds all orders. None draws entropy once.
    verbose : int, default=0
        Above 0 `fit` shows a bar of its passes.

    Attributes
    ----------
    coef_ : ndarray of shape (n_features,), or (n_targets, n_features) for several columns of y
    intercept_ : ndarray of shape (1,) or (n_targets,)
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Where X had string column names.
    n_iter_ : int
        Passes of `fit`; after `partial_fit`, those over the last chunk.
    history_ : list of dict
        One a pass of `fit`: epoch, objective, gradient_norm, seconds, visits, bytes_read.
    step_size_ : float
        The step of the last pass.
    state_ : SAGAState or None
        x, memory gradients and their average. None in a copy `without_memory`, and after a `fit` on a cluster whose
        memory gradients would take more than half of the memory that this process may have.
    converged_ : bool
        Whether the last `fit` reached `tol`.
    diverged_ : bool
        Whether a step left finite numbers; coefficients are then the last finite ones.

    See Also
    --------
    SAGAClassifier : The same for classes; names the source.
    saga : The solver as a function.

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
        tags.target_tags.positive_only = self.loss == "poisson"
        return tags

    def partial_fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        chunk_id: Hashable = None,
        replace: bool = False,
        check_content: bool = True,
    ) -> SAGARegressor:
        """One pass over one chunk, new or known.

        A known chunk is recognised by its content, or by `chunk_id`, and goes on with
        its memory gradients; a new one joins the problem.

        Parameters
        ----------
        X : array-like, scipy.sparse or DataFrame of shape (n, p)
            One chunk in memory. An empty one changes nothing.
        y : array-like of shape (n,) or (n, n_targets)
            Targets.
        sample_weight : array-like of shape (n,), default=None
            On a revisit it may differ from the last visit's.
        chunk_id : str or int, default=None
            Names the chunk; None goes by its content.
        replace : bool, default=False
            Whether other content under a known `chunk_id` takes the place of the old, exactly. By default it
            is an error. An old chunk of few rows must be forgotten with its data instead.
        check_content : bool, default=True
            False promises that a known `chunk_id` has the content that it had, and saves the hash of it.

        Returns
        -------
        self : object
            The estimator after one pass over the chunk.

        Raises
        ------
        ValueError, TypeError
            Naming the argument. The estimator is then as it was.
        """
        return self._partial_fit(X, y, None, sample_weight, chunk_id, replace, check_content)

    def predict(self, X: Any) -> Any:
        """Predicted targets of the rows of X; for "poisson" the expected counts.

        Parameters
        ----------
        X : array-like, sparse, DataFrame or Dask collection of shape (n, p)

        Returns
        -------
        ndarray or dask array of shape (n,) or (n, n_targets)
        """
        z, loss = self._linear(X), resolve_loss(self.loss)
        return elementwise(loss.mean, z) if hasattr(loss, "mean") else z

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Coefficient of determination R^2; block by block on Dask.

        Parameters
        ----------
        X : array-like, sparse, DataFrame or Dask collection of shape (n, p)
        y : array-like or Dask collection of shape (n,)
        sample_weight : array-like or Dask collection of shape (n,), default=None

        Returns
        -------
        float
        """
        return r2(self.without_memory().predict, X, y, sample_weight)
