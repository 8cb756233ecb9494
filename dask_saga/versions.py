"""``show_versions`` prints what a bug report needs to know about the installation."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

from dask.system import CPU_COUNT
from threadpoolctl import threadpool_info

__all__ = ["show_versions"]


# Packages that a fit uses, and those of the data that it reads.
PACKAGES = (
    "dask-saga", "numpy", "scipy", "numba", "llvmlite", "scikit-learn", "dask", "distributed", "dask-ml", "pandas",
    "pyarrow", "fsspec", "threadpoolctl", "xxhash", "sparse", "polars", "xarray", "zarr",
)  # fmt: skip


def show_versions() -> None:
    """Print the versions of Python and of the packages, the machine, the cluster and the BLAS libraries.

    Paste the output into a bug report. It has no names of hosts, users or data.

    Examples
    --------
    >>> import dask_saga
    >>> dask_saga.show_versions()  # doctest: +ELLIPSIS
    System:
    ...
    """
    _print("System", {"python": sys.version.replace("\n", " "), "machine": platform.platform(), "cores": CPU_COUNT})
    _print("Packages", {name: _version(name) for name in PACKAGES})
    _print(
        "Kernels", {"on-disk cache": "NUMBA_CACHE_DIR" if os.environ.get("NUMBA_CACHE_DIR") else "beside the package"}
    )
    _print("Dask", {"scheduler": _scheduler()})
    libraries = threadpool_info()
    _print(
        "Thread pools", {one["internal_api"]: f"{one['version']}, {one['num_threads']} threads" for one in libraries}
    )


def _print(title: str, facts: dict) -> None:
    print(f"\n{title}:" if title != "System" else f"{title}:")
    for name, fact in facts.items():
        print(f"{name:>15}: {fact}")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _scheduler() -> str:
    """Return "no client", or the cluster of the client with its numbers of workers and threads."""
    from distributed import default_client

    try:
        client = default_client()
    except ValueError:
        return "no client"
    if client.asynchronous:
        return "asynchronous client"
    threads = client.nthreads()
    return f"{type(client.cluster).__name__}, {len(threads)} workers, {sum(threads.values())} threads"
