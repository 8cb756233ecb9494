"""The epoch loops, dense and sparse, and nothing else.

Shapes: ``x`` and ``gradient_sum`` are (k, p + 1) for k outputs, the intercept last. They are in
the solver's coordinates, where a row is ``a_i - shift`` and column j takes steps ``step * scale_j``.
``gradients`` is (n, k), ``b`` (n, 1) or (n, k). ``weights`` has one entry a row, or none for all
ones. ``pull`` (n, 2) holds what multiplies a row's change of gradient, so that its visits are an
unbiased sample of the mean, and the row's squared length, or zero. What is written is named so.

Rows come without replacement. The change of a row's gradient from its memory speaks for rows still to come, of
which there are ``left - t * less`` at the t-th visit, as a share of all; that from ``anchor`` for those of chunks
visited before, a share of ``past``; nothing is to be said of those just visited (docs/algorithm.md, "Without
replacement").

With a length, derivatives are implicit: taken not at the prediction z before the step but near the
one after it, u = z - h (f'(u) - m) with h = step * pull * length, as in Point-SAGA (Defazio 2016,
section 2). No row can then be overshot, and at the optimum u = z. Without, the steps are those of
SAGA (Defazio, Bach, Lacoste-Julien 2014, equations 1 and 2). Sparse SAGA: Leblond, Pedregosa,
Lacoste-Julien 2017, section 2.2; there ``shift`` is nonzero only for columns that every row stores.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import NumbaWarning, njit

from . import _intrinsics, losses, penalties
from ._intrinsics import CACHE_LINE, borrowed, prefetch
from .losses import FASTMATH, curvature, gives_curvature, row_derivative, row_value_and_derivative, target
from .penalties import prox, shrink

__all__ = ["Kernels", "kernels_for", "shuffle"]

# Rows between a prefetch and its use, if short; long ones would else push each other out of the cache.
AHEAD, AHEAD_BYTES = 8, 2**15
# Steps in units of the inverse of a row's curvature that are not long.
LINEAR = 4.0
# What the sparse loop keeps of a column side by side; then x, gradient_sum and anchor of each output. Unsigned, as
# numba would look at a signed index twice.
SHIFT, STEP, RARE_STEP, SHRINK, FIXED = np.arange(5, dtype=np.uint64)
DOUBLES = CACHE_LINE // 8  # that fill a line of the cache


class Kernels(NamedTuple):
    """The compiled loops for one kind of caller."""

    dense_pass: Callable
    sparse_pass: Callable
    dense_gradient: Callable
    sparse_gradient: Callable
    dense_sum: Callable
    dense_moments: Callable
    sparse_moments: Callable
    shuffle: Callable
    dense_norms: Callable
    sparse_norms: Callable
    proximal_step: Callable


# Compiled into their callers. Global, as a loop that closed over one would miss its cache in every process.
@njit(nogil=True, inline="always")
def ask(array, first, last, line):
    """Prefetch some entries, of which so many fill a line of the cache.

    Of a long row in parts: a core that waits for too many lines at once stands still.
    """
    while first < last:  # a range of steps that are not constant would divide
        prefetch(array, first)
        first += line


@njit(nogil=True, fastmath=FASTMATH, inline="always")
def row_gradients(loss, z, u, y, w, h, old, m, bound):
    """Write w f'(u) to m, with u near the predictions after a step of length h from z; u = z where h is zero.

    Where the loss gives its curvature, and the step is not long, f' is taken for a line about z: an exponential less.
    """
    row_derivative(loss, z, y, m)
    for k in range(z.size):
        m[k] *= w
    unbounded, hardest = bound == 0.0, h * w * bound
    if h <= 0.0 or (hardest < 0.05 and not unbounded):
        return
    if hardest < LINEAR and not unbounded and gives_curvature(loss):
        for k in range(z.size):
            m[k] = old[k] + (m[k] - old[k]) / (1.0 + h * w * curvature(loss, z[k], target(y, k, z.size), bound))
        return
    for k in range(z.size):
        u[k] = z[k]
    for _ in range(30 if unbounded else 1 + int(min(hardest, 40.0) / 4.0)):
        moved = 0.0
        for k in range(z.size):
            c = curvature(loss, u[k], target(y, k, z.size), bound) if unbounded else bound
            move = (u[k] - z[k] + h * (m[k] - old[k])) / (1.0 + h * w * c)
            if unbounded:
                move = min(1.0, max(-1.0, move))
            u[k] -= move
            moved = max(moved, abs(move))
        row_derivative(loss, u, y, m)
        for k in range(z.size):
            m[k] *= w
        if moved < 1e-10:
            break
    if unbounded:  # where the loop ended early, the gradient that moves z to u and no further
        for k in range(z.size):
            m[k] = old[k] + (z[k] - u[k]) / h


def _build(sources: int, cache: bool) -> Kernels:
    def jit(function):
        try:
            return njit(nogil=True, fastmath=FASTMATH, cache=cache)(function)
        except RuntimeError:  # numba finds no directory that it may write its cache to
            return njit(nogil=True, fastmath=FASTMATH)(function)

    # numba's on-disk cache follows edits of this file only. Naming `sources`, which the
    # loops close over, makes an edited loss or penalty a cache miss as well.

    @jit
    def dense_pass(A, gathered, b, weights, order, pull, x, anchor, gradient_sum, gradients, shift, scale, step,
                   intercept_step, inverse_weight, left, less, past, bound, loss, penalty):  # fmt: skip
        """``gathered`` tells that A holds the rows in the order of their visits."""
        sources  # noqa: B018
        A, b, x, anchor, gradient_sum = borrowed(A), borrowed(b), borrowed(x), borrowed(anchor), borrowed(gradient_sum)
        p, outputs, visits, scratch = A.shape[1], x.shape[0], order.size, np.empty((5, x.shape[0]))
        z, u, m, old, base = borrowed(scratch)
        row, steps, shrinks = np.empty(p), np.empty(p), np.empty(p)
        for j in range(p):
            steps[j] = step * scale[j]
            shrinks[j] = shrink(penalty, steps[j])
        entries, pulls, targets, table = A.reshape(-1), pull.reshape(-1), b.reshape(-1), gradients.reshape(-1)
        ahead, line = min(AHEAD, 2 + AHEAD_BYTES // (p * A.itemsize)), CACHE_LINE // A.itemsize
        third = max(1, (p // line + 2) // 3) * line
        for t in range(visits):
            i, coming, end = order[t], 0, 0
            if t + ahead < visits:
                q = order[t + ahead]
                if not gathered:
                    coming, end = q * p, q * p + p
                    prefetch(entries, end - 1)
                prefetch(pulls, 2 * q)
                prefetch(targets, q * b.shape[1])
                prefetch(table, q * outputs)
            ask(entries, coming, min(end, coming + third), line)
            w = weights[i] if weights.size else 1.0
            source = A[t] if gathered else A[i]
            for j in range(p):
                row[j] = source[j] - shift[j]
            ask(entries, coming + third, min(end, coming + 2 * third), line)
            for k in range(outputs):
                xk, zk = x[k], x[k, p]
                for j in range(p):
                    zk += row[j] * xk[j]
                z[k], old[k] = zk, gradients[i, k]
                base[k] = old[k]
            own = left - t * less
            if past > 0.0:
                for k in range(outputs):
                    xk, zk = anchor[k], anchor[k, p]
                    for j in range(p):
                        zk += row[j] * xk[j]
                    u[k] = zk
                row_derivative(loss, u, b[i], m)
                for k in range(outputs):
                    base[k] = (own * old[k] + past * w * m[k]) / (own + past)
            pulled_by = pull[i, 0] * (own + past)
            row_gradients(loss, z, u, b[i], w, step * pulled_by * pull[i, 1], base, m, bound)
            ask(entries, coming + 2 * third, end, line)
            for k in range(outputs):
                gradients[i, k] = m[k]
                # What is stored, perhaps rounded to float32, is what the sum gets: numba's float() would
                # keep float32, and round the difference as well.
                delta = np.float64(gradients[i, k]) - old[k]
                pulled, xk, sums = pulled_by * (np.float64(gradients[i, k]) - base[k]), x[k], gradient_sum[k]
                for j in range(p):
                    v = xk[j] - steps[j] * (pulled * row[j] + inverse_weight * sums[j])
                    xk[j] = prox(penalty, v, steps[j], shrinks[j])
                    sums[j] += delta * row[j]
                x[k, p] -= intercept_step * (pulled + inverse_weight * gradient_sum[k, p])
                gradient_sum[k, p] += delta
        scratch[:] = 0.0  # no longer borrowed

    @jit
    def sparse_pass(data, indices, indptr, b, weights, order, pull, x, anchor, gradient_sum, gradients, shift, scale,
                    rarity, step, intercept_step, inverse_weight, left, less, past, bound, loss, penalty):  # fmt: skip
        sources  # noqa: B018
        b, x, gradient_sum = borrowed(b), borrowed(x), borrowed(gradient_sum)
        p, outputs, visits, scratch = x.shape[1] - 1, x.shape[0], order.size, np.empty((5, x.shape[0]))
        z, u, m, old, base = borrowed(scratch)
        width = -(-(4 + 3 * outputs) // DOUBLES) * DOUBLES
        room = np.empty((p + 1) * width)
        start = (-room.ctypes.data % CACHE_LINE) // room.itemsize  # of one output, a column is one cache line
        columns, shifted = room[start : start + p * width].reshape(p, width), False
        for j in range(p):
            s, shifted = step * scale[j], shifted or shift[j] != 0.0
            columns[j, :4] = shift[j], s, s * rarity[j], shrink(penalty, s * rarity[j])
            for k in range(outputs):
                columns[j, 4 + k], columns[j, 4 + outputs + k] = x[k, j], gradient_sum[k, j]
                columns[j, 4 + 2 * outputs + k] = anchor[k, j]
        lines, pulls, targets, table = columns.reshape(-1), pull.reshape(-1), b.reshape(-1), gradients.reshape(-1)
        for t in range(visits):
            i = order[t]
            if t + 3 * AHEAD < visits:
                prefetch(indptr, order[t + 3 * AHEAD])
            if t + 2 * AHEAD < visits:
                q = order[t + 2 * AHEAD]
                prefetch(pulls, 2 * q)
                prefetch(targets, q * b.shape[1])
                prefetch(table, q * outputs)
                ask(data, indptr[q], indptr[q + 1], DOUBLES)
                ask(indices, indptr[q], indptr[q + 1], DOUBLES)
            if t + AHEAD < visits:
                q = order[t + AHEAD]
                for r in range(indptr[q], indptr[q + 1]):
                    prefetch(lines, indices[r] * width)
            w = weights[i] if weights.size else 1.0
            start, end = indptr[i], indptr[i + 1]
            for k in range(outputs):
                zk, at_x = x[k, p], FIXED + np.uint64(k)
                for r in range(start, end):
                    c = np.uint64(indices[r]) * np.uint64(width)
                    zk += (data[r] - lines[c + SHIFT] if shifted else data[r]) * lines[c + at_x]
                z[k], old[k] = zk, gradients[i, k]
                base[k] = old[k]
            own = left - t * less
            if past > 0.0:
                for k in range(outputs):
                    zk, at_anchor = anchor[k, p], FIXED + np.uint64(2 * outputs + k)
                    for r in range(start, end):
                        c = np.uint64(indices[r]) * np.uint64(width)
                        zk += (data[r] - lines[c + SHIFT] if shifted else data[r]) * lines[c + at_anchor]
                    u[k] = zk
                row_derivative(loss, u, b[i], m)
                for k in range(outputs):
                    base[k] = (own * old[k] + past * w * m[k]) / (own + past)
            pulled_by = pull[i, 0] * (own + past)
            row_gradients(loss, z, u, b[i], w, step * pulled_by * pull[i, 1], base, m, bound)
            for k in range(outputs):
                gradients[i, k] = m[k]
                delta = np.float64(gradients[i, k]) - old[k]
                pulled = pulled_by * (np.float64(gradients[i, k]) - base[k])
                at_x, at_sum = FIXED + np.uint64(k), FIXED + np.uint64(outputs + k)
                for r in range(start, end):
                    c = np.uint64(indices[r]) * np.uint64(width)
                    a = data[r] - lines[c + SHIFT] if shifted else data[r]
                    s, sD = lines[c + STEP], lines[c + RARE_STEP]
                    v = lines[c + at_x] - (s * pulled * a + sD * inverse_weight * lines[c + at_sum])
                    lines[c + at_x] = prox(penalty, v, sD, lines[c + SHRINK])
                    lines[c + at_sum] += delta * a
                x[k, p] -= intercept_step * (pulled + inverse_weight * gradient_sum[k, p])
                gradient_sum[k, p] += delta
        for j in range(p):
            for k in range(outputs):
                x[k, j], gradient_sum[k, j] = columns[j, 4 + k], columns[j, 4 + outputs + k]
        scratch[:] = 0.0

    @jit
    def dense_gradient(A, b, weights, x, gradient, gradients, loss):
        """Add sum_i w_i f'(z_i) a_i, with 1 for the intercept's column, to ``gradient``; return sum_i w_i f(z_i).

        ``gradients``, unless empty, gets the factors, and ``gradient`` the sum of what is stored there.
        """
        sources  # noqa: B018
        A, b, x, gradient = borrowed(A), borrowed(b), borrowed(x), borrowed(gradient)
        p, outputs, total, scratch = A.shape[1], x.shape[0], 0.0, np.empty((2, x.shape[0]))
        z, m = borrowed(scratch)
        for i in range(A.shape[0]):
            w = weights[i] if weights.size else 1.0
            for k in range(outputs):
                zk = x[k, p]
                for j in range(p):
                    zk += A[i, j] * x[k, j]
                z[k] = zk
            total += w * row_value_and_derivative(loss, z, b[i], m)
            for k in range(outputs):
                mk = w * m[k]
                if gradients.size:
                    gradients[i, k] = mk
                    mk = np.float64(gradients[i, k])
                for j in range(p):
                    gradient[k, j] += mk * A[i, j]
                gradient[k, p] += mk
        scratch[:] = 0.0  # no longer borrowed
        return total

    @jit
    def sparse_gradient(data, indices, indptr, b, weights, x, gradient, gradients, loss):
        """As ``dense_gradient``."""
        sources  # noqa: B018
        b, x, gradient = borrowed(b), borrowed(x), borrowed(gradient)
        p, outputs, total, scratch = x.shape[1] - 1, x.shape[0], 0.0, np.empty((2, x.shape[0]))
        z, m = borrowed(scratch)
        for i in range(indptr.size - 1):
            w = weights[i] if weights.size else 1.0
            for k in range(outputs):
                zk = x[k, p]
                for q in range(indptr[i], indptr[i + 1]):
                    zk += data[q] * x[k, indices[q]]
                z[k] = zk
            total += w * row_value_and_derivative(loss, z, b[i], m)
            for k in range(outputs):
                mk = w * m[k]
                if gradients.size:
                    gradients[i, k] = mk
                    mk = np.float64(gradients[i, k])
                for q in range(indptr[i], indptr[i + 1]):
                    gradient[k, indices[q]] += mk * data[q]
                gradient[k, p] += mk
        scratch[:] = 0.0
        return total

    @jit
    def dense_sum(A, factors, out):
        """Add sum_i factors_i a_i, with 1 for the intercept's column, to ``out``."""
        p = A.shape[1]
        for i in range(A.shape[0]):
            for k in range(factors.shape[1]):
                factor = factors[i, k]
                for j in range(p):
                    out[k, j] += factor * A[i, j]
                out[k, p] += factor

    @jit
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

    @jit
    def sparse_moments(data, indices, indptr, weights, pulls, origin, out, counts):
        """As ``dense_moments``, of what is stored and with ``out`` of shape (p, 4 + c); ``counts`` is added to."""
        out = borrowed(out)
        for i in range(indptr.size - 1):
            w = weights[i]
            for q in range(indptr[i], indptr[i + 1]):
                j = indices[q]
                a, line = data[q] - origin[j], out[j]
                counts[j] += 1
                line[0] += w * a
                line[1] += w * a * a
                line[2] = data[q] if data[q] < line[2] else line[2]
                line[3] = data[q] if data[q] > line[3] else line[3]
                for c in range(pulls.shape[1]):
                    line[4 + c] += pulls[i, c] * a

    @jit
    def shuffle(rows, draws):
        """Bring rows into a random order, given as many random numbers of 32 bits."""
        for i in range(rows.size - 1, 0, -1):
            j = np.int64((np.uint64(draws[i]) * np.uint64(i + 1)) >> np.uint64(32))
            rows[i], rows[j] = rows[j], rows[i]

    @jit
    def dense_norms(A, shift, scale, out):
        """Write each row's squared length in the solver's coordinates."""
        A = borrowed(A)
        for i in range(A.shape[0]):
            row, total = A[i], 0.0
            for j in range(row.size):
                total += (row[j] - shift[j]) ** 2 * scale[j]
            out[i] = total

    @jit
    def sparse_norms(data, indices, indptr, shift, scale, out):
        """As ``dense_norms``."""
        for i in range(indptr.size - 1):
            total = 0.0
            for q in range(indptr[i], indptr[i + 1]):
                total += (data[q] - shift[indices[q]]) ** 2 * scale[indices[q]]
            out[i] = total

    @jit
    def proximal_step(x, direction, steps, penalty, out):
        """Write prox(x - steps * direction) to ``out``."""
        sources  # noqa: B018
        for j in range(x.size):
            out[j] = prox(penalty, x[j] - steps[j] * direction[j], steps[j], shrink(penalty, steps[j]))

    return Kernels(
        dense_pass,
        sparse_pass,
        dense_gradient,
        sparse_gradient,
        dense_sum,
        dense_moments,
        sparse_moments,
        shuffle,
        dense_norms,
        sparse_norms,
        proximal_step,
    )


def _digest(*modules) -> int:
    text = b"".join(Path(module.__file__).read_bytes() for module in modules)
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")


with warnings.catch_warnings():
    warnings.simplefilter("ignore", NumbaWarning)
    _BUILT_IN = _build(_digest(_intrinsics, losses, penalties), cache=True)


def kernels_for(loss: Any, penalty: Any) -> Kernels:
    """The kernels with an on-disk cache for built-in types, those without for a user's own."""
    built_in = all(type(part).__module__.startswith("dask_saga.") for part in (loss, penalty))
    return _BUILT_IN if built_in else _foreign(type(loss), type(penalty))


def shuffle(rows: np.ndarray, draws: np.ndarray) -> None:
    """As the kernel, which takes neither loss nor penalty."""
    _BUILT_IN.shuffle(rows, draws)


@functools.lru_cache(maxsize=32)
def _foreign(loss: type, penalty: type) -> Kernels:
    # Not in the on-disk index: it would be broken for everyone who lacks the class. And built
    # for these very classes: numba takes another class of the same name and fields for the same.
    return _build(0, cache=False)
