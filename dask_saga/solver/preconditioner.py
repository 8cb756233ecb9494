"""The solver's coordinates, and the step that suits them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from ..data.chunk import BLOCK_BYTES, frozen, row_arrays
from ..execution.threads import even_slices, one_blas_thread, thread_count, threads
from ..kernels.column_moments import dense_norms, sparse_norms

if TYPE_CHECKING:
    from ..data.chunk import Chunk

__all__ = [
    "Preconditioner",
    "row_norms",
    "shift_of",
    "solver_rows",
    "sum_to_solver",
    "sum_to_user",
    "x_to_solver",
    "x_to_user",
]


class Preconditioner(NamedTuple):
    """The solver's coordinates: rows ``(a - shift) basis``, steps ``step * scale``.

    The optimum does not depend on it, as only the steps know it.

    Parameters
    ----------
    shift, scale : ndarray of shape (p,)
        The shift is that of the columns before, the scale that of those after the rotation. In
        sparse chunks only columns that every row stores are shifted.
    rotation : ndarray of shape (p, p) or None
        Orthonormal columns, or None for no rotation.
    inverse_density : ndarray of shape (p,)
        D of sparse SAGA: rows seen over rows in which the column is stored.
    spread : ndarray of shape (p,)
        Mean squares of the rows along the axes, unscaled.
    mean_square : float
        Mean of ||a||^2 in these coordinates, the intercept's 1 included.
    curvature : float
        The loss's bound, or its mean at the optimum where there is none.
    step_factor : float
        What steps are multiplied by: above one where rows are few for their condition, below it where many.
    max_step : float
        Bound of steps in units of 1 / L; a handful of rows allow no more than plain gradient steps.
    """

    shift: np.ndarray
    scale: np.ndarray
    rotation: np.ndarray | None
    inverse_density: np.ndarray
    spread: np.ndarray
    mean_square: float
    curvature: float
    step_factor: float
    max_step: float

    @property
    def L(self) -> float:
        """Mean Lipschitz constant of the rows' gradients; 1 where all rows are zero."""
        return self.curvature * self.mean_square or 1.0

    @property
    def unshifted(self) -> Preconditioner:
        """The coordinates of differences, which no shift changes."""
        return self._replace(shift=np.zeros_like(self.shift))


def row_norms(chunk: Chunk, metric: Preconditioner, problem: Any) -> np.ndarray:
    """Squared lengths of rows in the solver's coordinates, the intercept's 1 included, by one pass over them.

    float32 will do: steps follow them, no optimum.
    """
    measure_rows = sparse_norms if sp.issparse(chunk.rows) else dense_norms
    n = len(chunk.targets)
    norms = np.empty(n, np.float32)

    def measure(part: slice) -> None:
        out = norms[part]
        if sp.issparse(chunk.rows):
            blocks = [(slice(None), row_arrays(chunk.rows, part))]
        else:
            blocks = ((block, [frozen(rows)]) for block, rows, _ in solver_rows(chunk.rows[part], metric))
        for block, arrays in blocks:
            measure_rows(*arrays, shift_of(metric), frozen(metric.scale), float(problem.fit_intercept), out[block])

    count = thread_count(problem.n_threads, chunk.entries)
    with threads(count) as each:
        list(each(measure, even_slices(n, count)))
    return frozen(norms)


def solver_rows(
    rows: Any, metric: Preconditioner, order: np.ndarray | None = None
) -> Iterator[tuple[slice, Any, bool]]:
    """Rows as the kernels take them, before any shift.

    Without a basis these are its own, all at once. With one they come block by block, turned, in one
    array that is used again: no second chunk is held in memory.

    Parameters
    ----------
    order : ndarray of int, default=None
        Row numbers; by default all in turn.

    Yields
    ------
    block : slice
        Of `order`.
    rows : ndarray or CSR
    gathered : bool
        Whether row k is that of ``order[block][k]``, not that of number k.
    """
    n, p = rows.shape
    steps = n if order is None else len(order)
    if metric.rotation is None:
        yield slice(0, steps), rows, False
        return
    size = min(max(1, BLOCK_BYTES // (8 * p)), max(steps, 1))
    taken = np.empty((size, p), dtype=rows.dtype)
    centred, turned = np.empty((size, p)), np.empty((size, p))
    with one_blas_thread(size * p * p):
        for start in range(0, steps, size):
            block = slice(start, min(start + size, steps))
            count = block.stop - start
            # "clip" does without a copy; no number is out of range
            some = rows[block] if order is None else np.take(rows, order[block], 0, taken[:count], "clip")
            np.subtract(some, metric.shift, out=centred[:count])
            yield block, np.matmul(centred[:count], metric.rotation, out=turned[:count]), True


def shift_of(metric: Preconditioner) -> np.ndarray:
    """The shift that is left to the kernels: none for rotated rows."""
    return frozen(np.zeros_like(metric.shift) if metric.rotation is not None else metric.shift)


# Arrays of shape (k, p + 1), the intercept last, from the user's coordinates to the solver's and back; what is the same
# there is given back as it is.


def x_to_solver(x: np.ndarray, metric: Preconditioner) -> np.ndarray:
    """Coefficients from the user's coordinates."""
    if metric.shift.any():
        x = _with_last(x, (x[:, :-1] * metric.shift).sum(axis=1))
    return _turn(x, metric.rotation)


def x_to_user(x: np.ndarray, metric: Preconditioner) -> np.ndarray:
    """The inverse of ``x_to_solver``."""
    x = _turn(x, None if metric.rotation is None else metric.rotation.T)
    return _with_last(x, -(x[:, :-1] * metric.shift).sum(axis=1)) if metric.shift.any() else x


def _with_last(x: np.ndarray, more: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[:, -1] += more
    return x


def sum_to_solver(gradient_sum: np.ndarray, metric: Preconditioner) -> np.ndarray:
    """A sum of gradients from the user's coordinates."""
    if metric.shift.any():
        gradient_sum = gradient_sum - gradient_sum[:, -1:] * np.append(metric.shift, 0.0)
    return _turn(gradient_sum, metric.rotation)


def sum_to_user(gradient_sum: np.ndarray, metric: Preconditioner) -> np.ndarray:
    """The inverse of ``sum_to_solver``."""
    gradient_sum = _turn(gradient_sum, None if metric.rotation is None else metric.rotation.T)
    return gradient_sum + gradient_sum[:, -1:] * np.append(metric.shift, 0.0) if metric.shift.any() else gradient_sum


def _turn(array: np.ndarray, rotation: np.ndarray | None) -> np.ndarray:
    if rotation is None:
        return array
    out = np.empty_like(array)
    with one_blas_thread(array.size * len(rotation)):
        out[:, :-1] = array[:, :-1] @ rotation
    out[:, -1] = array[:, -1]
    return out
