"""User feedback during and after a fit: a progress bar, and advice if the fit did not converge."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..execution.compilation import calling_on_compilation

if TYPE_CHECKING:
    from ..data.statistics import ColumnStats

__all__ = [
    "ONLY_PREDICTS",
    "ZERO_WEIGHTS",
    "Ending",
    "diverged_advice",
    "showing_models",
    "showing_progress",
    "unconverged_advice",
]


# Part of messages: what an estimator without gradient memory can and cannot do.
ONLY_PREDICTS = (
    "It can predict and start a fit with warm_start=True, but partial_fit and forget need the gradient memory"
)

# Message of the error for weights that leave no row.
ZERO_WEIGHTS = "sample_weight is zero for every row; give a positive weight to the rows that count"

# Minimum number of passes for a convergence rate to count as steady.
LEAST_PASSES = 10

# Decrease of the log gradient norm per pass if 100 passes halve the norm. Slower convergence counts as no progress.
RATE_OF_HALF = np.log(2) / 100

# Penalty weight from which on the advice does not suggest a larger alpha, as the penalty already dominates.
LARGE_ALPHA = 1e-2

# An entry is an outlier if it is OUTLIER_DEVIATIONS standard deviations from the mean, or if its square contributes
# more than OUTLIER_SHARE of the column's sum of squares. The test needs OUTLIER_ROWS rows.
OUTLIER_DEVIATIONS, OUTLIER_SHARE, OUTLIER_ROWS = 30.0, 0.5, 100

# Relative gradient norm above which float32 gradient memory is precise enough.
COARSE = 1e-5


@contextlib.contextmanager
def showing_progress(verbose: int, max_iter: int, callback: Callable | None) -> Iterator[Callable | None]:
    """Yield the callback of a fit. If `verbose`, it also updates a progress bar before each call.

    The bar says if this process compiles kernels.
    """
    if not verbose:
        yield callback
        return
    from tqdm.auto import tqdm  # here, because its import takes long where widgets are installed

    with (
        tqdm(total=max_iter, unit="pass", desc="SAGA") as bar,
        calling_on_compilation(lambda: bar.set_postfix_str("compiling, once per machine")),
    ):

        def draw(info: Any) -> Any:
            bar.set_postfix({"gradient norm": f"{info.gradient_norm:.1e}"}, refresh=False)
            bar.update(info.epoch - bar.n)  # a resumed fit does not start at epoch 0
            return None if callback is None else callback(info)

        yield draw


@contextlib.contextmanager
def showing_models(verbose: int, callback: Callable | None) -> Iterator[Callable | None]:
    """Do the same as ``showing_progress`` for a path. The bar counts the models that have converged."""
    if not verbose:
        yield callback
        return
    from tqdm.auto import tqdm  # here, because its import takes long where widgets are installed

    with tqdm(unit="model", desc="SAGA") as bar:

        def draw(info: Any) -> Any:
            bar.total = info.models
            bar.set_postfix({"pass": info.epoch, "gradient norm": f"{info.gradient_norm:.1e}"}, refresh=False)
            bar.update(info.converged - bar.n)
            return None if callback is None else callback(info)

        yield draw


class Ending(NamedTuple):
    """Final values of a fit that did not converge.

    Parameters
    ----------
    norms : list of float
        Relative gradient norm after each pass.
    n_chunks : int
        Number of chunks that are visited separately.
    step_multiplier : float
        Final factor of the "auto" step. It is below 1 if visits settled before they ended.
    stats : ColumnStats
        Column statistics of all chunks.
    names : sequence of str or None
        Column names, or None.
    needs_float64 : bool
        Whether `tol` is below the precision of float32 gradient memory.
    """

    norms: list[float]
    n_chunks: int
    step_multiplier: float
    stats: ColumnStats
    names: Any
    needs_float64: bool


def unconverged_advice(estimator: Any, ending: Ending) -> str:
    """Return a message that says what `max_iter` passes reached, and what would help."""
    norms = ending.norms
    reached = (
        f"max_iter={estimator.max_iter} passes ended at a relative gradient norm of {norms[-1]:.1e}"
        f"{', above' if norms[-1] > estimator.tol else '; a Newton step promises more than'} tol={estimator.tol}."
    )
    rate, is_steady = _rate(norms)
    if ending.needs_float64 and norms[-1] < COARSE and rate > -RATE_OF_HALF:
        advice = "The float32 gradient memory goes no further: set memory_dtype='float64', or raise tol."
    elif rate < 0 and rate * len(norms) < np.log(0.25):
        advice = f"The norm is falling{_passes_left(norms, estimator.tol, rate, is_steady)}: raise max_iter."
    elif estimator.step_size != "auto":
        advice = "The norm hardly falls: try step_size='auto'."
    else:
        apart = ending.n_chunks > 1 and ending.step_multiplier < 1.0
        reason = ", as the chunks differ" if apart else ""
        remedies = ["shuffle the rows among the chunks"] if apart else []
        remedies += [] if apart else ["raise step_size_scale"]
        remedies += _penalty_advice(estimator)
        advice = f"The norm falls slowly{reason}: {', '.join(remedies)}, or raise max_iter."
    return " ".join([reached, advice, *_column_advice(ending.stats, ending.names)])


def _rate(norms: list[float]) -> tuple[float, bool]:
    """Return the change of the log gradient norm per pass, and whether it is steady.

    The rate is the slower of the rates over the last half and the last quarter of the passes. It is steady if the two
    agree within a factor of 2.
    """
    logs = np.log(np.maximum(norms, np.finfo(float).tiny))
    rates = [(logs[-1] - logs[-1 - n]) / n for n in {max(1, len(logs) // 2), max(1, len(logs) // 4)} if n < len(logs)]
    if not rates:
        return 0.0, False
    return max(rates), len(norms) >= LEAST_PASSES and max(rates) < 0.5 * min(rates)


def _passes_left(norms: list[float], tol: float, rate: float, is_steady: bool) -> str:
    """Return text with a range of passes still needed; empty if the rate is not steady or the number is too large."""
    if not is_steady or not 0 < tol < norms[-1]:
        return ""
    more = int(np.ceil(np.log(tol / norms[-1]) / rate))
    return f", and {more} to {3 * more} more passes may do" if more <= 3 * len(norms) else ""


def _penalty_advice(estimator: Any) -> list[str]:
    if estimator.penalty is None:
        return ["add a penalty"]
    return ["raise alpha"] if isinstance(estimator.penalty, str) and estimator.alpha < LARGE_ALPHA else []


def _column_advice(stats: ColumnStats, names: Any) -> list[str]:
    """Return advice on the column with the largest outlier, or an empty list if no column has one."""
    far = np.maximum(stats.high - stats.mean, stats.mean - stats.low) ** 2
    ordinary = (np.abs(stats.low) <= 1) & (np.abs(stats.high) <= 1)  # such as one-hot columns of rare levels
    with np.errstate(all="ignore"):
        deviations = np.where(ordinary | (stats.squares <= 0), 0.0, far / stats.squares * stats.weight)
    worst = int(np.argmax(deviations)) if len(deviations) else 0
    least = min(OUTLIER_DEVIATIONS**2, OUTLIER_SHARE * stats.rows)
    if stats.rows < OUTLIER_ROWS or not (deviations[worst : worst + 1] > least).any():
        return []
    column = worst if names is None else repr(names[worst])
    value = max(stats.low[worst], stats.high[worst], key=lambda one: abs(one - stats.mean[worst]))
    return [f"Column {column} has an entry, {value:.3g}, far outside of the others: check it, or clip the column."]


def diverged_advice(estimator: Any) -> str:
    """Return a message for a fit that diverged: which coefficients are kept, and what would help."""
    remedy = "step_size_scale" if estimator.step_size == "auto" else "step_size"
    own = "" if isinstance(estimator.loss, str) else ", or check the curvature of the loss"
    return f"The steps diverged; coefficients are the last finite ones. Lower {remedy}{own}, and fit again."
