"""The sets of contaminated.py: wrong cells, missing-value codes, heavy tails, two far columns.

A wrong value "votes" for a label by the sign of its product with the true coefficient. The label of
its row agrees with that vote or disagrees. Where it agrees, the optimum hardly depends on the wrong
value, but a solver that scales columns by their spread no longer sees the column. Where it disagrees,
the optimum has to give the column up.

Each set is made anew, with a seed of its own, when it is called: ``SETS[name]()``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from exact_optimum import Problem


class Setting(NamedTuple):
    """Everything of a set but its contamination.

    Parameters
    ----------
    n, p : int
    columns : {"independent", "neighbours", "mixed"}
        Neighbours have correlations of 0.9; a random matrix mixes columns.
    form : {"dense", "CSR"} or float
        A number is the density of CSR rows; "CSR" stores every entry.
    loss : str
        "multinomial" is the log loss of 3 classes.
    penalty : str or None
    alpha : float
    chunks : int
    """

    n: int
    p: int
    columns: str
    form: str | float
    loss: str
    penalty: str | None
    alpha: float = 1e-4
    chunks: int = 1


class Contamination(NamedTuple):
    """Wrong values in some rows of some columns.

    Parameters
    ----------
    value : float
    rows : int
        In each column.
    columns : int
    vote : {"agrees", "disagrees", "either"}
        Which rows hold the wrong values.
    """

    value: float
    rows: int
    columns: int
    vote: str


DENSE = (
    Setting(20_000, 4, "independent", "dense", "log_loss", "l2"),
    Setting(20_000, 40, "neighbours", "dense", "log_loss", "l2", chunks=10),
    Setting(500, 10, "independent", "dense", "squared_hinge", "l2"),
    Setting(5_000, 20, "mixed", "dense", "log_loss", "l1"),
    Setting(20_000, 60, "mixed", "dense", "modified_huber", "l2", chunks=10),
    Setting(2_000, 20, "neighbours", "dense", "log_loss", "elasticnet"),
    Setting(10_000, 10, "independent", "dense", "log_loss", None),
    Setting(20_000, 40, "mixed", "dense", "log_loss", "l1", 1e-5, 10),
    Setting(5_000, 20, "neighbours", "dense", "multinomial", "l2"),
    Setting(20_000, 20, "neighbours", "dense", "squared_hinge", "l1", 1e-8),
    Setting(1_000, 4, "mixed", "dense", "log_loss", "l2", 1e-8),
    Setting(20_000, 50, "independent", "dense", "log_loss", "elasticnet", 1e-8, 10),
    Setting(20_000, 10, "mixed", "dense", "modified_huber", None),
)
SPARSE = (
    Setting(20_000, 10, "independent", "CSR", "log_loss", "l2"),
    Setting(20_000, 60, "neighbours", "CSR", "log_loss", "l2", chunks=10),
    Setting(20_000, 40, "independent", 0.3, "log_loss", "l2"),
    Setting(5_000, 60, "independent", 0.1, "squared_hinge", "l2"),
    Setting(20_000, 1_000, "independent", 0.05, "log_loss", "l2", 1e-5, 10),
    Setting(5_000, 1_000, "independent", 0.05, "log_loss", "l1"),
    Setting(2_000, 20, "neighbours", 0.2, "modified_huber", "elasticnet"),
    Setting(20_000, 20, "neighbours", "CSR", "log_loss", "l1"),
    Setting(20_000, 60, "mixed", 0.3, "multinomial", "l2", chunks=10),
    Setting(10_000, 20, "mixed", "CSR", "squared_hinge", None),
    Setting(500, 10, "independent", 0.3, "log_loss", "l2", 1e-8),
)
REGRESSION = (
    Setting(20_000, 10, "independent", "dense", "squared_error", "l2"),
    Setting(20_000, 40, "neighbours", "dense", "huber", "l2", chunks=10),
    Setting(5_000, 20, "mixed", "dense", "huber", "l1"),
    Setting(20_000, 20, "independent", 0.3, "huber", "l2"),
    Setting(20_000, 10, "neighbours", "CSR", "squared_error", "l1"),
    Setting(5_000, 4, "independent", "dense", "poisson", "l2"),
    Setting(20_000, 20, "independent", 0.2, "poisson", "l2"),
    Setting(2_000, 10, "neighbours", "dense", "squared_error", None),
)


def contaminated(name: str, setting: Setting, wrong: Contamination, seed: int) -> Problem:
    """Normal columns, targets of a linear rule, and wrong values in the first columns."""
    rng = np.random.default_rng(seed)
    X = _columns(setting, rng)
    coefficients = rng.standard_normal((setting.p, 3 if setting.loss == "multinomial" else 1))
    # The wrong columns count.
    coefficients[:3] = np.array([[1.0, -1.0, 0.2], [-1.0, 0.5, 1.0], [0.5, -0.2, -1.0]])[:, : coefficients.shape[1]]
    z = X @ coefficients
    y = _targets(2.0 * z / z.std(), setting.loss, rng)
    suspect = []
    for j in range(wrong.columns):
        agrees = _voted_for(y, wrong.value * coefficients[j], setting.loss)
        eligible = {"agrees": agrees, "disagrees": ~agrees, "either": np.ones_like(agrees)}[wrong.vote]
        rows = rng.choice(np.setdiff1d(np.flatnonzero(eligible), suspect), wrong.rows, replace=False)
        X[rows, j] = wrong.value
        suspect.extend(rows)
    loss = "log_loss" if setting.loss == "multinomial" else setting.loss
    X = X if setting.form == "dense" else sp.csr_matrix(X)
    return Problem(name, X, y, loss, setting.penalty, setting.alpha, setting.chunks, suspect=np.array(suspect))


def _columns(setting: Setting, rng: np.random.Generator) -> np.ndarray:
    X = rng.standard_normal((setting.n, setting.p))
    if setting.columns == "neighbours":
        for j in range(1, setting.p):
            X[:, j] = 0.9 * X[:, j - 1] + np.sqrt(1.0 - 0.9**2) * X[:, j]
    elif setting.columns == "mixed":
        X = X @ rng.standard_normal((setting.p, setting.p)) / np.sqrt(setting.p)
    if isinstance(setting.form, float):
        X *= rng.random(X.shape) < setting.form
    return X


def _targets(z: np.ndarray, loss: str, rng: np.random.Generator) -> np.ndarray:
    """Targets of predictions z with a standard deviation of 2."""
    if loss == "multinomial":
        return (z + rng.gumbel(size=z.shape)).argmax(axis=1)
    z = z[:, 0]
    if loss == "poisson":
        return rng.poisson(np.exp(z / 4.0)).astype(float)
    if loss in ("squared_error", "huber"):
        return z + rng.standard_t(3, size=len(z))
    return (z + rng.logistic(size=len(z)) > 0).astype(int)


def _voted_for(y: np.ndarray, votes: np.ndarray, loss: str) -> np.ndarray:
    """Rows whose target agrees with the votes of a wrong value, one vote for each class or one in all."""
    if loss == "multinomial":
        return y == votes.argmax()
    if loss in ("squared_error", "huber", "poisson"):
        return (y > np.median(y)) == (votes[0] > 0)
    return y == (votes[0] > 0)


def heavy_tails(
    name: str, n: int, p: int, density: float, penalty: str = "l2", alpha: float = 1e-5, chunks: int = 1,
    loss: str = "log_loss",
) -> Problem:  # fmt: skip
    """Lognormal entries of sigma 2, dense or sparse."""
    rng = np.random.default_rng(n + p + chunks)
    logs = 2.0 * rng.standard_normal((n, p))
    stored = rng.random((n, p)) < density
    z = np.where(stored, logs, 0.0) @ rng.standard_normal(p)
    y = (2.0 * z / z.std() + rng.logistic(size=n) > 0).astype(int)
    X = np.where(stored, np.exp(logs), 0.0)
    return Problem(name, X if density == 1.0 else sp.csr_matrix(X), y, loss, penalty, alpha, chunks)


def far_columns(
    name: str, form: str, penalty: str, span: float, p: int = 6, chunks: int = 1, loss: str = "log_loss",
    alpha: float = 1e-4,
) -> Problem:  # fmt: skip
    """Start and end as Unix times, of which only the duration counts, and normal columns.

    Starts spread over `span` seconds, durations over an hour.
    """
    rng, n = np.random.default_rng(p + chunks), 20_000
    start, duration = 1.6e9 + span * rng.random(n), rng.exponential(3600.0, n)
    others = rng.standard_normal((n, p - 2))
    z = duration / 1800.0 - 1.5 + 0.5 * others[:, 0]
    y = (z + rng.logistic(size=n) > 0).astype(int)
    X = np.c_[start, start + duration, others]
    return Problem(name, X if form == "dense" else sp.csr_matrix(X), y, loss, penalty, alpha, chunks)


def one_bad_cell(name: str) -> Problem:
    """The shortest example: one cell of 1e6 in a row of the class that it votes for."""
    rng, n = np.random.default_rng(0), 20_000
    X = rng.standard_normal((n, 4))
    y = X @ [1, -2, 0.5, 0] + rng.logistic(size=n) > 0
    bad = np.flatnonzero(y)[0]
    X[bad, 0] = 1e6
    return Problem(name, X, y, suspect=np.array([bad]))


def stream(name: str, wrong: Contamination, seed: int) -> Problem:
    """Ten chunks for ``partial_fit``, one of them contaminated or more."""
    setting = Setting(20_000, 10, "independent", "dense", "log_loss", "l2", chunks=10)
    return contaminated(name, setting, wrong, seed)._replace(is_stream=True)


def _cells() -> dict[str, Contamination]:
    """One wrong cell, and one in each of three columns; every third value is negative."""
    found = {}
    for k, vote, size in product((1, 3), ("agrees", "disagrees"), (1e4, 1e5, 1e6, 1e7, 1e8, 1e9)):
        value = -size if len(found) % 3 == 1 else size
        found[f"{k} cell{'s' * (k > 1)} of {value:.0e}, {vote}"] = Contamination(value, 1, k, vote)
    return found


def _codes() -> dict[str, Contamination]:
    """Codes for missing values in one column or two."""
    codes = ((-999_999.0, 10), (-999.0, 30), (9_999.0, 15), (1e6, 3))
    return {
        f"{rows} codes of {value:.0f} in {k} column{'s' * (k > 1)}, {vote}": Contamination(value, rows, k, vote)
        for (value, rows), k, vote in product(codes, (1, 2), ("agrees", "disagrees", "either"))
    }


def _all_sets() -> dict[str, Callable[[], Problem]]:
    cells, codes = _cells(), _codes()
    sets: dict[str, Callable[[], Problem]] = {"one bad cell": partial(one_bad_cell, "one bad cell")}

    def add(make: Callable[..., Problem], name: str, *arguments, **settings) -> None:
        sets[name] = partial(make, name, *arguments, **settings)

    for kind, settings in (("dense", DENSE), ("CSR", SPARSE)):
        for seed, (label, wrong) in enumerate(cells.items()):
            add(contaminated, f"{kind}, {label}", settings[seed % len(settings)], wrong, seed)
    for seed, (label, wrong) in enumerate(codes.items(), 100):
        kind, settings = (("dense", DENSE), ("CSR", SPARSE))[seed % 2]
        add(contaminated, f"{kind}, {label}", settings[seed // 2 % len(settings)], wrong, seed)
    some = {**dict(list(cells.items())[2::6]), **dict(list(codes.items())[3::6])}
    for seed, (setting, (label, wrong)) in enumerate(zip(REGRESSION, some.items(), strict=True), 200):
        kind = "dense" if setting.form == "dense" else "CSR"
        add(contaminated, f"{kind}, {label}, {setting.loss}", setting, wrong, seed)
    add(heavy_tails, "heavy tails, CSR 20000", 20_000, 500, 0.02)
    add(heavy_tails, "heavy tails, CSR 40000", 40_000, 500, 0.02, chunks=10)
    add(heavy_tails, "heavy tails, CSR 3000", 3_000, 500, 0.02)
    add(heavy_tails, "heavy tails, CSR 3000, squared hinge", 3_000, 500, 0.02, loss="squared_hinge")
    add(heavy_tails, "heavy tails, CSR 20000, l1", 20_000, 500, 0.02, "l1")
    add(heavy_tails, "heavy tails, dense", 20_000, 20, 1.0, alpha=1e-4)
    add(heavy_tails, "heavy tails, dense, 10 chunks", 20_000, 30, 1.0, chunks=10)
    add(heavy_tails, "heavy tails, dense, l1", 20_000, 20, 1.0, "l1", 1e-4)
    for span, period in ((1e5, "a day"), (1e6, "two weeks"), (3e7, "a year")):
        for form, penalty in product(("dense", "CSR"), ("l2", "l1")):
            add(far_columns, f"start and end, {period}, {form}, {penalty}", form, penalty, span)
    add(far_columns, "start and end, a year, dense, l2, 10 chunks", "dense", "l2", 3e7, 30, 10)
    add(
        far_columns, "start and end, a year, CSR, l2, squared hinge", "CSR", "l2", 3e7, loss="squared_hinge", alpha=1e-8
    )
    add(stream, "stream, 1 cell of 1e+06", Contamination(1e6, 1, 1, "agrees"), 300)
    add(stream, "stream, 10 codes of -999999", Contamination(-999_999.0, 10, 1, "either"), 301)
    add(stream, "stream, 3 cells of 1e+06", Contamination(1e6, 1, 3, "disagrees"), 302)
    return sets


SETS = _all_sets()
