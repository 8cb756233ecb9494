"""What SAGA carries from chunk to chunk.

Every array in a state is read only: a new state is made, never an old one written.
So a copy is the state itself, and what fails half-way leaves no trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from dask.sizeof import sizeof

from ..data.chunk import frozen
from ..data.immutable_map import ImmutableMap
from ..data.statistics import ColumnStats, no_stats
from ..penalties import ElasticNet
from .preconditioner import Preconditioner

if TYPE_CHECKING:
    from .problem import Problem

__all__ = ["LARGEST_COEFFICIENT", "ChunkMemory", "SAGAState", "SolverState", "adapt", "new_solver_state", "new_state"]


# Beyond this a coefficient has left every scale on which data are measured.
LARGEST_COEFFICIENT = 1e100


class SolverState(NamedTuple):
    """What travels from chunk to chunk. Arrays have shape (outputs, p + 1), the intercept last.

    Parameters
    ----------
    x : ndarray
        Current coefficients.
    gradient_sum : ndarray
        sum_i m_i a_i over all chunks, where m_i is the memory gradient of row i.
    weight, rows : float, int
        Sum of weights and number of rows of positive weight, of the chunks that count.
    step_multiplier : float
        Multiplies the "auto" step: below one where visits forgot where they came from, above it where
        they went on and on the same way.
    window_start, window_sum : ndarray
        x at the opening of the averaging window, and the sum of x at its visits' ends.
    window_count : int
        Visits in the window.
    past_weight, past_sum : float, ndarray
        Weight of the rows visited in this pass, and the sum over them of weight and x at their visit. Infinite
        where chunks come and go, and visits are not of a pass over all.
    window_ratio : float
        Sum of the logarithms of their halves' ratios of squared moves.
    window_energy, last_energy : float
        Sum of squared moves of x in this window, and in the one before.
    last_step_multiplier : float
        The cut in the window before.
    last_move : ndarray
        How far the window before moved x.
    limits : ndarray of shape (p,)
        The least of ``axis_limits`` of the chunks visited with these axes.
    preconditioner_key : str
        ``Problem.geometry`` for which the cut was found.
    diverged : bool
        Whether a step left finite numbers; x then stays at its last good value.
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
        """gradient_sum / weight."""
        return self.gradient_sum / self.weight if self.weight > 0 else np.zeros_like(self.gradient_sum)


class ChunkMemory(NamedTuple):
    """What stays beside one chunk of n rows.

    Parameters
    ----------
    gradients : ndarray of shape (n, outputs)
        Memory gradients m_i = w_i f'(z_i) of each row's last visit; zero before the first.
    visits : int
        Passes made over the chunk.
    content, weights_content : str
        Hashes of the rows with their targets, and of the weights.
    weight, rows : float, int
        The chunk's share of the same fields of ``SolverState``.
    total : ndarray of shape (outputs, p + 1) or None
        sum_i m_i a_i of this chunk; None where that is large beside the gradients.
    stats : ColumnStats or None
        Of this chunk at its first visit, without products; None where large, or where ``fit`` read it.
    """

    gradients: np.ndarray
    visits: int
    content: str
    weights_content: str
    weight: float
    rows: int
    total: np.ndarray | None
    stats: ColumnStats | None = None


