"""scikit-learn estimators around the solver: SAGAClassifier and SAGARegressor."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
from dask import is_dask_collection
from sklearn.base import ClassifierMixin
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.metaestimators import available_if

from ..data.targets import check_classes, count_labels, read_labels
from ..data.validation import blame, check_containers, read_weights
from ..losses import resolve_loss
from ..solver.problem import problem_for
from .base import SAGABase, loss_constraint
from .prediction import accuracy, probabilities, to_labels

if TYPE_CHECKING:
    from ..fitting.chunk_source import Source

__all__ = ["SAGAClassifier"]


def _block_labels(block: tuple, name: Any, weighted: bool) -> tuple[np.ndarray, np.ndarray]:
    _, y, sample_weight = block
    with blame("y", name):
        labels = read_labels(y)
    with blame("sample_weight", name):
        weights = read_weights(sample_weight if weighted else None, len(labels))
    with blame("y", name):
        return count_labels(labels, weights)


def _defines_probability(estimator: Any) -> bool:
    return hasattr(resolve_loss(estimator.loss), "probability")


class SAGAClassifier(ClassifierMixin, SAGABase):
    """Linear classifier fitted by SAGA, chunk by chunk.

    Two classes or more: several are multinomial for "log_loss", one against the rest for other losses.
    Minimises ``(1/W) sum_i w_i f(a_i'x + c, b_i) + alpha R(x)`` where W is the sum of
    the weights, so ``LogisticRegression(C=1 / (alpha * n))`` has the same optimum. The
    gradient memory of every row is kept: training resumes exactly where it stopped.

    Parameters
    ----------
    loss : {"log_loss", "squared_hinge", "modified_huber", "smooth_hinge"} or object, default="log_loss"
        Or a loss of your own with ``labels = (-1.0, 1.0)``, see ``dask_saga.losses``. "log_loss" and
        "modified_huber" define probabilities.
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
    class_weight : dict, "balanced" or None, default=None
        Multiplies the weights of the rows of each class. "balanced" makes all classes weigh the same;
        it needs all data and so is for `fit` only.
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
    coef_ : ndarray of shape (1, n_features), or (n_classes, n_features) for more than two classes
    intercept_ : ndarray of shape (1,) or (n_classes,)
    classes_ : ndarray of shape (n_classes,)
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
    SAGARegressor : The same for regression.
    saga : The solver as a function.

    References
    ----------
    Defazio, Bach, Lacoste-Julien, "SAGA: A Fast Incremental Gradient Method With
    Support for Non-Strongly Convex Composite Objectives", NeurIPS 2014.

    Examples
    --------
    >>> from dask_ml.datasets import make_classification
    >>> from dask_saga import SAGAClassifier
    >>> X, y = make_classification(n_samples=1000, n_features=5, n_informative=3, chunks=250, random_state=0)
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
            max_iter=max_iter, tol=tol, n_parallel=n_parallel, n_threads=n_threads,
            memory_dtype=memory_dtype, warm_start=warm_start, random_state=random_state, verbose=verbose,
        )  # fmt: skip
        self.class_weight = class_weight

    def _find_classes(self, source: Source) -> tuple:
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
        with np.errstate(divide="ignore"):  # a class whose rows weigh nothing has none to multiply
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
    ) -> SAGAClassifier:
        """One pass over one chunk, new or known.

        A known chunk is recognised by its content, or by `chunk_id`, and goes on with
        its memory gradients; a new one joins the problem.

        Parameters
        ----------
        X : array-like, scipy.sparse or DataFrame of shape (n, p)
            One chunk in memory. An empty one changes nothing.
        y : array-like of shape (n,)
            Labels; one class alone will do.
        classes : array-like or dask array of shape (n_classes,), default=None
            All labels; needed at the first call.
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
        fitted = getattr(self, "classes_", None)
        if is_dask_collection(classes):  # as Incremental hands it on
            [classes] = dask.compute(classes) if fitted is None else [None]
        check_containers(classes=classes)
        if classes is not None:
            classes = check_classes(read_labels(classes, "classes"), "classes")
            count_labels(classes, np.empty(0))  # which refuses what are no labels, as fit does
        if fitted is None and classes is None:
            raise ValueError("classes must be given at the first call to partial_fit")
        if fitted is not None and classes is not None and not np.array_equal(fitted, classes):
            raise ValueError(f"classes={classes.tolist()} differs from the {fitted.tolist()} of earlier calls")
        return self._partial_fit(
            X, y, classes if fitted is None else fitted, sample_weight, chunk_id, replace, check_content
        )

    def decision_function(self, X: Any) -> Any:
        """Linear predictions ``a'x + c``: for two classes those of ``classes_[1]``, else one a class.

        Parameters
        ----------
        X : array-like, sparse, DataFrame or Dask collection of shape (n, p)

        Returns
        -------
        ndarray or dask array of shape (n,), or (n, n_classes) for more than two classes
        """
        return self._linear(X)

    def predict(self, X: Any) -> Any:
        """Labels of the rows of X.

        Parameters
        ----------
        X : array-like, sparse, DataFrame or Dask collection of shape (n, p)

        Returns
        -------
        ndarray or dask array of shape (n,)
        """
        return to_labels(self._linear(X), self.classes_)

    @available_if(_defines_probability)
    def predict_proba(self, X: Any) -> Any:
        """Probabilities of the classes; one against the rest, they are divided by their sum.

        Parameters
        ----------
        X : array-like, sparse, DataFrame or Dask collection of shape (n, p)

        Returns
        -------
        ndarray or dask array of shape (n, n_classes)
        """
        z = self._linear(X)
        return probabilities(z, problem_for(self._problem(), self.classes_).loss)

    @available_if(_defines_probability)
    def predict_log_proba(self, X: Any) -> Any:
        """Logarithms of ``predict_proba``.

        Parameters
        ----------
        X : array-like, sparse, DataFrame or Dask collection of shape (n, p)

        Returns
        -------
        ndarray or dask array of shape (n, n_classes)
        """
        return np.log(self.predict_proba(X))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Weighted mean accuracy; block by block on Dask.

        Parameters
        ----------
        X : array-like, sparse, DataFrame or Dask collection of shape (n, p)
        y : array-like or Dask collection of shape (n,)
        sample_weight : array-like or Dask collection of shape (n,), default=None

        Returns
        -------
        float
        """
        return accuracy(self.without_memory().predict, X, y, sample_weight)
