"""The solver as a function: ``saga`` corresponds to ``full_saga`` of the post and is meant for researchers."""

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

from .data.containers import check_containers
from .data.validation import blame, read_chunk
from .execution.executor import LocalExecutor, find_executor
from .fitting.chunk_source import Source
from .fitting.loop import run, split_x
from .fitting.preparation import prepare
from .fitting.smoothing import run_smoothed
from .losses import Loss, resolve_loss
from .penalties import Penalty, resolve_penalty
from .solver.identity import draw_seed
from .solver.problem import CONSTRAINTS, Problem, to_float

if TYPE_CHECKING:
    from .data.chunk import Chunk
    from .fitting.loop import Info
    from .solver.state import SAGAState

__all__ = ["SAGAResult", "saga"]


class SAGAResult(NamedTuple):
    """What ``saga`` returns: coefficients, history and final state.

    Parameters
    ----------
    x : ndarray of shape (p,), or (k, p) for k outputs
        Coefficients.
    intercept : float, or ndarray of shape (k,)
        Intercept; zero if it was not fitted.
    n_iter : int
        Number of passes over all chunks.
    converged, diverged : bool
        Whether the fit reached `tol`, and whether a step produced numbers that are not finite. After divergence `x` has
        the last finite coefficients.
    step_size : float
        Step size of the last pass.
    history : list of dict
        One row per pass with the keys epoch, objective, gradient_norm, seconds, visits and bytes_read. To get a table,
        use ``pandas.DataFrame(history)``.
    state : SAGAState or None
        Final state with the gradient memory. None if the memory is on a cluster and exceeds half of the memory that
        this process may use.
    """

    x: np.ndarray
    intercept: float | np.ndarray
    n_iter: int
    converged: bool
    diverged: bool
    step_size: float
    history: list[dict]
    state: SAGAState | None


