"""``partial_fit`` with curvature beside SAGA steps: the distance from the optimum after one, two and three passes.

Each set is cut into chunks in the order of its rows, and after a shuffle. Every pass gives each chunk once to
``partial_fit``. A cell has the relative suboptimality (F(x) - F*) / (F(0) - F*) by the exact objective of
exact_optimum.py; "0" is below 1e-15. The seconds are those of three passes of ``partial_fit``, each the least of
``--repeat`` runs of both by turns. The last column is their ratio, curvature to steps.

Usage: python benchmarks/partial_fit.py [names] [--chunks 12 100] [--repeat N] [--cache DIR] [--sparse]
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from converged import Case, estimator
from exact_optimum import Problem, objective, optimum
from report import print_header
from sklearn.exceptions import ConvergenceWarning
from trust_sets import SETS as TRUST_SETS

PASSES, ALPHA = 3, 1e-4


def trust(name: str) -> Callable[[], Problem]:
    """One of the sets of trust_sets.py, dense where it has at most 300 columns."""

    def make() -> Problem:
        data = TRUST_SETS[name]()
        X = data.X.toarray() if sp.issparse(data.X) and data.X.shape[1] <= 300 else data.X
        return Problem(data.name, X, data.y, data.loss, alpha=ALPHA)

    return make


def drifting() -> Problem:
    """Columns that wander in time, so that no chunk is like another."""
    rng, n, p = np.random.default_rng(0), 200_000, 20
    X = rng.standard_normal((n, p)) + 2 * np.sin(np.linspace(0, 6, n)[:, None] + np.arange(p))
    z = 0.5 * X @ rng.standard_normal(p)
    return Problem("drifting columns", X, (z + 2 * rng.logistic(size=n) > 0).astype(int), alpha=ALPHA)


def nearly_separable() -> Problem:
    rng, n, p = np.random.default_rng(1), 100_000, 20
    X = rng.standard_normal((n, p)) @ (np.eye(p) + 0.5 * rng.standard_normal((p, p)))
    X /= X.std(axis=0)
    z = X @ rng.standard_normal(p)
    return Problem("nearly separable", X, (z + 0.05 * rng.logistic(size=n) > 0).astype(int), alpha=ALPHA)


def five_classes() -> Problem:
    rng, n, p, k = np.random.default_rng(2), 60_000, 20, 5
    y = rng.integers(k, size=n)
    return Problem("five classes", 0.7 * rng.standard_normal((k, p))[y] + rng.standard_normal((n, p)), y, alpha=ALPHA)


def counts() -> Problem:
    rng, n, p = np.random.default_rng(3), 100_000, 20
    X = rng.standard_normal((n, p)) * 10.0 ** rng.uniform(-2, 2, p)
    z = (X / X.std(axis=0)) @ rng.standard_normal(p) / 4
    return Problem("counts (Poisson)", X, rng.poisson(np.exp(z)).astype(float), "poisson", alpha=ALPHA)


def elastic_net() -> Problem:
    rng, n, p = np.random.default_rng(4), 100_000, 60
    X = rng.standard_normal((n, p))
    z = X @ np.where(rng.random(p) < 0.3, rng.standard_normal(p), 0)
    return Problem("elastic net", X, (z + rng.logistic(size=n) > 0).astype(int), penalty="elasticnet", alpha=1e-3)


def wide() -> Problem:
    rng, n, p = np.random.default_rng(5), 60_000, 300
    X = rng.standard_normal((n, p)) @ (np.eye(p) + rng.standard_normal((p, p)) / np.sqrt(p))
    z = X @ rng.standard_normal(p) / np.sqrt(p)
    return Problem("300 columns", X, (z + rng.logistic(size=n) > 0).astype(int), alpha=ALPHA)


DENSE = {
    "flights_raw": trust("flights_raw"),
    "flights_one_hot": trust("flights_one_hot"),
    "drifting": drifting,
    "nearly_separable": nearly_separable,
    "heavy_tails": trust("heavy_tails"),
    "correlated": trust("correlated"),
    "mixed_units": trust("mixed_units"),
    "five_classes": five_classes,
    "counts": counts,
    "elastic_net": elastic_net,
    "huber": trust("outliers_huber"),
    "by_label": trust("by_label"),
    "wide": wide,
}
SPARSE = {"text": trust("text")}


def visits(problem: Problem, parts: list, case: Case, curvature: str | bool) -> tuple[list[float], float]:
    """Return the suboptimality after each pass, and the seconds of all passes."""
    model, gaps, seconds = estimator(problem, curvature=curvature), [], 0.0
    classes = {"classes": np.unique(problem.y)} if problem.is_classification else {}
    for _ in range(PASSES):
        began = time.perf_counter()
        for k, (X, y) in enumerate(parts):
            model.partial_fit(X, y, chunk_id=k, **classes)
        seconds += time.perf_counter() - began
        gaps.append(case.gap(model.coef_, model.intercept_))
    return gaps, seconds


def cell(gap: float) -> str:
    return "0" if gap < 1e-15 else f"{gap:.0e}"


def report(problem: Problem, chunk_counts: list[int], repeat: int, cache: Path | None) -> list[list[float]]:
    """Print one row for each order and number of chunks, and return the suboptimalities with curvature."""
    F = objective(problem)
    case, found = Case(problem, F, optimum(problem, F, cache)), []
    n, p = problem.X.shape
    for order in ("as it comes", "shuffled"):
        rows = np.arange(n) if order == "as it comes" else np.random.default_rng(0).permutation(n)
        for count in chunk_counts:
            parts = [(problem.X[some], problem.y[some]) for some in np.array_split(rows, count)]
            runs = [[visits(problem, parts, case, curvature) for curvature in ("auto", False)] for _ in range(repeat)]
            (gaps, _), (other, _) = runs[0]
            seconds = [min(run[which][1] for run in runs) for which in (0, 1)]
            cells = [problem.name, f"{n} x {p}", order, count, ", ".join(map(cell, gaps)), ", ".join(map(cell, other))]
            cells += [f"{seconds[0]:.2f}", f"{seconds[1]:.2f}", f"{seconds[0] / seconds[1]:.1f}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
            found.append(gaps)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join([*DENSE, *SPARSE])}")
    parser.add_argument("--chunks", nargs="+", type=int, default=[12, 100])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cache", type=Path, help="folder that keeps the optima between runs")
    parser.add_argument("--sparse", action="store_true", help="the sparse sets instead of the dense ones")
    given = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    print_header()
    columns = ["set", "rows x columns", "order", "chunks", "curvature, passes 1, 2, 3", "steps, passes 1, 2, 3"]
    columns += ["seconds", "of steps", "ratio"]
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    found, sets = [], {**DENSE, **SPARSE}
    for name in given.names or (SPARSE if given.sparse else DENSE):
        found += report(sets[name](), given.chunks, given.repeat, given.cache)
    for k in range(PASSES):
        gaps = [max(gaps[k], 1e-16) for gaps in found]
        print(f"\nPass {k + 1}: largest {max(gaps):.0e}, median {np.median(gaps):.0e}.")


if __name__ == "__main__":
    main()
