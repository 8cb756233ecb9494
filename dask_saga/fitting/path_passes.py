"""All models of a cross-validated path in passes that they share.

``run_path`` is to many models what ``run`` is to one. A pass evaluates the exact gradients of all models that have not
converged, and their held-out losses. Between passes each model takes a step whose curvature comes from a sample of the
rows. Models for which such steps gain too little are fitted separately by ``run``. See docs/algorithm/paths.md.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..data.folds import block_counts, check_counts
from ..execution.executor import merged
from ..execution.threads import even_slices, threads
from ..penalties import ElasticNet
from ..solver.identity import digest, visit_seed
from ..solver.path import (
    PathMember,
    base_path,
    held_out_predictions,
    make_path_sample,
    merge_sums,
    path_rows,
    path_steps,
    path_sums,
    without_fold,
)
from ..solver.preconditioned_problem import PreconditionedProblem
from ..solver.state import new_solver_state
from .checkpoint import Saved
from .convergence import may_step, norm_at_zero
from .loop import run
from .preparation import prepare

if TYPE_CHECKING:
    from ..data.folds import Folds
    from ..execution.protocol import Reference
    from ..penalties import Penalty
    from ..solver.path import BasePath, PathSample, PathSums
    from ..solver.problem import Problem
    from .checkpoint import Checkpoint
    from .chunk_source import Source
    from .preparation import Prepared

__all__ = ["PathInfo", "PathModels", "PathResult", "checked_folds", "held_out_rows", "prepare_path", "run_path"]


logger = logging.getLogger("dask_saga")


# Number of results that one task merges.
MERGED = 32

# A step with the Hessian of the path is trusted if it promises at most the fraction TRUSTED of the gain F(0) - F, and
# at most the fraction FALLS of what the step before promised. Otherwise the model solves its own corrected sample.
TRUSTED, FALLS = 0.01, 0.1

# A model is fitted separately after STRIKES passes in which the promised decrease has not fallen to the fraction SLOW.
STRIKES, SLOW = 2, 0.5

# Fields of a fit that a checkpoint saves under their names.
SAVED = ("held_out", "fold_weights", "promise", "strikes", "converged", "separate", "fitted")

# Coefficients of more bytes are stored on the executor for the tasks of a pass.
SENT_BYTES = 2**16

# Largest size, in bytes, of the coefficients of models whose held-out losses are computed at a time.
MEASURED_BYTES = 2**27

# The norm at zero of an L1 penalty vanishes where its weight is so large that zero is the optimum. Tolerances therefore
# refer to at least the fraction LEAST_REFERENCE of the norm at zero without a penalty.
LEAST_REFERENCE = 1e-3

# A promised decrease below this fraction of F is a rounding error.
ROUNDED = 1e-15


class PathInfo(NamedTuple):
    """Argument of the callback after each pass.

    Parameters
    ----------
    epoch : int
        Number of passes made, from 1. Those of models that are fitted separately do not count.
    models : int
        Number of models.
    converged : int
        Number of models that have converged.
    gradient_norm : float
        Largest gradient norm of the models that have not converged, relative to its value at zero.
    seconds : float
        Seconds since the first pass began.
    bytes_read : int
        Size of all chunks that this process has loaded so far.
    """

    epoch: int
    models: int
    converged: int
    gradient_norm: float
    seconds: float
    bytes_read: int


class PathModels(NamedTuple):
    """Models of a path.

    Parameters
    ----------
    penalties : list of tuple of Penalty
        For each l1_ratio, the penalties from the largest to the smallest.
    folds : int
        Number of folds.
    fits_all : bool
        Whether models of all rows are fitted in addition to those that leave a fold out.
    """

    penalties: list[tuple[Penalty, ...]]
    folds: int
    fits_all: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of l1_ratios, of alphas, and of models for each of them. Models of all rows come last."""
        return len(self.penalties), len(self.penalties[0]), self.folds + self.fits_all

    @property
    def fold_of_model(self) -> np.ndarray:
        """Fold that each model leaves out; -1 for none. Of shape (models,)."""
        one = [*range(self.folds), -1][: self.shape[2]]
        return np.tile(np.array(one, np.int16), self.shape[0] * self.shape[1])

    def member(self, model: int) -> PathMember:
        """Return one of the models."""
        ratio, alpha, _ = map(int, np.unravel_index(model, self.shape))
        return PathMember(self.penalties[ratio][alpha], int(self.fold_of_model[model]), ratio, alpha)

    def penalty(self, model: int) -> Penalty:
        """Return the penalty of a model."""
        return self.member(model).penalty


