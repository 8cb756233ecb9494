"""Loops over rows and columns that know neither loss nor penalty: sums, moments, lengths, and the order of visits."""

from __future__ import annotations

import numpy as np

from .intrinsics import borrowed, prefetch
from .jit import compiled

__all__ = [
    "LARGEST_ENTRY",
    "LEAST_SQUARE",
    "dense_leverages",
    "dense_moments",
    "dense_norms",
    "gather_columns",
    "overshoot_limits",
    "read_moments",
    "scale_columns",
    "sparse_leverages",
    "sparse_moments",
    "sparse_norms",
]


# Bound of a squared entry in the solver's coordinates, in units of the column's variance.
LARGEST_ENTRY = 100.0

# Mean squares below this are zero: their inverses would leave the range of float64.
LEAST_SQUARE = 1e-100

# A chunk that has such a share of the curvature overshoots the whole by nothing that counts.
NEARLY_ALL = 1.0 - 1e-6

# Of a row's squared length, kept in 32 bits.
LONGEST = float(np.finfo(np.float32).max)

# Entries between a prefetch and its use.
ENTRIES_AHEAD = 64

U = np.uint64


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
def gather_columns(data, indices, indptr, place, out):
    """Add what rows hold of some columns to ``out``, (n, c), where each has its place; that of others is negative."""
    for i in range(U(out.shape[0])):
        for q in range(U(indptr[i]), U(indptr[i + U(1)])):
            k = place[U(indices[q])]
            if k >= 0:
                out[i, k] += data[q]


@compiled
def sparse_moments(data, indices, indptr, weights, factors, table):
    """Add what rows store of each column to a table of shape (p, 4); return the largest magnitude.

    It has half a line of the cache for each column: weighted sum, weighted sum of squares, sum of products with
    factors, of which a row has one or none, and in 32 bits each a count and the largest magnitude.
    """
    data, indices, indptr, factors, lines = (
        borrowed(data), borrowed(indices), borrowed(indptr), borrowed(factors), borrowed(table).reshape(-1)
    )  # fmt: skip
    counts, magnitudes, last, largest = lines.view(np.uint32), lines.view(np.float32), U(indices.size - 1), 0.0
    for i in range(U(indptr.size - 1)):
        w, factor = weights[i], factors[i, 0] if factors.size else 0.0
        for q in range(U(indptr[i]), U(indptr[i + U(1)])):
            prefetch(lines, U(indices[min(q + U(ENTRIES_AHEAD), last)]) * U(4))
            a, c = np.float64(data[q]), U(indices[q]) * U(4)
            k, size = U(2) * c + U(6), abs(a)
            lines[c] += w * a
            lines[c + U(1)] += w * a * a
            lines[c + U(2)] += factor * a
            counts[k] += np.uint32(1)
            magnitudes[k + U(1)] = max(magnitudes[k + U(1)], np.float32(min(size, LONGEST)))
            largest = size if size > largest else largest
    return largest


@compiled
def read_moments(tables, weight, mean, squares, sums, counts, magnitudes):
    """Write what all tables of ``sparse_moments`` tell together; squares are those about the mean."""
    p, lines = U(mean.size), tables.reshape(-1)
    numbers, sizes = lines.view(np.uint32), lines.view(np.float32)
    for j in range(p):
        total, square, product, count, size = 0.0, 0.0, 0.0, np.int64(0), np.float32(0.0)
        for t in range(U(tables.shape[0])):
            c = (t * p + j) * U(4)
            total, square, product = total + lines[c], square + lines[c + U(1)], product + lines[c + U(2)]
            count, size = count + np.int64(numbers[U(2) * c + U(6)]), max(size, sizes[U(2) * c + U(7)])
        mean[j] = total / weight
        squares[j] = max(square - total * mean[j], 0.0)
        counts[j], magnitudes[j] = count, size
        if sums.size:
            sums[0, j] = product


@compiled
def scale_columns(told, rows, weight, sparse, centres, scales, out, varies):
    """Write shift, scale, inverse density and spread of each column to ``out``, (4, p).

    Those that are constant but for rounding do not vary: they keep unit steps.
    """
    mean, squares, low, high, counts, full = told
    for j in range(mean.size):
        centred, variance, inverse_density = centres and full[j], squares[j] / weight, rows / max(counts[j], 1)
        moment = variance + mean[j] ** 2
        shift, spread = (mean[j], variance) if centred else (0.0, moment)
        largest = max((high[j] - shift) ** 2, (low[j] - shift) ** 2) / LARGEST_ENTRY
        divisor = max(spread, largest) if centred or not sparse else moment * np.sqrt(inverse_density)
        varies[j] = divisor > max(1e-24 * moment, LEAST_SQUARE)
        scale = 1.0 / divisor if scales and varies[j] else 1.0
        out[0, j], out[1, j], out[2, j], out[3, j] = shift, scale, inverse_density, spread


@compiled
def overshoot_limits(sums, known, weight, rate, out):
    """Write how long steps along each axis may be, of whose curvature a chunk has a share; see ``axis_limits``."""
    for j in range(out.size):
        share = sums[j] / (weight * known[j])
        out[j] = np.inf
        if share < NEARLY_ALL:  # it is not a number where nothing is known
            share = max(share, 1e-9)
            out[j] = -np.log1p(-share) / (share * known[j] * rate)


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


@compiled
def dense_leverages(A, centre, scale, sums, largest):
    """Write the sum over the columns of each row's squared and scaled entries, and the largest of these."""
    A, centre, scale = borrowed(A), borrowed(centre), borrowed(scale)
    for i in range(A.shape[0]):
        row, total, most = A[i], 0.0, 0.0
        for j in range(row.size):
            share = (row[j] - centre[j]) ** 2 * scale[j]
            total, most = total + share, max(most, share)
        sums[i], largest[i] = total, most


@compiled
def sparse_leverages(data, indices, indptr, centre, scale, sums, largest):
    """As ``dense_leverages``, of the entries that are stored."""
    data, indices, indptr, centre, scale = (
        borrowed(data), borrowed(indices), borrowed(indptr), borrowed(centre), borrowed(scale)
    )  # fmt: skip
    for i in range(U(indptr.size - 1)):
        total, most = 0.0, 0.0
        for q in range(U(indptr[i]), U(indptr[i + U(1)])):
            j = U(indices[q])
            share = (data[q] - centre[j]) ** 2 * scale[j]
            total, most = total + share, max(most, share)
        sums[i], largest[i] = total, most
