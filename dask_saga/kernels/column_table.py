"""What the loops of sparse rows keep of each column, side by side, and how threads bring it together.

A thread has a table of its own, of shape (p or one more, width): x and gradient_sum of each output, the step and that
of the average and the penalty, both as the penalty shrinks them, and unless the columns are plain the shift and the
anchors. The intercept's x, sum and anchor are its ``ends``, (3, outputs). Entries of a table are numbered by one
number, unsigned.
"""

from __future__ import annotations

import numpy as np

from .intrinsics import DOUBLES, borrowed, empty_on_lines, whole_lines
from .jit import compiled

__all__ = ["fill_table", "read_table", "room_of_tables"]


HALF_LINE = DOUBLES // 2

# Steps in units of 1 / l2 that cannot be told from infinite ones, for columns however rare.
LONGEST = 1e200

U = np.uint64


def room_of_tables(count: int, p: int, outputs: int, plain: bool) -> tuple[np.ndarray, np.ndarray]:
    """Tables of p columns and ends for so many threads; no line of the cache has those of two."""
    width = HALF_LINE if plain and outputs == 1 else whole_lines(3 * outputs + 3)
    return empty_on_lines(count, p + p % 2, width), empty_on_lines(count, 3, whole_lines(outputs))


@compiled
def fill_table(x, gradient_sum, anchor, shift, scale, inverse_density, step, l2, table, ends):
    """Write what is kept of each column at the start of a visit; its steps as ``prox_of_move`` takes them."""
    x, gradient_sum, scale, inverse_density, columns = (
        borrowed(x), borrowed(gradient_sum), borrowed(scale), borrowed(inverse_density), borrowed(table).reshape(-1)
    )  # fmt: skip
    p, outputs, width, whole = U(shift.size), U(x.shape[0]), U(table.shape[1]), table.shape[1] > HALF_LINE
    max_step = LONGEST / max(l2, 1.0 / LONGEST)  # beyond it the penalty alone rules
    for j in range(p):
        c, own = j * width + U(2) * outputs, min(step * scale[j], max_step)
        own *= 1.0 / (1.0 + own * inverse_density[j] * l2)
        columns[c], columns[c + U(1)] = own, own * inverse_density[j]
    for k in range(outputs):
        some, sums = x[k], gradient_sum[k]
        for j in range(p):
            c = j * width + k
            columns[c], columns[c + outputs] = some[j], sums[j]
        ends[0, k], ends[1, k], ends[2, k] = x[k, p], gradient_sum[k, p], anchor[k, p]
    if whole:
        for j in range(p):
            c = j * width + U(2) * outputs + U(2)
            columns[c] = shift[j]
            for k in range(outputs):
                columns[c + U(1) + k] = anchor[k, j]


@compiled
def read_table(table, ends, x, gradient_sum):
    """The inverse of ``fill_table``; the sum only where there is room for it."""
    outputs, p, width, columns = U(x.shape[0]), U(x.shape[1] - 1), U(table.shape[1]), table.reshape(-1)
    for k in range(outputs):
        for j in range(p):
            x[k, j] = columns[j * width + k]
            if gradient_sum.size:
                gradient_sum[k, j] = columns[j * width + outputs + k]
        x[k, p] = ends[0, k]
        if gradient_sum.size:
            gradient_sum[k, p] = ends[1, k]
