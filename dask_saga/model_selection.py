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
        with dask.config.set(scheduler=default_client().get):
            return await super()._fit(X, y, **fit_params)


class IncrementalSearchCV(_OnAnyDask, dask_ml.IncrementalSearchCV):
    """``dask_ml.model_selection.IncrementalSearchCV``, on every Dask.

    Needs a running ``dask.distributed.Client``; ``fit(X, y, classes=[...])`` for a classifier.
    """


class InverseDecaySearchCV(_OnAnyDask, dask_ml.InverseDecaySearchCV):
    """``dask_ml.model_selection.InverseDecaySearchCV``, on every Dask.

    Needs a running ``dask.distributed.Client``; ``fit(X, y, classes=[...])`` for a classifier.
    """


class SuccessiveHalvingSearchCV(_OnAnyDask, dask_ml.SuccessiveHalvingSearchCV):
    """``dask_ml.model_selection.SuccessiveHalvingSearchCV``, on every Dask.

    Needs a running ``dask.distributed.Client``; ``fit(X, y, classes=[...])`` for a classifier.
    """


class HyperbandSearchCV(_OnAnyDask, dask_ml.HyperbandSearchCV):
    """``dask_ml.model_selection.HyperbandSearchCV``, on every Dask.

    Needs a running ``dask.distributed.Client``; ``fit(X, y, classes=[...])`` for a classifier.
    """
