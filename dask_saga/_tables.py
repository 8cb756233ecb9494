"""What the loops of sparse rows keep of each column, side by side, and how threads bring it together.

A thread has a table of its own, of shape (p or one more, width): x and gradient_sum of each output, the step and that
of the average and the penalty, both as the penalty shrinks them, and unless the columns are plain the shift and the
anchors. The intercept's x, sum and anchor are its ``ends``, (3, outputs). Entries of a table are numbered by one
number, unsigned.
"""

from __future__ import annotations

import numpy as np

from ._intrinsics import (
    DOUBLES,
    add_at_once,
    borrowed,
    compiled,
    empty_on_lines,
    give_way,
    inlined,
    whole_lines,
)

__all__ = ["bring_together", "fill_table", "read_table", "room_of_tables", "wait"]

HALF_LINE = DOUBLES // 2
# Steps in units of 1 / l2 that cannot be told from infinite ones, for columns however rare.
LONGEST = 1e200
# Looks at who has arrived, of some 20 ns each, before others may have the core.
SPINS = 2**12
U = np.uint64


def room_of_tables(count: int, p: int, outputs: int, plain: bool) -> tuple[np.ndarray, np.ndarray]:
    """Tables of p columns and ends for so many threads; no line of the cache has those of two."""
    width = HALF_LINE if plain and outputs == 1 else whole_lines(3 * outputs + 3)
    return empty_on_lines(count, p + p % 2, width), empty_on_lines(count, 3, whole_lines(outputs))


@compiled
def fill_table(x, gradient_sum, anchor, shift, scale, rarity, step, l2, table, ends):
    """Write what is kept of each column at the start of a visit; its steps as ``prox_of_move`` takes them."""
    x, gradient_sum, scale, rarity, columns = (
        borrowed(x), borrowed(gradient_sum), borrowed(scale), borrowed(rarity), borrowed(table).reshape(-1)
    )  # fmt: skip
    p, outputs, width, whole = U(shift.size), U(x.shape[0]), U(table.shape[1]), table.shape[1] > HALF_LINE
    longest = LONGEST / max(l2, 1.0 / LONGEST)  # beyond it the penalty alone rules
    for j in range(p):
        c, own = j * width + U(2) * outputs, min(step * scale[j], longest)
        own *= 1.0 / (1.0 + own * rarity[j] * l2)
        columns[c], columns[c + U(1)] = own, own * rarity[j]
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


@inlined
def merge_column(columns, c, apart, outputs, shares, further, lower, upper, x, gradient_sum, j):
    """Bring together one number of x and of the sum: entries c and c + outputs of all tables, so far apart.

    The sum gets all changes; x goes ``further`` times the mean of the moves of those threads that changed either, but
    where these agree it is what they found: the move of one alone, or a zero, or a bound, of a penalty.
    """
    old, total = x[j], gradient_sum[j]
    move, change, met, agreed, agree = 0.0, 0.0, 0.0, old, True
    for t in range(U(shares.size)):  # without branches: which threads met a column is anyone's guess
        own, summed = columns[c + t * apart], columns[c + t * apart + outputs]
        moved = (own != old) | (summed != total)
        agree &= (met == 0.0) | (own == agreed) | (not moved)
        agreed = own if moved else agreed
        move, change, met = move + shares[t] * (own - old), change + (summed - total), met + moved * shares[t]
    if met > 0.0:
        new = min(max(agreed if agree else old + further[j] * move / met, lower), upper)
        x[j], gradient_sum[j] = new, total + change
        for t in range(U(shares.size)):
            columns[c + t * apart], columns[c + t * apart + outputs] = new, total + change


@inlined
def merge_tables(t, some, tables, ends, shares, further, lower, upper, x, gradient_sum):
    """Bring together what all tables hold of the t-th part of some columns, in x, the sum, and all tables."""
    x, gradient_sum, shares, further = borrowed(x), borrowed(gradient_sum), borrowed(shares), borrowed(further)
    outputs, p, width, last = U(x.shape[0]), U(x.shape[1] - 1), U(tables.shape[2]), ends.reshape(-1)
    columns, apart, between = tables.reshape(-1), U(tables.shape[1]) * width, U(ends.shape[1] * ends.shape[2])
    for k in range(outputs):
        xs, sums = x[k], gradient_sum[k]
        for i in range(U(some.size * t // shares.size), U(some.size * (t + 1) // shares.size)):
            j = U(some[i])
            merge_column(columns, j * width + k, apart, outputs, shares, further, lower, upper, xs, sums, j)
        if t == 0:
            merge_column(last, k, between, U(ends.shape[2]), shares, further, -np.inf, np.inf, xs, sums, p)


@inlined
def wait(arrived, failed, everyone):
    """Wait, busily, until so many have arrived in all; False if one failed that will not.

    A thread that slept would be woken on the core of the one that wakes it.
    """
    add_at_once(arrived, 1)
    looks = 0
    while add_at_once(arrived, 0) < everyone:
        looks += 1
        if looks == SPINS:
            if add_at_once(failed, 0):
                return False
            give_way()
            looks = 0
    return True


@compiled
def bring_together(t, turn, arrived, failed, some, tables, ends, shares, further, lower, upper, x, gradient_sum):
    """Wait for the other threads, merge some columns and the intercept with them, and wait again; False if one failed.

    Each merges a part of the columns.
    """
    both = 2 * shares.size * turn
    if not wait(arrived, failed, both + shares.size):
        return False
    merge_tables(t, some, tables, ends, shares, further, lower, upper, x, gradient_sum)
    return wait(arrived, failed, both + 2 * shares.size)
