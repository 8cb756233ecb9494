"""Random sets of 10,000 rows and more, many made to break a solver: does ``converged_`` stay true?

Each of the 516 sets is generated from its number, with default settings but for loss, penalty and alpha. One
Markdown row a set. "passes to 1e-6" counts passes until the relative suboptimality is at most 1e-6,
or gives the last one in brackets if 100 passes do not suffice. "converged_" is as in contaminated.py.
Sets with rows or columns of unbounded length (heavy tails, columns with one entry) are marked, and the
last lines count the others once more.

Usage: python benchmarks/random_sets.py [--numbers FIRST END] [--cache DIR] [--peers]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from converged import TOLS, about_this_run, count_false, measure, share_reached
from exact_optimum import Problem, objective

SET_COUNT, LEVEL = 516, 1e-6
JOINED = 540_000  # fit joins chunks of fewer float64 entries, 4 MB, to one
HEAVY = ("lognormal", "student", "cauchy")


class Rows(NamedTuple):
    """Columns, what their targets depend on, and how they came about.

    Parameters
    ----------
    X : ndarray or csr_matrix of shape (n, p)
    signal : ndarray of shape (n, q)
        Of a size of about one.
    traits : list of str
    """

    X: np.ndarray | sp.csr_matrix
    signal: np.ndarray
    traits: list[str]


def _standardised(columns: np.ndarray) -> np.ndarray:
    spread = columns.std(axis=0)
    return (columns - columns.mean(axis=0)) / np.where(spread > 0, spread, 1.0)


def _normal(rng: np.random.Generator, n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    X = rng.standard_normal((n, p))
    return X, X


def _mixed(rng: np.random.Generator, n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    Z = rng.standard_normal((n, p))
    return Z @ rng.standard_normal((p, p)), Z


def _neighbours(rng: np.random.Generator, n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlations of 0.9 to 0.999 between neighbours."""
    X, r = rng.standard_normal((n, p)), 1.0 - 10.0 ** rng.uniform(-3, -1)
    for j in range(1, p):
        X[:, j] = r * X[:, j - 1] + np.sqrt(1.0 - r**2) * X[:, j]
    return X, X


