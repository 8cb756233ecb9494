"""The time of one pass: dask_saga, scikit-learn's saga, and a plain read of the same rows in the same order.

Columns of the table:

- a visit: ``chunk_saga`` over all rows, including the new random order. It is one pass of SAGA.
- GB/s: bytes of the rows alone, divided by the time of a visit.
- scikit-learn's saga: the time of one pass, from the difference of a long and a short fit.
- a pass of fit: the mean of passes 3 to 6 of ``fit`` at default settings. Where the subsample step is used, most of
  these evaluate the gradient of all rows instead of visiting them by SAGA.
- plain read: the sum of the rows, in the same random order.
- room: the largest memory that a visit allocates, as a share of the memory of the rows.

All times are medians of interleaved runs.

Usage: python benchmarks/passes.py [--repeat 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
import warnings

import numpy as np
import scipy.sparse as sp
from numba import njit
from report import print_header
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from dask_saga import SAGAClassifier, chunk_saga
from dask_saga.data.statistics import column_stats
from dask_saga.data.validation import read_chunk
from dask_saga.kernels.jit import FASTMATH
from dask_saga.losses import LogLoss
from dask_saga.penalties import ElasticNet
from dask_saga.solver.preconditioned_problem import PreconditionedProblem, row_norms
from dask_saga.solver.preconditioner_choice import choose_preconditioner
from dask_saga.solver.problem import Problem
from dask_saga.solver.state import new_solver_state
from dask_saga.solver.visit_plan import row_order

ALPHA, PASSES = 1e-4, 4
DENSE_SHAPES = ((500_000, 20), (200_000, 100), (50_000, 500))
SPARSE_SHAPES = ((100_000, 47_000, 75), (50_000, 500_000, 100))


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
    """Columns of frequencies that fall as those of words, rows of norm one, and about so many entries in each."""
    rng = np.random.default_rng(0)
    frequency = np.arange(1, p + 1) ** -0.8
    columns = rng.choice(p, size=n * stored, p=frequency / frequency.sum())
    A = sp.csr_matrix((rng.lognormal(0, 0.5, n * stored), (np.repeat(np.arange(n), stored), columns)), (n, p))
    A.data /= np.sqrt(A.multiply(A).sum(axis=1)).A1.repeat(np.diff(A.indptr))
    z = A @ np.where(rng.random(p) < 0.1, 20 * rng.standard_normal(p), 0)
    return A, (z + 0.3 * z.std() * rng.standard_normal(n) > 0).astype(int)


class Passes:
    """The passes of all solvers over the same rows."""

    def __init__(self, A, b, l1: bool):
        self.A, self.b, self.alpha, self.l1 = A, b, 1 / len(b) if l1 else ALPHA, l1
        penalty = ElasticNet(l1=self.alpha) if l1 else ElasticNet(l2=self.alpha)
        self.problem = Problem(LogLoss(), penalty, fit_intercept=True)
        self.chunk = read_chunk(A, np.where(b > 0, 1.0, -1.0))
        self.preconditioner = choose_preconditioner(column_stats(self.chunk, self.problem), self.problem)
        self.norms = row_norms(
            self.chunk, PreconditionedProblem(self.problem, self.preconditioner)
        )  # which a fit keeps
        self.head, self.memory = new_solver_state(A.shape[1], 1), None
        self.one_visit()

    def one_visit(self) -> float:
        began = time.perf_counter()
        self.head, self.memory = chunk_saga(
            self.chunk, self.head, self.memory, self.problem, self.preconditioner, 0, self.norms
        )
        return time.perf_counter() - began

    def visit(self) -> float:
        return statistics.median(self.one_visit() for _ in range(PASSES))

    def fit(self) -> float:
        seconds = {}
        penalty = "l1" if self.l1 else "l2"
        model = SAGAClassifier(penalty=penalty, alpha=self.alpha, max_iter=2 + PASSES, tol=0.0, random_state=0)
        model.fit(self.A, self.b, callback=lambda info: seconds.__setitem__(info.epoch, info.seconds))
        return (seconds[2 + PASSES] - seconds[2]) / PASSES

    def scikit_learns(self) -> float:
        seconds = []
        for passes in (1, 1 + PASSES):
            model = LogisticRegression(
                solver="saga", C=1 / (self.alpha * len(self.b)), l1_ratio=float(self.l1), max_iter=passes, tol=0.0
            )
            began = time.perf_counter()
            model.fit(self.A, self.b)
            seconds.append(time.perf_counter() - began)
        return (seconds[1] - seconds[0]) / PASSES

    def read(self) -> float:
        n = len(self.b)
        A, order = self.A, row_order(0, np.arange(n), n)
        began = time.perf_counter()
        if sp.issparse(A):
            read_sparse(A.data, A.indices, A.indptr, order)
        else:
            read_dense(A, order)
        return time.perf_counter() - began

    def nanoseconds(self, repeat: int) -> list[float]:
        """Medians for a row, by visit, fit, scikit_learns and read."""
        times = {run: [] for run in (self.visit, self.fit, self.scikit_learns, self.read)}
        for k in range(repeat + 1):
            for run, found in times.items():
                seconds = run()
                if k:  # the first compiles
                    found.append(seconds)
        return [statistics.median(found) / len(self.b) * 1e9 for found in times.values()]

    def room(self) -> float:
        """A share of the rows."""
        tracemalloc.start()
        self.one_visit()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most / self.chunk.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    warnings.simplefilter("ignore", ConvergenceWarning)
    print_header()
    header = (
        "rows x columns, , a visit (ns a row), GB/s, scikit-learn's saga, times a visit, "
        "a pass of fit, saga over it, plain read, a visit over it, room"
    )
    print("| " + header.replace(", ", " | ") + " |\n" + "|---" * 11 + "|")
    sets = [
        (f"{n} x {p}", f"{dtype}, L2", lambda n=n, p=p, d=dtype: dense(n, p, d), False)
        for n, p in DENSE_SHAPES
        for dtype in ("f8", "f4")
    ]
    sets += [
        (f"{n} x {p}", f"{k} a row, {'L1' if l1 else 'L2'}", lambda n=n, p=p, k=k: sparse(n, p, k), l1)
        for n, p, k in SPARSE_SHAPES
        for l1 in (False, True)
    ]
    ratios = []
    for name, kind, make, l1 in sets:
        passes = Passes(*make(), l1)
        own, whole, other, plain = passes.nanoseconds(repeat)
        ratios.append(other / own)
        print(
            f"| {name} | {kind} | {own:.0f} | {passes.chunk.nbytes / len(passes.b) / own:.1f} | {other:.0f} "
            f"| {other / own:.1f} | {whole:.0f} | {other / whole:.1f} | {plain:.0f} | {own / plain:.1f} "
            f"| {passes.room():.1%} |",
            flush=True,
        )
    dense_mean, sparse_mean = statistics.fmean(ratios[:6]), statistics.fmean(ratios[6:])
    print(f"\nMean of the times of scikit-learn's saga over a visit: dense {dense_mean:.1f}, sparse {sparse_mean:.1f}.")


if __name__ == "__main__":
    main()
