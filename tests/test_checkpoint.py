"""Fits that go on after they died, with the bits of undisturbed ones, or say why they cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import dask
import dask.array as da
import fsspec
import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from dask_saga import SAGAClassifier, SAGARegressor
from dask_saga.fitting import checkpoint, loop

from .conftest import make_rows

A, y = make_rows()
X, labels = da.from_array(A, chunks=(100, 8)), da.from_array(y, chunks=100)
SETTINGS = {"max_iter": 8, "tol": 0.0, "random_state": 0}
pytestmark = pytest.mark.filterwarnings("ignore:max_iter=8:sklearn.exceptions.ConvergenceWarning")


class Died(Exception):
    pass


@pytest.fixture(autouse=True)
def at_every_pass(monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "AGE_RATIO", 0.0)


def die_after(passes):
    def callback(info):
        if info.epoch == passes + 1:
            raise Died

    return callback


def saved_files(folder):
    return sorted(Path(folder).iterdir())


def assert_same(one, other):
    assert one.coef_.tobytes() == other.coef_.tobytes()
    assert np.asarray(one.intercept_).tobytes() == np.asarray(other.intercept_).tobytes()
    assert one.state_.digest == other.state_.digest
    assert one.n_iter_ == other.n_iter_
    assert [row["gradient_norm"] for row in one.history_] == [row["gradient_norm"] for row in other.history_]
    for a, b in zip(one.state_.chunks.values(), other.state_.chunks.values(), strict=True):
        assert a.gradients.tobytes() == b.gradients.tobytes()
        assert a._replace(gradients=0, total=0) == b._replace(gradients=0, total=0)
    block = A[:100], y[:100]
    assert one.partial_fit(*block).coef_.tobytes() == other.partial_fit(*block).coef_.tobytes()


@pytest.mark.parametrize("persist", [True, False])
@pytest.mark.parametrize("on", ["cluster", "threads"])
def test_the_bits_of_an_undisturbed_fit(on, persist, tmp_path, request):
    if on == "cluster":
        request.getfixturevalue("client")
    with dask.config.set(scheduler=None if on == "cluster" else "threads"):
        model = SAGAClassifier(**SETTINGS)
        with pytest.raises(Died):
            model.fit(X, labels, persist=persist, checkpoint=tmp_path, callback=die_after(3))
        assert not hasattr(model, "coef_")
        seen = []
        model.fit(X, labels, persist=persist, checkpoint=tmp_path, callback=lambda info: seen.append(info.epoch))
        assert seen == [4, 5, 6, 7, 8]
        assert_same(model, SAGAClassifier(**SETTINGS).fit(X, labels))


@pytest.mark.slow
@pytest.mark.joins
def test_joined_chunks_several_outputs_and_a_start_beyond_zero(tmp_path):
    targets = A @ np.random.default_rng(0).standard_normal((8, 3))
    rows, targets = (
        da.from_array(A @ np.triu(np.ones((8, 8))), chunks=(100, 8)),
        da.from_array(targets, chunks=(100, 3)),
    )
    whole = SAGARegressor(**SETTINGS).fit(rows, targets)
    with pytest.raises(Died):
        SAGARegressor(**SETTINGS).fit(rows, targets, checkpoint=str(tmp_path), callback=die_after(2))
    model = SAGARegressor(**SETTINGS).fit(rows, targets, checkpoint=str(tmp_path))
    assert model.coef_.tobytes() == whole.coef_.tobytes()
    assert model.state_.digest == whole.state_.digest


SCRIPT = """
import os, sys
import numpy as np
from dask_saga import SAGAClassifier
from dask_saga.fitting import checkpoint
checkpoint.SECONDS = checkpoint.AGE_RATIO = 0.0
A, y = np.load(sys.argv[1] + "/A.npy"), np.load(sys.argv[1] + "/y.npy")
SAGAClassifier(max_iter=8, tol=0.0).fit(
    A, y, checkpoint=sys.argv[1] + "/saved", callback=lambda info: os._exit(9) if info.epoch == 5 else None)
