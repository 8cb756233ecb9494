"""State of a fit between two passes, and its transfer to the executor and back."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np

from ..data.immutable import immutable
from ..data.immutable_map import ImmutableMap
from ..solver.identity import digest
from ..solver.optimality import chunk_gradient, penalty_value
from ..solver.preconditioned_problem import PreconditionedProblem, row_norms
from ..solver.state import SAGAState, adapt, new_solver_state
from ..solver.step_control import restarted, shortened
from ..solver.subsample import subsample_step
from ..solver.visit import split_memory
from .checkpoint import Saved
from .preparation import gradients_at
from .rounds import StoredMemory, VisitResult, merge_round, round_summary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..data.chunk import Chunk
    from ..execution.protocol import Reference
    from ..solver.problem import Problem
    from ..solver.state import ChunkMemory, SolverState
    from ..solver.subsample import Subsample
    from .chunk_source import Source
    from .models import Examined
    from .preparation import ChunkGradients, Prepared
    from .rounds import EpochSummary, HasMemory

__all__ = [
    "Arrival",
    "FitSetup",
    "FitState",
    "PendingPass",
    "Result",
    "at_point",
    "initial_state",
    "moved",
    "result",
    "resume",
    "roll_back",
    "to_checkpoint",
    "without_lineage",
]


T = TypeVar("T")


class Result(NamedTuple):
    """Result of a fit."""

    state: SAGAState  # without the chunks if their memory does not fit into this process
    has_memory: bool
    x: np.ndarray
    step_size: float
    converged: bool
    diverged: bool
    interrupted: bool
    history: list[dict]
    n_chunks: int  # number of chunks after joining; each of them has visits of its own
    needs_float64: bool  # whether a float32 gradient memory is not accurate enough for `tol`


@dataclass(frozen=True, eq=False)
class FitSetup:
    """Values that are the same in every pass.

    Parameters
    ----------
    source : Source
    prepared : Prepared
    problem : Problem
    ids : list of str
        Id of each chunk.
    weight : float
        Sum of the weights of all rows.
    seed : int
        Seed of all random orders.
    lanes : list of range
        Numbers of the groups in each lane.
    norm_at_zero : float
        Gradient norm at x = 0, by which the history divides. Zero if x = 0 is the optimum.
    """

    source: Source
    prepared: Prepared
    problem: Problem
    ids: list
    weight: float
    seed: int
    lanes: list[range]
    norm_at_zero: float

    @property
    def preconditioned(self) -> PreconditionedProblem:
        """The problem in the solver's coordinates, as a value of this process."""
        return PreconditionedProblem(self.problem, self.prepared.axes)

    def memory_bytes(self, rows: int) -> int:
        """Return the size, in bytes, of the gradient memory of `rows` rows."""
        return rows * len(self.prepared.zero) * np.dtype(self.problem.memory_dtype).itemsize

    @property
    def all_memory_bytes(self) -> int:
        """Size, in bytes, of the gradient memory of all chunks."""
        return self.memory_bytes(sum(self.prepared.lengths))

    def can_gather_memory(self) -> bool:
        """Return whether the gradient memory of all chunks fits into this process."""
        return self.source.executor.can_gather(self.all_memory_bytes)

    @property
    def gradient_bytes(self) -> int:
        """Size, in bytes, of the ``gradients_at`` of the largest chunk: its memory and its gradient sum."""
        return self.memory_bytes(max(self.prepared.lengths)) + self.prepared.zero.nbytes

    @functools.cached_property
    def row_norms(self) -> list[Reference[np.ndarray] | None]:
        """Reference to the row norms of each group, or None if chunks are not held. Computed when first asked for."""
        if not self.source.holds:
            return [None] * len(self.prepared.groups)
        return [*self.source.map(row_norms, self.prepared.preconditioned, name="saga-norms")]


