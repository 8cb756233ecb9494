"""What one pass costs: ours, scikit-learn's saga, and a plain read of the same rows in the same order.

Ours is the difference of long and short fits with default settings, so it holds all that a pass does, its
order of rows included; scikit-learn's likewise. A read sums the rows in a random order. Medians of interleaved
runs. GB/s are those of the rows alone. Room is what one visit of all rows takes at most beside them, as a share.

Usage: python benchmarks/passes.py [--repeat 5]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
import tracemalloc
import warnings
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import scipy.sparse as sp
from numba import njit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from dask_saga import SAGAClassifier, chunk_saga
from dask_saga._intrinsics import CACHE_LINE
from dask_saga.columns import column_stats
from dask_saga.inputs import read_chunk
from dask_saga.losses import FASTMATH, LogLoss
from dask_saga.metric import choose_metric, row_norms
from dask_saga.penalties import ElasticNet
from dask_saga.problem import Problem
from dask_saga.state import new_head

ALPHA, PASSES = 1e-4, 4
DENSE = ((500_000, 20), (200_000, 100), (50_000, 500))
SPARSE = ((100_000, 20_000, 60), (200_000, 100_000, 30))


@njit(fastmath=FASTMATH)
def read_dense(A, order):
    total = 0.0
    for i in order:
        for j in range(A.shape[1]):
            total += A[i, j]
    return total


@njit(fastmath=FASTMATH)
def read_sparse(data, indices, indptr, order):
    total = 0.0
    for i in order:
        for q in range(indptr[i], indptr[i + 1]):
            total += data[q] * indices[q]
    return total


def dense(n: int, p: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    A = rng.standard_normal((n, p)).astype(dtype)
    return A, (A[:, :5].sum(axis=1) + rng.standard_normal(n) > 0).astype(int)


def sparse(n: int, p: int, stored: int) -> tuple[sp.csr_matrix, np.ndarray]:
    """Columns of falling frequency, as words have."""
    rng = np.random.default_rng(0)
    columns = (p * rng.random((n, stored)) ** 3).astype(int)
    A = sp.csr_matrix((rng.standard_normal(n * stored), (np.repeat(np.arange(n), stored), columns.ravel())), (n, p))
    return A, (A[:, :50].sum(axis=1).A1 + rng.standard_normal(n) > 0).astype(int)


def ours(A, b) -> float:
    seconds = {}
    model = SAGAClassifier(alpha=ALPHA, max_iter=2 + PASSES, tol=0.0, random_state=0)
    model.fit(A, b, callback=lambda info: seconds.__setitem__(info.epoch, info.seconds))
    return (seconds[2 + PASSES] - seconds[2]) / PASSES


def scikit_learns(A, b) -> float:
    seconds = []
    for passes in (1, 1 + PASSES):
        model = LogisticRegression(solver="saga", C=1 / (ALPHA * len(b)), max_iter=passes, tol=0.0)
        began = time.perf_counter()
        model.fit(A, b)
        seconds.append(time.perf_counter() - began)
    return (seconds[1] - seconds[0]) / PASSES


def read(A, b) -> float:
    order = np.random.default_rng(0).permutation(len(b))
    began = time.perf_counter()
    if sp.issparse(A):
        read_sparse(A.data, A.indices, A.indptr, order)
    else:
        read_dense(A, order)
    return time.perf_counter() - began


def room(A, b) -> float:
    """Share of a chunk visited before. What the sparse kernel takes itself, a line of the cache a column, is added."""
    problem = Problem(LogLoss(), ElasticNet(l2=ALPHA), fit_intercept=True)
    chunk = read_chunk(A, np.where(b > 0, 1.0, -1.0))
    metric = choose_metric(column_stats(chunk, problem), problem)
    head, memory = chunk_saga(chunk, new_head(A.shape[1], 1), None, problem, metric, 0)
    norms = row_norms(chunk, metric, problem)  # which a fit keeps
    tracemalloc.start()
    chunk_saga(chunk, head, memory, problem, metric, 1, norms)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (most + sp.issparse(A) * CACHE_LINE * A.shape[1]) / chunk.nbytes


def compare(A, b, repeat: int) -> dict[Callable, float]:
    times = {run: [] for run in (ours, scikit_learns, read)}
    for k in range(repeat + 1):
        for run, found in times.items():
            seconds = run(A, b)
            if k:  # the first compiles
                found.append(seconds)
    return {run: statistics.median(found) for run, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    warnings.simplefilter("ignore", ConvergenceWarning)
    packages = ", ".join(f"{name} {version(name)}" for name in ("dask-saga", "scikit-learn", "numpy", "numba"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}\n")
    header = "rows x columns, , ours (ns a row), GB/s, scikit-learn's saga, times ours, plain read, times read, room"
    print("| " + header.replace(", ", " | ") + " |\n" + "|---" * 9 + "|")
    sets = [(f"{n} x {p}", dtype, lambda n=n, p=p, d=dtype: dense(n, p, d)) for n, p in DENSE for dtype in ("f8", "f4")]
    sets += [(f"{n} x {p}", f"{k} a row", lambda n=n, p=p, k=k: sparse(n, p, k)) for n, p, k in SPARSE]
    ratios = []
    for name, kind, make in sets:
        A, b = make()
        found = compare(A, b, repeat)
        size = A.data.nbytes + A.indices.nbytes if sp.issparse(A) else A.nbytes
        one, other, plain = (found[run] for run in (ours, scikit_learns, read))
        ratios.append(other / one)
        cells = [f"{t / len(b) * 1e9:.0f}" for t in (one, other, plain)]
        print(
            f"| {name} | {kind} | {cells[0]} | {size / one / 1e9:.1f} | {cells[1]} | {ratios[-1]:.1f} "
            f"| {cells[2]} | {one / plain:.1f} | {room(A, b):.1%} |",
            flush=True,
        )
    print(f"\nGeometric mean of the times of scikit-learn's saga over ours: {statistics.geometric_mean(ratios):.1f}.")


if __name__ == "__main__":
    main()
