"""Predict which of 336,776 real flights are late, on a Dask cluster, in three ways.

1. ``SAGAClassifier().fit`` on a dask dataframe with raw columns, in order of time,
2. the same estimator in ``dask_ml.wrappers.Incremental``,
3. the same estimator in a Hyperband search over the scale of its step size.

Each is scored on December, which was not used for training, next to scikit-learn's
LogisticRegression on the same rows. The script writes flights.png, which shows the
suboptimality after each pass on raw and on standardised columns. Before anything is timed,
some rows are fitted: the first fit on a machine compiles the kernels.
Usage: python examples/flights.py
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from pathlib import Path

import dask.dataframe as dd
import matplotlib
import numpy as np
import pandas as pd
from dask.distributed import Client, LocalCluster
from dask_ml.wrappers import Incremental
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from dask_saga import SAGAClassifier
from dask_saga.inspection import ConvergenceDisplay
from dask_saga.model_selection import HyperbandSearchCV
from flights_data import load_flights, standardise

matplotlib.use("agg")
import matplotlib.pyplot as plt

ALPHA, PARTITIONS, PASSES = 1e-4, 24, 25


def report(
    name: str, passes: object, seconds: float, model: object, test: tuple
) -> None:
    probability = model.predict_proba(test[0])[:, 1]
    loss, auc = log_loss(test[1], probability), roc_auc_score(test[1], probability)
    print(
        f"{name:42s} {passes!s:>6s} {seconds:9.1f} {loss:10.5f} {auc:9.5f}", flush=True
    )


def on_disk(
    rows: pd.DataFrame, late: np.ndarray, folder: str
) -> tuple[dd.DataFrame, dd.Series]:
    """A dask dataframe with one parquet file per partition, and its labels."""
    Path(folder).mkdir()
    for k, part in enumerate(np.array_split(np.arange(len(rows)), PARTITIONS)):
        rows.iloc[part].assign(late=late[part]).to_parquet(
            f"{folder}/part.{k:03d}.parquet"
        )
    frame = dd.read_parquet(folder).persist()
    return frame.drop(columns="late"), frame.late


def warm_up(rows: pd.DataFrame, late: np.ndarray, folder: str) -> float:
    """Fit some rows, so that the kernels are compiled or loaded; return the seconds that it took."""
    began = time.perf_counter()
    X, y = on_disk(rows, late, folder)
    SAGAClassifier(alpha=ALPHA, random_state=0).fit(X, y)
    SAGAClassifier(alpha=ALPHA, max_iter=2, step_size=1e-3).fit(X, y)
    for curvature in (True, False):
        wrapped = Incremental(SAGAClassifier(alpha=ALPHA, curvature=curvature))
        wrapped.partial_fit(X, y, classes=[False, True])
    return time.perf_counter() - began


def convergence(
    rows: pd.DataFrame, late: np.ndarray, folder: str, columns: str
) -> dict[str, list[dict]]:
    """Histories of (F - F*) / (F(0) - F*) for dask_saga on the cluster and for scikit-learn's saga."""
    A, sign = rows.to_numpy(), np.where(late, 1.0, -1.0)
    C = 1 / (ALPHA * len(A))

    def objective(x, intercept):
        return np.logaddexp(0, -sign * (A @ x + intercept)).mean() + 0.5 * ALPHA * x @ x

    exact = LogisticRegression(
        C=C, solver="newton-cholesky", tol=1e-10, max_iter=500
    ).fit(A, late)
    best = objective(exact.coef_[0], exact.intercept_[0])

    def row(passes, x, intercept):
        return {
            "epoch": passes,
            "suboptimality": (objective(x, intercept) - best) / (np.log(2) - best),
        }

    ours, theirs = [], []
    X, y = on_disk(rows, late, folder)
    model = SAGAClassifier(alpha=ALPHA, tol=0.0, max_iter=PASSES, random_state=0)
    model.fit(
        X, y, callback=lambda info: ours.append(row(info.epoch, info.x, info.intercept))
    )
    for passes in (1, 3, 10):
        saga = LogisticRegression(
            C=C, solver="saga", tol=0.0, max_iter=passes, random_state=0
        ).fit(A, late)
        theirs.append(row(passes, saga.coef_[0], saga.intercept_[0]))
    return {
        f"dask_saga, {columns} columns": ours,
        f"scikit-learn saga, {columns} columns": theirs,
    }


