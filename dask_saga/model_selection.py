"""Incremental hyperparameter searches of dask-ml that also run on newer versions of Dask, and on frames.

dask-ml 2025.1 runs its search in a coroutine. Newer versions of Dask refuse the asynchronous client there (dask-ml
#1016), but accept the client's own ``get`` as scheduler. These classes set it. They also raise errors early for input
that would fail on every worker.

dask-ml can split only NumPy arrays and Dask arrays of known block lengths. These classes convert frames to such arrays
block by block, and give the column names to the best estimator.
"""

from __future__ import annotations

from inspect import signature
from textwrap import fill, indent
from typing import Any, TypeVar

import dask
import dask.array as da
import dask_ml.model_selection as dask_ml
import numpy as np
import scipy.sparse as sp
from dask import delayed, is_dask_collection
from dask.distributed import default_client
from sklearn.utils.validation import _get_feature_names

from .data.containers import as_array, check_columns, check_containers, with_names
from .data.dask_blocks import column_names, dask_blocks
from .data.targets import NO_TARGET
from .data.validation import align_columns, blame, read_rows

__all__ = ["HyperbandSearchCV", "IncrementalSearchCV", "InverseDecaySearchCV", "SuccessiveHalvingSearchCV"]


# Minimum number of rows per block. dask-ml uses a share of each block as test set, so smaller blocks are joined: each
# then has rows for training and for testing.
MIN_BLOCK_ROWS = 10


class _OnAnyDask:
    """Mixin in front of a search of dask-ml, which runs the search."""

    estimator: Any
    best_estimator_: Any

    # Override the coroutine, not fit: with an asynchronous client it runs after fit has returned.
    async def _fit(self, X: Any, y: Any, **fit_params: Any) -> Any:
        check_containers(X=X, y=y)
        if sp.issparse(getattr(X, "_meta", None)):
            raise TypeError(
                "X has scipy.sparse blocks, whose length dask-ml cannot take; "
                "convert them first: X.map_blocks(sparse.COO.from_scipy_sparse)"
            )
        # Without classes every trial would fail on a worker, each with its own traceback.
        partial_fit = getattr(self.estimator, "partial_fit", None)  # None for a future of an estimator
        if partial_fit and "classes" in signature(partial_fit).parameters and "classes" not in fit_params:
            raise ValueError("classes must be given to fit: search.fit(X, y, classes=[...])")
        if getattr(self.estimator, "class_weight", None) == "balanced" and partial_fit:
            raise ValueError("class_weight='balanced' needs all data, which partial_fit does not see; give a dict")
        lazy = is_dask_collection(X) or is_dask_collection(y)
        names = _get_feature_names(with_names(X))
        X, y = as_array(X), as_array(y)
        check_columns(X._meta if is_dask_collection(X) else X)
        with dask.config.set(scheduler=default_client().get):
            X, y = await _lazy_arrays(X, y) if lazy else _arrays(X, y)
            await super()._fit(X, y, **fit_params)  # type: ignore[misc]  # dask-ml has no types
        if names is not None:  # the best estimator was trained on these columns in this order
            self.best_estimator_.feature_names_in_ = names
        return self


