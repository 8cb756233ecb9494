"""Functions through which compiled code calls the methods of a loss or a penalty.

numba compiles each of them for the type of its first argument and inlines it. A user's own loss therefore runs at the
speed of a built-in one.
"""

from __future__ import annotations

from numba import types
from numba.extending import register_jitable

from ..penalties import ElasticNet
from .jit import overloaded

__all__ = [
    "curvature",
    "gives_curvature",
    "prox",
    "prox_of_move",
    "row_curvatures",
    "row_derivative",
    "row_value_and_derivative",
    "shrink",
    "target",
]


# Penalties. ``prox`` receives the result of ``shrink(step)``, which a loop over rows computes beforehand. It then
# divides once per column and not once per entry.


def shrink(penalty, step):
    """Return the factor 1 / (1 + step l2) by which ElasticNet shrinks a coefficient, or 1 for other penalties."""
    return penalty.shrink(step) if isinstance(penalty, ElasticNet) else 1.0


def prox(penalty, v, step, shrink):
    """The penalty's proximal operator at one coefficient."""
    return penalty.prox(v, step, shrink) if isinstance(penalty, ElasticNet) else penalty.prox(v, step)


def prox_of_move(penalty, x, move, step):
    """The penalty's proximal operator at x - move, without a division.

    The caller has already multiplied `move` and `step` by ``shrink(step)`` = 1 / (1 + s l2). The factor of x follows
    from the shrunk step, since 1 / (1 + s l2) = 1 - l2 s / (1 + s l2).
    """
    return penalty.prox_of_move(x, move, step) if isinstance(penalty, ElasticNet) else penalty.prox(x - move, step)


@overloaded(shrink)
def _shrink(penalty, step):
    return ElasticNet.shrink if penalty.instance_class is ElasticNet else lambda penalty, step: 1.0


@overloaded(prox)
def _prox(penalty, v, step, shrink):
    if penalty.instance_class is ElasticNet:
        return ElasticNet.prox
    own = register_jitable(penalty.instance_class.prox)
    return lambda penalty, v, step, shrink: own(penalty, v, step)


@overloaded(prox_of_move)
def _prox_of_move(penalty, x, move, step):
    if penalty.instance_class is ElasticNet:
        return ElasticNet.prox_of_move
    own = register_jitable(penalty.instance_class.prox)
    return lambda penalty, x, move, step: own(penalty, x - move, step)


# Losses. They compare the k linear predictions z of a row with its targets y, which has k entries or one. A single
# target for several outputs is a class label: the outputs are one-vs-rest with targets -1 and 1.
#
# A complex target is y + i offset, where the offset is added to the prediction. So offsets pass through all code that
# only moves targets, and real targets cost nothing more.


def value(loss, z, y):
    """Return the loss at the prediction z."""
    return loss.value(z + y.imag, y.real)


def derivative(loss, z, y):
    """Return the derivative of the loss at the prediction z."""
    return loss.derivative(z + y.imag, y.real)


def curvature(loss, z, y, bound):
    """The second derivative if the loss defines ``curvature_at``, else the bound."""
    return loss.curvature_at(z + y.imag, y.real) if hasattr(loss, "curvature_at") else bound


def gives_curvature(loss):
    """Return whether the loss defines ``curvature_at``."""
    return hasattr(loss, "curvature_at")


def target(y, k, outputs):
    """Return the target of output k: y[k], or -1 or 1 if y is a single class label for several outputs."""
    if y.size == outputs:
        return y[k]
    return 1.0 if y[0] == k else -1.0


def row_derivative(loss, z, y, out):
    """Write the derivatives of the loss with respect to the k linear predictions of one row."""
    if hasattr(loss, "outputs"):
        loss.derivative(z, y[0], out)
    else:
        out[:] = [derivative(loss, z[k], target(y, k, z.size)) for k in range(z.size)]


