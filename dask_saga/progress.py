"""What a user sees of a fit: a bar of its passes, and advice where it did not converge."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tqdm.auto import tqdm

__all__ = ["diverged_advice", "showing_progress", "unconverged_advice"]


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


def unconverged_advice(estimator: Any, norms: list[float], cut: float) -> str:
    """What `max_iter` passes reached, by the gradient norms after each, and what would help."""
    reached = (
        f"max_iter={estimator.max_iter} passes ended at a relative gradient norm of {norms[-1]:.1e}, "
        f"above tol={estimator.tol}. "
    )
    if norms[-1] < 1e-8 and estimator.memory_dtype == "float32" and estimator.step_size == "auto":
        return reached + "float32 memory gradients go no further: set memory_dtype='float64', or raise tol."
    half = len(norms) // 2
    fell = norms[-1] / norms[half] if norms[half] > 0 else 1.0
    if 0 < fell < 0.5 and len(norms) > 1 and estimator.tol > 0:
        more = np.log(estimator.tol / norms[-1]) / np.log(fell) * (len(norms) - half)
        return reached + f"It is falling: about {int(np.ceil(more))} more passes would do. Raise max_iter."
    if estimator.step_size != "auto":
        return reached + "It hardly falls: try step_size='auto'."
    if cut >= 1.0:
        return reached + "It falls slowly: raise step_size_scale, alpha, or max_iter."
    return reached + "It falls slowly, as the chunks differ: shuffle the rows among them, raise alpha, or max_iter."


def diverged_advice(estimator: Any) -> str:
    """What became of steps that left finite numbers, and what would help."""
    remedy = "step_size_scale" if estimator.step_size == "auto" else "step_size"
    own = "" if isinstance(estimator.loss, str) else ", or check the curvature of the loss"
    return f"The steps diverged; coefficients are the last finite ones. Lower {remedy}{own}, and fit again."