"""


def test_a_process_that_died_and_no_random_state(tmp_path, monkeypatch):
    np.save(tmp_path / "A.npy", A)
    np.save(tmp_path / "y.npy", y)
    env = {**os.environ, "PYTHONPATH": str(Path(checkpoint.__file__).parents[1])}
    died = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], env=env, capture_output=True, timeout=120)
    assert died.returncode == 9, died.stderr
    model = SAGAClassifier(**{**SETTINGS, "random_state": None}).fit(A, y, checkpoint=tmp_path / "saved")
    monkeypatch.setattr(loop, "draw_seed", lambda random_state: model.state_.seed)
    assert_same(model, SAGAClassifier(**{**SETTINGS, "random_state": None}).fit(A, y))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_file_falls_back_to_the_one_before(damage, tmp_path):
    with pytest.raises(Died):
        SAGAClassifier(**SETTINGS).fit(X, labels, checkpoint=tmp_path, callback=die_after(4))
    last = saved_files(tmp_path)[-1]
    content = bytearray(last.read_bytes())
    content[len(content) // 3] ^= 255 if damage == "flip" else 0
    last.write_bytes(content[: {"cut": len(content) // 2, "flip": len(content), "empty": 0}[damage]])
    seen = []
    model = SAGAClassifier(**SETTINGS)
    with pytest.warns(UserWarning, match=f"{last.name} cannot be read .*taking the one before"):
        model.fit(X, labels, checkpoint=tmp_path, callback=lambda info: seen.append(info.epoch))
    assert seen[0] == 4
    assert_same(model, SAGAClassifier(**SETTINGS).fit(X, labels))


def test_without_a_readable_file_it_does_not_begin_anew_unasked(tmp_path):
    (tmp_path / "saga-00000003.npz").write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="cannot be read"), pytest.raises(ValueError, match="delete them"):
        SAGAClassifier(**SETTINGS).fit(X, labels, checkpoint=tmp_path)


def test_a_full_disk(tmp_path, monkeypatch):
    written = []

    class Full(checkpoint.LocalFileSystem):
        cachable = False

        def open(self, path, mode="rb", **how):
            file = super().open(path, mode, **how)
            if "w" in mode and len(written) >= 2:
                file.write = lambda data: (_ for _ in ()).throw(OSError(28, "No space left on device"))
            written.append(path)
            return file

    model = SAGAClassifier(**SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.fsspec.core, "url_to_fs", lambda path: (Full(), str(path)))
        with pytest.raises(OSError, match=r"checkpoint .*saga-0000000\d.npz cannot be written: No space left"):
            model.fit(X, labels, checkpoint=tmp_path)
    assert not hasattr(model, "coef_")
    assert all(path.suffix == ".npz" for path in saved_files(tmp_path))
    seen = []
    model.fit(X, labels, checkpoint=tmp_path, callback=seen.append)
    assert seen[0].epoch == len(written)
    assert_same(model, SAGAClassifier(**SETTINGS).fit(X, labels))


def test_what_is_kept(tmp_path):
    SAGAClassifier(**SETTINGS).fit(X, labels, checkpoint=tmp_path)
    assert [path.name for path in saved_files(tmp_path)] == ["saga-00000007.npz", "saga-00000008.npz"]
    for path in saved_files(tmp_path):
        with np.load(path, allow_pickle=False) as arrays:
            assert all(arrays[name].dtype != object for name in arrays.files)


def test_a_finished_fit_is_not_repeated_but_can_go_further(tmp_path):
    first = SAGAClassifier(tol=1e-3, random_state=0).fit(X, labels, checkpoint=tmp_path)
    seen = []
    again = SAGAClassifier(tol=1e-3, random_state=0).fit(X, labels, checkpoint=tmp_path, callback=seen.append)
    assert not seen
    assert again.converged_
    assert again.coef_.tobytes() == first.coef_.tobytes()
    further = SAGAClassifier(tol=1e-6, random_state=0).fit(X, labels, checkpoint=tmp_path, callback=seen.append)
    assert seen[0].epoch == first.n_iter_ + 1
    assert further.converged_
    # Not the same bits: where a fit is looked at more closely, and may take a Newton step, depends on tol.
    direct = SAGAClassifier(tol=1e-6, random_state=0).fit(X, labels)
    np.testing.assert_allclose(further.coef_, direct.coef_, rtol=1e-4, atol=1e-6)


def test_a_fit_that_diverged_does_not_go_on(tmp_path):
    A, y = make_rows(classes=False)
    model = SAGARegressor(step_size=1e3, max_iter=5, random_state=0)
    fits = []
    for _ in range(2):
        with pytest.warns(ConvergenceWarning, match="diverged"):
            fits.append(model.fit(A, y, checkpoint=tmp_path).history_)
    assert fits[0] == fits[1]


def test_another_fit_is_refused_and_the_estimator_left_alone(tmp_path):
    SAGAClassifier(**SETTINGS).fit(X, labels, checkpoint=tmp_path)
    other = A.copy()
    other[17, 3] += 1e-9
    cases = {
        "data": (SETTINGS, (da.from_array(other, chunks=(100, 8)), labels)),
        "parameters": ({**SETTINGS, "alpha": 2e-4}, (X, labels)),
        "random_state": ({**SETTINGS, "random_state": 1}, (X, labels)),
    }
    for what, (settings, data) in cases.items():
        model = SAGAClassifier(**settings)
        with pytest.raises(ValueError, match=f"other {what}; give another folder"):
            model.fit(*data, checkpoint=tmp_path)
        assert not hasattr(model, "coef_")
    with pytest.raises(ValueError, match="other data"):
        SAGAClassifier(**SETTINGS).fit(X, labels, da.full(600, 2.0, chunks=100), checkpoint=tmp_path)


def test_a_newer_format_is_refused(tmp_path):
    SAGAClassifier(**SETTINGS).fit(X, labels, checkpoint=tmp_path)
    for path in saved_files(tmp_path):
        with np.load(path) as arrays:
            arrays = dict(arrays)
        text = json.loads(arrays["text"].tobytes())
        arrays["text"] = np.frombuffer(json.dumps({**text, "format": 99}).encode(), np.uint8)
        np.savez(path, **arrays)
    with pytest.raises(ValueError, match="has format 99; this version knows 1, so update"):
        SAGAClassifier(**SETTINGS).fit(X, labels, checkpoint=tmp_path)


def test_any_place_that_fsspec_knows():
    with pytest.raises(Died):
        SAGAClassifier(**SETTINGS).fit(X, labels, checkpoint="memory://saved/here", callback=die_after(3))
    model = SAGAClassifier(**SETTINGS).fit(X, labels, checkpoint="memory://saved/here")
    assert_same(model, SAGAClassifier(**SETTINGS).fit(X, labels))
    fsspec.filesystem("memory").rm("/saved", recursive=True)


def test_not_every_pass_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS", 1e9)
    SAGAClassifier(**SETTINGS).fit(X, labels, checkpoint=tmp_path)
    assert [path.name for path in saved_files(tmp_path)] == ["saga-00000008.npz"]
    with pytest.raises(TypeError, match="checkpoint=3 must be a folder"):
        SAGAClassifier(**SETTINGS).fit(X, labels, checkpoint=3)
    with pytest.raises(ValueError, match="checkpoint='nosuch://a': Protocol not known"):
        SAGAClassifier(**SETTINGS).fit(X, labels, checkpoint="nosuch://a")


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    for name in ("embeddings", "test_set", "saga-notes"):
        np.savez(tmp_path / f"{name}.npz", A)
    with pytest.raises(Died):
        SAGAClassifier(**SETTINGS).fit(X, labels, checkpoint=tmp_path, callback=die_after(3))
    model = SAGAClassifier(**SETTINGS).fit(X, labels, checkpoint=tmp_path)
    assert_same(model, SAGAClassifier(**SETTINGS).fit(X, labels))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 3 + checkpoint.KEPT
    assert {"embeddings.npz", "test_set.npz", "saga-notes.npz"} < set(names)


def test_what_can_be_no_folder_is_told_before_the_first_pass(tmp_path):
    (tmp_path / "file").write_text("")
    seen = []
    with pytest.raises(OSError, match=r"checkpoint .*file cannot be written"):
        SAGAClassifier(**SETTINGS).fit(X, labels, checkpoint=tmp_path / "file", callback=seen.append)
    assert not seen
