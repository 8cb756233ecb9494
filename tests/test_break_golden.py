"""Files that other versions wrote: they load, predict, and go on learning (``tests/golden/write.py`` wrote them)."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone

import dask_saga
from dask_saga.fitting import preparation

from .golden import write

VERSIONS = sorted(path.name for path in Path(write.__file__).parent.iterdir() if (path / "coefficients.json").exists())
NAMES = ["stream", "classes", "sparse", "numbers", "counts", "chunks", "light"]
pytestmark = [
    pytest.mark.joins,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.InconsistentVersionWarning"),
]


@pytest.fixture(autouse=True)
def _apart(monkeypatch):
    monkeypatch.setattr(preparation, "JOINED_BYTES", 2**22)  # as the files were written


def known(version):
    folder = Path(write.__file__).parent / version
    return folder, json.loads((folder / "coefficients.json").read_text())


def assert_close(model, wanted):
    # Not bits: another processor sums in another order, and steps carry that on.
    coef, intercept = write.coefficients(model)
    np.testing.assert_allclose(coef, wanted[0], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(intercept, wanted[1], rtol=1e-6, atol=1e-8)


def test_there_are_files():
    assert VERSIONS


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_pickled_estimator(version, name):
    folder, wanted = known(version)
    model = pickle.loads((folder / f"{name}.pickle").read_bytes())
    assert_close(model, wanted[name][0])
    assert clone(model).get_params().keys() == type(model)().get_params().keys(), "later ones have their defaults"
    A, *_ = write.rows()
    rows = A / 100 if name == "counts" else A
    z = rows @ np.transpose(wanted[name][0][0]) + wanted[name][0][1]
    if hasattr(model, "decision_function"):
        np.testing.assert_allclose(model.decision_function(rows).reshape(z.shape), z, rtol=1e-9, atol=1e-9)
        assert set(model.predict(rows)) <= set(model.classes_)
    else:
        np.testing.assert_allclose(
            model.predict(rows).reshape(z.shape), np.exp(z) if name == "counts" else z, rtol=1e-9, atol=1e-9
        )
    if name == "light":
        return
    before = model.state_
    assert not before.head.x.flags.writeable
    write.go_on(name, model)
    if version == dask_saga.__version__:  # others may have learnt in another way
        assert_close(model, wanted[name][1])
    assert np.isfinite(model.coef_).all()
    assert len(model.state_.chunks) == len(before.chunks) + 1
    again = pickle.loads(pickle.dumps(model))
    assert again.coef_.tobytes() == model.coef_.tobytes()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_checkpoint(version, tmp_path):
    folder, wanted = known(version)
    shutil.copytree(folder / "checkpoint", tmp_path / "checkpoint")
    model = write.checkpointed(tmp_path / "checkpoint", write.WHOLE)
    assert [row["epoch"] for row in model.history_] == list(range(1, write.WHOLE + 1))
    last = sorted(path.name for path in (folder / "checkpoint").iterdir())[-1]
    assert last == f"saga-{write.SAVED:08d}.npz"
    if version == dask_saga.__version__:
        assert_close(model, wanted["checkpoint"][0])


def test_what_this_version_finds_itself():
    if dask_saga.__version__ not in VERSIONS:
        pytest.fail("this version has no golden files yet: python -m tests.golden.write tests/golden")
    _, wanted = known(dask_saga.__version__)
    A, _, numbers = write.rows()
    for name, model in write.estimators().items():
        assert_close(model, wanted[name][0])
    found = write.saga([(A[:30], numbers[:30]), (A[30:], numbers[30:])], "squared_error", tol=1e-8, random_state=0)
    np.testing.assert_allclose(found.x, wanted["saga"][0][0][0], rtol=1e-6, atol=1e-8)
