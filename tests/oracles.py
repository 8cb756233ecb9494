"""Slow, plain versions of what the package does fast, and references for its optima."""

import numpy as np
import scipy.sparse as sp
from scipy.optimize import minimize
from scipy.special import expit, log_ndtr, logsumexp, softmax
from threadpoolctl import threadpool_limits

from dask_saga.kernels.dispatch import row_derivative


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


def implicit_gradient(loss, z, y, w, h, old, m):
    """Gradients of one row nearer to z after the step than to z before: the kernels' scheme in plain Python."""
    outputs, u = len(z), z.copy()

    def gradient(u):
        out = np.empty(outputs)
        row_derivative(loss, u, y, out)
        return w * out

    if loss.curvature is not None:
        if h * w * loss.curvature < 0.05:
            return m
        if h * w * loss.curvature < 4 and hasattr(loss, "curvature_at"):
            return old + (m - old) / (1 + h * w * np.array([loss.curvature_at(v, y[0]) for v in z]))
        for _ in range(1 + int(min(h * w * loss.curvature, 40.0) / 4)):
            u = u - (u - z + h * (m - old)) / (1 + h * w * loss.curvature)
            m = gradient(u)
        return m
    for _ in range(30):
        move = (u - z + h * (m - old)) / (1 + h * w * np.array([loss.curvature_at(v, y[0]) for v in u]))
        u = u - np.clip(move, -1, 1)
        m = gradient(u)
        if np.abs(np.clip(move, -1, 1)).max() < 1e-10:
            break
    return old + (z - u) / h


def saga_pass(
    A, b, weights, order, pull, norms, x, gradient_sum, memory, metric, step, weight, problem,
    left=None, past=0.0, anchor=None, together=1,
):  # fmt: skip
    """One pass in the solver's coordinates, row by row; sparse SAGA where A is sparse. Returns new arrays.

    `left` is the share of rows still to come before each visit, `past` that of rows seen before the chunk. So many rows
    `together` take their derivatives at one x, and make one step of their sum.
    """
    left = np.ones(len(order)) if left is None else left
    loss, penalty = problem.loss, problem.penalty
    x, gradient_sum, memory = x.copy(), gradient_sum.copy(), memory.copy()
    for first in range(0, len(order), together):
        group = order[first : first + together]
        found = []
        for own, i in zip(left[first:], group, strict=False):
            if sp.issparse(A):
                support = A[[i]].indices
                row = A[[i]].toarray().ravel().astype(float) - metric.shift
                inverse_density = metric.inverse_density
            else:
                row = A[i].astype(float) - metric.shift
                row = row if metric.rotation is None else row @ metric.rotation
                support, inverse_density = np.arange(len(row)), np.ones(len(row))
            z = x[:, support] @ row[support] + x[:, -1]
            m = np.empty(len(z))
            row_derivative(loss, z, b[i], m)
            m, old = weights[i] * m, memory[i].astype(float)
            base, counted = old, own + past
            if past:
                there = np.empty(len(z))
                row_derivative(loss, anchor[:, support] @ row[support] + anchor[:, -1], b[i], there)
                base = (own * old + past * weights[i] * there) / counted
            if norms is not None:
                m = implicit_gradient(loss, z, b[i], weights[i], step * pull[i] * counted * norms[i], base, m)
            memory[i] = m
            pulled = counted * (memory[i].astype(float) - base) * pull[i]
            change = memory[i].astype(float) - old
            found.append((support, np.append(row[support], 1.0), pulled, change))
        for part in [found] if len(found) == together else [[one] for one in found]:
            support, before = part[0][0], gradient_sum.copy()  # of dense rows all have the same
            for k in range(len(x)):
                for at, j in enumerate(support):
                    s = step * metric.scale[j]
                    pull_j = sum(pulled[k] * row[at] for _, row, pulled, _ in part)
                    v = x[k, j] - s * (pull_j + len(part) * inverse_density[j] * before[k, j] / weight)
                    x[k, j] = penalty.prox(v, s * len(part) * inverse_density[j])
                if problem.fit_intercept:
                    pull_c = sum(pulled[k] for _, _, pulled, _ in part)
                    x[k, -1] -= step * (pull_c + len(part) * before[k, -1] / weight)
                for _, row, _, change in part:
                    gradient_sum[k, np.append(support, -1)] += change[k] * row
    return x, gradient_sum, memory