class FitState(NamedTuple):
    """State of a fit after a complete pass.

    The solver state is either in this process, in `head`, or on the executor, where `visits` lead to it. Only `visits`,
    `results` and `sample` are references.

    Parameters
    ----------
    head : SolverState or None
        Value. None after a pass of visits.
    visits : list of Reference
        References to the VisitResults of the last round. Empty if `head` is given.
    results : list of Reference, or None
        References to the last result of each group, which has the gradient memory. None before the first pass.
    summary : EpochSummary
        Value.
    window : frozenset of int
        Groups visited in the current averaging window.
    window_visits : int
        Number of visits in the current averaging window.
    digest : str
        Digest of all transitions up to this state.
    sample : Reference or None
        Reference to the `sample` argument of ``subsample_step``. None once no further subsample step is taken.
    history : tuple of dict
        One row for each pass.
    next_check : int
        First epoch at which convergence may be tested again.
    wait : int
        Number of passes between a failed test for convergence and the next one.
    converged : bool
    in_vain : int
        Number of passes whose step was rejected.
    is_new : bool
        Whether the first pass was made at the given start, and is not yet in the history.
    newton : float
        If not zero, the next pass is a Newton step, and H may take this many seconds.
    newton_check : int
        First epoch at which slow passes may lead to a Newton step.
    newton_wait : int
        Number of passes after a Newton step until slow passes may lead to the next one.
    newton_decrease : float
        Decrease that the last Newton step promised. inf if the last pass was none.
    step : Examined or None
        Value. The next Newton step, if it is already known.
    tested : bool
        Whether the next Newton step is that of a test for convergence. A fit that resumes computes it again.
    """

    head: SolverState | None
    visits: list[Reference[VisitResult]]
    results: list[Reference[HasMemory]] | None
    summary: EpochSummary
    window: frozenset[int]
    window_visits: int
    digest: str
    sample: Reference[Subsample | PreconditionedProblem] | None
    history: tuple[dict, ...] = ()
    next_check: int = 1
    wait: int = 1
    converged: bool = False
    in_vain: int = 0
    is_new: bool = False
    newton: float = 0.0
    newton_check: int = 0
    newton_wait: int = 1
    newton_decrease: float = math.inf
    step: Examined | None = None
    tested: bool = False

    @property
    def refines(self) -> bool:
        """Whether the next pass is a subsample step, unless it is a Newton step."""
        return self.sample is not None

    @property
    def last_round(self) -> list[Any]:
        """Arguments from which a task gets the solver state: values of VisitResult, or references to them."""
        return self.visits if self.head is None else [VisitResult(self.head, None)]


class PendingPass(NamedTuple):
    """A pass of visits that was submitted and may not have ended. On a cluster the next pass can be submitted after it.

    The fields are those of a FitState, but `summary` is a reference.
    """

    visits: list[Reference[VisitResult]]
    results: list[Reference[HasMemory]]
    summary: Reference[EpochSummary]
    window: frozenset[int]
    window_visits: int
    digest: str

    @property
    def last_round(self) -> list[Any]:
        """Arguments from which a task gets the solver state: references to VisitResults."""
        return self.visits


class Arrival(NamedTuple):
    """Result of a pass that evaluates the exact gradient at an x: fields of the FitState there."""

    head: SolverState
    results: list[Reference[ChunkGradients]]
    summary: EpochSummary


@immutable
class GradientSum(NamedTuple):
    """A ChunkGradients without its memory."""

    total: np.ndarray
    value: float


# Largest size of the gradient memory that is sent along to the task that adds the gradient sums: the fraction
# SENT_SHARE of the data, and SENT_BYTES bytes. This saves one task for each chunk.
SENT_SHARE, SENT_BYTES = 0.05, 2**25

# Fields of a FitState that a checkpoint saves under their names.
SAVED_FIELDS = (
    "history", "next_check", "wait", "converged", "in_vain", "newton", "newton_check", "newton_wait", "newton_decrease",
    "tested",
)  # fmt: skip


