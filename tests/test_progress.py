"""What a user sees during a long fit, and what Ctrl-C leaves."""

import _thread
import signal
import threading
import time

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from dask import delayed
from sklearn.exceptions import ConvergenceWarning

from dask_saga import SAGAClassifier, saga
from dask_saga.losses import LogLoss
from dask_saga.penalties import ElasticNet

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


def test_a_pass_that_is_interrupted_never_was():
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
def test_what_a_pass_tells(persist, n_parallel):
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
