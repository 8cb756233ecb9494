"""What tells one problem from another: fields, classes, and the code of a user's own."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import dask_saga
from dask_saga import SAGARegressor
from dask_saga.losses import Huber, LogLoss, SquaredError
from dask_saga.penalties import ElasticNet
from dask_saga.solver.problem import Problem

from .conftest import make_rows

SOURCE = """
import math
from typing import NamedTuple


class Own(NamedTuple):
    curvature = {curvature}
    width: float = 1.0

    def value(self, z, y):
        return {function}(z - y) * WEIGHT

    def derivative(self, z, y):
        part = lambda r: r * {factor}
        return part(z - y)
"""


def token(*, weight=1.0, curvature=1.0, function="math.tanh", factor=2.0):
    """Of a loss whose class is made anew, as by a cell that is run again."""
    names = {"WEIGHT": weight, "__name__": "somewhere", "helper": helper}
    exec(SOURCE.format(curvature=curvature, function=function, factor=factor), names)
    return Problem(names["Own"](), ElasticNet()).token()


def helper(r):
    return r


def test_equal_code_is_the_same_problem():
    assert token() == token()


@pytest.mark.parametrize(
    "other", [{"weight": 2.0}, {"curvature": 2.0}, {"function": "math.atan"}, {"function": "helper"}, {"factor": 3.0}]
)
def test_other_code_is_another(other):
    assert token(**other) != token()


def test_parameters_and_types_tell_problems_apart():
    losses = [LogLoss(), SquaredError(), Huber(1.0), Huber(2.0)]
    assert len({Problem(loss, ElasticNet(l2)).token() for loss in losses for l2 in (0.0, 1.0)}) == 8


def test_the_same_in_another_process():
    """Code within code has an address in its text."""
    script = SOURCE.format(curvature=1.0, function="math.tanh", factor=2.0)
    script += textwrap.dedent("""
        from dask_saga.penalties import ElasticNet
        from dask_saga.solver.problem import Problem
        print(Problem(Own(), ElasticNet()).token())
    """)
    script = 'WEIGHT, __name__ = 1.0, "somewhere"' + script
    folder = Path(dask_saga.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=folder)
    assert done.stdout.strip() == token()


@pytest.mark.slow
def test_a_loss_with_an_array():
    class Shifted(NamedTuple):
        shifts: np.ndarray
        curvature = 1.0

        def value(self, z, y):
            return 0.5 * (z - y - self.shifts[0]) ** 2

        def derivative(self, z, y):
            return z - y - self.shifts[0]

    A, b = make_rows(classes=False)
    plain = SAGARegressor(tol=1e-8, random_state=0).fit(A, b)
    model = SAGARegressor(loss=Shifted(np.array([2.0])), tol=1e-8, max_iter=1000, random_state=0).fit(A, b)
    np.testing.assert_allclose(model.coef_, plain.coef_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.intercept_, plain.intercept_ + 2.0, rtol=1e-4)
    one, other = (Problem(Shifted(np.array([x])), ElasticNet()).token() for x in (1.0, 2.0))
    assert one != other


def test_a_checkpoint_of_another_loss_is_refused(tmp_path):
    A, b = make_rows(classes=False)

    def penalty(weight):
        class Lasso(NamedTuple):
            def value(self, x):
                return weight * abs(x)

            def prox(self, v, step):
                return max(abs(v) - weight * step, 0.0) * (1.0 if v > 0 else -1.0)

        return Lasso()

    SAGARegressor(penalty=penalty(1e-3), random_state=0).fit(A, b, checkpoint=tmp_path)
    SAGARegressor(penalty=penalty(1e-3), random_state=0).fit(A, b, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="a fit with other parameters"):
        SAGARegressor(penalty=penalty(1.0), random_state=0).fit(A, b, checkpoint=tmp_path)
