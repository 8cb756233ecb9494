"""Checkpoints execute nothing, names are taken as they are, and nothing but the Dask client uses the network."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest

import dask_saga
from dask_saga import SAGAClassifier

from .conftest import make_rows

A, y = make_rows(60, 3)
SETTINGS = {"max_iter": 3, "tol": 0.0, "random_state": 0}
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def edit(path, change):
    """Change the arrays of a checkpoint, or its text, in place."""
    with np.load(path) as arrays:
        arrays = dict(arrays)
    text = json.loads(arrays["text"].tobytes())
    change(arrays, text)
    if arrays["text"].dtype == np.uint8:
        arrays["text"] = np.frombuffer(json.dumps(text).encode(), np.uint8)
    np.savez(path, **arrays)


PLANTED = {
    "text": lambda trap: lambda path: edit(path, lambda arrays, text: arrays.update(text=trap)),
    "head": lambda trap: lambda path: edit(path, lambda arrays, text: arrays.update({"head.x": trap})),
    "memory": lambda trap: lambda path: edit(path, lambda arrays, text: arrays.update({"memory-0.gradients": trap})),
    "whole file": lambda trap: lambda path: path.write_bytes(pickle.dumps(trap)),
    "one array": lambda trap: lambda path: np.save(path.open("wb"), trap),
    "other fields": lambda trap: lambda path: edit(path, lambda arrays,
    text: text["head"].update(__class__="os.system")),
    "no head": lambda trap: lambda path: edit(path, lambda arrays, text: text.update(head="__import__('os')")),
    "no identity": lambda trap: lambda path: edit(path, lambda arrays, text: text.update(identity=[])),
    "no such array": lambda trap: lambda path: edit(path, lambda arrays,
    text: text["head"].update(x={"array": "/etc/passwd"})),
    "a list": lambda trap: lambda path: edit(path, lambda arrays, text: text.update(format=[1])),
}  # fmt: skip


@pytest.mark.parametrize("where", PLANTED)
def test_a_checkpoint_executes_nothing(where, tmp_path):
    saved, proof = tmp_path / "saved", tmp_path / "executed"
    SAGAClassifier(**SETTINGS).fit(A, y, checkpoint=saved)
    trap = np.array([Touch(proof)], dtype=object)
    assert pickle.loads(pickle.dumps(trap)) is not None
    assert proof.exists()  # it works where it is unpickled
    proof.unlink()
    for path in saved.iterdir():
        PLANTED[where](trap)(path)
    proof.unlink(missing_ok=True)
    model = SAGAClassifier(**SETTINGS)
    with (
        pytest.warns(UserWarning, match="cannot be read"),
        pytest.raises(ValueError, match=r"no checkpoint.*delete them"),
    ):
        model.fit(A, y, checkpoint=saved)
    assert not proof.exists()
    assert not hasattr(model, "coef_")


NAMES = [
    "$(touch executed)", "`touch executed`", "a;touch executed", "~", "~root", "*", "a?[b]", "{a,b}", "%s%n",
    "{0!r:>99}",
    "-rf", " a b ", "a\nb", "..a", "file:a", "ä日本", "a'\"b", "$HOME", "saga-00000001.npz", "a#b?c=d",
    "a|touch executed",
]  # fmt: skip


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_names_of_folders_are_taken_as_they_are(name, relative, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k in range(2):  # the second finds the first's
        seen = []
        folder = name if relative else tmp_path / name
        SAGAClassifier(**SETTINGS).fit(A, y, checkpoint=folder, callback=seen.append)
        assert len(seen) == (0 if k else 3)
    assert os.listdir(tmp_path) == [name]
    assert sorted(os.listdir(tmp_path / name)) == ["saga-00000003.npz"]


@pytest.mark.parametrize("name", ["*", "a[b]", "~", "$(touch executed)", "{0}%s"])
def test_names_within_urls(name):
    files = fsspec.filesystem("memory")
    if files.exists("/hostile"):
        files.rm("/hostile", recursive=True)
    for other in ("a", "ab"):
        files.pipe(f"/hostile/{other}/keep", b"kept")
    SAGAClassifier(**SETTINGS).fit(A, y, checkpoint=f"memory://hostile/{name}")
    SAGAClassifier(**{**SETTINGS, "max_iter": 4}).fit(A, y, checkpoint=f"memory://hostile/{name}")
    assert sorted(files.find("/hostile")) == sorted(
        ["/hostile/a/keep", "/hostile/ab/keep", *(f"/hostile/{name}/saga-0000000{k}.npz" for k in (3, 4))]
    )
    files.rm("/hostile", recursive=True)


# Run apart, as audit hooks cannot be taken away again.
SCRIPT = """
import sys, warnings
import numpy as np
import dask, dask.array as da, scipy.sparse as sp
warnings.simplefilter("ignore")
used = []
def watch(event, args):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        if not ALLOWED(event, args):
            used.append((event, str(args)))
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile", "urllib.Request"):
        if STRICT and "ldconfig" not in str(args):  # how ctypes finds libraries, for some versions of threadpoolctl
            used.append((event, str(args)))
def work():
    from dask_saga import SAGAClassifier, SAGARegressor, saga
    rng = np.random.default_rng(0)
    A = rng.standard_normal((200, 4)); y = A[:, 0] > 0
    X, labels = da.from_array(A, chunks=(50, 4)), da.from_array(y, chunks=50)
    model = SAGAClassifier(max_iter=3, random_state=0).fit(A, y, checkpoint=sys.argv[1] + "/a")
    model.partial_fit(A[:50], y[:50]).predict_proba(A)
    SAGARegressor(max_iter=3, random_state=0).fit(sp.csr_array(A), A[:, 0]).score(A, A[:, 0])
    SAGAClassifier(max_iter=3, random_state=0).fit(X, labels, checkpoint=sys.argv[1] + "/b").predict(X).compute()
    saga([(A, np.where(y, 1.0, -1.0))], max_iter=2)
"""
ALONE = """
STRICT, ALLOWED = True, lambda event, args: False
sys.addaudithook(watch)
work()
assert not used, used
print("clean")
"""
CLIENT = """
from dask.distributed import Client, LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        ports = {address.rsplit(":", 1)[1] for address in [cluster.scheduler_address,
            *client.scheduler_info()["workers"]]}
        def ALLOWED(event, args):
            host, port = (args[1] if event == "socket.connect" else args)[:2]
            return event in ("socket.connect", "socket.getaddrinfo") and host == "127.0.0.1" and str(port) in ports
        STRICT = True
        sys.addaudithook(watch)
        work()
        found = list(used)
    assert not found, found
    print("clean")
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", [ALONE, CLIENT], ids=["alone", "client"])
def test_only_the_client_uses_the_network(form, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT + form)
    env = {**os.environ, "PYTHONPATH": str(Path(dask_saga.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", tmp_path], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("clean\n")
