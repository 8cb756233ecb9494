"""``fit`` on a cluster of two processes with one thread each: what a visit costs beside its work, and data that
are larger than the workers' memory.

visits: the time between the end of one visit and the start of the next, beside that of a chain of empty tasks that
hand on a head of the same size; medians of interleaved runs.

larger: files of 64 MB on disk that take several times the memory of the workers. Seconds of an epoch beside those
of the same workers only reading the files, out of the page cache, and beside the CPU seconds of an epoch over
the number of workers; the most memory that a worker process took, in units of its limit; and what was spilled.

Usage: python benchmarks/driver.py [visits] [larger] [--gigabytes 10] [--limit 1GB] [--folder DIR]
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import tempfile
import threading
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import dask
import dask.array as da
import numpy as np
from dask.distributed import Client, LocalCluster, get_task_stream
from sklearn.exceptions import ConvergenceWarning

from dask_saga import SAGAClassifier

ROWS, COLUMNS = 80_000, 100  # of a file
EPOCHS = 3


def gaps(stream: list[dict], prefix: str) -> list[float]:
    """Seconds from the end of each task of a chain to the start of the next one."""
    times = sorted(
        (part["start"], part["stop"])
        for task in stream
        if str(task["key"]).startswith(prefix)
        for part in task["startstops"]
        if part["action"] == "compute"
    )
    return [start - stop for (_, stop), (start, _) in itertools.pairwise(times)]


def hand_on(previous: np.ndarray, own: object, data: object) -> np.ndarray:
    return previous.copy()


def empty_chain(client: Client, chunks: list, columns: int, visits: int) -> list[float]:
    head, own = np.zeros((7, columns + 1)), dict.fromkeys(range(len(chunks)))
    with get_task_stream(client) as stream:
        for k in range(visits):
            at = k % len(chunks)
            head = own[at] = client.submit(hand_on, head, own[at], chunks[at], key=f"empty-{k}-{time.time()}")
        head.result()
    return gaps(stream.data, "empty")


def visits(client: Client, repeat: int) -> None:
    rng = np.random.default_rng(0)
    A = rng.standard_normal((200_000, 50))
    b = (A[:, 0] + rng.logistic(size=len(A)) > 0).astype(int)
    X, y = dask.persist(da.from_array(A, chunks=(10_000, 50)), da.from_array(b, chunks=10_000))
    blocks = client.compute(list(X.to_delayed().ravel()))
    found: dict[str, list[float]] = {"fit": [], "empty tasks": []}
    for _ in range(repeat):
        with get_task_stream(client) as stream:
            SAGAClassifier(max_iter=5, tol=0.0, random_state=0).fit(X, y)
        found["fit"].append(statistics.median(gaps(stream.data, "saga-chunk")))
        found["empty tasks"].append(statistics.median(empty_chain(client, blocks, 50, 100)))
    fit, empty = (statistics.median(values) * 1e3 for values in found.values())
    print("| dead time of a visit | of an empty task | ratio |\n|---|---|---|")
    print(f"| {fit:.1f} ms | {empty:.1f} ms | {fit / empty:.2f} |\n", flush=True)


def write_files(folder: Path, gigabytes: float) -> list[Path]:
    paths = []
    for k in range(round(gigabytes * 1e9 / (8 * ROWS * COLUMNS))):
        path = folder / f"{ROWS}-{COLUMNS}-{k}.npy"
        if not path.exists():
            rng = np.random.default_rng(k)
            A = rng.standard_normal((ROWS, COLUMNS)) * np.logspace(0, 3, COLUMNS)
            np.save(path, A)
            np.save(path.with_suffix(".y.npy"), (A[:, 0] + rng.logistic(size=ROWS) > 0).astype(np.int8))
        paths.append(path)
    return paths


def read(path: Path) -> np.ndarray:
    """A file's rows, from the disk: its pages are dropped from the cache first."""
    with open(path, "rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return np.load(file)


def only_read(path: Path) -> float:
    return float(read(path)[0, 0])


def cpu_seconds() -> float:
    return time.process_time()


class Watch:
    """The most memory that any worker process took, and the bytes spilled, sampled from outside."""

    def __init__(self, client: Client):
        self.client, self.stop, self.most, self.spilled = client, threading.Event(), 0.0, 0
        self.thread = threading.Thread(target=self.sample, daemon=True)

    def sample(self) -> None:
        while not self.stop.wait(0.3):
            for worker in self.client.scheduler_info()["workers"].values():
                metrics = worker["metrics"]
                self.most = max(self.most, metrics["memory"] / worker["memory_limit"])
                self.spilled = max(self.spilled, metrics.get("spilled_bytes", {}).get("disk", 0))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.stop.set()
        self.thread.join()


def larger(client: Client, folder: Path, gigabytes: float) -> None:
    paths = write_files(folder, gigabytes)
    began = time.perf_counter()
    client.gather(client.map(only_read, paths, pure=False))
    reading = time.perf_counter() - began
    load = dask.delayed(read, pure=False)
    X = da.concatenate([da.from_delayed(load(path), (ROWS, COLUMNS), float) for path in paths])
    y = da.concatenate(
        [da.from_delayed(dask.delayed(np.load)(path.with_suffix(".y.npy")), (ROWS,), np.int8) for path in paths]
    )
    seconds, cpu = [], []

    def note(info):
        seconds.append(info.seconds)
        cpu.append(sum(client.run(cpu_seconds).values()))
        print(f"epoch {info.epoch}: {info.seconds:.1f} s, gradient norm {info.gradient_norm:.1e}", flush=True)

    with Watch(client) as watch:
        began = time.perf_counter()
        SAGAClassifier(max_iter=EPOCHS, tol=0.0, random_state=0).fit(X, y, callback=note)
        whole = time.perf_counter() - began
    epoch, work = np.diff(seconds).mean(), np.diff(cpu).mean() / 2
    print("\n| data | epoch | only reading | CPU seconds / 2 | ratio | most memory of a worker | spilled | whole fit |")
    print("|---" * 8 + "|")
    print(
        f"| {len(paths) * 8e-9 * ROWS * COLUMNS:.1f} GB | {epoch:.1f} s | {reading:.1f} s | {work:.1f} s "
        f"| {epoch / max(reading, work):.2f} | {watch.most:.0%} | {watch.spilled} bytes "
        f"| {whole:.1f} s, {EPOCHS} epochs |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="visits, larger; both by default")
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--limit", default="1GB", help="memory of a worker")
    parser.add_argument("--folder", type=Path, help="keeps the files between runs")
    parser.add_argument("--repeat", type=int, default=5)
    given = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    packages = ", ".join(f"{name} {version(name)}" for name in ("dask-saga", "dask", "distributed", "numpy", "numba"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}\n", flush=True)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=given.limit, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        if not given.parts or "visits" in given.parts:
            visits(client, given.repeat)
        if not given.parts or "larger" in given.parts:
            with tempfile.TemporaryDirectory() as folder:
                larger(client, given.folder or Path(folder), given.gigabytes)


if __name__ == "__main__":
    main()
