"""Files from which ``fit`` goes on after its process died, with the bits of an undisturbed run.

A checkpoint is one ``.npz`` file without pickles: arrays, and a JSON text for the rest. It is written beside
its place and moved there; the one before stays, in case the last one cannot be read.
"""

from __future__ import annotations

import json
import os
import time
import warnings
import zipfile
from typing import Any, NamedTuple

import fsspec
import numpy as np

from .inputs import frozen
from .state import ChunkMemory, Head

__all__ = ["Checkpoint", "Saved"]

FORMAT = 1
# A checkpoint is written after a pass where the last is older, and writing takes less than a tenth of the time.
SECONDS, LEAST_RATIO = 30.0, 10.0
KEPT = 2

UNREADABLE = (zipfile.BadZipFile, OSError, ValueError, KeyError, EOFError)


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

    head: Head
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
    """

    def __init__(self, path: Any):
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"checkpoint={path!r} must be a folder or an URL")
        self.files, self.folder = fsspec.core.url_to_fs(str(path))
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
        """
        began = time.monotonic()
        arrays: dict[str, np.ndarray] = {}
        head = _fields("head", saved.head, arrays)
        memories = [_fields(f"memory-{k}", memory, arrays) for k, memory in enumerate(saved.memories)]
        text = {"format": FORMAT, "identity": identity, "head": head, "memories": memories, "facts": saved.facts}
        arrays["text"] = np.frombuffer(json.dumps(text, default=lambda number: number.item()).encode(), dtype=np.uint8)
        self.files.makedirs(self.folder, exist_ok=True)
        place = f"{self.folder}/saga-{saved.facts['epoch']:08d}.npz"
        with self.files.open(place + ".part", "wb") as file:
            np.savez(file, **arrays)
        self.files.mv(place + ".part", place)
        for old in self._names()[:-KEPT]:
            self.files.rm_file(old)
        self.last, self.took = time.monotonic(), time.monotonic() - began

    def load(self, identity: dict) -> Saved | None:
        """The last checkpoint that can be read, or None where there is none.

        Raises
        ------
        ValueError
            If it is of another fit, naming what differs, or of a newer format.
        """
        names = self._names()
        for name in reversed(names):
            try:
                with self.files.open(name, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                    text = json.loads(arrays["text"].tobytes())
                    if text["format"] <= FORMAT:
                        read = {key: frozen(arrays[key]) for key in arrays.files}
            except UNREADABLE as error:
                warnings.warn(f"checkpoint {name} cannot be read ({error}); taking the one before", stacklevel=2)
                continue
            if text["format"] > FORMAT:
                raise ValueError(f"checkpoint {name} has format {text['format']}; this version knows {FORMAT}")
            for what, value in identity.items():
                if value is not None and text["identity"][what] != value:
                    raise ValueError(
                        f"checkpoint {name} is of a fit with other {what}; give another folder, or delete this one"
                    )
            head = Head(**_filled(text["head"], read))
            memories = [ChunkMemory(**_filled(fields, read)) for fields in text["memories"]]
            return Saved(head, memories, text["facts"])
        if names:
            raise ValueError(f"no checkpoint in {self.folder} can be read; delete them to begin anew")
        return None

    def _names(self) -> list[str]:
        if not self.files.isdir(self.folder):
            return []
        return sorted(str(name) for name in self.files.ls(self.folder, detail=False) if str(name).endswith(".npz"))


def _fields(name: str, values: Any, arrays: dict[str, np.ndarray]) -> dict:
    """The fields of a NamedTuple as JSON; arrays go to `arrays`, and their names remain."""
    fields = values._asdict()
    for key, value in fields.items():
        if isinstance(value, np.ndarray):
            arrays[f"{name}.{key}"] = value
            fields[key] = {"array": f"{name}.{key}"}
    return fields


def _filled(fields: dict, arrays: dict[str, np.ndarray]) -> dict:
    return {key: arrays[value["array"]] if isinstance(value, dict) else value for key, value in fields.items()}
