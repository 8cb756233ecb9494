"""``fit`` on a cluster of two processes with one thread each. Each part can be run alone.

visits: seconds between the end of one visit and the start of the next, next to those of a chain of empty tasks that
hand on an array of the same size. Medians of interleaved runs.

larger: files of 64 MB on disk, several times larger together than the memory of the workers, as .npy in a dask array
or parquet in a dask dataframe. The table has the seconds of a pass, those of the same workers only reading the files
(not from the page cache), the CPU seconds of a pass divided by the number of workers, the largest memory of a worker
process as a share of its limit, and the bytes spilled, for n_parallel 1 and 2. Arrow uses the system allocator, since
its own keeps five times the size of a 64 MB file.

parallel: seconds and passes to a relative suboptimality of 1e-6 with n_parallel 1 and 2, for chunks of 128 MB and of
512 MB, as medians of interleaved pairs; and the share of the time of chunk tasks in which two of them run. Then the
passes for 64 chunks with n_parallel 1, 2, 4 and 8.

flat: tasks on the scheduler and memory of all processes over 100 passes of 100 chunks. Each connection of distributed
keeps its last 1,000 batches of messages, which grow to some 50 MB; this part keeps 20. It has no dashboard, which would
keep 100,000 tasks.

rivals: seconds of fit to 1e-6 next to each solver of dask-ml's LogisticRegression. There is no penalty, as the two
packages define it differently. The script first finds the fewest iterations that reach the level. Then it times the
fastest solver and dask_saga in interleaved pairs.

Usage: python benchmarks/on_cluster.py [PART ...] [--gigabytes 10] [--kind npy parquet] [--limit 1GB] [--folder DIR]
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import psutil
from dask.distributed import Client, LocalCluster, get_task_stream, wait
from dask_ml.linear_model import LogisticRegression as DaskMLRegression
from report import print_header
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from dask_saga import SAGAClassifier

ROWS, COLUMNS = 80_000, 100  # of a file
EPOCHS = 3
LEVEL, MOST_SECONDS = 1e-6, 60


def gaps(stream: list[dict], prefix: str) -> list[float]:
    """Seconds from the end of each task of a chain to the start of the next one."""
    times = sorted(
        (part["start"], part["stop"])
        for task in stream
        if str(task["key"]).startswith(prefix)
        for part in task["startstops"]
        if part["action"] == "compute"
    )
    return [start - stop for (_, stop), (start, _) in itertools.pairwise(times)]


def hand_on(previous: np.ndarray, own: object, data: object) -> np.ndarray:
    return previous.copy()


def empty_chain(client: Client, chunks: list, columns: int, visits: int) -> list[float]:
    head, own = np.zeros((7, columns + 1)), dict.fromkeys(range(len(chunks)))
    with get_task_stream(client) as stream:
        for k in range(visits):
            at = k % len(chunks)
            head = own[at] = client.submit(hand_on, head, own[at], chunks[at], key=f"empty-{k}-{time.time()}")
        head.result()
    return gaps(stream.data, "empty")


def visits(client: Client, repeat: int) -> None:
    X, y = persisted_rows(200_000, 50, 20)
    blocks = client.compute(list(X.to_delayed().ravel()))
    found: dict[str, list[float]] = {"fit": [], "empty tasks": []}
    for _ in range(repeat):
        with get_task_stream(client) as stream:
            # A step of one's own needs no sample, so all passes are visits.
            SAGAClassifier(step_size=1e-3, max_iter=5, tol=0.0, random_state=0).fit(X, y)
        found["fit"].append(statistics.median(gaps(stream.data, "saga-chunk")))
        found["empty tasks"].append(statistics.median(empty_chain(client, blocks, 50, 100)))
    fit, empty = (statistics.median(values) * 1e3 for values in found.values())
    print("| dead time of a visit | of an empty task | ratio |\n|---|---|---|")
    print(f"| {fit:.1f} ms | {empty:.1f} ms | {fit / empty:.2f} |\n", flush=True)


def write_files(folder: Path, kind: str, gigabytes: float) -> list[Path]:
    paths = []
    for k in range(round(gigabytes * 1e9 / (8 * ROWS * COLUMNS))):
        path = folder / f"{ROWS}-{COLUMNS}-{k}.{kind}"
        if not path.exists():
            rng = np.random.default_rng(k)
            A = rng.standard_normal((ROWS, COLUMNS)) * np.logspace(0, 3, COLUMNS)
            b = (A[:, 0] + rng.logistic(size=ROWS) > 0).astype(np.int8)
            if kind == "npy":
                np.save(path, A)
                np.save(path.with_suffix(".y.npy"), b)
            else:
                frame = pd.DataFrame(A, columns=[f"c{j}" for j in range(COLUMNS)])
                frame.assign(y=b).to_parquet(path, compression=None)
        paths.append(path)
    return paths


def read(path: Path) -> np.ndarray | pd.DataFrame:
    """A file's rows, from the disk: its pages are dropped from the cache first."""
    with open(path, "rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return np.load(file) if path.suffix == ".npy" else pd.read_parquet(file)


def only_read(path: Path) -> int:
    return len(read(path))


def collections(paths: list[Path]) -> tuple:
    if paths[0].suffix == ".parquet":
        frame = dd.from_map(read, paths, meta=read(paths[0]).iloc[:0])
        return frame.drop(columns="y"), frame.y
    load = dask.delayed(read, pure=False)
    targets = [dask.delayed(np.load)(path.with_suffix(".y.npy")) for path in paths]
    return (
        da.concatenate([da.from_delayed(load(path), (ROWS, COLUMNS), float) for path in paths]),
        da.concatenate([da.from_delayed(target, (ROWS,), np.int8) for target in targets]),
    )


def cpu_seconds() -> float:
    return time.process_time()


class Watch:
    """The most memory that any worker process took, and the bytes spilled, sampled from outside."""

    def __init__(self, client: Client):
        self.client, self.stop, self.most, self.spilled = client, threading.Event(), 0.0, 0
        self.thread = threading.Thread(target=self.sample, daemon=True)

    def sample(self) -> None:
        while not self.stop.wait(0.3):
            for worker in self.client.scheduler_info()["workers"].values():
                metrics = worker["metrics"]
                self.most = max(self.most, metrics["memory"] / worker["memory_limit"])
                self.spilled = max(self.spilled, metrics.get("spilled_bytes", {}).get("disk", 0))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.stop.set()
        self.thread.join()


def larger(client: Client, paths: list[Path], n_parallel: int) -> str:
    """A row of the table."""
    X, y = collections(paths)
    seconds, cpu, reading = [], [], []

    def time_reading():
        began = time.perf_counter()
        client.gather(client.map(only_read, paths, pure=False))
        reading.append(time.perf_counter() - began)

    def note(info):
        seconds.append(info.seconds)
        cpu.append(sum(client.run(cpu_seconds).values()))

    few = read(paths[0])[:1000]
    few = few if isinstance(few, np.ndarray) else few.drop(columns="y")
    SAGAClassifier(max_iter=2, tol=0.0).fit(few, np.arange(1000) % 2)  # compiles here, and takes none of their memory
    time_reading()  # what was written last is perhaps not on the disk yet
    time_reading()
    with Watch(client) as watch:
        began = time.perf_counter()
        model = SAGAClassifier(max_iter=EPOCHS, tol=0.0, random_state=0, n_parallel=n_parallel)
        model.fit(X, y, persist=False, callback=note)
        whole = time.perf_counter() - began
    time_reading()
    epoch, work, reading = np.diff(seconds).mean(), np.diff(cpu).mean() / 2, statistics.median(reading)
    return (
        f"| {paths[0].suffix}, {len(paths) * 8e-9 * ROWS * COLUMNS:.1f} GB | {n_parallel} | {epoch:.1f} s "
        f"| {reading:.1f} s | {work:.1f} s | {epoch / max(reading, work):.2f} | {watch.most:.0%} "
        f"| {watch.spilled} bytes | {whole:.1f} s, {EPOCHS} epochs |"
    )


def larger_table(client: Client, folder: Path, kinds: list[str], gigabytes: float) -> None:
    header = (
        "data, n_parallel, epoch, only reading, CPU seconds / 2, ratio, most memory of a worker, spilled, whole fit"
    )
    print("| " + header.replace(", ", " | ") + " |" + "\n" + "|---" * 9 + "|")
    for kind in kinds:
        paths = write_files(folder, kind, gigabytes)
        for n_parallel in (1, 2):
            print(larger(client, paths, n_parallel), flush=True)
    print()


def logistic_rows(n: int, p: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal columns, and labels with much noise; of each seed from the same distribution."""
    rng, slopes = np.random.default_rng(seed), np.random.default_rng(p).standard_normal(p) / np.sqrt(p)
    A = rng.standard_normal((n, p))
    return A, (A @ slopes + rng.logistic(size=n) > 0).astype(int)


def all_rows(n: int, p: int, chunks: int) -> tuple[np.ndarray, np.ndarray]:
    """The same as ``persisted_rows``, here."""
    A, b = zip(*(logistic_rows(n // chunks, p, seed=k) for k in range(chunks)), strict=True)
    return np.concatenate(A), np.concatenate(b)


def persisted_rows(n: int, p: int, chunks: int) -> tuple[da.Array, da.Array]:
    """Such rows, drawn where they lie: Dask then keeps neighbours together."""
    pairs = [dask.delayed(logistic_rows, nout=2)(n // chunks, p, seed=k) for k in range(chunks)]
    X = da.concatenate([da.from_delayed(rows, (n // chunks, p), float) for rows, _ in pairs])
    y = da.concatenate([da.from_delayed(labels, (n // chunks,), int) for _, labels in pairs])
    X, y = dask.persist(X, y)
    wait([X, y])
    return X, y


class Reference:
    """Relative suboptimality of logistic regression, by scikit-learn's Newton."""

    def __init__(self, A: np.ndarray, b: np.ndarray, alpha: float):
        self.A, self.sign, self.alpha = A, 2.0 * b - 1.0, alpha
        C = 1 / (alpha * len(b)) if alpha else np.inf
        model = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12).fit(A, b)
        self.best, self.zero = self.value(model.coef_[0], model.intercept_[0]), np.log(2)

    def value(self, w: np.ndarray, c: float) -> float:
        return np.logaddexp(0, -self.sign * (self.A @ w + c)).mean() + 0.5 * self.alpha * (w @ w)

    def gap(self, w: np.ndarray, c: float) -> float:
        return (self.value(w, c) - self.best) / (self.zero - self.best)

    def passes(self, X: object, y: object, most: int = 60, seed: int = 0, **settings: object) -> int:
        """Passes of ours until LEVEL is reached."""
        model = SAGAClassifier(max_iter=most, tol=0.0, random_state=seed, **settings)
        model.fit(X, y, callback=lambda info: self.gap(info.x, info.intercept) <= LEVEL)
        assert self.gap(model.coef_[0], model.intercept_[0]) <= LEVEL
        return model.n_iter_


def overlap(stream: list[dict]) -> float:
    """Share of the time in which chunk tasks run that two or more do."""
    parts = [
        (part["start"], part["stop"])
        for task in stream
        if str(task["key"]).startswith("saga-chunk")
        for part in task["startstops"]
        if part["action"] == "compute"
    ]
    changes = sorted([(start, 1) for start, _ in parts] + [(stop, -1) for _, stop in parts])
    running, seconds = 0, [0.0, 0.0]
    for (at, change), (then, _) in itertools.pairwise(changes):
        running += change
        if running:
            seconds[running > 1] += then - at
    return seconds[1] / sum(seconds)


def compare_widths(client: Client, n: int, p: int, chunks: int, repeat: int) -> None:
    """Print a table of passes and seconds with one and two chunks at a time."""
    X, y = persisted_rows(n, p, chunks)
    reference = Reference(*all_rows(n, p, chunks), 1e-4)
    SAGAClassifier(max_iter=1).fit(X, y)  # workers have loaded the kernels
    found: dict[int, list[tuple[int, float, float]]] = {1: [], 2: []}
    shares = []
    for seed, width in itertools.product(range(repeat), (1, 2)):
        passes = reference.passes(X, y, seed=seed, n_parallel=width)
        model = SAGAClassifier(max_iter=passes, tol=0.0, random_state=seed, n_parallel=width)
        with get_task_stream(client) as stream:
            whole, _ = timed(model.fit, X, y)
        found[width].append((passes, model.history_[-1]["seconds"], whole))
        if width == 2:
            shares.append(overlap(stream.data))
    print(f"{n:,} x {p} in {chunks} held chunks, to {LEVEL:g}, medians of {repeat} pairs:\n")
    print("| n_parallel | passes | seconds of the passes | of the whole fit | two at a time |\n" + "|---" * 5 + "|")
    for width, rows in found.items():
        passes, inside, whole = (statistics.median(column) for column in zip(*rows, strict=True))
        share = statistics.median(shares) if width > 1 else 0
        print(f"| {width} | {passes:g} | {inside:.2f} | {whole:.2f} | {share:.0%} |")
    gain = [statistics.median(one[k] / two[k] for one, two in zip(found[1], found[2], strict=True)) for k in range(3)]
    print(
        f"\nRatios of one to two, medians of pairs: passes {gain[0]:.2f}, their seconds {gain[1]:.2f}, "
        f"the whole fit {gain[2]:.2f}\n",
        flush=True,
    )


def parallel(client: Client, repeat: int) -> None:
    # Of so many columns no sample leads, so all passes are visits.
    for rows, chunks in ((40_000, 12), (160_000, 8)):
        compare_widths(client, rows * chunks, 400, chunks, repeat)
    p = 50
    A, b = logistic_rows(256_000, p, seed=1)
    reference = Reference(A, b, 1e-4)
    X, y = da.from_array(A, chunks=(4000, p)), da.from_array(b, chunks=4000)
    with dask.config.set(scheduler="threads"):
        found = {width: reference.passes(X, y, n_parallel=width) for width in (1, 2, 4, 8)}
    print(f"64 chunks of 4,000 rows, passes to {LEVEL:g} by n_parallel: {found}\n", flush=True)


def memory_of(process: int | None = None) -> float:
    return psutil.Process(process).memory_info().rss / 1e6


def flat(client: Client) -> None:
    X, y = persisted_rows(100_000, 20, 100)
    rows = []

    def note(info):
        if info.epoch % 10 == 9:  # just before a cut, where there is most
            tasks = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
            rows.append((info.epoch, tasks, memory_of(), *client.run(memory_of).values()))

    SAGAClassifier(max_iter=100, tol=0.0, random_state=0).fit(X, y, callback=note)
    print(
        "| pass | tasks on the scheduler | MB of client and scheduler | of worker 1 | of worker 2 |\n"
        + "|---" * 5
        + "|"
    )
    for epoch, tasks, *sizes in rows:
        print(f"| {epoch} | {tasks} | " + " | ".join(f"{size:.0f}" for size in sizes) + " |")
    print(flush=True)


def fewest(fit: Callable[[int], tuple], gap: Callable) -> tuple[int, float, float]:
    """The fewest iterations, doubled and then bisected, that reach LEVEL; their seconds, and the last gap."""
    seen: dict[int, tuple[float, float]] = {}

    def at(k: int) -> bool:
        if k not in seen:
            seconds, found = timed(fit, k)
            seen[k] = seconds, gap(*found)
        return seen[k][1] <= LEVEL

    good = 1
    while not at(good):
        if seen[good][0] > MOST_SECONDS / 2 or good >= 2000:
            return good, np.inf, seen[good][1]
        good *= 2
    bad = good // 2
    while good - bad > max(1, good // 20):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if at(middle) else (good, middle)
    return good, *seen[good]


def timed(function: Callable, *args: object) -> tuple[float, object]:
    """Seconds and result, once what the fit before left on the cluster is gone."""
    time.sleep(0.1)
    began = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - began, result


def rivals(client: Client, repeat: int) -> None:
    n, p, chunks = 500_000, 54, 20
    X, y = persisted_rows(n, p, chunks)
    reference = Reference(*all_rows(n, p, chunks), 0.0)
    SAGAClassifier(penalty=None, max_iter=1).fit(X, y)  # workers have loaded the kernels
    passes = reference.passes(X, y, penalty=None)

    def ours():
        return SAGAClassifier(penalty=None, max_iter=passes, tol=0.0, random_state=0).fit(X, y)

    def theirs(solver, k):
        tight = {"abstol": 1e-12, "reltol": 1e-12} if solver == "admm" else {"tol": 1e-14}
        model = DaskMLRegression(C=1e15, solver=solver, max_iter=k, solver_kwargs=tight).fit(X, y)
        return model.coef_, model.intercept_

    print(f"{n:,} x {p} in {chunks} persisted chunks, to {LEVEL:g}:\n")
    print("| solver | passes or iterations | seconds |\n|---|---|---|")
    print(f"| ours | {passes} | {statistics.median(timed(ours)[0] for _ in range(repeat)):.2f} |", flush=True)
    found: dict[str, tuple[float, int]] = {}
    for solver in ("lbfgs", "newton", "admm", "proximal_grad", "gradient_descent"):
        try:
            count, seconds, last = fewest(partial(theirs, solver), reference.gap)
        except Exception as error:
            print(f"| dask-ml, {solver} | fails: {type(error).__name__}: {error} | |", flush=True)
            continue
        print(f"| dask-ml, {solver} | {count} | {f'{seconds:.2f}' if seconds < np.inf else f'- | at {last:.0e}'} |")
        found[solver] = seconds, count
    solver = min(found, key=found.get)
    pairs = [(timed(ours)[0], timed(theirs, solver, found[solver][1])[0]) for _ in range(repeat)]
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(their / our for our, their in pairs)
    print(
        f"\nOurs {mine:.2f} s, {solver} {other:.2f} s, medians of {repeat} pairs; their ratio {ratio:.2f}\n", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="visits, larger, parallel, flat, rivals; all by default")
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--kind", nargs="+", default=["npy", "parquet"])
    parser.add_argument("--limit", default="1GB", help="memory of a worker")
    parser.add_argument("--folder", type=Path, help="keeps the files between runs")
    parser.add_argument("--repeat", type=int, default=7)
    given = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    print_header("dask-ml")
    parts = given.parts or ["visits", "larger", "parallel", "flat", "rivals"]
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # of the workers
    for part in parts:
        limit, is_flat = given.limit if part == "larger" else "8GB", part == "flat"
        with (
            dask.config.set({"distributed.admin.low-level-log-length": 20} if is_flat else {}),
            tempfile.TemporaryDirectory() as folder,
            LocalCluster(
                n_workers=2, threads_per_worker=1, memory_limit=limit, dashboard_address=None if is_flat else ":0"
            ) as cluster,
            Client(cluster) as client,
        ):
            if part == "larger":
                larger_table(client, given.folder or Path(folder), given.kind, given.gigabytes)
            elif part == "flat":
                flat(client)
            else:
                {"visits": visits, "parallel": parallel, "rivals": rivals}[part](client, given.repeat)


if __name__ == "__main__":
    main()
