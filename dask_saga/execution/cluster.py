"""Tasks on a client's cluster: how few messages and tasks carry many calls, and where each of them runs."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import itertools
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from dask import delayed, is_dask_collection
from distributed import Future, get_worker, rejoin, secede, wait
from distributed.client import futures_of
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.system import MEMORY_LIMIT

from .deferred import DeferredCall, block_recipes, call, evaluate, evaluate_inner, persisted_blocks
from .threads import even_slices

__all__ = ["ClientExecutor"]


# Tasks on a cluster that may wait for a chunk which is loaded for them.
TASKS_AHEAD = 4

# A client takes no more than this share of the memory that its process may have.
GATHERED_SHARE = 0.5

# The most that is put on the scheduler at once.
PUT_BYTES = 2**26

# Tasks whose results take room: they are let go of at once.
LARGE = ("saga-read", "saga-chunk")

# Calls that one task makes at most, as what wants one of their results gets all.
GROUPED = 16

# A worker reads no block ahead that would take it beyond this share of its memory, where it begins to spill.
ROOM_SHARE = 0.7

# What a whole pass waits for; the next pass may have begun by then.
URGENT = ("saga-summary", "saga-confirm", "saga-gather", "saga-head")


class _Wishes(SchedulerPlugin):
    """Makes the scheduler forget a task's wish for workers while there are none at all.

    It would wait for the worker that is lost, though others are allowed, and give the task to no new one.
    """

    name, idempotent = "saga-wishes", True

    async def start(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if finish == "no-worker" and self.scheduler.tasks[key].loose_restrictions:
            self.scheduler.tasks[key].worker_restrictions = set()


class Part:
    """Reference to one result of a task that has several. Not a tuple, in which Dask would look for tasks."""

    def __init__(self, future: Future, number: int):
        self.future, self.number = future, number


class ClientExecutor:
    """Runs tasks on a cluster; references are futures, and parts of futures."""

    goes_ahead = True

    def __init__(self, client: Any):
        self.client = client
        self.working: deque = deque()
        self.homes: dict = {}  # of what lies on the cluster, by key
        # Futures of the tasks since the last gathering, and of those before it. A client sends no message within 10 ms
        # of another, and to let go of a future is one: it must not come just before the next tasks.
        self.kept: deque = deque([[]], maxlen=2)
        self.has_gathered = False
        self.places: list[dict] = []
        self.token, self.count = uuid.uuid4().hex, itertools.count()

    def threads(self) -> int:
        return sum(self.client.nthreads().values()) or 1

    def divide(self, lanes: int) -> None:
        """Give each lane workers of its own, as far as there are: chunks of one round must not meet on one."""
        self.places = []
        workers = sorted(self.client.nthreads()) if lanes > 1 else []
        for k in range(lanes if workers else 0):
            first, end = (j * len(workers) // lanes for j in (k, k + 1))
            # A wish: any worker will do where these are lost.
            self.places.append({"workers": workers[first : max(end, first + 1)], "allow_other_workers": True})
        if self.places:
            self.client.register_plugin(_Wishes())

    def _place(self, lane: int | None) -> dict:
        return self.places[lane] if self.places and lane is not None else {}

    def _key(self, name: str) -> str:
        # The name is what the dashboard groups tasks by; futures of an earlier fit may still be alive.
        return f"{name}-{self.token}-{next(self.count)}"

    def _task(self, name: str, keys: list | None = None) -> dict:
        return {"key": keys or self._key(name), "pure": False, "priority": int(name in URGENT)}

    def submit(self, function: Callable, *args: Any, name: str, lane: int | None = None) -> Any:
        if any(isinstance(arg, DeferredCall) for arg in args):
            function, args = call, (function, *args)
        if any(isinstance(arg, Part) for arg in args):
            function, args = _call_one, (function, *_parts(args))
        future = self.client.submit(function, *args, **self._task(name), **self._place(lane))
        return self._sent(name, future)

    def _sent(self, name: str, future: Future) -> Future:
        if self.has_gathered:
            self.kept.append([])
            self.has_gathered = False
        if name not in LARGE:
            self.kept[-1].append(future)
        return future

    def map(self, function: Callable, calls: list[tuple], *, name: str, lanes: list[int] | None = None) -> list:
        """References to the function's result for each tuple of arguments: one message to the scheduler a lane.

        Calls whose first arguments lie on one worker are one task: each costs the scheduler about a millisecond.
        """
        lanes = lanes if self.places and lanes else [None] * len(calls)
        if any(isinstance(arg, DeferredCall) for args in calls for arg in args):
            function, calls = call, [(function, *args) for args in calls]
        elif len(calls) > 1:
            groups = self._neighbours(calls, lanes)
            if len(groups) < len(calls):
                return self._map_groups(function, calls, groups, lanes, name)
        if any(isinstance(arg, Part) for args in calls for arg in args):
            function, calls = _call_one, [(function, *_parts(args)) for args in calls]
        references: dict[int, Any] = {}
        for lane in dict.fromkeys(lanes):
            members = [k for k, own in enumerate(lanes) if own == lane]
            columns = [list(column) for column in zip(*(calls[k] for k in members), strict=True)]
            keys = [self._key(name) for _ in members]
            futures = self.client.map(function, *columns, **self._task(name, keys), **self._place(lane))
            references.update((k, self._sent(name, future)) for k, future in zip(members, futures, strict=True))
        return [references[k] for k in range(len(calls))]

    def _neighbours(self, calls: list[tuple], lanes: list) -> list[list[int]]:
        """Numbers of calls in groups whose first references lie together, none much larger than a thread's share."""
        homes, groups = [self._home(args) for args in calls], {}
        wanted = [home for home in homes if isinstance(home, Future) and home.key not in self.homes]
        if wanted:
            found = self.client.who_has(wanted)
            self.homes |= {future.key: min(found.get(future.key, ()), default=future.key) for future in wanted}
        for k, (home, lane) in enumerate(zip(homes, lanes, strict=True)):
            there = self.homes[home.key] if isinstance(home, Future) else home or k
            if lane is not None and home is not None:
                # What moves to a lane is one task, which the scheduler then takes from no worker.
                there = lane, there if there in self.places[lane]["workers"] else None
            groups.setdefault(there, []).append(k)
        most = min(-(-5 * len(calls) // (4 * self.threads())), GROUPED)  # a call more is no task more
        return [group[part] for group in groups.values() for part in even_slices(len(group), -(-len(group) // most))]

    def _home(self, args: tuple) -> Any:
        """What tells where the first reference lies: the task that has its other parts, or a future that is there."""
        for arg in args:
            if isinstance(arg, Part):
                return arg.future.key
            for future in futures_of(arg) if isinstance(arg, (Future, tuple)) else ():
                return future if future.done() else None
        return None

    def _map_groups(self, function: Callable, calls: list, groups: list[list[int]], lanes: list, name: str) -> list:
        references: dict[int, Any] = {}
        for group in groups:
            parts = self.in_turn(function, [calls[k] for k in group], name=name, lane=lanes[group[0]])
            references.update(zip(group, parts, strict=True))
        return [references[k] for k in range(len(calls))]

    def in_turn(
        self, function: Callable, calls: list[tuple], *, name: str, lane: int | None = None, size: float = 0.0
    ) -> list:
        if len(calls) == 1:
            return [self.submit(function, *calls[0], name=name, lane=lane)]
        args, place = _parts([arg for call in calls for arg in call]), self._place(lane)
        future = self.client.submit(_call_each, function, len(calls), size, *args, **self._task(name), **place)
        self._sent(name, future)
        return [Part(future, number) for number in range(len(calls))]

    def at_once(self, function: Callable, calls: list[tuple], *, name: str) -> list:
        return [self.submit(function, *args, name=name) for args in calls]

    def gather(self, references: list) -> list:
        try:
            with _seceded():
                values = self.client.gather([one.future if isinstance(one, Part) else one for one in references])
        except Exception as error:
            raise _apart(error) from error.__cause__
        self.has_gathered = True
        return [v[one.number] if isinstance(one, Part) else v for v, one in zip(values, references, strict=True)]

    def put(self, values: list) -> list:
        """References to values that are here; the scheduler keeps the values, so no lost worker loses them."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph")
            return self.map(_itself, [(value,) for value in values], name="saga-put")

    def forget_lineage(self, size: int) -> bool:
        """Whether results of so many bytes are worth putting anew, so that the tasks before can be forgotten."""
        self.homes.clear()  # workers come and go
        return size <= PUT_BYTES

    def recipes(self, blocks: list) -> list:
        return persisted_blocks(blocks, self.client) or block_recipes(blocks)

    def load(self, blocks: list, lane: int | None = None) -> list:
        if any(isinstance(block, DeferredCall) for block in blocks):
            return blocks
        there = persisted_blocks(blocks, self.client)
        if there is not None:
            return there
        lazy = [block if is_dask_collection(block) else delayed(block) for block in blocks]
        return self.client.compute(lazy, **self._place(lane))

    def ahead(self, load: Callable[[int], Any], order: list[int]) -> Iterator[Any]:
        """``load(k)`` of each k: futures, which run ahead by themselves."""
        return map(load, order)

    def throttle(self, task: Any, most: int = 0) -> None:
        """Wait until no more than TASKS_AHEAD tasks are outstanding, or two rounds, or `most`."""
        self.working.append(task.future if isinstance(task, Part) else task)
        while len(self.working) > max(TASKS_AHEAD, 2 * len(self.places), most):
            with _seceded(), self.client.as_current():
                wait(self.working.popleft())

    def let_go(self) -> None:
        """Keep no more futures than others do."""
        self.kept = deque([[]], maxlen=2)

    def release(self, interrupted: bool = False) -> None:
        """Let go of all tasks."""
        self.working.clear()
        self.let_go()
        if not interrupted:
            return
        # What the pass had submitted goes with its references, of which broken calls leave some in cycles.
        gc.collect()
        # An interrupt within the client may have left tasks to which nobody holds a future any more. The client lets go
        # in its own thread: what it has not yet let go of must not be cancelled too.
        self.client.sync(asyncio.sleep, 0)
        left = [key for key in list(self.client.futures) if self.token in str(key)]
        self.client.cancel([Future(key, self.client) for key in left])

    def has_room(self, size: float) -> bool:
        """Whether so many bytes may come from the workers to this process."""
        return size <= GATHERED_SHARE * MEMORY_LIMIT

    def memory(self) -> float:
        """Memory limits of all workers in bytes; unbounded while there is none."""
        return self.client.run_on_scheduler(_memory_limits) or np.inf


def _apart(error: Exception) -> Exception:
    """The error of a task as a copy: the client keeps the error itself, and with it all that a traceback refers to."""
    try:
        twin = copy.copy(error).with_traceback(error.__traceback__)
    except Exception:  # one that is not made of its arguments
        return error
    error.__traceback__ = None
    return twin


def _parts(args: Any) -> tuple:
    """For each argument the number of the part that is meant, if it is one; then the arguments themselves."""
    numbers = [arg.number if isinstance(arg, Part) else None for arg in args]
    return numbers, *(arg.future if isinstance(arg, Part) else arg for arg in args)


def _call_one(function: Callable, numbers: list, *args: Any) -> Any:
    return function(*(arg if k is None else arg[k] for k, arg in zip(numbers, args, strict=True)))


def _call_each(function: Callable, count: int, size: float, numbers: list, *args: Any) -> list:
    """``function`` of each call's arguments, and what the recipes of the next call need meanwhile, if there is room.

    Blocks are read in the task's own thread, as readers may ask for their worker.
    """
    args = [arg if k is None else arg[k] for k, arg in zip(numbers, args, strict=True)]
    calls = [args[slice(*ends)] for ends in itertools.pairwise(range(0, len(args) + 1, len(args) // count))]
    if not any(isinstance(arg, DeferredCall) for arg in args):
        return [function(*one) for one in calls]
    results, running = [], None
    with ThreadPoolExecutor(1, "saga-ahead") as pool:
        for one in calls:
            if running and not _has_room(size):
                results.append(running.result())
                running = None
            try:
                ready = evaluate_inner(one)
            finally:
                if running:
                    results.append(running.result())  # its error is that of an earlier chunk
            running = pool.submit(_work, function, ready)
            del ready
        return [*results, running.result()]


def _work(function: Callable, args: list) -> Any:
    try:
        args[:] = evaluate(args)  # the block goes before its chunk is worked on
        return function(*args)
    finally:
        args.clear()


def _has_room(size: float) -> bool:
    """Whether each thread of the worker has room for so many bytes more, and twice as many to make them."""
    worker = get_worker()
    limit = worker.memory_manager.memory_limit or MEMORY_LIMIT
    return worker.monitor.get_process_memory() + 3 * size * worker.state.nthreads <= ROOM_SHARE * limit


def _itself(value: Any) -> Any:
    return value


def _memory_limits(dask_scheduler: Any = None) -> float:
    return float(sum(worker.memory_limit or MEMORY_LIMIT for worker in dask_scheduler.workers.values()))


@contextlib.contextmanager
def _seceded() -> Iterator[None]:
    """Inside a task: a driver must not hold the thread that its own tasks need."""
    try:
        secede()
    except (ValueError, KeyError, AttributeError):
        yield
        return
    try:
        yield
    finally:
        rejoin()
