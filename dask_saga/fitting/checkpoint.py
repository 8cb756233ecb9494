"""Checkpoints from which ``fit`` resumes after its process died, with the same bits as an undisturbed run.

A checkpoint is one ``.npz`` file without pickles. It contains arrays, and JSON for everything else. It is written to a
temporary name and then moved. The previous checkpoint is kept, in case the last one cannot be read.
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

from ..solver.state import ChunkMemory, SolverState

__all__ = ["Checkpoint", "Saved"]


# Version of the file format. Files of a newer format are rejected.
FORMAT = 1

# A checkpoint is written after a pass if the last one is at least SECONDS old, and at least AGE_RATIO times as old as
# writing it took. Writing then takes less than a tenth of the time.
SECONDS, AGE_RATIO = 30.0, 10.0

# Number of checkpoints that are kept.
KEPT = 2

# Names of checkpoint files. No other files are read or deleted.
OWN = re.compile(r"(^|[/\\])saga-\d{8,}\.npz$")


# Exceptions that mean that a checkpoint is damaged, so that the previous one is used.
UNREADABLE = (zipfile.BadZipFile, OSError, ValueError, KeyError, EOFError, TypeError, AttributeError)


class Saved(NamedTuple):
    """Content of a checkpoint: the state of a fit after a whole pass.

    Parameters
    ----------
    head : SolverState
    memories : list of ChunkMemory
        Memory of each group of chunks.
    facts : dict
        Window, counters, history, digest and seed, all of JSON types.
    """

    head: SolverState
    memories: list[ChunkMemory]
    facts: dict


class Checkpoint:
    """Folder with the checkpoints of one fit.

    Parameters
    ----------
    path : str or os.PathLike
        Folder, or a URL that fsspec supports.

    Raises
    ------
    TypeError
        If `path` is neither a string nor a path.
    ValueError
        If fsspec does not support the protocol of the URL.
    """

    def __init__(self, path: Any):
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"checkpoint={path!r} must be a folder or a URL, given as a string or a path")
        try:
            # Give only URLs to fsspec as they are, because it would expand a ~ in a path to a home directory.
            is_url = isinstance(path, str) and ("://" in path or "::" in path)
            self.files, self.folder = fsspec.core.url_to_fs(path if is_url else os.path.abspath(path))
        except ValueError as error:
            raise ValueError(f"checkpoint={path!r}: {error}; give a folder, or a URL that fsspec supports") from error
        self.last_time, self.seconds = time.monotonic(), 0.0  # end and duration of the last write

    def is_due(self) -> bool:
        """Whether the last checkpoint is old enough to write another one."""
        since = time.monotonic() - self.last_time
        return since >= SECONDS and since >= AGE_RATIO * self.seconds

    def save(self, identity: dict, saved: Saved) -> None:
        """Write a checkpoint, and delete all but the last two.

        Parameters
        ----------
        identity : dict of str to str
            Properties that a fit must share to resume from this checkpoint.
        saved : Saved

        Raises
        ------
        OSError
            If the file cannot be written. Earlier checkpoints are kept.
        """
        began = time.monotonic()
        arrays: dict[str, Any] = {}
        head = _fields("head", saved.head, arrays)
        memories = [_fields(f"memory-{k}", memory, arrays) for k, memory in enumerate(saved.memories)]
        text = {"format": FORMAT, "identity": identity, "head": head, "memories": memories, "facts": saved.facts}
        arrays["text"] = np.frombuffer(json.dumps(text, default=lambda number: number.item()).encode(), dtype=np.uint8)
        self._make_folder()
        path = f"{self.folder}/saga-{saved.facts['epoch']:08d}.npz"
        try:
            with self.files.open(path + ".part", "wb") as file:
                np.savez(file, **arrays)
        except OSError as error:
            with contextlib.suppress(OSError):  # remove the partial file, which would still occupy the disk
                self.files.rm_file(path + ".part")
            raise _write_error(error, path) from error
        _move(self.files, path + ".part", path)
        for old in self._names()[:-KEPT]:
            self.files.rm_file(old)
        self.last_time, self.seconds = time.monotonic(), time.monotonic() - began

    def load(self, identity: dict) -> Saved | None:
        """Load the last readable checkpoint.

        This also creates the folder, so that a folder that cannot be written is reported before the first pass.

        Parameters
        ----------
        identity : dict of str to str
            Properties of this fit. Values that are None are not compared.

        Returns
        -------
        Saved or None
            None if the folder has no checkpoint.

        Raises
        ------
        ValueError
            If the checkpoint is of another fit or of a newer format, or if none of the checkpoints can be read.
        OSError
            If the folder cannot be created.
        """
        self._make_folder()
        names = self._names()
        for name in reversed(names):
            try:
                with self.files.open(name, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                    text = json.loads(arrays["text"].tobytes())
                    if text["format"] <= FORMAT:
                        saved = _restored(text, dict(arrays))
            except UNREADABLE as error:
                warnings.warn(f"checkpoint {name} cannot be read ({error}); taking the one before", stacklevel=2)
                continue
            if text["format"] > FORMAT:
                raise ValueError(
                    f"checkpoint {name} has format {text['format']}; this version knows {FORMAT}, so update dask-saga, "
                    "or give another folder"
                )
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
            raise _write_error(error, self.folder) from error

    def _names(self) -> list[str]:
        """Return the names of the checkpoints in the folder, the oldest first. Other files are ignored."""
        return sorted(name for name in map(str, self.files.ls(self.folder, detail=False)) if OWN.search(name))


def _write_error(error: OSError, path: str) -> OSError:
    return OSError(error.errno, f"checkpoint {path} cannot be written: {error.strerror or error}")


def _move(files: Any, one: str, other: str) -> None:
    if isinstance(files, LocalFileSystem):
        os.replace(one, other)  # atomic, while older versions of fsspec copy
    elif type(files).mv is AbstractFileSystem.mv:  # this mv would expand a * in the folder's name as a pattern
        files.cp_file(one, other)
        files.rm_file(one)
    else:
        files.mv(one, other)


def _fields(name: str, values: Any, arrays: dict[str, np.ndarray]) -> dict:
    """Convert the fields of a NamedTuple to JSON types. Arrays are moved to `arrays` and replaced by their names."""
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
