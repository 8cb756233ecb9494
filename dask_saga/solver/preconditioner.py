"""The preconditioner: coordinates in which the solver takes its steps, and conversions from and to the user's.

See docs/algorithm/preconditioning.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..data.chunk import BLOCK_BYTES
from ..data.immutable import immutable
from ..execution.threads import one_blas_thread

__all__ = ["Preconditioner"]


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

    @property
    def kernel_shift(self) -> np.ndarray:
        """The shift that the kernels subtract. It is zero for rotated rows, which are already shifted."""
        return self.shift if self.rotation is None else np.zeros_like(self.shift)

    @property
    def _shifts(self) -> bool:
        return bool(np.count_nonzero(self.shift))  # takes a fifth of the time of shift.any()

    @property
    def _padded_shift(self) -> np.ndarray:
        padded = np.zeros(len(self.shift) + 1)
        padded[:-1] = self.shift
        return padded

    # The methods below convert arrays of shape (k, p + 1), the intercept last, between the user's and the solver's
    # coordinates. An array that the conversion does not change is returned itself, not copied.

    def x_to_solver(self, x: np.ndarray) -> np.ndarray:
        """Convert coefficients from the user's to the solver's coordinates."""
        if self._shifts:
            x = _with_last(x, (x[:, :-1] * self.shift).sum(axis=1))
        return _rotate(x, self.rotation)

    def x_to_user(self, x: np.ndarray) -> np.ndarray:
        """Convert coefficients from the solver's to the user's coordinates."""
        x = _rotate(x, None if self.rotation is None else self.rotation.T)
        return _with_last(x, -(x[:, :-1] * self.shift).sum(axis=1)) if self._shifts else x

    def sum_to_solver(self, gradient_sum: np.ndarray) -> np.ndarray:
        """Convert a sum of gradients from the user's to the solver's coordinates."""
        if self._shifts:
            gradient_sum = gradient_sum - gradient_sum[:, -1:] * self._padded_shift
        return _rotate(gradient_sum, self.rotation)

    def sum_to_user(self, gradient_sum: np.ndarray) -> np.ndarray:
        """Convert a sum of gradients from the solver's to the user's coordinates."""
        gradient_sum = _rotate(gradient_sum, None if self.rotation is None else self.rotation.T)
        return gradient_sum + gradient_sum[:, -1:] * self._padded_shift if self._shifts else gradient_sum

    def rows_to_solver(self, rows: Any, order: np.ndarray | None = None) -> Iterator[tuple[slice, Any, bool]]:
        """Yield the rows as the kernels expect them, rotated if there is a rotation.

        Without a rotation these are `rows` themselves, in a single block, and the kernels subtract the shift. With a
        rotation, blocks of rows are shifted and rotated into a buffer that the next block overwrites. Thus no
        second copy of the chunk is held in memory.

        Parameters
        ----------
        rows : ndarray or CSR of shape (n, p)
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
        if self.rotation is None:
            yield slice(0, steps), rows, False
            return
        size = min(max(1, BLOCK_BYTES // (8 * p)), max(steps, 1))
        taken = np.empty((size, p), dtype=rows.dtype)
        centred, rotated = np.empty((size, p)), np.empty((size, p))
        with one_blas_thread(size * p * p):
            for start in range(0, steps, size):
                block = slice(start, min(start + size, steps))
                count = block.stop - start
                # mode="clip" lets np.take write to `out` without a temporary copy. All row numbers are in range.
                some = rows[block] if order is None else np.take(rows, order[block], 0, taken[:count], "clip")
                np.subtract(some, self.shift, out=centred[:count])
                yield block, np.matmul(centred[:count], self.rotation, out=rotated[:count]), True


def _with_last(x: np.ndarray, more: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[:, -1] += more
    return x


def _rotate(array: np.ndarray, rotation: np.ndarray | None) -> np.ndarray:
    if rotation is None:
        return array
    out = np.empty_like(array)
    with one_blas_thread(array.size * len(rotation)):
        out[:, :-1] = array[:, :-1] @ rotation
    out[:, -1] = array[:, -1]
    return out