def _near_duplicates(rng: np.random.Generator, n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of columns that differ by little, and targets that depend on the difference."""
    Z = rng.standard_normal((n, p))
    X = Z.copy()
    X[:, 1::2] = X[:, : 2 * (p // 2) : 2] + 10.0 ** rng.uniform(-4, -1) * Z[:, 1::2]
    return X, Z


def _lognormal(rng: np.random.Generator, n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    Z = rng.standard_normal((n, p))
    return np.exp(rng.uniform(1, 2) * Z), Z


def _student(rng: np.random.Generator, n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    X = rng.standard_t(rng.choice([2, 3]), (n, p))
    return X, np.arcsinh(X)


def _cauchy(rng: np.random.Generator, n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    X = rng.standard_cauchy((n, p))
    return X, np.arcsinh(X)


def _walks(rng: np.random.Generator, n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    """Random walks, one row after the other."""
    X = rng.standard_normal((n, p)).cumsum(axis=0)
    return X, _standardised(X)


def _trends(rng: np.random.Generator, n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    """Straight lines in time with noise of 1 % to 100 % of their height."""
    Z = rng.standard_normal((n, p))
    X = np.linspace(-1, 1, n)[:, None] * rng.choice([-1.0, 1.0], p) + 10.0 ** rng.uniform(-2, 0, p) * Z
    return X, (_standardised(X) + Z) / 2


def _counts(rng: np.random.Generator, n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    X = rng.poisson(10.0 ** rng.uniform(-2, 1, p), (n, p)).astype(float)
    return X, _standardised(X)


FAMILIES: dict[str, tuple[float, Callable]] = {  # with their frequencies
    "normal": (0.2, _normal),
    "mixed": (0.13, _mixed),
    "neighbours": (0.1, _neighbours),
    "near duplicates": (0.1, _near_duplicates),
    "lognormal": (0.12, _lognormal),
    "student": (0.08, _student),
    "cauchy": (0.02, _cauchy),
    "walks": (0.08, _walks),
    "trends": (0.07, _trends),
    "counts": (0.1, _counts),
}


def dense(rng: np.random.Generator, n: int, p: int, families: list[str] | None = None) -> Rows:
    """One to three families of columns in mixed units, and some columns that are hardly any."""
    if families is None:
        shares = np.array([share for share, _ in FAMILIES.values()])
        count = min(p, rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))
        families = list(rng.choice(list(FAMILIES), count, replace=False, p=shares / shares.sum()))
    widths = [len(part) for part in np.array_split(range(p), len(families))]
    parts = [FAMILIES[family][1](rng, n, width) for family, width in zip(families, widths, strict=True)]
    X, signal = (np.hstack(part) for part in zip(*parts, strict=True))
    traits = families.copy()
    if rng.random() < 0.4:
        X, traits = X * 10.0 ** rng.uniform(-3, 4, p), [*traits, "units"]
    if rng.random() < 0.3:
        which = rng.random(p) < 0.5
        far = 10.0 ** rng.uniform(0, rng.choice([2, 4, 6]), p) * np.quantile(np.abs(X), 0.9, axis=0)
        X, traits = X + np.where(which, far, 0.0), [*traits, "far"]
    oddities = {
        "duplicates": lambda: X[:, rng.integers(p, size=2)],
        "constant": lambda: np.full((n, 1), 10.0 ** rng.uniform(-2, 4)),
        "zeros": lambda: np.zeros((n, 2)),
        "one entry": lambda: 10.0 ** rng.uniform(-2, 3) * (np.arange(n) == rng.integers(n))[:, None],
    }
    for name, make in oddities.items():
        if rng.random() < 0.06:
            X, traits = np.hstack([X, make()]), [*traits, name]
    return Rows(np.ascontiguousarray(X), signal, traits)


def one_hot(rng: np.random.Generator, n: int, p: int) -> Rows:
    """One category of many levels, most of them rare, and a few numeric columns; dense or CSR."""
    numeric = dense(rng, n, int(rng.integers(1, 6)))
    levels = max(p, 10)
    share = np.arange(1, levels + 1) ** -rng.uniform(1.0, 2.0)
    count = np.maximum(2, (n * share / share.sum()).astype(int))  # counts are fixed, so that no level is without rows
    count[0] += n - count.sum()
    level = rng.permutation(np.repeat(np.arange(levels), count))
    signal = np.c_[numeric.signal, rng.standard_normal((levels, 2))[level]]
    traits = ["one-hot", *numeric.traits]
    if levels < 100:
        return Rows(np.hstack([numeric.X, np.eye(levels)[level]]), signal, traits)
    hot = sp.csr_matrix((np.ones(n), level, np.arange(n + 1)), shape=(n, levels))
    return Rows(sp.csr_matrix(sp.hstack([sp.csr_matrix(numeric.X), hot])), signal, traits)


def words(rng: np.random.Generator, n: int, p: int) -> Rows:
    """Sparse rows with Zipf's frequencies: counts, rows of norm one, lognormal entries; some beside dense columns."""
    frequency = 1.0 / (np.arange(p) + 10.0)
    length = rng.poisson(rng.uniform(10, 40), n) + 1
    which = rng.choice(p, size=length.sum(), p=frequency / frequency.sum())
    X = sp.csr_matrix((np.ones(len(which)), which, np.r_[0, length.cumsum()]), shape=(n, p))
    X.sum_duplicates()
    X = sp.csr_matrix(X[:, np.bincount(X.indices, minlength=p) >= 3])
    traits = ["words", str(rng.choice(["counts", "norm one", "lognormal"], p=[0.4, 0.4, 0.2]))]
    rule = rng.standard_normal((X.shape[1], 3)) * (rng.random((X.shape[1], 1)) < 0.2)
    signal = _standardised(X @ rule)
    if traits[1] == "norm one":
        X.data /= np.repeat(np.sqrt(X.multiply(X).sum(axis=1)).A1, np.diff(X.indptr))
    elif traits[1] == "lognormal":
        X.data *= np.exp(rng.uniform(1, 2) * rng.standard_normal(X.nnz))
    if rng.random() < 0.4:
        numeric = dense(rng, n, int(rng.integers(1, 6)))
        X = sp.csr_matrix(sp.hstack([sp.csr_matrix(numeric.X), X]))
        signal, traits = np.c_[signal, numeric.signal], [*traits, *numeric.traits]
    return Rows(X, signal, traits)


def random_set(number: int) -> Problem:
    """The set of a number."""
    rng = np.random.default_rng(number)
    make = rng.choice([dense, one_hot, words], p=[0.66, 0.17, 0.17])
    losses = {"log_loss": 0.45, "multinomial": 0.13, "squared_hinge": 0.14, "modified_huber": 0.04}
    losses |= {"huber": 0.11, "squared_error": 0.11, "poisson": 0.02}
    loss = str(rng.choice(list(losses), p=list(losses.values())))
    penalty = rng.choice(["l2", "l1", "elasticnet", None], p=[0.58, 0.18, 0.13, 0.11])
    alpha = 10.0 ** rng.uniform(-8, -1)
    chunks = int(rng.choice([1, 4, 20], p=[0.4, 0.3, 0.3]))
    n, p = _shape(rng, make is words, loss, penalty, chunks)
    rows = make(rng, n, p)
    strength = 10.0 ** rng.uniform(-0.5, 0.5)
    if penalty is not None and rng.random() < 0.15:
        trait = "little noise" if loss in ("huber", "squared_error", "poisson") else "nearly separable"
        strength, rows = 30.0, rows._replace(traits=[*rows.traits, trait])
    y, traits = _targets(rng, rows, loss, strength)
    if penalty is None and ({"one entry", "one-hot", "words", "rare class"} & {*traits}):
        penalty = "l2"  # without a penalty no minimum may exist
    X, y, order = _sorted(rng, rows.X, y)
    weight = rng.exponential(size=n) if rng.random() < 0.2 else None
    traits = [*traits, *order, *["weights"] * (weight is not None)]
    problem = Problem(
        ", ".join(traits), X, y, "log_loss" if loss == "multinomial" else loss, penalty, alpha, chunks, weight,
        is_unbounded=bool({*HEAVY, "one entry"} & {*traits}),
    )  # fmt: skip
    return problem if penalty in ("l2", None) else _with_some_coefficients(problem)


def _shape(rng: np.random.Generator, is_sparse: bool, loss: str, penalty: str | None, chunks: int) -> tuple[int, int]:
    """Rows and columns; of several chunks so many that they are not joined, as far as that is quick."""
    n = int(rng.choice([10_000, 20_000, 40_000], p=[0.75, 0.15, 0.1]))
    if is_sparse:
        most = 60 if loss == "multinomial" else 300 if penalty == "l1" else 600 if rng.random() < 0.9 else 2000
        return (20_000 if chunks > 1 else 10_000), int(np.exp(rng.uniform(np.log(30), np.log(most))))
    most = 30 if loss == "multinomial" else 60 if rng.random() < 0.8 else 300
    p = int(np.exp(rng.uniform(np.log(2), np.log(most))))
    if chunks > 1:
        p = max(p, int(rng.integers(14, 40)))
        n = max(n, min(40_000, JOINED // p + 1))
    return n, p


def _targets(rng: np.random.Generator, rows: Rows, loss: str, strength: float) -> tuple[np.ndarray, list[str]]:
    """Targets of a linear rule of the signal, and traits."""
    n, q = rows.signal.shape
    classes = int(rng.integers(3, 6)) if loss == "multinomial" else 1
    z = rows.signal @ rng.standard_normal((q, classes))
    z = strength * z / z.std()
    if classes > 1:
        return np.unique((z + rng.gumbel(size=z.shape)).argmax(axis=1), return_inverse=True)[1], rows.traits
    z = z[:, 0]
    if loss == "poisson":
        return rng.poisson(np.exp(np.clip(z, -4, 2))).astype(float), rows.traits
    if loss in ("huber", "squared_error"):
        y = z + rng.standard_t(3, n)
        return y * 10.0 ** (rng.uniform(-2, 3) if loss == "squared_error" else rng.uniform(-0.5, 1)), rows.traits
    z += rng.logistic(size=n)
    if rng.random() < 0.1:
        return (z > np.quantile(z, 0.995)).astype(int), [*rows.traits, "rare class"]
    return (z > np.median(z) + rng.normal() / 2).astype(int), rows.traits


def _sorted(
    rng: np.random.Generator, X: np.ndarray | sp.csr_matrix, y: np.ndarray
) -> tuple[np.ndarray | sp.csr_matrix, np.ndarray, list[str]]:
    order = str(rng.choice(["", "by target", "by column"], p=[0.7, 0.15, 0.15]))
    if not order:
        return X, y, []
    column = X[:, rng.integers(X.shape[1])]
    column = np.ravel(column.toarray() if sp.issparse(column) else column)
    rows = np.argsort(y if order == "by target" else column, kind="stable")
    return X[rows], y[rows], [f"sorted {order}"]


def _with_some_coefficients(problem: Problem) -> Problem:
    """With an alpha at which zero is not the optimum."""
    F = objective(problem)
    raw = np.abs(F.gradient(F.zero))[:, :-1] / F.scale
    return problem._replace(alpha=min(problem.alpha, 0.1 * float(raw.max())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--numbers", nargs=2, type=int, default=(0, SET_COUNT), metavar=("FIRST", "END"), help="END excluded"
    )
    parser.add_argument("--cache", type=Path, help="folder that keeps the optima between runs")
    parser.add_argument("--peers", action="store_true", help="also fit L-BFGS of scikit-learn or SciPy at its defaults")
    given = parser.parse_args()
    print(f"{about_this_run()}\n")
    columns = ["set", "rows x columns", "columns", "problem", "unbounded", f"passes to {LEVEL:.0e}"]
    columns += [f"converged_ at tol {', '.join(f'{tol:.0e}' for tol in TOLS)}", *["L-BFGS"] * given.peers]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    outcomes = []
    for number in range(*given.numbers):
        problem = random_set(number)
        outcome = measure(problem, LEVEL, given.cache, given.peers)
        if outcome is None:
            continue
        form = "CSR" if sp.issparse(problem.X) else "dense"
        loss = f"{problem.loss} of {problem.outputs} classes" if problem.outputs > 1 else problem.loss
        penalty = f"{problem.penalty} {problem.alpha:.0e}" if problem.penalty else "no penalty"
        described = [
            number, f"{form} {problem.X.shape[0]} x {problem.X.shape[1]}", problem.name,
            f"{loss}, {penalty}, {problem.chunks} chunk{'s' * (problem.chunks > 1)}", "yes" * problem.is_unbounded,
        ]  # fmt: skip
        print(f"| {' | '.join(map(str, [*described, *outcome.cells(given.peers)]))} |", flush=True)
        outcomes.append(outcome._replace(problem=problem._replace(X=None, y=None, weight=None)))
    bounded = [outcome for outcome in outcomes if not outcome.problem.is_unbounded]
    for title, some in (("All", outcomes), ("Without rows or columns of unbounded length", bounded)):
        print(
            f"\n{title}: {len(some)} sets. {LEVEL:.0e} within 50 passes: {share_reached(some, 50)}, "
            f"within 100: {share_reached(some)}. {count_false(some)}"
        )


if __name__ == "__main__":
    main()
