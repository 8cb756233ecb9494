"""How a fit at default settings ends: passes to a level, and whether ``converged_`` is true.

Relative suboptimality ("gap") is (F(x) - F*) / (F(0) - F*). The promise: ``converged_`` is True only
where the gap is at most 10 tol. contaminated.py and random_sets.py share this module.
"""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import dask.array as da
import numpy as np
import scipy.sparse as sp
from exact_optimum import Objective, Optimum, Problem, objective, optimum
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from dask_saga import SAGAClassifier, SAGARegressor

TOLS, ALLOWED = (1e-3, 1e-4, 1e-6), 10
MOST_PASSES = 100  # the default max_iter
UNCERTAIN = 1e-8  # optima with a larger proven error are pointed out


class Case(NamedTuple):
    """A problem with its exact objective and minimum."""

    problem: Problem
    F: Objective
    optimum: Optimum

    def gap(self, coefficients: np.ndarray, intercept: np.ndarray | float) -> float:
        """Relative suboptimality, infinite where F is not finite."""
        with np.errstate(over="ignore", invalid="ignore"):
            gap = self.optimum.gap(self.F.value(self.F.scaled(coefficients, intercept)))
        return gap if np.isfinite(gap) else np.inf


class Stop(NamedTuple):
    """Where a fit with some tol stopped."""

    tol: float
    gap: float
    converged: bool

    @property
    def is_false(self) -> bool:
        return self.converged and self.gap > ALLOWED * self.tol

    def __str__(self) -> str:
        cell = f"{self.gap:.0e}" if self.converged else f"({self.gap:.0e})"
        return f"{cell} UNTRUE" if self.is_false else cell


class Outcome(NamedTuple):
    """What the fits of one problem did.

    Parameters
    ----------
    problem : Problem
    reached : int or None
        Passes to the level, None if more than MOST_PASSES.
    gap : float
        After the last of these passes.
    stops : list of Stop
    peer : float or None
        Gap of L-BFGS at its defaults.
    seconds : float
        Of all fits.
    """

    problem: Problem
    reached: int | None
    gap: float
    stops: list[Stop]
    peer: float | None
    seconds: float

    def cells(self, with_peer: bool) -> list[str]:
        """The columns that describe the fits: passes, where fits stopped, and the peer."""
        passes = f"- ({self.gap:.0e})" if self.reached is None else str(self.reached)
        peer = ["" if self.peer is None else f"{self.peer:.0e}"] if with_peer else []
        return [passes, " ".join(map(str, self.stops)), *peer]


def estimator(problem: Problem, **settings) -> SAGAClassifier | SAGARegressor:
    """The estimator of a problem, at its defaults otherwise."""
    kind = SAGAClassifier if problem.is_classification else SAGARegressor
    return kind(loss=problem.loss, penalty=problem.penalty, alpha=problem.alpha, random_state=0, **settings)


def in_chunks(problem: Problem) -> list:
    """X, y and the weights: in memory, or as Dask arrays of several blocks."""
    arrays = [problem.X, problem.y, problem.weight]
    if problem.chunks == 1:
        return arrays
    n, p = problem.X.shape
    rows = tuple(len(part) for part in np.array_split(np.empty(n), problem.chunks))
    X = da.from_array(problem.X, chunks=(rows, (p,)), asarray=not sp.issparse(problem.X), name=False)
    return [X, *(a if a is None else da.from_array(a, chunks=(rows,), name=False) for a in arrays[1:])]


def passes_to(case: Case, level: float) -> tuple[int | None, float]:
    """Passes until the gap is at most `level`, and the last gap."""
    passes, gap = 0, 1.0

    def note(info) -> bool:
        nonlocal passes, gap
        passes, gap = info.epoch, case.gap(info.x, info.intercept)
        return gap <= level

    model = estimator(case.problem, tol=0.0, max_iter=MOST_PASSES)
    model.fit(*in_chunks(case.problem), callback=note)
    return (passes if gap <= level else None), gap


def stream_passes_to(case: Case, level: float) -> tuple[int | None, float]:
    """The same for ``partial_fit`` of every chunk in turn."""
    problem, model = case.problem, estimator(case.problem)
    chunks, classes = np.array_split(np.arange(len(problem.y)), problem.chunks), np.unique(problem.y)
    for passes in range(1, MOST_PASSES + 1):
        for rows in chunks:
            model.partial_fit(problem.X[rows], problem.y[rows], classes=classes)
        gap = case.gap(model.coef_, model.intercept_)
        if gap <= level:
            return passes, gap
    return None, gap


def stops(case: Case) -> list[Stop]:
    """Where fit stops for each tol, and what it says of itself."""
    found = []
    for tol in TOLS:
        model = estimator(case.problem, tol=tol).fit(*in_chunks(case.problem))
        found.append(Stop(tol, case.gap(model.coef_, model.intercept_), bool(model.converged_)))
    return found


def peer_gap(case: Case) -> float | None:
    """Gap of lbfgs at its defaults: scikit-learn's for log loss, SciPy's for other smooth problems, none for L1."""
    problem = case.problem
    if problem.l1_ratio > 0:
        return None
    alpha = problem.alpha if problem.penalty else 0.0
    if problem.loss == "log_loss":
        total = len(problem.y) if problem.weight is None else problem.weight.sum()
        model = LogisticRegression(C=1.0 / (alpha * total) if alpha else np.inf)
        model.fit(problem.X, problem.y, problem.weight)
        return case.gap(model.coef_, model.intercept_)
    raw = objective(problem, scaled=False)

    def both(w: np.ndarray) -> tuple[float, np.ndarray]:
        return raw.smooth(w[None]), raw.gradient(w[None])[0]

    with np.errstate(over="ignore", invalid="ignore"):
        w = minimize(both, raw.zero[0], jac=True, method="L-BFGS-B").x
    return case.gap(w[:-1], w[-1])


def measure(problem: Problem, level: float, cache: Path | None, with_peer: bool) -> Outcome | None:
    """Fit one problem; None where zero is its optimum."""
    F = objective(problem)
    case = Case(problem, F, optimum(problem, F, cache))
    if case.optimum.is_zero:
        print(f"{problem.name}: zero is the optimum; skipped", flush=True)
        return None
    if not case.optimum.error <= UNCERTAIN:
        print(f"{problem.name}: the optimum is certain to {case.optimum.error:.0e} only", flush=True)
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        reached, gap = (stream_passes_to if problem.is_stream else passes_to)(case, level)
        found = [] if problem.is_stream else stops(case)
        peer = peer_gap(case) if with_peer else None
    return Outcome(problem, reached, gap, found, peer, time.perf_counter() - began)


def about_this_run() -> str:
    """Machine and versions, for the head of a report."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("dask-saga", "scikit-learn", "numpy", "numba", "dask"))
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}"


def share_reached(outcomes: Iterable[Outcome], passes: int = MOST_PASSES) -> str:
    """How many of the outcomes reached the level within so many passes."""
    counts = [outcome.reached is not None and outcome.reached <= passes for outcome in outcomes]
    return f"{sum(counts)} of {len(counts)} ({100 * np.mean(counts):.0f} %)" if counts else "0 of 0"


def count_false(outcomes: Iterable[Outcome]) -> str:
    """How many fits, and of how many sets, said converged_ above 10 tol."""
    counts = [sum(stop.is_false for stop in outcome.stops) for outcome in outcomes]
    return f"False converged_: {sum(counts)} fits of {np.count_nonzero(counts)} sets."
