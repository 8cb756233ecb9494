"""The preconditioner: coordinates in which the solver takes its steps, and conversions from and to the user's.

See docs/algorithm/preconditioning.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from ..data.chunk import BLOCK_BYTES, row_arrays
from ..data.immutable import immutable
from ..execution.threads import even_slices, one_blas_thread, thread_count, threads
from ..kernels.column_moments import dense_norms, sparse_norms
from ..kernels.jit import frozen

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


@immutable
class Preconditioner(NamedTuple):
    """Coordinates of the solver: rows ``(a - shift) rotation``, steps ``step * scale``.

    The preconditioner changes the steps only. The objective and its optimum do not depend on it.

    Parameters
    ----------
    shift : ndarray of shape (p,)
        Subtracted from the columns before the rotation. In sparse chunks it is zero for all columns but those
        that every row stores.
    scale : ndarray of shape (p,)
        Factor of the steps along each axis, after the rotation.
    rotation : ndarray of shape (p, p) or None
        Matrix with orthonormal columns, or None for no rotation.
    inverse_density : ndarray of shape (p,)
        D of sparse SAGA: number of rows, divided by the number of rows that store the column.
    spread : ndarray of shape (p,)
        Mean square of the shifted and rotated rows along each axis, not scaled.
    mean_square : float
        Mean of ||a||^2 in these coordinates, plus 1 if there is an intercept.
    curvature : float
        Upper bound of f''. For a loss without a bound, its estimated mean at the optimum.
    step_factor : float
        Factor of the step. It is above 1 if there are few rows for the condition of the problem, below 1 if
        there are many.
    max_step : float
        Upper bound of the step, in units of 1 / L. With only a few rows it allows no more than plain gradient
        steps.
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
        """Mean Lipschitz constant of the gradients of the rows. 1 if all rows are zero."""
        return self.curvature * self.mean_square or 1.0

    @property
    def unshifted(self) -> Preconditioner:
        """The same coordinates with shift zero, for differences of two points, which do not depend on a shift."""
        return self._replace(shift=np.zeros_like(self.shift))


def row_norms(chunk: Chunk, metric: Preconditioner, problem: Any) -> np.ndarray:
    """Compute the squared length of each row in the solver's coordinates, plus 1 if there is an intercept.

    This reads the rows once. float32 is precise enough, since the lengths determine steps but not the optimum.

    Parameters
    ----------
    chunk : Chunk
    metric : Preconditioner
    problem : Problem

    Returns
    -------
    ndarray of shape (n,)
        Of dtype float32.
    """
    measure_rows = sparse_norms if sp.issparse(chunk.rows) else dense_norms
    n = len(chunk.targets)
    norms = np.empty(n, np.float32)

    def measure(part: slice) -> None:
        out = norms[part]
        if sp.issparse(chunk.rows):
            blocks = [(slice(None), row_arrays(chunk.rows, part))]
        else:
            blocks = ((block, [rows]) for block, rows, _ in solver_rows(chunk.rows[part], metric))
        for block, arrays in blocks:
            measure_rows(*arrays, shift_of(metric), metric.scale, float(problem.fit_intercept), out[block])

    count = thread_count(problem.n_threads, chunk.entries)
    with threads(count) as each:
        list(each(measure, even_slices(n, count)))
    return frozen(norms)


def solver_rows(
    rows: Any, metric: Preconditioner, order: np.ndarray | None = None
) -> Iterator[tuple[slice, Any, bool]]:
    """Yield the rows as the kernels expect them, rotated if the preconditioner has a rotation.

    Without a rotation these are `rows` themselves, in a single block, and the kernels subtract the shift. With a
    rotation, blocks of rows are shifted and rotated into a buffer that the next block overwrites. Thus no
    second copy of the chunk is held in memory.

    Parameters
    ----------
    rows : ndarray or CSR of shape (n, p)
    metric : Preconditioner
    order : ndarray of int, default=None
        Row numbers in the order of their visits. By default all rows in their own order.

    Yields
    ------
    block : slice
        Positions in `order`.
    rows : ndarray or CSR
    gathered : bool
        If True, row k of the block is row ``order[block][k]`` of the chunk. If False, it is row k.
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
            # mode="clip" lets np.take write to `out` without a temporary copy. All row numbers are in range.
            some = rows[block] if order is None else np.take(rows, order[block], 0, taken[:count], "clip")
            np.subtract(some, metric.shift, out=centred[:count])
            yield block, np.matmul(centred[:count], metric.rotation, out=turned[:count]), True


def shift_of(metric: Preconditioner) -> np.ndarray:
    """Return the shift that the kernels subtract. It is zero for rotated rows, which are already shifted."""
    return np.zeros_like(metric.shift) if metric.rotation is not None else metric.shift


# The functions below convert arrays of shape (k, p + 1), the intercept last, between the user's and the solver's
# coordinates. An array that the conversion does not change is returned itself, not copied.


def x_to_solver(x: np.ndarray, metric: Preconditioner) -> np.ndarray:
    """Convert coefficients from the user's to the solver's coordinates."""
    if metric.shift.any():
        x = _with_last(x, (x[:, :-1] * metric.shift).sum(axis=1))
    return _turn(x, metric.rotation)


def x_to_user(x: np.ndarray, metric: Preconditioner) -> np.ndarray:
    """Convert coefficients from the solver's to the user's coordinates."""
    x = _turn(x, None if metric.rotation is None else metric.rotation.T)
    return _with_last(x, -(x[:, :-1] * metric.shift).sum(axis=1)) if metric.shift.any() else x


def _with_last(x: np.ndarray, more: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[:, -1] += more
    return x


def sum_to_solver(gradient_sum: np.ndarray, metric: Preconditioner) -> np.ndarray:
    """Convert a sum of gradients from the user's to the solver's coordinates."""
    if metric.shift.any():
        gradient_sum = gradient_sum - gradient_sum[:, -1:] * np.append(metric.shift, 0.0)
    return _turn(gradient_sum, metric.rotation)


def sum_to_user(gradient_sum: np.ndarray, metric: Preconditioner) -> np.ndarray:
    """Convert a sum of gradients from the solver's to the user's coordinates."""
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
