"""Numba's on-disk cache: hit by the next process, missed after an edit, never poisoned, never required."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dask_saga

pytestmark = pytest.mark.slow  # each test starts processes that compile

FIT = """
import numpy as np, scipy.sparse as sp
from dask_saga import SAGAClassifier
from dask_saga.kernels import epoch
A, y = np.random.default_rng(0).standard_normal((60, 1)) + np.logspace(-4, 0, 180).reshape(60, 3), np.arange(60) % 2
for X in (A, sp.csr_array(A)):
    for average in (True, False):  # Newton steps, and passes of visits
        SAGAClassifier(max_iter=2000, tol=1e-2, average=average, random_state=0).fit(X, y)
for kernel in epoch._BUILT_IN:
    if "NUMBA_CACHE_DIR" in __import__("os").environ and kernel.dispatcher.signatures:
        print(sum(kernel.dispatcher.stats.cache_hits.values()), sum(kernel.dispatcher.stats.cache_misses.values()))
"""

OWN_LOSS = """
import math
from typing import NamedTuple
import numpy as np
from dask_saga import saga

class HalfLog(NamedTuple):
    curvature = 0.125
    def value(self, z, y):
        return 0.5 * math.log1p(math.exp(-y * z))
    def derivative(self, z, y):
        return -0.5 * y / (1.0 + math.exp(y * z))

A, b = np.random.default_rng(0).standard_normal((50, 3)), np.tile([1.0, -1.0], 25)
theirs = saga([(A, b)], loss=HalfLog(), max_iter=300, tol=1e-7, random_state=0)
ours = saga([(A, b)], loss="log_loss", max_iter=300, tol=1e-7, random_state=0)
assert theirs.converged and np.allclose(theirs.x, ours.x, atol=1e-6), (theirs.x, ours.x)
"""


def run(code, folder, package_parent=None, **environment):
    script = folder / "script.py"
    script.write_text(code)
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    env["PYTHONPATH"] = str(package_parent or Path(dask_saga.__file__).parents[1])
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [tuple(map(int, line.split())) for line in done.stdout.splitlines()]


@pytest.fixture
def copied(tmp_path):
    """A copy of the package without compiled files."""
    source = Path(dask_saga.__file__).parent
    shutil.copytree(source, tmp_path / "copy" / "dask_saga", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache that one process has filled, to be copied."""
    folder = tmp_path_factory.mktemp("filled")
    assert all(misses for _, misses in run(FIT, folder, NUMBA_CACHE_DIR=str(folder / "cache")))
    return folder / "cache"


def test_second_process_only_hits(tmp_path, filled):
    cache = str(shutil.copytree(filled, tmp_path / "cache"))
    again = run(FIT, tmp_path, NUMBA_CACHE_DIR=cache)
    assert len(again) == 6  # all that a fit of one chunk calls
    assert all(hits and not misses for hits, misses in again)


def test_edited_loss_is_a_miss(tmp_path, copied):
    cache = str(tmp_path / "cache")
    run(FIT, tmp_path, copied, NUMBA_CACHE_DIR=cache)
    losses = copied / "dask_saga" / "losses.py"
    text = losses.read_text()
    line = "return -y * (e if margin > 0 else 1.0) / (1.0 + e)"
    assert text.count(line) == 1
    losses.write_text(text.replace(line, line.replace("-y", "-y * 1.0")))
    assert all(misses and not hits for hits, misses in run(FIT, tmp_path, copied, NUMBA_CACHE_DIR=cache))


def test_own_loss_works_and_does_not_poison(tmp_path, filled):
    cache = str(shutil.copytree(filled, tmp_path / "cache"))
    run(OWN_LOSS, tmp_path, NUMBA_CACHE_DIR=cache)
    assert all(hits and not misses for hits, misses in run(FIT, tmp_path, NUMBA_CACHE_DIR=cache))


def test_an_index_that_names_what_is_no_more_is_begun_anew(tmp_path, filled):
    """As an upgrade leaves them: numba reads an index before it looks whether it is of these sources."""
    cache = shutil.copytree(filled, tmp_path / "cache")
    indices = list(cache.rglob("*.nbi"))
    for index in indices:
        version = pickle.loads(index.read_bytes())
        index.write_bytes(pickle.dumps(version) + b"cdask_saga._no_more\nPass\n.")
    assert indices
    assert all(misses and not hits for hits, misses in run(FIT, tmp_path, NUMBA_CACHE_DIR=str(cache)))
    assert all(hits and not misses for hits, misses in run(FIT, tmp_path, NUMBA_CACHE_DIR=str(cache)))


def test_works_without_a_writable_cache(tmp_path, copied, monkeypatch):
    # Files where numba wants to make its folders stop even root.
    (copied / "dask_saga" / "kernels" / "__pycache__").write_text("")
    (tmp_path / "file").write_text("")
    environment = {"HOME": str(tmp_path / "file"), "XDG_CACHE_HOME": str(tmp_path / "file")}
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    check = "\nassert type(epoch._BUILT_IN[0].dispatcher._cache).__name__ == 'NullCache'"
    run(FIT + check, tmp_path, copied, **environment)
