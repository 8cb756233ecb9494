"""The solvers of other packages that race.py runs: an adapter each, of which effort is the passes or iterations."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression, SGDClassifier

# Solvers that need a matrix of columns x columns are given no more of them.
MOST_COLUMNS = 2000


class Task(NamedTuple):
    """What all minimise: mean log loss + alpha |x|_1, or + alpha |x|^2 / 2; the intercept is not penalised."""

    X: np.ndarray | sp.csr_matrix
    y: np.ndarray
    alpha: float
    l1: bool


FitSetup = Callable[[Task, int], tuple[np.ndarray, np.ndarray]]


class Peer(NamedTuple):
    """One solver: its package, the penalties it knows, the most columns that it takes, and whether it compiles."""

    package: str
    fit: FitSetup
    penalties: tuple[str, ...] = ("l1", "l2")
    most_columns: float = np.inf
    compiles: bool = False

    def runs(self, task: Task) -> bool:
        penalty = "l1" if task.l1 else "l2"
        return penalty in self.penalties and task.X.shape[1] <= self.most_columns and installed(self.package)


def installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def scikit_learn(solver: str) -> FitSetup:
    def fit(task, effort):
        C = 1 / (task.alpha * len(task.y))
        model = LogisticRegression(solver=solver, C=C, l1_ratio=float(task.l1), max_iter=effort, tol=0.0)
        model.fit(task.X, task.y)
        return model.coef_, model.intercept_

    return fit


def sgd(task, effort):
    model = SGDClassifier(
        loss="log_loss", penalty="l1" if task.l1 else "l2", alpha=task.alpha, max_iter=effort, tol=None, average=True,
        random_state=0,
    )  # fmt: skip
    model.fit(task.X, task.y)
    return model.coef_, model.intercept_


def cyanure(solver: str) -> FitSetup:
    def fit(task, effort):
        classifier = importlib.import_module("cyanure.estimators").Classifier
        model = classifier(
            loss="logistic", penalty="l1" if task.l1 else "l2", lambda_1=task.alpha, fit_intercept=True, solver=solver,
            max_iter=effort, tol=0.0, verbose=False, n_threads=-1,
        )  # fmt: skip
        model.fit(task.X, 2.0 * task.y - 1)
        return model.coef_.reshape(1, -1), np.atleast_1d(model.intercept_)

    return fit


def glum(task, effort):
    regressor = importlib.import_module("glum").GeneralizedLinearRegressor
    model = regressor(
        family="binomial", alpha=task.alpha, l1_ratio=float(task.l1), fit_intercept=True, max_iter=effort,
        gradient_tol=1e-14, solver="irls-cd" if task.l1 else "irls-ls",
    )  # fmt: skip
    model.fit(task.X, task.y.astype(float))
    return model.coef_[None], np.atleast_1d(model.intercept_)


def skglm(task, effort):
    # Each of its iterations solves a subproblem by epochs, until a tolerance.
    kind = importlib.import_module("skglm").SparseLogisticRegression
    model = kind(task.alpha, max_iter=4 * effort, max_epochs=10 * effort, tol=10.0 ** -effort.bit_length())
    model.fit(task.X, task.y)
    return model.coef_, model.intercept_


PEERS: dict[str, Peer] = {
    "scikit-learn saga": Peer("scikit-learn", scikit_learn("saga")),
    "scikit-learn sag": Peer("scikit-learn", scikit_learn("sag"), ("l2",)),
    "scikit-learn lbfgs": Peer("scikit-learn", scikit_learn("lbfgs"), ("l2",)),
    "scikit-learn newton-cholesky": Peer("scikit-learn", scikit_learn("newton-cholesky"), ("l2",), MOST_COLUMNS),
    "SGDClassifier, averaged": Peer("scikit-learn", sgd),
    "cyanure, miso": Peer("cyanure", cyanure("catalyst-miso")),
    "cyanure, qning": Peer("cyanure", cyanure("qning-ista")),
    "glum": Peer("glum", glum, most_columns=MOST_COLUMNS),
    "skglm": Peer("skglm", skglm, ("l1",), compiles=True),
}
