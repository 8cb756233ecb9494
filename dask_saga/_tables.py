"""What the loops of sparse rows keep of each column, side by side, and how threads bring it together.

A thread has a table of its own, of shape (p or one more, width): x and gradient_sum of each output, the step and that
of the average and the penalty, both as the penalty shrinks them, and unless the columns are plain the shift and the
anchors. The intercept's x, sum and anchor are its ``ends``, (3, outputs). Entries of a table are numbered by one
number, unsigned.
"""

from __future__ import annotations

import math
from typing import NamedTuple

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

__all__ = ["Meeting", "bring_together", "fill_table", "read_table", "room_of_tables", "wait"]

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


class Meeting(NamedTuple):
    """How threads bring together what their tables hold.

    Parameters
    ----------
    shares : ndarray of shape (threads,)
        Of the visits of rows.
    rounds : int
        After each they meet.
    often : ndarray of int
        Columns that are brought together after every round. The others, whose ``rarity`` is `limit` or more, are
        halfway and at the end.
    limit : float
    rarity, spread : ndarray of shape (p,)
    rate : float
        What a column's step and spread are multiplied by for what a round leaves of a distance, as exp(-rate ...).
    step : float
        The intercept's.
    farthest : float
        How many times the mean of the threads' moves a column goes at most.
    near : float
        What a round may do for a column to go that far, whatever the number of threads.
    lower, upper : float
        Bounds of coefficients.
    """

    shares: np.ndarray
    rounds: int
    often: np.ndarray
    limit: float
    rarity: np.ndarray
    spread: np.ndarray
    rate: float
    step: float
    farthest: float
    near: float
    lower: float
    upper: float


@inlined
def how_far(done, how):
    """How many times the mean of the threads' moves a column goes, if those of each leave exp(-done) of a distance.

    Where threads follow one another a power of that is left: columns that a round moves little go as far as all moves
    together, others to the mean. But columns that come together move more than each by itself, and none may go twice
    as far as the mean: it would end as far from where threads agree.
    """
    if done <= how.near:
        return how.farthest
    left = math.exp(-done)
    further = 1.0 + left
    for _ in range(how.shares.size - 2):
        further = 1.0 + left * further
    return min(further, how.farthest)


@inlined
def merge_number(columns, c, apart, at_sum, how, done, lower, upper, halfway, end, x, middle, gradient_sum, j):
    """Bring together one number of x and of the sum: entries c and c + at_sum of all tables, so far apart.

    The sum gets all changes; x goes some times the mean of the moves of those threads that changed either, but
    where these agree it is what they found: the move of one alone, or a zero, or a bound, of a penalty.
    """
    old, total, count = x[j], gradient_sum[j], U(how.shares.size)
    move, change, met, agreed, agree = 0.0, 0.0, 0.0, old, True
    for t in range(count):  # without branches: which threads met a column is anyone's guess
        own, summed = columns[c + t * apart], columns[c + t * apart + at_sum]
        moved = (own != old) | (summed != total)
        agree &= (met == 0.0) | (own == agreed) | (not moved)
        agreed = own if moved else agreed
        move, change = move + how.shares[t] * (own - old), change + (summed - total)
        met += moved * how.shares[t]
    mean = old + how_far(done, how) * move / (met + (met == 0.0))
    x[j], gradient_sum[j] = min(max(agreed if agree else mean, lower), upper), total + change
    if halfway:
        middle[j] = x[j]
    if not end:
        for t in range(count):
            columns[c + t * apart], columns[c + t * apart + at_sum] = x[j], gradient_sum[j]


@inlined
def merge_tables(t, turn, how, tables, ends, x, middle, gradient_sum):
    """The t-th part of what all tables hold, in x, the sum, ``middle`` halfway, and before the end the tables."""
    x, middle, gradient_sum = borrowed(x), borrowed(middle), borrowed(gradient_sum)
    often, rarity, spread = borrowed(how.often), borrowed(how.rarity), borrowed(how.spread)
    outputs, p, width, count = U(x.shape[0]), U(x.shape[1] - 1), U(tables.shape[2]), U(how.shares.size)
    columns, apart, at_step = tables.reshape(-1), U(tables.shape[1]) * width, U(2) * outputs
    last, between, line = ends.reshape(-1), U(ends.shape[1] * ends.shape[2]), U(ends.shape[2])
    halfway, end = 2 * (turn + 1) == how.rounds, turn + 1 == how.rounds
    for k in range(outputs):
        into = halfway, end, x[k], middle[k], gradient_sum[k]
        for i in range(U(often.size * t // count), U(often.size * (t + 1) // count)):
            j = U(often[i])
            done = how.rate * columns[j * width + at_step] * spread[j]
            merge_number(columns, j * width + k, apart, outputs, how, done, how.lower, how.upper, *into, j)
        if halfway or end:
            for j in range(U(p * t // count), U(p * (t + 1) // count)):
                if rarity[j] >= how.limit:
                    done = how.rate * (how.rounds // 2) * columns[j * width + at_step] * spread[j]
                    merge_number(columns, j * width + k, apart, outputs, how, done, how.lower, how.upper, *into, j)
        if t == 0:
            done = how.rate * how.step
            merge_number(last, k, between, line, how, done, -np.inf, np.inf, *into, p)


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
def bring_together(t, turn, arrived, failed, how, tables, ends, x, middle, gradient_sum):
    """Wait for the other threads, merge some columns and the intercept with them, and wait again, but at the end; False
    if one failed.

    Each merges a part of the columns.
    """
    both = 2 * how.shares.size * turn
    if not wait(arrived, failed, both + how.shares.size):
        return False
    merge_tables(t, turn, how, tables, ends, x, middle, gradient_sum)
    return turn + 1 == how.rounds or wait(arrived, failed, both + 2 * how.shares.size)
