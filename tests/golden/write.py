"""Writes the files beside it with the version that is installed: ``python -m tests.golden.write FOLDER``.

Each version's files stay as they were written, for as long as later versions promise to read them. Those of a
version under development are written anew where what it learns changes on purpose. Write with the oldest numpy that
is supported, as that cannot read the pickles of newer ones.
"""

import json
import pickle
import shutil
import sys
import warnings
from pathlib import Path

import dask.array as da
import numpy as np
import scipy.sparse as sp

import dask_saga
from dask_saga import SAGAClassifier, SAGARegressor, saga

# The passes of the checkpoint, and of the fit that goes on from it.
SAVED, WHOLE = 3, 6


def rows(n=60, p=4):
    """The same on every machine and in every version of numpy."""
    i, j = np.arange(n)[:, None], np.arange(p)[None]
    A = np.round(np.sin(1.0 + 7.0 * i + 3.0 * j * i) * 10.0 ** (j % 3), 3) + j
    return (
        A,
        np.where(np.sin(5.0 * i[:, 0]) + A[:, 0] > 0, 1.0, -1.0),
        np.round(A @ np.arange(1.0, p + 1) + np.cos(i[:, 0]), 3),
    )


def estimators():
    """Estimators by name, with the calls that made them."""
    A, labels, numbers = rows()
    names = np.array(["a", "b", "c"])[np.arange(60) % 3]
    weights = np.linspace(0.5, 2.0, 30)
    stream = SAGAClassifier(random_state=0).partial_fit(A[:30], labels[:30], classes=[-1.0, 1.0])
    stream.partial_fit(A[30:], labels[30:], sample_weight=weights, chunk_id="second").partial_fit(A[:30], labels[:30])
    return {
        "stream": stream,
        "classes": SAGAClassifier(penalty="elasticnet", alpha=0.01, max_iter=20, random_state=1).fit(A, names),
        "sparse": SAGAClassifier("squared_hinge", alpha=0.01, max_iter=20,
        random_state=2).fit(sp.csr_array(np.where(A > 0, A, 0)), labels),
        "numbers": SAGARegressor(alpha=0.01, max_iter=20, memory_dtype="float64", random_state=3).fit(A,
        np.c_[numbers, -numbers]),
        "counts": SAGARegressor("poisson", max_iter=20, random_state=4).fit(A / 100, np.abs(np.round(numbers / 100))),
        "chunks": SAGARegressor("huber", alpha=0.01, max_iter=20, random_state=5).fit(*blocks(A, numbers)),
        "light": stream.without_memory(),
    }  # fmt: skip


def blocks(A, y):
    return da.from_array(A, chunks=(20, 4)), da.from_array(y, chunks=20)


def checkpointed(folder, passes):
    """A fit of so many passes that saves to, or goes on from, a checkpoint."""
    A, labels, _ = rows()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SAGAClassifier(max_iter=passes, tol=0.0, random_state=0).fit(*blocks(A, labels), checkpoint=folder)


def coefficients(model):
    return [np.atleast_2d(model.coef_).tolist(), np.ravel(model.intercept_).tolist()]


def expected():
    """Coefficients that a version finds: as they are, and after one more visit."""
    A, _, numbers = rows()
    found = {}
    for name, model in estimators().items():
        found[name] = [coefficients(model)]
        if name != "light":
            found[name].append(coefficients(go_on(name, model)))
    found["checkpoint"] = [coefficients(checkpointed(None, WHOLE))]
    result = saga([(A[:30], numbers[:30]), (A[30:], numbers[30:])], "squared_error", tol=1e-8, random_state=0)
    found["saga"] = [[[result.x.tolist()], [result.intercept]]]
    return found


def go_on(name, model):
    """One more visit, of rows that are partly new."""
    A, labels, numbers = rows()
    part = slice(20, 50)
    X = sp.csr_array(np.where(A > 0, A, 0)[part]) if name == "sparse" else A[part]
    y = {
        "classes": np.array(["a", "b", "c"])[np.arange(60) % 3], "numbers": np.c_[numbers, -numbers],
        "counts": np.abs(np.round(numbers / 100)), "chunks": numbers,
    }.get(name, labels)[part]  # fmt: skip
    return model.partial_fit(X / 100 if name == "counts" else X, y)


def main(folder):
    folder = Path(folder) / dask_saga.__version__
    shutil.rmtree(folder, ignore_errors=True)  # else the checkpoint would go on from the one there
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, model in estimators().items():
            (folder / f"{name}.pickle").write_bytes(pickle.dumps(model, protocol=4))
        (folder / "coefficients.json").write_text(json.dumps(expected(), indent=1) + "\n")
        checkpointed(folder / "checkpoint", SAVED)


if __name__ == "__main__":
    main(*sys.argv[1:])
