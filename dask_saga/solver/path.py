"""Many models of a path at once: their gradients over a chunk, and their steps on a sample of the rows.

The models differ in the penalty, and in the fold of the rows that they leave out. A fold is a zero weight. See
docs/algorithm/paths.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from ..data.chunk import BLOCK_BYTES, Chunk, row_arrays
from ..data.immutable import immutable
from ..execution.threads import even_slices, one_blas_thread, thread_count, threads
from ..kernels.epoch import kernels_for
from ..kernels.intrinsics import scratch_for
from ..kernels.vectors import sparse_products, sparse_sums
from .curvature import Curvature, block_shape, new_curvature, newton_move
from .curvature_visit import InnerProblem
from .line_search import within
from .local_model import predictions
from .optimality import chunk_gradient, count_outputs, penalty_value
from .state import new_solver_state
from .subsample import LEAST_BYTES, MOST_BYTES, SAMPLE_PART, draw_rows
from .visit import fresh_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..data.statistics import ColumnStats
    from ..penalties import Penalty
    from .problem import Problem

__all__ = [
    "BasePath",
    "PathMember",
    "PathSample",
    "PathSums",
    "base_path",
    "held_out_predictions",
    "make_path_sample",
    "merge_sums",
    "path_rows",
    "path_steps",
    "path_sums",
    "without_fold",
]


# Largest size d of a Hessian.
MOST_PATH_COEFFICIENTS = 1000

# Least number of sampled rows for each coordinate of the Hessian. With fewer rows, its error is too large for steps.
ROWS_A_COORDINATE = 8

# Largest size, in bytes, of the Hessians of a path.
HESSIAN_BYTES = 2**27

# Sparse rows are multiplied in blocks of at most this many bytes of predictions, because each block adds to sums over
# all columns.
SPARSE_BYTES = 2**22


@immutable
class PathSums(NamedTuple):
    """Sums over the rows of a chunk, for several models.

    Parameters
    ----------
    gradient : ndarray of shape (models, k, p + 1)
        Sum of the weighted gradients over the rows that a model does not leave out.
    held_out : ndarray of shape (models,)
        Sum of the weighted losses over the rows that it leaves out.
    weights : ndarray of shape (folds,)
        Weight of the rows of each fold.
    """

    gradient: np.ndarray
    held_out: np.ndarray
    weights: np.ndarray


class PathMember(NamedTuple):
    """One model of a path.

    Parameters
    ----------
    penalty : Penalty
    fold : int
        Fold that it leaves out; -1 for none.
    ratio, alpha : int
        Place of its penalty in the grid.
    """

    penalty: Penalty
    fold: int
    ratio: int
    alpha: int


class PathSample(NamedTuple):
    """Sample of the rows on which models take their steps.

    Parameters
    ----------
    chunk : Chunk
    coordinates : Curvature
        Without a model: it only defines the coordinates of Hessians.
    """

    chunk: Chunk
    coordinates: Curvature


@immutable
class BasePath(NamedTuple):
    """Optima on the sample of the models that leave no row out, from the largest penalty to the smallest.

    Parameters
    ----------
    x : ndarray of shape (alphas, k, p + 1)
    gain : ndarray of shape (alphas,)
        F(0) - F(x) on the sample.
    hessians : tuple of ndarray of shape (blocks, d, d)
        Means of the Hessian of the loss over the rows. Neighbours on the path share one while it hardly changes.
    which : tuple of int
        Number of the Hessian of each alpha.
    """

    x: np.ndarray
    gain: np.ndarray
    hessians: tuple[np.ndarray, ...]
    which: tuple[int, ...]


def path_sums(chunk: Chunk, x: np.ndarray, folds: np.ndarray, count: int, problem: Problem) -> PathSums:
    """Compute gradients and held-out losses of several models over a chunk.

    Blocks of rows are multiplied by the coefficients of all models. The derivatives of the losses replace the
    predictions, and a second product gives the gradients.

    Parameters
    ----------
    chunk : Chunk
    x : ndarray of shape (models, k, p + 1)
    folds : ndarray of shape (models,), int16
        Fold that each model leaves out; -1 for none.
    count : int
        Number of folds.
    problem : Problem

    Returns
    -------
    PathSums
    """
    m, k, d = x.shape
    flat = x.reshape(m * k, d)
    sums_of = _sparse_sums if sp.issparse(chunk.rows) else _dense_sums

    def part(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        held_out = np.zeros(m)

        def slopes(block: slice, z: np.ndarray) -> None:
            """Replace the predictions of a block by the derivatives of the losses."""
            arrays = (one[block] for one in (chunk.targets, chunk.weights, chunk.folds))
            kernel = kernels_for(problem.loss, problem.penalty).path_slopes
            kernel(z, *arrays, folds, held_out, scratch_for(k), problem.loss)

        return sums_of(chunk.rows, rows, flat, slopes), held_out

    parallel = thread_count(problem.n_threads, chunk.entries * m)
    with one_blas_thread(), threads(parallel) as each:
        gradients, held_out = zip(*each(part, even_slices(len(chunk.targets), parallel)), strict=True)
    weights = np.bincount(chunk.folds, chunk.row_weights, minlength=count) if count else np.empty(0)
    return PathSums(sum(gradients).reshape(x.shape), sum(held_out), weights)


def _dense_sums(rows: np.ndarray, part: slice, flat: np.ndarray, slopes: Callable) -> np.ndarray:
    """Return the gradients of all outputs over dense rows, of shape (models * k, p + 1)."""
    inner, last, size = flat[:, :-1], flat[:, -1], max(1, BLOCK_BYTES // (8 * len(flat)))
    gradient = np.zeros_like(flat)
    for start in range(part.start, part.stop, size):
        block = slice(start, min(start + size, part.stop))
        some = rows[block].astype(np.float64, copy=False)
        z = some @ inner.T
        z += last
        slopes(block, z)
        gradient[:, :-1] += z.T @ some
        gradient[:, -1] += z.sum(axis=0)
    return gradient


def _sparse_sums(rows: Any, part: slice, flat: np.ndarray, slopes: Callable) -> np.ndarray:
    """Do the same as ``_dense_sums`` for sparse rows."""
    turned, size = np.ascontiguousarray(flat.T), max(1, SPARSE_BYTES // (8 * len(flat)))
    gradient = np.zeros_like(turned)
    for start in range(part.start, part.stop, size):
        block = slice(start, min(start + size, part.stop))
        arrays, z = row_arrays(rows, block), np.empty((block.stop - start, len(flat)))
        sparse_products(*arrays, turned, z)
        slopes(block, z)
        sparse_sums(*arrays, z, gradient)
    return gradient.T


def merge_sums(*parts: PathSums) -> PathSums:
    """Add the sums of several chunks."""
    return PathSums(*(np.asarray(sum(field)) for field in zip(*parts, strict=True)))


def held_out_predictions(chunk: Chunk, x: np.ndarray, count: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Compute predictions of held-out rows, for scores that need them row by row.

    Parameters
    ----------
    chunk : Chunk
    x : ndarray of shape (models, folds, k, p + 1)
        For each fold, the models that leave it out.
    count : int
        Number of folds.

    Returns
    -------
    list of tuple
        For each fold predictions of shape (n, models, k), targets of shape (n, k) and weights of shape (n,).
    """
    results, (models, _, k, d) = [], x.shape
    for fold in range(count):
        some = np.flatnonzero(chunk.folds == fold)
        z = predictions(chunk.rows[some], np.ascontiguousarray(x[:, fold]).reshape(models * k, d))
        results.append((z.reshape(-1, models, k), chunk.targets[some], chunk.row_weights[some]))
    return results


