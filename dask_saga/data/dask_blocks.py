"""Split Dask collections into lists of blocks; each block becomes one chunk."""

from __future__ import annotations

import math
from numbers import Number
from typing import Any

import numpy as np
from dask import is_dask_collection
from distributed.client import futures_of

from .targets import NO_TARGET

__all__ = ["column_names", "dask_blocks", "known_length", "most_bytes", "partitions"]


# Column blocks of an array are merged only if a block of whole rows takes at most this many bytes (256 MiB).
MERGED_BYTES = 2**28


def _split(
    name: str, collection: Any, lengths: tuple | None, alone: bool, framed: bool = False
) -> tuple[list, tuple | None]:
    """Split a Dask collection, or an in-memory array next to one, into blocks; also return their lengths if known.

    Task fusion is used only if `alone` is True. If X and y share a read task, fusion would duplicate that task in both
    graphs. Fusion would also lose data that are already on a cluster. `framed` says whether X is a frame; it selects
    the remedy that an error message names.
    """
    if getattr(collection, "ndim", 1) == 0:
        raise ValueError(f"{name} is a single number; give one number for each row of X")
    if hasattr(collection, "numblocks"):
        if collection.ndim > 1 and collection.numblocks[1] > 1:
            size = max(collection.chunks[0]) * collection.shape[1] * collection.dtype.itemsize
            if not size <= MERGED_BYTES:
                would, call = (
                    ("are of unknown length", f"{name}.compute_chunk_sizes()")
                    if math.isnan(size)
                    else (f"would take {size / 1e6:.0f} MB", name)
                )
                raise ValueError(
                    f"{name} is blocked along its columns ({collection.numblocks[1]} blocks), and blocks of whole rows "
                    f"{would}; rechunk it first: {call}.rechunk({{0: 'auto', 1: -1}})"
                )
            collection = collection.rechunk({1: -1}, method="tasks")
        known = tuple(int(n) for n in collection.chunks[0]) if not np.isnan(collection.chunks[0]).any() else None
        return list(collection.to_delayed(optimize_graph=alone).ravel()), known
    if is_dask_collection(collection):
        return partitions(collection), None
    if lengths is None:
        # to_dask_array(lengths=True) is not suggested: it fails inside Dask if one task reads several small files.
        column, source = (" such as a column of the same frame,", "X.to_dask_array()") if framed else ("", "X")
        raise ValueError(
            f"{name} is in memory, but X is a Dask collection whose block lengths are unknown; make {name} a Dask "
            f"collection too,{column} or give X known lengths: {source}.compute_chunk_sizes()"
        )
    array = collection.iloc if hasattr(collection, "iloc") else np.asarray(collection)
    if len(collection) != sum(lengths):
        raise ValueError(f"X has {sum(lengths)} rows, but {name} has {len(collection)}; give one entry per row")
    ends = np.cumsum(lengths)
    return [array[end - n : end] for n, end in zip(lengths, ends, strict=True)], lengths


def partitions(frame: Any) -> list:
    """Return the partitions of a dask dataframe or series as delayed objects.

    Their number equals ``frame.npartitions``. If Dask's optimizer merges small reads, the frame is only simplified.
    """
    parts = frame.optimize(fuse=False).to_delayed(optimize_graph=False)
    return parts if len(parts) == frame.npartitions else frame.simplify().to_delayed(optimize_graph=False)


def column_names(collection: Any) -> list | None:
    """Return the column names of a dask dataframe, or None for any other object."""
    return list(collection.columns) if hasattr(collection, "npartitions") and hasattr(collection, "columns") else None


def most_bytes(collection: Any) -> float:
    """Return the size in bytes of a Dask array read as dense chunks; NaN if it is unknown or for any other object."""
    if not hasattr(collection, "numblocks"):
        return math.nan
    return float(np.prod(collection.shape) * (4 if collection.dtype == np.float32 else 8))


def known_length(collection: Any, axis: int) -> float:
    """Return the length of a Dask collection along an axis, or NaN if it is unknown."""
    [length] = getattr(collection, "shape", ())[axis : axis + 1] or [math.nan]
    return float(length) if isinstance(length, (int, float)) else math.nan


def dask_blocks(X: Any, y: Any, sample_weight: Any = None, *folds: Any) -> list:
    """Return one tuple ``(X, y, sample_weight, *folds)`` per block; lazy parts are delayed objects.

    All Dask collections must have the same block lengths.

    Parameters
    ----------
    X : dask array or dataframe
        Rows. Blocks along the columns are merged if they are small.
    y : dask array or series, or array-like
        Targets. They may be in memory only if the block lengths of X are known.
    sample_weight : dask array or series, array-like, number or None, default=None
        Row weights. The same rule applies. A number is passed on to every block.
    *folds : dask array or series, array-like or None
        At most one array with the fold of each row, for which the same rule applies. None is passed on.

    Returns
    -------
    list of tuple
        One tuple per block.

    Raises
    ------
    ValueError
        If the blocks do not match (the message names the first that differs), or if X has column blocks that are
        too large to merge.
    TypeError
        If X is not a Dask collection.
    """
    if not is_dask_collection(X):
        raise TypeError("y or sample_weight is a Dask collection, but X is not; make X one too")
    if getattr(X, "ndim", 2) != 2:
        raise ValueError(
            f"Expected 2D array for X, got {X.ndim}D array instead. Reshape your data to (rows, columns): a single "
            "column is X.reshape(-1, 1)"
        )
    if y is None:
        raise ValueError(NO_TARGET)
    named = {"y": y, "sample_weight": sample_weight, **dict(zip(["cv"], folds, strict=False))}
    arrays = [part for part in (X, *named.values()) if hasattr(part, "numblocks")]
    layers = [name for array in arrays for name in array.dask.layers]
    alone = len(layers) == len(set(layers)) and not futures_of(arrays)
    blocks, lengths = _split("X", X, None, alone)
    columns = [blocks]
    for name, other in named.items():
        if other is None or isinstance(other, Number):
            columns.append([other] * len(blocks))
            continue
        others, known = _split(name, other, lengths, alone, framed=not hasattr(X, "numblocks"))
        if lengths and known and sum(lengths) != sum(known):
            raise ValueError(f"X has {sum(lengths)} rows, but {name} has {sum(known)}; give one entry per row")
        if hasattr(other, "rechunk") and lengths and known:
            remedy = f"{name}.rechunk((X.chunks[0],))"
        else:
            remedy = (
                "take both of one persisted frame, frame = frame.persist(); X, y = frame[columns], frame[label], or "
                "give both known lengths, by compute_chunk_sizes()"
            )
        if len(others) != len(blocks):
            raise ValueError(
                f"X has {len(blocks)} blocks, but {name} has {len(others)}; block one like the other: {remedy}"
            )
        for k, (n, m) in enumerate(zip(lengths or (), known or (), strict=False)):
            if n != m:
                raise ValueError(f"chunk {k}: X has {n} rows, but {name} has {m}; block one like the other: {remedy}")
        columns.append(others)
    return list(zip(*columns, strict=True))