class PathResult(NamedTuple):
    """Result of ``run_path``.

    Parameters
    ----------
    x : ndarray of shape (l1_ratios, alphas, folds + fits_all, k, p + 1)
    losses : ndarray of shape (l1_ratios, alphas, folds)
        Mean held-out loss of each model.
    converged : ndarray of bool of shape (l1_ratios, alphas, folds + fits_all)
    interrupted, stopped : bool
        Whether Ctrl-C or the callback has stopped the fit.
    history : list of dict
        One row for each pass, with the fields of ``PathInfo``.
    """

    x: np.ndarray
    losses: np.ndarray
    converged: np.ndarray
    interrupted: bool
    stopped: bool
    history: list[dict]


def prepare_path(source: Source, problem: Problem, labels: Sequence | None = None) -> Prepared:
    """Run the preparing pass of ``run_path``. Its handover has a sample of the rows."""
    return prepare(source, problem, labels=labels, draw=functools.partial(path_rows, problem=problem))


def run_path(
    source: Source,
    prepared: Prepared,
    problem: Problem,
    models: PathModels,
    *,
    seed: int,
    max_iter: int,
    tol: float,
    start: np.ndarray | None = None,
    checkpoint: Checkpoint | None = None,
    callback: Callable[[PathInfo], Any] | None = None,
) -> PathResult:
    """Fit all models of a path.

    Parameters
    ----------
    source : Source
    prepared : Prepared
        Result of ``prepare_path``.
    problem : Problem
        Its penalty is not used.
    models : PathModels
    seed : int
        Seed of the models that are fitted separately.
    max_iter : int
        Maximum number of shared passes, and of passes of a model that is fitted separately.
    tol : float
        Tolerance of each model, as in ``run``.
    start : ndarray of shape (l1_ratios, alphas, k, p + 1), default=None
        Coefficients to start from, for the models of all folds. None starts from optima on the sample.
    checkpoint : Checkpoint, default=None
        Checkpoint to resume from and to save to.
    callback : callable, default=None
        ``callback(info)`` is called after each pass. The fit stops if it returns True.

    Returns
    -------
    PathResult
        A KeyboardInterrupt before the first pass has ended is raised again.
    """
    fit = _PathFit(source, prepared, problem, models, tol, callback, checkpoint)
    interrupted = False
    try:
        fit.solve_sample()
        if start is not None:
            fit.next_x[:] = np.repeat(start.reshape(-1, *start.shape[2:]), models.shape[2], axis=0)
        fit.resume()
        while len(fit.left) and len(fit.history) < max_iter and not fit.is_stopped:
            fit.take_pass()
        if not fit.is_stopped:
            fit.fit_separately(seed, max_iter)
    except KeyboardInterrupt:
        if not fit.history:
            raise
        interrupted = True
        source.interrupt()
    if models.folds and not interrupted:
        fit.measure_held_out()
        fit.save()
    source.executor.release_references()
    shape = models.shape
    return PathResult(
        fit.x.reshape(*shape, *fit.x.shape[1:]),
        fit.held_out.reshape(shape)[:, :, : models.folds] / fit.fold_weights,
        fit.converged.reshape(shape),
        interrupted,
        fit.is_stopped,
        fit.history,
    )


