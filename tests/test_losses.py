"""Losses and penalties as plain Python: derivatives, bounds, proximal operators, names."""

from typing import NamedTuple

import numpy as np
import pytest
import scipy.sparse as sp

from dask_saga import chunk_saga, saga
from dask_saga.data.statistics import column_stats
from dask_saga.data.validation import read_chunk
from dask_saga.kernels.dispatch import prox_of_move
from dask_saga.losses import (
    LOSSES,
    EpsilonInsensitive,
    Expectile,
    GammaLoss,
    Hinge,
    Huber,
    Interval,
    LogLoss,
    NegativeBinomial,
    PoissonLoss,
    Quantile,
    SmoothHinge,
    Tweedie,
    resolve_loss,
    target_interval,
)
from dask_saga.penalties import PENALTIES, ElasticNet, resolve_penalty
from dask_saga.solver.preconditioner_choice import choose_preconditioner
from dask_saga.solver.problem import Problem
from dask_saga.solver.state import new_solver_state

from .conftest import make_rows


def loss_named(name):
    """The loss; one with corners is smoothed over a width that the differences below resolve."""
    loss = LOSSES[name]()
    return loss.smoothed(1.0) if hasattr(loss, "smoothed") else loss


def targets(loss):
    valid = target_interval(loss)
    return getattr(loss, "labels", [y for y in (-2.0, 0.0, 0.3, 1.0, 3.5) if valid.contains(y)])


