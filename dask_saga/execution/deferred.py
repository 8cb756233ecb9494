"""What a task makes for itself of its arguments: a cluster takes some milliseconds for each task of their own."""

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

__all__ = ["DeferredCall", "block_recipes", "call", "evaluate", "evaluate_inner", "persisted_blocks"]


class DeferredCall:
    """A call that is made inside the task that gets it. Dask does not look into it for tasks, as it would into tuples.

    Parameters
    ----------
    function : callable
    *args : object
        Recipes among them are made first.
    """

    def __init__(self, function: Callable, *args: Any):
        self.function, self.args = function, args


def call(function: Callable, *args: Any) -> Any:
    """``function(*args)``, of recipes what they make."""
    return function(*evaluate(args))


def evaluate(args: Iterable) -> list:
    """The arguments, instead of recipes what they make."""
    return [call(arg.function, *arg.args) if isinstance(arg, DeferredCall) else arg for arg in args]


def evaluate_inner(args: Iterable) -> list:
    """The arguments, instead of recipes such that need no others."""
    return [DeferredCall(arg.function, *evaluate(arg.args)) if isinstance(arg, DeferredCall) else arg for arg in args]


def persisted_blocks(blocks: list, client: Any) -> list | None:
    """Blocks, as tuples, whose lazy parts are all futures of this client already, with these; None if one is not."""
    wholes: dict[int, dict] = {}
    found = []
    for block in blocks:
        if isinstance(block, Delayed):
            return None
        parts = []
        for part in block:
            if is_dask_collection(part):
                if id(part.dask) not in wholes:  # all blocks of a collection have the same
                    wholes[id(part.dask)] = ensure_dict(part.dask)
                part = wholes[id(part.dask)].get(part.key)
                if not isinstance(part, Future) or part.client is not client:  # one that came with a task has none
                    return None
            parts.append(part)
        found.append(tuple(parts))
    return found


def block_recipes(blocks: list) -> list:
    """Lazy blocks as recipes; as they are if one needs what is on a cluster, or what another one needs as well.

    Tasks of several blocks would run for each of them, and those with annotations wherever it is.

    Parameters
    ----------
    blocks : list
        Each Delayed, or a tuple of which parts may be.
    """
    wholes, recipes, counts = {}, [], Counter()
    for block in blocks:
        parts, graph = [block] if isinstance(block, Delayed) else block, {}
        keys = {k: part.key for k, part in enumerate(parts) if is_dask_collection(part)}
        for k, key in keys.items():
            whole = parts[k].dask
            if id(whole) not in wholes:  # all blocks of a collection have the same
                if any(layer.annotations for layer in getattr(whole, "layers", {}).values()):
                    return blocks
                wholes[id(whole)] = ensure_dict(whole)
            if key not in wholes[id(whole)]:
                return blocks
            graph.update(cull(wholes[id(whole)], key)[0])
        if futures_of(list(graph.values())) or not _is_closed(graph):
            return blocks
        counts.update(graph.keys())
        known = [None if k in keys else part for k, part in enumerate(parts)]
        recipe = DeferredCall(_make_parts, graph, keys, known)
        recipes.append(DeferredCall(_first, recipe) if isinstance(block, Delayed) else recipe)
    return blocks if max(counts.values(), default=1) > 1 else recipes


def _is_closed(graph: dict) -> bool:
    """Whether no task waits for one that is not among them."""
    return all(key in graph for task in graph.values() for key in getattr(task, "dependencies", ()))


def _make_parts(graph: dict, keys: dict, known: list) -> tuple:
    parts = dict(zip(keys, dask.get(graph, list(keys.values())), strict=True))
    return tuple(parts.get(k, part) for k, part in enumerate(known))


def _first(parts: tuple) -> Any:
    return parts[0]
