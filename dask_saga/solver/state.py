"""Immutable state of the solver: what one visit hands to the next, and what is stored for each chunk.

All arrays are read-only, and every transition creates a new state. Therefore a state can be shared
instead of copied, and a failed transition has no side effects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from dask.sizeof import sizeof

from ..data.immutable import immutable
from ..data.immutable_map import ImmutableMap
from ..data.statistics import ColumnStats, no_stats
from ..penalties import ElasticNet
from .curvature import ChunkCurvature, Curvature
from .preconditioner import Preconditioner

if TYPE_CHECKING:
    from .problem import Problem

__all__ = ["LARGEST_COEFFICIENT", "ChunkMemory", "SAGAState", "SolverState", "adapt", "new_solver_state", "new_state"]


# Largest absolute coefficient, in the user's units. A visit that exceeds it counts as diverged.
LARGEST_COEFFICIENT = 1e100


@immutable
class SolverState(NamedTuple):
    """State of the solver that one visit hands to the next.

    Arrays have shape (outputs, p + 1) unless stated otherwise. The last column is the intercept.

    Parameters
    ----------
    x : ndarray
        Current coefficients.
    gradient_sum : ndarray
        sum_i m_i a_i over all chunks, where m_i is the memory gradient of row i.
    weight : float
        Sum of the row weights of the chunks in memory.
    rows : int
        Number of rows with positive weight in these chunks.
    step_multiplier : float
        Factor of the "auto" step. It falls below 1 if single visits forget where they started, and rises
        above 1 if windows keep moving x in the same direction.
    window_start : ndarray
        x at the start of the averaging window.
    window_sum : ndarray
        Sum of x at the ends of the visits in the window.
    window_count : int
        Number of visits in the window.
    visited_weight : float
        Weight of the rows visited in this pass. inf when no full pass is in progress (``partial_fit`` streams).
    visited_sum : ndarray
        Sum over the visits of this pass of x halfway through the visit, times the weight of the chunk.
    window_ratio : float
        Sum over the visits of the window of log(squared move in the first half / squared move in the second).
    window_energy : float
        Sum of the squared moves of x in this window.
    last_energy : float
        ``window_energy`` of the previous window.
    last_step_multiplier : float
        ``step_multiplier`` in the previous window.
    last_move : ndarray
        Move of x in the previous window.
    limits : ndarray of shape (p,)
        Minimum of ``axis_limits`` over the chunks visited with the current preconditioner.
    preconditioner_key : str
        ``Problem.preconditioner_key`` for which ``step_multiplier`` was adapted.
    diverged : bool
        Whether a visit produced non-finite or too large coefficients. x then keeps its last valid value.
    """

    x: np.ndarray
    gradient_sum: np.ndarray
    weight: float
    rows: int
    step_multiplier: float
    window_start: np.ndarray
    window_sum: np.ndarray
    window_count: int
    visited_weight: float
    visited_sum: np.ndarray
    window_ratio: float
    window_energy: float
    last_energy: float
    last_step_multiplier: float
    last_move: np.ndarray
    limits: np.ndarray
    preconditioner_key: str
    diverged: bool

    @property
    def gradient_average(self) -> np.ndarray:
        """Weighted mean of the memory gradients times their rows, ``gradient_sum / weight``."""
        return self.gradient_sum / self.weight if self.weight > 0 else np.zeros_like(self.gradient_sum)


@immutable
class ChunkMemory(NamedTuple):
    """Gradient memory of one chunk with n rows, and facts about that chunk.

    Parameters
    ----------
    gradients : ndarray of shape (n, outputs)
        Memory gradients m_i = w_i f'(z_i) from the last visit of each row. Zero before the first visit.
    visits : int
        Number of visits of the chunk.
    content : str
        Hash of the rows and their targets.
    weights_content : str
        Hash of the row weights.
    weight : float
        Contribution of the chunk to ``SolverState.weight``.
    rows : int
        Contribution of the chunk to ``SolverState.rows``.
    total : ndarray of shape (outputs, p + 1) or None
        sum_i m_i a_i over this chunk. None if it would be large compared with `gradients`.
    stats : ColumnStats or None
        Column statistics at the first visit, without the product matrix. None if they would be large, or
        if the chunk was read by ``fit``.
    curvature : ChunkCurvature or None
        Quadratic model of the chunk in ``SAGAState.curvature``. None if its last visit took SAGA steps, or if all
        models were dropped.
    """

    gradients: np.ndarray
    visits: int
    content: str
    weights_content: str
    weight: float
    rows: int
    total: np.ndarray | None
    stats: ColumnStats | None = None
    curvature: ChunkCurvature | None = None


class SAGAState(NamedTuple):
    """Complete state of an estimator, from which a fit continues exactly where it stopped.

    Users need `chunks`, whose keys are the ids of the chunks, and the attributes ``n_samples``, ``x`` and
    ``intercept``. The other fields belong to the solver.

    Parameters
    ----------
    head : SolverState
        State after the last visit.
    stats : ColumnStats
        Column statistics of all chunks.
    metric : Preconditioner or None
        The solver's coordinates. None before the first chunk.
    preconditioner_for : tuple of str and float
        ``Problem.preconditioner_key`` for which `metric` was chosen, and the fraction of the data that was
        added or removed since.
    chunks : ImmutableMap of chunk id to ChunkMemory
        Gradient memory by chunk, in order of arrival.
    window_ids : ImmutableMap of chunk id to bool
        Chunks visited in the current averaging window, and whether it was their first visit.
    digest : str
        Hash chained over all transitions.
    seed : int
        Seed of all row and chunk orders.
    curvature : Curvature or None
        Sums of the chunks' quadratic models. None if there are none.
    """

    head: SolverState
    stats: ColumnStats
    metric: Preconditioner | None
    preconditioner_for: tuple
    chunks: ImmutableMap
    window_ids: ImmutableMap
    digest: str
    seed: int
    curvature: Curvature | None = None

    @property
    def x(self) -> np.ndarray:
        """Current coefficients, of shape (p,) for one output, else (outputs, p)."""
        return _one_output(self.head.x[:, :-1])

    @property
    def intercept(self) -> Any:
        """Current intercept: a float for one output, else an array of shape (outputs,)."""
        return self.head.x[0, -1] if len(self.head.x) == 1 else self.head.x[:, -1]

    @property
    def gradient_average(self) -> np.ndarray:
        """Weighted mean of the memory gradients times their rows, of shape (p,) for one output."""
        return _one_output(self.head.gradient_average[:, :-1])

    @property
    def memory_gradients(self) -> dict:
        """Memory gradients by chunk id, of shape (n,) for one output, else (n, outputs)."""
        return {key: _one_output(memory.gradients.T).T for key, memory in self.chunks.items()}

    @property
    def n_samples(self) -> int:
        """Number of rows in the gradient memory."""
        return sum(len(memory.gradients) for memory in self.chunks.values())

    def __repr__(self) -> str:
        p = self.head.x.shape[1] - 1
        return f"<SAGAState of {len(self.chunks)} chunks, {self.n_samples} rows, {p} columns>"

    def __deepcopy__(self, memo: dict) -> SAGAState:
        return self


def _one_output(array: np.ndarray) -> np.ndarray:
    return array[0] if len(array) == 1 else array


_restore = SAGAState  # the name in pickles of earlier versions


@sizeof.register(SAGAState)
def _sizeof_state(state: SAGAState) -> int:
    def nbytes(fields: Any) -> int:
        return sum(array.nbytes for array in fields or () if isinstance(array, np.ndarray))

    parts = [state.head, state.stats, state.metric, state.curvature]
    for memory in state.chunks.values():
        parts += [memory, memory.stats, memory.curvature]
    return 600 * len(state.chunks) + sum(map(nbytes, parts))


def new_solver_state(
    n_columns: int, n_outputs: int = 1, *, weight: float = 0.0, rows: int = 0, preconditioner_key: str = ""
) -> SolverState:
    """Return the SolverState before any visit, at x = 0."""
    zeros, no_limits = np.zeros((n_outputs, n_columns + 1)), np.full(n_columns, np.inf)
    return SolverState(
        x=zeros,
        gradient_sum=zeros,
        weight=weight,
        rows=rows,
        step_multiplier=1.0,
        window_start=zeros,
        window_sum=zeros,
        window_count=0,
        visited_weight=0.0,
        visited_sum=zeros,
        window_ratio=0.0,
        window_energy=0.0,
        last_energy=np.inf,
        last_step_multiplier=1.0,
        last_move=zeros,
        limits=no_limits,
        preconditioner_key=preconditioner_key,
        diverged=False,
    )


def new_state(n_columns: int, n_outputs: int, seed: int) -> SAGAState:
    """Return the SAGAState before any chunk."""
    return SAGAState(
        new_solver_state(n_columns, n_outputs),
        no_stats(n_columns),
        None,
        ("", 0.0),
        ImmutableMap(),
        ImmutableMap(),
        "",
        seed,
    )


def adapt(head: SolverState, problem: Problem) -> SolverState:
    """Adapt a SolverState to a problem that needs another preconditioner.

    x is clipped to the bounds of the penalty, and its intercept is set to zero if the problem has none. The
    step multiplier and the averaging window are reset. The gradient sum is kept. A state that already has the
    problem's ``preconditioner_key`` is returned unchanged.
    """
    if head.preconditioner_key == problem.preconditioner_key:
        return head
    x = head.x
    if not problem.fit_intercept and x[:, -1].any():
        x = np.column_stack([x[:, :-1], np.zeros(len(x))])
    if isinstance(problem.penalty, ElasticNet):
        x = np.column_stack([np.clip(x[:, :-1], problem.penalty.lower, problem.penalty.upper), x[:, -1]])
    fresh = new_solver_state(
        x.shape[1] - 1, len(x), weight=head.weight, rows=head.rows, preconditioner_key=problem.preconditioner_key
    )
    return fresh._replace(x=x, gradient_sum=head.gradient_sum, window_start=x)
