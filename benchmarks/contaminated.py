"""Contaminated data: does ``converged_`` stay true, and does fit reach 1e-4?

Wrong cells, codes for missing values, heavy tails and pairs of far columns, at default settings. One
Markdown row a set. "passes to 1e-4" counts passes until the relative suboptimality is at most 1e-4,
or gives the last one in brackets if 100 passes do not suffice. "converged_" has the relative
suboptimality where fit stopped for each of three tol: in brackets where ``converged_`` is False, and
UNTRUE where ``converged_`` is True above 10 tol.

Usage: python benchmarks/contaminated.py [names] [--cache DIR] [--peers]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import scipy.sparse as sp
from contaminated_sets import SETS
from converged import TOLS, Outcome, about_this_run, count_false, measure, share_reached

LEVEL = 1e-4


def row(outcome: Outcome, with_peer: bool) -> str:
    problem = outcome.problem
    n, p = problem.X.shape
    form = f", density {problem.X.nnz / n / p:.2g}" if sp.issparse(problem.X) else ""
    loss = f"{problem.loss}, {problem.outputs} classes" if problem.outputs > 1 else problem.loss
    alpha = f"{problem.alpha:.0e}" if problem.penalty else ""
    chunks = f"{problem.chunks}, stream" if problem.is_stream else problem.chunks
    described = [problem.name, f"{n} x {p}{form}", loss, problem.penalty, alpha, chunks]
    return f"| {' | '.join(map(str, [*described, *outcome.cells(with_peer)]))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="name", help="sets whose names contain one of these; all by default"
    )
    parser.add_argument("--cache", type=Path, help="folder that keeps the optima between runs")
    parser.add_argument("--peers", action="store_true", help="also fit L-BFGS of scikit-learn or SciPy at its defaults")
    given = parser.parse_args()
    chosen = [name for name in SETS if not given.names or any(part in name for part in given.names)]
    if not chosen:
        parser.error(f"no set has such a name; the sets are {', '.join(SETS)}")
    print(f"{about_this_run()}\n")
    columns = ["set", "rows x columns", "loss", "penalty", "alpha", "chunks", f"passes to {LEVEL:.0e}"]
    columns += [f"converged_ at tol {', '.join(f'{tol:.0e}' for tol in TOLS)}", *["L-BFGS"] * given.peers]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    outcomes = []
    for name in chosen:
        outcome = measure(SETS[name](), LEVEL, given.cache, given.peers)
        if outcome is not None:
            outcomes.append(outcome._replace(problem=outcome.problem._replace(suspect=())))
            print(row(outcome, given.peers), flush=True)
    print(f"\nSets: {len(outcomes)}. {LEVEL:.0e} within 100 passes: {share_reached(outcomes)}.")
    print(count_false(outcomes))


if __name__ == "__main__":
    main()