def without_fold(chunk: Chunk, fold: int) -> Chunk:
    """Return the rows of a chunk that a model does not leave out."""
    some = np.flatnonzero(chunk.folds != fold)
    rows = chunk.rows[some] if sp.issparse(chunk.rows) else np.ascontiguousarray(chunk.rows[some])
    weights = chunk.weights[some] if chunk.weights.size else chunk.weights
    content = f"{chunk.content} without fold {fold}"
    return Chunk(rows, chunk.targets[some], weights, content, chunk.weights_content, chunk.folds[some])


def path_rows(chunk: Chunk, chunks: int, problem: Problem) -> Chunk:
    """Draw this chunk's part of the sample: all rows of small data, otherwise as many as for subsample steps.

    No rows are drawn if the Hessian would be too large.

    Parameters
    ----------
    chunk : Chunk
    chunks : int
        Number of chunks.
    problem : Problem

    Returns
    -------
    Chunk
    """
    n, p = int(np.count_nonzero(chunk.row_weights)), chunk.rows.shape[1]
    blocks, d = block_shape(problem, p, count_outputs(chunk, problem))
    if d > MOST_PATH_COEFFICIENTS or blocks * d * d * 8 > HESSIAN_BYTES // 8:
        return draw_rows(chunk, 0)
    nbytes = max(chunk.nbytes / max(len(chunk.targets), 1), 1.0)
    wanted = min(max(n * SAMPLE_PART, LEAST_BYTES / chunks / nbytes), MOST_BYTES / chunks / nbytes)
    return draw_rows(chunk, min(n, max(1, int(wanted))))


