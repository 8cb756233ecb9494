"""Files from which ``fit`` goes on after its process died, with the bits of an undisturbed run.

A checkpoint is one ``.npz`` file without pickles: arrays, and a JSON text for the rest. It is written beside
its place and moved there; the one before stays, in case the last one cannot be read.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import warnings
import zipfile
from typing import Any, NamedTuple

import fsspec
import numpy as np
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from ..data.chunk import frozen
from ..solver.state import ChunkMemory, SolverState

__all__ = ["Checkpoint", "Saved"]


FORMAT = 1

# A checkpoint is written after a pass where the last is older, and writing takes less than a tenth of the time.
SECONDS, LEAST_RATIO = 30.0, 10.0

KEPT = 2

# Their names, as only these are read and deleted.
OWN = re.compile(r"(^|[/\\])saga-\d{8,}\.npz$")


UNREADABLE = (zipfile.BadZipFile, OSError, ValueError, KeyError, EOFError, TypeError, AttributeError)


class Saved(NamedTuple):
    """Where a fit stood after a whole pass.

    Parameters
    ----------
    head : Head
    memories : list of ChunkMemory
        Of each group of chunks.
    facts : dict
        Of JSON types: the window, counters, history, digest and seed.
    """

    head: SolverState
    memories: list[ChunkMemory]
    facts: dict


class Checkpoint:
    """A folder of checkpoints of one fit.

    Parameters
    ----------
    path : str or os.PathLike
        Folder, or any URL that fsspec knows.

    Raises
    ------
    TypeError
        If it is neither.
    ValueError
        If fsspec does not know the URL's protocol.
    """

    def __init__(self, path: Any):
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"checkpoint={path!r} must be a folder or an URL")
        try:
            # fsspec would take a ~ for the home of a user; only what is an URL is its own to read.
            is_url = isinstance(path, str) and ("://" in path or "::" in path)
            self.files, self.folder = fsspec.core.url_to_fs(path if is_url else os.path.abspath(path))
        except ValueError as error:
            raise ValueError(f"checkpoint={path!r}: {error}") from error
        self.last, self.took = time.monotonic(), 0.0

    def is_due(self) -> bool:
        since = time.monotonic() - self.last
        return since >= SECONDS and since >= LEAST_RATIO * self.took

    def save(self, identity: dict, saved: Saved) -> None:
        """Write one more checkpoint, and delete all but the last two.

        Parameters
        ----------
        identity : dict of str to str
            What a fit that resumes must agree with.
        saved : Saved

        Raises
        ------
        OSError
            If it cannot be written; those before stay.
        """
        began = time.monotonic()
        arrays: dict[str, np.ndarray] = {}
        head = _fields("head", saved.head, arrays)
        memories = [_fields(f"memory-{k}", memory, arrays) for k, memory in enumerate(saved.memories)]
        text = {"format": FORMAT, "identity": identity, "head": head, "memories": memories, "facts": saved.facts}
        arrays["text"] = np.frombuffer(json.dumps(text, default=lambda number: number.item()).encode(), dtype=np.uint8)
        self._make_folder()
        place = f"{self.folder}/saga-{saved.facts['epoch']:08d}.npz"
        try:
            with self.files.open(place + ".part", "wb") as file:
                np.savez(file, **arrays)
        except OSError as error:
            with contextlib.suppress(OSError):  # else what there is of it would go on filling the disk
                self.files.rm_file(place + ".part")
            raise _told(error, place) from error
        _move(self.files, place + ".part", place)
        for old in self._names()[:-KEPT]:
            self.files.rm_file(old)
        self.last, self.took = time.monotonic(), time.monotonic() - began

    def load(self, identity: dict) -> Saved | None:
        """The last checkpoint that can be read, or None where there is none.

        Raises
        ------
        ValueError
            If it is of another fit, naming what differs, or of a newer format.
        OSError
            If there can be no such folder; told before the passes, not after.
        """
        self._make_folder()
        names = self._names()
        for name in reversed(names):
            try:
                with self.files.open(name, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                    text = json.loads(arrays["text"].tobytes())
                    if text["format"] <= FORMAT:
                        saved = _restored(text, {key: frozen(arrays[key]) for key in arrays.files})
            except UNREADABLE as error:
                warnings.warn(f"checkpoint {name} cannot be read ({error}); taking the one before", stacklevel=2)
                continue
            if text["format"] > FORMAT:
                raise ValueError(f"checkpoint {name} has format {text['format']}; this version knows {FORMAT}")
            for what, value in identity.items():
                if value is not None and text["identity"].get(what) != value:
                    raise ValueError(
                        f"checkpoint {name} is of a fit with other {what}; give another folder, or delete this one"
                    )
            return saved
        if names:
            raise ValueError(f"no checkpoint in {self.folder} can be read; delete them to begin anew")
        return None

    def _make_folder(self) -> None:
        try:
            self.files.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise _told(error, self.folder) from error

    def _names(self) -> list[str]:
        """Checkpoints in the folder, the last one last; what else is there is not ours."""
        return sorted(name for name in map(str, self.files.ls(self.folder, detail=False)) if OWN.search(name))


def _told(error: OSError, place: str) -> OSError:
    return OSError(error.errno, f"checkpoint {place} cannot be written: {error.strerror or error}")


def _move(files: Any, one: str, other: str) -> None:
    if isinstance(files, LocalFileSystem):
        os.replace(one, other)  # older versions of fsspec copy
    elif type(files).mv is AbstractFileSystem.mv:  # which would take a * in the folder's name for a pattern
        files.cp_file(one, other)
        files.rm_file(one)
    else:
        files.mv(one, other)


def _fields(name: str, values: Any, arrays: dict[str, np.ndarray]) -> dict:
    """The fields of a NamedTuple as JSON; arrays go to `arrays`, and their names remain."""
    fields = values._asdict()
    for key, value in fields.items():
        if isinstance(value, np.ndarray):
            arrays[f"{name}.{key}"] = value
            fields[key] = {"array": f"{name}.{key}"}
    return fields


def _restored(text: dict, arrays: dict[str, np.ndarray]) -> Saved:
    head = SolverState(**_filled(text["head"], arrays))
    memories = [ChunkMemory(**_filled(fields, arrays)) for fields in text["memories"]]
    if not (isinstance(text["identity"], dict) and isinstance(text["facts"], dict)):
        raise ValueError("it has no identity or facts")
    return Saved(head, memories, text["facts"])


def _filled(fields: dict, arrays: dict[str, np.ndarray]) -> dict:
    return {key: arrays[value["array"]] if isinstance(value, dict) else value for key, value in fields.items()}
