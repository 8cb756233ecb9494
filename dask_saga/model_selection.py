"""dask-ml's incremental searches, on every Dask.

dask-ml 2025.1 runs its search in a coroutine in which newer versions of Dask refuse
the client as asynchronous (dask-ml #1016). Under the client's own ``get`` they accept
it. These classes do that, and refuse early what would fail on every worker.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import dask
import dask_ml.model_selection as dask_ml
import scipy.sparse as sp
from dask.distributed import default_client

__all__ = ["HyperbandSearchCV", "IncrementalSearchCV", "InverseDecaySearchCV", "SuccessiveHalvingSearchCV"]


class _OnAnyDask:
    # The coroutine, not fit: with an asynchronous client it runs after fit has returned.
    async def _fit(self, X: Any, y: Any, **fit_params: Any) -> Any:
        if sp.issparse(getattr(X, "_meta", None)):
            raise TypeError(
                "X has scipy.sparse blocks, whose length dask-ml cannot take; "
                "convert them first: X.map_blocks(sparse.COO.from_scipy_sparse)"
            )
        # Without them every trial would fail on the workers, each with its own traceback.
        partial_fit = getattr(self.estimator, "partial_fit", None)  # a future of an estimator has none
        if partial_fit and "classes" in signature(partial_fit).parameters and "classes" not in fit_params:
            raise ValueError("classes must be given to fit: search.fit(X, y, classes=[...])")
        if getattr(self.estimator, "class_weight", None) == "balanced" and partial_fit:
            raise ValueError("class_weight='balanced' needs all data, which partial_fit does not see; give a dict")
        with dask.config.set(scheduler=default_client().get):
            return await super()._fit(X, y, **fit_params)


class IncrementalSearchCV(_OnAnyDask, dask_ml.IncrementalSearchCV):
    """``dask_ml.model_selection.IncrementalSearchCV``, on every Dask.

    Candidates trained side by side, one chunk a call; all of them to the end, unless they stop getting better.
    Needs a running ``dask.distributed.Client``; ``fit(X, y, classes=[...])`` for a classifier.

    Parameters
    ----------
    estimator : estimator with ``partial_fit``
        What is searched for; never changed itself.
    parameters : dict
        For each parameter's name a list, or a distribution with ``rvs``.
    n_initial_parameters, test_size, patience, tol, fits_per_score, max_iter : object
        As in ``dask_ml.model_selection.IncrementalSearchCV``.
    decay_rate : None
        No candidates are given up. Use ``InverseDecaySearchCV`` to give up more of them with every call; dask-ml
        ignores a number here, with a warning.
    random_state, scoring, verbose, prefix, scores_per_fit, predict_meta, predict_proba_meta, transform_meta : object
        As in ``dask_ml.model_selection.IncrementalSearchCV``.
    """

    # dask-ml's default of decay_rate is an object that makes it warn of a parameter that nobody gave.
    def __init__(
        self,
        estimator: Any,
        parameters: Any,
        n_initial_parameters: Any = 10,
        decay_rate: None = None,
        test_size: Any = None,
        patience: Any = False,
        tol: Any = 0.001,
        fits_per_score: int = 1,
        max_iter: Any = 100,
        random_state: Any = None,
        scoring: Any = None,
        verbose: Any = False,
        prefix: str = "",
        scores_per_fit: Any = None,
        predict_meta: Any = None,
        predict_proba_meta: Any = None,
        transform_meta: Any = None,
    ):
        super().__init__(
            estimator, parameters, n_initial_parameters=n_initial_parameters, decay_rate=decay_rate,
            test_size=test_size, patience=patience, tol=tol, fits_per_score=fits_per_score, max_iter=max_iter,
            random_state=random_state, scoring=scoring, verbose=verbose, prefix=prefix, scores_per_fit=scores_per_fit,
            predict_meta=predict_meta, predict_proba_meta=predict_proba_meta, transform_meta=transform_meta,
        )  # fmt: skip


class InverseDecaySearchCV(_OnAnyDask, dask_ml.InverseDecaySearchCV):
    """``dask_ml.model_selection.InverseDecaySearchCV``, on every Dask.

    Candidates of which fewer and fewer go on, as one over the calls made.
    Needs a running ``dask.distributed.Client``; ``fit(X, y, classes=[...])`` for a classifier.

    Parameters
    ----------
    estimator : estimator with ``partial_fit``
        What is searched for; never changed itself.
    parameters : dict
        For each parameter's name a list, or a distribution with ``rvs``.
    n_initial_parameters, test_size, patience, tol, fits_per_score, max_iter, random_state : object
        As in ``dask_ml.model_selection.InverseDecaySearchCV``.
    scoring, verbose, prefix, decay_rate : object
        Likewise.
    """


class SuccessiveHalvingSearchCV(_OnAnyDask, dask_ml.SuccessiveHalvingSearchCV):
    """``dask_ml.model_selection.SuccessiveHalvingSearchCV``, on every Dask.

    Candidates of which the better part goes on, with more calls each (Jamieson, Talwalkar 2016).
    Needs a running ``dask.distributed.Client``; ``fit(X, y, classes=[...])`` for a classifier.

    Parameters
    ----------
    estimator : estimator with ``partial_fit``
        What is searched for; never changed itself.
    parameters : dict
        For each parameter's name a list, or a distribution with ``rvs``.
    n_initial_parameters, n_initial_iter, max_iter, aggressiveness, test_size, patience, tol : object
        As in ``dask_ml.model_selection.SuccessiveHalvingSearchCV``.
    random_state, scoring, verbose, prefix : object
        Likewise.
    """


class HyperbandSearchCV(_OnAnyDask, dask_ml.HyperbandSearchCV):
    """``dask_ml.model_selection.HyperbandSearchCV``, on every Dask.

    Candidates that are given more calls of ``partial_fit`` the better they do (Li et al. 2018).
    Needs a running ``dask.distributed.Client``; ``fit(X, y, classes=[...])`` for a classifier.

    Parameters
    ----------
    estimator : estimator with ``partial_fit``
        What is searched for; never changed itself.
    parameters : dict
        For each parameter's name a list, or a distribution with ``rvs``.
    max_iter, aggressiveness, patience, tol, test_size, random_state, scoring : object
        As in ``dask_ml.model_selection.HyperbandSearchCV``.
    verbose, prefix, predict_meta, predict_proba_meta, transform_meta : object
        Likewise.
    """
