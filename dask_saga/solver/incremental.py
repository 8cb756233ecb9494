"""Transitions of a state in a stream of chunks: learn a chunk that arrives (``partial_fit``), or forget one."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, cast

import numpy as np

from ..data.immutable_map import ImmutableMap
from ..data.statistics import column_stats, merge, typical, without
from .averaging import begin_pass, leave_pass, open_window, stream_window_is_due, window_is_due
from .curvature import new_curvature, uses_curvature, without_model
from .curvature_visit import curvature_visit
from .identity import digest, visit_seed
from .optimality import weighted_sum
from .preconditioned_problem import PreconditionedProblem
from .preconditioner import Preconditioner
from .preconditioner_choice import STALE, axis_limits, choose_preconditioner, staleness
from .state import SAGAState
from .step_rule import STEP_RULE
from .visit import chunk_saga, visit_digest

if TYPE_CHECKING:
    from ..data.chunk import Chunk
    from ..data.statistics import ColumnStats
    from .curvature import ChunkCurvature
    from .problem import Problem
    from .state import ChunkMemory

__all__ = ["counted_stats", "forget", "is_other", "last_of", "learn", "visit"]


def learn(
    state: SAGAState, chunk: Chunk, problem: Problem, *, chunk_id: Hashable = None, replace: bool = False
) -> tuple[SAGAState, Hashable]:
    """Make one visit of a chunk, which may be new, known, or replace the chunk with the same id.

    Parameters
    ----------
    state : SAGAState
    chunk : Chunk
    problem : Problem
    chunk_id : hashable, default=None
        By default the id is derived from the content.
    replace : bool, default=False
        Whether to forget the known chunk first if its content differs.

    Returns
    -------
    state : SAGAState
    chunk_id : hashable

    Raises
    ------
    ValueError
        If the id is known with other content and `replace` is False, or if replacing needs the old data.
    """
    key = anonymous_id(state, chunk.content) if chunk_id is None else chunk_id
    known = state.chunks.get(key)
    if known is not None and not is_other(chunk, known):
        chunk = chunk._replace(content=known.content)
    elif known is not None:
        if not replace:
            raise ValueError(
                f"chunk_id={chunk_id!r} is known with other content; give new content a new chunk_id, or "
                "none, or replace=True"
            )
        if known.total is None:
            raise ValueError(
                f"chunk_id={chunk_id!r} has so few rows that replace=True needs its old data: first "
                f"forget({chunk_id!r}, X_old, y_old), then partial_fit with the new"
            )
        state = forget(state, key, problem)
    return visit(state, key, chunk, problem), key


def is_other(chunk: Chunk, known: ChunkMemory) -> bool:
    """Whether a chunk differs from the known one.

    Hashes of the content are compared. If one of them is "" because it was not computed, the numbers of rows are.
    """
    if chunk.content and known.content:
        return chunk.content != known.content
    return len(chunk.targets) != len(known.gradients)


def forget(state: SAGAState, chunk_id: Hashable, problem: Problem, chunk: Chunk | None = None) -> SAGAState:
    """Remove one chunk from a state: its gradient memory, and its part of all sums.

    x does not change. It moves at the next visit of another chunk.

    Parameters
    ----------
    state : SAGAState
    chunk_id : str, int or tuple
        Key of ``state.chunks``.
    problem : Problem
    chunk : Chunk, default=None
        Data of the chunk. They are required if its memory has no ``total``. The column statistics of the chunk,
        from its memory or from these data, are subtracted from those of all chunks. Without both the chunk is
        assumed to have the statistics of all rows.

    Returns
    -------
    SAGAState

    Raises
    ------
    ValueError
        If the chunk is unknown, or if its data are required and not given.
    """
    memory = state.chunks.get(chunk_id)
    if memory is None:
        raise ValueError(f"chunk_id={chunk_id!r} is not known; known are the keys of state_.chunks")
    total = memory.total
    if total is None:
        if chunk is None:
            raise ValueError(
                f"chunk_id={chunk_id!r} has so few rows that their sum of gradients was not kept; "
                "give its data as well: forget(chunk_id, X, y)"
            )
        total = weighted_sum(chunk.rows, memory.gradients.astype(float), problem)
    # The Hessian of weighted rows cannot be computed again, because the weights are not known.
    known = chunk is not None and chunk.weights_content == memory.weights_content
    state = _without_own_model(state, memory, chunk if known else None, problem)
    stats, head = without(state.stats, counted_stats(memory, chunk, state.stats, problem)), state.head
    rows, weight, left = head.rows - memory.rows, head.weight - memory.weight, head.gradient_sum - total
    if not rows:  # set the sums to exactly zero, without rounding errors
        weight, left = 0.0, np.zeros_like(left)
    preconditioner_key, stale = state.preconditioner_for
    return state._replace(
        head=leave_pass(head)._replace(gradient_sum=left, weight=weight, rows=rows, diverged=False),
        stats=stats,
        preconditioner_for=(preconditioner_key, stale + staleness(state.stats, stats, problem)),
        chunks=state.chunks.without(chunk_id),
        window_ids=state.window_ids.without(chunk_id),
        digest=digest(state.digest, "forget", chunk_id),
    )


def last_of(state: SAGAState, content: str) -> Hashable | None:
    """Return the id of the last chunk with this content that came without an id, or None if there is none."""
    occurrence = 0
    while (content, occurrence) in state.chunks:
        occurrence += 1
    return (content, occurrence - 1) if occurrence else None


def anonymous_id(state: SAGAState, content: str) -> Hashable:
    """Return the id of a chunk that came without one.

    If chunks of equal content are known, it is the id of the least visited of them. Otherwise it is a new id.
    """
    same, occurrence = [], 0
    while (content, occurrence) in state.chunks:
        same.append((content, occurrence))
        occurrence += 1
    return min(same, key=lambda key: state.chunks[key].visits) if same else (content, 0)


def _stats_pay(memory: ChunkMemory) -> bool:
    """Whether the column statistics (49 bytes per column) and ``total`` are small compared with the gradients."""
    return memory.total is not None and memory.total.nbytes + 49 * memory.total.shape[1] <= memory.gradients.nbytes / 4


def visit(state: SAGAState, chunk_id: Hashable, chunk: Chunk, problem: Problem) -> SAGAState:
    """Make one visit of a chunk in a stream, and update statistics, preconditioner and averaging window.

    Parameters
    ----------
    state : SAGAState
    chunk_id : hashable
        Known or new id.
    chunk : Chunk
    problem : Problem

    Returns
    -------
    SAGAState

    Raises
    ------
    ValueError
        If the id is known with other content.
    """
    memory, (preconditioner_key, stale) = state.chunks.get(chunk_id), state.preconditioner_for
    stats, own, is_first = state.stats, None, True
    takes_curvature = uses_curvature(problem, chunk, len(state.head.x)) and not _lacks_models(state, memory, chunk)
    if memory is not None and memory.curvature is not None:
        known = memory.weights_content == chunk.weights_content  # a Hessian is recomputed with the former weights
        state = _without_own_model(state, memory, chunk if known else None, problem)
        is_first, memory = state.curvature is None, memory._replace(curvature=None)
        state = state._replace(chunks=state.chunks.set(chunk_id, memory))
    if memory is None or memory.weights_content != chunk.weights_content:
        # Curvature needs no products of columns, which choose a rotation.
        own = column_stats(chunk, problem._replace(precondition=problem.precondition and not takes_curvature))
        stats = merge(stats if memory is None else without(stats, counted_stats(memory, chunk, stats, problem)), own)
        stale += staleness(state.stats, stats, problem)
    head, axes = state.head, state.metric
    if axes is None or preconditioner_key != problem.preconditioner_key or stale > STALE:
        axes, stale = choose_preconditioner(stats, problem), 0.0
        head = head._replace(limits=np.full(len(axes.scale), np.inf))
    if own is not None:
        head = head._replace(limits=np.minimum(head.limits, axis_limits(own, PreconditionedProblem(problem, axes))))
    state = state._replace(
        head=head, stats=stats, metric=axes, preconditioner_for=(problem.preconditioner_key, stale),
    )  # fmt: skip
    visited = None
    if takes_curvature:
        visited = _visit_with_curvature(state, memory, chunk, problem, is_first)
    state, after = visited or _visit_with_steps(state, chunk_id, memory, chunk, problem)
    if own is not None:
        after = after._replace(stats=own._replace(products=None) if _stats_pay(after) else None)
    return state._replace(
        chunks=state.chunks.set(chunk_id, after),
        window_ids=state.window_ids.set(chunk_id, memory is None or memory.visits == 0),
        digest=visit_digest(state.digest, chunk_id, after, problem),
    )


# A visit uses curvature only if the weight of other chunks without a model is at most LACKING_FOR_NEW times the weight
# with models, the chunk's own included. For a chunk that comes back the factor is LACKING_FOR_KNOWN. It has no limit if
# the chunk has ROWS_TO_GUESS rows per column, because its Hessian is then a good guess for those of the others.
LACKING_FOR_NEW, LACKING_FOR_KNOWN, ROWS_TO_GUESS = 1.0, 8.0, 20


def _lacks_models(state: SAGAState, memory: ChunkMemory | None, chunk: Chunk) -> bool:
    """Return whether so many chunks have no model that a visit would rest on guessed curvature.

    These are chunks of a ``fit``, chunks of few rows, or all chunks after models were dropped.
    """
    if memory is not None and len(chunk.targets) >= ROWS_TO_GUESS * (chunk.rows.shape[1] + 1):
        return False
    own, whole = 0.0 if memory is None else memory.weight, state.curvature
    with_models = 0.0 if whole is None else whole.weight
    if whole is not None and memory is not None and memory.curvature is not None:
        with_models -= own
    lacking = state.head.weight - own - with_models
    return lacking > (LACKING_FOR_NEW if memory is None else LACKING_FOR_KNOWN) * (with_models + chunk.weight)


def _without_own_model(state: SAGAState, memory: ChunkMemory, chunk: Chunk | None, problem: Problem) -> SAGAState:
    """Subtract the model of a chunk. If this is impossible, drop all models.

    Pass None for `chunk` unless its rows and the weights that it had are known.
    """
    if state.curvature is None or memory.curvature is None:
        return state

    def others() -> list[ChunkCurvature]:
        models = (one.curvature for one in state.chunks.values())
        return [one for one in models if one is not None and one is not memory.curvature]

    with np.errstate(all="ignore"):
        left = without_model(state.curvature, memory.curvature, chunk, problem, others)
    return _without_models(state) if left is None else state._replace(curvature=left)


def _without_models(state: SAGAState) -> SAGAState:
    """Return the state without the quadratic models. Later visits create new ones (``_lacks_models``)."""
    chunks = ImmutableMap((key, memory._replace(curvature=None)) for key, memory in state.chunks.items())
    return state._replace(chunks=chunks, curvature=None)


def _visit_with_curvature(
    state: SAGAState, memory: ChunkMemory | None, chunk: Chunk, problem: Problem, is_first: bool
) -> tuple[SAGAState, ChunkMemory] | None:
    """Make the visit with curvature. Return None if a number was not finite: the visit then takes SAGA steps."""
    if state.curvature is not None and state.curvature.key != problem.loss_key:
        state = _without_models(state)
    others = state.curvature or new_curvature(problem, len(state.head.x), chunk, state.stats)
    visited = curvature_visit(chunk, state.head, memory, others, problem, is_first)
    if visited is None:
        return None
    head, memory, whole = visited
    return state._replace(head=head, curvature=whole, window_ids=ImmutableMap()), memory


def _visit_with_steps(
    state: SAGAState, chunk_id: Hashable, memory: ChunkMemory | None, chunk: Chunk, problem: Problem
) -> tuple[SAGAState, ChunkMemory]:
    """Make the visit by SAGA steps."""
    head, window_ids = state.head, state.window_ids
    visits, known = memory.visits if memory else 0, len(state.chunks)
    preconditioner = cast(Preconditioner, state.metric)  # ``visit`` has chosen one
    if problem.average:
        # A new chunk may differ much from the others, so limit its step by its share of the rows at first. The steps of
        # a few rows move x by less than a whole visit may, so their limit is larger.
        rows = len(chunk.targets)
        share = rows / max(state.stats.rows, 1) / min(STEP_RULE.default_scale * rows, 1.0)
        factor = min(preconditioner.step_factor, share * STEP_RULE.trust_growth ** min(visits, 99))
        preconditioner = preconditioner._replace(step_factor=factor)
    preconditioned = PreconditionedProblem(problem, preconditioner)
    returns = window_is_due(chunk_id, window_ids, known, head.window_count)
    if returns or stream_window_is_due(window_ids, known, head.window_count, first=memory is None):
        head, window_ids, returns = open_window(head, preconditioned), ImmutableMap(), memory is not None
    if returns:
        head = begin_pass(head)
    elif chunk_id in window_ids or (memory is None and known):
        head = leave_pass(head)
    head, memory = chunk_saga(chunk, head, memory, *preconditioned, visit_seed(state.seed, chunk_id, visits))
    return state._replace(head=head, window_ids=window_ids), memory


def counted_stats(memory: ChunkMemory, chunk: Chunk | None, whole: ColumnStats, problem: Problem) -> ColumnStats:
    """Return the part of a chunk in the statistics of all chunks, in order to subtract it.

    Parameters
    ----------
    memory : ChunkMemory
    chunk : Chunk or None
        Data of the chunk, if available.
    whole : ColumnStats
        Statistics of all chunks. They are used, scaled to the chunk's number of rows, if neither `chunk` nor
        ``memory.stats`` is available.
    problem : Problem

    Returns
    -------
    ColumnStats
    """
    if memory.stats is not None and (chunk is None or memory.weights_content):
        return memory.stats
    if chunk is None:
        return typical(whole, memory.rows)
    stats = column_stats(chunk._replace(weights=np.empty(0)), problem)  # only the sum of the old weights is known
    factor = memory.weight / stats.weight
    return stats._replace(
        rows=memory.rows,
        weight=memory.weight,
        squares=stats.squares * factor,
        cross=stats.cross * factor,
        products=None if stats.products is None else stats.products * factor,
    )
