"""The classifier ``SAGAClassifier`` with its losses, class weights, probabilities and accuracy score."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
from dask import is_dask_collection
from sklearn.base import ClassifierMixin
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.metaestimators import available_if

from ..data.containers import check_containers
from ..data.targets import check_classes, count_labels, read_labels
from ..data.validation import blame, read_weights
from ..execution.executor import compute
from ..losses import resolve_loss
from ..solver.problem import problem_for
from .base import SAGABase, loss_constraint
from .partial_fit import LearnsByChunk
from .prediction import accuracy, probabilities, to_labels

if TYPE_CHECKING:
    from ..fitting.chunk_source import Source

__all__ = ["SAGAClassifier"]


def _block_labels(block: tuple, name: Any, weighted: bool) -> tuple[np.ndarray, np.ndarray]:
    _, y, sample_weight, *_ = block
    with blame("y", name):
        labels = read_labels(y)
    with blame("sample_weight", name):
        weights = read_weights(sample_weight if weighted else None, len(labels))
    with blame("y", name):
        return count_labels(labels, weights)


def _defines_probability(estimator: Any) -> bool:
    return hasattr(resolve_loss(estimator.loss), "probability")


class SAGAClassifier(ClassifierMixin, LearnsByChunk):
    """Linear classifier fitted by SAGA, chunk by chunk.

    It minimises ``(1/W) sum_i w_i f(a_i'x + c, b_i) + alpha R(x)`` over the coefficients x and the intercept c. Here
    a_i is a row of X, b_i its label, w_i its weight, and W the sum of the weights. For log loss and L2,
    ``LogisticRegression(C=1 / (alpha * n))`` therefore has the same optimum. More than two classes are
    multinomial for "log_loss" and one-vs-rest for other losses. The gradient memory of every row is kept, so
    `partial_fit` resumes training exactly where it stopped.

    Parameters
    ----------
    loss : str or object, default="log_loss"
        "log_loss", "probit", "cloglog" (complementary log-log), "modified_huber", "squared_hinge", "smooth_hinge" or
        "hinge". The first four give probabilities. "hinge" has a corner, which `fit` smooths less and less;
        `partial_fit` uses its `width`. You can also define your own loss with ``labels = (-1.0, 1.0)`` (see
        ``dask_saga.losses``).
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
    class_weight : dict, "balanced" or None, default=None
        Factor of the row weights for each class, as a dict from class to factor. None is 1 for all. Set it if classes
        differ in frequency or importance. "balanced" gives all classes the same total weight; it needs all data, so
        only `fit` accepts it.
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
    coef_ : ndarray of shape (1, n_features), or (n_classes, n_features) for more than two classes
        Coefficients.
    intercept_ : ndarray of shape (1,) or (n_classes,)
        Intercepts; zero if not fitted.
    classes_ : ndarray of shape (n_classes,)
        Class labels in sorted order.
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
    SAGARegressor : The regressor, with the same solver.
    saga : The solver as a function of a list of chunks.

    References
    ----------
    Defazio, Bach, Lacoste-Julien, "SAGA: A Fast Incremental Gradient Method With
    Support for Non-Strongly Convex Composite Objectives", NeurIPS 2014.

    Examples
    --------
    >>> from dask_ml.datasets import make_classification
    >>> from dask_saga import SAGAClassifier
    >>> X, y = make_classification(n_samples=1000, n_features=5, chunks=250, random_state=0)
    >>> SAGAClassifier(random_state=0).fit(X, y).score(X, y) > 0.7
    True
    """

    _labelled = True
    _parameter_constraints: dict = {
        **SAGABase._parameter_constraints,
        "loss": loss_constraint(_labelled),
        "class_weight": [StrOptions({"balanced"}), dict, None],
    }

    def __init__(
        self,
        loss: Any = "log_loss",
        *,
        penalty: Any = "l2",
        alpha: float = 1e-4,
        l1_ratio: float = 0.15,
        fit_intercept: bool = True,
        step_size: str | float = "auto",
        step_size_scale: float = 0.3,
        precondition: bool = True,
        average: bool = True,
        curvature: str | bool = "auto",
        max_iter: int = 100,
        tol: float = 1e-4,
        class_weight: Any = None,
        n_parallel: int | str = 1,
        n_threads: int = 1,
        memory_dtype: str = "float32",
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 0,
    ):
        super().__init__(
            loss, penalty=penalty, alpha=alpha, l1_ratio=l1_ratio, fit_intercept=fit_intercept,
            step_size=step_size, step_size_scale=step_size_scale, precondition=precondition, average=average,
            curvature=curvature, max_iter=max_iter, tol=tol, n_parallel=n_parallel, n_threads=n_threads,
            memory_dtype=memory_dtype, warm_start=warm_start, random_state=random_state, verbose=verbose,
        )  # fmt: skip
        self.class_weight = class_weight

    def _find_classes(self, source: Source) -> tuple[np.ndarray | None, np.ndarray | None]:
        weighted = self.class_weight == "balanced"
        calls = [(block, source.name(k), weighted) for k, block in enumerate(source.targets())]
        found = source.executor.gather(source.executor.map(_block_labels, calls, name="saga-classes"))
        labels, weights = map(np.concatenate, zip(*([one for one in found if len(one[0])] or found[:1]), strict=True))
        if not len(labels):
            return None, None
        classes = check_classes(labels, "y")
        if not weighted:
            return classes, self._class_weights(classes)
        totals = np.bincount(np.searchsorted(classes, labels), weights, minlength=len(classes))
        with np.errstate(divide="ignore"):  # for a class of total weight zero any factor would do
            return classes, np.where(totals > 0, totals.sum() / (len(classes) * totals), 0.0)

    def _class_weights(self, classes: np.ndarray) -> np.ndarray | None:
        if self.class_weight is None:
            return None
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' needs all data, which partial_fit does not see; compute the weights with "
                "sklearn.utils.class_weight.compute_class_weight('balanced', ...) and give them as a dict"
            )
        with blame("class_weight"):
            weights = compute_class_weight(self.class_weight, classes=classes, y=classes)
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError(f"class_weight={self.class_weight} must hold finite weights that are not negative")
        return weights

    def partial_fit(
        self,
        X: Any,
        y: Any,
        classes: Any = None,
        sample_weight: Any = None,
        chunk_id: Hashable = None,
        replace: bool = False,
        check_content: bool = True,
        offset: Any = None,
    ) -> SAGAClassifier:
        """Make one pass over one chunk, which may be new or known.

        A known chunk is identified by its content or by `chunk_id`, and its gradient memory is used again. A new chunk
        is added to the problem.

        Parameters
        ----------
        X : array-like, scipy.sparse or DataFrame of shape (n, p)
            Rows of one chunk in memory. An empty chunk changes nothing.
        y : array-like of shape (n,)
            Labels of the rows. The chunk may contain a single class.
        classes : array-like or dask array of shape (n_classes,), default=None
            All class labels. They are required in the first call only.
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
        fitted = getattr(self, "classes_", None)
        if is_dask_collection(classes):  # dask-ml's Incremental passes a Dask array on
            [classes] = compute(classes) if fitted is None else [None]
        check_containers(classes=classes)
        if classes is not None:
            classes = check_classes(read_labels(classes, "classes"), "classes")
            count_labels(classes, np.empty(0))  # raises for invalid labels, as fit does
        if fitted is None and classes is None:
            raise ValueError("classes must be given at the first call to partial_fit: partial_fit(X, y, classes=[...])")
        if fitted is not None and classes is not None and not np.array_equal(fitted, classes):
            raise ValueError(
                f"classes={classes.tolist()} differs from the {fitted.tolist()} of earlier calls; give the same or none"
            )
        return self._partial_fit(
            X, y, classes if fitted is None else fitted, sample_weight, chunk_id, replace, check_content, offset
        )

    def decision_function(self, X: Any, offset: Any = None) -> Any:
        """Return linear predictions ``a'x + c``, of ``classes_[1]`` for two classes and of each class for more.

        Parameters
        ----------
        X : array-like, sparse, DataFrame or Dask collection of shape (n, p)
            Rows to predict. The result is lazy for a Dask collection.
        offset : array-like or Dask collection of shape (n,), default=None
            Numbers that are added to the linear predictions, as in `fit`. None adds nothing.

        Returns
        -------
        ndarray or dask array of shape (n,), or (n, n_classes) for more than two classes
            Linear predictions.
        """
        return self._linear(X, offset)

    def predict(self, X: Any, offset: Any = None) -> Any:
        """Predict class labels for the rows of X.

        Parameters
        ----------
        X : array-like, sparse, DataFrame or Dask collection of shape (n, p)
            Rows to predict. The result is lazy for a Dask collection.
        offset : array-like or Dask collection of shape (n,), default=None
            Numbers that are added to the linear predictions, as in `fit`. None adds nothing.

        Returns
        -------
        ndarray or dask array of shape (n,)
            Predicted labels.
        """
        return to_labels(self._linear(X, offset), self.classes_, resolve_loss(self.loss))

    @available_if(_defines_probability)
    def predict_proba(self, X: Any, offset: Any = None) -> Any:
        """Predict class probabilities; one-vs-rest probabilities are normalised to sum to 1.

        Parameters
        ----------
        X : array-like, sparse, DataFrame or Dask collection of shape (n, p)
            Rows to predict. The result is lazy for a Dask collection.
        offset : array-like or Dask collection of shape (n,), default=None
            Numbers that are added to the linear predictions, as in `fit`. None adds nothing.

        Returns
        -------
        ndarray or dask array of shape (n, n_classes)
            Probabilities, in the order of ``classes_``.
        """
        z = self._linear(X, offset)
        return probabilities(z, problem_for(self._problem(), self.classes_).loss)

    @available_if(_defines_probability)
    def predict_log_proba(self, X: Any, offset: Any = None) -> Any:
        """Predict the logarithms of class probabilities.

        Parameters
        ----------
        X : array-like, sparse, DataFrame or Dask collection of shape (n, p)
            Rows to predict. The result is lazy for a Dask collection.
        offset : array-like or Dask collection of shape (n,), default=None
            Numbers that are added to the linear predictions, as in `fit`. None adds nothing.

        Returns
        -------
        ndarray or dask array of shape (n, n_classes)
            Logarithms of the probabilities, in the order of ``classes_``.
        """
        return np.log(self.predict_proba(X, offset))

    def score(self, X: Any, y: Any, sample_weight: Any = None, offset: Any = None) -> float:
        """Return the weighted mean accuracy of the predictions.

        Parameters
        ----------
        X : array-like, sparse, DataFrame or Dask collection of shape (n, p)
            Rows to predict. A Dask collection is evaluated block by block.
        y : array-like or Dask collection of shape (n,)
            True labels.
        sample_weight : array-like or Dask collection of shape (n,), default=None
            Row weights, at least zero. None gives every row weight 1.
        offset : array-like or Dask collection of shape (n,), default=None
            Numbers that are added to the linear predictions, as in `fit`. None adds nothing.

        Returns
        -------
        float
            The share of right labels by weight, from 0 to 1.
        """
        return accuracy(self.without_memory().predict, X, y, sample_weight, offset)
