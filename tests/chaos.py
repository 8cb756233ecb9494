"""Fits on a cluster to which, meanwhile, what goes wrong in a month of production happens: seeded, one after another.

``python -m tests.chaos SEED FITS [EVENT ...]``. Each fit ends with the bits of an undisturbed one or with a clear
error, within bounded time, and leaves no task and no process behind.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import fsspec
import numpy as np
import psutil
from distributed import Client, LocalCluster
from fsspec.implementations.local import LocalFileSystem

from dask_saga import SAGAClassifier
from dask_saga.fitting import checkpoint, preparation

# What is done to a fit.
EVENTS = (
    "kill", "kill", "kill twice", "stop", "add", "retire", "drop the client", "full disk", "flip a byte",
    "kill all", "nothing",
)  # fmt: skip
# Seconds that a fit may take, whatever happens. A worker that is stopped counts as lost after WORKER_TTL.
BOUND, WORKER_TTL = 240.0, 10.0
# What a fit may end with. Anything else, and other bits, is a failure.
CLEAR = (ValueError, OSError, RuntimeError)
PASSES = 14


class FullDisk(LocalFileSystem):
    """A disk that takes so many more bytes, and no more."""

    protocol = "fulldisk"
    cachable = False
    room = 0

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return LocalFileSystem._strip_protocol(str(path).removeprefix("fulldisk://"))

    def open(self, path, mode="rb", **how):
        file = super().open(path, mode, **how)
        return _Bounded(file) if "w" in mode else file


class _Bounded:
    """A file on it."""

    def __init__(self, file):
        self.file = file

    def write(self, data):
        FullDisk.room -= len(data)
        if FullDisk.room < 0:
            raise OSError(28, "No space left on device")
        return self.file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


class Broken(AssertionError):
    """What must not happen."""


def data(seed: int) -> tuple:
    """Twelve blocks, made by tasks, so that lost ones can be made again."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((3000, 6)) * np.logspace(0, 2, 6)
    y = A @ rng.standard_normal(6) + 20 * rng.standard_normal(3000) > 0
    return da.from_array(A, chunks=(250, 6)), da.from_array(y, chunks=250)


