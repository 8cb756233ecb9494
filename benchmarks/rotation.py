"""Where rotating dense columns to their principal axes saves time: seconds of a pass, and seconds to 1e-6.

A rotated pass multiplies the rows by a p x p matrix. ``ROTATES_FREELY`` of
``solver.preconditioner_choice`` is fitted to the first table, which
compares its cost to a pass with scaling only. The second table checks the choice between the two, on strongly
correlated and on independent columns. The third (--large) uses the subsample step: 1.6 GB of correlated columns in 20
chunks, passes and seconds to relative gradient norms, without and with rotation, for a subsample of 16 MB and of 1/32
of the rows.
Usage: python benchmarks/rotation.py [--large]
"""

from __future__ import annotations

import sys
import time
import warnings

import dask.array as da
import numpy as np
from report import print_header
from sklearn.exceptions import ConvergenceWarning
from trust_optimum import ALPHA, objective, optimum
from trust_sets import DataSet

from dask_saga import SAGAClassifier, saga
from dask_saga.data import statistics
from dask_saga.penalties import ElasticNet
from dask_saga.solver import preconditioner_choice, subsample

ROWS = 20_000
FREELY = {"scaled": 1e9, "rotated": 1e9, "chosen": preconditioner_choice.ROTATES_FREELY}


def rows(p: int, correlated: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    A = rng.standard_normal((ROWS, p))
    if correlated:
        A = A @ (rng.standard_normal((p, p)) + np.eye(p))
    z = A @ rng.standard_normal(p)
    return A, np.where(z + z.std() * rng.standard_normal(ROWS) > 0, 1.0, -1.0)


def fit(A: np.ndarray, b: np.ndarray, kind: str, passes: int, callback=None):
    preconditioner_choice.ROTATES_FREELY = FREELY[kind]
    most, statistics.MOST_ROTATED = statistics.MOST_ROTATED, 1 if kind == "scaled" else statistics.MOST_ROTATED
    try:
        return saga(
            [(A, b)], penalty=ElasticNet(l2=ALPHA), fit_intercept=True, max_iter=passes, random_state=0,
            callback=callback,
        )  # fmt: skip
    finally:
        statistics.MOST_ROTATED = most


def seconds_of_a_pass(A: np.ndarray, b: np.ndarray, kind: str) -> float:
    seconds = []
    for _ in range(3):
        history = fit(A, b, kind, 5).history
        seconds.append((history[-1]["seconds"] - history[0]["seconds"]) / 4)
    return min(seconds)


def to_level(A: np.ndarray, b: np.ndarray, kind: str, level: float = 1e-6) -> str:
    data = DataSet("rows", A, (b > 0).astype(int), "binary")
    F, best = objective(data), optimum(data)
    found, began, unpaid = [], time.perf_counter(), 0.0

    def reached(info):
        nonlocal unpaid
        now = time.perf_counter()
        if best.gap(F.value(np.append(info.x, info.intercept)[None])) <= level:
            found.append(f"{info.epoch} passes, {now - began - unpaid:.2g} s")
            return True
        unpaid += time.perf_counter() - now
        return False

    fit(A, b, kind, 200, reached)
    return found[0] if found else "not in 200 passes"


def large() -> None:
    n, p, parts = 2_000_000, 100, {"16 MB": subsample.LEAST_BYTES, "a 32nd": subsample.MOST_BYTES}
    rng = np.random.default_rng(0)
    mix, x = 0.3 * rng.standard_normal((p, p)) + np.eye(p), rng.standard_normal(p) / 6
    A = np.concatenate([rng.standard_normal((n // 20, p)) @ mix for _ in range(20)])
    b = A @ x + 1.5 * rng.standard_normal(n) > 1
    A = A * np.logspace(0, 3, p) + 10
    X, y = da.from_array(A, chunks=(n // 20, p)), da.from_array(b, chunks=n // 20)
    print("| columns | sample | 1e-4 | 1e-6 |\n|---|---|---|---|")
    for kind, most in (("scaled", 1), ("as chosen", statistics.MOST_ROTATED)):
        for part, subsample.MOST_BYTES in parts.items():
            statistics.MOST_ROTATED = most
            began = time.perf_counter()
            history = SAGAClassifier(tol=1e-6, max_iter=40, random_state=0).fit(X, y).history_
            prepared = time.perf_counter() - began - history[-1]["seconds"]
            cells = []
            for level in (1e-4, 1e-6):
                reached = [row for row in history if row["gradient_norm"] <= level][:1]
                cells += [f"{row['epoch']} passes, {prepared + row['seconds']:.2g} s" for row in reached] or ["-"]
            print(f"| {kind} | {part} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    print_header()
    if "--large" in sys.argv:
        warnings.simplefilter("ignore", ConvergenceWarning)
        large()
        return
    print("| columns | scaled pass | rotated pass | ratio | 1 + p / 40 |\n|---|---|---|---|---|")
    for p in (10, 25, 50, 100, 200, 300):
        A, b = rows(p, correlated=True)
        scaled, rotated = (seconds_of_a_pass(A, b, kind) for kind in ("scaled", "rotated"))
        print(f"| {p} | {scaled:.4f} s | {rotated:.4f} s | {rotated / scaled:.1f} | {1 + p / 40:.1f} |", flush=True)
    print("\n| columns | | scaled | rotated | chosen |\n|---|---|---|---|---|")
    for p in (25, 100, 200):
        for correlated in (True, False):
            A, b = rows(p, correlated)
            cells = " | ".join(to_level(A, b, kind) for kind in FREELY)
            print(f"| {p} | {'correlated' if correlated else 'independent'} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
