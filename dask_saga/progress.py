"""A progress bar over the passes of a fit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from tqdm.auto import tqdm

__all__ = ["showing_progress"]


@contextlib.contextmanager
def showing_progress(verbose: int, max_iter: int, callback: Callable | None) -> Iterator[Callable | None]:
    """The callback, drawing a bar before it is called if `verbose`."""
    if not verbose:
        yield callback
        return
    with tqdm(total=max_iter, unit="pass", desc="SAGA") as bar:

        def draw(info: Any) -> Any:
            bar.set_postfix({"gradient norm": f"{info.gradient_norm:.1e}"}, refresh=False)
            bar.update()
            return None if callback is None else callback(info)

        yield draw
