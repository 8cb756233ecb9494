"""Hessians of the loss of a chunk in the coordinates of the rows ``(a - origin, 1)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from ..data.chunk import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..data.chunk import Chunk

__all__ = ["block_hessians", "coupled_hessian", "score_products", "shifted"]


def block_hessians(chunk: Chunk, curvatures: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Compute sum_i c_ik a_i a_i' for each output k, of shape (k, p + 1, p + 1).

    Parameters
    ----------
    chunk : Chunk
    curvatures : ndarray of shape (n, k)
        Weighted second derivatives c_ik, at least 0.
    origin : ndarray of shape (p,)
    """
    (n, k), d = curvatures.shape, len(origin) + 1
    hessian = np.zeros((k, d, d))
    if sp.issparse(chunk.rows) and _stores_origin(chunk.rows, origin):
        rows = sp.csr_array(sp.hstack([shifted(chunk.rows, origin), np.ones((n, 1))]))
        for own, curvature in zip(hessian, curvatures.T, strict=True):
            scaled = sp.diags_array(np.sqrt(curvature)) @ rows
            own += (scaled.T @ scaled).toarray()
        return hessian
    for block, rows, scaled in _centred_rows(chunk, origin):
        for own, root in zip(hessian, np.sqrt(curvatures[block]).T, strict=True):
            np.multiply(rows, root[:, None], out=scaled)
            own += scaled.T @ scaled  # BLAS computes only half of a matrix times its own transpose
    return hessian


def coupled_hessian(chunk: Chunk, probabilities: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Compute the Hessian of the multinomial loss, sum_i w_i (diag(p_i) - p_i p_i') x a_i a_i'.

    Parameters
    ----------
    chunk : Chunk
    probabilities : ndarray of shape (n, k)
    origin : ndarray of shape (p,)

    Returns
    -------
    ndarray of shape (k (p + 1), k (p + 1))
        Coordinates are the coefficients of a class and its intercept, then those of the next class.
    """
    roots, k, d = np.sqrt(chunk.row_weights), probabilities.shape[1], len(origin) + 1
    hessian = np.zeros((k * d, k * d))
    for block, rows, scaled in _centred_rows(chunk, origin):
        weighted = probabilities[block] * roots[block, None]
        joined = (weighted[:, :, None] * rows[:, None, :]).reshape(len(rows), -1)
        hessian -= joined.T @ joined
        for c in range(k):
            own = slice(c * d, (c + 1) * d)
            np.multiply(rows, (np.sqrt(probabilities[block, c]) * roots[block])[:, None], out=scaled)
            hessian[own, own] += scaled.T @ scaled
    return hessian


def score_products(chunk: Chunk, slopes: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Compute sum_i g_i g_i', where g_i are the slopes of row i times (a_i - origin, 1), the gradient of its loss.

    Parameters
    ----------
    chunk : Chunk
    slopes : ndarray of shape (n, k)
    origin : ndarray of shape (p,)

    Returns
    -------
    ndarray of shape (k (p + 1), k (p + 1))
        Coordinates are as in ``coupled_hessian``.
    """
    if slopes.shape[1] == 1:
        return block_hessians(chunk, slopes**2, origin)[0]
    size = slopes.shape[1] * (len(origin) + 1)
    products = np.zeros((size, size))
    for block, rows, _ in _centred_rows(chunk, origin):
        joined = (slopes[block, :, None] * rows[:, None, :]).reshape(len(rows), -1)
        products += joined.T @ joined
    return products


def shifted(rows: Any, centre: np.ndarray) -> Any:
    """Subtract a centre from sparse rows. The centre must be zero in columns that not every row stores."""
    return sp.csr_array((rows.data - centre[rows.indices], rows.indices, rows.indptr), shape=rows.shape)


def _stores_origin(rows: Any, origin: np.ndarray) -> bool:
    """Return whether every sparse row stores all columns whose origin is not zero."""
    centred = np.flatnonzero(origin)
    return not len(centred) or bool((np.bincount(rows.indices, minlength=len(origin))[centred] == rows.shape[0]).all())


def _centred_rows(chunk: Chunk, origin: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield blocks of the rows ``(a - origin, 1)``, and room for as many rows. The next block overwrites both."""
    n, p = chunk.rows.shape
    size = min(max(1, BLOCK_BYTES // (8 * (p + 1))), n)
    rows, scaled = np.ones((size, p + 1)), np.empty((size, p + 1))
    for start in range(0, n, size):
        block = slice(start, min(start + size, n))
        some, count = chunk.rows[block], block.stop - start
        np.subtract(some.toarray() if sp.issparse(some) else some, origin, out=rows[:count, :-1])
        yield block, rows[:count], scaled[:count]
