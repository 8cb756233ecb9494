"""Cross-validated paths: seconds of SAGAClassifierCV next to other packages, and how far the worst model is from its
optimum.

All fit 5 folds of the same rows, and the models of all rows where they do. F(x) = mean log loss + 0.5 alpha |x|^2 for
20 alphas from 1e-1 to 1e-5; "text-l1" has mean log loss + alpha |x|_1 for the 50 alphas of our grid. The intercept is
not penalised, and columns are raw.

- A cell is one run: seconds of wall clock, seconds of all cores, and the largest (F(x) - F*) / (F(0) - F*) of the
  models of all folds. For L2, F(x) - F* is half the squared Newton decrement at x. For L1 it is measured from a fit
  with tol=1e-8 of some of the models.
- "GridSearchCV" and "Hyperband" search the same alphas with SAGAClassifier; Hyperband on a cluster of two workers, with
  `partial_fit` on one test set.
- "separate fits" are as many fits of SAGAClassifier, each with warm_start=True after its neighbour on the path.
- Packages that are not installed are left out.

Usage: python benchmarks/paths.py [names] [--peers NAMES] [--threads N]
"""

from __future__ import annotations

import argparse
import importlib
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import dask.array as da
import numpy as np
import scipy.sparse as sp
from distributed import Client, LocalCluster
from race_peers import MOST_COLUMNS, installed
from report import print_header
from scipy.linalg import solve
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import expit
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from trust_sets import SETS

from dask_saga import SAGAClassifier, SAGAClassifierCV
from dask_saga.model_selection import HyperbandSearchCV

FOLDS, ALPHAS, L1_ALPHAS, CHECKED = 5, np.logspace(-1, -5, 20), 50, 10


class Task(NamedTuple):
    """Rows, labels 0 and 1, the fold of each row, and the alphas from the largest to the smallest."""

    X: np.ndarray | sp.csr_matrix
    y: np.ndarray
    folds: np.ndarray
    alphas: np.ndarray
    l1: bool
    threads: int


# Coefficients of shape (folds, alphas, p + 1), the intercept last. None for searches, which do not keep them.
Fit = Callable[[Task], np.ndarray | None]


def independent() -> tuple[np.ndarray, np.ndarray]:
    rng, n, p = np.random.default_rng(0), 300_000, 54
    X = rng.standard_normal((n, p)) @ (rng.standard_normal((p, p)) * 0.3 + np.eye(p))
    return X, (X @ rng.standard_normal(p) * 0.3 + 2 * rng.logistic(size=n) > 0).astype(int)


def of_trust(name: str) -> Callable:
    def load():
        data = SETS[name]()
        return data.X, data.y

    return load


DATA: dict[str, Callable] = {
    "300,000 x 54": independent,
    "flights": of_trust("flights_raw"),
    "one-hot": of_trust("flights_one_hot"),
    "text": of_trust("text"),
    "text-l1": of_trust("text"),
}


def ours(task: Task) -> np.ndarray:
    model = SAGAClassifierCV(
        penalty="l1" if task.l1 else "l2", alphas=task.alphas, cv=task.folds, random_state=0, n_threads=task.threads
    )
    kept = {}
    keep_models(model, kept)
    model.fit(task.X, task.y)
    return kept["x"]


def keep_models(model: SAGAClassifierCV, kept: dict) -> None:
    """Keep the coefficients of the folds, of which a fitted estimator has only the scores."""
    commit = model._commit_path

    def keeping(plain, solved, ratios):
        kept["x"] = solved.result.x[0, :, :FOLDS, 0].swapaxes(0, 1)
        commit(plain, solved, ratios)

    model._commit_path = keeping


def separate_fits(task: Task) -> np.ndarray:
    found = []
    for fold in [*range(FOLDS), -1]:
        left = task.folds != fold
        X, y = task.X[left], task.y[left]
        model = SAGAClassifier(
            penalty="l1" if task.l1 else "l2", random_state=0, warm_start=True, n_threads=task.threads
        )
        for alpha in task.alphas:
            model.set_params(alpha=alpha).fit(X, y)
            found.append(np.append(model.coef_[0], model.intercept_))
    return np.array(found).reshape(FOLDS + 1, len(task.alphas), -1)[:FOLDS]


