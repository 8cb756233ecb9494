"""What a user sees during a long fit, and what Ctrl-C leaves."""

import _thread
import re
import signal
import threading
import time

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from dask import delayed
from sklearn.exceptions import ConvergenceWarning

from dask_saga import SAGAClassifier, saga
from dask_saga.data.statistics import column_stats
from dask_saga.data.validation import read_chunk
from dask_saga.estimators.messages import Ending, unconverged_advice
from dask_saga.losses import LogLoss
from dask_saga.penalties import ElasticNet
from dask_saga.solver.problem import Problem

from .conftest import make_rows
from .oracles import exact_objective

A, y = make_rows()
X, labels = da.from_array(A, chunks=(100, 8)), da.from_array(y, chunks=100)
LONG = {"max_iter": 100_000, "tol": 0.0, "random_state": 0}


def after(passes):
    """The estimator after so many whole passes."""
    return SAGAClassifier(**LONG).fit(X, labels, callback=lambda info: info.epoch == passes)


def test_a_bar_counts_passes(capsys):
    seen = []
    model = SAGAClassifier(random_state=0, verbose=1).fit(A, y, callback=lambda info: seen.append(info.epoch))
    shown = capsys.readouterr().err
    assert f"{model.n_iter_}/100" in shown
    assert "gradient norm=" in shown
    assert seen == list(range(1, model.n_iter_ + 1))
    SAGAClassifier(random_state=0).fit(A, y)
    assert not capsys.readouterr().err


def test_a_pass_that_is_interrupted_never_was(only_visits):
    reads = []

    def read(k):
        reads.append(k)
        if len(reads) == 6 * (1 + 3) + 2:  # the preparing pass, three passes, and into the fourth
            raise KeyboardInterrupt
        return A[100 * k : 100 * (k + 1)]

    rows = da.concatenate([da.from_delayed(delayed(read, pure=False)(k), (100, 8), float) for k in range(6)])
    model = SAGAClassifier(**LONG)
    with dask.config.set(scheduler="sync"), pytest.raises(KeyboardInterrupt):
        model.fit(rows, labels, persist=False)
    expected = after(3)
    assert model.n_iter_ == 3
    assert not model.converged_
    assert model.coef_.tobytes() == expected.coef_.tobytes()
    assert model.state_.digest == expected.state_.digest
    for block, target in zip(np.array_split(A, 6), np.array_split(y, 6), strict=True):
        assert model.partial_fit(block, target).coef_.tobytes() == expected.partial_fit(block, target).coef_.tobytes()


def test_interrupted_before_a_whole_pass_leaves_the_estimator_as_it_was():
    def read(k):
        raise KeyboardInterrupt

    rows = da.from_delayed(delayed(read)(0), (600, 8), float)
    model = SAGAClassifier(**LONG)
    with dask.config.set(scheduler="sync"), pytest.raises(KeyboardInterrupt):
        model.fit(rows, da.from_array(y, chunks=600))
    assert not hasattr(model, "coef_")