class SAGAState(NamedTuple):
    """All that an estimator learnt and needs to go on exactly where it stopped.

    Parameters
    ----------
    head : Head
    stats : ColumnStats
        Of all chunks.
    metric : Metric
        The solver's coordinates, and ``preconditioner_for`` what they were chosen for.
    preconditioner_for : tuple of str and float
        ``Problem.geometry``, and the share of the data that came or left since.
    chunks : SharedMap of chunk id to ChunkMemory
        In order of arrival.
    window_ids : SharedMap
        Ids visited in the current averaging window, and whether that was their first visit.
    digest : str
        Hash chained over every transition.
    seed : int
        Entropy of all row and chunk orders.
    """

    head: SolverState
    stats: ColumnStats
    metric: Preconditioner | None
    preconditioner_for: tuple
    chunks: ImmutableMap
    window_ids: ImmutableMap
    digest: str
    seed: int

    @property
    def x(self) -> np.ndarray:
        """Current coefficients, of shape (p,) for one output."""
        return _one_output(self.head.x[:, :-1])

    @property
    def intercept(self) -> Any:
        """Current intercept."""
        return self.head.x[0, -1] if len(self.head.x) == 1 else self.head.x[:, -1]

    @property
    def gradient_average(self) -> np.ndarray:
        """Average of the memory gradients times their rows, of shape (p,) for one output."""
        return _one_output(self.head.gradient_average[:, :-1])

    @property
    def memory_gradients(self) -> dict:
        """Memory gradients by chunk id, of shape (n,) for one output."""
        return {key: _one_output(memory.gradients.T).T for key, memory in self.chunks.items()}

    @property
    def n_samples(self) -> int:
        """Rows in memory."""
        return sum(len(memory.gradients) for memory in self.chunks.values())

    def __repr__(self) -> str:
        p = self.head.x.shape[1] - 1
        return f"<SAGAState of {len(self.chunks)} chunks, {self.n_samples} rows, {p} columns>"

    def __deepcopy__(self, memo: dict) -> SAGAState:
        return self

    def __reduce__(self) -> tuple:
        return _restore, tuple(self)


def _one_output(array: np.ndarray) -> np.ndarray:
    return array[0] if len(array) == 1 else array


def _restore(
    head: SolverState,
    stats: ColumnStats,
    metric: Preconditioner,
    preconditioner_for: tuple,
    chunks: Mapping,
    *rest: Any,
) -> SAGAState:
    """A state from its pickled fields; unpickled arrays have lost their read-only flag."""

    def freeze(fields: Any) -> Any:
        if isinstance(fields, np.ndarray):
            return frozen(fields)
        return (
            type(fields)(*map(freeze, fields))
            if isinstance(fields, (SolverState, ChunkMemory, ColumnStats, Preconditioner))
            else fields
        )

    memories = ImmutableMap((key, freeze(memory)) for key, memory in chunks.items())
    return SAGAState(freeze(head), freeze(stats), freeze(metric), preconditioner_for, memories, *rest)


@sizeof.register(SAGAState)
def _sizeof_state(state: SAGAState) -> int:
    def nbytes(fields: Any) -> int:
        return sum(array.nbytes for array in fields or () if isinstance(array, np.ndarray))

    parts = [state.head, state.stats, state.metric]
    for memory in state.chunks.values():
        parts += [memory, memory.stats]
    return 600 * len(state.chunks) + sum(map(nbytes, parts))


def new_solver_state(
    n_columns: int, n_outputs: int = 1, *, weight: float = 0.0, rows: int = 0, preconditioner_key: str = ""
) -> SolverState:
    """A head at x = 0, before any visit."""
    zeros, no_limits = frozen(np.zeros((n_outputs, n_columns + 1))), frozen(np.full(n_columns, np.inf))
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
    """A state that has seen no chunk."""
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
    """The head for a problem of other geometry: cut and window start anew."""
    if head.preconditioner_key == problem.preconditioner_key:
        return head
    x = head.x
    if not problem.fit_intercept and x[:, -1].any():
        x = frozen(np.column_stack([x[:, :-1], np.zeros(len(x))]))
    if isinstance(problem.penalty, ElasticNet):
        x = frozen(np.column_stack([np.clip(x[:, :-1], problem.penalty.lower, problem.penalty.upper), x[:, -1]]))
    fresh = new_solver_state(
        x.shape[1] - 1, len(x), weight=head.weight, rows=head.rows, preconditioner_key=problem.preconditioner_key
    )
    return fresh._replace(x=x, gradient_sum=head.gradient_sum, window_start=x)
