"""Loops over rows that know neither loss nor penalty: sums, moments, lengths, and the order of visits."""

from __future__ import annotations

import numpy as np
from numba import njit

from ._intrinsics import AHEAD, NEAR_BYTES, borrowed, compiled, prefetch

__all__ = [
    "dense_moments",
    "dense_norms",
    "dense_sum",
    "repeated",
    "scaled_products",
    "shuffle",
    "sparse_moments",
    "sparse_norms",
    "squared_move",
    "visits_of",
]

# Of a row's squared length, kept in 32 bits.
LONGEST = float(np.finfo(np.float32).max)
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
def sparse_moments(data, indices, indptr, weights, pulls, origin, out):
    """As ``dense_moments``, of what is stored and with ``out`` of shape (p, 5 + c or more), where counts come fifth."""
    out, pulls, indices = borrowed(out), borrowed(pulls), borrowed(indices)
    n, lines, width, near = U(indptr.size - 1), out.reshape(-1), U(out.shape[1]), out.nbytes <= NEAR_BYTES // 2
    for i in range(n):
        w, coming = weights[i], i + U(AHEAD)
        if coming < n and not near:
            for q in range(U(indptr[coming]), U(indptr[coming + U(1)])):
                prefetch(lines, U(indices[q]) * width)
        for q in range(U(indptr[i]), U(indptr[i + U(1)])):
            j, value = U(indices[q]), data[q]
            a, c = value - origin[j], j * width
            lines[c] += w * a
            lines[c + U(1)] += w * a * a
            lines[c + U(2)] = value if value < lines[c + U(2)] else lines[c + U(2)]
            lines[c + U(3)] = value if value > lines[c + U(3)] else lines[c + U(3)]
            lines[c + U(4)] += 1.0
            for k in range(U(pulls.shape[1])):
                lines[c + U(5) + k] += pulls[i, k] * a


@compiled
def repeated(rows, lengths, weights, often, out):
    """Write each row to ``out``, if it is not empty, once for each of its visits; return how many those are."""
    count = 0
    for t in range(rows.size):
        i = rows[t]
        visits = int(visits_of(lengths[i], weights[i] if weights.size else 1.0, often, float(rows.size)))
        if out.size:
            for k in range(count, count + visits):
                out[k] = i
        count += visits
    return count


@compiled
def shuffle(rows, draws, end):
    """Bring rows into a random order: those before ``end``, downwards, as far as there are draws of 32 bits."""
    for t in range(draws.size):
        i = end - 1 - t
        j = np.int64((np.uint64(draws[t]) * np.uint64(i + 1)) >> np.uint64(32))
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
    n, shifted, near = U(indptr.size - 1), shift.any(), scale.nbytes <= NEAR_BYTES // 2
    for i in range(n):
        total, coming = intercept, i + U(AHEAD)
        if coming < n and not near:
            for q in range(U(indptr[coming]), U(indptr[coming + U(1)])):
                prefetch(scale, U(indices[q]))
        for q in range(U(indptr[i]), U(indptr[i + U(1)])):
            a = data[q] - shift[U(indices[q])] if shifted else data[q]
            total += a * a * scale[U(indices[q])]
        out[i] = min(total, LONGEST)
