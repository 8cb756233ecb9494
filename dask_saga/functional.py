"""``saga``: the post's ``full_saga``, for researchers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from dask import delayed, is_dask_collection
from dask.delayed import Delayed
from distributed import Future
from sklearn.utils._param_validation import validate_parameter_constraints

from .data.validation import blame, check_containers, read_chunk
from .execution.executor import LocalExecutor, find_executor
from .fitting.chunk_source import Source
from .fitting.loop import run, split_x
from .fitting.preparation import prepare
from .losses import resolve_loss
from .penalties import resolve_penalty
from .solver.identity import draw_seed
from .solver.problem import CONSTRAINTS, Problem, to_float

if TYPE_CHECKING:
    from .data.chunk import Chunk
    from .fitting.loop import Info
    from .solver.state import SAGAState

__all__ = ["SAGAResult", "saga"]


class SAGAResult(NamedTuple):
    """What ``saga`` returns.

    Parameters
    ----------
    x : ndarray of shape (p,), or (k, p) for k outputs
        Coefficients.
    intercept : float, or ndarray of shape (k,)
        Zero unless fitted.
    n_iter : int
        Passes made.
    converged, diverged : bool
    step_size : float
        The step of the last pass.
    history : list of dict
        One a pass: epoch, objective, gradient_norm, seconds, visits, bytes_read; ``pandas.DataFrame(history)``.
    state : SAGAState or None
        None where the gradient memory on a cluster is more than half of what this process may have.
    """

    x: np.ndarray
    intercept: Any
    n_iter: int
    converged: bool
    diverged: bool
    step_size: float
    history: list[dict]
    state: SAGAState | None


def saga(
    chunks: Sequence,
    loss: Any = "log_loss",
    penalty: Any = None,
    *,
    fit_intercept: bool = False,
    step_size: str | float = "auto",
    step_size_scale: float = 0.3,
    max_iter: int = 100,
    tol: float = 0.0,
    shuffle: bool = True,
    average: bool = True,
    precondition: bool = True,
    n_parallel: int | str = 1,
    n_threads: int = 1,
    memory_dtype: str = "float32",
    random_state: int | None = None,
    persist: bool | str = "auto",
    callback: Callable[[Info], Any] | None = None,
) -> SAGAResult:
    """Minimise the mean loss plus a penalty over a list of chunks: the post's ``full_saga``.

    Parameters
    ----------
    chunks : sequence of (A, b)
        A of shape (n, p), b of shape (n,), or (n, k) for k outputs: numpy, scipy.sparse or Dask arrays, pairs of
        delayed or of futures, delayed pairs, or futures of pairs. Each pair is one chunk. For "log_loss" b holds -1
        and 1.
    loss : str or object, default="log_loss"
        A name from ``dask_saga.losses.LOSSES``, ``MultinomialLogLoss(n_classes)`` for classes 0, 1, ...,
        or a loss of your own.
    penalty : object, default=None
        Such as ``dask_saga.penalties.ElasticNet(l2=1e-4)``, or your own.
    fit_intercept : bool, default=False
    step_size : "auto" or float, default="auto"
        "auto": ``step_size_scale / L`` with L the mean over the rows of all chunks, cut or raised as
        the passes go. A float is the step of plain SAGA.
    step_size_scale : float, default=0.3
    max_iter : int, default=100
        Passes over all chunks at most.
    tol : float, default=0.0
        Stop where two measures are at most `tol`: the norm of the proximal gradient relative to that at zero, and the
        decrease of the objective that a Newton step promises relative to what was gained so far.
    shuffle : bool, default=True
        Whether each pass takes the chunks in a new random order; the post's is fixed.
    average : bool, default=True
        Whether chunk-end iterates are averaged over a pass where x circles, and "auto"
        steps cut where chunks unlike each other keep it circling.
    precondition : bool, default=True
        Whether columns are centred, scaled and, where it pays, rotated inside the solver's steps. With
        `shuffle`, `average` and this False and a float `step_size` it is the post's algorithm.
    n_parallel : int or "auto", default=1
        Chunks visited at a time, from the same coefficients; these then become the mean of theirs. Each gives
        bits of its own, whatever it runs on. "auto": one for each thread of the cluster, or of this
        process, but no more than a fifth of the chunks.
    n_threads : int, default=1
        Threads that share a visit of a large chunk, at most. Results are reproducible for each number.
    memory_dtype : {"float32", "float64"}, default="float32"
    random_state : int, default=None
        Seed of all orders; None draws one.
    persist : bool or "auto", default="auto"
        Whether lazy chunks are held in memory, or loaded again for each visit; "auto" holds them where they
        take less than 40 % of it.
    callback : callable, default=None
        ``callback(info)`` after each pass, with ``info.x`` and ``info.chunks``; True stops.

    Returns
    -------
    SAGAResult

    Raises
    ------
    ValueError, TypeError
        For bad parameters, and for bad data, naming the chunk.

    Examples
    --------
    >>> import numpy as np
    >>> from dask_saga import saga
    >>> from dask_saga.penalties import ElasticNet
    >>> A = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [-1.0, -1.0]])
    >>> b = np.array([1.0, -1.0, 1.0, -1.0])
    >>> result = saga([(A[:2], b[:2]), (A[2:], b[2:])], penalty=ElasticNet(l2=0.1), tol=1e-6, random_state=0)
    >>> result.x.round(2), result.converged
    (array([ 1.59, -0.4 ]), True)
    """
    given = dict(
        loss=loss, fit_intercept=fit_intercept, step_size=step_size, step_size_scale=step_size_scale,
        precondition=precondition, average=average, max_iter=max_iter, tol=tol, n_parallel=n_parallel,
        n_threads=n_threads, memory_dtype=memory_dtype, random_state=random_state,
    )  # fmt: skip
    validate_parameter_constraints(CONSTRAINTS, given, caller_name="saga")
    problem = Problem(
        loss=resolve_loss(loss),
        penalty=_penalty_object(penalty),
        fit_intercept=fit_intercept,
        step_size=step_size if step_size == "auto" else to_float("step_size", step_size),
        step_size_scale=to_float("step_size_scale", step_size_scale),
        average=average,
        precondition=precondition,
        memory_dtype=memory_dtype,
        n_threads=n_threads,
    )
    problem = problem._replace(outputs=getattr(problem.loss, "outputs", 1))
    seed = draw_seed(random_state)
    pairs = list(chunks)
    if not pairs:
        raise ValueError("chunks is empty; give at least one (A, b)")
    for k, pair in enumerate(pairs):
        if not isinstance(pair, (Delayed, Future, tuple, list)):
            raise TypeError(f"chunk {k}: chunks must hold pairs (A, b), not {type(pair).__name__}")
        if isinstance(pair, (tuple, list)):
            for name, part in zip("Xy", pair, strict=False):
                if not isinstance(part, (Delayed, Future)):
                    with blame(name, k):
                        check_containers(**{name: part})
    lazy = any(_is_lazy(pair) or any(map(_is_lazy, pair)) for pair in pairs)
    executor = find_executor() if lazy else LocalExecutor()
    blocks = [delayed(pair) if lazy else pair for pair in pairs]
    nbytes = math.nan if lazy else 0.0
    with Source(executor, blocks, nbytes=nbytes, persist=persist, n_parallel=n_parallel) as source:
        source.begin(functools.partial(_read_pair, loss=problem.loss))
        prepared = prepare(source, problem, joins=False, estimator="saga")
        if not any(fact.rows for fact in prepared.facts):
            raise ValueError("chunks hold no rows")
        result = run(
            source, prepared, problem,
            seed=seed, max_iter=max_iter, tol=tol, shuffle=shuffle, callback=callback, given=chunks,
        )  # fmt: skip
    if result.interrupted:
        raise KeyboardInterrupt
    x, intercept = split_x(result.x)
    return SAGAResult(
        x, intercept, len(result.history), result.converged, result.diverged, result.step_size, result.history,
        result.state if result.has_memory else None,
    )  # fmt: skip


def _is_lazy(value: Any) -> bool:
    return isinstance(value, Future) or is_dask_collection(value)


def _penalty_object(penalty: Any) -> Any:
    if isinstance(penalty, str):
        raise TypeError(f"penalty={penalty!r} needs its weight: give an object such as ElasticNet(l2=1e-4)")
    return resolve_penalty(penalty)


def _read_pair(pair: Any, name: int | None, loss: Any, order: str | None) -> Chunk:
    lone, name = name is None, name or 0
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"chunk {name}: chunks must hold pairs (A, b), not {type(pair).__name__}")
    # Of several chunks NaN is found in the preparing pass, which names the chunk.
    return read_chunk(*pair, loss=loss, name=name, finite=lone, order=order, estimator="saga")
