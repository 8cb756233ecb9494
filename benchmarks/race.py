"""Seconds to the optimum on one machine: dask_saga next to solvers of other packages, on the same objective.

F(x) = mean log loss + 0.5 alpha |x|^2 with alpha = 1e-4; with --l1, mean log loss + alpha |x|_1 with alpha = 1 / rows.
The intercept is not penalised, and columns are raw.

- Other solvers: the fit is repeated with twice the effort (passes or iterations) until it is within 1e-6 of the
  optimum, relative to F(0) - F*, or takes longer than --limit. A cell is the shortest fit that reached the level, "-"
  if none did.
- dask_saga: one fit with one thread, and one with a thread per core. A fit with the same result runs first and finds
  the pass that reaches each level, so that the timed fit need not evaluate F.
- Fits of all solvers alternate. A cell is the median over the repetitions. Each repetition of dask_saga has its own
  seed, as the seed decides whether a level is reached one pass earlier or later.
- Packages that are not installed are left out. So are solvers that form a matrix of columns x columns where there are
  more than 2000 columns (race_peers.py).

Usage: python benchmarks/race.py [names] [--l1] [--repeat 3] [--limit 20] [--cache DIR] [--picture FILE] [--ours]
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from passes import sparse
from race_peers import PEERS, FitSetup, Task
from report import print_header
from trust_optimum import ALPHA, Objective, Optimum, l1_gap, objective, optimum
from trust_sets import SETS, DataSet

from dask_saga import SAGAClassifier

LEVELS = (1e-3, 1e-4, 1e-6)
CORES = os.cpu_count()
OURS = {"dask-saga": 1, f"dask-saga, {CORES} threads": CORES}


def normal(n: int, p: int, correlated: bool = False) -> DataSet:
    """Normal columns, mixed into one another if correlated."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((n, p))
    if correlated:
        A = A @ (rng.standard_normal((p, p)) * np.logspace(0, -1.5, p)[:, None])
    z = A @ rng.standard_normal(p) / A.std(axis=0).mean() / np.sqrt(p)
    return DataSet(f"{n} x {p}", A, (2 * z + rng.logistic(size=n) > 0).astype(int), "binary")


RACES: dict[str, Callable[[], DataSet]] = {
    "independent": lambda: normal(500_000, 54)._replace(name="500,000 x 54"),
    "correlated": lambda: normal(500_000, 54, correlated=True)._replace(name="500,000 x 54, correlated"),
    "wide": lambda: normal(200_000, 200)._replace(name="200,000 x 200"),
    "flights": SETS["flights_raw"],
    "long": lambda: normal(1_000_000, 20)._replace(name="1,000,000 x 20"),
    "text": SETS["text"],
    "one_hot": SETS["flights_one_hot"],
    "sparse": lambda: DataSet("100,000 x 47,000, 75 a row", *sparse(100_000, 47_000, 75), "binary"),
    "sparse_wide": lambda: DataSet("50,000 x 500,000, 100 a row", *sparse(50_000, 500_000, 100), "binary"),
}


def _l1_coefficients(task: Task) -> np.ndarray:
    model = SAGAClassifier(penalty="l1", alpha=task.alpha, max_iter=2000, tol=1e-10, memory_dtype="float64")
    model.fit(task.X, task.y)
    return np.column_stack([model.coef_, model.intercept_])