def scikit_learn(solver: str, **how) -> Fit:
    def fit(task: Task) -> np.ndarray:
        n = len(task.y) * (FOLDS - 1) / FOLDS
        model = LogisticRegressionCV(
            Cs=1 / (task.alphas * n), cv=PredefinedSplit(task.folds), solver=solver, scoring="neg_log_loss",
            l1_ratios=(float(task.l1),), use_legacy_attributes=False, **how,
        ).fit(task.X, task.y)  # fmt: skip
        x = np.concatenate([model.coefs_paths_[..., 0, :], 0.0 * model.coefs_paths_[..., 0, :1]], axis=-1)
        if model.coefs_paths_.shape[-1] == task.X.shape[1] + 1:
            x = x[..., :-1]
        return x.reshape(FOLDS, len(task.alphas), -1)

    return fit


def glum(task: Task) -> np.ndarray:
    kind = importlib.import_module("glum").GeneralizedLinearRegressorCV
    model = kind(
        family="binomial", alphas=task.alphas, l1_ratio=float(task.l1), cv=PredefinedSplit(task.folds),
        gradient_tol=1e-5,
    ).fit(task.X, task.y.astype(float))  # fmt: skip
    x = np.concatenate([model.coef_path_[:, 0], model.intercept_path_[:, 0]], axis=-1)
    return x.reshape(FOLDS, len(task.alphas), -1)


def skglm(task: Task) -> np.ndarray:
    kind, found = importlib.import_module("skglm").SparseLogisticRegression, []
    for fold in range(FOLDS):
        left = task.folds != fold
        X, y = task.X[left], task.y[left]
        X = X.tocsc() if sp.issparse(X) else np.asfortranarray(X)
        model = kind(tol=1e-6, warm_start=True, max_iter=100)
        for alpha in task.alphas:
            model.set_params(alpha=alpha).fit(X, y)
            found.append(np.append(model.coef_, model.intercept_))
    return np.array(found).reshape(FOLDS, len(task.alphas), -1)


def grid_search(task: Task) -> None:
    model = SAGAClassifier(random_state=0, n_threads=task.threads)
    GridSearchCV(model, {"alpha": task.alphas}, cv=PredefinedSplit(task.folds), scoring="neg_log_loss").fit(
        task.X, task.y
    )


def hyperband(task: Task) -> None:
    X, y = (da.from_array(one, chunks=(20_000, *one.shape[1:])) for one in (task.X, task.y))
    with LocalCluster(n_workers=task.threads, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster):
        search = HyperbandSearchCV(SAGAClassifier(random_state=0), {"alpha": task.alphas}, max_iter=27, random_state=0)
        search.fit(X, y, classes=[0, 1])


PEERS: dict[str, tuple[Fit, tuple[str, ...], str]] = {
    "SAGAClassifierCV": (ours, ("l1", "l2"), "dask"),
    "separate fits": (separate_fits, ("l1", "l2"), "dask"),
    "GridSearchCV": (grid_search, ("l2",), "scikit-learn"),
    "Hyperband": (hyperband, ("l2",), "dask"),
    "newton-cholesky": (scikit_learn("newton-cholesky", tol=1e-5), ("l2",), "scikit-learn"),
    "lbfgs": (scikit_learn("lbfgs", tol=1e-5, max_iter=500), ("l2",), "scikit-learn"),
    "saga": (scikit_learn("saga", tol=1e-4, max_iter=100), ("l1", "l2"), "scikit-learn"),
    "glum": (glum, ("l1", "l2"), "glum"),
    "skglm": (skglm, ("l1",), "skglm"),
}


def value(task: Task, left: np.ndarray, x: np.ndarray, alpha: float) -> float:
    z = task.X[left] @ x[:-1] + x[-1]
    penalty = alpha * np.abs(x[:-1]).sum() if task.l1 else 0.5 * alpha * x[:-1] @ x[:-1]
    return float((np.logaddexp(0.0, z) - task.y[left] * z).mean() + penalty)


