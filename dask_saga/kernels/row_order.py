"""The order in which a visit takes its rows, and how often it takes each."""

from __future__ import annotations

import numpy as np
from numba import njit

from .jit import compiled, inlined

__all__ = ["repeated", "rows_of", "shuffle_rows", "visits_of"]

U = np.uint64


@njit(nogil=True)  # no fastmath: all loops must find the same
def visits_of(length, w, often, most):
    """How often a row is visited: once more for each time that its bound exceeds ``often``."""
    return min(np.ceil(length * w / often), most) if length * w > often else 1.0


@compiled
def repeated(rows, lengths, weights, often, out):
    """Write each row to ``out``, if it is not empty, and then the further visits of some; return how many all are."""
    count = U(rows.size)
    for t in range(U(rows.size)):
        i = rows[t]
        visits = U(visits_of(lengths[i], weights[i] if weights.size else 1.0, often, float(rows.size)))
        if out.size:
            out[t] = i
            for k in range(count, count + visits - U(1)):
                out[k] = i
        count += visits - U(1)
    return count


@compiled
def rows_of(owner, owners, bits, rows, out):
    """Write those rows that this thread owns, by their numbers without so many bits; return how many they are."""
    found = U(0)
    for t in range(U(rows.size)):
        out[found] = rows[t]
        found += U(owners[U(rows[t]) >> U(bits)] == owner)
    return found


@inlined
def drawn(state, count):
    """The next state, and a number that it draws below the count, which is to be far below 2**32 (splitmix64: Steele,
    Lea, Flood 2014, figure 16)."""
    state += U(0x9E3779B97F4A7C15)
    z = (state ^ (state >> U(30))) * U(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> U(27))) * U(0x94D049BB133111EB)
    return state, ((z ^ (z >> U(31))) >> U(32)) * U(count) >> U(32)


@compiled
def shuffle_rows(rows, state, whole, width, size):
    """Bring rows into a random order: those after the first so many change places with any, then whole blocks of
    `width` neighbours with each other, and last within groups of `size` neighbours each with any."""
    n, width, size, state = U(rows.size), U(width), U(size), U(state)
    for i in range(U(whole), n):
        state, j = drawn(state, n)
        rows[i], rows[j] = rows[j], rows[i]
    for left in range(n // width, U(0), -1):
        state, j = drawn(state, left)
        one, other = (U(left) - U(1)) * width, j * width
        for k in range(width):
            rows[one + k], rows[other + k] = rows[other + k], rows[one + k]
    for start in range(U(0), n, size):
        for left in range(min(size, n - start), U(0), -1):
            state, j = drawn(state, left)
            i, j = start + U(left) - U(1), start + j
            rows[i], rows[j] = rows[j], rows[i]
