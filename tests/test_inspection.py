"""Displays: they draw what they are given, and nothing else."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LogisticRegression

from dask_saga import SAGAClassifier, SAGARegressorCV, saga_path
from dask_saga.inspection import ConvergenceDisplay, PathDisplay

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
    display = ConvergenceDisplay.from_histories({"ours": model.history_}, curve_kwargs={"color": "tab:red"})
    [line] = display.lines_
    np.testing.assert_array_equal(line.get_xdata(), np.arange(1, model.n_iter_ + 1))
    np.testing.assert_array_equal(line.get_ydata(), [row["gradient_norm"] for row in model.history_])
    assert line.get_color() == "tab:red"
    assert line.get_label() == "ours"
    assert display.figure_ is display.ax_.figure
    assert (display.ax_.get_xlabel(), display.ax_.get_yscale()) == ("passes over the rows", "log")
    assert vars(model) == before


def test_a_callback_gives_the_suboptimality():
    A, y = make_rows()

    def objective(coef, intercept):
        return np.logaddexp(0, -y * (A @ coef + intercept)).mean() + 0.5 * ALPHA * coef @ coef

    exact = LogisticRegression(C=1 / (ALPHA * len(y)), solver="newton-cholesky", tol=1e-12).fit(A, y)
    best, values = objective(exact.coef_[0], exact.intercept_[0]), []
    model = SAGAClassifier(alpha=ALPHA, random_state=0, tol=1e-3)
    model.fit(A, y, callback=lambda info: values.append(objective(info.x, info.intercept)))
    left = (np.array(values) - best) / (np.log(2) - best)
    rows = [{**row, "suboptimality": one} for row, one in zip(model.history_, left, strict=True)]
    display = ConvergenceDisplay.from_histories({"ours": rows}, against="seconds", quantity="suboptimality")
    [line] = display.lines_
    np.testing.assert_array_equal(line.get_ydata(), np.maximum(left, 1e-16))
    assert line.get_ydata()[-1] < 1e-3
    assert (np.diff(line.get_xdata()) > 0).all()
    assert display.ax_.get_xlabel() == "seconds"


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ConvergenceDisplay.from_histories({"a": []}, against="hours"), "'against' parameter"),
        (lambda: ConvergenceDisplay.from_histories({"a": []}, quantity="loss"), "'quantity' parameter"),
        (
            lambda: ConvergenceDisplay.from_histories({"a": fitted().history_}, quantity="suboptimality"),
            r"histories\['a'\].*without 'suboptimality'; add it to every row",
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
        ConvergenceDisplay.from_histories({"ours": fitted().history_})


@pytest.mark.parametrize("kind", ["scores", "coefficients"])
def test_path_display(kind):
    X, y = load_diabetes(return_X_y=True, as_frame=True)
    model = SAGARegressorCV(penalty="elasticnet", l1_ratio=[0.5, 1.0], alphas=6, random_state=0).fit(X, y)
    display = PathDisplay.from_estimator(model, kind=kind)
    assert display.chosen_.get_xdata()[0] == model.alpha_
    assert len(display.lines_) == (10 if kind == "coefficients" else 1)
    ratio = [0.5, 1.0].index(model.l1_ratio_)
    drawn = display.lines_[0].get_ydata()
    expected = model.scores_[ratio].mean(axis=1) if kind == "scores" else model.coef_path_[ratio, :, 0]
    np.testing.assert_array_equal(drawn, expected)
    assert (display.bars_ is None) == (kind == "coefficients")


def test_path_display_of_a_path_and_its_errors():
    X, y = load_diabetes(return_X_y=True)
    display = PathDisplay.from_path(saga_path(X, np.column_stack([y, -y]), alphas=3, random_state=0), output=1)
    assert len(display.lines_) == 10
    with pytest.raises(ValueError, match="no scores"):
        display.plot(kind="scores")
    with pytest.raises(ValueError, match="output=2"):
        PathDisplay.from_path(saga_path(X, np.column_stack([y, -y]), alphas=3, random_state=0), output=2)
