"""Hostile calls of the public API, each generated from one number, and what must hold after any of them.

``python -m tests.fuzz 0 10000`` runs the calls of these numbers in processes of their own, so that a crash or a
hang of the interpreter is found with its number; ``python -m tests.fuzz --here 17 18`` runs one in this process.
A number stands for one estimator and the calls that are made on it in turn.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import faulthandler
import functools
import itertools
import json
import pickle
import re
import subprocess
import sys
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import scipy.sparse as sp

from dask_saga import SAGAClassifier, SAGARegressor, saga
from dask_saga.inspection import duality_gap
from dask_saga.losses import Huber, PoissonLoss, SmoothHinge
from dask_saga.penalties import ElasticNet

# Seconds after which a call counts as hanging.
HANGS = 120
# Numbers that one process runs, and processes at a time.
BATCH, PROCESSES = 125, 2
DOCUMENTED = (ValueError, TypeError)
ARGUMENTS = re.compile(
    r"\b(X|y|sample_weight|classes|chunk_id|replace|check_content|chunks?|checkpoint|callback|persist|loss|penalty|"
    r"alpha|l1_ratio|fit_intercept|step_size|step_size_scale|precondition|average|max_iter|tol|class_weight|n_parallel|"
    r"n_threads|memory_dtype|random_state|verbose|duality_gap|fitted)\b"
)
LEARNING = ("fit", "partial_fit", "forget", "without_memory", "duality_gap")
EXPONENTS = [-323, -310, -300, -200, -160, -100, -30, -8, 0, 0, 0, 0, 8, 30, 99, 140, 152, 154, 200, 300, 308]


class Broken(AssertionError):
    """What must never happen."""


class Case:
    """Values drawn from one number."""

    def __init__(self, number: int):
        self.rng = np.random.default_rng([number, 8])
        self.malformed = False

    def one(self, *choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    # Data.

    def shape(self) -> tuple[int, int]:
        n, p = self.one(
            (40, 4), (40, 4), (25, 7), (60, 2), (12, 30), (200, 3), (1, 1), (1, 5), (30, 1), (2, 2), (3, 10_000)
        )
        return int(n), int(p)

    def numbers(self, n: int, p: int) -> np.ndarray:
        A = self.rng.standard_normal((n, p))
        kind = self.one("plain", "plain", "one scale", "scales", "far", "wild", "integers")
        with np.errstate(all="ignore"):
            if kind == "one scale":
                A = A * 10.0 ** self.one(*EXPONENTS)
            elif kind == "scales":
                A = (
                    A
                    * 10.0
                    ** np.array([float(self.one(*EXPONENTS)) for _ in range(min(p, 50))])[np.arange(p) % min(p, 50)]
                )
            elif kind == "far":
                A = A * 10.0 ** self.one(-9, -3, 0) + 10.0 ** self.one(3, 9, 15, 100)
            elif kind == "wild":
                A = np.where(self.rng.random((n, p)) < 0.1, 10.0 ** self.one(*EXPONENTS), A)
            elif kind == "integers":
                A = np.round(A * 3)
            A = np.clip(A, -1.7e308, 1.7e308)
        if p > 1 and self.chance(0.3):
            A[:, self.rng.integers(p)] = self.one(0.0, -0.0, 1.0, 1e100, 5e-324)
        if p > 1 and self.chance(0.3):
            A[:, self.rng.integers(p)] = A[:, self.rng.integers(p)]
        if n > 2 and self.chance(0.1):
            A[1] = A[0]
        if A.size and self.chance(0.12):
            A.flat[self.rng.integers(A.size)] = self.one(np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324)
        return A

    def rows(self, n: int, p: int) -> Any:
        A = self.numbers(n, p)
        return self.sparse(A) if self.chance(0.3) else self.dense(A)

    def dense(self, A: np.ndarray) -> Any:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind = self.one(
                "float64", "float64", "float64", "float32", "float32", "F", "read-only", "strided", "reversed", "frame",
                "frame of types", "nullable", "swapped", "float16", "int8", "uint64", "bool", "object", "mixed",
                "strings", "complex", "list", "longdouble", "masked", "datetimes", "categories", "big integers", "1-d",
                "3-d", "0-d", "no rows", "no columns", "none", "ragged", "broadcast", "bytes", "sparse frame",
            )  # fmt: skip
            finite = np.nan_to_num(A, nan=0.0, posinf=1.0, neginf=-1.0)
            names = [f"c{k}" for k in range(A.shape[1])]
            if kind in ("float32", "float16", "bool", "longdouble"):
                return A.astype(kind)
            if kind in ("int8", "uint64"):
                return (
                    np.clip(finite, 0, 100).astype(kind)
                    if self.chance(0.5)
                    else finite.astype("float32").view("u4").astype(kind)
                )
            if kind == "F":
                return np.asfortranarray(A)
            if kind == "read-only":
                A.flags.writeable = False
                return A
            if kind == "strided":
                return np.repeat(np.repeat(A, 2, axis=0), 2, axis=1)[::2, ::2]
            if kind == "reversed":
                return A[::-1, ::-1]
            if kind == "frame":
                return pd.DataFrame(A, columns=names)
            if kind == "frame of types":
                frame = pd.DataFrame(finite, columns=names)
                frame["c0"] = (frame["c0"] > 0) if self.chance(0.5) else np.clip(frame["c0"], -9, 9).astype("int64")
                return frame
            if kind == "nullable":
                frame = pd.DataFrame(A, columns=names).astype("Float64")
                if self.chance(0.5):
                    frame.iloc[0, 0] = pd.NA
                return frame
            if kind == "swapped":
                return A.astype(A.dtype.newbyteorder())
            if kind == "object":
                return A.astype(object)
            if kind == "mixed":
                A = A.astype(object)
                A.flat[0] = self.one("a", None, "1.5", (1, 2), [], {}, b"x", 1j, "", object())
                return A
            if kind == "strings":
                return A.astype(str) if self.chance(0.5) else np.full(A.shape, "a")
            if kind == "bytes":
                return np.full(A.shape, b"a")
            if kind == "complex":
                return A.astype(complex)
            if kind == "list":
                return A.tolist()
            if kind == "masked":
                return np.ma.masked_array(A, mask=A > 1)
            if kind == "datetimes":
                return (
                    np.clip(finite * 1e6, -1e15, 1e15).astype("M8[ns]")
                    if self.chance(0.5)
                    else finite.astype("i1").astype("m8[s]")
                )
            if kind == "categories":
                frame = pd.DataFrame(np.round(np.clip(finite, -3, 3)), columns=names).astype(str)
                return frame.astype("category")
            if kind == "big integers":
                return (
                    [[10**400, *row[1:]] for row in finite.tolist()]
                    if self.chance(0.5)
                    else np.full(A.shape, 2**63, object)
                )
            if kind == "sparse frame":
                return pd.DataFrame.sparse.from_spmatrix(sp.csr_matrix(np.where(finite > 0, finite, 0)), columns=names)
            return {
                "1-d": A[:, 0], "3-d": A[None], "0-d": np.float64(1), "no rows": A[:0], "no columns": A[:, :0],
                "none": None, "ragged": [[1.0], [1.0, 2.0]], "broadcast": np.broadcast_to(A[:1], A.shape),
            }.get(kind, A)  # fmt: skip

    def sparse(self, A: np.ndarray) -> Any:
        A = np.where(self.rng.random(A.shape) < self.one(0.0, 0.05, 0.3, 0.9, 1.0), A, 0.0)
        make = self.one(sp.csr_array, sp.csr_matrix) if _joins_sparse_arrays() else sp.csr_matrix
        A[~np.isfinite(A)] = self.one(0.0, np.nan)
        B = make(A)
        kind = self.one(
            "csr", "csr", "csr", "csc", "coo", "lil", "dok", "bsr", "dia", "int64", "disordered", "doubled", "float32",
            "zeros stored", "integers", "bool", "complex", "object", "read-only", "index too large", "index negative",
            "pointers fall", "pydata", "longdouble",
        )  # fmt: skip
        if kind in ("csc", "coo", "lil", "dok", "bsr", "dia"):
            return B.asformat(kind)
        if kind in ("float32", "bool", "complex", "longdouble"):
            with np.errstate(all="ignore"):
                return B.astype({"bool": bool, "complex": complex}.get(kind, kind))
        if kind == "integers":
            with np.errstate(all="ignore"):
                return make(np.clip(np.nan_to_num(A), -100, 100).astype(int))
        if kind == "int64":
            B.indices, B.indptr = B.indices.astype(np.int64), B.indptr.astype(np.int64)
        elif kind == "disordered":
            for start, end in itertools.pairwise(B.indptr):
                order = start + self.rng.permutation(end - start)
                B.data[start:end], B.indices[start:end] = B.data[order], B.indices[order]
            B = make((B.data, B.indices, B.indptr), shape=B.shape)
        elif kind == "doubled":
            index = np.repeat(B.indices, 2)
            B = make((np.repeat(B.data, 2) / 2, index, B.indptr * 2), shape=B.shape)
        elif kind == "zeros stored":
            B.data[::2] = 0.0
        elif kind == "object":
            B.data = B.data.astype(object)  # scipy refuses it, but only later
            self.malformed = True
        elif kind == "read-only":
            for array in (B.data, B.indices, B.indptr):
                array.flags.writeable = False
        elif kind == "index too large" and B.nnz:
            B.indices[-1] = self.one(B.shape[1], 10**6, 2**31 - 1)
            self.malformed = True
        elif kind == "index negative" and B.nnz:
            B.indices[-1] = self.one(-1, -(2**31))
            self.malformed = True
        elif kind == "pointers fall" and len(B.indptr) > 2:
            B.indptr[1] = self.one(10**6, -5, B.nnz + 1)
            self.malformed = True
        elif kind == "pydata":
            import sparse

            return sparse.COO.from_scipy_sparse(sp.coo_matrix(A))
        return B

    def labels(self, n: int) -> Any:
        with np.errstate(all="ignore"):
            k = self.one(2, 2, 2, 3, 5)
            y = self.rng.integers(k, size=n)
            kind = self.one(
                "int", "int", "int", "float", "str", "object", "bool", "signs", "series", "categories", "nullable",
                "one class", "NaN", "None", "mixed", "column", "two columns", "short", "long", "continuous", "huge",
                "complex", "bytes", "dates", "empty", "none", "list", "uint64", "tiny", "3-d", "many", "number",
            )  # fmt: skip
            if kind == "bool":
                return y > 0
            if kind == "series":
                return pd.Series(y, index=self.rng.permutation(n) + 7)
            if kind == "categories":
                return pd.Series(y).astype("category")
            if kind == "nullable":
                y = pd.Series(y, dtype="Int64")
                if n and self.chance(0.5):
                    y[0] = pd.NA
                return y
            if kind == "None" or kind == "mixed":
                y = y.astype(object)
                y[: max(1, n // 2)] = None if kind == "None" else "a"
                return y
            if kind == "NaN":
                return np.where(y == 0, np.nan, y)
            return {
                "float": y.astype(float), "str": y.astype(str), "object": y.astype(str).astype(object),
                "signs": np.where(y > 0, 1.0, -1.0), "one class": np.ones(n), "column": y[:, None],
                "two columns": np.c_[y, y], "short": y[:-1], "long": np.append(y, 0), "continuous": self.rng.random(n),
                "huge": np.where(y > 0, 1e308, -1e308), "complex": y + 0j, "bytes": y.astype("S1"),
                "dates": y.astype("M8[D]"), "empty": y[:0], "none": None, "list": y.tolist(),
                "uint64": y.astype(np.uint64) + np.uint64(2**63), "tiny": y * 5e-324, "3-d": y[:, None, None],
                "many": np.arange(n), "number": 1,
            }.get(kind, y)  # fmt: skip

    def targets(self, n: int) -> Any:
        with np.errstate(all="ignore"):
            y = self.rng.standard_normal(n)
            kind = self.one(
                "plain", "plain", "plain", "plain", "scaled", "scaled", "far", "huge", "constant", "zero", "int",
                "bool",
                "object", "strings", "complex", "NaN", "inf", "None", "column", "two columns", "no columns", "short",
                "long", "series", "nullable", "float32", "list", "none", "3-d", "counts", "dates", "big", "wild",
                "number",
            )  # fmt: skip
            if kind == "wild" and n:
                y[self.rng.integers(n)] = 10.0 ** self.one(*EXPONENTS)
                return y
            if kind in ("NaN", "inf", "None") and n:
                y = y.astype(object if kind == "None" else float)
                y[0] = {"NaN": np.nan, "inf": np.inf, "None": None}[kind]
                return y
            if kind == "nullable":
                y = pd.Series(y, dtype="Float64")
                if n and self.chance(0.5):
                    y[0] = pd.NA
                return y
            return {
                "scaled": y * 10.0 ** self.one(*EXPONENTS[:-1]), "far": y + 10.0 ** self.one(6, 15, 100),
                "constant": y * 0 + 3.0,
                "huge": np.where(y > 0, 1e308, -1e308), "zero": y * 0.0, "int": (10 * y).astype(int), "bool": y > 0,
                "object": y.astype(object), "strings": np.where(y > 0, "a", "b"), "complex": y + 1j,
                "column": y[:, None], "two columns": np.c_[y, -y + 1], "no columns": y[:, None][:, :0],
                "short": y[:-1], "long": np.append(y, 0.0), "series": pd.Series(y), "float32": y.astype("f4"),
                "list": y.tolist(), "none": None, "3-d": y[:, None, None], "counts": np.round(np.abs(y) * 3),
                "dates": np.zeros(n, "M8[D]"), "big": [10**400] * n, "number": 1.0,
            }.get(kind, y)  # fmt: skip

    def weights(self, n: int) -> Any:
        if self.chance(0.75):
            return None
        w = self.rng.random(n)
        kind = self.one(
            "plain", "ones", "zeros", "some", "one", "huge", "large", "denormal", "small", "negative", "NaN", "inf",
            "short", "long", "number", "zero", "strings", "2-d", "object", "complex", "bool", "list", "series", "steep",
            "big", "none",
        )  # fmt: skip
        return {
            "ones": np.ones(n), "zeros": np.zeros(n), "some": w * (w > 0.5), "one": np.eye(1, n)[0],
            "huge": np.full(n, 1e308), "large": w * 1e200, "denormal": np.full(n, 5e-324), "small": w * 1e-200,
            "negative": -w, "NaN": np.where(w > 0.5, np.nan, w), "inf": np.where(w > 0.5, np.inf, w), "short": w[:-1],
            "long": np.append(w, 1.0), "number": 2.5, "zero": 0, "strings": np.full(n, "a"), "2-d": np.c_[w, w],
            "object": w.astype(object), "complex": w + 1j, "bool": w > 0.5, "list": w.tolist(), "series": pd.Series(w),
            "steep": 10.0 ** np.linspace(-300, 300, n), "big": [10**400] * n, "none": "none",
        }.get(kind, w)  # fmt: skip

    # Parameters.

    def parameters(self, classifier: bool) -> dict:
        names = ["log_loss", "squared_hinge", "modified_huber", "smooth_hinge"]
        names = names if classifier else ["squared_error", "huber", "poisson"]
        own = [SmoothHinge(0.5), SmoothHinge(0.0)] if classifier else [Huber(1e-3), PoissonLoss(), Huber(-1.0)]
        given = {
            "max_iter": self.one(1, 2, 3, 5, 12), "random_state": int(self.rng.integers(100)),
            "tol": self.one(0.0, 1e-4, 1e-9),
            "loss": self.one(*names), "penalty": self.one("l2", "l2", "l2", "l1", "elasticnet", None),
        }  # fmt: skip
        unusual = {
            "loss": [*own, "hinge", None, 3, SmoothHinge, "", ("a", 1)],
            "penalty": ["l3", 3, ElasticNet(l2=1e-3, lower=0.0), ElasticNet(l1=0.1, lower=2.0, upper=1.0),
            ElasticNet(l2=-1.0)],
            "alpha": [0, 0.0, 1e-300, 1e-20, 1.0, 1e20, 1e300, 1e308, -1.0, np.nan, np.inf, "a", None, 10**400, True],
            "l1_ratio": [0.0, 1.0, 0.5, 1.5, -0.1, np.nan, "a"],
            "fit_intercept": [False, False, False, True, "yes", None, np.bool_(False)],
            "step_size": [1e-300, 1e-3, 1.0, 1e10, 1e300, 0.0, -1.0, np.nan, np.inf, "fast", np.float32(0.1), 10**400],
            "step_size_scale": [1e-300, 1e-3, 1.0, 10.0, 1e6, 1e300, 0.0, np.nan, np.inf, "a"],
            "precondition": [False, False, "no"],
            "average": [False, False, 1],
            "max_iter": [0, -1, 1.5, True, None, "3", np.int64(2), np.inf],
            "tol": [np.nan, np.inf, -1.0, 1e308, None, "a", 1e-300],
            "class_weight": ["balanced", {0: 1.0, 1: 2.0}, {0: 0.0}, {0: np.nan}, {1: 1e308}, {"a": 1}, "b", {0: -1.0},
            3, {0: "a"}],
            "n_parallel": [2, 3, "auto", 0, 1.5, None, 10**6],
            "n_threads": [2, 64, 10**6, 0, -1, 2.0, None],
            "memory_dtype": ["float64", "float64", "float16", np.float32, None],
            "random_state": [None, -1, 2**32, 2**70, "a", 1.5, np.random.RandomState(0), np.random.default_rng(0),
            True],
            "verbose": [1, -1, "a", None],
        }  # fmt: skip
        if not classifier:
            del unusual["class_weight"]
        while self.chance(0.25):
            name = self.one(*unusual)
            given[name] = unusual[name][self.rng.integers(len(unusual[name]))]
        return given


@functools.cache
def _joins_sparse_arrays() -> bool:
    """Whether this Dask joins blocks of scipy's sparse arrays; older ones join matrices only."""
    try:
        return bool(da.from_array(sp.csr_array(np.eye(2)), chunks=(2, 1), asarray=False).rechunk((2, 2)).compute().nnz)
    except ValueError:
        return False


