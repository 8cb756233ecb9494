"""The column table of the sparse epoch loop: all numbers of one column lie side by side in memory.

Each thread has its own table of shape (p, width), where an odd p is rounded up by one. The row of a column holds, in
this order:

- x of each output,
- gradient_sum of each output,
- the step of the row's own gradient change,
- the step of the mean gradient and the penalty, which is the former times the inverse density,
- the shift and the anchor of each output. The narrow table of a plain problem of one output omits them. Plain means
  that no column is shifted and no chunk was visited before in the pass.

Both steps include the factor by which the penalty shrinks, 1 / (1 + s l2). The intercept's x, gradient_sum and anchor
are in ``ends``, of shape (3, outputs). Entries of a table are addressed by one flat unsigned index.
"""

from __future__ import annotations

import numpy as np

from .intrinsics import DOUBLES, borrowed, empty_on_lines, whole_lines
from .jit import compiled

__all__ = ["empty_tables", "fill_table", "read_table"]


# Width of the table of a plain problem of one output, in doubles: two columns share a cache line.
HALF_LINE = DOUBLES // 2

# Largest step, in units of 1 / l2. It has the effect of an infinite step, however sparse the column is.
LONGEST_STEP = 1e200

U = np.uint64


def empty_tables(count: int, p: int, outputs: int, plain: bool) -> tuple[np.ndarray, np.ndarray]:
    """Allocate the tables and ends of `count` threads. No cache line is shared by two threads."""
    width = HALF_LINE if plain and outputs == 1 else whole_lines(3 * outputs + 3)
    return empty_on_lines(count, p + p % 2, width), empty_on_lines(count, 3, whole_lines(outputs))


@compiled(writes="table ends")
def fill_table(x, gradient_sum, anchor, shift, scale, inverse_density, step, l2, table, ends):
    """Fill the table and ends at the start of a visit. The steps are in the form that ``prox_of_move`` takes."""
    x, gradient_sum, scale, inverse_density, columns = (
        borrowed(x), borrowed(gradient_sum), borrowed(scale), borrowed(inverse_density), borrowed(table).reshape(-1)
    )  # fmt: skip
    p, outputs, width, whole = U(shift.size), U(x.shape[0]), U(table.shape[1]), table.shape[1] > HALF_LINE
    max_step = LONGEST_STEP / max(l2, 1.0 / LONGEST_STEP)  # beyond it, the penalty alone determines the result
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


@compiled(writes="x gradient_sum")
def read_table(table, ends, x, gradient_sum):
    """Read x and gradient_sum back from the table: the inverse of ``fill_table``. An empty gradient_sum is skipped."""
    outputs, p, width, columns = U(x.shape[0]), U(x.shape[1] - 1), U(table.shape[1]), table.reshape(-1)
    for k in range(outputs):
        for j in range(p):
            x[k, j] = columns[j * width + k]
            if gradient_sum.size:
                gradient_sum[k, j] = columns[j * width + outputs + k]
        x[k, p] = ends[0, k]
        if gradient_sum.size:
            gradient_sum[k, p] = ends[1, k]
