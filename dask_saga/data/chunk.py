"""One chunk of rows as the kernels see it, and how its rows are read block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from ..kernels.intrinsics import GROUP

__all__ = ["BLOCK_BYTES", "Chunk", "frozen", "join_chunks", "ordered_blocks", "row_arrays", "row_blocks"]


# About a megabyte of float64 rows: what is converted or transformed at once.
BLOCK_BYTES = 2**20


def frozen(array: np.ndarray) -> np.ndarray:
    """A read-only view."""
    view = array.view()
    view.flags.writeable = False
    return view


class Chunk(NamedTuple):
    """One chunk as the kernels see it; arrays are C-contiguous, often the user's own, and never written.

    Rows that are to be read once, from one end to the other, may lie in any order (``ordered_blocks``).

    Parameters
    ----------
    rows : ndarray or scipy.sparse CSR of shape (n, p), float32 or float64
    targets : ndarray of shape (n, 1) or (n, k), float64
        Labels as the loss wants them, or numbers; the number of the class where there are several.
    weights : ndarray of shape (n,) or (0,), float64
        Empty where every row weighs one.
    content : str
        Hash of rows and targets.
    weights_content : str
        Hash of the weights; "" where there are none.
    """

    rows: Any
    targets: np.ndarray
    weights: np.ndarray
    content: str
    weights_content: str

    @property
    def weight(self) -> float:
        """Sum of the weights."""
        return float(self.weights.sum()) if self.weights.size else float(len(self.targets))

    @property
    def row_weights(self) -> np.ndarray:
        """The weight of each row, ones where there are none."""
        return self.weights if self.weights.size else np.ones(len(self.targets))

    @property
    def nbytes(self) -> int:
        """Size of the rows."""
        rows = self.rows
        return rows.data.nbytes + rows.indices.nbytes + rows.indptr.nbytes if sp.issparse(rows) else rows.nbytes

    @property
    def entries(self) -> int:
        """Stored entries of the rows."""
        return self.rows.nnz if sp.issparse(self.rows) else self.rows.size


def ordered_blocks(array: np.ndarray, part: slice) -> Iterator[tuple[slice, np.ndarray]]:
    """A part of an array in C order: all at once if it lies so, else copied block by block, into the same megabyte."""
    if array.flags.c_contiguous:
        yield part, array[part]
        return
    size = max(1, BLOCK_BYTES // max(array[:1].nbytes, 1) // GROUP) * GROUP  # a whole number of the kernels' groups
    room = np.empty((min(size, part.stop - part.start), *array.shape[1:]), array.dtype)
    for start in range(part.start, part.stop, size):
        block = slice(start, min(start + size, part.stop))
        copy = room[: block.stop - start]
        np.copyto(copy, array[block])
        yield block, copy


def row_blocks(rows: Any, part: slice) -> Iterator[tuple[slice, list[np.ndarray]]]:
    """Some consecutive rows, in as many blocks as they must be copied, as the kernels take them."""
    if sp.issparse(rows):
        yield part, row_arrays(rows, part)
    else:
        yield from ((block, [frozen(array)]) for block, array in ordered_blocks(rows, part))


def row_arrays(rows: Any, block: slice) -> list[np.ndarray]:
    """Some consecutive rows as the kernels take them: one array, or three of CSR."""
    if sp.issparse(rows):
        return [frozen(array) for array in (rows.data, rows.indices, rows.indptr[block.start : block.stop + 1])]
    return [frozen(rows[block])]


def join_chunks(*chunks: Chunk) -> Chunk:
    """Several chunks, all dense or all sparse, as one."""
    rows = [chunk.rows for chunk in chunks]
    weighted = any(chunk.weights.size for chunk in chunks)
    return Chunk(
        sp.vstack(rows, format="csr") if sp.issparse(rows[0]) else np.concatenate(rows),
        np.concatenate([chunk.targets for chunk in chunks]),
        np.concatenate([chunk.row_weights for chunk in chunks]) if weighted else chunks[0].weights,
        " ".join(chunk.content for chunk in chunks),
        " ".join(chunk.weights_content for chunk in chunks) if weighted else "",
    )