def initial_state(fit: FitSetup, start: np.ndarray | None = None) -> FitState:
    """Return the state at which a fit begins.

    The given start is tried first, then the optimum of the subsample. Each is used if F is not larger there than at
    zero, or at the point within bounds nearest to zero. If none is used, the fit begins at that point. The pass at a
    given start counts as the first pass of the fit.
    """
    prepared, problem, executor = fit.prepared, fit.problem, fit.source.executor
    limits, sample = prepared.handover.take()
    rows = sum(fact.rows for fact in prepared.facts)
    head = adapt(new_solver_state(len(prepared.stats.mean), len(prepared.zero), weight=fit.weight, rows=rows), problem)
    so_far = digest("fit", fit.ids, problem.token(), len(fit.lanes))
    limited = executor.submit(_limit, head, *limits, name="saga-head")
    del limits  # otherwise the cluster keeps their tasks
    if fit.norm_at_zero and start is not None:
        x = adapt(head._replace(x=start, preconditioner_key=""), problem).x
        arrival = at_point(fit, limited, x, visits=1)
        if arrival.summary.objective <= _objective(fit, head.x):
            return _state_at(arrival, digest(so_far, x.tobytes()), sample)._replace(is_new=True)
    if fit.norm_at_zero and sample is not None:
        best = executor.submit(subsample_step, sample, head.x, prepared.gradient, problem, 0, name="saga-start")
        arrival = at_point(fit, limited, best, visits=0)
        if arrival.summary.objective <= _objective(fit, head.x):
            return _state_at(arrival, so_far, sample)
    # The gradient memory is still empty. If zero is the optimum, there will be no pass.
    [visit] = executor.gather([limited])
    summary = round_summary(fit.preconditioned, visit)
    state = FitState(visit.head, [], None, summary, frozenset(), 0, so_far, None)
    return state._replace(converged=fit.norm_at_zero == 0)


def _state_at(arrival: Arrival, so_far: str, sample: Reference[Subsample | PreconditionedProblem] | None) -> FitState:
    head, results, summary = arrival
    return FitState(head, [], [*results], summary, frozenset(), 0, so_far, sample)


def _objective(fit: FitSetup, x: np.ndarray) -> float:
    """Return F at the start without a subsample. This is zero, or the nearest point within bounds."""
    value = fit.prepared.value
    if x.any():
        references = fit.source.map(chunk_gradient, x, fit.problem, name="saga-confirm", nbytes=x.nbytes)
        value = sum(value for value, _ in fit.source.executor.gather(references))
    return value / fit.weight + penalty_value(x, fit.problem)


def at_point(fit: FitSetup, before: Any, x: Any, visits: int) -> Arrival:
    """Evaluate the exact gradient at x by one pass over all rows, and fill the gradient memory with it.

    Parameters
    ----------
    fit : FitSetup
    before : VisitResult or Reference
        Has the solver state before. Its step size, among others, is kept.
    x : ndarray of shape (k, p + 1) or Reference
    visits : int
        Number of visits that each chunk counts after this pass.

    Returns
    -------
    Arrival
    """
    source, executor = fit.source, fit.source.executor
    results = source.map(gradients_at, x, fit.problem, visits, name="saga-memory", nbytes=fit.gradient_bytes)
    sums: list[Any] = results
    if fit.all_memory_bytes > min(SENT_SHARE * sum(source.sizes), SENT_BYTES):
        sums = executor.map(_sum_of, [(one,) for one in results], name="saga-sum")
    # Gather the solver state as a value. Otherwise the cluster keeps all tasks that computed it.
    arrived = executor.submit(_arrive, fit.prepared.preconditioned, before, x, *sums, name="saga-head")
    [(head, summary)] = executor.gather([arrived])
    return Arrival(head, results, summary)


