"""Merge the column tables of threads that visit the sparse rows of one chunk in parallel.

A visit consists of rounds. In each round every thread updates its own table. At the end of a round the threads wait
for each other, and each of them merges a part of the columns.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .intrinsics import add_at_once, borrowed, give_way
from .jit import compiled, inlined

__all__ = ["TableMerge", "merge_tables", "wait"]

U = np.uint64


# Number of polls in a busy wait, about 20 ns each, before the thread yields its core.
SPINS = 2**12


class TableMerge(NamedTuple):
    """Parameters of the merges of one visit.

    Parameters
    ----------
    shares : ndarray of shape (threads,)
        Share of the row visits that each thread makes.
    rounds : int
        Number of rounds. The threads merge their tables after each.
    frequent : ndarray of int
        Columns that are merged after every round. The other columns are merged halfway and at the end.
    limit : float
        Threshold of ``inverse_density``: columns below it are in `frequent`.
    inverse_density, spread : ndarray of shape (p,)
        Number of rows divided by the stored entries of each column, and its mean square
        about the shift.
    rate : float
        In one round, each thread contracts the distance of a column to its optimum by about
        exp(-rate * step * spread), with the column's step.
    step : float
        Step of the intercept.
    farthest : float
        Upper bound of the extrapolation factor.
    near : float
        Largest rate * step * spread for which the factor is `farthest`, whatever the number of threads.
    lower, upper : float
        Bounds of the coefficients.
    """

    shares: np.ndarray
    rounds: int
    frequent: np.ndarray
    limit: float
    inverse_density: np.ndarray
    spread: np.ndarray
    rate: float
    step: float
    farthest: float
    near: float
    lower: float
    upper: float


@inlined
def extrapolation(done, merge):
    """Return the extrapolation factor for the mean of the threads' moves, given each thread's contraction exp(-done).

    T threads in sequence would leave exp(-T done) of the distance to the optimum. The factor that gives the same result
    is the geometric sum 1 + exp(-done) + ... + exp(-(T - 1) done). It is near T for columns that a round moves little,
    where the moves add up, and near 1 for columns that each thread moves to its optimum.

    The factor is at most ``merge.farthest``, which is below 2, because columns that occur in the same rows move further
    together than each would alone. At a factor of 2, x would end as far from the point on which the threads agree as it
    began.
    """
    if done <= merge.near:
        return merge.farthest
    left = math.exp(-done)
    further = 1.0 + left
    for _ in range(merge.shares.size - 2):
        further = 1.0 + left * further
    return min(further, merge.farthest)


@inlined
def merge_number(columns, c, apart, at_sum, merge, done, lower, upper, halfway, end, x, middle, gradient_sum, j):
    """Merge one coefficient of x and its gradient sum, which are entries c and c + at_sum of each table.

    `apart` is the distance between two tables. The gradient sum gets the sum of all changes. x moves by the
    extrapolation factor times the mean move of the threads that changed either number. If these threads have the same
    value, x is exactly that value. This keeps the move of a single thread, and a zero or bound set by the penalty.
    """
    old, total, count = x[j], gradient_sum[j], U(merge.shares.size)
    move, change, share, agreed, agree = 0.0, 0.0, 0.0, old, True
    for t in range(count):  # without branches, since which threads changed a column is unpredictable
        own, summed = columns[c + t * apart], columns[c + t * apart + at_sum]
        moved = (own != old) | (summed != total)
        agree &= (share == 0.0) | (own == agreed) | (not moved)
        agreed = own if moved else agreed
        move, change = move + merge.shares[t] * (own - old), change + (summed - total)
        share += moved * merge.shares[t]
    mean = old + extrapolation(done, merge) * move / (share + (share == 0.0))
    x[j], gradient_sum[j] = min(max(agreed if agree else mean, lower), upper), total + change
    if halfway:
        middle[j] = x[j]
    if not end:
        for t in range(count):
            columns[c + t * apart], columns[c + t * apart + at_sum] = x[j], gradient_sum[j]


@inlined
def merge_part(t, number, merge, tables, ends, x, middle, gradient_sum):
    """Merge the t-th part of the columns of all tables.

    The result goes to x and gradient_sum, halfway also to ``middle``, and except after the last round back to the
    tables. Thread 0 merges the intercept.
    """
    x, middle, gradient_sum = borrowed(x), borrowed(middle), borrowed(gradient_sum)
    frequent, spread = borrowed(merge.frequent), borrowed(merge.spread)
    inverse_density = borrowed(merge.inverse_density)
    outputs, p, width, count = U(x.shape[0]), U(x.shape[1] - 1), U(tables.shape[2]), U(merge.shares.size)
    columns, apart, at_step = tables.reshape(-1), U(tables.shape[1]) * width, U(2) * outputs
    last, between, line = ends.reshape(-1), U(ends.shape[1] * ends.shape[2]), U(ends.shape[2])
    halfway, end = 2 * (number + 1) == merge.rounds, number + 1 == merge.rounds
    for k in range(outputs):
        into = halfway, end, x[k], middle[k], gradient_sum[k]
        for i in range(U(frequent.size * t // count), U(frequent.size * (t + 1) // count)):
            j = U(frequent[i])
            done = merge.rate * columns[j * width + at_step] * spread[j]
            merge_number(columns, j * width + k, apart, outputs, merge, done, merge.lower, merge.upper, *into, j)
        if halfway or end:
            for j in range(U(p * t // count), U(p * (t + 1) // count)):
                if inverse_density[j] >= merge.limit:
                    done = merge.rate * (merge.rounds // 2) * columns[j * width + at_step] * spread[j]
                    merge_number(
                        columns, j * width + k, apart, outputs, merge, done, merge.lower, merge.upper, *into, j
                    )
        if t == 0:
            done = merge.rate * merge.step
            merge_number(last, k, between, line, merge, done, -np.inf, np.inf, *into, p)


@inlined
def wait(arrived, failed, everyone):
    """Wait until the counter of arrivals is `everyone`; return False if another thread has failed.

    The wait is busy, because the system would wake a sleeping thread on the core of the thread that wakes it.
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


@compiled(writes="arrived failed tables ends x middle gradient_sum")
def merge_tables(t, number, arrived, failed, merge, tables, ends, x, middle, gradient_sum):
    """Merge the tables of all threads after round `number`; return False if another thread has failed.

    Thread t waits for the others, merges its part of the columns, and waits again. The second wait is omitted after the
    last round, since no thread reads the tables any more.
    """
    both = 2 * merge.shares.size * number
    if not wait(arrived, failed, both + merge.shares.size):
        return False
    merge_part(t, number, merge, tables, ends, x, middle, gradient_sum)
    return number + 1 == merge.rounds or wait(arrived, failed, both + 2 * merge.shares.size)
