"""The cost of carrying the state: copies, pickles, sizes, hashes of chunks, and calls on many small batches.

Usage: python benchmarks/state.py
"""

from __future__ import annotations

import copy
import pickle
import time
import tracemalloc

import numpy as np
from dask.sizeof import sizeof
from report import print_header
from sklearn.linear_model import SGDClassifier

from dask_saga import SAGAClassifier
from dask_saga.data.validation import content_hash


def milliseconds(function, repeat: int = 20) -> float:
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times))


def main() -> None:
    print_header()
    for rows in (100_000, 10_000_000):
        X, y = np.zeros((rows, 1), np.float32), np.zeros(rows)
        X[::2], y[::2] = 1.0, 1.0
        model = SAGAClassifier(random_state=0).partial_fit(X, y, classes=[0, 1])
        print(
            f"{rows:>10,} rows: deepcopy {milliseconds(lambda m=model: copy.deepcopy(m)):.3f} ms, "
            f"pickle {milliseconds(lambda m=model: pickle.dumps(m, protocol=5), 5):.1f} ms, "
            f"{sizeof(model) / rows:.2f} bytes a row"
        )
    hashes()
    batches()


def hashes(rows: int = 100_000, p: int = 100) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, p))
    y = X[:, 0] + rng.standard_normal(rows) > 0
    for dtype in (np.float64, np.float32):
        A = X.astype(dtype)
        for precondition in (True, False):
            model = SAGAClassifier(precondition=precondition, random_state=0)
            model.partial_fit(A, y, classes=[False, True], chunk_id=0)
            checked = milliseconds(lambda m=model, A=A: m.partial_fit(A, y, chunk_id=0), 11)
            promised = milliseconds(lambda m=model, A=A: m.partial_fit(A, y, chunk_id=0, check_content=False), 11)
            print(
                f"{A.nbytes / 1e6:.0f} MB, {p} columns, {A.dtype}, precondition={precondition}: "
                f"hash {milliseconds(lambda A=A: content_hash(A), 11):.1f} ms; a revisit {checked:.1f} ms, "
                f"{promised:.1f} ms with check_content=False"
            )


def batches(rows: int = 32, p: int = 20) -> None:
    """Calls on new batches only, as the state grows: the median of a thousand."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20_000 * rows, p))
    y = X @ rng.standard_normal(p) + rng.standard_normal(len(X)) > 0
    parts = [slice(k * rows, k * rows + rows) for k in range(20_000)]

    def calls(model, window=None):
        times = []
        for k, part in enumerate(parts, 1):
            began = time.thread_time()
            model.partial_fit(X[part], y[part], classes=[False, True])
            if window and k > window:
                old = parts[k - 1 - window]
                model.forget(X=X[old], y=y[old])
            times.append(time.thread_time() - began)
            if k in (1000, 5000, 20_000):
                yield f"{k:,}: {1e3 * np.median(times[-1000:]):.2f} ms"

    for name, model, window in (
        ("SAGAClassifier", SAGAClassifier(random_state=0), None),
        ("SAGAClassifier, window of 1000 by forget", SAGAClassifier(random_state=0), 1000),
        ("SGDClassifier", SGDClassifier(loss="log_loss", random_state=0), None),
    ):
        print(f"batches of {rows} rows of {p} columns, {name}, CPU time of a call: {', '.join(calls(model, window))}")
    model = SAGAClassifier(random_state=0).partial_fit(X[parts[0]], y[parts[0]], classes=[False, True])
    tracemalloc.start()
    for part in parts[1:5001]:
        model.partial_fit(X[part], y[part])
    held, pickled = tracemalloc.get_traced_memory()[0] / 5000, len(pickle.dumps(model, 5)) / 5000
    print(f"state of a batch: {held:.0f} bytes in memory, {pickled:.0f} pickled, {sizeof(model) / 5000:.0f} by sizeof")


if __name__ == "__main__":
    main()