class Chaos:
    """A cluster, and fits on it."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.counts: collections.Counter = collections.Counter()
        self.slowest = 0.0
        self.stopped: list[int] = []
        self.lost_times: list[threading.Timer] = []

    def __enter__(self) -> Chaos:
        self.saved = checkpoint.SECONDS, checkpoint.AGE_RATIO, preparation.JOINED_BYTES
        checkpoint.SECONDS = checkpoint.AGE_RATIO = preparation.JOINED_BYTES = 0
        self.before = {process.pid for process in psutil.Process().children(recursive=True)}
        self.config = dask.config.set({
            "distributed.scheduler.worker-ttl": f"{WORKER_TTL}s", "distributed.scheduler.allowed-failures": 10,
            "distributed.comm.timeouts.connect": "20s", "distributed.comm.timeouts.tcp": "20s",

        })  # fmt: skip
        self.config.__enter__()
        self.cluster = self.new_cluster()
        fsspec.register_implementation("fulldisk", FullDisk, clobber=True)
        return self

    def __exit__(self, *error: Any) -> None:
        self.free()
        self.cluster.close()
        self.config.__exit__(*error)
        checkpoint.SECONDS, checkpoint.AGE_RATIO, preparation.JOINED_BYTES = self.saved
        deadline = time.monotonic() + 20
        while left := self.orphans():
            if time.monotonic() > deadline:
                raise Broken(f"processes are left: {left}")
            time.sleep(0.2)

    def new_cluster(self) -> LocalCluster:
        return LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=":0", memory_limit="1GiB")

    def orphans(self) -> list[str]:
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                command = " ".join(process.cmdline())
                if process.pid not in self.before and "tracker" not in command and "forkserver" not in command:
                    found.append(f"{process.pid} {command[:80]}")
        return found

    # What happens.

    def workers(self) -> dict[str, int]:
        """Addresses and processes of the workers."""
        workers = self.cluster.scheduler.workers.values()
        nannies = {nanny.worker_address: nanny for nanny in self.cluster.workers.values()}
        return {
            worker.address: nannies[worker.address].pid
            for worker in workers
            if worker.address in nannies and nannies[worker.address].pid
        }

    def signal(self, number: int, count: int = 1) -> list[int]:
        pids = list(self.workers().values())
        chosen = list(self.rng.permutation(pids)[:count]) if pids else []
        for pid in chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), number)
        return [int(pid) for pid in chosen]

    def free(self) -> None:
        """Let stopped processes go on."""
        for pid in self.stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.stopped = []

    def happen(self, event: str) -> None:
        if event.startswith("kill"):
            self.signal(signal.SIGKILL, {"kill": 1, "kill twice": 2, "kill all": 9}[event])
        elif event == "stop":
            self.stopped += self.signal(signal.SIGSTOP)
            timer = threading.Timer(float(self.rng.uniform(0.2, 2 * WORKER_TTL)), self.free)
            timer.daemon = True
            timer.start()
        elif event == "add":
            self.cluster.scale(len(self.cluster.worker_spec) + 1)
        elif event == "retire":
            self.cluster.scale(max(1, len(self.cluster.worker_spec) - 1))

    # Fits.

    def fit(self, event: str) -> str:
        """One fit to which something happens; how it ended."""
        seed, persist = int(self.rng.integers(3)), bool(self.rng.random() < 0.7)
        settings = {
            "max_iter": PASSES, "tol": 0.0, "random_state": seed, "n_parallel": int(self.rng.choice([1, 1, 3])),
        }  # fmt: skip
        X, y = data(seed)
        expected = SAGAClassifier(**settings)
        with dask.config.set(scheduler="synchronous"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected.fit(X, y)
        at, began = int(self.rng.integers(1, PASSES)), time.monotonic()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            place = f"fulldisk://{folder}/saved" if event == "full disk" else f"{folder}/saved"
            FullDisk.room = 10**9
            ended = "the same bits"
            client = Client(self.cluster, timeout=30)
            try:
                if event in ("drop the client", "flip a byte", "full disk"):
                    ended = self.interrupted(client, settings, X, y, place, event, at, persist)
                    client.close()
                    client = Client(self.cluster, timeout=30)
                model, happened = SAGAClassifier(**settings), []

                def callback(info):
                    if (
                        info.epoch >= at
                        and not happened
                        and event not in ("drop the client", "flip a byte", "full disk")
                    ):
                        happened.append(event)
                        self.happen(event)

                use = (
                    place
                    if event in ("drop the client", "flip a byte", "full disk") or self.rng.random() < 0.5
                    else None
                )
                self.within(lambda: model.fit(X, y, persist=persist, checkpoint=use, callback=callback))
                if model.coef_.tobytes() != expected.coef_.tobytes() or model.state_.digest != expected.state_.digest:
                    raise Broken("other bits")
            except CLEAR as error:
                if isinstance(error, Broken) or hasattr(model, "coef_"):
                    raise
                ended = f"{type(error).__name__}: {str(error)[:80]}"
            finally:
                self.free()
                with contextlib.suppress(Exception):
                    client.close()
        seconds = time.monotonic() - began
        self.slowest = max(self.slowest, seconds)
        if seconds > 2 * BOUND:
            raise Broken(f"{event} took {seconds:.0f} s")
        self.recover()
        return ended

    def interrupted(self, client, settings, X, y, place, event, at, persist) -> str:
        """A fit that loses its client, or its disk, and what a new client finds."""

        def callback(info):
            if info.epoch == at:
                if event == "full disk":
                    FullDisk.room = int(self.rng.integers(20_000))
                else:
                    client.close()

        ended, model = "finished", SAGAClassifier(**settings)
        try:
            self.within(lambda: model.fit(X, y, persist=persist, checkpoint=place, callback=callback))
        except BaseException as error:
            ended = f"{type(error).__name__}: {str(error)[:80]}; then the same bits"
            if hasattr(model, "coef_"):
                raise Broken("a failed fit left coefficients") from error
            if isinstance(error, Broken):
                raise
        FullDisk.room = 10**9
        folder = Path(place.removeprefix("fulldisk://"))
        if event == "flip a byte" and folder.exists():
            files = sorted(folder.iterdir())
            content = bytearray(files[-1].read_bytes())
            content[self.rng.integers(len(content))] ^= int(self.rng.integers(1, 256))
            files[-1].write_bytes(content)
        return ended

    def within(self, work) -> None:
        """Run in a thread, so that what hangs is found."""
        ends: list = []

        def run():
            try:
                ends.append((work(), None))
            except BaseException as error:
                ends.append((None, error))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        last, deadline = time.monotonic(), time.monotonic() + BOUND
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(0.2)
            if self.workers():
                last = time.monotonic()
            elif time.monotonic() > last + WORKER_TTL:  # a fit waits for workers, which somebody must bring
                self.cluster.scale(len(self.cluster.worker_spec) + 1)
                last = time.monotonic()
        if not ends:
            import faulthandler

            faulthandler.dump_traceback(all_threads=True)
            raise Broken(f"no end after {BOUND:.0f} s")
        if ends[0][1] is not None:
            raise ends[0][1]

    def recover(self) -> None:
        """Three workers again, and no tasks."""
        self.cluster.scale(3)
        deadline = time.monotonic() + 30
        while tasks := [key for key in self.cluster.scheduler.tasks if "saga" in str(key)]:
            if time.monotonic() > deadline:
                raise Broken(f"{len(tasks)} tasks are left: {tasks[:3]}")
            time.sleep(0.1)
        held = sum(len(getattr(worker, "has_what", ())) for worker in self.cluster.scheduler.workers.values())
        if held:
            raise Broken(f"workers hold {held} results")
        while len(self.workers()) != 3:
            if time.monotonic() > deadline:  # LocalCluster does not replace every nanny that it lost
                self.cluster.close()
                self.cluster = self.new_cluster()
            time.sleep(0.1)


def run(seed: int, fits: int, events: tuple = EVENTS) -> dict:
    """So many fits, each kind of event in turn; counts by event and end."""
    import logging

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    began = time.monotonic()
    with Chaos(seed) as chaos:
        for k in range(fits):
            event = events[k % len(events)]
            start = time.monotonic()
            ended = chaos.fit(event)
            chaos.counts[event, ended] += 1
            print(f"{k} {event}: {ended}, {time.monotonic() - start:.1f} s", flush=True)
    return {"counts": dict(chaos.counts), "slowest": chaos.slowest, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    print(run(int(sys.argv[1]), int(sys.argv[2]), tuple(sys.argv[3:]) or EVENTS))