class Race:
    """One data set and its exact optimum."""

    def __init__(self, data: DataSet, l1: bool, cache: Path | None):
        self.data, self.task = data, Task(data.X, data.y, 1 / len(data.y) if l1 else ALPHA, l1)
        self.F: Objective = objective(data)
        if l1:
            self.F = self.F._replace(ridge=0.0 * self.F.ridge)
        self.optimum: Optimum = self.l1_optimum(cache) if l1 else optimum(data, cache)

    def l1_optimum(self, cache: Path | None) -> Optimum:
        """Found by ours, as no other gets so near, and known to be the optimum by the gap to the dual."""
        memory, began = joblib.Memory(cache, verbose=0), time.perf_counter()
        w = memory.cache(_l1_coefficients)(self.task)
        start, best = self.value(0.0 * w), self.value(w)
        error = l1_gap(self.F, w, self.task.alpha) / (start - best)
        if not error < 1e-7:
            raise RuntimeError(f"{self.data.name}: the optimum is known to {error:.0e} only")
        return Optimum(best, start, w, error, time.perf_counter() - began)

    def value(self, w: np.ndarray) -> float:
        return self.F.value(w) + (self.task.alpha * np.abs(w[:, :-1]).sum() if self.task.l1 else 0.0)

    def gap(self, coefficients: np.ndarray, intercept: np.ndarray) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            w = np.column_stack([np.atleast_2d(coefficients), np.atleast_1d(intercept)])
            return self.optimum.gap(self.value(w))

    def ours(self, n_threads: int, limit: float, seed: int) -> dict[float, float]:
        """Seconds to each level in one fit, after a watched one with the same bits has told which passes reach them."""
        reached, began = {}, time.perf_counter()

        def watch(info):
            gap = self.gap(info.x, info.intercept)
            for level in LEVELS:
                if gap <= level:
                    reached.setdefault(level, info.epoch)
            return gap <= LEVELS[-1] or time.perf_counter() - began > limit

        self.fit(n_threads, 10_000, seed, watch)
        ends = []
        settle()
        began = time.perf_counter()
        self.fit(n_threads, max(reached.values(), default=1), seed, lambda info: ends.append(time.perf_counter()))
        return {level: ends[epoch - 1] - began for level, epoch in reached.items()}

    def fit(self, n_threads: int, passes: int, seed: int, callback: Callable | None = None, X: Any = None) -> None:
        model = SAGAClassifier(
            penalty="l1" if self.task.l1 else "l2", alpha=self.task.alpha, max_iter=passes, tol=0.0,
            n_threads=n_threads, random_state=seed,
        )  # fmt: skip
        model.fit(self.task.X if X is None else X, self.task.y, callback=callback)

    def at_once(self, passes: int, repeat: int) -> float:
        """How many times as many fits of one thread a second, as many at once as there are cores, each of its own rows:
        those that another has just read would come from the cache. The median of some tries."""
        rows, gains = [self.task.X, *(self.task.X.copy() for _ in range(CORES - 1))], []
        with ThreadPoolExecutor(CORES) as pool:
            for seed in range(repeat):
                settle()
                began = time.perf_counter()
                self.fit(1, passes, seed)
                alone = time.perf_counter()
                list(pool.map(lambda X, seed=seed: self.fit(1, passes, seed, X=X), rows))
                gains.append(CORES * (alone - began) / (time.perf_counter() - alone))
        return statistics.median(gains)

    def peer(self, fit: FitSetup, limit: float) -> dict[float, float]:
        """Seconds of the shortest fit, of doubling effort, that reached each level."""
        found = {}
        for effort in (2**k for k in itertools.count()):
            settle()
            began = time.perf_counter()
            gap = self.gap(*fit(self.task, effort))
            seconds = time.perf_counter() - began
            for level in LEVELS:
                if gap <= level:
                    found.setdefault(level, seconds)
            if gap <= LEVELS[-1] or 2 * seconds > limit or effort >= 2**14:
                return found


def settle() -> None:
    """Pass a while busily: BLAS threads wait for more, and would take a fit its core, and idle cores wake slowly."""
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end:
        pass