def saga(
    chunks: Sequence,
    loss: str | Loss = "log_loss",
    penalty: Penalty | None = None,
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
    """Minimise the mean loss plus a penalty over a list of chunks.

    It corresponds to ``full_saga`` of the `Dask blog post of 2018
    <https://blog.dask.org/2018/08/07/incremental-saga>`_, which the parameters below call the post.

    Parameters
    ----------
    chunks : sequence of (A, b)
        Each pair is one chunk. A has shape (n, p), and b has shape (n,), or (n, k) for k outputs. A and b are numpy,
        scipy.sparse or Dask arrays, delayed objects or futures. A whole pair may also be one delayed object or one
        future. For "log_loss" b contains -1 and 1.
    loss : str or object, default="log_loss"
        A name from ``dask_saga.losses.LOSSES``, ``MultinomialLogLoss(n_classes)`` for classes 0, 1, ...,
        or your own loss (see ``dask_saga.losses``).
    penalty : object, default=None
        A penalty such as ``dask_saga.penalties.ElasticNet(l2=1e-4)``, or your own. None means no penalty.
    fit_intercept : bool, default=False
        Whether to fit an intercept, which is never penalised. Set True unless A and b are centred.
    step_size : "auto" or float, default="auto"
        Step size. "auto" starts at ``step_size_scale / L``, where L is the mean Lipschitz constant of all rows; the
        solver lowers or raises it during the fit. A float is a fixed step, without step control, subsample steps and
        Newton steps. Together with `shuffle`, `average` and `precondition` False it gives the algorithm of the post.
    step_size_scale : float, default=0.3
        Factor of the "auto" step. The default is about the 1/(3L) of the paper. Lower it if a fit diverges.
    max_iter : int, default=100
        Maximum number of passes over all chunks. Raise it if the fit stops before it reaches `tol`.
    tol : float, default=0.0
        Relative tolerance. The fit stops once two measures are at most `tol`. The first is the norm of the proximal
        gradient, relative to its value at zero. The second is the decrease of the objective that a Newton step
        predicts, relative to the decrease so far. The default makes all `max_iter` passes; set 1e-4 to stop as the
        estimators do.
    shuffle : bool, default=True
        Whether each pass visits the chunks in a new random order. False keeps the given order, as in the post.
    average : bool, default=True
        Whether to average the coefficients at the ends of visits over a pass if they circle the optimum. An "auto" step
        is also shortened if differences between chunks keep them circling. Set False for the coefficients after the
        last visit; this also switches off step control and Newton steps.
    precondition : bool, default=True
        Whether the solver centres and scales the columns inside its steps, and rotates them where that saves time. Set
        False for steps in the coordinates of the data; fits are then slow unless the columns have similar scales.
    n_parallel : int or "auto", default=1
        Number of chunks visited concurrently from the same coefficients. The results are averaged. Raise it if a
        cluster has idle threads. Each value is reproducible on any scheduler, but values differ from each other. "auto"
        uses one chunk per thread of the cluster (or of this process without one), but at most a fifth of the chunks.
    n_threads : int, default=1
        Maximum number of threads that share the visit of one large chunk. Raise it for large chunks if cores are idle.
        Each value gives reproducible results.
    memory_dtype : {"float32", "float64"}, default="float32"
        dtype of the gradient memory (one number per row and output). Use "float64" for a very small `tol`, or if
        targets times weights are outside of 1e-30 to 1e30.
    random_state : int, default=None
        Seed of all random orders. None draws a seed. Set an int for reproducible results.
    persist : bool or "auto", default="auto"
        Whether lazy chunks are held in memory. False loads a chunk again for each visit. "auto" holds the chunks if
        they take less than 40 % of the memory of this process, or of all workers of the cluster.
    callback : callable, default=None
        Function called as ``callback(info)`` after each pass, where info has epoch, x, intercept, objective
        (estimated), gradient_norm, step_size, seconds, visits, bytes_read and chunks (as given). The fit stops if it
        returns True.

    Returns
    -------
    SAGAResult
        Coefficients, history and final state.

    Raises
    ------
    ValueError, TypeError
        For invalid parameters or data. For data the message names the chunk.

    Examples
    --------
    >>> import numpy as np
    >>> from dask_saga import saga
    >>> from dask_saga.penalties import ElasticNet
    >>> A = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [-1.0, -1.0]])
    >>> b = np.array([1.0, -1.0, 1.0, -1.0])
    >>> chunks = [(A[:2], b[:2]), (A[2:], b[2:])]
    >>> result = saga(chunks, penalty=ElasticNet(l2=0.1), tol=1e-6, random_state=0)
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
    with _open_source(list(chunks), persist, n_parallel) as source:
        source.begin(functools.partial(_read_pair, loss=problem.loss))
        prepared = prepare(source, problem, joins=False)
        if not any(fact.rows for fact in prepared.facts):
            raise ValueError("chunks hold no rows")
        solve = run_smoothed if hasattr(problem.loss, "smoothed") else run
        result = solve(
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


def _open_source(pairs: list, persist: bool | str, n_parallel: int | str) -> Source:
    """Check the types of the pairs, and return the source of their chunks."""
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
    if any(_is_lazy(pair) or any(map(_is_lazy, pair)) for pair in pairs):
        blocks = [delayed(pair) for pair in pairs]
        return Source(find_executor(), blocks, nbytes=math.nan, persist=persist, n_parallel=n_parallel)
    return Source(LocalExecutor(), pairs, persist=persist, n_parallel=n_parallel)


def _is_lazy(value: Any) -> bool:
    return isinstance(value, Future) or is_dask_collection(value)


def _penalty_object(penalty: Any) -> Penalty:
    if isinstance(penalty, str):
        raise TypeError(f"penalty={penalty!r} needs its weight: give an object such as ElasticNet(l2=1e-4)")
    return resolve_penalty(penalty)


def _read_pair(pair: Any, name: int | None, loss: Loss, order: str | None) -> Chunk:
    lone, name = name is None, name or 0
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"chunk {name}: chunks must hold pairs (A, b), not {type(pair).__name__}")
    # Only a lone chunk is checked for NaN here. For several chunks the preparing pass does it and names the chunk.
    return read_chunk(*pair, loss=loss, name=name, finite=lone, order=order, estimator="saga")