@pytest.fixture
def interruptible():
    """Where tests run in the background of a shell, interrupts are ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("persist", [True, False])
def test_interrupted_on_a_cluster(client, persist, interruptible):
    def tasks():
        return set(client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks)))

    before, started = tasks(), threading.Event()  # clients within workers may hold some of other tests for a while
    timer = threading.Thread(target=lambda: (started.wait(30), time.sleep(0.4), _thread.interrupt_main()))
    timer.start()
    model = SAGAClassifier(**LONG)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, labels, persist=persist, callback=lambda info: started.set())
    timer.join()
    assert model.coef_.tobytes() == after(model.n_iter_).coef_.tobytes()
    for _ in range(100):
        left = tasks() - before
        if not left:
            break
        time.sleep(0.05)
    assert not left


def test_saga_lets_the_interrupt_through():
    def interrupt(info):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        saga([(A, y)], callback=interrupt)


@pytest.mark.parametrize("persist", [True, False])
@pytest.mark.parametrize("n_parallel", [1, 2])
def test_what_a_pass_tells(persist, n_parallel, only_visits):
    seen, weights = [], np.linspace(0.5, 1.5, 600)
    model = SAGAClassifier(random_state=0, tol=1e-6, alpha=0.01, n_parallel=n_parallel)
    model.fit(X, labels, da.from_array(weights, chunks=100), persist=persist, callback=seen.append)
    history = pd.DataFrame(model.history_)
    shown = pd.DataFrame([info._asdict() for info in seen])[history.columns]
    pd.testing.assert_frame_equal(history, shown)
    for info in (seen[0], seen[-2], seen[-1]):
        F = exact_objective(A, y, np.append(info.x, info.intercept), LogLoss(), ElasticNet(l2=0.01), weights)
        # A chunk of 100 rows is its own sample, but of each chunk at the end of its visit; the last is confirmed.
        assert info.objective == pytest.approx(F, rel=1e-12 if info is seen[-1] else 0.2)
    passes = np.arange(1, len(history) + 1)
    read = 600 * 8 * 8 * (np.ones(len(history)) if persist else 1 + passes)
    np.testing.assert_array_equal(history.bytes_read[:1], read[:1])
    assert (history.bytes_read >= read).all()
    assert (history.bytes_read <= read * 2).all()


def test_the_estimated_objective_where_few_rows_weigh_anything():
    # 256 rows at equal distances would be every fourth, and of these none weighs anything.
    A, y = make_rows(1024, 4)
    weights = np.where(np.arange(1024) % 4 == 1, 2.0, 0.0)
    model = SAGAClassifier(alpha=0.1, tol=0.0, max_iter=30, random_state=0)
    with pytest.warns(ConvergenceWarning):
        model.fit(A, y, weights)
    x = np.append(model.coef_[0], model.intercept_)
    exact = exact_objective(A, y, x, LogLoss(), ElasticNet(l2=0.1), weights)
    assert model.history_[-1]["objective"] == pytest.approx(exact, rel=1e-6)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_bar_counts_the_passes_before_a_resume(tmp_path, capsys):
    A, b = make_rows()
    settings = {"tol": 0.0, "random_state": 0}
    SAGAClassifier(max_iter=4, **settings).fit(A, b, checkpoint=tmp_path)
    SAGAClassifier(max_iter=6, verbose=1, **settings).fit(A, b, checkpoint=tmp_path)
    assert "6/6" in capsys.readouterr().err


STATS = column_stats(read_chunk(A, y), Problem(LogLoss(), ElasticNet()))
FALLING, STALLED, SLOW = 0.8 ** np.arange(60.0), np.full(60, 1e-7), 0.5 * 0.999 ** np.arange(60.0)


def advice(norms=SLOW, n_chunks=1, step_multiplier=1.0, stats=STATS, names=None, needs_float64=False, **settings):
    """What a fit with these parameters says that ended like this."""
    estimator = SAGAClassifier(**{"tol": 1e-12, **settings})
    return unconverged_advice(estimator, Ending(list(norms), n_chunks, step_multiplier, stats, names, needs_float64))


def test_advice_blames_the_chunks_where_there_are_several_only():
    assert "as the chunks differ: shuffle the rows" in advice(n_chunks=7, step_multiplier=0.1)
    for told in (advice(n_chunks=1, step_multiplier=0.1), advice(n_chunks=7, step_multiplier=1.0)):
        assert "chunks" not in told
        assert "raise step_size_scale" in told


def test_advice_names_float32_memory_where_that_is_the_limit():
    assert "memory_dtype='float64'" in advice(STALLED, needs_float64=True)
    assert "memory_dtype" not in advice(STALLED, needs_float64=False)
    assert "memory_dtype" not in advice(FALLING, needs_float64=True)  # it still falls


def test_advice_raises_alpha_where_alpha_is_small_only():
    assert "raise alpha" in advice(alpha=1e-6)
    assert "alpha" not in advice(alpha=1e9)
    assert "add a penalty" in advice(penalty=None)
    assert "alpha" not in advice(penalty=ElasticNet(l2=1e-6))  # an object takes no alpha


def test_advice_gives_a_range_of_passes_where_the_rate_is_steady_only():
    told = advice(FALLING)
    low, high = (int(number) for number in re.search(r"and (\d+) to (\d+) more passes", told).groups())
    assert low - 1 <= np.log(1e-12 / FALLING[-1]) / np.log(0.8) <= high
    kinked = np.concatenate([0.5 ** np.arange(40.0), 0.5**39 * 0.97 ** np.arange(20.0)])  # slower of late
    for norms in (kinked, FALLING[:8], 0.95 ** np.arange(60.0)):  # few passes; and many more than were made
        assert "raise max_iter" in advice(norms, tol=1e-30)
        assert "more passes" not in advice(norms, tol=1e-30)
    assert "more passes" not in advice(SLOW)


def test_passes_that_are_announced_do():
    with pytest.warns(ConvergenceWarning, match="more passes may do") as caught:
        model = SAGAClassifier(max_iter=30, tol=1e-6, step_size=0.02, random_state=0).fit(A, y)
    _, most = re.search(r"and (\d+) to (\d+) more passes", str(caught[0].message)).groups()
    model.set_params(max_iter=30 + int(most)).fit(A, y)
    assert model.converged_


def test_advice_for_a_step_of_ones_own():
    with pytest.warns(ConvergenceWarning, match="try step_size='auto'"):
        SAGAClassifier(random_state=0, max_iter=3, tol=1e-6, step_size=1e-9).fit(A, y)


@pytest.mark.parametrize("kind", ["array", "frame", "sparse"])
def test_advice_names_a_column_with_a_far_entry(kind):
    rows = A.copy()
    rows[17, 3] = -999999.0
    data = {"array": rows, "frame": pd.DataFrame(rows, columns=list("abcdefgh")), "sparse": sp.csr_array(rows)}[kind]
    with pytest.warns(
        ConvergenceWarning, match="'d'" if kind == "frame" else "Column 3 has an entry, -1e[+]06"
    ) as seen:
        SAGAClassifier(random_state=0, max_iter=1, tol=1e-9).fit(data, y)
    assert "check it, or clip the column" in str(seen[0].message)


def test_advice_names_no_column_without_a_far_entry():
    rare = np.zeros((600, 1))
    rare[5] = 1.0  # a level of a one-hot column, in one row
    for rows in (A, np.column_stack([A, rare]), np.exp(A / A.std(axis=0))):
        with pytest.warns(ConvergenceWarning) as seen:
            SAGAClassifier(random_state=0, max_iter=1, tol=1e-9).fit(rows, y)
        assert "Column" not in str(seen[0].message)