def row_curvatures(loss, z, y, out):
    """Write the diagonal of the loss's Hessian in the k linear predictions of one row; return whether this is possible.

    A loss of several outputs needs ``second_derivatives(z, y, out)``. Any other loss needs ``second_derivative(z, y)``
    or ``curvature_at(z, y)``.
    """
    if hasattr(loss, "outputs"):
        if not hasattr(loss, "second_derivatives"):
            return False
        loss.second_derivatives(z, y[0], out)
        return True
    second = getattr(loss, "second_derivative", getattr(loss, "curvature_at", None))
    if second is not None:
        targets = [target(y, k, z.size) for k in range(z.size)]
        out[:] = [second(z[k] + one.imag, one.real) for k, one in enumerate(targets)]
    return second is not None


def row_value_and_derivative(loss, z, y, out):
    """Write the derivatives as ``row_derivative`` does; return the loss of the row, summed over its outputs.

    In one call, the value and the derivative can share an exponential.
    """
    row_derivative(loss, z, y, out)
    if hasattr(loss, "outputs"):
        return loss.value(z, y[0])
    return sum(value(loss, z[k], target(y, k, z.size)) for k in range(z.size))


def _with_offset(method, y):
    """Return a method of a loss for targets of the type y."""
    if not isinstance(y, types.Complex):
        return method
    own = register_jitable(method)
    return lambda loss, z, y: own(loss, z + y.imag, y.real)


@overloaded(value)
def _value(loss, z, y):
    return _with_offset(loss.instance_class.value, y)


@overloaded(derivative)
def _derivative(loss, z, y):
    return _with_offset(loss.instance_class.derivative, y)


@overloaded(curvature)
def _curvature(loss, z, y, bound):
    if hasattr(loss.instance_class, "curvature_at"):
        at = register_jitable(_with_offset(loss.instance_class.curvature_at, y))
        return lambda loss, z, y, bound: at(loss, z, y)
    return lambda loss, z, y, bound: bound


@overloaded(gives_curvature)
def _gives_curvature(loss):
    given = hasattr(loss.instance_class, "curvature_at")
    return lambda loss: given


@overloaded(target)
def _target(y, k, outputs):
    return target


@overloaded(row_derivative)
def _row_derivative(loss, z, y, out):
    if hasattr(loss.instance_class, "outputs"):
        write = register_jitable(loss.instance_class.derivative)
        return lambda loss, z, y, out: write(loss, z, y[0], out)

    def over_outputs(loss, z, y, out):
        for k in range(z.size):
            out[k] = derivative(loss, z[k], target(y, k, z.size))

    return over_outputs


@overloaded(row_curvatures)
def _row_curvatures(loss, z, y, out):
    kind = loss.instance_class
    if hasattr(kind, "outputs"):
        if not hasattr(kind, "second_derivatives"):
            return lambda loss, z, y, out: False
        write = register_jitable(kind.second_derivatives)

        def of_all(loss, z, y, out):
            write(loss, z, y[0], out)
            return True

        return of_all
    second = getattr(kind, "second_derivative", getattr(kind, "curvature_at", None))
    if second is None:
        return lambda loss, z, y, out: False
    at = register_jitable(_with_offset(second, y.dtype))

    def over_outputs(loss, z, y, out):
        for k in range(z.size):
            out[k] = at(loss, z[k], target(y, k, z.size))
        return True

    return over_outputs


@overloaded(row_value_and_derivative)
def _row_value_and_derivative(loss, z, y, out):
    if hasattr(loss.instance_class, "outputs"):
        write = register_jitable(loss.instance_class.derivative)

        def of_all(loss, z, y, out):
            write(loss, z, y[0], out)
            return value(loss, z, y[0])

        return of_all

    def over_outputs(loss, z, y, out):
        total = 0.0
        for k in range(z.size):
            out[k] = derivative(loss, z[k], target(y, k, z.size))
            total += value(loss, z[k], target(y, k, z.size))
        return total

    return over_outputs
