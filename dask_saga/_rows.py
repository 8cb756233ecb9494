"""Loops over rows that know neither loss nor penalty: sums, moments, lengths, and the order of visits."""

from __future__ import annotations

import numpy as np
from numba import njit

from ._intrinsics import borrowed, compiled, inlined, prefetch

__all__ = [
    "dense_moments",
    "dense_norms",
    "dense_sum",
    "merge_moments",
    "repeated",
    "scaled_products",
    "scatter",
    "shuffle_blocks",
    "shuffle_groups",
    "sparse_moments",
    "sparse_norms",
    "squared_move",
    "visits_of",
]

# Of a row's squared length, kept in 32 bits.
LONGEST = float(np.finfo(np.float32).max)
# Entries between a prefetch and its use.
ENTRIES_AHEAD = 64
U = np.uint64


@njit(nogil=True)  # no fastmath: all loops must find the same
def visits_of(length, w, often, most):
    """How often a row is visited: once more for each time that its bound exceeds ``often``."""
    return min(np.ceil(length * w / often), most) if length * w > often else 1.0


@compiled
def dense_sum(A, factors, out):
    """Add sum_i factors_i a_i, with 1 for the intercept's column, to ``out``."""
    p = A.shape[1]
    for i in range(A.shape[0]):
        for k in range(factors.shape[1]):
            factor = factors[i, k]
            for j in range(p):
                out[k, j] += factor * A[i, j]
            out[k, p] += factor


