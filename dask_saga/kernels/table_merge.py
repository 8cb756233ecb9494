"""How threads that share sparse rows merge their tables of the columns."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .intrinsics import add_at_once, borrowed, give_way
from .jit import compiled, inlined

__all__ = ["TableMerge", "bring_together", "wait"]

U = np.uint64


# Looks at who has arrived, of some 20 ns each, before others may have the core.
SPINS = 2**12


class TableMerge(NamedTuple):
    """How threads bring together what their tables hold.

    Parameters
    ----------
    shares : ndarray of shape (threads,)
        Of the visits of rows.
    rounds : int
        After each they meet.
    often : ndarray of int
        Columns that are merged after every round. The others, whose ``inverse_density`` is `limit` or more, are
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
    inverse_density: np.ndarray
    spread: np.ndarray
    rate: float
    step: float
    farthest: float
    near: float
    lower: float
    upper: float


@inlined
def extrapolation(done, how):
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
    mean = old + extrapolation(done, how) * move / (met + (met == 0.0))
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
    often, inverse_density, spread = borrowed(how.often), borrowed(how.inverse_density), borrowed(how.spread)
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
                if inverse_density[j] >= how.limit:
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