def roll_back(fit: FitSetup, state: FitState, ended: FitState) -> FitState:
    """Undo a diverging pass: return to the x before it, with the exact gradient there and shorter steps."""
    head, _ = _gather(fit, ended)
    ended = ended._replace(digest=digest(ended.digest, "roll_back"))
    return _restart(fit, ended, shortened(head, state.summary.x))


def moved(fit: FitSetup, state: FitState, x: np.ndarray) -> FitState:
    """Return the state at an x that was not reached by visits, with the exact gradient there."""
    head, _ = _gather(fit, state)
    state = state._replace(digest=digest(state.digest, "moved", x.tobytes()))
    return _restart(fit, state, restarted(head, x, head.step_multiplier))


def _restart(fit: FitSetup, state: FitState, head: SolverState) -> FitState:
    """Return the state at the x of a solver state, with the exact gradient there and an empty averaging window."""
    arrival = at_point(fit, VisitResult(head, None), head.x, len(state.history) + 1 - state.in_vain)
    return state._replace(**arrival._asdict(), visits=[], window=frozenset(), window_visits=0)


def resume(fit: FitSetup, saved: Saved, tol: float) -> FitState:
    """Return the state that a checkpoint has saved."""
    _, sample = fit.prepared.handover.take()
    results = fit.source.executor.put([StoredMemory(memory) for memory in saved.memories])
    facts = saved.facts
    fields = {name: facts[name] for name in SAVED_FIELDS if name in facts} | {"history": tuple(facts["history"])}
    if fields.get("converged") and facts["history"][-1]["gradient_norm"] > tol:  # `tol` was larger then
        fields |= {"converged": False, "next_check": 1, "wait": 1}
    summary = round_summary(fit.preconditioned, VisitResult(saved.head, None))
    return FitState(
        head=saved.head,
        visits=[],
        results=[*results],
        summary=summary._replace(objective=facts["history"][-1]["objective"]),
        window=frozenset(facts["window"]),
        window_visits=facts["count"],
        digest=facts["text"],
        sample=sample if facts.get("refines") else None,
        **fields,
    )


def to_checkpoint(fit: FitSetup, state: FitState) -> Saved:
    """Gather the state as values for a checkpoint."""
    calls = [(one,) for one in state.results or ()]
    head, memories = _gather(fit, state, fit.source.executor.map(_memory_of, calls, name="saga-gather"))
    facts = {
        "window": sorted(state.window),
        "count": state.window_visits,
        "text": state.digest,
        "refines": state.refines,
        "epoch": len(state.history),
        "seed": fit.seed,
        "n_parallel": len(fit.lanes),
    }
    return Saved(head, memories, facts | {name: getattr(state, name) for name in SAVED_FIELDS})


def _gather(fit: FitSetup, state: FitState, references: Sequence[Reference[T]] = ()) -> tuple[SolverState, list[T]]:
    """Return the solver state of a fit, and the values of more references. This is one transfer."""
    executor = fit.source.executor
    if state.head is not None:
        return state.head, executor.gather([*references])
    head = executor.submit(merge_round, fit.prepared.preconditioned, *state.visits, name="saga-head")
    both: list[Reference[Any]] = [head, *references]
    value, *values = executor.gather(both)
    return value, values


def without_lineage(fit: FitSetup, state: FitState) -> FitState:
    """Gather the state and put it on the executor again, so that the executor can release the tasks that made it.

    Nothing is done if the executor keeps no tasks, or if the values are too large.
    """
    if not fit.source.executor.cuts_lineage(fit.all_memory_bytes):
        return state
    head, memories, _ = to_checkpoint(fit, state)
    results = fit.source.executor.put([StoredMemory(memory) for memory in memories])
    return state._replace(head=head, visits=[], results=[*results])


