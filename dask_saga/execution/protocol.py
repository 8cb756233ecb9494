"""What a fit asks of the place where its tasks run: the interface of an executor, and the type of its references."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

__all__ = ["Executor", "Reference"]


T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Reference(Generic[T_co]):
    """Type of a reference to a value of a given type that an executor has, or will have.

    It is for annotations only: no object is an instance of this class. In this process a reference is the value itself.
    On a cluster it is a future, a part of a future's result, or a deferred call. Code outside of `execution` must not
    rely on any of these. It may pass a reference to a task of the same executor, or to ``gather``.
    """


@runtime_checkable
class Executor(Protocol):
    """Run the tasks of a fit in this process (LocalExecutor) or on a cluster (ClientExecutor).

    Arguments of a task may be values or references. The task receives the values of references. The function and its
    arguments must not change, because a cluster may repeat a task. Task names are the prefixes that the dashboard of a
    cluster shows.

    Attributes
    ----------
    is_asynchronous : bool
        Whether ``submit`` returns before the task has run. An error of the task is then raised by ``gather``.
    """

    is_asynchronous: bool

    def threads(self) -> int:
        """Return how many tasks can run at a time, at least 1.

        In memory, this is the number of cores. On a cluster, it is the number of threads of all current workers.
        """

    def memory(self) -> float:
        """Return the bytes that chunks and results may take together.

        In memory, this is the limit of the process. On a cluster, it is the sum of the workers' limits, or inf while
        there is no worker.
        """

    def assign_lanes(self, count: int) -> None:
        """Give each lane workers of its own, so that the chunks of a round are on different workers.

        In memory, all lanes share the process. On a cluster, this is a preference: any worker may run any task.

        Parameters
        ----------
        count : int
            Number of lanes.
        """

    def submit(self, function: Callable[..., T], *args: Any, name: str, lane: int | None = None) -> Reference[T]:
        """Run one task.

        In memory, the function is called at once. On a cluster, the task is sent, and this method does not wait.

        Parameters
        ----------
        function : callable
        *args : object
            Values or references.
        name : str
            Name of the task.
        lane : int, default=None
            Lane on whose workers the task should run. None means any worker.

        Returns
        -------
        Reference
            Reference to the result.
        """

    def map(
        self, function: Callable[..., T], calls: list[tuple], *, name: str, lanes: list[int] | None = None
    ) -> list[Reference[T]]:
        """Run the function for each tuple of arguments, in as few tasks as is sensible.

        In memory, the calls run one after the other. On a cluster, calls with data on the same worker share a task, and
        tasks run in parallel.

        Parameters
        ----------
        function : callable
        calls : list of tuple
            Arguments of each call, which are values or references.
        name : str
            Name of the tasks.
        lanes : list of int, default=None
            Lane of each call.

        Returns
        -------
        list of Reference
            References to the results, in the order of `calls`.
        """

    def map_parallel(self, function: Callable[..., T], calls: list[tuple], *, name: str) -> list[Reference[T]]:
        """Run all calls at the same time, such as the visits of a round.

        In memory, each call has a thread. On a cluster, each call is a task. Parameters and result are those of
        ``map``.
        """

    def map_sequential(
        self,
        function: Callable[..., T],
        calls: list[tuple],
        *,
        name: str,
        lane: int | None = None,
        nbytes: float = 0.0,
    ) -> list[Reference[T]]:
        """Run all calls in one task, one after the other.

        On a cluster, the task evaluates the deferred calls among the arguments of the next call while it works on the
        current one, if the worker has room for them.

        Parameters
        ----------
        function : callable
        calls : list of tuple
            Arguments of each call, which are values or references.
        name : str
            Name of the task.
        lane : int, default=None
            Lane on whose workers the task should run.
        nbytes : float, default=0.0
            Size of what the deferred calls of one call return, in bytes. NaN if unknown.

        Returns
        -------
        list of Reference
            References to the results, in the order of `calls`.
        """

    def gather(self, references: list[Reference[T]]) -> list[T]:
        """Return the values of references.

        In memory, these are the references. On a cluster, this waits for the tasks. If one of them failed, its error
        is raised.
        """

    def put(self, values: list[T]) -> list[Reference[T]]:
        """Return references to values of this process.

        On a cluster, the scheduler stores the values, so that they survive the loss of any worker.
        """

    def load(self, blocks: list, lane: int | None = None) -> list[Reference]:
        """Return references to blocks whose parts may be lazy.

        In memory, lazy parts are computed now. On a cluster, their computation starts. Deferred calls are returned
        unchanged, because the task that needs the block evaluates them.
        """

    def defer(self, blocks: list) -> list:
        """Convert lazy blocks to the form from which ``load`` loads them again and again most cheaply.

        In memory, the blocks are returned unchanged. On a cluster, blocks that are persisted there become futures, and
        the others become deferred calls where that is possible.
        """

    def prefetch(self, load: Callable[[int], Reference[T]], order: list[int]) -> Iterator[Reference[T]]:
        """Yield ``load(k)`` for each k in `order`, and load ahead.

        In memory, a thread loads the next block. On a cluster, the tasks run ahead as far as ``throttle`` lets them.
        """

    def throttle(self, task: Reference, most: int = 0) -> None:
        """Wait until few enough tasks are outstanding, after a task has been submitted.

        In memory, no task is ever outstanding. On a cluster, the limit is four tasks, two tasks per lane, or `most`,
        whichever is largest.

        Parameters
        ----------
        task : Reference
            Reference to the result of the task.
        most : int, default=0
            Number of outstanding tasks to allow, if it is above the executor's own limit.
        """

    def can_gather(self, nbytes: float) -> bool:
        """Return whether this process may receive `nbytes` bytes of results.

        In memory, they are here already. On a cluster, they may take half of the memory limit of this process.
        """

    def cuts_lineage(self, nbytes: int) -> bool:
        """Return whether gathering results of `nbytes` bytes and putting them back lets the executor forget tasks.

        In memory, values have no lineage. On a cluster, the scheduler keeps the tasks that computed a future, and runs
        them again if a worker is lost. Large results are not worth the transfer.
        """

    def release_references(self) -> None:
        """Drop the references that only the executor keeps, so that a cluster frees their values."""

    def close(self, interrupted: bool = False) -> None:
        """Release everything at the end of a fit.

        Parameters
        ----------
        interrupted : bool, default=False
            Whether the fit was ended by Ctrl-C. A cluster then also cancels tasks to which nothing refers any more.
        """
