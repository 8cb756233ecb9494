"""Slow, plain versions of what the package does fast, and references for its optima."""

import numpy as np
import scipy.sparse as sp
from scipy.optimize import minimize


def post_pass(A, b, n, loss, x, memory_gradient, gradient_average, step_size, order):
    """The post's ``_chunk_saga`` with the row order given."""
    x, memory_gradient, gradient_average = x.copy(), memory_gradient.copy(), gradient_average.copy()
    for i in order:
        grad_i = loss.derivative(np.dot(x, A[i]), b[i])
        delta = (grad_i - memory_gradient[i]) * A[i]
        x -= step_size * (delta + gradient_average)
        gradient_average += (grad_i - memory_gradient[i]) * A[i] / n
        memory_gradient[i] = grad_i
    return x, memory_gradient, gradient_average


def saga_pass(A, b, weights, order, x, gradient_sum, memory, metric, step, rows, weight, loss, penalty, intercept):
    """One pass in the solver's coordinates, row by row; sparse SAGA where A is sparse. Returns new arrays."""
    x, gradient_sum, memory = x.copy(), gradient_sum.copy(), memory.copy()
    for i in order:
        if sp.issparse(A):
            row = A[[i]].toarray().ravel().astype(float)
            support = np.flatnonzero(np.isin(np.arange(len(row)), A[[i]].indices))
            rarity = metric.rarity
        else:
            row = A[i].astype(float) - metric.shift
            support, rarity = np.arange(len(row)), np.ones(len(row))
        z = row @ x[:-1] + x[-1]
        old, memory[i] = float(memory[i]), weights[i] * loss.derivative(z, b[i])
        delta = float(memory[i]) - old
        for j in support:
            s = step * metric.scale[j]
            v = x[j] - s * (rows / weight * delta * row[j] + rarity[j] * gradient_sum[j] / weight)
            x[j] = penalty.prox(v, s * rarity[j])
            gradient_sum[j] += delta * row[j]
        if intercept:
            x[-1] -= step * (rows / weight * delta + gradient_sum[-1] / weight)
        gradient_sum[-1] += delta
    return x, gradient_sum, memory


def objective(A, b, x, intercept, loss, penalty, weights=None):
    """F of design section 1, in plain Python and float64."""
    z = A @ x + intercept
    weights = np.ones(len(b)) if weights is None else np.asarray(weights, float)
    mean = sum(w * loss.value(float(u), float(v)) for w, u, v in zip(weights, z, b, strict=True)) / weights.sum()
    return mean + np.sum(penalty.value(x))


def smooth_optimum(A, b, loss, penalty, fit_intercept, weights=None):
    """Optimum by SciPy for a smooth penalty: x with the intercept last."""
    A = A.toarray() if sp.issparse(A) else np.asarray(A, float)
    weights = np.ones(len(b)) if weights is None else np.asarray(weights, float)
    A1 = np.c_[A, np.full(len(b), float(fit_intercept))]

    def value_and_gradient(x):
        z = A1 @ x
        values = np.array([loss.value(u, v) for u, v in zip(z, b, strict=True)])
        slopes = np.array([loss.derivative(u, v) for u, v in zip(z, b, strict=True)])
        smooth = weights @ values / weights.sum() + np.sum(penalty.value(x[:-1]))
        return smooth, A1.T @ (weights * slopes) / weights.sum() + np.append(penalty.l2 * x[:-1], 0.0)

    start = np.zeros(A1.shape[1])
    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-18, "gtol": 1e-11, "maxcor": 30}
    return minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=options).x


def gradient_sum_of(chunks, state):
    """sum_i m_i a_i recomputed from the memory; chunks maps id to rows. The intercept's last."""
    total = 0.0
    for key, memory in state.chunks.items():
        A = chunks[key]
        A = A.toarray() if sp.issparse(A) else np.asarray(A)
        total = total + memory.gradients[:, 0].astype(float) @ np.c_[A, np.ones(len(A))]
    return total
