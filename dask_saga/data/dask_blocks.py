"""Dask collections as lists of blocks, which are the chunks."""

from __future__ import annotations

import math
from numbers import Number
from typing import Any

import numpy as np
from dask import is_dask_collection
from distributed.client import futures_of

from .targets import NO_TARGET

__all__ = ["column_names", "dask_blocks", "known_length", "most_bytes", "partitions"]


# Blocks along the columns are put together where the larger blocks take no more.
MERGED_BYTES = 2**28


def _split(
    name: str, collection: Any, lengths: tuple | None, alone: bool, framed: bool = False
) -> tuple[list, tuple | None]:
    """A Dask collection, or an array beside one, as a list of blocks and their known lengths.

    Tasks are fused only of what is `alone`: a read that X and y share would else become a part of both, and Dask loses
    what is on a cluster. Whether X is a frame, `framed`, decides which remedy an error names.
    """
    if getattr(collection, "ndim", 1) == 0:
        raise ValueError(f"{name} is a single number; give one for each row of X")
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
        # Not to_dask_array(lengths=True), which fails inside Dask where it reads several small files with one task.
        column, array = (" such as a column of the same frame,", "X.to_dask_array()") if framed else ("", "X")
        raise ValueError(
            f"{name} is in memory, but X is a Dask collection whose block lengths are unknown; make {name} a Dask "
            f"collection too,{column} or give X known lengths: {array}.compute_chunk_sizes()"
        )
    array = collection.iloc if hasattr(collection, "iloc") else np.asarray(collection)
    if len(collection) != sum(lengths):
        raise ValueError(f"X has {sum(lengths)} rows, but {name} has {len(collection)}")
    ends = np.cumsum(lengths)
    return [array[end - n : end] for n, end in zip(lengths, ends, strict=True)], lengths


def partitions(frame: Any) -> list:
    """The partitions of a dask dataframe or series, delayed, as many as it says: Dask would merge what reads little."""
    parts = frame.optimize(fuse=False).to_delayed(optimize_graph=False)
    return parts if len(parts) == frame.npartitions else frame.simplify().to_delayed(optimize_graph=False)


def column_names(collection: Any) -> list | None:
    """Those of a dask dataframe; None of anything else."""
    return list(collection.columns) if hasattr(collection, "npartitions") and hasattr(collection, "columns") else None


def most_bytes(collection: Any) -> float:
    """What the chunks of a Dask array take if they are dense; NaN where its rows are not known, or of anything else."""
    if not hasattr(collection, "numblocks"):
        return math.nan
    return float(np.prod(collection.shape) * (4 if collection.dtype == np.float32 else 8))


def known_length(collection: Any, axis: int) -> float:
    """Rows or columns of a Dask collection; NaN where they are not known."""
    [length] = getattr(collection, "shape", ())[axis : axis + 1] or [math.nan]
    return float(length) if isinstance(length, (int, float)) else math.nan


def dask_blocks(X: Any, y: Any, sample_weight: Any = None) -> list:
    """``(X, y, sample_weight)`` of each block of Dask collections that are blocked alike, delayed where they are lazy.

    Parameters
    ----------
    X : dask array or dataframe
    y, sample_weight : dask array or series, or in memory
        In memory only where the block lengths of X are known.

    Raises
    ------
    ValueError
        If the blocks do not match, naming the first that differs, or X is blocked
        along its columns.
    """
    if not is_dask_collection(X):
        raise TypeError("y or sample_weight is a Dask collection, but X is not; make X one too")
    if getattr(X, "ndim", 2) != 2:
        raise ValueError(f"Expected 2D array for X, got {X.ndim}D array instead. Reshape your data")
    if y is None:
        raise ValueError(NO_TARGET)
    arrays = [part for part in (X, y, sample_weight) if hasattr(part, "numblocks")]
    layers = [name for array in arrays for name in array.dask.layers]
    alone = len(layers) == len(set(layers)) and not futures_of(arrays)
    blocks, lengths = _split("X", X, None, alone)
    columns = [blocks]
    for name, other in (("y", y), ("sample_weight", sample_weight)):
        if other is None or isinstance(other, Number):
            columns.append([other] * len(blocks))
            continue
        others, known = _split(name, other, lengths, alone, framed=not hasattr(X, "numblocks"))
        if lengths and known and sum(lengths) != sum(known):
            raise ValueError(f"X has {sum(lengths)} rows, but {name} has {sum(known)}")
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