def pull_of_rows(plan, weights):
    """What the change of each row's gradient is multiplied by."""
    if not plan.lengths.size:
        return np.full(len(weights), plan.change_scale)
    return plan.change_scale / np.clip(np.ceil(plan.lengths * weights / plan.length_threshold), 1, plan.max_visits)


def objective(A, b, x, intercept, loss, penalty, weights=None):
    """The objective F that the estimators minimise, in plain Python and float64."""
    z = A @ x + intercept
    weights = np.ones(len(b)) if weights is None else np.asarray(weights, float)
    mean = sum(w * loss.value(float(u), float(v)) for w, u, v in zip(weights, z, b, strict=True)) / weights.sum()
    return mean + np.sum(penalty.value(x))


def gradient_sum_of(chunks, state):
    """sum_i m_i a_i recomputed from the memory; chunks maps id to rows. The intercept's last."""
    total = 0.0
    for key, memory in state.chunks.items():
        A = chunks[key]
        A = A.toarray() if sp.issparse(A) else np.asarray(A)
        total = total + memory.gradients[:, 0].astype(float) @ np.c_[A, np.ones(len(A))]
    return total


# References on the exact objective, written without the package. A loss's function takes all rows'
# predictions and targets and its fields, and gives value, slope and bend (second derivative).


def log_loss(z, y):
    return np.logaddexp(0.0, -y * z), -y * expit(-y * z), expit(z) * expit(-z)


def squared_error(z, y):
    return (z - y) ** 2 / 2, z - y, np.ones_like(z)


def huber(z, y, epsilon):
    r, inside = z - y, np.abs(z - y) <= epsilon
    return np.where(inside, r**2 / 2, epsilon * np.abs(r) - epsilon**2 / 2), np.clip(r, -epsilon, epsilon), 1.0 * inside


def squared_hinge(z, y):
    gap = np.maximum(1 - y * z, 0)
    return gap**2, -2 * y * gap, 2.0 * (gap > 0)


def modified_huber(z, y):
    m, gap = y * z, np.maximum(1 - y * z, 0)
    return np.where(m < -1, -4 * m, gap**2), np.where(m < -1, -4 * y, -2 * y * gap), 2.0 * ((m >= -1) & (m < 1))


def smooth_hinge(z, y, gamma):
    m, gap = y * z, np.clip(1 - y * z, 0, gamma)
    value = np.where(m <= 1 - gamma, 1 - m - gamma / 2, gap**2 / 2 / gamma)
    return value, -y * gap / gamma, ((m > 1 - gamma) & (m < 1)) / gamma


def poisson(z, y):
    return np.exp(z) - y * z, np.exp(z) - y, np.exp(z)


def gamma(z, y):
    return y * np.exp(-z) + z, 1 - y * np.exp(-z), y * np.exp(-z)


def tweedie(z, y, power):
    amount, total = y * np.exp((1 - power) * z), np.exp((2 - power) * z)
    value = amount / (power - 1) + total / (2 - power)
    at_zero = 1 / (power - 1), 1 / (2 - power)  # the package's loss has other constants
    value = value - y * (at_zero[0] - (power - 1)) - (at_zero[1] - (2 - power))
    return value, total - amount, (2 - power) * total + (power - 1) * amount


def negative_binomial(z, y, theta):
    mean = np.exp(z)
    share = mean / (theta + mean)
    return (y + theta) * np.log(theta + mean) - y * z, (y + theta) * share - y, (y + theta) * share * (1 - share)


def binomial(z, y):
    return np.logaddexp(0.0, z) - y * z, expit(z) - y, expit(z) * expit(-z)


