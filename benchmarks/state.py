"""What carrying the state costs: copies, pickles and sizes. Usage: python benchmarks/state.py"""

from __future__ import annotations

import copy
import pickle
import platform
import time

import numpy as np
from dask.sizeof import sizeof

from dask_saga import SAGAClassifier


def milliseconds(function, repeat: int = 20) -> float:
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times))


def main() -> None:
    print(f"{platform.machine()}, Python {platform.python_version()}")
    for rows in (100_000, 10_000_000):
        X, y = np.zeros((rows, 1), np.float32), np.zeros(rows)
        X[::2], y[::2] = 1.0, 1.0
        model = SAGAClassifier(random_state=0).partial_fit(X, y, classes=[0, 1])
        print(
            f"{rows:>10,} rows: deepcopy {milliseconds(lambda m=model: copy.deepcopy(m)):.3f} ms, "
            f"pickle {milliseconds(lambda m=model: pickle.dumps(m, protocol=5), 5):.1f} ms, "
            f"{sizeof(model) / rows:.2f} bytes a row"
        )


if __name__ == "__main__":
    main()
