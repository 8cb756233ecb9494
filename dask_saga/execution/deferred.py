"""Deferred calls: arguments that a task evaluates itself.

A separate task for each argument would cost the cluster some milliseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import dask
from dask import is_dask_collection
from dask.delayed import Delayed
from dask.optimization import cull
from dask.utils import ensure_dict
from distributed import Future
from distributed.client import futures_of

__all__ = ["DeferredCall", "call", "defer_blocks", "evaluate", "evaluate_inner", "persisted_blocks"]


class DeferredCall:
    """A function call that is evaluated inside the task that receives it.

    It is a class and not a tuple, because Dask searches tuples for tasks.

    Parameters
    ----------
    function : callable
        Function to call.
    *args : object
        Its arguments. Those that are deferred calls are evaluated first.
    """

    def __init__(self, function: Callable, *args: Any):
        self.function, self.args = function, args


def call(function: Callable, *args: Any) -> Any:
    """Return ``function(*args)``, where deferred calls among the arguments are evaluated first."""
    return function(*evaluate(args))


def evaluate(args: Iterable) -> list:
    """Return the arguments, with each deferred call replaced by its result."""
    return [call(arg.function, *arg.args) if isinstance(arg, DeferredCall) else arg for arg in args]


def evaluate_inner(args: Iterable) -> list:
    """Evaluate only the deferred calls inside deferred calls.

    In the returned arguments, each deferred call has plain arguments.
    """
    return [DeferredCall(arg.function, *evaluate(arg.args)) if isinstance(arg, DeferredCall) else arg for arg in args]


def persisted_blocks(blocks: list, client: Any) -> list | None:
    """Replace the lazy parts of blocks by the futures of this client that hold them.

    Return the blocks as tuples, or None if any lazy part is not persisted on this client.
    """
    wholes: dict[int, dict] = {}
    found = []
    for block in blocks:
        if isinstance(block, Delayed):
            return None
        parts = []
        for part in block:
            if is_dask_collection(part):
                if id(part.dask) not in wholes:  # all blocks of a collection share one graph
                    wholes[id(part.dask)] = ensure_dict(part.dask)
                part = wholes[id(part.dask)].get(part.key)
                if not isinstance(part, Future) or part.client is not client:  # one sent with a task has no client
                    return None
            parts.append(part)
        found.append(tuple(parts))
    return found


def defer_blocks(blocks: list) -> list:
    """Convert lazy blocks to deferred calls that run the Dask graph of a block inside one task.

    The blocks are returned unchanged if this would be wrong or wasteful:

    - A graph contains futures, or needs a task that is not in the graph.
    - Two blocks share a task, which would then run once for each of them.
    - A layer has annotations, such as the workers to use, which a deferred call would ignore.

    Parameters
    ----------
    blocks : list
        Each block is a Delayed, or a tuple whose parts may be lazy.

    Returns
    -------
    list
        A DeferredCall for each block, or `blocks`.
    """
    wholes: dict[int, dict] = {}
    deferred, counts = [], Counter[Any]()
    for block in blocks:
        parts, graph = [block] if isinstance(block, Delayed) else block, {}
        keys = {k: part.key for k, part in enumerate(parts) if is_dask_collection(part)}
        for k, key in keys.items():
            whole = parts[k].dask
            if id(whole) not in wholes:  # all blocks of a collection share one graph
                if any(layer.annotations for layer in getattr(whole, "layers", {}).values()):
                    return blocks
                wholes[id(whole)] = ensure_dict(whole)
            if key not in wholes[id(whole)]:
                return blocks
            graph.update(cull(wholes[id(whole)], key)[0])
        if futures_of(list(graph.values())) or not _is_closed(graph):
            return blocks
        counts.update(graph.keys())
        values = [None if k in keys else part for k, part in enumerate(parts)]
        made = DeferredCall(_make_parts, graph, keys, values)
        deferred.append(DeferredCall(_first, made) if isinstance(block, Delayed) else made)
    return blocks if max(counts.values(), default=1) > 1 else deferred


def _is_closed(graph: dict) -> bool:
    """Return whether the graph contains all dependencies of its tasks."""
    return all(key in graph for task in graph.values() for key in getattr(task, "dependencies", ()))


def _make_parts(graph: dict, keys: dict, values: list) -> tuple:
    """Compute the lazy parts, whose keys are given by number, and take the others from `values`."""
    parts = dict(zip(keys, dask.get(graph, list(keys.values())), strict=True))
    return tuple(parts.get(k, value) for k, value in enumerate(values))


def _first(parts: tuple) -> Any:
    return parts[0]
