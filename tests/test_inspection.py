"""ConvergenceDisplay: what it draws is the objective itself, and it leaves the estimator alone."""

import subprocess
import sys
import warnings
from typing import NamedTuple

import dask.array as da
import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from dask_saga import SAGAClassifier, SAGARegressor
from dask_saga.inspection import ConvergenceDisplay

from .conftest import make_rows

ALPHA = 1e-2


@pytest.fixture(autouse=True)
def figures_are_closed():
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    yield
    plt.close("all")


def fitted(**parameters):
    return SAGAClassifier(alpha=ALPHA, random_state=0, **parameters).fit(*make_rows())


def test_a_fitted_estimator_shows_its_history():
    model = fitted()
    before = dict(vars(model))
    display = ConvergenceDisplay.from_estimator(model, color="tab:red")
    [line] = display.lines_
    np.testing.assert_array_equal(line.get_xdata(), np.arange(1, model.n_iter_ + 1))
    np.testing.assert_array_equal(line.get_ydata(), [row["gradient_norm"] for row in model.history_])
    assert line.get_color() == "tab:red"
    assert line.get_label() == "SAGAClassifier"
    assert display.figure_ is display.ax_.figure
    assert (display.ax_.get_xlabel(), display.ax_.get_yscale()) == ("passes over the rows", "log")
    assert vars(model) == before


def objective_at(A, y, w, x, c):
    return np.average(np.logaddexp(0, -y * (A @ x + c)), weights=w) + 0.5 * ALPHA * x @ x


@pytest.mark.parametrize("blocks", [None, 150])
@pytest.mark.parametrize("class_weight", [None, "balanced", {-1.0: 1.0, 1.0: 3.0}])
def test_with_data_it_is_the_suboptimality(blocks, class_weight):
    A, y = make_rows()
    A, y = A[150:], y[150:]
    rng = np.random.default_rng(0)
    weight = rng.uniform(0.5, 2.0, len(y))
    exact = LogisticRegression(
        C=1 / (ALPHA * (weight.sum() if class_weight is None else 1)), solver="newton-cholesky", tol=1e-12
    )
    w = weight.copy()
    if class_weight == "balanced":
        for label in (-1.0, 1.0):
            w[y == label] *= weight.sum() / (2 * weight[y == label].sum())
    elif class_weight:
        w[y == 1.0] *= 3.0
    exact.set_params(C=1 / (ALPHA * w.sum())).fit(A, y, w)
    best, zero = objective_at(A, y, w, exact.coef_[0], exact.intercept_[0]), np.log(2)
    model = SAGAClassifier(alpha=ALPHA, random_state=0, class_weight=class_weight, tol=1e-3)
    expected, given = [], (A, y, weight)
    if blocks:
        given = [da.from_array(part, chunks=(blocks, *part.shape[1:])) for part in given]
    model.fit(*given, callback=lambda i: expected.append(objective_at(A, y, w, i.x, i.intercept)))
    expected = (np.array(expected) - best) / (zero - best)
    for optimum in (best, None):
        display = ConvergenceDisplay.from_estimator(
            model, *given[:2], sample_weight=given[2], optimum=optimum, against="seconds", name="ours"
        )
        [line] = display.lines_
        np.testing.assert_allclose(line.get_ydata(), np.maximum(expected, 1e-16), rtol=1e-5, atol=1e-12)
        assert (np.diff(line.get_xdata()) > 0).all()
        assert display.ax_.get_xlabel() == "seconds"
        assert [row["suboptimality"] for row in display.histories["ours"]] == pytest.approx(expected, abs=1e-12)


def test_several_outputs():
    A, _ = make_rows()
    targets = A @ np.ones((8, 2)) + np.random.default_rng(0).standard_normal((600, 2))
    model = SAGARegressor(penalty="l1", alpha=ALPHA, random_state=0, tol=1e-4)
    [line] = ConvergenceDisplay.from_estimator(model, A, targets).lines_
    assert line.get_ydata()[-1] < 1e-3
    assert not hasattr(model, "coef_")
    labels = np.argmax(A[:, :3], axis=1)
    [line] = ConvergenceDisplay.from_estimator(SAGAClassifier(alpha=ALPHA, random_state=0), A, labels).lines_
    assert line.get_ydata()[-1] < 1e-2


def test_histories_of_several_fits():
    slow, fast = fitted(precondition=False), fitted()
    histories = {"plain": slow.history_, "preconditioned": pd.DataFrame(fast.history_)}
    display = ConvergenceDisplay.from_histories(histories, curve_kwargs=[{"marker": "o"}, {"linestyle": "--"}])
    assert [line.get_label() for line in display.lines_] == ["plain", "preconditioned"]
    assert [line.get_marker() for line in display.lines_] == ["o", "None"]
    again = display.plot(display.ax_, color="k")
    assert again is display
    assert [line.get_color() for line in display.lines_] == ["k", "k"]
    assert len(display.ax_.lines) == 4


def test_an_optimum_that_is_not_found_is_told(monkeypatch):
    monkeypatch.setattr("dask_saga.inspection.OPTIMUM_PASSES", 1)
    model = SAGAClassifier(alpha=ALPHA, random_state=0)
    with pytest.warns(ConvergenceWarning, match="give `optimum`"):
        ConvergenceDisplay.from_estimator(model, *make_rows())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ConvergenceDisplay.from_estimator(SAGAClassifier()), "no history_; call fit first"),
        (lambda: ConvergenceDisplay.from_estimator(fitted(), make_rows()[0]), "X and y must both be given"),
        (lambda: ConvergenceDisplay.from_estimator(fitted(), optimum=0.1), "need X and y"),
        (lambda: ConvergenceDisplay.from_estimator(fitted(), against="hours"), "'against' parameter"),
        (lambda: ConvergenceDisplay.from_histories({"a": []}, quantity="loss"), "'quantity' parameter"),
        (
            lambda: ConvergenceDisplay.from_histories({"a": fitted().history_}, quantity="suboptimality"),
            r"histories\['a'\].*no 'suboptimality'",
        ),
        (lambda: ConvergenceDisplay.from_histories({"a": []}, curve_kwargs=[{}, {}]), "2 dicts for 1 curves"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_matplotlib_is_asked_for_only_to_draw(monkeypatch):
    code = "import sys, dask_saga.inspection; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        ConvergenceDisplay.from_estimator(fitted())


@pytest.mark.slow
def test_a_penalty_of_ones_own_sees_one_coefficient_at_a_time():
    class Towards(NamedTuple):
        def value(self, x):
            return 0.1 * (x - 1.0) if x > 1.0 else 0.1 * (1.0 - x)

        def prox(self, v, step):
            return max(v - 0.1 * step, 1.0) if v > 1.0 else min(v + 0.1 * step, 1.0)

    A, b = make_rows(100, 3, classes=False)
    model = SAGARegressor(penalty=Towards(), random_state=0, tol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        rows = ConvergenceDisplay.from_estimator(model, A, b).histories["SAGARegressor"]
    assert rows[-1]["suboptimality"] < rows[0]["suboptimality"]