@compiled
def dense_moments(A, weights, pulls, origin, out):
    """Add weighted sums and squares of rows less their origin to ``out``, their extremes, and products with pulls.

    ``pulls`` is (n, c), ``out`` (4 + c, p). Extremes are those of the rows as they are.
    """
    A, out = borrowed(A), borrowed(out)
    n, p, rest = A.shape[0], origin.size, 4 * (A.shape[0] // 4)
    sums, squares, low, high = out[0], out[1], out[2], out[3]
    for i in range(0, rest, 4):  # four rows at a time, as what is added to is read and written for each
        w0, w1, w2, w3 = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        for j in range(p):
            o, a0, a1, a2, a3 = origin[j], A[i, j], A[i + 1, j], A[i + 2, j], A[i + 3, j]
            l0, l1 = a0 if a0 < a1 else a1, a2 if a2 < a3 else a3
            h0, h1 = a0 if a0 > a1 else a1, a2 if a2 > a3 else a3
            l0, h0 = l0 if l0 < l1 else l1, h0 if h0 > h1 else h1
            low[j] = l0 if l0 < low[j] else low[j]
            high[j] = h0 if h0 > high[j] else high[j]
            a0, a1, a2, a3 = a0 - o, a1 - o, a2 - o, a3 - o
            b0, b1, b2, b3 = w0 * a0, w1 * a1, w2 * a2, w3 * a3
            sums[j] += (b0 + b1) + (b2 + b3)
            squares[j] += (b0 * a0 + b1 * a1) + (b2 * a2 + b3 * a3)
        for c in range(pulls.shape[1]):
            f0, f1, f2, f3, products = pulls[i, c], pulls[i + 1, c], pulls[i + 2, c], pulls[i + 3, c], out[4 + c]
            for j in range(p):
                o = origin[j]
                even = f0 * (A[i, j] - o) + f1 * (A[i + 1, j] - o)
                products[j] += even + (f2 * (A[i + 2, j] - o) + f3 * (A[i + 3, j] - o))
    for i in range(rest, n):
        for j in range(p):
            a = A[i, j] - origin[j]
            sums[j] += weights[i] * a
            squares[j] += weights[i] * a * a
            low[j], high[j] = min(A[i, j], low[j]), max(A[i, j], high[j])
            for c in range(pulls.shape[1]):
                out[4 + c, j] += pulls[i, c] * a


@compiled
def sparse_moments(data, indices, indptr, weights, pulls, origin, table):
    """As ``dense_moments``, of what is stored, into a table of shape (p, 6 + c or more).

    It has a line for each column: its origin, what ``dense_moments`` tells, and between extremes and products a count.
    """
    data, indices, indptr, pulls, table = (
        borrowed(data), borrowed(indices), borrowed(indptr), borrowed(pulls), borrowed(table)
    )  # fmt: skip
    lines, width, last = table.reshape(-1), U(table.shape[1]), U(indices.size - 1)
    for j in range(U(origin.size)):
        for k in range(width):
            lines[j * width + k] = 0.0
        lines[j * width], lines[j * width + U(3)], lines[j * width + U(4)] = origin[j], np.inf, -np.inf
    for i in range(U(indptr.size - 1)):
        w = weights[i]
        for q in range(U(indptr[i]), U(indptr[i + U(1)])):
            prefetch(lines, U(indices[min(q + U(ENTRIES_AHEAD), last)]) * width)
            value, c = data[q], U(indices[q]) * width
            a = value - lines[c]
            lines[c + U(1)] += w * a
            lines[c + U(2)] += w * a * a
            lines[c + U(3)] = min(lines[c + U(3)], value)
            lines[c + U(4)] = max(lines[c + U(4)], value)
            lines[c + U(5)] += 1.0
            for k in range(U(pulls.shape[1])):
                lines[c + U(6) + k] += pulls[i, k] * a


@compiled
def merge_moments(tables, out):
    """Write what all tables of ``sparse_moments`` tell together to ``out``, (5 + c, p)."""
    for j in range(tables.shape[1]):
        for k in range(out.shape[0]):
            value = tables[0, j, 1 + k]
            for t in range(1, tables.shape[0]):
                other = tables[t, j, 1 + k]
                value = min(value, other) if k == 2 else max(value, other) if k == 3 else value + other
            out[k, j] = value


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


@inlined
def below(draw, count):
    """A number below the count, of a draw of 32 bits."""
    return (U(draw) * U(count)) >> U(32)


@compiled
def scatter(rows, draws, first):
    """Exchange each row from the first on with one of all rows."""
    for t in range(U(draws.size)):
        i, j = U(first) + t, below(draws[t], rows.size)
        rows[i], rows[j] = rows[j], rows[i]


@compiled
def shuffle_blocks(rows, draws, width):
    """Bring whole blocks of so many neighbours into a random order, one for each draw."""
    for t in range(U(draws.size)):
        i, j = U(draws.size) - t - U(1), below(draws[t], U(draws.size) - t)
        for k in range(U(width)):
            one, other = i * U(width) + k, j * U(width) + k
            rows[one], rows[other] = rows[other], rows[one]


@compiled
def shuffle_groups(rows, draws, size):
    """Bring each group of so many neighbours into a random order, with a draw for each."""
    for start in range(U(0), U(rows.size), U(size)):
        for left in range(min(U(size), U(rows.size) - start), U(0), -1):
            i, j = start + left - U(1), start + below(draws[start + left - U(1)], left)
            rows[i], rows[j] = rows[j], rows[i]


@compiled
def scaled_products(u, v, scale):
    """u u, u v and v v of moves of shape (k, p + 1), in units of the steps of columns; those of the intercept are 1."""
    uu, uv, vv, p = 0.0, 0.0, 0.0, scale.size
    for k in range(u.shape[0]):
        for j in range(p):
            inverse = 1.0 / scale[j]
            uu += u[k, j] * u[k, j] * inverse
            uv += u[k, j] * v[k, j] * inverse
            vv += v[k, j] * v[k, j] * inverse
        uu, uv, vv = uu + u[k, p] * u[k, p], uv + u[k, p] * v[k, p], vv + v[k, p] * v[k, p]
    return uu, uv, vv


@compiled
def squared_move(start, end, scale):
    """The squared length of the way between two x, in the same units."""
    total, p = 0.0, scale.size
    for k in range(start.shape[0]):
        for j in range(p):
            total += (end[k, j] - start[k, j]) ** 2 / scale[j]
        total += (end[k, p] - start[k, p]) ** 2
    return total


@compiled
def dense_norms(A, shift, scale, intercept, out):
    """Write each row's squared length in the solver's coordinates, ``intercept`` included."""
    A = borrowed(A)
    for i in range(A.shape[0]):
        row, total = A[i], intercept
        for j in range(row.size):
            total += (row[j] - shift[j]) ** 2 * scale[j]
        out[i] = min(total, LONGEST)


@compiled
def sparse_norms(data, indices, indptr, shift, scale, intercept, out):
    """As ``dense_norms``."""
    data, indices, indptr, shift, scale = (
        borrowed(data), borrowed(indices), borrowed(indptr), borrowed(shift), borrowed(scale)
    )  # fmt: skip
    shifted = shift.any()
    for i in range(U(indptr.size - 1)):
        total = intercept
        for q in range(U(indptr[i]), U(indptr[i + U(1)])):
            a = data[q] - shift[U(indices[q])] if shifted else data[q]
            total += a * a * scale[U(indices[q])]
        out[i] = min(total, LONGEST)
