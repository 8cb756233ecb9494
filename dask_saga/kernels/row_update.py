"""What the epoch loops do with one row, or with four together: predictions, derivatives, and the step.

Arrays are as in ``_kernels.py``; ``do`` is its ``Pass``. ``numbers`` is room for those of a row, one for each output.
"""

from __future__ import annotations

import numpy as np

from .dispatch import curvature, gives_curvature, prox, row_derivative, shrink, target
from .intrinsics import load, prefetch, store
from .jit import inlined, strict_sum_order
from .row_order import visits_of

__all__ = [
    "add_four",
    "ask",
    "four",
    "four_rows",
    "predict_four",
    "predicted",
    "proximal_point",
    "renew",
    "step_of_four",
    "step_of_one",
    "stored",
]


# Steps in units of the inverse of a row's curvature that are not long.
LINEAR = 4.0

U = np.uint64


# Compiled into their callers. Global, as a loop that closed over one would miss its cache in every process.


@inlined
def ask(array, first, last, line):
    """Prefetch some entries, of which so many fill a line of the cache.

    Of a long row in parts: a core that waits for too many lines at once stands still.
    """
    while first < last:  # a range of steps that are not constant would divide
        prefetch(array, first)
        first += line


@inlined
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


@inlined
def renew(loss, numbers, gradients, i, y, w, length, own, do, at, deltas, pulls):
    """Store a row's new gradients, and write how they change: from the memory, and from what pulls x.

    ``numbers`` are z at x, those at the anchor, and room.
    """
    z, u, m, old, base = numbers
    for k in range(z.size):
        old[k] = gradients[i, k]
        base[k] = old[k]
    if do.past > 0.0:
        row_derivative(loss, u, y, m)
        for k in range(z.size):
            base[k] = (own * old[k] + do.past * w * m[k]) / (own + do.past)
    pulled_by = do.pull / visits_of(length, w, do.often, do.most) * (own + do.past)
    row_gradients(loss, z, u, y, w, do.step * pulled_by * length, base, m, do.bound)
    for k in range(z.size):
        # What is stored, perhaps rounded to float32, is what the sum gets: numba's float() would keep float32, and
        # round the difference as well.
        gradients[i, k] = m[k]
        deltas[at + U(k)] = np.float64(gradients[i, k]) - old[k]
        pulls[at + U(k)] = pulled_by * (np.float64(gradients[i, k]) - base[k])


@inlined
def proximal_point(penalty, x, direction, step):
    """Where a proximal gradient step takes one coefficient."""
    return prox(penalty, x - step * direction, step, shrink(penalty, step))


@inlined
def step_of_one(row, pulled, delta, p, x, gradient_sum, columns, do, penalty):
    """The step of a dense row that moves alone, for one output."""
    shifts, steps, shrinks, _ = columns
    for j in range(p):
        a, step, total = load(row, j) - load(shifts, j), load(steps, j), gradient_sum[j]
        store(x, j, prox(penalty, x[j] - step * (pulled * a + do.inverse_weight * total), step, load(shrinks, j)))
        store(gradient_sum, j, total + delta * a)
    x[p] -= do.intercept_step * (pulled + do.inverse_weight * gradient_sum[p])
    gradient_sum[p] += delta


@inlined
def step_of_four(rows, pulls, deltas, p, x, gradient_sum, columns, do, penalty):
    """The step of four dense rows together, for one output."""
    (row0, row1, row2, row3), (f0, f1, f2, f3), (d0, d1, d2, d3) = rows, pulls, deltas
    (shifts, steps, _, shrinks), share = columns, 4.0 * do.inverse_weight
    for j in range(p):
        shift, step, total = load(shifts, j), load(steps, j), gradient_sum[j]
        a0, a1, a2, a3 = load(row0, j) - shift, load(row1, j) - shift, load(row2, j) - shift, load(row3, j) - shift
        v = x[j] - step * ((f0 * a0 + f1 * a1) + (f2 * a2 + f3 * a3) + share * total)
        store(x, j, prox(penalty, v, 4.0 * step, load(shrinks, j)))
        store(gradient_sum, j, total + ((d0 * a0 + d1 * a1) + (d2 * a2 + d3 * a3)))
    x[p] -= do.intercept_step * ((f0 + f1) + (f2 + f3) + share * gradient_sum[p])
    gradient_sum[p] += (d0 + d1) + (d2 + d3)


@inlined
def add_four(rows, factors, p, out):
    """Add four rows times their factors, with 1 for the intercept's column, to ``out``."""
    (row0, row1, row2, row3), (f0, f1, f2, f3) = rows, factors
    for j in range(p):
        more = (f0 * load(row0, j) + f1 * load(row1, j)) + (f2 * load(row2, j) + f3 * load(row3, j))
        store(out, j, out[j] + more)
    out[p] += (f0 + f1) + (f2 + f3)


@inlined
def predicted(row, shifts, x, p):
    """The linear prediction of a dense row at one output's x."""
    z = x[p]
    for j in range(p):
        z += (row[j] - shifts[j]) * x[j]
    return z


@inlined
def predict_four(rows, shifts, x, p, z, k, outputs):
    """Write the k-th output's predictions of a group, that of row t to ``z[t * outputs + k]``."""
    (row0, row1, row2, row3), (z0, z1, z2, z3) = rows, (x[p], x[p], x[p], x[p])
    for j in range(p):
        shift, slope = shifts[j], x[j]
        z0 += (row0[j] - shift) * slope
        z1 += (row1[j] - shift) * slope
        z2 += (row2[j] - shift) * slope
        z3 += (row3[j] - shift) * slope
    z[k], z[outputs + k], z[2 * outputs + k], z[3 * outputs + k] = z0, z1, z2, z3


@strict_sum_order
def stored(row, columns, width, at, shifted, at_shift):
    """The same of what a sparse row stores, with x at some place of each column."""
    (data, indices, start, end), z0, z1, z2, z3 = row, 0.0, 0.0, 0.0, 0.0
    fours = start + (end - start) // U(4) * U(4)
    for r in range(start, fours, U(4)):
        z0 += found(data, indices, r, columns, width, at, shifted, at_shift)
        z1 += found(data, indices, r + U(1), columns, width, at, shifted, at_shift)
        z2 += found(data, indices, r + U(2), columns, width, at, shifted, at_shift)
        z3 += found(data, indices, r + U(3), columns, width, at, shifted, at_shift)
    for r in range(fours, end):
        z0 += found(data, indices, r, columns, width, at, shifted, at_shift)
    return (z0 + z1) + (z2 + z3)


@strict_sum_order
def found(data, indices, r, columns, width, at, shifted, at_shift):
    """One term of it."""
    c = U(indices[r]) * width
    return (data[r] - columns[c + at_shift] if shifted else data[r]) * columns[c + at]


@inlined
def four_rows(A, order, gathered, first):
    """The rows of a group."""
    i, j, q, r = first, first + U(1), first + U(2), first + U(3)
    if not gathered:
        i, j, q, r = U(order[i]), U(order[j]), U(order[q]), U(order[r])
    return A[i], A[j], A[q], A[r]


@inlined
def four(array, k, outputs):
    """The numbers of the k-th output of the rows of a group."""
    return array[k], array[outputs + k], array[2 * outputs + k], array[3 * outputs + k]
