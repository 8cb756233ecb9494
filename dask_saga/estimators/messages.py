"""What a user sees of a fit: a bar of its passes, and advice where it did not converge."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from ..data.statistics import ColumnStats

__all__ = ["Ending", "diverged_advice", "showing_progress", "unconverged_advice"]


# Passes from which on a rate is called steady.
LEAST_PASSES = 10

# The change of the logarithm of the norm in a pass of a hundred that halve it: slower is no progress.
RATE_OF_HALF = np.log(2) / 100

# A larger alpha rules the problem already.
LARGE_ALPHA = 1e-2

# An entry is far outside of the others where it is so many standard deviations from the mean, or where its square makes
# up such a share of the variance of so many rows.
FAR, ONE_ENTRY, LEAST_ROWS = 30.0, 0.5, 100

# float32 memory tells gradients that are larger.
COARSE = 1e-5


@contextlib.contextmanager
def showing_progress(verbose: int, max_iter: int, callback: Callable | None) -> Iterator[Callable | None]:
    """The callback, drawing a bar before it is called if `verbose`."""
    if not verbose:
        yield callback
        return
    with tqdm(total=max_iter, unit="pass", desc="SAGA") as bar:

        def draw(info: Any) -> Any:
            bar.set_postfix({"gradient norm": f"{info.gradient_norm:.1e}"}, refresh=False)
            bar.update(info.epoch - bar.n)  # a fit that was resumed has made some
            return None if callback is None else callback(info)

        yield draw


class Ending(NamedTuple):
    """How a fit ended that did not converge.

    Parameters
    ----------
    norms : list of float
        Relative gradient norm after each pass.
    n_chunks : int
        Chunks that are visited apart.
    step_multiplier : float
        What the "auto" step was multiplied by at the end; below one where visits settled before they ended.
    stats : ColumnStats
    names : sequence of str or None
        Names of the columns.
    needs_float64 : bool
        Whether `tol` asks for more than float32 gradient memory can tell.
    """

    norms: list[float]
    n_chunks: int
    step_multiplier: float
    stats: ColumnStats
    names: Any
    needs_float64: bool


def unconverged_advice(estimator: Any, ending: Ending) -> str:
    """What `max_iter` passes reached, and what would help."""
    norms = ending.norms
    reached = (
        f"max_iter={estimator.max_iter} passes ended at a relative gradient norm of {norms[-1]:.1e}"
        f"{', above' if norms[-1] > estimator.tol else '; by curvature more is to be gained than'} tol={estimator.tol}."
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
    """By how much the logarithm of the norm changes a pass, and whether it has done so steadily.

    The slower one of the last half and the last quarter of the passes. It is steady where they agree to a factor of 2.
    """
    logs = np.log(np.maximum(norms, np.finfo(float).tiny))
    rates = [(logs[-1] - logs[-1 - n]) / n for n in {max(1, len(logs) // 2), max(1, len(logs) // 4)} if n < len(logs)]
    if not rates:
        return 0.0, False
    return max(rates), len(norms) >= LEAST_PASSES and max(rates) < 0.5 * min(rates)


def _passes_left(norms: list[float], tol: float, rate: float, is_steady: bool) -> str:
    """How many more passes would do, as a range; nothing where the rate is not known, or they would be many more."""
    if not is_steady or not 0 < tol < norms[-1]:
        return ""
    more = int(np.ceil(np.log(tol / norms[-1]) / rate))
    return f", and {more} to {3 * more} more passes may do" if more <= 3 * len(norms) else ""


def _penalty_advice(estimator: Any) -> list[str]:
    if estimator.penalty is None:
        return ["add a penalty"]
    return ["raise alpha"] if isinstance(estimator.penalty, str) and estimator.alpha < LARGE_ALPHA else []


def _column_advice(stats: ColumnStats, names: Any) -> list[str]:
    """The column of which a single entry makes up much of the variance, if there is one."""
    far = np.maximum(stats.high - stats.mean, stats.mean - stats.low) ** 2
    ordinary = (np.abs(stats.low) <= 1) & (np.abs(stats.high) <= 1)  # as of rare levels, one-hot
    with np.errstate(all="ignore"):
        deviations = np.where(ordinary | (stats.squares <= 0), 0.0, far / stats.squares * stats.weight)
    worst = int(np.argmax(deviations)) if len(deviations) else 0
    if stats.rows < LEAST_ROWS or not (deviations[worst : worst + 1] > min(FAR**2, ONE_ENTRY * stats.rows)).any():
        return []
    column = worst if names is None else repr(names[worst])
    value = max(stats.low[worst], stats.high[worst], key=lambda one: abs(one - stats.mean[worst]))
    return [f"Column {column} has an entry, {value:.3g}, far outside of the others: check it, or clip the column."]


def diverged_advice(estimator: Any) -> str:
    """What became of steps that left finite numbers, and what would help."""
    remedy = "step_size_scale" if estimator.step_size == "auto" else "step_size"
    own = "" if isinstance(estimator.loss, str) else ", or check the curvature of the loss"
    return f"The steps diverged; coefficients are the last finite ones. Lower {remedy}{own}, and fit again."
