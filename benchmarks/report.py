"""The header of every result that a benchmark prints: what was measured, when, by which command and where.

A page of ``docs/benchmarks`` starts with such a header, so that a reader can repeat the run.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from threadpoolctl import threadpool_info

import dask_saga

PACKAGES = ("numpy", "scipy", "numba", "scikit-learn", "dask", "distributed")


def git(*arguments: str) -> str:
    """The output of a git command in this checkout, or an empty string where there is none."""
    try:
        found = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


def source() -> str:
    """The version of dask-saga, with the commit of this checkout and whether the package was edited after it."""
    commit = git("rev-parse", "--short=7", "HEAD")
    if not commit:
        return f"dask-saga {dask_saga.__version__}"
    edited = ", with uncommitted changes" if git("status", "--porcelain", "--", "../dask_saga") else ""
    return f"dask-saga {dask_saga.__version__}, commit {commit}{edited}"


def processor() -> str:
    """The processor's model where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def machine() -> str:
    threads = max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)
    return f"{processor()} ({platform.machine()}), {os.cpu_count()} cores, {threads} BLAS threads"


def installed(names: tuple[str, ...]) -> list[str]:
    """Each name with its version; packages that are not installed are left out."""
    found = []
    for name in dict.fromkeys(names):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def header(*packages: str) -> str:
    """The header as a Markdown list; `packages` are named in addition to those that every benchmark uses."""
    script = Path(sys.argv[0]).name
    command = shlex.join(["python", f"benchmarks/{script}", *sys.argv[1:]])
    versions = ", ".join([f"Python {platform.python_version()}", *installed((*PACKAGES, *packages))])
    return (
        f"- Version: {source()}\n"
        f"- Date: {datetime.now(timezone.utc):%Y-%m-%d}\n"
        f"- Command: `{command}`\n"
        f"- Machine: {machine()}\n"
        f"- Packages: {versions}\n"
    )


def print_header(*packages: str) -> None:
    """Print the header and an empty line."""
    print(header(*packages), flush=True)