def result(fit: FitSetup, state: FitState, *, interrupted: bool, needs_float64: bool) -> Result:
    """Return the result of a fit, with the memory of every original chunk if it fits into this process."""
    prepared, problem = fit.prepared, fit.problem
    head, memories = _with_memories(fit, state)
    if len(prepared.groups) < len(fit.ids):  # a longer step of a joined chunk may be too long for its parts
        head = head._replace(step_multiplier=min(head.step_multiplier, 1.0))
    # A subsample step leaves the window empty, but it is a complete pass. All chunks then count as visited, so the next
    # visit of a chunk begins a new pass.
    window = state.window or (range(len(prepared.groups)) if state.history else ())
    solved = SAGAState(
        head,
        prepared.stats,
        prepared.axes,
        (problem.preconditioner_key, 0.0),
        ImmutableMap(() if memories is None else zip(fit.ids, memories, strict=True)),
        ImmutableMap((fit.ids[k], False) for g in window for k in prepared.groups[g]),
        state.digest,
        fit.seed,
    )
    x, *_, step_size, diverged = state.summary
    return Result(
        solved, memories is not None, x, step_size, state.converged, diverged, interrupted, list(state.history),
        len(prepared.groups), needs_float64,
    )  # fmt: skip


def _with_memories(fit: FitSetup, state: FitState) -> tuple[SolverState, list[ChunkMemory] | None]:
    """Return the solver state and the memory of every chunk, or None if the memory does not fit."""
    executor, prepared = fit.source.executor, fit.prepared
    if not fit.can_gather_memory():
        return _gather(fit, state)[0], None
    is_joined = len(prepared.groups) < len(fit.ids)
    calls: list[tuple] = []
    for g, group in enumerate(prepared.groups):
        facts, lengths = ([values[k] for k in group] for values in (prepared.facts, prepared.lengths))
        calls.append((fit.source.held[g] if is_joined else None, facts, lengths, fit.problem))
    if state.results is None:
        head, _ = _gather(fit, state)
        memories = [_empty_memories(*call[1:]) for call in calls]
    elif is_joined or state.window:
        pairs = [(one, *call) for one, call in zip(state.results, calls, strict=True)]
        head, memories = _gather(fit, state, executor.map(_split_memory, pairs, name="saga-gather"))
    else:  # the results have no solver states, which would be transferred in vain
        head, results = _gather(fit, state, state.results)
        memories = [_split_memory(one, *call) for one, call in zip(results, calls, strict=True)]
    return head, list(itertools.chain(*memories))


# Functions that run as tasks.


def _limit(head: SolverState, *limits: np.ndarray) -> VisitResult:
    return VisitResult(head._replace(limits=np.min(limits, axis=0)), None)


def _sum_of(one: ChunkGradients) -> GradientSum:
    return GradientSum(one.total, one.value)


def _arrive(
    preconditioned: PreconditionedProblem, before: VisitResult, x: np.ndarray, *sums: ChunkGradients | GradientSum
) -> tuple[SolverState, EpochSummary]:
    with np.errstate(over="ignore", invalid="ignore"):  # after a start or a subsample step that diverges
        total = np.asarray(sum(one.total for one in sums))
    head = before.head._replace(x=x, gradient_sum=total, window_start=x)
    return head, round_summary(preconditioned, VisitResult(head, None, earlier=sum(one.value for one in sums)))


def _memory_of(one: HasMemory) -> ChunkMemory:
    return cast("ChunkMemory", one.memory)  # only a start of a round has none, and it is no result of a chunk


def _empty_memories(facts: list[ChunkMemory], lengths: list[int], problem: Problem) -> list[ChunkMemory]:
    """Return the memories of chunks that were never visited."""
    shapes = [(n, fact.gradients.shape[1]) for n, fact in zip(lengths, facts, strict=True)]
    zeros = [np.zeros(shape, problem.memory_dtype) for shape in shapes]
    return [fact._replace(gradients=zero) for fact, zero in zip(facts, zeros, strict=True)]


def _split_memory(
    one: HasMemory, chunk: Chunk, facts: list[ChunkMemory], lengths: list[int], problem: Problem
) -> list[ChunkMemory]:
    return split_memory(chunk, _memory_of(one), facts, lengths, problem)
