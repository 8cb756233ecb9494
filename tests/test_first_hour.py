"""What a user meets first: the import, the versions, and the compilation of the kernels."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

import dask_saga
from dask_saga.execution import compilation

ROOT = Path(dask_saga.__file__).parents[1]


def output_of(code, **environment):
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_leaves_out_what_few_need():
    """Each of these takes from 0.1 s to a second."""
    slow = ["dask.array", "dask.dataframe", "dask_ml", "matplotlib", "tqdm.auto", "IPython", "bokeh"]
    code = f"import sys, dask_saga; print([name for name in {slow} if name in sys.modules])"
    assert output_of(code).strip() == "[]"


def test_versions(capsys):
    dask_saga.show_versions()
    shown = capsys.readouterr().out
    assert f"numba: {numba.__version__}" in shown
    assert f"numpy: {np.__version__}" in shown
    assert "scheduler: no client" in shown
    assert os.environ.get("HOME", "/root") not in shown


def test_versions_with_a_cluster(client, capsys):
    dask_saga.show_versions()
    assert "scheduler: LocalCluster, 2 workers, 2 threads" in capsys.readouterr().out


@numba.njit
def _of_a_user(x):
    return x + 1


def kernel_of_ours():
    def double(x):
        return 2 * x

    double.__module__ = "dask_saga.kernels.double"
    return numba.njit(double)


def test_compilation_is_logged_once(caplog, monkeypatch):
    monkeypatch.setattr(compilation._reporter, "is_reported", False)
    called = []
    with caplog.at_level(logging.INFO, "dask_saga"), compilation.calling_on_compilation(lambda: called.append(1)):
        _of_a_user(1)
        assert not caplog.records
        kernel = kernel_of_ours()
        assert [kernel(1), kernel(2), kernel(1.5)] == [2, 4, 3.0]  # compiled for int and for float
        kernel_of_ours()(1)
    assert [record.getMessage() for record in caplog.records] == [
        "compiling kernels, which may take a minute; later processes load them from disk"
    ]
    assert called == [1, 1, 1]
    kernel_of_ours()(1)
    assert called == [1, 1, 1]


FIT = """
import numpy as np
from dask_saga import SAGAClassifier
A = np.random.default_rng(0).standard_normal((60, 3))
SAGAClassifier(verbose=1, random_state=0).fit(A, A[:, 0] > 0)
"""


@pytest.mark.slow
def test_the_bar_says_that_a_fit_compiles(tmp_path):
    for wanted in (True, False):  # the second process loads what the first one has compiled
        env = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", FIT], env=env, capture_output=True, text=True, check=True)
        assert ("compiling, once per machine" in done.stderr) == wanted
        assert "gradient norm=" in done.stderr