def expectile(z, y, level):
    factor = 2 * np.where(z < y, level, 1 - level)
    return factor * (z - y) ** 2 / 2, factor * (z - y), factor


def probit(z, y):
    hazard = np.exp(-(z**2) / 2 - np.log(2 * np.pi) / 2 - log_ndtr(y * z))
    return -log_ndtr(y * z), -y * hazard, hazard * (hazard + y * z)


def cloglog(z, y):
    rate = np.exp(z)
    hazard = rate / np.expm1(rate)
    value, slope = -np.log(-np.expm1(-rate)), -hazard
    bend = hazard * (rate / -np.expm1(-rate) - 1)
    return np.where(y > 0, value, rate), np.where(y > 0, slope, rate), np.where(y > 0, bend, rate)


POINTWISE = {
    "LogLoss": log_loss,
    "SquaredError": squared_error,
    "Huber": huber,
    "SquaredHinge": squared_hinge,
    "ModifiedHuber": modified_huber,
    "SmoothHinge": smooth_hinge,
    "PoissonLoss": poisson,
    "GammaLoss": gamma,
    "Tweedie": tweedie,
    "NegativeBinomial": negative_binomial,
    "BinomialLoss": binomial,
    "Expectile": expectile,
    "ProbitLoss": probit,
    "CloglogLoss": cloglog,
}


def pointwise(loss, z, b):
    """Value (n,), slope (n, k) and bend (n, k, k) of a loss at predictions z (n, k)."""
    if type(loss).__name__ == "MultinomialLogLoss":
        P, b = softmax(z, axis=1), b.astype(int)
        value = logsumexp(z, axis=1) - z[np.arange(len(b)), b]
        return value, P - np.eye(z.shape[1])[b], P[:, :, None] * np.eye(z.shape[1]) - P[:, :, None] * P[:, None, :]
    value, slope, bend = POINTWISE[type(loss).__name__](z[:, 0], b, *loss)
    return value, slope[:, None], bend[:, None, None]


def exact_objective(A, b, x, loss, penalty, weights=None):
    """F at x, with the intercept last: (p + 1,) or (k, p + 1). Outputs of a 2-d b are summed."""
    if np.ndim(b) == 2:
        return sum(exact_objective(A, y, row, loss, penalty, weights) for y, row in zip(b.T, x, strict=True))
    x = np.atleast_2d(x)
    inner = x[:, :-1]
    if np.any(inner < penalty.lower) or np.any(inner > penalty.upper):
        return np.inf
    values, _, _ = pointwise(loss, A @ inner.T + x[:, -1], b)
    return np.average(values, weights=weights) + penalty.l1 * np.abs(inner).sum() + penalty.l2 * (inner**2).sum() / 2