def make_path_sample(
    chunk: Chunk | None, problem: Problem, outputs: int, stats: ColumnStats, rows: int
) -> PathSample | None:
    """Prepare the sampled rows. Return None if they are too few for their Hessian, unless they are all rows."""
    if chunk is None or not len(chunk.targets):
        return None
    coordinates = new_curvature(problem, outputs, chunk, stats)
    if len(chunk.targets) < min(rows, ROWS_A_COORDINATE * coordinates.hessian.shape[1]):
        return None
    return PathSample(chunk, coordinates)


def base_path(sample: PathSample | None, penalties: tuple[Penalty, ...], problem: Problem) -> BasePath | None:
    """Solve the path of all rows on the sample, each alpha from the optimum of the one before.

    Parameters
    ----------
    sample : PathSample or None
    penalties : tuple of Penalty
        From the largest to the smallest.
    problem : Problem
        Its penalty is not used.

    Returns
    -------
    BasePath or None
        None without a sample, or if the Hessians are too large together.
    """
    if sample is None or len(penalties) * sample.coordinates.hessian.nbytes > HESSIAN_BYTES:
        return None
    x = np.zeros((count_outputs(sample.chunk, problem), sample.chunk.rows.shape[1] + 1))
    zero, optima, gains, hessians, which = x, [], [], [], []
    before: InnerProblem | None = None
    with np.errstate(all="ignore"), one_blas_thread():
        for penalty in penalties:
            problem = problem._replace(penalty=penalty)
            inner = _inner_problem(sample, x, None, -1, problem)
            if before is not None:
                inner.keep_hessian(before)
            inner.minimise()
            if before is None or inner.hessian is not before.hessian:
                hessians.append(inner.hessian / inner.weight)
            x, before = inner.x, inner
            optima.append(x)
            which.append(len(hessians) - 1)
            gains.append(_objective(inner.chunk, zero, problem) - _objective(inner.chunk, x, problem))
    return BasePath(np.array(optima), np.array(gains), tuple(hessians), tuple(which))


def _objective(chunk: Chunk, x: np.ndarray, problem: Problem) -> float:
    return chunk_gradient(chunk, x, problem)[0] / chunk.weight + penalty_value(x, problem)