def _arrays(X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Convert rows and targets in memory to NumPy arrays, which dask-ml uses as one block."""
    if y is None:
        raise ValueError(NO_TARGET)
    # A list may contain Dask arrays. This code runs in the client's event loop and must not wait for the client, so the
    # arrays are computed by the synchronous scheduler.
    with dask.config.set(scheduler="sync"):
        if not isinstance(X, np.ndarray):
            with blame("X"):
                X = read_rows(X, finite=False)
        y = np.asarray(y)
    if sp.issparse(X):
        raise TypeError(
            "X is sparse and in memory, which dask-ml cannot split; "
            "give a dask array: dask.array.from_array(sparse.COO(X), chunks=(1000, -1))"
        )
    if len(X) != len(y):
        raise ValueError(f"X has {len(X)} rows, but y has {len(y)}")
    return X, y


async def _lazy_arrays(X: Any, y: Any) -> tuple[da.Array, da.Array]:
    """Convert X and y to Dask arrays of equal, known block lengths; unknown lengths are computed first."""
    blocks = dask_blocks(X, y)
    if all(isinstance(one, da.Array) and not np.isnan(one.shape[0]) for one in (X, y)):
        return X, y
    client = default_client()
    lengths = await client.gather(client.compute([delayed(_count_rows)(*block[:2]) for block in blocks]))
    for k, (n, m) in enumerate(lengths):
        if n != m:
            raise ValueError(f"chunk {k}: X has {n} rows, but y has {m}")
    names = column_names(X)
    columns = X.shape[1] if names is None else len(names)
    kind = X._meta if names is None else read_rows(X._meta)
    labels = np.asarray(y._meta if is_dask_collection(y) else y)[:0]
    rows, targets = [], []
    for group in _groups([n for n, _ in lengths]):
        n, parts = sum(lengths[k][0] for k in group), [blocks[k] for k in group]
        block = delayed(_join_rows)([part[0] for part in parts], names)
        rows.append(da.from_delayed(block, (n, columns), meta=kind))
        block = delayed(_join_targets)([part[1] for part in parts])
        targets.append(da.from_delayed(block, (n, *labels.shape[1:]), meta=labels))
    return da.concatenate(rows), da.concatenate(targets)


def _groups(lengths: list[int]) -> list[list[int]]:
    """Group consecutive blocks so that each group has at least MIN_BLOCK_ROWS rows; return the block numbers.

    Each group has as few blocks as possible. If all blocks have fewer rows together, they form one group.

    Raises
    ------
    ValueError
        If no block has rows.
    """
    left, rows = sum(lengths), 0
    if not left:
        raise ValueError("X has no rows")
    groups: list[list[int]] = [[]]
    for k, n in enumerate(lengths):
        if rows >= MIN_BLOCK_ROWS and left >= MIN_BLOCK_ROWS:
            groups.append([])
            rows = 0
        groups[-1].append(k)
        rows, left = rows + n, left - n
    return groups


def _count_rows(X: Any, y: Any) -> tuple[int, int]:
    return X.shape[0], len(y)


def _join_rows(parts: list, names: list | None) -> Any:
    if names is not None:
        with blame("X"):
            parts = [read_rows(align_columns(part, names), finite=False) for part in parts]
        parts = [part.toarray() if sp.issparse(part) else part for part in parts]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _join_targets(parts: list) -> np.ndarray:
    return np.concatenate([np.asarray(part) for part in parts])


# Meaning of the parameters that describe predictions, for the name of the method.
_META = "Empty array or frame like the result of ``{}``. Set it if predictions of Dask collections fail without it."

# Type and meaning of each parameter of the searches, in the form of numpydoc.
_PARAMETERS = {
    "estimator": (
        "estimator with ``partial_fit``",
        "The estimator whose parameters are searched. It is cloned and never modified.",
    ),
    "parameters": (
        "dict",
        "The search space: for each parameter's name a list of values, or a distribution with a method ``rvs``, "
        "such as those of ``scipy.stats``.",
    ),
    "n_initial_parameters": (
        'int or "grid"',
        'Number of candidates drawn from the search space. Raise it for a large space. "grid" takes every combination.',
    ),
    "n_initial_iter": (
        "int",
        "Number of calls of ``partial_fit`` for each candidate in the first round; required. Raise it if first scores "
        "say little.",
    ),
    "max_iter": (
        "int",
        "Maximum number of calls of ``partial_fit`` for one candidate. Raise it if candidates need more chunks or "
        "visits. None trains until about one candidate is left; only ``SuccessiveHalvingSearchCV`` accepts it.",
    ),
    "aggressiveness": (
        "int",
        "About one of this many candidates is kept in each round. Raise it if early scores are reliable.",
    ),
    "decay_rate": (
        "float or None",
        "Exponent d: after t calls, a share of about ``(1 + t) ** -d`` of the candidates is trained on. Raise it to "
        "save time. Used by ``InverseDecaySearchCV`` only; elsewhere leave it at None.",
    ),
    "test_size": (
        "float or None",
        "Share of each block that is held out for scores, from 0 to 1. None holds out about the size of one block, "
        "and at most a fifth of the rows. Lower it if the held-out rows do not fit in the memory of a worker.",
    ),
    "patience": (
        "int or bool",
        "Training of a candidate stops if its score has not improved by `tol` for this many calls. False never stops "
        "early. Set it if candidates converge before `max_iter`.",
    ),
    "tol": (
        "float",
        "Least improvement, in units of the score, for `patience`. Raise it to stop candidates earlier.",
    ),
    "fits_per_score": (
        "int",
        "Number of calls of ``partial_fit`` between scores. Raise it if scores take long.",
    ),
    "random_state": (
        "int, RandomState or None",
        "Seed of the candidates and of the held-out rows. Set an int for reproducible results.",
    ),
    "scoring": (
        "str, callable or None",
        "Score to maximise, as in scikit-learn. None uses the estimator's own ``score``.",
    ),
    "verbose": (
        "bool or float",
        "Whether to print the progress. A float prints about this share of the messages.",
    ),
    "prefix": ("str", "Text in front of each message."),
    "scores_per_fit": ("int or None", "Deprecated name of `fits_per_score` in dask-ml."),
    "predict_meta": ("array-like or None", _META.format("predict")),
    "predict_proba_meta": ("array-like or None", _META.format("predict_proba")),
    "transform_meta": ("array-like or None", _META.format("transform")),
}


# What all searches share, for their docstrings.
_SHARED = """\
A running ``dask.distributed.Client`` is required. For a classifier, call ``fit(X, y, classes=[...])``. X and y may
be frames, in memory or on Dask; ``best_estimator_`` then has ``feature_names_in_``. The other attributes after
``fit``, such as ``best_params_``, ``best_score_`` and ``cv_results_``, are those of dask-ml's class."""

T = TypeVar("T", bound=type)


def _documented(search: T) -> T:
    """Complete the docstring of a search, which holds its goal, by what all searches share and by its parameters.

    The parameters, their order and their defaults are those of its signature.
    """
    lines = []
    for name, parameter in signature(search).parameters.items():
        kind, meaning = _PARAMETERS[name]
        default = "" if parameter.default is parameter.empty else f", default={parameter.default!r}"
        lines += [f"{name} : {kind}{default}", indent(fill(meaning, 116), "    ")]
    title = f"The ``{search.__name__}`` of dask-ml, for current versions of Dask and for frames."
    parameters = "\n".join(["Parameters", "----------", *lines])
    search.__doc__ = "\n\n".join([title, search.__doc__ or "", _SHARED, parameters]) + "\n"
    return search


@_documented
class IncrementalSearchCV(_OnAnyDask, dask_ml.IncrementalSearchCV):
    """Train all candidates concurrently to the end, unless the score of one stops improving."""

    # Redefined for the default of decay_rate: dask-ml's own default makes it warn even if the user did not set it.
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


@_documented
class InverseDecaySearchCV(_OnAnyDask, dask_ml.InverseDecaySearchCV):
    """Train fewer candidates with each call: their number is inversely proportional to the number of calls made."""


@_documented
class SuccessiveHalvingSearchCV(_OnAnyDask, dask_ml.SuccessiveHalvingSearchCV):
    """Keep the better candidates in each round, and give each of them more calls (Jamieson, Talwalkar 2016)."""


@_documented
class HyperbandSearchCV(_OnAnyDask, dask_ml.HyperbandSearchCV):
    """Give a candidate the more calls of ``partial_fit`` the better it scores (Li et al. 2018)."""