def draw(histories: dict[str, list[dict]], file: str) -> None:
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    styles = [
        {"color": color, "linestyle": line, "marker": marker, "markersize": 4}
        for color in ("tab:red", "tab:blue")
        for line, marker in (("-", ""), ("--", "o"))
    ]
    ConvergenceDisplay.from_histories(
        histories, quantity="suboptimality", ax=axes, curve_kwargs=styles
    )
    axes.set(
        title=f"Logistic regression of the 2013 flights, {PARTITIONS} chunks in order of time"
    )
    figure.savefig(file, dpi=120)


def main(picture: str) -> None:
    numeric, one_hot, late, month = load_flights()
    rows = pd.concat([numeric, one_hot], axis=1)
    train, test = month < 12, (rows[month == 12], late[month == 12])
    print(
        f"{len(late):,} flights, {rows.shape[1]} columns; December's {len(test[1]):,} are held out",
        flush=True,
    )

    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster, set_as_default=True),
    ):
        few = slice(None, None, 25)
        seconds = warm_up(rows[few], late[few], f"{folder}/few")
        print(
            f"Compiling or loading the kernels took {seconds:.1f} s, which no time below counts.",
            flush=True,
        )
        X, y = on_disk(rows[train], late[train], f"{folder}/train")
        print(
            f"\n{'':42s} {'passes':>6s} {'seconds':>9s} {'log-loss':>10s} {'ROC AUC':>9s}"
        )

        began = time.perf_counter()
        model = SAGAClassifier(alpha=ALPHA, random_state=0).fit(X, y)
        report(
            "1. SAGAClassifier.fit, dask dataframe",
            model.n_iter_,
            time.perf_counter() - began,
            model,
            test,
        )

        began = time.perf_counter()
        wrapped = Incremental(SAGAClassifier(alpha=ALPHA, random_state=0))
        for _ in range(model.n_iter_):
            wrapped.partial_fit(X, y, classes=[False, True])
        best = wrapped.estimator_
        report(
            "2. in dask_ml's Incremental",
            best.n_iter_,
            time.perf_counter() - began,
            best,
            test,
        )

        began = time.perf_counter()
        search = HyperbandSearchCV(
            SAGAClassifier(alpha=ALPHA, random_state=0),
            {"step_size_scale": np.logspace(-3, 2, 100)},
            max_iter=27,
            test_size=0.1,
            scoring="neg_log_loss",
            random_state=0,
        )
        search.fit(X, y, classes=[False, True])
        seconds, winner = time.perf_counter() - began, search.best_estimator_
        report("3. in Hyperband, its winner", winner.n_iter_, seconds, winner, test)
        scale = search.best_params_["step_size_scale"]
        print(
            f"   {len(search.cv_results_['params'])} models; the winner's step_size_scale: {scale:.3g}"
        )

        A, labels = rows[train].to_numpy(), late[train]
        for solver in ("lbfgs", "newton-cholesky"):
            began = time.perf_counter()
            peer = LogisticRegression(C=1 / (ALPHA * len(A)), solver=solver).fit(
                A, labels
            )
            peer.feature_names_in_ = model.feature_names_in_
            name = f"scikit-learn's LogisticRegression, {solver}"
            report(name[:42], peer.n_iter_[0], time.perf_counter() - began, peer, test)

        histories = convergence(rows, late, f"{folder}/raw", "raw")
        standardised = pd.concat([standardise(numeric), one_hot], axis=1)
        histories |= convergence(
            standardised, late, f"{folder}/standardised", "standardised"
        )
    draw(histories, picture)
    print(f"\nwrote {picture}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--picture",
        default="flights.png",
        help="where to write the convergence picture",
    )
    arguments = parser.parse_args()
    # These fits are stopped by the number of passes; the picture shows how far they get.
    warnings.simplefilter("ignore", ConvergenceWarning)
    main(arguments.picture)