@threadpool_limits.wrap(limits=1)  # threads make these small matrices ten times slower
def reference(A, b, loss, penalty, fit_intercept, weights=None):
    """The optimum, with the intercept last: (p + 1,) or (k, p + 1).

    SciPy's L-BFGS-B on columns of unit size (x = u - v where there is l1), then Newton's method on the
    coordinates that are neither zero under l1 nor at a bound. Raises unless a proximal gradient step
    then moves no coordinate by more than 1e-10.
    """
    if np.ndim(b) == 2:
        return np.stack([reference(A, y, loss, penalty, fit_intercept, weights) for y in b.T])
    A = A.toarray() if sp.issparse(A) else np.asarray(A, float)
    weights = np.ones(len(b)) if weights is None else np.asarray(weights, float)
    weights = weights / weights.sum()
    k = getattr(loss, "n_classes", 1)
    columns = np.c_[A, np.ones(len(b))] if fit_intercept else A
    p, q = A.shape[1], columns.shape[1]
    size = np.sqrt((columns**2).mean(axis=0))
    size[size == 0] = 1.0
    columns = columns / size

    def per_coordinate(inner, intercept):
        return np.tile(np.append(inner, np.full(q - p, float(intercept))), k)

    l1, l2 = per_coordinate(penalty.l1 / size[:p], 0), per_coordinate(penalty.l2 / size[:p] ** 2, 0)
    lower = per_coordinate(penalty.lower * size[:p], -np.inf)
    upper = per_coordinate(penalty.upper * size[:p], np.inf)

    def smooth(x):
        value, slope, bend = pointwise(loss, columns @ x.reshape(k, q).T, b)
        gradient = ((weights[:, None] * slope).T @ columns).ravel() + l2 * x
        return weights @ value + l2 @ x**2 / 2, gradient, bend

    def curvature(bend):
        blocks = [[columns.T @ (columns * (weights * bend[:, i, j])[:, None]) for j in range(k)] for i in range(k)]
        return np.block(blocks) + np.diag(l2)

    def split(uv):
        u, v = uv.reshape(2, -1)
        value, gradient, _ = smooth(u - v)
        return value + l1 @ (u + v), np.concatenate([l1 + gradient, l1 - gradient])

    positive = [(0.0 if c else a, z) for c, a, z in zip(l1, lower, upper, strict=True)]
    negative = [(0.0, -a if c else 0.0) for c, a in zip(l1, lower, strict=True)]
    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-16, "gtol": 1e-9, "maxcor": 30}
    start = np.zeros(2 * k * q)
    found = minimize(split, start, jac=True, method="L-BFGS-B", bounds=positive + negative, options=options).x
    x = found[: k * q] - found[k * q :]

    for _ in range(50):
        _, gradient, bend = smooth(x)
        hessian = curvature(bend)
        step = 1 / hessian.diagonal()
        v = x - step * gradient
        v = np.clip(np.sign(v) * np.maximum(np.abs(v) - step * l1, 0), lower, upper)
        if np.max(np.abs(v - x)) <= 1e-13 * max(1.0, np.max(np.abs(x))):
            break
        fixed = (v == lower) | (v == upper) | ((v == 0) & (l1 > 0))
        free = ~fixed
        move = np.where(fixed, v - x, 0.0)
        aim = gradient + l1 * np.sign(v) + hessian @ move
        # lstsq: a shift of all classes' intercepts changes nothing, and stays at zero.
        move[free] = -np.linalg.lstsq(hessian[np.ix_(free, free)], aim[free], rcond=1e-11)[0]
        x = x + move
    if np.max(np.abs(v - x)) > 1e-10 * max(1.0, np.max(np.abs(x))):
        raise RuntimeError(f"no optimum of {loss}, {penalty}: residual {np.max(np.abs(v - x)):.1e}")
    x = (np.where((v == 0) & (l1 > 0), 0.0, x) / np.tile(size, k)).reshape(k, q)
    for bound, scaled in ((penalty.lower, lower), (penalty.upper, upper)):
        x[(v == scaled).reshape(k, q)] = bound
    x = x if fit_intercept else np.c_[x, np.zeros(k)]
    return x if k > 1 else x[0]


def least_of_raw(A, b, loss, alpha):
    """F* with an L2 penalty and an intercept on columns of any units: Newton's method on standardised ones."""
    A = A.toarray() if sp.issparse(A) else A
    size = A.std(axis=0)
    size[size < 1e-12 * np.abs(A).max(axis=0)] = 1.0
    Z = np.c_[(A - A.mean(axis=0)) / size, np.ones(len(b))]
    l2, x = np.append(alpha / size**2, 0.0), np.zeros(A.shape[1] + 1)
    for _ in range(100):
        value, slope, bend = pointwise(loss, (Z @ x)[:, None], b)
        F = value.mean() + l2 @ x**2 / 2
        gradient = Z.T @ slope[:, 0] / len(b) + l2 * x
        hessian = Z.T @ (Z * bend[:, 0]) / len(b) + np.diag(l2)
        move, step = np.linalg.lstsq(hessian, gradient, rcond=1e-15)[0], 1.0
        while step > 1e-9 and pointwise(loss, (Z @ (x - step * move))[:, None], b)[0].mean() > F + 1e-12:
            step /= 2
        x = x - step * move
        if gradient @ move < 1e-15 * F:
            return F
    raise ArithmeticError("no optimum found")
