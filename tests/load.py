"""Large and many fits on one cluster; what they take: ``python -m tests.load [CASE ...]`` prints a table."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask
import dask.array as da
import numpy as np
import psutil
import scipy.sparse as sp
from distributed import Client, LocalCluster, get_client

from dask_saga import SAGAClassifier, SAGARegressor
from dask_saga.fitting import preparation


def small(k: int) -> tuple:
    rng = np.random.default_rng(k)
    A = rng.standard_normal((400, 6)) * np.logspace(0, 2, 6)
    return A, A @ rng.standard_normal(6) + rng.standard_normal(400) > 0


def one_small_fit(k: int) -> bytes:
    A, y = small(k)
    X, labels = da.from_array(A, chunks=(100, 6)), da.from_array(y, chunks=100)
    return SAGAClassifier(max_iter=4, tol=0.0, random_state=k).fit(X, labels).coef_.tobytes()


def _inside(k: int) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_client()  # the worker's own, which fit then finds
        preparation.JOINED_BYTES = 0
        return one_small_fit(k)


def concurrent_fits(count: int) -> str:
    """Fits side by side: from threads of the client, and from tasks."""
    with dask.config.set(scheduler="synchronous"):
        expected = [one_small_fit(k) for k in range(count)]
    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(one_small_fit, range(count // 2)))
    client = get_client()
    found += client.gather(client.map(_inside, range(count // 2, count), pure=False))
    assert found == expected, "other bits"
    return f"{count} fits of 4 chunks, {count // 2} from threads and {count - count // 2} from tasks: the same bits"


def many_chunks(count: int) -> str:
    """A fit with very many chunks."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((100 * count, 10)).astype("f4")
    y = A @ np.arange(10.0) + rng.standard_normal(len(A))
    X, targets = da.from_array(A, chunks=(100, 10)), da.from_array(y, chunks=100)
    model = SAGARegressor(max_iter=2, tol=0.0, random_state=0).fit(X, targets)
    assert np.abs(model.coef_ - np.arange(10.0)).max() < 0.1
    return f"{count} chunks, 2 passes"


def _block(_, rows, columns, block_info=None):
    k = block_info[None]["chunk-location"][0]
    return np.random.default_rng(k).standard_normal((rows, columns), dtype="f4")


def many_rows(rows: int, columns: int = 50, chunk: int = 250_000) -> str:
    """Tall data, made on the workers."""
    chunk = min(chunk, rows)
    X = da.map_blocks(
        _block, da.zeros((rows, 1), chunks=(chunk, 1)), rows=chunk, columns=columns, dtype="f4",
        chunks=(chunk, columns), meta=np.empty((0, columns), "f4"),
    )  # fmt: skip
    x = np.linspace(-1, 1, columns).astype("f4")
    y = (X @ x > 0).astype("i1")
    model = SAGAClassifier(alpha=1e-3, max_iter=5, tol=0.0, random_state=0).fit(X, y)
    cosine = model.coef_[0] @ x / np.linalg.norm(model.coef_) / np.linalg.norm(x)
    assert cosine > 0.99, cosine
    return f"{rows:,} x {columns} float32 in {len(X.chunks[0])} chunks, 5 passes"


def _sparse_block(_, rows, columns, block_info=None):
    k = block_info[None]["chunk-location"][0]
    rng = np.random.default_rng(k)
    # A few columns tell the label, the rest are rare.
    indices = np.concatenate([rng.integers(10, size=(rows, 2)), rng.integers(10, columns, size=(rows, 18))], axis=1)
    B = sp.csr_matrix(  # older Dask joins no blocks of sparse arrays
        (np.ones(rows * 20, "f4"), indices.ravel(), np.arange(0, rows * 20 + 1, 20)), shape=(rows, columns)
    )
    B.sum_duplicates()
    return B


def _sparse_labels(block):
    return np.asarray(block[:, np.arange(5)].sum(axis=1)).ravel() > 0


def many_columns(columns: int, rows: int = 100_000) -> str:
    """Sparse rows with very many columns."""
    chunk = rows // 8
    X = da.map_blocks(
        _sparse_block, da.zeros((rows, 1), chunks=(chunk, 1)), rows=chunk, columns=columns, dtype="f4",
        chunks=(chunk, columns), meta=sp.csr_matrix((0, columns), dtype="f4"),
    )  # fmt: skip
    y = X.map_blocks(_sparse_labels, drop_axis=1, dtype=bool, meta=np.empty(0, bool))
    model = SAGAClassifier(alpha=1e-4, max_iter=3, tol=0.0, random_state=0).fit(X, y)
    assert model.coef_.shape == (1, columns)
    assert (model.coef_[0, :5] > 0).all()
    return f"{rows:,} x {columns:,} sparse, 20 entries a row, 8 chunks, 3 passes"


CASES = {
    "concurrent fits": (concurrent_fits, 12, 100),
    "chunks": (many_chunks, 60, 10_000),
    "rows": (many_rows, 50_000, 5_000_000),
    "columns": (many_columns, 20_000, 1_000_000),
}  # fmt: skip


class Watch(threading.Thread):
    """The most tasks on the scheduler, and memory of the processes."""

    def __init__(self, cluster: Any, others: set[int]):
        super().__init__(daemon=True)
        self.cluster, self.others, self.ended = cluster, others, threading.Event()
        self.tasks, self.memory, self.base = 0, {}, psutil.Process().memory_info().rss

    def run(self) -> None:
        while not self.ended.wait(0.05):
            self.tasks = max(self.tasks, len(self.cluster.scheduler.tasks))
            own = psutil.Process()
            for process in [own, *own.children(recursive=True)]:
                if process.pid in self.others:
                    continue
                try:
                    used = process.memory_info().rss
                except psutil.Error:
                    continue
                self.memory[process.pid] = max(self.memory.get(process.pid, 0), used)

    def row(self) -> tuple[int, float, float]:
        own = self.memory.pop(psutil.Process().pid, self.base)
        return self.tasks, (own - self.base) / 2**20, max(self.memory.values(), default=0) / 2**20


def run(names: list[str], long: bool) -> list[dict]:
    """A row for each case: what it was, seconds, most tasks, tasks left, and memory in MiB."""
    rows = []
    for name in names:
        function, short_size, long_size = CASES[name]
        joined, preparation.JOINED_BYTES = preparation.JOINED_BYTES, 0
        others = {process.pid for process in psutil.Process().children(recursive=True)}
        with (
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit="4GiB") as cluster,
            Client(cluster),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            watch = Watch(cluster, others)
            watch.start()
            began = time.perf_counter()
            try:
                text = function(long_size if long else short_size)
            finally:
                preparation.JOINED_BYTES = joined
            seconds = time.perf_counter() - began
            watch.ended.set()
            watch.join()
            deadline = time.monotonic() + 30
            while (left := len(cluster.scheduler.tasks)) and time.monotonic() < deadline:
                time.sleep(0.1)
            tasks, client, worker = watch.row()
            rows.append({
                "what": text, "seconds": seconds, "tasks": tasks, "left": left, "client": client, "worker": worker,
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def main(names: list[str]) -> None:
    print("| what | seconds | most tasks | tasks left | client grew, MiB | largest worker, MiB |")
    print("|---|---|---|---|---|---|")
    for row in run(names or list(CASES), True):
        print("| {what} | {seconds:.0f} | {tasks} | {left} | {client:.0f} | {worker:.0f} |".format(**row))


if __name__ == "__main__":
    main(sys.argv[1:])