def suboptimality(task: Task, left: np.ndarray, x: np.ndarray, alpha: float) -> float:
    """Half the squared Newton decrement of a model with an L2 penalty, relative to F(0) - F."""
    X, y = task.X[left], task.y[left]
    q = expit(X @ x[:-1] + x[-1])
    weights, n = q * (1.0 - q), len(y)
    gradient = np.append(X.T @ (q - y) / n + alpha * x[:-1], (q - y).mean())
    if X.shape[1] <= 500:
        rows = X.toarray() if sp.issparse(X) else X
        mean = weights @ rows / weights.sum()
        rows = rows - mean
        hessian = (rows * weights[:, None]).T @ rows / n + alpha * np.eye(len(mean))
        scale = 1 / np.sqrt(np.diag(hessian))
        slope = (gradient[:-1] - mean * gradient[-1]) * scale
        decrement = slope @ solve(hessian * np.outer(scale, scale), slope) + gradient[-1] ** 2 / weights.mean()
    else:

        def product(v: np.ndarray) -> np.ndarray:
            u = weights * (X @ v[:-1] + v[-1])
            return np.append(X.T @ u / n + alpha * v[:-1], u.mean())

        hessian = LinearOperator((len(x), len(x)), matvec=product, dtype=float)
        decrement = gradient @ cg(hessian, gradient, rtol=1e-2, maxiter=200)[0]
    return 0.5 * decrement / (np.log(2.0) - value(task, left, x, alpha))


def worst(task: Task, found: np.ndarray) -> float:
    """Largest relative suboptimality of the models of all folds, or of CHECKED of them for L1."""
    cells = [(fold, k) for fold in range(FOLDS) for k in range(len(task.alphas))]
    if not task.l1:
        return max(suboptimality(task, task.folds != f, found[f, k], task.alphas[k]) for f, k in cells)
    gaps = []
    for f, k in [cells[i] for i in np.random.default_rng(0).choice(len(cells), CHECKED, replace=False)]:
        left, alpha = task.folds != f, task.alphas[k]
        model = SAGAClassifier(
            penalty="l1", alpha=alpha, tol=1e-8, memory_dtype="float64", max_iter=3000, random_state=0
        ).fit(task.X[left], task.y[left])  # fmt: skip
        best = value(task, left, np.append(model.coef_[0], model.intercept_), alpha)
        zero = np.append(0.0 * model.coef_[0], np.log(task.y[left].mean() / (1 - task.y[left].mean())))
        gaps.append((value(task, left, found[f, k], alpha) - best) / max(value(task, left, zero, alpha) - best, 1e-6))
    return max(gaps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(DATA), help=f"any of {list(DATA)}")
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print_header("glum", "skglm")
    print("| data | solver | s | s of all cores | worst model |\n|---|---|---:|---:|---:|", flush=True)
    for name in arguments.names:
        X, y = DATA[name]()
        folds, l1 = np.random.default_rng(1).permutation(len(y)) % FOLDS, name.endswith("l1")
        alphas = ALPHAS
        if l1:
            alphas = SAGAClassifierCV(penalty="l1", alphas=L1_ALPHAS, cv=folds, max_iter=1).fit(
                X, y, callback=lambda info: True
            ).alphas_  # fmt: skip
        task = Task(X, y, folds, alphas, l1, arguments.threads)
        ours(task._replace(X=X[:2000], y=y[:2000], folds=folds[:2000]))  # compiles
        for peer in arguments.peers:
            fit, penalties, package = PEERS[peer]
            if ("l1" if l1 else "l2") not in penalties or not installed(package):
                continue
            is_wide = peer in ("newton-cholesky", "glum") and X.shape[1] > MOST_COLUMNS
            if is_wide or (peer == "Hyperband" and sp.issparse(X)):
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            found = fit(task)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            gap = "" if found is None else f"{worst(task, found):.0e}"
            print(f"| {name} | {peer} | {wall:.1f} | {cpu:.1f} | {gap} |", flush=True)


if __name__ == "__main__":
    main()
