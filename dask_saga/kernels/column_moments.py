"""Column and row statistics of dense and CSR blocks: moments, squared row norms, leverages, scales and step limits.

The loops depend on neither the loss nor the penalty.
"""

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


# Largest squared entry allowed in the solver's coordinates. Unit: variances of the column.
LARGEST_ENTRY = 100.0

# Mean squares below this count as zero, because their inverses would leave the range of float64.
LEAST_SQUARE = 1e-100

# Share of the total curvature (0 to 1) from which a chunk needs no step limit: its overshoot is negligible.
NEARLY_ALL = 1.0 - 1e-6

# Upper bound of a row's squared norm and of a column's magnitude: both are stored as float32.
FLOAT32_MAX = float(np.finfo(np.float32).max)

# Number of entries between a prefetch and its use.
ENTRIES_AHEAD = 64

U = np.uint64


@compiled(writes="out")
def dense_moments(A, weights, factors, origin, out):
    """Accumulate the moments of each column in ``out``, of shape (4 + c, p).

    Rows 0 and 1 get sum_i w_i (a_i - origin) and sum_i w_i (a_i - origin)^2. Rows 2 and 3 get the minimum and the
    maximum of the entries, without ``origin`` subtracted. The last c rows get sum_i factors_i (a_i - origin), where
    ``factors`` is (n, c).
    """
    A, out = borrowed(A), borrowed(out)
    n, p, rest = A.shape[0], origin.size, 4 * (A.shape[0] // 4)
    sums, squares, low, high = out[0], out[1], out[2], out[3]
    for i in range(0, rest, 4):  # four rows at a time, to read and write the accumulators once for all four
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
        for c in range(factors.shape[1]):
            f0, f1, f2, f3 = factors[i, c], factors[i + 1, c], factors[i + 2, c], factors[i + 3, c]
            products = out[4 + c]
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
            for c in range(factors.shape[1]):
                out[4 + c, j] += factors[i, c] * a


@compiled(writes="out")
def gather_columns(data, indices, indptr, positions, out):
    """Add the entries of selected columns to ``out``, of shape (n, c).

    ``positions[j]`` is the place of column j in ``out``. It is negative for a column that is not selected.
    """
    for i in range(U(out.shape[0])):
        for q in range(U(indptr[i]), U(indptr[i + U(1)])):
            k = positions[U(indices[q])]
            if k >= 0:
                out[i, k] += data[q]


@compiled(writes="table")
def sparse_moments(data, indices, indptr, weights, factors, table):
    """Accumulate the moments of the stored entries of each column in ``table``; return the largest magnitude.

    ``table`` is (p, 4), which is half a cache line per column. It holds the weighted sum, the weighted sum of squares
    and the sum of products with ``factors`` as float64. The fourth place holds the count and the largest magnitude, in
    32 bits each. ``factors`` has one column, or is empty.
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
            magnitudes[k + U(1)] = max(magnitudes[k + U(1)], np.float32(min(size, FLOAT32_MAX)))
            largest = size if size > largest else largest
    return largest


@compiled(writes="mean squares sums counts magnitudes")
def read_moments(tables, weight, mean, squares, sums, counts, magnitudes):
    """Combine the tables of several ``sparse_moments`` calls. ``squares`` gets the sums of squares about the mean."""
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


@compiled(writes="out varies")
def scale_columns(moments, rows, weight, sparse, centres, scales, out, varies):
    """Compute the shift, scale, inverse density and spread of each column; write them to ``out``, of shape (4, p).

    A column that is constant up to rounding gets scale 1, and its entry of ``varies`` is False.
    """
    mean, squares, low, high, counts, full = moments
    for j in range(mean.size):
        centred, variance, inverse_density = centres and full[j], squares[j] / weight, rows / max(counts[j], 1)
        moment = variance + mean[j] ** 2
        shift, spread = (mean[j], variance) if centred else (0.0, moment)
        largest = max((high[j] - shift) ** 2, (low[j] - shift) ** 2) / LARGEST_ENTRY
        divisor = max(spread, largest) if centred or not sparse else moment * np.sqrt(inverse_density)
        varies[j] = divisor > max(1e-24 * moment, LEAST_SQUARE)
        scale = 1.0 / divisor if scales and varies[j] else 1.0
        out[0, j], out[1, j], out[2, j], out[3, j] = shift, scale, inverse_density, spread


@compiled(writes="out")
def overshoot_limits(sums, known, weight, rate, out):
    """Write the largest step along each axis for which a visit of the chunk does not overshoot.

    With the share s of the curvature that lies in the chunk, the limit is -log(1 - s) / (s * known * rate). See
    ``axis_limits`` for the derivation.
    """
    for j in range(out.size):
        share = sums[j] / (weight * known[j])
        out[j] = np.inf
        if share < NEARLY_ALL:  # False also for NaN, which means that nothing is known of the axis
            share = max(share, 1e-9)
            out[j] = -np.log1p(-share) / (share * known[j] * rate)


@compiled(writes="out")
def dense_norms(A, shift, scale, intercept, out):
    """Write each row's squared norm in the solver's coordinates: ``intercept`` + sum_j scale_j (a_j - shift_j)^2."""
    A = borrowed(A)
    for i in range(A.shape[0]):
        row, total = A[i], intercept
        for j in range(row.size):
            total += (row[j] - shift[j]) ** 2 * scale[j]
        out[i] = min(total, FLOAT32_MAX)


@compiled(writes="out")
def sparse_norms(data, indices, indptr, shift, scale, intercept, out):
    """Same as ``dense_norms``, over the stored entries of CSR rows."""
    data, indices, indptr, shift, scale = (
        borrowed(data), borrowed(indices), borrowed(indptr), borrowed(shift), borrowed(scale)
    )  # fmt: skip
    shifted = shift.any()
    for i in range(U(indptr.size - 1)):
        total = intercept
        for q in range(U(indptr[i]), U(indptr[i + U(1)])):
            a = data[q] - shift[U(indices[q])] if shifted else data[q]
            total += a * a * scale[U(indices[q])]
        out[i] = min(total, FLOAT32_MAX)


@compiled(writes="sums largest")
def dense_leverages(A, centre, scale, sums, largest):
    """Write the sum and the maximum over j of scale_j (a_j - centre_j)^2 for each row."""
    A, centre, scale = borrowed(A), borrowed(centre), borrowed(scale)
    for i in range(A.shape[0]):
        row, total, most = A[i], 0.0, 0.0
        for j in range(row.size):
            share = (row[j] - centre[j]) ** 2 * scale[j]
            total, most = total + share, max(most, share)
        sums[i], largest[i] = total, most


@compiled(writes="sums largest")
def sparse_leverages(data, indices, indptr, centre, scale, sums, largest):
    """Same as ``dense_leverages``, over the stored entries of CSR rows."""
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
