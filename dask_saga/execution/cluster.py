"""The executor that runs tasks on a Dask cluster.

It packs many calls into few messages and tasks, and decides on which workers a task should run.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import itertools
import logging
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from numbers import Number
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from dask import delayed, is_dask_collection
from dask.highlevelgraph import HighLevelGraph
from distributed import Future, get_worker, rejoin, secede, wait
from distributed.client import futures_of
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.system import MEMORY_LIMIT

from .deferred import DeferredCall, call, defer_blocks, evaluate, evaluate_inner, persisted_blocks
from .threads import even_slices

if TYPE_CHECKING:
    from .protocol import Reference

__all__ = ["ClientExecutor"]


T = TypeVar("T")

logger = logging.getLogger("dask_saga")


# Number of submitted tasks that may be outstanding before the driver waits. Each may have a chunk loaded for it.
TASKS_AHEAD = 4

# Largest share of the memory limit of the client's process that gathered results may take.
GATHERED_SHARE = 0.5

# Largest number of bytes that are put on the scheduler at once.
PUT_BYTES = 2**26

# Names of tasks with large results. Their futures are not kept, so the cluster can free the results early.
LARGE_RESULTS = ("saga-read", "saga-chunk")

# Largest number of calls in one task. It is bounded, because a consumer of one result receives the results of all.
GROUPED = 16

# Share of a worker's memory up to which blocks are read ahead. Beyond it, the worker would start to spill.
ROOM_SHARE = 0.7

# Names of tasks that get a higher priority, because a whole pass waits for them while the next may have begun.
URGENT = ("saga-summary", "saga-confirm", "saga-gather", "saga-head")


# Seconds after which a wait for tasks looks whether any worker can run them.
WATCHED_SECONDS = 30.0


class _DropLostWorkers(SchedulerPlugin):
    """Scheduler plugin that drops the worker preference of a task while the cluster has no worker at all.

    Without it, the scheduler would wait for the lost worker although others are allowed, and would not assign the task
    to a new worker.
    """

    name, idempotent = "saga-wishes", True

    async def start(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if finish == "no-worker" and self.scheduler.tasks[key].loose_restrictions:
            self.scheduler.tasks[key].worker_restrictions = set()


class Part:
    """Reference to one of several results of a task. It is not a tuple, because Dask searches tuples for tasks."""

    def __init__(self, future: Future, number: int):
        self.future, self.number = future, number


class ClientExecutor:
    """Run tasks on a cluster. References are futures or parts of futures."""

    is_asynchronous: bool = True

    def __init__(self, client: Any):
        self.client = client
        self.outstanding: deque = deque()  # futures of submitted tasks that ``throttle`` has not waited for
        self.homes: dict = {}  # worker address of each stored result, by key
        # Futures of the tasks since the last `gather`, and of those before it. A client waits 10 ms between messages,
        # and releasing a future sends one. Keeping the futures avoids a release just before the next tasks are sent.
        self.kept: deque = deque([[]], maxlen=2)
        self.has_gathered = False
        self.lane_workers: list[dict] = []  # keyword arguments of ``Client.submit`` for each lane
        self.token, self.count = uuid.uuid4().hex, itertools.count()
        self.reason = ""  # why no worker could run a task, as of the last warning

    def threads(self) -> int:
        """Return the number of threads of all workers, at least 1."""
        return sum(self.client.nthreads().values()) or 1

    def memory(self) -> float:
        """Return the sum of the workers' memory limits in bytes, or inf while there is no worker."""
        return self.client.run_on_scheduler(_memory_limits) or np.inf

    def assign_lanes(self, count: int) -> None:
        """Assign separate workers to each lane, as far as possible: the chunks of a round should not share a worker."""
        self.lane_workers = []
        workers = sorted(self.client.nthreads()) if count > 1 else []
        for k in range(count if workers else 0):
            first, end = (j * len(workers) // count for j in (k, k + 1))
            # This is a preference: if these workers are lost, any other will do.
            self.lane_workers.append({"workers": workers[first : max(end, first + 1)], "allow_other_workers": True})
        if self.lane_workers:
            self.client.register_plugin(_DropLostWorkers())

    def _workers_of(self, lane: int | None) -> dict:
        return self.lane_workers[lane] if self.lane_workers and lane is not None else {}

    def _key(self, name: str) -> str:
        # The dashboard groups tasks by name. The token makes keys unique: futures of an earlier fit may be alive.
        return f"{name}-{self.token}-{next(self.count)}"

    def _task(self, name: str, keys: list | None = None) -> dict:
        return {"key": keys or self._key(name), "pure": False, "priority": int(name in URGENT)}

    def submit(self, function: Callable[..., T], *args: Any, name: str, lane: int | None = None) -> Reference[T]:
        """Send one call to the cluster; return a future."""
        if any(isinstance(arg, DeferredCall) for arg in args):
            function, args = call, (function, *args)
        if any(isinstance(arg, Part) for arg in args):
            function, args = _call_one, (function, *_replace_parts(args))
        future = self.client.submit(function, *args, **self._task(name), **self._workers_of(lane))
        return cast("Reference[T]", self._keep(name, future))

    def _keep(self, name: str, future: Future) -> Future:
        if self.has_gathered:
            self.kept.append([])
            self.has_gathered = False
        if name not in LARGE_RESULTS:
            self.kept[-1].append(future)
        return future

    def map(
        self, function: Callable[..., T], calls: list[tuple], *, name: str, lanes: list[int] | None = None
    ) -> list[Reference[T]]:
        """Call the function with each tuple of arguments, with one message to the scheduler per lane.

        Calls whose first arguments are on the same worker are combined into one task, because each task costs the
        scheduler about a millisecond. The result is a list of references in the order of `calls`.
        """
        of_calls: list[int | None] = [*lanes] if self.lane_workers and lanes else [None] * len(calls)
        if any(isinstance(arg, DeferredCall) for args in calls for arg in args):
            function, calls = call, [(function, *args) for args in calls]
        elif len(calls) > 1:
            groups = self._group_by_worker(calls, of_calls)
            if len(groups) < len(calls):
                return self._map_groups(function, calls, groups, of_calls, name)
        if any(isinstance(arg, Part) for args in calls for arg in args):
            function, calls = _call_one, [(function, *_replace_parts(args)) for args in calls]
        references: dict[int, Any] = {}
        for lane in dict.fromkeys(of_calls):
            members = [k for k in range(len(calls)) if of_calls[k] == lane]
            columns = [list(column) for column in zip(*(calls[k] for k in members), strict=True)]
            keys = [self._key(name) for _ in members]
            futures = self.client.map(function, *columns, **self._task(name, keys), **self._workers_of(lane))
            references.update((k, self._keep(name, future)) for k, future in zip(members, futures, strict=True))
        return [references[k] for k in range(len(calls))]

    def _group_by_worker(self, calls: list[tuple], lanes: list) -> list[list[int]]:
        """Group the numbers of the calls whose first references are on the same worker.

        A group has at most 5/4 of the calls per thread of the cluster, and at most GROUPED calls.
        """
        homes = [self._home(args) for args in calls]
        groups: dict[Any, list[int]] = {}
        wanted = [home for home in homes if isinstance(home, Future) and home.key not in self.homes]
        if wanted:
            found = self.client.who_has(wanted)
            self.homes |= {future.key: min(found.get(future.key, ()), default=future.key) for future in wanted}
        for k, (home, lane) in enumerate(zip(homes, lanes, strict=True)):
            location = self.homes[home.key] if isinstance(home, Future) else home or k
            if lane is not None and home is not None:
                # Calls whose data must move to the lane form one task. The scheduler then does not steal it.
                location = lane, location if location in self.lane_workers[lane]["workers"] else None
            groups.setdefault(location, []).append(k)
        most = min(-(-5 * len(calls) // (4 * self.threads())), GROUPED)  # 5/4: one more call needs no new task
        return [group[part] for group in groups.values() for part in even_slices(len(group), -(-len(group) // most))]

    def _home(self, args: tuple) -> Any:
        """Identify the location of the first reference among the arguments.

        It is the key of the task of a part, a future that is done, or None if the location is unknown.
        """
        for arg in args:
            if isinstance(arg, Part):
                return arg.future.key
            for future in futures_of(arg) if isinstance(arg, (Future, tuple)) else ():
                return future if future.done() else None
        return None

    def _map_groups(self, function: Callable, calls: list, groups: list[list[int]], lanes: list, name: str) -> list:
        references: dict[int, Any] = {}
        for group in groups:
            parts = self.map_sequential(function, [calls[k] for k in group], name=name, lane=lanes[group[0]])
            references.update(zip(group, parts, strict=True))
        return [references[k] for k in range(len(calls))]

    def map_sequential(
        self,
        function: Callable[..., T],
        calls: list[tuple],
        *,
        name: str,
        lane: int | None = None,
        nbytes: float = 0.0,
    ) -> list[Reference[T]]:
        """Run all calls in one task, one after the other; return parts of its result."""
        if len(calls) == 1:
            return [self.submit(function, *calls[0], name=name, lane=lane)]
        args, workers = _replace_parts([arg for args in calls for arg in args]), self._workers_of(lane)
        future = self.client.submit(_call_each, function, len(calls), nbytes, *args, **self._task(name), **workers)
        self._keep(name, future)
        return cast("list[Reference[T]]", [Part(future, number) for number in range(len(calls))])

    def map_parallel(self, function: Callable[..., T], calls: list[tuple], *, name: str) -> list[Reference[T]]:
        """Send each call as a task of its own, so that all can run in parallel."""
        return [self.submit(function, *args, name=name) for args in calls]

    def gather(self, references: list[Reference[T]]) -> list[T]:
        """Return the values of references, once their tasks are done."""
        try:
            with _seceded():
                futures = [one.future if isinstance(one, Part) else one for one in references]
                self._wait([one for one in futures if isinstance(one, Future)])
                values = self.client.gather(futures)
        except Exception as error:
            raise _without_client(error) from error.__cause__
        self.has_gathered = True
        return [v[one.number] if isinstance(one, Part) else v for v, one in zip(values, references, strict=True)]

    def put(self, values: list[T]) -> list[Reference[T]]:
        """Return references to local values. The scheduler stores the values, so they survive the loss of a worker."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph")
            return self.map(_identity, [(value,) for value in values], name="saga-put")

    def load(self, blocks: list, lane: int | None = None) -> list[Reference]:
        """Start computing lazy blocks; return references to them. Deferred calls are returned unchanged.

        All lazy parts are sent as one graph, because the client takes milliseconds for each graph.
        """
        if any(isinstance(block, DeferredCall) for block in blocks):
            return blocks
        persisted = persisted_blocks(blocks, self.client)
        if persisted is not None:
            return persisted
        wrapped = [block if _is_plain(block) else delayed(block) for block in blocks]
        lazy = [part for block in wrapped for part in _parts_of(block) if is_dask_collection(part)]
        graph = HighLevelGraph.merge(*{id(part.dask): part.dask for part in lazy}.values())
        keys = list(dict.fromkeys(part.key for part in lazy))
        futures = dict(zip(keys, self.client.get(graph, keys, sync=False, **self._workers_of(lane)), strict=True))

        def loaded(part: Any) -> Any:
            return futures[part.key] if is_dask_collection(part) else part

        parts = [tuple(map(loaded, block)) if isinstance(block, tuple) else loaded(block) for block in wrapped]
        return cast("list[Reference]", parts)

    def defer(self, blocks: list) -> list:
        """Convert lazy blocks to futures if they are persisted on this cluster, else to deferred calls if possible."""
        return persisted_blocks(blocks, self.client) or defer_blocks(blocks)

    def prefetch(self, load: Callable[[int], Reference[T]], order: list[int]) -> Iterator[Reference[T]]:
        """Yield ``load(k)`` for each k in `order`. Futures run ahead without a thread."""
        return map(load, order)

    def throttle(self, task: Reference, most: int = 0) -> None:
        """Add a task, then wait until few enough are outstanding.

        The limit is the largest of TASKS_AHEAD, two tasks per lane, and `most`.
        """
        self.outstanding.append(task.future if isinstance(task, Part) else task)
        while len(self.outstanding) > max(TASKS_AHEAD, 2 * len(self.lane_workers), most):
            with _seceded():
                self._wait([self.outstanding.popleft()])

    def _wait(self, futures: list[Future]) -> None:
        """Wait for tasks. While no worker can run them, warn with the reason."""
        while not all(future.done() for future in futures):
            with contextlib.suppress(TimeoutError), self.client.as_current():
                wait(futures, timeout=WATCHED_SECONDS)
                return
            reason = self.client.run_on_scheduler(_why_nothing_runs)
            if reason and reason != self.reason:
                logger.warning(reason)
                warnings.warn(reason, stacklevel=3)
            self.reason = reason

    def can_gather(self, nbytes: float) -> bool:
        """Return whether `nbytes` bytes may be gathered from the workers into this process."""
        return nbytes <= GATHERED_SHARE * MEMORY_LIMIT

    def cuts_lineage(self, nbytes: int) -> bool:
        """Return whether to put results of `nbytes` bytes on the scheduler, so that it can forget the tasks before."""
        self.homes.clear()  # locations may be outdated, since workers come and go
        return nbytes <= PUT_BYTES

    def release_references(self) -> None:
        """Drop the futures that only this executor keeps."""
        self.kept = deque([[]], maxlen=2)

    def close(self, interrupted: bool = False) -> None:
        """Release all tasks. After an interrupt, also cancel tasks to which no future refers any more."""
        self.outstanding.clear()
        self.release_references()
        if not interrupted:
            return
        # Tasks of the pass end when their references are deleted. Interrupted calls leave some references in cycles.
        gc.collect()
        # An interrupt inside the client may leave tasks without a future. The client releases futures in its own
        # thread. The empty call lets it finish, so that only the remaining tasks are cancelled.
        self.client.sync(asyncio.sleep, 0)
        left = [key for key in list(self.client.futures) if self.token in str(key)]
        self.client.cancel([Future(key, self.client) for key in left])


def _without_client(error: Exception) -> Exception:
    """Copy the error of a task and move its traceback to the copy.

    The client keeps the original, which would otherwise keep all objects that the traceback refers to.
    """
    try:
        twin = copy.copy(error).with_traceback(error.__traceback__)
    except Exception:  # the error cannot be rebuilt from its arguments
        return error
    error.__traceback__ = None
    return twin


def _replace_parts(args: Any) -> tuple:
    """Replace parts by their futures; return the list of part numbers (None for no part), then the arguments."""
    numbers = [arg.number if isinstance(arg, Part) else None for arg in args]
    return numbers, *(arg.future if isinstance(arg, Part) else arg for arg in args)


def _call_one(function: Callable, numbers: list, *args: Any) -> Any:
    return function(*(arg if k is None else arg[k] for k, arg in zip(numbers, args, strict=True)))


def _call_each(function: Callable, count: int, nbytes: float, numbers: list, *args: Any) -> list:
    """Run the function for each call, and meanwhile evaluate the inner deferred calls of the next call.

    The next call is prepared ahead only if the worker has room for it. Blocks are read in the task's own thread,
    because readers may ask for the current worker. The function runs in a helper thread.
    """
    values = [arg if k is None else arg[k] for k, arg in zip(numbers, args, strict=True)]
    calls = [values[slice(*ends)] for ends in itertools.pairwise(range(0, len(values) + 1, len(values) // count))]
    if not any(isinstance(arg, DeferredCall) for arg in values):
        return [function(*one) for one in calls]
    results: list = []
    running: Any = None
    with ThreadPoolExecutor(1, "saga-ahead") as pool:
        for one in calls:
            if running and not _has_room(nbytes):
                results.append(running.result())
                running = None
            try:
                ready = evaluate_inner(one)
            finally:
                if running:
                    results.append(running.result())  # the error of the earlier chunk takes precedence
            running = pool.submit(_evaluate_and_call, function, ready)
            del ready
        return [*results, running.result()]


def _evaluate_and_call(function: Callable, args: list) -> Any:
    try:
        args[:] = evaluate(args)  # this frees the block before its chunk is processed
        return function(*args)
    finally:
        args.clear()


def _has_room(nbytes: float) -> bool:
    """Return whether each thread of the worker has room for `nbytes` more bytes, plus twice as many to create them."""
    worker = get_worker()
    limit = worker.memory_manager.memory_limit or MEMORY_LIMIT
    return worker.monitor.get_process_memory() + 3 * nbytes * worker.state.nthreads <= ROOM_SHARE * limit


def _parts_of(block: Any) -> tuple:
    return block if isinstance(block, tuple) else (block,)


def _is_plain(block: Any) -> bool:
    """Return whether each part of a block is lazy, a number or None. An array should be sent only once."""
    return all(part is None or isinstance(part, Number) or is_dask_collection(part) for part in _parts_of(block))


def _identity(value: Any) -> Any:
    return value


def _why_nothing_runs(dask_scheduler: Any = None) -> str:
    """Return why no worker can run a task, and a remedy. Empty if one can."""
    workers = dask_scheduler.workers.values()
    if not workers:
        return (
            f"no worker is connected to the scheduler at {dask_scheduler.address}, so the fit waits; start workers, or "
            "look into their logs if they were lost"
        )
    if any(worker.status.name == "running" for worker in workers):
        return ""
    paused = [worker for worker in workers if worker.status.name == "paused"]
    if not paused:
        return ""
    limit = min(worker.memory_limit or MEMORY_LIMIT for worker in paused)
    return (
        f"all {len(paused)} running workers are paused, because they use most of their memory (limit "
        f"{limit / 1e6:.0f} MB), so the fit waits; give workers more memory or fewer threads, make chunks smaller, or "
        "fit with persist=False"
    )


def _memory_limits(dask_scheduler: Any = None) -> float:
    return float(sum(worker.memory_limit or MEMORY_LIMIT for worker in dask_scheduler.workers.values()))


@contextlib.contextmanager
def _seceded() -> Iterator[None]:
    """Release the worker thread while a driver that runs inside a task waits. Its own tasks may need the thread."""
    try:
        secede()
    except (ValueError, KeyError, AttributeError):
        yield
        return
    try:
        yield
    finally:
        rejoin()