class _PathFit:
    """State of a fit of many models. Arrays have one entry for each model, unless stated otherwise.

    Attributes
    ----------
    x, next_x : ndarray of shape (models, k, p + 1)
        Where the last pass has evaluated the models, and where the next pass will.
    held_out : ndarray
        Sum of the held-out losses at `x`. NaN where it is not known.
    fold_weights : ndarray of shape (folds,)
        Weight of the rows of each fold. NaN before the first pass.
    gain : ndarray
        F(0) - F(x), estimated on the sample.
    promise : ndarray
        Decrease of F that the last step promised.
    strikes : ndarray of int
        Number of passes in which the promise has not fallen enough.
    converged, separate, fitted : ndarray of bool
        Whether the model has converged, is to be fitted separately, and was fitted so.
    """

    def __init__(
        self,
        source: Source,
        prepared: Prepared,
        problem: Problem,
        models: PathModels,
        tol: float,
        callback: Callable[[PathInfo], Any] | None,
        checkpoint: Checkpoint | None,
    ):
        self.source, self.prepared, self.problem, self.models = source, prepared, problem, models
        self.tol, self.callback, self.folds = tol, callback, models.fold_of_model
        self.weight = sum(fact.weight for fact in prepared.facts)
        count = len(self.folds)
        self.x, self.next_x = np.zeros((2, count, *prepared.zero.shape))
        self.held_out, self.gain, self.promise = np.full(count, np.nan), np.zeros(count), np.full(count, np.inf)
        self.fold_weights = np.full(models.folds, np.nan)
        self.strikes, (self.converged, self.separate, self.fitted) = np.zeros(count, int), np.zeros((3, count), bool)
        self.references = {one: self._norm_at_zero(one) for one in itertools.chain(*models.penalties)}
        self.sample: Reference[PathSample | None] | None = None
        self.bases: list[Reference[BasePath | None]] = []
        self.history: list[dict] = []
        self.checkpoint = checkpoint
        self.began, self.is_stopped, self.lock = time.perf_counter(), False, threading.RLock()

    def _norm_at_zero(self, penalty: Penalty) -> float:
        own, free = (
            norm_at_zero(self.prepared, self.weight, self.problem._replace(penalty=one))
            for one in (penalty, ElasticNet())
        )
        return max(own, LEAST_REFERENCE * free) or np.inf  # if zero is the optimum, every norm is small

    @property
    def left(self) -> np.ndarray:
        """Numbers of the models that take further shared passes."""
        return np.flatnonzero(~self.converged & ~self.separate)

    def solve_sample(self) -> None:
        """Solve the path of all rows on the sample. Its optima are the start of the models of all folds."""
        executor, prepared, models = self.source.executor, self.prepared, self.models
        _, rows = prepared.handover.take()
        if not may_step(self.problem):
            self.separate[:] = True
            return
        call = (rows, self.problem, len(prepared.zero), prepared.stats, sum(fact.rows for fact in prepared.facts))
        self.sample = executor.submit(make_path_sample, *call, name="saga-sample")
        calls = [(self.sample, penalties, self.problem) for penalties in models.penalties]
        self.bases = executor.map_parallel(base_path, calls, name="saga-start")
        found = executor.gather(executor.map(_optima, [(base,) for base in self.bases], name="saga-head"))
        if any(one is None for one in found):
            self.separate[:] = True
            return
        for field, values in zip((self.next_x, self.gain), zip(*found, strict=True), strict=True):
            field[:] = np.repeat(np.concatenate(values), models.shape[2], axis=0)

    def take_pass(self) -> None:
        """Evaluate the models that are left, find those that have converged, and compute the next x of the others."""
        left = self.left
        x = self.next_x[left]
        sums = self._sums(left, x)
        weights = self.weight - np.where(self.folds[left] < 0, 0.0, np.append(sums.weights, 0.0)[self.folds[left]])
        gradients = sums.gradient / weights[:, None, None]
        moved, promises = self._steps(left, x, gradients)
        norms = np.array([self._norm(*one) for one in zip(left, x, gradients, strict=True)])
        least = ROUNDED * abs(self.prepared.value) / self.weight
        converged = (norms <= self.tol) & (promises <= np.maximum(self.tol * (self.gain[left] + promises), least))
        self.strikes[left] += ~(promises <= SLOW * self.promise[left])
        self.x[left], self.held_out[left], self.fold_weights = x, sums.held_out, sums.weights
        self.next_x[left], self.promise[left], self.converged[left] = moved, promises, converged
        self.separate[left] = ~converged & (~np.isfinite(promises) | (self.strikes[left] >= STRIKES))
        self._note(norms[~converged].max(initial=0.0))

    def _norm(self, model: int, x: np.ndarray, gradient: np.ndarray) -> float:
        """Return the gradient norm of a model, relative to its value at zero."""
        preconditioned = PreconditionedProblem(
            self.problem._replace(penalty=self.models.penalty(model)), self.prepared.axes
        )
        return preconditioned.gradient_mapping_norm(x, gradient) / self.references[self.models.penalty(model)]

    def _sums(self, models: np.ndarray, x: np.ndarray) -> PathSums:
        """Make one pass that evaluates these models at x."""
        source, executor = self.source, self.source.executor
        [there] = executor.put([x]) if x.nbytes > SENT_BYTES else [x]
        call = (there, self.folds[models], self.models.folds, self.problem)
        sums = source.map(path_sums, *call, name="saga-path", nbytes=x.nbytes)
        return executor.gather(merged(executor, merge_sums, sums, MERGED))[0]

    def _steps(self, left: np.ndarray, x: np.ndarray, gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute the next x of each model, and the decrease of F that its step promises. Threads share the models."""
        executor = self.source.executor
        limits = np.minimum(TRUSTED * np.maximum(self.gain[left], 0.0), FALLS * self.promise[left])
        parts = [part for part in even_slices(len(left), executor.threads()) if part.stop > part.start]
        calls = [
            (self.sample, self.problem, [self.models.member(int(m)) for m in left[part]], x[part], gradients[part],
             limits[part], *self.bases)
            for part in parts
        ]  # fmt: skip
        results = executor.gather(executor.map_parallel(path_steps, calls, name="saga-newton"))
        moved, promises = zip(*results, strict=True)
        return np.concatenate(moved), np.concatenate(promises)

    def fit_separately(self, seed: int, max_iter: int) -> None:
        """Fit the models for which shared passes gain too little.

        Models that differ in alpha only are a chain, and are fitted one after the other. Those of all rows come first,
        because the others start near them. Threads share the chains where chunks are held in this process.
        """
        chains: dict[tuple[int, int], list[int]] = {}
        for m in np.flatnonzero(self.separate):
            chains.setdefault((self.models.member(int(m)).ratio, int(self.folds[m])), []).append(int(m))
        executor, most = self.source.executor, self.problem.n_threads
        for group in ([own for (_, fold), own in chains.items() if (fold < 0) == first] for first in (True, False)):
            is_shared = self.source.holds and not executor.is_asynchronous
            count = min(most, len(group)) if is_shared and group else 1
            problem = self.problem._replace(n_threads=max(1, most // count))
            with threads(count) as each:
                list(each(functools.partial(self._fit_chain, problem=problem, seed=seed, max_iter=max_iter), group))

    def _fit_chain(self, chain: list[int], problem: Problem, seed: int, max_iter: int) -> None:
        fold = int(self.folds[chain[0]])
        source = self.source if fold < 0 else self.source.changed(without_fold, fold)
        before: int | None = None
        for m in chain:
            if self.fitted[m] or self.is_stopped:
                before = m
                continue
            own = problem._replace(penalty=self.models.penalty(m))
            result = run(
                source, prepare(source, own), own, seed=visit_seed(seed, "path", m), max_iter=max_iter, tol=self.tol,
                start=self._start(m, before),
            )  # fmt: skip
            if result.interrupted:
                raise KeyboardInterrupt
            before = m
            with self.lock:
                self.x[m], self.converged[m] = result.x, result.converged
                self.held_out[m], self.fitted[m] = np.nan, True
                self._note(result.history[-1]["gradient_norm"] if result.history else 0.0)

    def _start(self, model: int, before: int | None) -> np.ndarray | None:
        """Return the start of a model that is fitted separately after its neighbour `before`.

        It is where shared passes have led. Otherwise it is the model of all rows, plus what the fold has changed in the
        neighbour.
        """
        if self.x[model].any():
            return self.x[model]
        folds, has_all = self.models.shape[2], self.models.fits_all and self.folds[model] >= 0
        whole = self.x[model // folds * folds + folds - 1] if has_all else None
        if before is None:
            return whole
        return self.x[before] if whole is None else whole + self.x[before] - self.x[before // folds * folds + folds - 1]

    def measure_held_out(self) -> None:
        """Compute the held-out losses that are not known, some models at a time."""
        unknown = np.flatnonzero(np.isnan(self.held_out) & (self.folds >= 0))
        size = max(1, MEASURED_BYTES // self.x[0].nbytes)
        for k in range(0, len(unknown), size):
            some = unknown[k : k + size]
            sums = self._sums(some, self.x[some])
            self.held_out[some], self.fold_weights = sums.held_out, sums.weights

    @property
    def _identity(self) -> dict:
        """What a checkpoint must share with this fit."""
        facts = [(fact.content, fact.weights_content) for fact in self.prepared.facts]
        return {"data": digest(facts), "parameters": digest(self.problem.token(), self.models, self.tol)}

    def resume(self) -> None:
        """Continue from a checkpoint, if there is one."""
        saved = self.checkpoint.load(self._identity) if self.checkpoint else None
        if saved is None:
            return
        self.x, self.next_x = (field.reshape(self.x.shape).copy() for field in (saved.head.x, saved.head.gradient_sum))
        for name in SAVED:
            setattr(self, name, np.array(saved.facts[name], dtype=getattr(self, name).dtype))
        self.history = saved.facts["history"]

    def save(self) -> None:
        """Write a checkpoint. Its solver state has the outputs of all models."""
        if self.checkpoint is None:
            return
        stacked = (field.reshape(-1, self.x.shape[2]) for field in (self.x, self.next_x))
        head = new_solver_state(self.x.shape[2] - 1, len(self.x) * self.x.shape[1])
        head = head._replace(**dict(zip(("x", "gradient_sum"), stacked, strict=True)))
        facts = {name: getattr(self, name).tolist() for name in SAVED}
        self.checkpoint.save(
            self._identity, Saved(head, [], {**facts, "history": self.history, "epoch": len(self.history)})
        )

    def _note(self, norm: float) -> None:
        """Add one row to the history, and call the callback."""
        info = PathInfo(
            len(self.history) + 1,
            len(self.folds),
            int(self.converged.sum()),
            float(norm),
            time.perf_counter() - self.began,
            self.source.bytes_read,
        )
        logger.info("epoch %d: %d of %d models, gradient norm %.2e", *info[:1], info.converged, info.models, norm)
        self.history.append(info._asdict())
        if self.checkpoint and self.checkpoint.is_due():
            self.save()
        answer = self.callback(info) if self.callback else None
        self.is_stopped = self.is_stopped or (isinstance(answer, (bool, np.bool_)) and bool(answer))


def checked_folds(folds: Folds, source: Source, classes: np.ndarray | None) -> Folds:
    """Check the folds of all rows before any pass, from targets and weights only. Return them without the given array.

    Raises
    ------
    ValueError
        If a fold has no rows, or has or leaves a single class.
    """
    executor, blocks = source.executor, [(block, source.name(k)) for k, block in enumerate(source.targets())]
    folds = folds._replace(given=None)
    calls = [(*block, folds, classes) for block in blocks]
    counts = executor.gather(executor.map(block_counts, calls, name="saga-folds"))
    check_counts(np.sum(counts, axis=0), folds, classes)
    return folds


def held_out_rows(source: Source, x: np.ndarray, count: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return predictions, targets and weights of the rows of each fold by the models that leave it out, in one pass.

    Parameters
    ----------
    source : Source
    x : ndarray of shape (models, folds, k, p + 1)
    count : int
        Number of folds.

    Returns
    -------
    list of tuple
        For each fold predictions of shape (n, models, k), targets of shape (n, k) and weights of shape (n,).
    """
    parts = source.executor.gather(source.map(held_out_predictions, x, count, name="saga-score"))
    folds = [[*zip(*fold, strict=True)] for fold in zip(*parts, strict=True)]
    return [(np.concatenate(z), np.concatenate(targets), np.concatenate(weights)) for z, targets, weights in folds]


# Functions that run as tasks.


def _optima(base: BasePath | None) -> tuple[np.ndarray, np.ndarray] | None:
    return None if base is None else (base.x, base.gain)