@pytest.mark.parametrize("name", LOSSES)
def test_derivative_is_that_of_value(name):
    loss, h = loss_named(name), 1e-6
    for y in targets(loss):
        for z in np.linspace(-5, 5, 41):
            slope = (loss.value(z + h, y) - loss.value(z - h, y)) / (2 * h)
            assert loss.derivative(z, y) == pytest.approx(slope, abs=2e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_curvature_is_the_least_upper_bound(name):
    loss, h = loss_named(name), 1e-4
    for y in targets(loss):
        z = np.linspace(-5, 5, 201)
        curvature = [(loss.derivative(u + h, y) - loss.derivative(u - h, y)) / (2 * h) for u in z]
        if hasattr(loss, "curvature_at"):
            assert curvature == pytest.approx([loss.curvature_at(u, y) for u in z], rel=1e-5, abs=1e-8)
        if loss.curvature is None:
            continue
        curvature += [(loss.derivative(u + h, y) - loss.derivative(u - h, y)) / (2 * h) for u in (-12.0, 12.0)]
        assert max(curvature) <= loss.curvature + 1e-6
        assert max(curvature) >= 0.99 * loss.curvature


def test_log_loss_at_extreme_margins():
    loss = LogLoss()
    assert loss.value(-800.0, 1.0) == 800.0
    assert loss.value(800.0, 1.0) == 0.0
    assert loss.derivative(-800.0, 1.0) == -1.0
    assert loss.derivative(800.0, 1.0) == 0.0


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_finite_at_extreme_predictions(name):
    loss = LOSSES[name]()
    for y in targets(loss):
        for z in (-700.0, -40.0, 40.0, 700.0):
            assert np.isfinite([loss.value(z, y), loss.derivative(z, y)]).all()
            for member in {"curvature_at", "second_derivative"} & set(dir(loss)):
                assert 0 <= getattr(loss, member)(z, y) < np.inf


@pytest.mark.parametrize("name", [name for name, kind in LOSSES.items() if hasattr(kind, "smoothed")])
def test_smoothed_losses_are_moreau_envelopes(name):
    loss, points = LOSSES[name]().smoothed(0.3), np.linspace(-4, 4, 8001)
    for y in targets(loss):
        exact = np.array([loss.smoothed(1e-100).value(u, y) for u in points])
        for z in np.linspace(-3, 3, 13):
            assert loss.value(z, y) == pytest.approx(np.min(exact + (points - z) ** 2 / 0.6), abs=1e-5)


def test_tweedie_is_poisson_and_gamma_at_its_ends():
    for power, other in ((1.0, PoissonLoss()), (2.0, GammaLoss())):
        for near in (power, power + 1e-9 * (1.5 - power)):
            loss = Tweedie(near)
            for z in (-3.0, 0.0, 2.0):
                assert loss.value(z, 1.7) == pytest.approx(other.value(z, 1.7), rel=1e-7)
                assert loss.derivative(z, 1.7) == pytest.approx(other.derivative(z, 1.7), rel=1e-7)
                assert loss.curvature_at(z, 1.7) == pytest.approx(other.curvature_at(z, 1.7), rel=1e-7)


@pytest.mark.parametrize("name", [name for name, kind in LOSSES.items() if hasattr(kind, "link")])
def test_link_is_the_minimum_of_a_loss_that_is_linear_in_its_target(name):
    loss = LOSSES[name]()
    assert loss.derivative(loss.link(2.5), 2.5) == pytest.approx(0.0, abs=1e-12)
    assert loss.mean(loss.link(2.5)) == pytest.approx(2.5)
    for z in (-1.0, 2.0):
        assert loss.value(z, 1.0) + loss.value(z, 3.0) == pytest.approx(2 * loss.value(z, 2.0))


@pytest.mark.parametrize(
    ("loss", "low", "high", "above"),
    [(PoissonLoss(), 0.0, np.inf, False), (GammaLoss(), 0.0, np.inf, True), (Huber(), -np.inf, np.inf, False)],
)
def test_targets_of_a_loss(loss, low, high, above):
    assert target_interval(loss) == Interval(low, high, above)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
@pytest.mark.parametrize("loss", ["gamma", "tweedie"])
def test_the_unit_of_amounts_only_moves_the_intercept(loss, unit):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((600, 3))
    b = np.exp(A @ [0.3, -0.2, 0.1]) * rng.gamma(2.0, 0.5, 600)
    # The data term of Tweedie's loss is in the unit to the power 1/2.
    factor = 1.0 if loss == "gamma" else unit**0.5
    found = [
        saga([(A, b * u)], loss, ElasticNet(l2=l2), fit_intercept=True, tol=1e-6, random_state=0)
        for u, l2 in ((1.0, 0.1), (unit, 0.1 * factor))
    ]
    assert found[0].converged
    assert found[1].converged
    np.testing.assert_allclose(found[1].x, found[0].x, rtol=1e-3)
    assert found[1].intercept - np.log(unit) == pytest.approx(found[0].intercept, rel=1e-3)


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("step", [0.1, 2.0])
def test_prox_minimises(name, step):
    penalty = PENALTIES[name](0.7, 0.3)
    grid = np.linspace(-4, 4, 80001)
    for v in (-3.0, -0.2, 0.0, 0.05, 1.7):
        best = grid[np.argmin((grid - v) ** 2 / 2 + step * penalty.value(grid))]
        assert penalty.prox(v, step) == pytest.approx(best, abs=1e-4)


class Own(NamedTuple):
    l1: float

    def value(self, x):
        return self.l1 * abs(x)

    def prox(self, v, step):
        return np.sign(v) * max(abs(v) - step * self.l1, 0.0)


MOVED = {
    "none": ElasticNet(),
    "l2": ElasticNet(l2=0.3),
    "elasticnet": ElasticNet(l1=0.2, l2=3.0),
    "bounds": ElasticNet(l1=0.1, l2=1e-3, lower=-0.5, upper=1.0),
    "nearly infinite": ElasticNet(l2=1e307),
    "own": Own(0.4),
}


@pytest.mark.parametrize("name", MOVED)
@pytest.mark.parametrize("step", [1e-3, 2.0, 1e3])
def test_prox_of_a_move_is_the_prox_there(name, step):
    penalty = MOVED[name]
    shrunk = 1.0 / (1.0 / step + getattr(penalty, "l2", 0.0))  # as the table of sparse columns has it
    for x in (-3.0, -0.2, 0.0, 0.05, 1.7):
        for move in (-0.7, 0.0, 0.01, 5.0):
            there = penalty.prox(x - move, step)
            assert prox_of_move(penalty, x, move * (shrunk / step), shrunk) == pytest.approx(
                there, rel=1e-12, abs=1e-14
            )


@pytest.mark.parametrize("l2", [1e12, 1e308])
def test_sparse_coefficients_go_to_zero_under_any_penalty(l2):
    A, y = make_rows(n=50)
    problem = Problem(LogLoss(), ElasticNet(l2=l2), True)
    chunk = read_chunk(sp.csr_matrix(A * 1e-3), y)
    metric = choose_preconditioner(column_stats(chunk, problem), problem)
    head = new_solver_state(8, 1)._replace(x=np.ones((1, 9)))
    after, _ = chunk_saga(chunk, head, None, problem, metric, seed=0)
    assert np.abs(after.x[0, :8]).max() < 1e-9


def test_names_and_objects_resolve():
    assert type(resolve_loss("log_loss")) is LogLoss
    assert resolve_loss(LogLoss()) == LogLoss()
    assert resolve_penalty("elasticnet", 2.0, 0.25) == ElasticNet(0.5, 1.5)
    assert resolve_penalty(ElasticNet(l1=3.0), 2.0) == ElasticNet(l1=3.0)


def test_unknown_names_and_objects_are_refused():
    class NoCurvature(NamedTuple):
        def value(self, z, y):
            return 0.0

        def derivative(self, z, y):
            return 0.0

    for bad in (SmoothHinge(0.0), SmoothHinge(-1.0), Huber(-1.0)):
        with pytest.raises(ValueError, match="positive and finite"):
            resolve_loss(bad)
    for bad, wrong in (
        (Tweedie(0.5), "power must be from 1 to 2"),
        (Tweedie(2.5), "not convex"),
        (NegativeBinomial(0.0), "theta must be positive"),
        (Expectile(1.0), "level must be between 0 and 1"),
        (Quantile(0.0), "level must be between 0 and 1"),
        (Hinge(0.0), "width must be positive"),
        (EpsilonInsensitive(-1.0), "epsilon must be at least 0"),
    ):
        with pytest.raises(ValueError, match=wrong):
            resolve_loss(bad)
    for bad, error in (("hinges", ValueError), (NoCurvature(), TypeError), (LogLoss, TypeError)):
        with pytest.raises(error, match="loss"):
            resolve_loss(bad)
    for bad, error in (("l3", ValueError), (3.0, TypeError)):
        with pytest.raises(error, match="penalty"):
            resolve_penalty(bad)