def run(name: str, l1: bool, repeat: int, limit: float, cache: Path | None, peers: dict) -> dict[str, list]:
    """Print one table; median seconds by solver and level."""
    race = Race(RACES[name](), l1, cache)
    few = race.task._replace(X=race.task.X[:1000], y=race.task.y[:1000])
    SAGAClassifier(max_iter=2, tol=0.0).fit(few.X, few.y)  # compiles
    times: dict[str, list[dict]] = {name: [] for name in OURS}
    for seed in range(repeat):
        for name, n_threads in OURS.items():
            times[name].append(race.ours(n_threads, limit, seed))
        for name, peer in peers.items():
            if not peer.runs(race.task) or times.get(name) == []:
                continue
            try:
                if peer.compiles and name not in times:
                    peer.fit(few, 16)
                times.setdefault(name, []).append(race.peer(peer.fit, limit))
            except (ValueError, TypeError, MemoryError, AttributeError, NotImplementedError) as error:
                print(f"{name} cannot: {str(error).splitlines()[0][:100]}", flush=True)
                times[name] = []
    print(f"\n**{race.data.name}**\n\n| solver | {' | '.join(f'{level:.0e}' for level in LEVELS)} |")
    print("|---" * (1 + len(LEVELS)) + "|")
    medians = {}
    for solver, found in times.items():
        reached = [[one[level] for one in found if level in one] for level in LEVELS]
        medians[solver] = [statistics.median(one) if one else None for one in reached]
        print(f"| {solver} | {' | '.join('-' if t is None else f'{t:.2g} s' for t in medians[solver])} |")
    for k, level in enumerate(LEVELS):
        others = {solver: row[k] for solver, row in medians.items() if solver not in OURS and row[k] is not None}
        mine, best = fastest(medians, k), min(others, key=others.get, default=None)
        if mine is not None and best:
            ratio = others[best] / mine
            print(f"\nTo {level:.0e}: {ratio:.2f} times as fast as the fastest other solver, {best}.", end="")
        elif mine is not None:
            print(f"\nTo {level:.0e}: no other solver within {limit:.0f} s.", end="")
    one, more = (times[name] for name in OURS)
    pairs = [
        a[LEVELS[-1]] / b[LEVELS[-1]] for a, b in zip(one, more, strict=True) if LEVELS[-1] in a and LEVELS[-1] in b
    ]
    if pairs:
        print(f"\n\n{CORES} threads: {statistics.median(pairs):.2f} times as fast as one (median of pairs). ", end="")
        gain = f"{race.at_once(5, repeat):.2f} times as many per second"
        print(f"Upper limit: {CORES} fits at once, one thread each, finish {gain}.", end="")
    print(flush=True)
    return medians


def fastest(medians: dict[str, list], k: int) -> float | None:
    """Our seconds to one level."""
    return min((medians[name][k] for name in OURS if medians[name][k] is not None), default=None)


def draw(results: dict[str, dict], path: Path) -> None:
    """Seconds to the last level, a group of bars a set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    solvers = list(dict.fromkeys(solver for table in results.values() for solver in table))
    for k, solver in enumerate(solvers):
        heights = [(table.get(solver) or [None] * len(LEVELS))[-1] or np.nan for table in results.values()]
        axes.bar(np.arange(len(results)) + 0.8 * k / len(solvers), heights, 0.8 / len(solvers), label=solver)
    axes.set(yscale="log", ylabel=f"seconds to {LEVELS[-1]:.0e}", title="No bar: not there within the limit")
    axes.set_xticks(np.arange(len(results)) + 0.4, list(results))
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(RACES)}; all by default")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds of one fit")
    parser.add_argument("--cache", type=Path, help="folder that keeps the optima between runs")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--l1", action="store_true", help="the L1 penalty in place of L2")
    parser.add_argument("--ours", action="store_true", help="without the others, to compare numbers of threads")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    print_header(*(peer.package for peer in PEERS.values()))
    results = {
        name: run(name, given.l1, given.repeat, given.limit, given.cache, {} if given.ours else PEERS)
        for name in given.names or RACES
    }
    ratios = []
    for table in results.values():
        mine = fastest(table, -1)
        others = [row[-1] for solver, row in table.items() if solver not in OURS and row[-1] is not None]
        if mine and others:
            ratios.append(min(others) / mine)
    if not ratios:
        return
    mean = statistics.geometric_mean(ratios)
    print(f"\nTo {LEVELS[-1]:.0e}: {mean:.2f} times as fast as the fastest other solver (geometric mean).")
    if given.picture:
        draw(results, given.picture)


if __name__ == "__main__":
    main()
