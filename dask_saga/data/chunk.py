"""The ``Chunk`` type, and helpers that read its rows block by block or join several chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from ..kernels.intrinsics import GROUP
from ..kernels.jit import frozen
from .immutable import immutable

__all__ = ["BLOCK_BYTES", "Chunk", "join_chunks", "ordered_blocks", "row_arrays", "row_blocks"]


# Size in bytes of a block of rows that is copied or transformed at once: 1 MiB.
BLOCK_BYTES = 2**20

# Value of ``Chunk.folds`` without cross-validation.
NO_FOLDS = frozen(np.empty(0, np.int16))


@immutable
class Chunk(NamedTuple):
    """One chunk of rows, targets and weights in the form that the kernels read.

    The arrays are C-contiguous. They are never written to, as they often belong to the user.
    Dense rows may have another memory layout if they are only read once from start to end (``ordered_blocks``).

    Parameters
    ----------
    rows : ndarray or scipy.sparse CSR of shape (n, p), float32 or float64
    targets : ndarray of shape (n, 1) or (n, k), float64 or complex128
        Numbers for regression, the two labels of the loss for two classes, or the class index for more classes.
        k is the number of outputs. With offsets they are complex: target + i offset.
    weights : ndarray of shape (n,) or (0,), float64
        Row weights. Empty if every row has weight 1.
    content : str
        Hash of rows and targets. "" if hashing was switched off.
    weights_content : str
        Hash of the weights. "" if there are none.
    folds : ndarray of shape (n,) or (0,), int16
        Fold of cross-validation in which each row is held out. Empty without cross-validation.
    """

    rows: Any
    targets: np.ndarray
    weights: np.ndarray
    content: str
    weights_content: str
    folds: np.ndarray = NO_FOLDS

    @property
    def weight(self) -> float:
        """Sum of the row weights."""
        return float(self.weights.sum()) if self.weights.size else float(len(self.targets))

    @property
    def row_weights(self) -> np.ndarray:
        """Weight of each row; ones if no weights are stored."""
        return self.weights if self.weights.size else np.ones(len(self.targets))

    @property
    def nbytes(self) -> int:
        """Size of the rows in bytes."""
        rows = self.rows
        return rows.data.nbytes + rows.indices.nbytes + rows.indptr.nbytes if sp.issparse(rows) else rows.nbytes

    @property
    def entries(self) -> int:
        """Number of stored entries of the rows."""
        return self.rows.nnz if sp.issparse(self.rows) else self.rows.size


def ordered_blocks(array: np.ndarray, part: slice) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield a slice of an array in C order.

    A C-contiguous array is yielded at once, without a copy. Any other array is copied block by block into one buffer
    of about ``BLOCK_BYTES``, so each block must be used before the next one is requested.
    """
    if array.flags.c_contiguous:
        yield part, array[part]
        return
    size = max(1, BLOCK_BYTES // max(array[:1].nbytes, 1) // GROUP) * GROUP  # a multiple of the kernels' GROUP
    buffer = np.empty((min(size, part.stop - part.start), *array.shape[1:]), array.dtype)
    for start in range(part.start, part.stop, size):
        block = slice(start, min(start + size, part.stop))
        copy = buffer[: block.stop - start]
        np.copyto(copy, array[block])
        yield block, copy


def row_blocks(rows: Any, part: slice) -> Iterator[tuple[slice, list[np.ndarray]]]:
    """Yield consecutive rows as kernel arguments: in one block, or in several if they must be copied to C order."""
    if sp.issparse(rows):
        yield part, row_arrays(rows, part)
    else:
        yield from ((block, [array]) for block, array in ordered_blocks(rows, part))


def row_arrays(rows: Any, block: slice) -> list[np.ndarray]:
    """Return consecutive rows as kernel arguments: one dense array, or the three arrays of CSR."""
    if sp.issparse(rows):
        return [rows.data, rows.indices, rows.indptr[block.start : block.stop + 1]]
    return [rows[block]]


def join_chunks(*chunks: Chunk) -> Chunk:
    """Concatenate chunks into one; all must be dense or all sparse."""
    rows = [chunk.rows for chunk in chunks]
    weighted = any(chunk.weights.size for chunk in chunks)
    return Chunk(
        sp.vstack(rows, format="csr") if sp.issparse(rows[0]) else np.concatenate(rows),
        np.concatenate([chunk.targets for chunk in chunks]),
        np.concatenate([chunk.row_weights for chunk in chunks]) if weighted else chunks[0].weights,
        " ".join(chunk.content for chunk in chunks),
        " ".join(chunk.weights_content for chunk in chunks) if weighted else "",
        np.concatenate([chunk.folds for chunk in chunks]),
    )