def _state_of(estimator: Any) -> tuple:
    values = dict(vars(estimator))
    return values, pickle.dumps(values)


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except ValueError:  # scipy does not copy all that it lets one make
        return None


def _same(one: Any, other: Any) -> bool:
    """Whether an argument is what its copy was."""
    if sp.issparse(one):
        names = ("indices", "indptr", "data") if hasattr(one, "indptr") else ("data",)
        return all(_same(np.asarray(getattr(one, k)), np.asarray(getattr(other, k))) for k in names if hasattr(one, k))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, (pd.DataFrame, pd.Series)):
        return one.equals(other)
    if isinstance(one, np.ndarray) and one.dtype != object:
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and np.asarray(one).tobytes() == np.asarray(other).tobytes()
        )
    return True  # of other kinds nothing is written


class Scenario:
    """One estimator, and calls on it."""

    def __init__(self, number: int):
        self.case = case = Case(number)
        self.classifier = case.chance(0.55)
        self.kind = SAGAClassifier if self.classifier else SAGARegressor
        self.calls: list[str] = []
        self.outcomes: collections.Counter = collections.Counter()
        self.n, self.p = case.shape()
        self.good = self.good_data()

    def good_data(self) -> tuple:
        A = self.case.rng.standard_normal((self.n, self.p))
        return A, np.arange(self.n) % 2 if self.classifier else A[:, 0] + 1.0

    def data(self) -> tuple:
        """X, y and weights, of which one at least is often harmless."""
        case, (A, y) = self.case, self.good
        n = self.n
        X = A if case.chance(0.4) else case.rows(n, self.p if case.chance(0.95) else self.p + 1)
        if case.chance(0.4):
            y = case.labels(n) if self.classifier or case.chance(0.05) else case.targets(n)
        return X, y, case.weights(n)

    def run(self) -> None:
        case = self.case
        if case.chance(0.06):
            self.check_saga()
            return
        estimator = self.kind(**case.parameters(self.classifier))
        if case.chance(0.4):
            self.call(estimator, case.one("good fit", "good partial"))
        for _ in range(case.one(1, 2, 3, 4)):
            name = case.one(
                "fit", "fit", "partial_fit", "partial_fit", "partial_fit", "predict", "decision", "proba", "score",
                "forget",
                "dask", "dask", "dask", "gap", "good partial", "light", "same again",
            )  # fmt: skip
            self.call(estimator, name)

    def call(self, estimator: Any, name: str) -> None:
        case = self.case
        X, y, weights = self.data()
        if name in ("good fit", "good partial"):
            (X, y), weights = self.good, None
        arguments, keywords = (X, y), {} if weights is None else {"sample_weight": weights}
        if name in ("fit", "good fit", "dask"):
            method = "fit"
            if name == "dask":
                arguments, keywords = self.lazily(X, y, keywords)
            if name != "good fit" and case.chance(0.05):
                keywords["persist"] = case.one(True, False, "no", 3)
            if name != "good fit" and case.chance(0.05):
                keywords["checkpoint"] = case.one(3, [], "nosuchprotocol://x", b"x", object())
            if name != "good fit" and case.chance(0.05):
                keywords["callback"] = case.one(lambda info: True, lambda info: "stop")
        elif name in ("partial_fit", "good partial", "same again"):
            method = "partial_fit"
            if name == "same again":
                arguments, keywords = self.good, {}
            if self.classifier and (name != "partial_fit" or case.chance(0.8)):
                keywords["classes"] = [0, 1]
                if name == "partial_fit" and case.chance(0.2):
                    keywords["classes"] = case.one(
                        [0],
                        [],
                        [1, 0],
                        ["a", "b"],
                        [0, None],
                        [0, np.nan],
                        3,
                        "ab",
                        np.eye(2),
                        range(5),
                        [0, 1.0],
                        [0, "a"],
                    )
            if name == "partial_fit" and case.chance(0.3):
                keywords["chunk_id"] = case.one(
                    "a", "a", 0, 0, "", True, 1.5, ("a", 0), b"a", 10**30, np.int64(0), [], "{0!r}%s"
                )
            if name == "partial_fit" and case.chance(0.15):
                keywords["replace"] = case.one(True, True, "yes")
            if name == "partial_fit" and case.chance(0.1):
                keywords["check_content"] = False
        elif name in ("predict", "decision", "proba"):
            method = {"predict": "predict", "decision": "decision_function", "proba": "predict_proba"}[name]
            arguments, keywords = (X,), {}
            if not self.classifier:
                method = "predict"
        elif name == "score":
            method = "score"
        elif name == "forget":
            method, keywords = "forget", {}
            known = list(estimator.state_.chunks)[:1] if getattr(estimator, "state_", None) else []
            arguments = case.one(
                (),
                ("a",),
                (0,),
                (None, X, y),
                ("a", X, y),
                (None, *self.good),
                (*known, *self.good),
                known,
                (("a", 3),),
                ({},),
            )
        elif name == "gap":
            method = "duality_gap"
        else:
            method, arguments, keywords = "without_memory", (), {}
        self.check(estimator, method, arguments, keywords)

    def lazily(self, X: Any, y: Any, keywords: dict) -> tuple:
        """The same in blocks, where Dask takes it."""
        if self.case.malformed:  # scipy itself would fail as it slices
            return (X, y), keywords
        case, chunks = self.case, max(1, self.n // self.case.one(1, 2, 3, 7))
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(X, pd.DataFrame) and X.shape[1] > 100:  # Dask itself takes a minute for 10,000
                X = X.to_numpy()
            if isinstance(X, pd.DataFrame):
                lazy = dd.from_pandas(X, npartitions=case.one(1, 3))
                y = dd.from_pandas(pd.Series(np.ravel(y), index=X.index), npartitions=lazy.npartitions)
                return (lazy, y), {}
            X, y = (X.tocsr() if sp.issparse(X) else np.asarray(X)), np.asarray(y)
            wide = X.shape[1] if case.chance(0.9) else max(1, X.shape[1] // 2)
            lazy = da.from_array(X, chunks=(chunks, wide), asarray=False)
            if case.chance(0.2) and X.shape[0] == len(y):
                lazy = lazy[da.from_array(np.arange(len(y)) % 5 > 0, chunks=chunks)]
                y = y[np.arange(len(y)) % 5 > 0]
            weights = {name: da.from_array(np.asarray(w), chunks=chunks) for name, w in keywords.items() if np.ndim(w)}
            return (lazy, da.from_array(y, chunks=(chunks, *y.shape[1:]))), weights
        return (X, y), keywords

    def check(self, estimator: Any, method: str, arguments: tuple, keywords: dict) -> None:
        """Call, and see that nothing broke."""
        self.calls.append(f"{type(estimator).__name__}.{method}")
        before = _state_of(estimator)
        given = _copied((arguments, keywords)) if not any(map(dask.is_dask_collection, arguments)) else None
        try:
            with warnings.catch_warnings():
                # Predictions of huge rows are infinite, and numpy says so.
                warnings.simplefilter("error" if method in LEARNING else "ignore")
                warnings.simplefilter("ignore", UserWarning)  # scikit-learn's and ours are of this kind
                warnings.simplefilter("ignore", FutureWarning)  # older scikit-learn's, of labels in bytes
                call = (
                    functools.partial(duality_gap, estimator) if method == "duality_gap" else getattr(estimator, method)
                )
                result = call(*arguments, **keywords)
                if dask.is_dask_collection(result):
                    result = result.compute()
        except DOCUMENTED as error:
            self.outcomes[type(error).__name__] += 1
            if not ARGUMENTS.search(str(error)):
                raise Broken(f"the message names no argument: {type(error).__name__}: {error}") from error
            after = _state_of(estimator)
            if before[0].keys() != after[0].keys() or any(after[0][k] is not v for k, v in before[0].items()):
                raise Broken("another estimator after an exception") from error
            if before[1] != after[1]:
                raise Broken("other values after an exception") from error
        except AttributeError as error:
            if method != "predict_proba" or "has no attribute" not in str(error):
                raise
            self.outcomes["AttributeError"] += 1
        else:
            self.outcomes["answered"] += 1
            self.check_result(method, result)
        if given is not None and not _same(given, (arguments, keywords)):
            raise Broken("the arguments were written")
        check_estimator(estimator)

    def check_result(self, method: str, result: Any) -> None:
        if method == "predict_proba" and not ((result >= 0) & (result <= 1)).all():
            raise Broken("a probability outside of [0, 1], or NaN")
        if method == "score" and np.isnan(result):
            raise Broken("a score that is NaN")

    def check_saga(self) -> None:
        case = self.case
        self.calls.append("saga")
        pairs = []
        for _ in range(case.one(0, 1, 2, 3)):
            X, y, _ = self.data()
            pairs.append(
                (X, np.where(np.ravel(y) > 0, 1.0, -1.0))
                if case.chance(0.5) and np.asarray(y).dtype.kind in "iuf"
                else (X, y)
            )
        if case.chance(0.1):
            pairs.append(case.one(3, None, (1,), "ab", (None, None), [[1.0], [1.0]]))
        keywords = case.parameters(self.classifier)
        for name in ("alpha", "l1_ratio", "class_weight", "verbose"):
            keywords.pop(name, None)
        keywords["penalty"] = case.one(None, ElasticNet(l2=0.1), ElasticNet(l1=1e300), ElasticNet(l2=1e300), "l2", 3)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.simplefilter("ignore", UserWarning)
                result = saga(pairs, **keywords)
        except DOCUMENTED as error:
            self.outcomes[type(error).__name__] += 1
            if not ARGUMENTS.search(str(error)):
                raise Broken(f"the message names no argument: {error}") from error
        else:
            self.outcomes["answered"] += 1
            if not (np.isfinite(result.x).all() and np.isfinite(result.intercept).all()):
                raise Broken("x is not finite")


def check_estimator(estimator: Any) -> None:
    """What holds of any estimator at any time."""
    for name in ("coef_", "intercept_"):
        if not np.isfinite(getattr(estimator, name, 0.0)).all():
            raise Broken(f"{name} is not finite")
    state = getattr(estimator, "state_", None)
    if state is not None:
        for name in ("x", "gradient_sum", "weight", "rows", "step_multiplier"):
            if not np.isfinite(getattr(state.head, name)).all():
                raise Broken(f"state_.head.{name} is not finite")
        for memory in state.chunks.values():
            if not np.isfinite(memory.gradients).all():
                raise Broken("memory gradients are not finite")


def run_here(first: int, last: int) -> None:
    """Run numbers in this process; one line of JSON each."""
    faulthandler.enable()
    dask.config.set(scheduler="synchronous")
    for number in range(first, last):
        print(json.dumps({"began": number}), flush=True)
        faulthandler.dump_traceback_later(HANGS, exit=True)
        began, scenario, failure = time.perf_counter(), None, None
        try:
            scenario = Scenario(number)
            scenario.run()
        except BaseException as error:
            failure = "".join(traceback.format_exception(error))
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps({
            "number": number, "calls": scenario.calls if scenario else [], "failure": failure,
            "outcomes": scenario.outcomes if scenario else {}, "seconds": time.perf_counter() - began,
        }), flush=True)  # fmt: skip


def _in_processes(first: int, last: int) -> tuple[list[dict], dict[int, str]]:
    """What is told of numbers, run in a process and after each crash in a new one; and the crashes."""
    rows, crashes = [], {}
    while first < last:
        command = [sys.executable, "-m", "tests.fuzz", "--here", str(first), str(last)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=BATCH * HANGS
        )
        told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        rows += [row for row in told if "number" in row]
        if not done.returncode:
            break
        began = max((row["began"] for row in told if "began" in row), default=first)
        crashes[began] = f"the process ended with {done.returncode}:\n{done.stderr[-6000:]}"
        first = began + 1
    return rows, crashes


def run(first: int, last: int, calls: int | None = None) -> dict:
    """Run numbers in processes of their own, until so many calls were made.

    Returns
    -------
    dict
        numbers, calls, outcomes and slowest in total, and failures: text by number.
    """
    total: dict = {
        "calls": 0,
        "numbers": 0,
        "outcomes": collections.Counter(),
        "by_method": collections.Counter(),
        "failures": {},
        "slowest": (0.0, 0),
    }
    with ThreadPoolExecutor(PROCESSES) as pool:
        while first < last and (calls is None or total["calls"] < calls):
            cuts = [min(first + k * BATCH, last) for k in range(PROCESSES + 1)]
            for rows, crashes in pool.map(_in_processes, cuts[:-1], cuts[1:]):
                for row in rows:
                    total["numbers"] += 1
                    total["calls"] += len(row["calls"])
                    total["outcomes"].update(row["outcomes"])
                    total["by_method"].update(row["calls"])
                    total["slowest"] = max(total["slowest"], (row["seconds"], row["number"]))
                    if row["failure"]:
                        total["failures"][row["number"]] = row["failure"]
                total["failures"].update(crashes)
            first = cuts[-1]
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--here", action="store_true", help="in this process")
    parser.add_argument("--calls", type=int, help="end after so many calls")
    given = parser.parse_args()
    if given.here:
        run_here(given.first, given.last)
        return
    total = run(given.first, given.last, given.calls)
    for number, failure in total["failures"].items():
        print(f"--- {number}\n{failure}")
    print({key: value if key != "failures" else len(value) for key, value in total.items()})
    sys.exit(bool(total["failures"]))


if __name__ == "__main__":
    main()
