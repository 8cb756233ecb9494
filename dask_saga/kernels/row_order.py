"""Row orders: how often a visit takes each row, which thread takes it, and the random order."""

from __future__ import annotations

import numpy as np
from numba import njit

from .jit import compiled, inlined

__all__ = ["repeated", "rows_of", "shuffle_rows", "visits_of"]

U = np.uint64


@njit(nogil=True)  # without fastmath, so that every caller gets the same count
def visits_of(length, w, length_threshold, max_visits):
    """Return the number of visits of a row: ceil(length * w / length_threshold), from 1 to `max_visits`."""
    return min(np.ceil(length * w / length_threshold), max_visits) if length * w > length_threshold else 1.0


@compiled(writes="out")
def repeated(rows, lengths, weights, length_threshold, out):
    """Write each row once, then the further visits of rows with large bounds; return the total number of visits.

    With an empty ``out`` the visits are only counted.
    """
    count = U(rows.size)
    for t in range(U(rows.size)):
        i = rows[t]
        visits = U(visits_of(lengths[i], weights[i] if weights.size else 1.0, length_threshold, float(rows.size)))
        if out.size:
            out[t] = i
            for k in range(count, count + visits - U(1)):
                out[k] = i
        count += visits - U(1)
    return count


@compiled(writes="out")
def rows_of(owner, owners, bits, rows, out):
    """Collect the rows owned by this thread, for which owners[row >> bits] == owner; return their count."""
    found = U(0)
    for t in range(U(rows.size)):
        out[found] = rows[t]
        found += U(owners[U(rows[t]) >> U(bits)] == owner)
    return found


@inlined
def drawn(state, count):
    """Draw a random integer in [0, count); return the next state and the integer.

    The generator is splitmix64 (Steele, Lea, Flood 2014, figure 16). `count` must be far below 2**32, or the draw is
    biased.
    """
    state += U(0x9E3779B97F4A7C15)
    z = (state ^ (state >> U(30))) * U(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> U(27))) * U(0x94D049BB133111EB)
    return state, ((z ^ (z >> U(31))) >> U(32)) * U(count) >> U(32)


@compiled(writes="rows")
def shuffle_rows(rows, state, whole, width, size):
    """Shuffle rows in place so that the order is random but neighbouring rows stay near each other.

    First, each row from position `whole` on swaps places with any row. Then the blocks of `width` neighbouring rows are
    shuffled. Last, the rows within each group of `size` neighbours are shuffled.
    """
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
