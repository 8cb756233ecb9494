"""The kernels that evaluate the loss over the rows of a chunk: SAGA epochs, full gradients and line searches.

The module also has the proximal steps and the coordinate descent, which depend on the penalty.

**Arrays.** ``x`` and ``gradient_sum`` are (k, p + 1) for k outputs, the intercept last. They are in the solver's
coordinates, where a row is ``a_i - shift`` and column j takes steps ``step * scale_j``. ``gradients`` is (n, k), ``b``
is (n, 1) or (n, k). ``weights`` has one entry per row, or is empty if all weights are 1. ``lengths`` has the squared
norm of each row, or is empty. ``scratch`` is the scratch space of one row, and ``params`` is a ``Pass``. ``middle``
receives x at visit number ``half_visit``. For sparse rows, x and gradient_sum are in a ``table`` of the columns and in
``ends`` (column_table.py).

**Without replacement.** Rows of an epoch are visited in a random order and not drawn independently. The step therefore
weights two changes of a row's gradient. The change from its memory estimates the change of the rows still to come,
whose share of all rows is ``left - t * less`` at visit t. The change from the gradient at ``anchor`` estimates the
change of the rows in chunks visited before, whose share is ``past``. Rows just visited need no term, because their
gradients are recent (docs/algorithm/without_replacement.md).

**Derivatives.** With ``lengths``, derivatives are implicit. They are taken near the prediction u after the step and not
at the prediction z before it: u = z - h (f'(u) - m) with h = step * change_scale * length, as in Point-SAGA (Defazio
2016, section 2). No row can then overshoot, and at the optimum u = z. Without ``lengths``, the steps are those of SAGA
(Defazio, Bach, Lacoste-Julien 2014, equations 1 and 2). The sparse loop is Sparse SAGA (Leblond, Pedregosa,
Lacoste-Julien 2017, section 2.2). There, ``shift`` is nonzero only for columns that every row stores.

**Indices.** Row and entry numbers are unsigned, because numba checks a signed index for a negative value.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from .. import losses, penalties
from ..losses import Loss
from ..penalties import Penalty
from . import dispatch, intrinsics, jit, row_order, row_update
from .dispatch import prox, prox_of_move, row_curvatures, row_derivative, row_value_and_derivative, shrink
from .intrinsics import (
    AHEAD,
    CACHE_LINE,
    DOUBLES,
    GROUP,
    NEAR_BYTES,
    array_of,
    borrowed,
    numbers_of,
    on_lines,
    outputs_of,
    prefetch,
    whole_lines,
)
from .jit import compiled
from .row_update import (
    add_four,
    ask,
    four,
    four_rows,
    predict_four,
    predicted,
    proximal_point,
    renew,
    step_of_four,
    step_of_one,
    stored,
)

__all__ = ["Kernels", "Pass", "kernels_for"]


# Most bytes of rows that are prefetched at a time. More rows would evict each other from the cache.
AHEAD_BYTES = 2**15

# Half the width of the central difference of derivatives. It is multiplied by the prediction where that exceeds 1.
DIFFERENCE = 1e-4

U = np.uint64


class Pass(NamedTuple):
    """Parameters of an epoch that are the same for all rows.

    Parameters
    ----------
    step, intercept_step : float
        Step sizes, in units of x per unit of mean gradient. `intercept_step` is 0 if no intercept is fitted.
    inverse_weight : float
        1 / W, where W is the total weight of all rows.
    left, less, past : float
        Shares of all rows: still to come at the first visit, taken off by each visit, and in chunks visited before. See
        the module docstring.
    change_scale, length_threshold, max_visits : float
        Weighting of a row's gradient change. The change is multiplied by `change_scale` and divided by the number of
        visits of the row, which `length_threshold` and `max_visits` determine (``visits_of``). The visits are then an
        unbiased sample of the mean.
    bound : float
        Upper bound of the second derivative of the loss, or 0 if the loss has none.
    group_size : int
        Number of rows that take their derivatives at the same x, at most GROUP. They make one step from the sum of
        their steps.
    half_visit : int
        Number of the visit at which x is copied to ``middle``, or -1.
    """

    step: float
    intercept_step: float
    inverse_weight: float
    left: float
    less: float
    past: float
    change_scale: float
    length_threshold: float
    max_visits: float
    bound: float
    group_size: int
    half_visit: int


class Kernels(NamedTuple):
    """The compiled loops for one pair of loss and penalty types, or for all built-in ones."""

    dense_pass: Callable
    sparse_pass: Callable
    dense_gradient: Callable
    sparse_gradient: Callable
    proximal_step: Callable
    squared_mapping: Callable
    derivatives: Callable
    row_values: Callable
    values_on_line: Callable
    coordinate_descent: Callable
    path_slopes: Callable


def _build(sources: int, cache: bool) -> Kernels:
    kernel = functools.partial(compiled, cache=cache)
    # numba invalidates its on-disk cache only when this file is edited. The loops close over `sources`, a digest of the
    # other modules, so that an edited loss or penalty is a cache miss as well.

    @kernel(writes="x middle gradient_sum gradients scratch")
    def dense_pass(A, gathered, b, weights, order, lengths, x, middle, anchor, gradient_sum, gradients, shift, scale,
                   params, scratch, loss, penalty):  # fmt: skip
        """Run an epoch over dense rows; update x, middle, gradient_sum and gradients in place.

        If ``gathered`` is True, A holds the rows in the order of their visits.
        """
        sources  # noqa: B018
        A, b, weights, order, lengths = borrowed(A), borrowed(b), borrowed(weights), borrowed(order), borrowed(lengths)
        anchor, gradients, p, outputs = borrowed(anchor), borrowed(gradients), A.shape[1], outputs_of(scratch)
        numbers, deltas, factors = numbers_of(scratch), array_of(scratch, 5), array_of(scratch, 6)
        z, u, zs, us = numbers[0], numbers[1], array_of(scratch, 7), array_of(scratch, 8)
        width = whole_lines(p + 1)
        owner = np.empty((2 * outputs + 4) * width + DOUBLES)
        table = on_lines(owner)[: (2 * outputs + 4) * width].reshape(2 * outputs + 4, width)
        columns = shifts, steps, alone, grouped = table[0], table[1], table[2], table[3]
        xs, sums = table[4 : 4 + outputs], table[4 + outputs :]
        for j in range(p):
            shifts[j], steps[j] = shift[j], params.step * scale[j]
            alone[j], grouped[j] = shrink(penalty, steps[j]), shrink(penalty, GROUP * steps[j])
        for k in range(outputs):
            xs[k, : p + 1], sums[k, : p + 1] = x[k], gradient_sum[k]

        entries, targets, memory, wide = A.reshape(-1), b.reshape(-1), gradients.reshape(-1), U(p)
        ahead, line = U(min(AHEAD, 2 + AHEAD_BYTES // (p * A.itemsize))), U(CACHE_LINE // A.itemsize)
        third = U(max(1, (p * A.itemsize // CACHE_LINE + 2) // 3)) * line
        visits, group_size, halfway = U(order.size), U(params.group_size), U(params.half_visit)
        for first in range(U(0), visits, group_size):
            last = min(first + group_size, visits)
            if first <= halfway < last:
                for k in range(outputs):
                    middle[k] = xs[k, : p + 1]
            for t in range(first, last):
                if t + ahead < visits:
                    q = U(order[t + ahead])
                    if not gathered:
                        prefetch(entries, q * wide + wide - U(1))
                        ask(entries, q * wide, q * wide + min(wide, third), line)
                    prefetch(lengths, q)
                    prefetch(targets, q * U(b.shape[1]))
                    prefetch(memory, q * U(outputs))
            if last - first == U(GROUP):
                rows = four_rows(A, order, gathered, first)
                for k in range(outputs):
                    predict_four(rows, shifts, xs[k], p, zs, k, outputs)
                    if params.past > 0.0:
                        predict_four(rows, shifts, anchor[k], p, us, k, outputs)
            else:
                for t in range(first, last):
                    row, at = A[t] if gathered else A[U(order[t])], (t - first) * U(outputs)
                    for k in range(outputs):
                        zs[at + U(k)] = predicted(row, shifts, xs[k], p)
                        if params.past > 0.0:
                            us[at + U(k)] = predicted(row, shifts, anchor[k], p)
            for t in range(first, last):
                i, coming, end = U(order[t]), U(0), U(0)
                if t + ahead < visits and not gathered:
                    coming = U(order[t + ahead]) * wide
                    end = coming + wide
                ask(entries, coming + third, min(end, coming + third + third), line)
                w, length = weights[i] if weights.size else 1.0, lengths[i] if lengths.size else 0.0
                own, at = params.left - t * params.less, (t - first) * U(outputs)
                for k in range(outputs):
                    z[k], u[k] = zs[at + U(k)], us[at + U(k)]
                renew(loss, numbers, gradients, i, b[i], w, length, own, params, at, deltas, factors)
                ask(entries, coming + third + third, end, line)
            if last - first == U(GROUP):
                rows = four_rows(A, order, gathered, first)
                for k in range(outputs):
                    factor, delta = four(factors, k, outputs), four(deltas, k, outputs)
                    step_of_four(rows, factor, delta, p, xs[k], sums[k], columns, params, penalty)
            else:
                for t in range(first, last):
                    row, at = A[t] if gathered else A[U(order[t])], (t - first) * U(outputs)
                    for k in range(outputs):
                        factor, delta = factors[at + U(k)], deltas[at + U(k)]
                        step_of_one(row, factor, delta, p, xs[k], sums[k], columns, params, penalty)
        for k in range(outputs):
            x[k], gradient_sum[k] = xs[k, : p + 1], sums[k, : p + 1]
        owner[0] = 0.0  # keeps the owner alive until here, since `table` only borrows its memory

    @kernel(writes="gradients table ends scratch")
    def sparse_pass(data, indices, indptr, b, weights, order, lengths, gradients, table, shifted, ends, params, scratch,
                    loss, penalty):  # fmt: skip
        """Run an epoch over CSR rows; update table, ends and gradients in place. Each row steps on its support only."""
        sources  # noqa: B018
        data, indices, indptr, b = borrowed(data), borrowed(indices), borrowed(indptr), borrowed(b)
        weights, order, lengths, gradients = borrowed(weights), borrowed(order), borrowed(lengths), borrowed(gradients)
        outputs, visits, ends = outputs_of(scratch), U(order.size), borrowed(ends)
        numbers, deltas, factors = numbers_of(scratch), array_of(scratch, 5), array_of(scratch, 6)
        z, u, x, sums, anchor = numbers[0], numbers[1], ends[0], ends[1], ends[2]
        at_sum, at_step, at_rare, at_shift = U(outputs), U(2 * outputs), U(2 * outputs + 1), U(2 * outputs + 2)
        at_anchor, columns, near = U(2 * outputs + 3), borrowed(table).reshape(-1), table.nbytes <= NEAR_BYTES
        targets, memory, width = b.reshape(-1), gradients.reshape(-1), U(table.shape[1])
        for t in range(visits):
            if t + U(3 * AHEAD) < visits:
                prefetch(indptr, U(order[t + U(3 * AHEAD)]))
            if t + U(2 * AHEAD) < visits:
                q = U(order[t + U(2 * AHEAD)])
                prefetch(lengths, q)
                prefetch(targets, q * U(b.shape[1]))
                prefetch(memory, q * U(outputs))
                ask(data, U(indptr[q]), U(indptr[q + U(1)]), U(DOUBLES))
                ask(indices, U(indptr[q]), U(indptr[q + U(1)]), U(DOUBLES))
            coming, last = U(0), U(0)  # entries whose columns are prefetched one by one, while this row's columns move
            if t + U(AHEAD) < visits and not near:
                q = U(order[t + U(AHEAD)])
                coming, last = U(indptr[q]), U(indptr[q + U(1)])
            i = U(order[t])
            w, length = weights[i] if weights.size else 1.0, lengths[i] if lengths.size else 0.0
            start, end = U(indptr[i]), U(indptr[i + U(1)])
            row = data, indices, start, end
            for k in range(U(outputs)):
                z[k] = x[k] + stored(row, columns, width, k, shifted, at_shift)
                if params.past > 0.0:
                    u[k] = anchor[k] + stored(row, columns, width, at_anchor + k, shifted, at_shift)
            own = params.left - t * params.less
            renew(loss, numbers, gradients, i, b[i], w, length, own, params, U(0), deltas, factors)
            for k in range(U(outputs)):
                factor, delta = factors[k], deltas[k]
                for r in range(start, end):
                    if coming < last:
                        prefetch(columns, U(indices[coming]) * width)
                        coming += U(1)
                    c = U(indices[r]) * width
                    a, total = data[r] - columns[c + at_shift] if shifted else data[r], columns[c + at_sum + k]
                    step, rare = columns[c + at_step], columns[c + at_rare]
                    move = step * factor * a + rare * params.inverse_weight * total
                    columns[c + k] = prox_of_move(penalty, columns[c + k], move, rare)
                    columns[c + at_sum + k] = total + delta * a
                x[k] -= params.intercept_step * (factor + params.inverse_weight * sums[k])
                sums[k] += delta
            for r in range(coming, last):
                prefetch(columns, U(indices[r]) * width)

    @kernel(writes="gradient gradients scratch")
    def dense_gradient(A, b, weights, x, gradient, gradients, total, scratch, loss):
        """Add sum_i w_i f'(z_i) a_i to ``gradient``; return ``total`` plus the sum of w_i f(z_i).

        The intercept's column of a_i is 1. Unless it is empty, ``gradients`` gets the factors w_i f'(z_i). The sum then
        uses the factors as stored there, which may be rounded to float32.
        """
        sources  # noqa: B018
        A, b, weights, x, gradient = borrowed(A), borrowed(b), borrowed(weights), borrowed(x), borrowed(gradient)
        p, outputs, n = A.shape[1], outputs_of(scratch), U(A.shape[0])
        z, m, factors = array_of(scratch, 0)[:outputs], array_of(scratch, 1)[:outputs], array_of(scratch, 2)
        for first in range(U(0), n, U(GROUP)):
            last = min(first + U(GROUP), n)
            for i in range(first, last):
                row, w, at = A[i], weights[i] if weights.size else 1.0, (i - first) * U(outputs)
                for k in range(outputs):
                    xk, zk = x[k], x[k, p]
                    for j in range(p):
                        zk += row[j] * xk[j]
                    z[k] = zk
                total += w * row_value_and_derivative(loss, z, b[i], m)
                for k in range(outputs):
                    factors[at + U(k)] = w * m[k]
                    if gradients.size:
                        gradients[i, k] = w * m[k]
                        factors[at + U(k)] = np.float64(gradients[i, k])
            i = first
            for k in range(outputs):
                if last - first == U(GROUP):
                    add_four((A[i], A[i + U(1)], A[i + U(2)], A[i + U(3)]), four(factors, k, outputs), p, gradient[k])
                else:
                    for i in range(first, last):
                        factor = factors[(i - first) * U(outputs) + U(k)]
                        for j in range(p):
                            gradient[k, j] += factor * A[i, j]
                        gradient[k, p] += factor
        return total

    @kernel(writes="gradient gradients scratch")
    def sparse_gradient(data, indices, indptr, b, weights, x, gradient, gradients, total, scratch, loss):
        """Same as ``dense_gradient``, for CSR rows."""
        sources  # noqa: B018
        data, indices, b, weights = borrowed(data), borrowed(indices), borrowed(b), borrowed(weights)
        x, gradient = borrowed(x), borrowed(gradient)
        p, outputs = x.shape[1] - 1, outputs_of(scratch)
        z, m = array_of(scratch, 0)[:outputs], array_of(scratch, 1)[:outputs]
        for i in range(U(indptr.size - 1)):
            w, start, end = weights[i] if weights.size else 1.0, U(indptr[i]), U(indptr[i + U(1)])
            for k in range(outputs):
                z[k] = x[k, p] + stored((data, indices, start, end), x[k], U(1), U(0), False, U(0))
            total += w * row_value_and_derivative(loss, z, b[i], m)
            for k in range(outputs):
                factor = w * m[k]
                if gradients.size:
                    gradients[i, k] = factor
                    factor = np.float64(gradients[i, k])
                for r in range(start, end):
                    gradient[k, U(indices[r])] += factor * data[r]
                gradient[k, p] += factor
        return total

    @kernel(writes="out")
    def proximal_step(x, direction, scale, step, penalty, out):
        """Write the proximal gradient step prox(x - step * scale * direction) to ``out``."""
        sources  # noqa: B018
        for j in range(x.size):
            out[j] = proximal_point(penalty, x[j], direction[j], step * scale[j])

    @kernel()
    def squared_mapping(x, direction, scale, step, penalty):
        """Return sum_j move_j^2 / scale_j, where move is that of ``proximal_step``, without storing the step."""
        sources  # noqa: B018
        total = 0.0
        for j in range(x.size):
            move = proximal_point(penalty, x[j], direction[j], step * scale[j]) - x[j]
            total += move * move / scale[j]
        return total

    @kernel(writes="slopes curvatures scratch")
    def derivatives(z, b, weights, slopes, curvatures, scratch, loss):
        """Write the weighted first and second derivatives of each row's loss at the predictions z, of shape (n, k).

        If the loss defines no second derivative, it is the central difference of the first.
        """
        sources  # noqa: B018
        outputs = outputs_of(scratch)
        u, m, c = array_of(scratch, 0)[:outputs], array_of(scratch, 1)[:outputs], array_of(scratch, 2)[:outputs]
        for i in range(z.shape[0]):
            w = weights[i] if weights.size else 1.0
            for k in range(outputs):
                u[k] = z[i, k]
            row_derivative(loss, u, b[i], m)
            for k in range(outputs):
                slopes[i, k] = w * m[k]
            if not row_curvatures(loss, u, b[i], c):
                for k in range(outputs):
                    width = DIFFERENCE * max(1.0, abs(z[i, k]))
                    u[k] = z[i, k] + width
                    row_derivative(loss, u, b[i], m)
                    above = m[k]
                    u[k] = z[i, k] - width
                    row_derivative(loss, u, b[i], m)
                    u[k] = z[i, k]
                    c[k] = max(above - m[k], 0.0) / (2.0 * width)
            for k in range(outputs):
                curvatures[i, k] = w * c[k]

    @kernel(writes="values scratch")
    def row_values(z, b, weights, values, scratch, loss):
        """Write the weighted loss of each row at its predictions z, of shape (n, k)."""
        sources  # noqa: B018
        outputs = outputs_of(scratch)
        u, m = array_of(scratch, 0)[:outputs], array_of(scratch, 1)[:outputs]
        for i in range(z.shape[0]):
            for k in range(outputs):
                u[k] = z[i, k]
            w = weights[i] if weights.size else 1.0
            values[i] = w * row_value_and_derivative(loss, u, b[i], m) if w > 0.0 else 0.0

    @kernel(writes="values scratch")
    def values_on_line(z, dz, b, weights, steps, values, scratch, loss):
        """Evaluate the loss along a line: for each step, add the sum of w_i f(z_i + step dz_i) to ``values``."""
        sources  # noqa: B018
        outputs = outputs_of(scratch)
        u, m = array_of(scratch, 0)[:outputs], array_of(scratch, 1)[:outputs]
        for i in range(z.shape[0]):
            w = weights[i] if weights.size else 1.0
            if w > 0.0:
                for t in range(steps.size):
                    for k in range(outputs):
                        u[k] = z[i, k] + steps[t] * dz[i, k]
                    values[t] += w * row_value_and_derivative(loss, u, b[i], m)

    @kernel(writes="slope move")
    def coordinate_descent(hessian, slope, x, move, penalty, sweeps, tol):
        """Minimise slope'd + d'H d / 2 + penalty(x + d) over d = ``move``, by cyclic coordinate descent.

        ``slope`` is updated to the gradient of the quadratic at d. The loop ends after a sweep in which h_j times the
        squared change of each coordinate is at most ``tol``. Returns the number of sweeps.
        """
        sources  # noqa: B018
        for sweep in range(sweeps):
            largest = 0.0
            for j in range(x.size):
                h = hessian[j, j]
                if h > 0.0:
                    step, before = 1.0 / h, move[j]
                    wanted = x[j] + before - step * slope[j]
                    move[j] = prox(penalty, wanted, step, shrink(penalty, step)) - x[j]
                    change = move[j] - before
                    if change != 0.0:
                        largest = max(largest, h * change * change)
                        for i in range(x.size):
                            slope[i] += hessian[j, i] * change
                elif h == 0.0 and prox(penalty, -slope[j], 1.0, shrink(penalty, 1.0)) == 0.0:
                    move[j] = -x[j]
            if largest <= tol:
                return sweep + 1
        return sweeps

    @kernel(writes="z held_out scratch")
    def path_slopes(z, b, weights, folds, fold_of_model, held_out, scratch, loss):
        """Replace the predictions of many models by the weighted derivatives of their losses, in place.

        ``z`` is (n, models * k), with the k outputs of a model side by side. Where a row is of the fold that a model
        leaves out, the derivative is zero, and the weighted loss is added to the model's entry of ``held_out``.
        """
        sources  # noqa: B018
        outputs = outputs_of(scratch)
        u, m = array_of(scratch, 0)[:outputs], array_of(scratch, 1)[:outputs]
        for i in range(z.shape[0]):
            w, fold = weights[i] if weights.size else 1.0, folds[i] if folds.size else -1
            for model in range(held_out.size):
                at, is_held_out = model * outputs, fold >= 0 and fold == fold_of_model[model]
                for k in range(outputs):
                    u[k] = z[i, at + k]
                    z[i, at + k] = 0.0
                if is_held_out and w > 0.0:
                    held_out[model] += w * row_value_and_derivative(loss, u, b[i], m)
                elif w > 0.0 and not is_held_out:
                    row_derivative(loss, u, b[i], m)
                    for k in range(outputs):
                        z[i, at + k] = w * m[k]

    return Kernels(
        dense_pass,
        sparse_pass,
        dense_gradient,
        sparse_gradient,
        proximal_step,
        squared_mapping,
        derivatives,
        row_values,
        values_on_line,
        coordinate_descent,
        path_slopes,
    )


def _digest(*modules: ModuleType) -> int:
    text = b"".join(Path(str(module.__file__)).read_bytes() for module in modules)
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")


_BUILT_IN = _build(_digest(dispatch, intrinsics, jit, losses, penalties, row_order, row_update), cache=True)


def kernels_for(loss: Loss, penalty: Penalty) -> Kernels:
    """Return the kernels for a loss and a penalty. Those of built-in types have an on-disk cache; others have none."""
    return _kernels_of(type(loss), type(penalty))


@functools.lru_cache(maxsize=64)
def _kernels_of(*kinds: type) -> Kernels:
    if all(kind.__module__.startswith("dask_saga.") for kind in kinds):
        return _BUILT_IN
    # These kernels are not cached on disk, since a process that lacks the class could not read the index. They are
    # built anew for each pair of classes, since numba does not distinguish classes with the same name and fields.
    return _build(0, cache=False)
