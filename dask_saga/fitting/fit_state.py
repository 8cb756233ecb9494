"""State of a fit between two passes, and its transfer to the executor and back.

The state holds references to solver states and gradient memories. A reference is a value in memory and a future on a
cluster.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..data.chunk import frozen
from ..data.immutable_map import ImmutableMap
from ..solver.identity import digest
from ..solver.optimality import chunk_gradient, penalty_value
from ..solver.preconditioner import row_norms
from ..solver.state import SAGAState, adapt, new_solver_state
from ..solver.step_control import restarted, shortened
from ..solver.subsample import subsample_step
from ..solver.visit import split_memory
from .checkpoint import Saved
from .preparation import gradients_at
from .rounds import VisitResult, merge_round, round_summary

if TYPE_CHECKING:
    from ..solver.preconditioner import Preconditioner
    from ..solver.problem import Problem
    from ..solver.state import ChunkMemory, SolverState
    from .chunk_source import Source
    from .preparation import ChunkGradients, Prepared
    from .rounds import EpochSummary

__all__ = [
    "FitSetup",
    "FitState",
    "Result",
    "arrived",
    "initial_state",
    "moved",
    "result",
    "resume",
    "roll_back",
    "to_checkpoint",
    "without_lineage",
]


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
    needs_float64: bool = False  # whether a float32 gradient memory is not accurate enough for `tol`


class FitSetup(NamedTuple):
    """Values that are the same in every pass."""

    source: Source
    prepared: Prepared
    problem: Problem
    ids: list
    weight: float
    seed: int
    parts: list[range]
    norms: list  # cache of ``row_norms``

    def memory_bytes(self, rows: int) -> int:
        """Return the size, in bytes, of the gradient memory of `rows` rows."""
        return rows * len(self.prepared.zero) * np.dtype(self.problem.memory_dtype).itemsize

    def has_room(self) -> bool:
        """Return whether the gradient memory of all chunks fits into this process."""
        return self.source.executor.can_gather(self.memory_bytes(sum(self.prepared.lengths)))

    def remembered_bytes(self) -> int:
        """Return the size, in bytes, of the ``gradients_at`` of the largest chunk: its memory and its gradient sum."""
        return self.memory_bytes(max(self.prepared.lengths)) + self.prepared.zero.nbytes

    def row_norms(self) -> list:
        """Return a reference to the row norms of each group, or None if chunks are not held.

        The norms are computed at the first call.
        """
        if not self.norms:
            held, asked = self.source.holds, (self.prepared.metric, self.problem)
            there = (
                self.source.map(row_norms, *asked, name="saga-norms") if held else [None] * len(self.prepared.groups)
            )
            self.norms.extend(there)
        return self.norms


class FitState(NamedTuple):
    """State of a fit after a complete pass: references to values on the executor, and values of this process.

    ``wait`` is the number of passes between a failed test for convergence and the next one. ``newton_wait`` is the same
    for Newton steps that are tried after slow passes.
    """

    visits: list  # results of the last round
    own: list  # last result of each group
    summary: EpochSummary
    window: frozenset
    count: int
    text: str
    history: tuple = ()
    next_check: int = 1  # first epoch at which convergence may be tested again
    wait: int = 1
    converged: bool = False
    refines: bool = False  # whether the next pass is a subsample step
    in_vain: int = 0  # number of passes whose step was rejected
    is_new: bool = False  # whether the first pass was made at the given start, and is not yet in the history
    newton: int = 0  # if not zero, the next pass is a Newton step, and H may cost as much as this many passes
    newton_check: int = 0  # first epoch at which slow passes may lead to a Newton step
    newton_wait: int = 1
    newton_decrease: float = math.inf  # decrease that the last Newton step promised; inf if the last pass was none
    step: Any = None  # the next Newton step, if it is already known


# Largest size of the gradient memory that is sent along to the task that adds the gradient sums: the fraction TRAVELS
# of the data, and MOST_TRAVELS bytes. This saves one task for each chunk.
TRAVELS, MOST_TRAVELS = 0.05, 2**25

# Fields of a FitState that a checkpoint saves in addition to the solver state and the memories.
FACTS = (
    "window", "count", "text", "history", "next_check", "wait", "converged", "refines", "in_vain", "newton",
    "newton_check", "newton_wait", "newton_decrease",
)  # fmt: skip


def initial_state(fit: FitSetup, at_zero: float, start: np.ndarray | None = None) -> FitState:
    """Return the state at which a fit begins.

    The given start is tried first, then the optimum of the subsample. Each is used if F is not larger there than at
    zero, or at the point within bounds nearest to zero. If none is used, the fit begins at that point. The pass at a
    given start counts as the first pass of the fit.
    """
    prepared, problem, executor = fit.prepared, fit.problem, fit.source.executor
    rows = sum(fact.rows for fact in prepared.facts)
    head = adapt(new_solver_state(len(prepared.stats.mean), len(prepared.zero), weight=fit.weight, rows=rows), problem)
    text = digest("fit", fit.ids, problem.token(), len(fit.parts))
    limited = executor.submit(_limited, head, *prepared.limits, name="saga-head")
    there = FitState([limited], [None] * len(prepared.groups), None, frozenset(), 0, text)
    prepared.limits.clear()  # otherwise the cluster keeps the tasks of the limits
    if at_zero and start is not None:
        x = adapt(head._replace(x=start, preconditioner_key=""), problem).x
        text = digest(text, x.tobytes())
        led = _at_point(fit, there._replace(text=text, is_new=True), x, 1)
        if led.summary.objective <= _objective(fit, head.x):
            return led
    if at_zero and prepared.sample:
        x = executor.submit(
            subsample_step, prepared.sample[0], head.x, prepared.gradient, problem, 0, name="saga-start"
        )
        led = _at_point(fit, there, x, 0)
        if led.summary.objective <= _objective(fit, head.x):
            return led
        prepared.sample.clear()
    # The gradient memory is still empty. If zero is the optimum, there will be no pass.
    visits = executor.gather([limited])
    summary = round_summary(problem, prepared.axes, *visits)
    return there._replace(visits=visits, summary=summary, converged=at_zero == 0)


def _at_point(fit: FitSetup, place: FitState, x: Any, visits: int) -> FitState:
    """Fill the gradient memory at x by one pass over all rows, and return the state there.

    x is a reference. `visits` is the number of visits that each chunk then counts.
    """
    own = fit.source.map(gradients_at, x, fit.problem, visits, name="saga-memory", nbytes=fit.remembered_bytes())
    return arrived(fit, place._replace(own=own, refines=bool(fit.prepared.sample)), x)


def _objective(fit: FitSetup, x: np.ndarray) -> float:
    """Return F at the start without a subsample. This is zero, or the nearest point within bounds."""
    value = fit.prepared.value
    if x.any():
        told = fit.source.map(chunk_gradient, x, fit.problem, name="saga-confirm", nbytes=x.nbytes)
        sums = fit.source.executor.gather(told)
        value = sum(value for value, _ in sums)
    return value / fit.weight + penalty_value(x, fit.problem)


def arrived(fit: FitSetup, place: FitState, x: Any) -> FitState:
    """Return the state at x with its solver state and summary. ``place.own`` has the gradients of all chunks at x.

    x is a reference.
    """
    executor, told, [before] = fit.source.executor, place.own, place.visits
    memory = fit.memory_bytes(sum(fit.prepared.lengths))
    if memory > min(TRAVELS * sum(fit.source.sizes), MOST_TRAVELS):
        told = executor.map(_told, [(one,) for one in told], name="saga-sum")
    # Gather the solver state as a value. Otherwise the cluster keeps all tasks that led to it.
    calls = (fit.problem, fit.prepared.metric, before, x, *told)
    [(head, summary)] = executor.gather([executor.submit(_arrived, *calls, name="saga-head")])
    return place._replace(visits=[head], summary=summary)


def roll_back(fit: FitSetup, place: FitState, ended: FitState) -> FitState:
    """Undo a diverging pass: return to the x before it, with the exact gradient there and shorter steps."""
    [head] = fit.source.executor.gather([_head(fit, ended)])
    text = digest(ended.text, "roll_back")
    return _filled(fit, ended._replace(text=text), shortened(head, place.summary.x))


def moved(fit: FitSetup, place: FitState, x: np.ndarray) -> FitState:
    """Return the state at an x that was not reached by visits, with the exact gradient there."""
    [head] = fit.source.executor.gather([_head(fit, place)])
    text = digest(place.text, "moved", x.tobytes())
    return _filled(fit, place._replace(text=text), restarted(head, x, head.step_multiplier))


def _filled(fit: FitSetup, place: FitState, head: SolverState) -> FitState:
    """Fill the gradient memory at the x of a solver state by one pass over all rows, and return the state there."""
    there = place._replace(visits=[VisitResult(head, None)], window=frozenset(), count=0)
    return _at_point(fit, there, head.x, len(place.history) + 1)


def resume(fit: FitSetup, saved: Saved, tol: float) -> FitState:
    """Return the state that a checkpoint has saved."""
    start = VisitResult(saved.head, None)
    own = fit.source.executor.put([VisitResult(None, memory) for memory in saved.memories])
    facts = {name: saved.facts.get(name, FitState._field_defaults.get(name)) for name in FACTS}
    facts["window"], facts["history"] = frozenset(facts["window"]), tuple(facts["history"])
    if facts["converged"] and facts["history"][-1]["gradient_norm"] > tol:  # `tol` was larger then
        facts |= {"converged": False, "next_check": 1, "wait": 1}
    if not facts["refines"]:
        fit.prepared.sample.clear()
    summary = round_summary(fit.problem, fit.prepared.axes, start)
    summary = summary._replace(objective=facts["history"][-1]["objective"])
    return FitState([start], own, summary, **facts)


def to_checkpoint(fit: FitSetup, place: FitState) -> Saved:
    """Gather the state as values for a checkpoint."""
    executor = fit.source.executor
    memories = executor.map(_second, [(pair,) for pair in place.own], name="saga-gather")
    head, *memories = executor.gather([_head(fit, place), *memories])
    facts = {name: getattr(place, name) for name in FACTS}
    facts["window"] = sorted(place.window)
    return Saved(head, memories, {**facts, "epoch": len(place.history), "seed": fit.seed, "n_parallel": len(fit.parts)})


def _head(fit: FitSetup, place: FitState) -> Any:
    if isinstance(place.visits[0], VisitResult):  # the values are in this process
        return merge_round(fit.problem, fit.prepared.axes, *place.visits)
    return fit.source.executor.submit(merge_round, fit.problem, fit.prepared.metric, *place.visits, name="saga-head")


def without_lineage(fit: FitSetup, place: FitState) -> FitState:
    """Gather the state and put it on the executor again, so that the executor can release the tasks that made it.

    Nothing is done if the executor keeps no tasks, or if the values are too large.
    """
    if not fit.source.executor.cuts_lineage(fit.memory_bytes(sum(fit.prepared.lengths))):
        return place
    head, memories, _ = to_checkpoint(fit, place)
    own = fit.source.executor.put([VisitResult(None, memory) for memory in memories])
    return place._replace(visits=[VisitResult(head, None)], own=own)


def result(fit: FitSetup, place: FitState, interrupted: bool) -> Result:
    """Return the result of a fit, with the memory of every original chunk if it fits into this process."""
    prepared, problem = fit.prepared, fit.problem
    head, memories = _with_memories(fit, place)
    if len(prepared.groups) < len(fit.ids):  # a longer step of a joined chunk may be too long for its parts
        head = head._replace(step_multiplier=min(head.step_multiplier, 1.0))
    # A subsample step leaves the window empty, but it is a complete pass. All chunks then count as visited, so the next
    # visit of a chunk begins a new pass.
    window = place.window or (range(len(prepared.groups)) if place.history else ())
    state = SAGAState(
        head,
        prepared.stats,
        prepared.axes,
        (problem.preconditioner_key, 0.0),
        ImmutableMap(() if memories is None else zip(fit.ids, memories, strict=True)),
        ImmutableMap((fit.ids[k], False) for g in window for k in prepared.groups[g]),
        place.text,
        fit.seed,
    )
    x, *_, step_size, diverged = place.summary
    return Result(
        state, memories is not None, x, step_size, place.converged, diverged, interrupted, list(place.history),
        len(prepared.groups),
    )  # fmt: skip


def _with_memories(fit: FitSetup, place: FitState) -> tuple[SolverState, list[ChunkMemory] | None]:
    """Return the solver state and the memory of every chunk, or None if the memory does not fit."""
    executor, prepared, problem = fit.source.executor, fit.prepared, fit.problem
    if not fit.has_room():
        return executor.gather([_head(fit, place)])[0], None
    calls, apart = [], len(prepared.groups) == len(fit.ids)
    alone = apart and not place.window  # `own` then holds memories without solver states
    there = executor.gather(place.own) if alone else place.own
    for g, group in enumerate(prepared.groups):
        facts, lengths = ([known[k] for k in group] for known in (prepared.facts, prepared.lengths))
        calls.append((None if apart else fit.source.held[g], there[g], facts, lengths, problem))
    if alone:
        head, memories = _head(fit, place), [_memories(*call) for call in calls]
    else:
        head, *memories = executor.gather([_head(fit, place), *executor.map(_memories, calls, name="saga-gather")])
    return head, list(itertools.chain(*memories))


# Tasks other than those of the rounds.


def _limited(head: SolverState, *limits: np.ndarray) -> VisitResult:
    return VisitResult(head._replace(limits=frozen(np.min(limits, axis=0))), None)


def _told(one: ChunkGradients) -> ChunkGradients:
    return one._replace(memory=None)


def _arrived(
    problem: Problem, metric: Preconditioner, before: VisitResult, x: np.ndarray, *told: ChunkGradients
) -> tuple[VisitResult, EpochSummary]:
    with np.errstate(over="ignore", invalid="ignore"):  # after a start or a subsample step that diverges
        total = sum(one.total for one in told)
    head = before.head._replace(x=x, gradient_sum=frozen(total), window_start=x)
    there = VisitResult(head, None, earlier=sum(one.value for one in told))
    return there, round_summary(problem, metric, there)


def _second(pair: tuple) -> Any:
    return pair[1]


def _memories(chunk, own, facts, lengths, problem) -> list[ChunkMemory]:
    if own is None:  # no pass was made
        zeros = [
            np.zeros((n, fact.gradients.shape[1]), problem.memory_dtype) for n, fact in zip(lengths, facts, strict=True)
        ]
        return [fact._replace(gradients=frozen(zero)) for fact, zero in zip(facts, zeros, strict=True)]
    return split_memory(chunk, own[1], facts, lengths, problem)
