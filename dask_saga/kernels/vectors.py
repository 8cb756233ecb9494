"""Products and norms of coefficients, and linear predictions. The loops depend on neither the loss nor the penalty."""

from __future__ import annotations

import numpy as np

from .intrinsics import borrowed
from .jit import compiled

__all__ = [
    "dense_predictions",
    "dense_sum",
    "largest_of",
    "scaled_products",
    "sparse_predictions",
    "sparse_products",
    "sparse_sums",
    "squared_moves",
]

U = np.uint64


@compiled(writes="out")
def dense_sum(A, factors, out):
    """Add sum_i factors_i a_i to ``out``, of shape (k, p + 1). The intercept's column of a_i is 1."""
    p = A.shape[1]
    for i in range(A.shape[0]):
        for k in range(factors.shape[1]):
            factor = factors[i, k]
            for j in range(p):
                out[k, j] += factor * A[i, j]
            out[k, p] += factor


@compiled()
def scaled_products(u, v, scale):
    """Return the inner products <u, u>, <u, v> and <v, v> of moves of shape (k, p + 1).

    Column j is divided by scale_j. The intercept's scale is 1.
    """
    uu, uv, vv, p = 0.0, 0.0, 0.0, scale.size
    for k in range(u.shape[0]):
        for j in range(p):
            inverse = 1.0 / scale[j]
            uu += u[k, j] * u[k, j] * inverse
            uv += u[k, j] * v[k, j] * inverse
            vv += v[k, j] * v[k, j] * inverse
        uu, uv, vv = uu + u[k, p] * u[k, p], uv + u[k, p] * v[k, p], vv + v[k, p] * v[k, p]
    return uu, uv, vv


@compiled()
def squared_moves(start, middle, end, scale):
    """Return the squared norms of middle - start and of end - middle, in the metric of ``scaled_products``."""
    first, second, p = 0.0, 0.0, scale.size
    for k in range(start.shape[0]):
        for j in range(p):
            inverse = 1.0 / scale[j]
            first += (middle[k, j] - start[k, j]) ** 2 * inverse
            second += (end[k, j] - middle[k, j]) ** 2 * inverse
        first, second = first + (middle[k, p] - start[k, p]) ** 2, second + (end[k, p] - middle[k, p]) ** 2
    return first, second


@compiled()
def largest_of(one, other):
    """Return the largest absolute entry of two arrays of the same shape, or NaN if an entry is not finite."""
    largest, total = 0.0, 0.0
    for k in range(one.shape[0]):
        for j in range(one.shape[1]):
            a, b = abs(one[k, j]), abs(other[k, j])
            total += a + b
            a = a if a > b else b
            largest = largest if largest > a else a
    return largest if np.isfinite(total) else np.nan


@compiled(writes="out")
def dense_predictions(A, x, out):
    """Write the linear predictions of all rows to ``out``, of shape (n, k). x is (k, p + 1), the intercept last."""
    A, x = borrowed(A), borrowed(x)
    for i in range(A.shape[0]):
        row = A[i]
        for k in range(x.shape[0]):
            xk, total = x[k], 0.0
            for j in range(row.size):
                total += row[j] * xk[j]
            out[i, k] = total + xk[row.size]


@compiled(writes="out")
def sparse_predictions(data, indices, indptr, x, out):
    """Same as ``dense_predictions``, for CSR rows."""
    data, indices, indptr, x = borrowed(data), borrowed(indices), borrowed(indptr), borrowed(x)
    for i in range(U(indptr.size - 1)):
        for k in range(x.shape[0]):
            xk, total = x[k], 0.0
            for q in range(U(indptr[i]), U(indptr[i + U(1)])):
                total += data[q] * xk[U(indices[q])]
            out[i, k] = total + xk[xk.size - 1]


@compiled(writes="out")
def sparse_products(data, indices, indptr, x, out):
    """Write the linear predictions of many models to ``out``, of shape (n, m). x is (p + 1, m), the intercepts last."""
    data, indices, indptr, x, out = borrowed(data), borrowed(indices), borrowed(indptr), borrowed(x), borrowed(out)
    last = x[x.shape[0] - 1]
    for i in range(U(indptr.size - 1)):
        row = out[i]
        for m in range(row.size):
            row[m] = last[m]
        for q in range(U(indptr[i]), U(indptr[i + U(1)])):
            entry, own = data[q], x[U(indices[q])]
            for m in range(row.size):
                row[m] += entry * own[m]


@compiled(writes="out")
def sparse_sums(data, indices, indptr, factors, out):
    """Add sum_i factors_im a_i to column m of ``out``, of shape (p + 1, m). The intercept's column of a_i is 1."""
    data, indices, indptr = borrowed(data), borrowed(indices), borrowed(indptr)
    factors, out = borrowed(factors), borrowed(out)
    last = out[out.shape[0] - 1]
    for i in range(U(indptr.size - 1)):
        row = factors[i]
        for m in range(row.size):
            last[m] += row[m]
        for q in range(U(indptr[i]), U(indptr[i + U(1)])):
            entry, own = data[q], out[U(indices[q])]
            for m in range(row.size):
                own[m] += entry * row[m]
