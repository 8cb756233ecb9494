"""The epoch loops, dense and sparse, and nothing else.

Shapes: ``x`` and ``gradient_sum`` hold p coefficients and, last, the intercept. They
are in the solver's coordinates, where a row is ``a_i - shift`` and column j takes
steps ``step * scale_j``. ``weights`` has one entry a row, or none for all ones.
``ratio`` is rows / weight, which makes a uniformly drawn row an unbiased sample of
the weighted mean. All else but ``gradients``, ``gradient`` and ``out`` is read only.

SAGA: Defazio, Bach, Lacoste-Julien 2014, equations 1 and 2. Sparse SAGA: Leblond,
Pedregosa, Lacoste-Julien 2017, section 2.2.
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

from . import losses, penalties
from .losses import FASTMATH, derivative, value
from .penalties import prox

__all__ = ["Kernels", "kernels_for"]


class Kernels(NamedTuple):
    """The compiled loops for one kind of caller."""

    dense_pass: Callable
    sparse_pass: Callable
    dense_gradient: Callable
    sparse_gradient: Callable
    proximal_step: Callable


def _build(sources: int, cache: bool) -> Kernels:
    def jit(function):
        try:
            return njit(nogil=True, fastmath=FASTMATH, cache=cache)(function)
        except RuntimeError:  # numba finds no directory that it may write its cache to
            return njit(nogil=True, fastmath=FASTMATH)(function)

    # numba's on-disk cache follows edits of this file only. Naming `sources`, which the
    # loops close over, makes an edited loss or penalty a cache miss as well.

    @jit
    def dense_pass(A, b, weights, order, x, gradient_sum, gradients, shift, scale, step, intercept_step,
                   ratio, inverse_weight, loss, penalty):  # fmt: skip
        sources  # noqa: B018
        p = A.shape[1]
        for i in order:
            z = x[p]
            for j in range(p):
                z += (A[i, j] - shift[j]) * x[j]
            w = weights[i] if weights.size else 1.0
            old = gradients[i]
            gradients[i] = w * derivative(loss, z, b[i])
            # What is stored, perhaps rounded to float32, is what the sum gets: numba's float() would
            # keep float32, and round the difference as well.
            delta = np.float64(gradients[i]) - np.float64(old)
            for j in range(p):
                a = A[i, j] - shift[j]
                s = step * scale[j]
                x[j] = prox(penalty, x[j] - s * (ratio * delta * a + inverse_weight * gradient_sum[j]), s)
                gradient_sum[j] += delta * a
            x[p] -= intercept_step * (ratio * delta + inverse_weight * gradient_sum[p])
            gradient_sum[p] += delta

    @jit
    def sparse_pass(data, indices, indptr, b, weights, order, x, gradient_sum, gradients, scale, rarity, step,
                    intercept_step, ratio, inverse_weight, loss, penalty):  # fmt: skip
        sources  # noqa: B018
        p = x.size - 1
        for i in order:
            z = x[p]
            for q in range(indptr[i], indptr[i + 1]):
                z += data[q] * x[indices[q]]
            w = weights[i] if weights.size else 1.0
            old = gradients[i]
            gradients[i] = w * derivative(loss, z, b[i])
            delta = np.float64(gradients[i]) - np.float64(old)
            for q in range(indptr[i], indptr[i + 1]):
                j, a = indices[q], data[q]
                s, D = step * scale[j], rarity[j]
                v = x[j] - s * (ratio * delta * a + D * inverse_weight * gradient_sum[j])
                x[j] = prox(penalty, v, s * D)
                gradient_sum[j] += delta * a
            x[p] -= intercept_step * (ratio * delta + inverse_weight * gradient_sum[p])
            gradient_sum[p] += delta

    @jit
    def dense_gradient(A, b, weights, x, gradient, loss):
        """Add sum_i w_i f'(z_i) a_i, with 1 for the intercept's column, to ``gradient``; return sum_i w_i f(z_i)."""
        sources  # noqa: B018
        p, total = A.shape[1], 0.0
        for i in range(A.shape[0]):
            z = x[p]
            for j in range(p):
                z += A[i, j] * x[j]
            w = weights[i] if weights.size else 1.0
            total += w * value(loss, z, b[i])
            m = w * derivative(loss, z, b[i])
            for j in range(p):
                gradient[j] += m * A[i, j]
            gradient[p] += m
        return total

    @jit
    def sparse_gradient(data, indices, indptr, b, weights, x, gradient, loss):
        """As ``dense_gradient``."""
        sources  # noqa: B018
        p, total = x.size - 1, 0.0
        for i in range(b.size):
            z = x[p]
            for q in range(indptr[i], indptr[i + 1]):
                z += data[q] * x[indices[q]]
            w = weights[i] if weights.size else 1.0
            total += w * value(loss, z, b[i])
            m = w * derivative(loss, z, b[i])
            for q in range(indptr[i], indptr[i + 1]):
                gradient[indices[q]] += m * data[q]
            gradient[p] += m
        return total

    @jit
    def proximal_step(x, direction, steps, penalty, out):
        """Write prox(x - steps * direction) to ``out``."""
        sources  # noqa: B018
        for j in range(x.size):
            out[j] = prox(penalty, x[j] - steps[j] * direction[j], steps[j])

    return Kernels(dense_pass, sparse_pass, dense_gradient, sparse_gradient, proximal_step)


def _digest(*modules) -> int:
    text = b"".join(Path(module.__file__).read_bytes() for module in modules)
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")


with warnings.catch_warnings():
    warnings.simplefilter("ignore", NumbaWarning)
    _BUILT_IN = _build(_digest(losses, penalties), cache=True)


def kernels_for(loss: Any, penalty: Any) -> Kernels:
    """The kernels with an on-disk cache for built-in types, those without for a user's own."""
    built_in = all(type(part).__module__.startswith("dask_saga.") for part in (loss, penalty))
    return _BUILT_IN if built_in else _foreign(type(loss), type(penalty))


@functools.lru_cache(maxsize=32)
def _foreign(loss: type, penalty: type) -> Kernels:
    # Not in the on-disk index: it would be broken for everyone who lacks the class. And built
    # for these very classes: numba takes another class of the same name and fields for the same.
    return _build(0, cache=False)
