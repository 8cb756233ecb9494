"""The flights of 2013, 336,776 rows in 24 chunks in order of time: the optimum in few passes."""

import sys
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
from dask_ml.wrappers import Incremental
from sklearn.linear_model import LogisticRegression

from dask_saga import SAGAClassifier

pytestmark = pytest.mark.slow

ALPHA, CHUNKS = 1e-4, 24


@pytest.fixture(scope="module")
def flights():
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    try:
        from flights_data import load_flights, standardise
    finally:
        sys.path.pop(0)
    numeric, one_hot, late, _ = load_flights()
    standard = standardise(numeric)
    return {"numeric": standard.to_numpy(), "all": np.c_[standard, one_hot], "raw": numeric.to_numpy()}, late


@pytest.fixture(scope="module", params=["numeric", "all", "raw"])
def problem(request, flights):
    A, late = flights[0][request.param], flights[1]
    sign = np.where(late, 1.0, -1.0)
    exact = LogisticRegression(C=1 / (ALPHA * len(A)), solver="newton-cholesky", tol=1e-12, max_iter=500).fit(A, late)

    def objective(x, intercept):
        return np.logaddexp(0, -sign * (A @ x + intercept)).mean() + 0.5 * ALPHA * x @ x

    best = objective(exact.coef_[0], exact.intercept_[0])

    def gap(x, intercept):
        return (objective(x, intercept) - best) / (np.log(2) - best)

    size = -(-len(A) // CHUNKS)
    X, y = da.from_array(A, chunks=(size, A.shape[1])), da.from_array(late, chunks=size)
    bound, passes = (1e-5, 50) if request.param == "all" else (1e-6, 30)
    return request.param, X, y, gap, bound, passes


def test_fit(problem):
    name, X, y, gap, bound, passes = problem
    assert X.numblocks[0] == CHUNKS
    with dask.config.set(scheduler="sync"):
        model = SAGAClassifier(alpha=ALPHA, tol=0.0, random_state=0)
        model.fit(X, y, callback=lambda info: info.epoch == passes)
    assert gap(model.coef_[0], model.intercept_[0]) <= bound, name


@pytest.mark.parametrize(("order", "more"), [({"shuffle_blocks": True}, 1), ({"random_state": 0}, 2)])
def test_incremental(problem, order, more):
    name, X, y, gap, bound, passes = problem
    if name == "all" and more == 2:
        more = 1  # a fixed order asks twice the passes of numeric columns only
    np.random.seed(0)  # noqa: NPY002 - Incremental shuffles by the global state
    wrapped = Incremental(SAGAClassifier(alpha=ALPHA, random_state=0), **order)
    with dask.config.set(scheduler="sync"):
        for _ in range(more * passes):
            wrapped.partial_fit(X, y, classes=[False, True])
    assert len(wrapped.state_.chunks) == CHUNKS
    assert gap(wrapped.coef_[0], wrapped.intercept_[0]) <= bound, name