def _inner_problem(
    sample: PathSample, x: np.ndarray, gradient: np.ndarray | None, fold: int, problem: Problem
) -> InnerProblem:
    """Return the problem of one model on the sample. A mean gradient of all rows at x corrects that of the sample."""
    chunk = sample.chunk
    if fold >= 0:
        chunk = chunk._replace(weights=np.where(chunk.folds == fold, 0.0, chunk.row_weights))
    memory = fresh_memory(chunk, problem)
    own = np.zeros_like(x) if gradient is None else chunk_gradient(chunk, x, problem)[1]
    total = own if gradient is None else gradient * chunk.weight
    head = new_solver_state(x.shape[1] - 1, len(x), weight=chunk.weight, rows=memory.rows)
    head = head._replace(x=x, gradient_sum=total)
    return InnerProblem(chunk, head, memory._replace(total=own), sample.coordinates, problem, is_first=False)


def newton_step(
    hessian: np.ndarray, x: np.ndarray, gradient: np.ndarray, coordinates: Curvature, problem: Problem
) -> tuple[np.ndarray, float]:
    """Take the step of one model with a Hessian of the sample.

    Parameters
    ----------
    hessian : ndarray of shape (blocks, d, d)
        Mean over the rows.
    x : ndarray of shape (k, p + 1)
    gradient : ndarray of shape (k, p + 1)
        Mean gradient of the losses at x, exact.
    coordinates : Curvature
    problem : Problem

    Returns
    -------
    x : ndarray of shape (k, p + 1)
    promise : float
        Decrease of F that the quadratic model promises. inf if the step is not finite.
    """
    with np.errstate(all="ignore"), one_blas_thread():
        slope = coordinates.sum_to_centred(gradient)
        step, promise = newton_move(coordinates, hessian, slope, 1.0, x, problem)
        after = within(x + coordinates.to_user(step), problem)
    return (after, float(promise)) if np.isfinite(after).all() and np.isfinite(promise) else (x, np.inf)


def corrected_step(
    sample: PathSample, x: np.ndarray, gradient: np.ndarray, fold: int, problem: Problem
) -> tuple[np.ndarray, float]:
    """Move to the optimum of one model on the sample, whose gradient at x is corrected by the exact one.

    Minimise F_s(x') + (grad F(x) - grad F_s(x))' x' by Newton steps with line searches, as ``subsample_step`` does by
    SAGA visits. Arguments and result are those of ``newton_step``.
    """
    with np.errstate(all="ignore"), one_blas_thread():
        inner = _inner_problem(sample, x, gradient, fold, problem)
        inner.minimise()
    return (inner.x, float(inner.promise)) if np.isfinite(inner.x).all() else (x, np.inf)


def path_steps(
    sample: PathSample,
    problem: Problem,
    members: list[PathMember],
    x: np.ndarray,
    gradients: np.ndarray,
    limits: np.ndarray,
    *bases: BasePath,
) -> tuple[np.ndarray, np.ndarray]:
    """Take the steps of several models after a pass.

    Parameters
    ----------
    sample : PathSample
    problem : Problem
    members : list of PathMember
    x, gradients : ndarray of shape (models, k, p + 1)
        Coefficients, and the exact mean gradients there.
    limits : ndarray of shape (models,)
        Largest promise with which a step with the Hessian of the path is trusted. If it promises more, the model
        takes a ``corrected_step``.
    *bases : BasePath
        Path of each l1_ratio.

    Returns
    -------
    x : ndarray of shape (models, k, p + 1)
    promises : ndarray of shape (models,)
    """
    moved, promises = [], []
    for member, here, gradient, limit in zip(members, x, gradients, limits, strict=True):
        own, base = problem._replace(penalty=member.penalty), bases[member.ratio]
        hessian = base.hessians[base.which[member.alpha]]
        after, promise = newton_step(hessian, here, gradient, sample.coordinates, own)
        if not promise <= limit:
            after, promise = corrected_step(sample, here, gradient, member.fold, own)
        moved.append(after)
        promises.append(promise)
    return np.array(moved), np.array(promises)
