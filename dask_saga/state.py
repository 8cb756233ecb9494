"""What SAGA carries from chunk to chunk.

Every array in a state is read only: a new state is made, never an old one written.
So a copy is the state itself, and what fails half-way leaves no trace.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from dask.sizeof import sizeof
from sklearn.utils import check_random_state

from .columns import ColumnStats, no_stats
from .inputs import frozen
from .mapping import SharedMap
from .metric import Metric
from .penalties import ElasticNet
from .problem import Problem, digest

__all__ = ["ChunkMemory", "Head", "SAGAState", "new_head", "new_state"]

# Beyond this a coefficient has left every scale on which data are measured.
LARGEST_COEFFICIENT = 1e100


class Head(NamedTuple):
    """What travels from chunk to chunk. Arrays have shape (outputs, p + 1), the intercept last.

    Parameters
    ----------
    x : ndarray
        Current coefficients.
    gradient_sum : ndarray
        sum_i m_i a_i over all chunks, where m_i is the memory gradient of row i.
    weight, rows : float, int
        Sum of weights and number of rows of positive weight, of the chunks that count.
    cut : float
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
    last_cut : float
        The cut in the window before.
    last_move : ndarray
        How far the window before moved x.
    limits : ndarray of shape (p,)
        The least of ``axis_limits`` of the chunks visited with these axes.
    geometry : str
        ``Problem.geometry`` for which the cut was found.
    diverged : bool
        Whether a step left finite numbers; x then stays at its last good value.
    """

    x: np.ndarray
    gradient_sum: np.ndarray
    weight: float
    rows: int
    cut: float
    window_start: np.ndarray
    window_sum: np.ndarray
    window_count: int
    past_weight: float
    past_sum: np.ndarray
    window_ratio: float
    window_energy: float
    last_energy: float
    last_cut: float
    last_move: np.ndarray
    limits: np.ndarray
    geometry: str
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
        The chunk's share of the same fields of ``Head``.
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
        The solver's coordinates, and ``metric_for`` what they were chosen for.
    metric_for : tuple of str and float
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

    head: Head
    stats: ColumnStats
    metric: Metric | None
    metric_for: tuple
    chunks: SharedMap
    window_ids: SharedMap
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
    head: Head, stats: ColumnStats, metric: Metric, metric_for: tuple, chunks: Mapping, *rest: Any
) -> SAGAState:
    """A state from its pickled fields; unpickled arrays have lost their read-only flag."""

    def freeze(fields: Any) -> Any:
        if isinstance(fields, np.ndarray):
            return frozen(fields)
        return (
            type(fields)(*map(freeze, fields))
            if isinstance(fields, (Head, ChunkMemory, ColumnStats, Metric))
            else fields
        )

    memories = SharedMap((key, freeze(memory)) for key, memory in chunks.items())
    return SAGAState(freeze(head), freeze(stats), freeze(metric), metric_for, memories, *rest)


@sizeof.register(SAGAState)
def _sizeof_state(state: SAGAState) -> int:
    def nbytes(fields: Any) -> int:
        return sum(array.nbytes for array in fields or () if isinstance(array, np.ndarray))

    parts = [state.head, state.stats, state.metric]
    for memory in state.chunks.values():
        parts += [memory, memory.stats]
    return 600 * len(state.chunks) + sum(map(nbytes, parts))


def new_head(n_columns: int, n_outputs: int = 1, *, weight: float = 0.0, rows: int = 0, geometry: str = "") -> Head:
    """A head at x = 0, before any visit."""
    zeros, no_limits = frozen(np.zeros((n_outputs, n_columns + 1))), frozen(np.full(n_columns, np.inf))
    return Head(
        x=zeros,
        gradient_sum=zeros,
        weight=weight,
        rows=rows,
        cut=1.0,
        window_start=zeros,
        window_sum=zeros,
        window_count=0,
        past_weight=0.0,
        past_sum=zeros,
        window_ratio=0.0,
        window_energy=0.0,
        last_energy=np.inf,
        last_cut=1.0,
        last_move=zeros,
        limits=no_limits,
        geometry=geometry,
        diverged=False,
    )


def new_state(n_columns: int, n_outputs: int, seed: int) -> SAGAState:
    """A state that has seen no chunk."""
    return SAGAState(
        new_head(n_columns, n_outputs), no_stats(n_columns), None, ("", 0.0), SharedMap(), SharedMap(), "", seed
    )


def draw_seed(random_state: Any) -> int:
    """Entropy for all orders: an int as it is, else one draw."""
    if isinstance(random_state, Integral):
        return int(random_state)
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
    return int(check_random_state(random_state).randint(2**31))


def visit_seed(seed: int, chunk_id: Hashable, visits: int) -> int:
    """Seed of the row order of one visit; a repeated order would ruin convergence."""
    return int(digest(seed, chunk_id, visits), 16)


def last_of(state: SAGAState, content: str) -> Hashable | None:
    """Id of the last chunk of this content that came without an id, or None."""
    occurrence = 0
    while (content, occurrence) in state.chunks:
        occurrence += 1
    return (content, occurrence - 1) if occurrence else None


def anonymous_id(state: SAGAState, content: str) -> Hashable:
    """Id of a chunk that came without one: the least visited of equal content, or a new one."""
    same, occurrence = [], 0
    while (content, occurrence) in state.chunks:
        same.append((content, occurrence))
        occurrence += 1
    return min(same, key=lambda key: state.chunks[key].visits) if same else (content, 0)


def number_occurrences(contents: Iterable[str]) -> list[tuple[str, int]]:
    """Ids of chunks that came without one, repeated content told apart."""
    seen: dict[str, int] = {}
    ids = []
    for content in contents:
        ids.append((content, seen.get(content, 0)))
        seen[content] = seen.get(content, 0) + 1
    return ids


def adapt(head: Head, problem: Problem) -> Head:
    """The head for a problem of other geometry: cut and window start anew."""
    if head.geometry == problem.geometry:
        return head
    x = head.x
    if not problem.fit_intercept and x[:, -1].any():
        x = frozen(np.column_stack([x[:, :-1], np.zeros(len(x))]))
    if isinstance(problem.penalty, ElasticNet):
        x = frozen(np.column_stack([np.clip(x[:, :-1], problem.penalty.lower, problem.penalty.upper), x[:, -1]]))
    fresh = new_head(x.shape[1] - 1, len(x), weight=head.weight, rows=head.rows, geometry=problem.geometry)
    return fresh._replace(x=x, gradient_sum=head.gradient_sum, window_start=x)
