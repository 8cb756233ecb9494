"""Building blocks of the epoch loops, for one row or a group of four: predictions, derivatives and the step.

Arrays are those of ``epoch.py``, and ``params`` is its ``Pass``. ``numbers`` are five scratch arrays with one entry per
output.
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


# Longest step, in units of the inverse of a row's curvature bound, for which f' is taken from its tangent.
LINEAR = 4.0

U = np.uint64


# These functions are inlined. They are global, because a loop that closes over one would never hit its on-disk cache.


@inlined
def ask(array, first, last, line):
    """Prefetch the entries from `first` to `last`, of which `line` fill a cache line.

    The callers prefetch a long row in parts, because a core stalls when it waits for too many lines at once.
    """
    while first < last:  # a range with a variable step would need a division
        prefetch(array, first)
        first += line


@inlined
def row_gradients(loss, z, u, y, w, h, old, m, bound):
    """Write the implicit derivatives w f'(u) to ``m``, where u solves u = z - h (w f'(u) - old).

    The method depends on h w c, where c is the bound of f'', and 0 stands for no bound:

    - h = 0, or h w c below 0.05: the explicit derivative, with u = z.
    - h w c below LINEAR, for a loss with ``curvature_at``: f' is taken from its tangent at z, which saves an
      exponential.
    - Otherwise: 1 to 11 Newton steps with the curvature c.
    - No bound: up to 30 Newton steps with the curvature at u, each at most 1 long.
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
    if unbounded:  # if the loop has not converged, use the gradient that moves z exactly to u
        for k in range(z.size):
            m[k] = old[k] + (z[k] - u[k]) / h


@inlined
def renew(loss, numbers, gradients, i, y, w, length, own, params, at, deltas, factors):
    """Compute a row's new gradients m and store them in the gradient memory.

    ``deltas`` gets the change of gradient_sum, m - old. ``factors`` gets the weighted change that moves x. With the
    shares own and past, and the factor f of a visit, it is f (own (m - old) + past (m - w f'(u))), where u are the
    predictions at the anchor. The first two of ``numbers`` are the predictions at x and at the anchor; the others are
    scratch.
    """
    z, u, m, old, base = numbers
    for k in range(z.size):
        old[k] = gradients[i, k]
        base[k] = old[k]
    if params.past > 0.0:
        row_derivative(loss, u, y, m)
        for k in range(z.size):
            base[k] = (own * old[k] + params.past * w * m[k]) / (own + params.past)
    visits = visits_of(length, w, params.length_threshold, params.max_visits)
    change_scale = params.change_scale / visits * (own + params.past)
    row_gradients(loss, z, u, y, w, params.step * change_scale * length, base, m, params.bound)
    for k in range(z.size):
        # gradient_sum must get the change of the stored value, which may be rounded to float32. np.float64 makes the
        # difference exact: numba's float() would keep float32 and round the difference as well.
        gradients[i, k] = m[k]
        deltas[at + U(k)] = np.float64(gradients[i, k]) - old[k]
        factors[at + U(k)] = change_scale * (np.float64(gradients[i, k]) - base[k])


@inlined
def proximal_point(penalty, x, direction, step):
    """Return prox(x - step * direction) for one coefficient."""
    return prox(penalty, x - step * direction, step, shrink(penalty, step))


@inlined
def step_of_one(row, factor, delta, p, x, gradient_sum, columns, params, penalty):
    """Take the SAGA step of one dense row, for one output; update x and gradient_sum in place."""
    shifts, steps, shrinks, _ = columns
    for j in range(p):
        a, step, total = load(row, j) - load(shifts, j), load(steps, j), gradient_sum[j]
        store(x, j, prox(penalty, x[j] - step * (factor * a + params.inverse_weight * total), step, load(shrinks, j)))
        store(gradient_sum, j, total + delta * a)
    x[p] -= params.intercept_step * (factor + params.inverse_weight * gradient_sum[p])
    gradient_sum[p] += delta


@inlined
def step_of_four(rows, factors, deltas, p, x, gradient_sum, columns, params, penalty):
    """Take one SAGA step from the sum of the steps of four dense rows, for one output.

    Each coefficient is then loaded and stored once for four rows.
    """
    (row0, row1, row2, row3), (f0, f1, f2, f3), (d0, d1, d2, d3) = rows, factors, deltas
    (shifts, steps, _, shrinks), share = columns, 4.0 * params.inverse_weight
    for j in range(p):
        shift, step, total = load(shifts, j), load(steps, j), gradient_sum[j]
        a0, a1, a2, a3 = load(row0, j) - shift, load(row1, j) - shift, load(row2, j) - shift, load(row3, j) - shift
        v = x[j] - step * ((f0 * a0 + f1 * a1) + (f2 * a2 + f3 * a3) + share * total)
        store(x, j, prox(penalty, v, 4.0 * step, load(shrinks, j)))
        store(gradient_sum, j, total + ((d0 * a0 + d1 * a1) + (d2 * a2 + d3 * a3)))
    x[p] -= params.intercept_step * ((f0 + f1) + (f2 + f3) + share * gradient_sum[p])
    gradient_sum[p] += (d0 + d1) + (d2 + d3)


@inlined
def add_four(rows, factors, p, out):
    """Add the sum of four rows times their factors to ``out``. The intercept's column of a row is 1."""
    (row0, row1, row2, row3), (f0, f1, f2, f3) = rows, factors
    for j in range(p):
        more = (f0 * load(row0, j) + f1 * load(row1, j)) + (f2 * load(row2, j) + f3 * load(row3, j))
        store(out, j, out[j] + more)
    out[p] += (f0 + f1) + (f2 + f3)


@inlined
def predicted(row, shifts, x, p):
    """Return the linear prediction of a dense row at the x of one output."""
    z = x[p]
    for j in range(p):
        z += (row[j] - shifts[j]) * x[j]
    return z


@inlined
def predict_four(rows, shifts, x, p, z, k, outputs):
    """Write the predictions of four rows for output k. That of row t goes to ``z[t * outputs + k]``."""
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
    """Return the linear prediction of a sparse row, without the intercept.

    ``row`` is (data, indices, start, end). The coefficient of column j is ``columns[j * width + at]``. If ``shifted``,
    its shift is ``columns[j * width + at_shift]``. Four partial sums shorten the chain of dependent additions.
    """
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
    """Return the term of the stored entry r in that prediction."""
    c = U(indices[r]) * width
    return (data[r] - columns[c + at_shift] if shifted else data[r]) * columns[c + at]


@inlined
def four_rows(A, order, gathered, first):
    """Return the four rows of the group that begins with visit `first`."""
    i, j, q, r = first, first + U(1), first + U(2), first + U(3)
    if not gathered:
        i, j, q, r = U(order[i]), U(order[j]), U(order[q]), U(order[r])
    return A[i], A[j], A[q], A[r]


@inlined
def four(array, k, outputs):
    """Return the entries of output k for the four rows of a group."""
    return array[k], array[outputs + k], array[2 * outputs + k], array[3 * outputs + k]
