"""``fit``, predictions and scores on Dask collections: same bits everywhere, lazy where expected."""

import gc
import threading
import time

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sparse
from distributed import wait
from distributed.client import futures_of
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from dask_saga import SAGAClassifier, SAGARegressor, saga
from dask_saga.fitting import loop

from .conftest import make_rows

A, y = make_rows()
X, labels = da.from_array(A, chunks=(150, 8)), da.from_array(y, chunks=150)


def unknown(array):
    """The same blocks, of lengths that Dask does not know."""
    frame = dd.from_dask_array(array)
    return frame.to_dask_array()


def frame():
    columns = pd.DataFrame(A, columns=[f"c{j}" for j in range(8)]).assign(late=np.where(y > 0, "yes", "no"))
    return dd.from_pandas(columns, npartitions=4)


def emptied():
    """The frame with one partition without rows before the others."""
    return dd.concat([frame().partitions[[0]].query("c0 > 1e9"), frame()])


def test_the_same_bits_in_memory_on_threads_and_on_a_cluster(client):
    fits = [SAGAClassifier(random_state=0).fit(X, labels)]
    for scheduler in ("threads", "sync"):
        with dask.config.set(scheduler=scheduler):
            fits.append(SAGAClassifier(random_state=0).fit(X, labels))
    for model in fits[1:]:
        assert model.coef_.tobytes() == fits[0].coef_.tobytes()
        assert list(model.state_.chunks) == list(fits[0].state_.chunks)
        assert model.state_.digest == fits[0].state_.digest
    pairs = [(A[k : k + 150], y[k : k + 150]) for k in range(0, 600, 150)]
    ours = saga(pairs, penalty=fits[0]._problem().penalty, fit_intercept=True, tol=1e-4, random_state=0)
    assert ours.x.tobytes() == fits[0].coef_[0].tobytes()


def test_nothing_is_left_on_the_cluster(client):
    SAGAClassifier(random_state=0).fit(X, labels)

    def tasks():
        return client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))

    for _ in range(50):
        if not tasks():
            break
    assert tasks() == 0


def test_the_next_pass_does_not_wait_for_the_client(client):
    rows, visits = persisted(client), []

    def wait_for_visits(info):
        if info.epoch == 2:
            deadline = time.monotonic() + 20
            while (not visits or visits[-1] < 24) and time.monotonic() < deadline:
                visits.append(client.run_on_scheduler(_visited))
        return info.epoch == 2

    # A step of one's own: all passes are visits.
    SAGAClassifier(random_state=0, step_size=1e-3, tol=0.0).fit(*rows, callback=wait_for_visits)
    assert visits[-1] == 24  # of three passes, of which the callback has seen two
    deadline = time.monotonic() + 20
    while client.run_on_scheduler(_visited) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not client.run_on_scheduler(_visited)


def _visited(dask_scheduler):
    tasks = [task for key, task in dask_scheduler.tasks.items() if str(key).startswith("saga-chunk")]
    return sum(task.state in ("memory", "released") for task in tasks)


@pytest.mark.joins  # as in the task, where nothing is patched
def test_inside_a_task_of_a_one_thread_worker(client):
    def train():
        return SAGAClassifier(random_state=0).fit(X, labels).coef_

    trained = [client.submit(train, pure=False) for _ in range(2)]
    for coef in client.gather(trained):
        np.testing.assert_array_equal(coef, SAGAClassifier(random_state=0).fit(X, labels).coef_)


KINDS = {
    "array": lambda: (X, labels),
    "unknown lengths": lambda: (unknown(X), unknown(labels)),
    "dataframe": lambda: (frame().drop(columns="late"), (frame().late == "yes").astype(int) * 2 - 1),
    "one-column dataframe y": lambda: (frame().drop(columns="late"), frame()[["late"]]),
    "pandas y of float index": lambda: (X, pd.Series(y, index=np.arange(600) / 7)),
    "y in memory": lambda: (X, y),
    "y a series in memory": lambda: (X, pd.Series(y, index=np.arange(600) + 5)),
    "empty block": lambda: tuple(da.concatenate([array[:150], array[:0], array[150:]]) for array in (X, labels)),
    "scipy sparse": lambda: (X.map_blocks(sp.csr_matrix), labels),
    "sparse CSC": lambda: (X.map_blocks(sp.csc_matrix), labels),
    "pydata sparse": lambda: (X.map_blocks(sparse.COO.from_numpy), labels),
    "blocked along columns": lambda: (X.rechunk((150, 3)), labels),
    "one-row chunks": lambda: tuple(array.rechunk({0: (1, 299, 1, 299)}) for array in (X, labels)),
    "dataframe with an empty partition": lambda: (emptied().drop(columns="late"), emptied().late),
    "float32": lambda: (X.astype("f4"), labels),
    "column vector y": lambda: (X, labels[:, None]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:A column-vector y")
@pytest.mark.parametrize("on", ["cluster", "threads"])
@pytest.mark.parametrize("kind", KINDS)
def test_optimum_from_any_collection(kind, on, request):
    if on == "cluster":
        request.getfixturevalue("client")
    rows, targets = KINDS[kind]()
    with dask.config.set(scheduler=None if on == "cluster" else "threads"):
        model = SAGAClassifier(alpha=1e-2, tol=1e-7, max_iter=1000, random_state=0).fit(rows, targets)
    best = LogisticRegression(C=1 / (1e-2 * 600), solver="newton-cholesky", tol=1e-10).fit(A, y)
    assert model.converged_
    np.testing.assert_allclose(model.coef_, best.coef_, rtol=1e-4, atol=1e-6)
    if "frame" in kind:
        assert list(model.feature_names_in_) == [f"c{j}" for j in range(8)]


def test_chunked_sample_weight():
    weights = np.random.default_rng(0).integers(0, 3, 600)
    for given in (da.from_array(weights, chunks=150), weights):
        model = SAGAClassifier(alpha=1e-2, tol=1e-7, max_iter=1000, random_state=0).fit(X, labels, given)
        best = LogisticRegression(C=1 / (1e-2 * weights.sum()), solver="newton-cholesky", tol=1e-10)
        best.fit(A, y, sample_weight=weights)
        np.testing.assert_allclose(model.coef_, best.coef_, rtol=1e-4, atol=1e-6)


def test_scalar_sample_weight():
    plain = SAGAClassifier(random_state=0).fit(X, labels)
    for rows, targets in ((X, labels), (A, y)):
        weighted = SAGAClassifier(random_state=0, tol=1e-6).fit(rows, targets, sample_weight=2.0)
        assert weighted.state_.head.weight == 1200.0
        np.testing.assert_allclose(weighted.coef_, plain.coef_, rtol=1e-2, atol=1e-3)


def test_scores_of_x_blocked_along_columns():
    model = SAGAClassifier(random_state=0).fit(A, y)
    assert model.score(X.rechunk((150, 3)), labels) == model.score(A, y)


def test_predictions_are_lazy_and_of_the_right_kind():
    model = SAGAClassifier(random_state=0).fit(A, np.where(y > 0, "late", "ok"))
    expected = {name: getattr(model, name)(A) for name in ("decision_function", "predict", "predict_proba")}
    expected["predict_log_proba"] = model.predict_log_proba(A)
    named = SAGAClassifier(random_state=0).fit(
        *(part.compute() for part in (frame().drop(columns="late"), frame().late))
    )
    for fitted, rows in (
        (model, X),
        (model, unknown(X)),
        (model, X.rechunk((150, 3))),
        (named, frame().drop(columns="late")),
    ):
        for name, values in expected.items():
            lazy = getattr(fitted, name)(rows)
            assert isinstance(lazy, da.Array)
            assert lazy.dtype == lazy.compute().dtype
            if fitted is model:
                assert lazy.shape[1:] == values.shape[1:]
                compare = np.testing.assert_array_equal if name == "predict" else np.testing.assert_allclose
                compare(lazy.compute(), values)
    assert model.predict(X).chunks == ((150,) * 4,)
    assert model.predict_proba(X).chunks == ((150,) * 4, (2,))


def test_graphs_carry_coefficients_only():
    rows = np.random.default_rng(0).standard_normal((200_000, 2))
    targets = np.where(rows[:, 0] > 0, 1, 0)
    model = SAGAClassifier(random_state=0, tol=1e-2).fit(rows, targets)
    blocks = da.zeros((10, 2), chunks=(5, 2))
    for lazy in (model.predict(blocks), model.predict_proba(blocks)):
        import cloudpickle

        assert len(cloudpickle.dumps(lazy)) < 20_000 < model.state_.n_samples * 4


def test_scores_by_block_are_weighted():
    weights = np.random.default_rng(0).random(600)
    classifier = SAGAClassifier(random_state=0).fit(A, y)
    numbers = A @ np.arange(8) + np.random.default_rng(1).standard_normal(600) * 30
    regressor = SAGARegressor(random_state=0).fit(A, numbers)
    uneven = ((10, 290, 300), (8,))
    for model, target in ((classifier, y), (regressor, numbers)):
        for w in (None, weights):
            expected = model.score(A, target, sample_weight=w)
            for rows in (X.rechunk(uneven), unknown(X.rechunk(uneven))):
                blocks = da.from_array(target, chunks=uneven[0])
                chunked = None if w is None else da.from_array(w, chunks=uneven[0])
                assert model.score(rows, blocks, sample_weight=chunked) == pytest.approx(expected, rel=1e-12)
    from sklearn.metrics import r2_score

    assert regressor.score(A, numbers) == pytest.approx(r2_score(numbers, regressor.predict(A)))


small_blocks = da.from_array(A, chunks=(75, 8)), da.from_array(y, chunks=75)


def persisted(client):
    """The rows in the memory of two workers, in eight chunks."""
    held = dask.persist(*small_blocks)
    wait(held)
    return held


@pytest.mark.parametrize(("epoch", "held"), [(2, False), (10, False), (14, False), (2, True), (12, True)])
def test_a_killed_worker_changes_nothing(cluster, client, epoch, held):
    settings = {"random_state": 0, "max_iter": 20, "tol": 0.0}
    client.wait_for_workers(2)  # the one that the test before has killed comes again
    rows = persisted(client) if held else (X, labels)
    expected = SAGAClassifier(**settings).fit(*rows, callback=lambda info: info.epoch == 16)
    killed = []

    def kill(info):
        if info.epoch == epoch and not killed:
            import os
            import signal

            address = next(iter(client.scheduler_info(n_workers=-1)["workers"]))
            killed.append(address)
            pid = client.run(os.getpid, workers=[address])[address]
            os.kill(pid, signal.SIGKILL)
        return info.epoch == 16

    model = SAGAClassifier(**settings).fit(*rows, callback=kill)
    assert killed
    assert model.coef_.tobytes() == expected.coef_.tobytes()


@pytest.mark.parametrize(("penalty", "n_parallel"), [("l2", 1), ("l1", 1), ("l2", 2)])
def test_chunks_that_lie_together_share_tasks(client, penalty, n_parallel):
    held, counts = persisted(client), []
    # Before the fit: two chunks visited at once may be copied to the other worker, and then lie on both.
    homes = {worker for workers in client.who_has(futures_of(held[0])).values() for worker in workers}

    def count(info):
        counts.append(client.run_on_scheduler(_examining))

    settings = {"penalty": penalty, "random_state": 0, "max_iter": 50, "n_parallel": n_parallel}
    on_cluster = SAGAClassifier(**settings).fit(*held, callback=count)
    assert counts[0] <= 2 * len(homes) < 8  # tasks; a thread's share of the chunks in each
    pairs = [(A[k : k + 75], y[k : k + 75]) for k in range(0, 600, 75)]
    asked = {"fit_intercept": True, "tol": 1e-4, "random_state": 0, "n_parallel": n_parallel}
    ours = saga(pairs, penalty=on_cluster._problem().penalty, **asked)
    assert ours.x.tobytes() == on_cluster.coef_[0].tobytes()
    assert on_cluster.state_.digest == SAGAClassifier(**settings).fit(*small_blocks).state_.digest


def _examining(dask_scheduler):
    return sum(str(key).startswith("saga-examine") for key in dask_scheduler.tasks)


def test_chunks_that_moved_are_found(client):
    expected = SAGAClassifier(random_state=0).fit(*small_blocks)
    held = persisted(client)
    [first, second] = client.scheduler_info(n_workers=-1)["workers"]
    client.replicate(futures_of(held), n=2)
    model = SAGAClassifier(random_state=0).fit(*held)
    assert model.state_.digest == expected.state_.digest
    client.rebalance(futures_of(held), workers=[first, second])
    assert SAGAClassifier(random_state=0).fit(*held).state_.digest == expected.state_.digest


@pytest.mark.joins  # as in the task, where nothing is patched
def test_persisted_rows_inside_a_task(client):
    held = persisted(client)

    def train():  # futures that come with a task belong to no client
        return SAGAClassifier(random_state=0).fit(*held).coef_.tobytes()

    assert client.submit(train, pure=False).result(timeout=60) == train()


# A period with a Newton step holds a few more tasks for a while, of models and their merges.
@pytest.mark.parametrize(("step_size", "more"), [(0.01, 2), ("auto", 40)])
def test_the_scheduler_forgets_old_tasks(client, step_size, more):
    counts = []

    def count(info):
        counts.append(client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))

    with pytest.warns(ConvergenceWarning):
        SAGAClassifier(step_size=step_size, random_state=0, max_iter=71, tol=0.0).fit(X, labels, callback=count)
    # Lineage is cut each ten epochs: no period after the first cut holds more than the one before.
    assert max(counts[21:]) <= max(counts[11:21]) + more


def test_columns_of_one_parquet_read_apart(tmp_path):
    # Dask merges partitions of which few columns are read: y would have fewer than X.
    for k in range(6):
        frame = pd.DataFrame(A[100 * k : 100 * (k + 1)], columns=list("abcdefgh"))
        frame.assign(y=y[100 * k : 100 * (k + 1)]).to_parquet(tmp_path / f"{k}.parquet")
    frame = dd.read_parquet(tmp_path)
    rows, targets = frame.drop(columns="y"), frame["y"]
    assert len(targets.to_delayed()) < 6
    model = SAGAClassifier(random_state=0).fit(rows, targets)
    held = SAGAClassifier(random_state=0).fit(da.from_array(A, chunks=(100, 8)), da.from_array(y, chunks=100))
    assert model.coef_.tobytes() == held.coef_.tobytes()
    assert model.score(rows, targets) == held.score(A, y)


def test_lazy_numbers_in_a_list_are_computed_by_tasks_that_check_as_well():
    A, y = make_rows(n=200)
    model = SAGARegressor(random_state=0).fit(A, y)
    lazy = list(model.predict(da.from_array(A, chunks=(40, -1))))
    other = SAGARegressor(random_state=0)
    thread = threading.Thread(target=other.fit, args=(A, lazy), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "tasks wait for the check that waits for them"
    np.testing.assert_allclose(other.predict(A), model.predict(A), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("on", ["memory", "cluster"])
def test_columns_of_partitions_in_another_order_go_by_name(tmp_path, on, request):
    """As Dask itself takes them."""
    if on == "cluster":
        request.getfixturevalue("client")
    whole = pd.DataFrame(A, columns=list("abcdefgh")).assign(late=y > 0)
    for k in range(4):
        part = whole.iloc[150 * k : 150 * (k + 1)]
        part = part[["late", *"hgfedcba"]] if k == 2 else part
        part.to_csv(tmp_path / f"{k}.csv", index=False)
    rows = dd.read_csv(tmp_path / "*.csv", usecols=list("abcdefgh"))
    late = dd.read_csv(tmp_path / "*.csv", usecols=["late"])["late"]
    settings = {"random_state": 0, "tol": 1e-8, "max_iter": 1000}
    expected = SAGAClassifier(**settings).fit(dd.from_pandas(whole[list("abcdefgh")], npartitions=4), late)
    model = SAGAClassifier(**settings).fit(rows, late)
    # Older versions of pandas read the last digit otherwise, and other content has other orders.
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-5)
    np.testing.assert_array_equal(model.predict(rows).compute(), model.predict(rows.compute()))
    assert model.score(rows, late) == model.score(rows.compute(), late.compute())


def test_partitions_of_other_columns_are_named():
    parts = [pd.DataFrame(A[:150, :2], columns=names) for names in (["a", "b"], ["a", "c"])]
    rows = dd.from_map(lambda k: parts[k], range(2), meta=parts[0][:0])
    late = dd.from_pandas(pd.Series(np.r_[y[:150], y[:150]]), npartitions=2)
    with pytest.raises(ValueError, match=r"chunk 1: X has the columns \['a', 'c'\] here, but the frame has"):
        SAGAClassifier().fit(rows, late)
    model = SAGAClassifier().fit(parts[0], y[:150])
    with pytest.raises(ValueError, match=r"X has the columns \['a', 'c'\] here"):
        model.predict(rows).compute()


def test_predictions_have_the_partitions_of_their_frame(tmp_path):
    """Dask merges reads of few columns of parquet files when it optimises."""
    whole = pd.DataFrame(A, columns=list("abcdefgh"))
    for k in range(6):
        whole.iloc[100 * k : 100 * (k + 1)].to_parquet(tmp_path / f"{k}.parquet")
    stored = dd.read_parquet(tmp_path)
    rows = stored[["a", "b"]].fillna(0.0)
    model = SAGAClassifier(random_state=0).fit(whole[["a", "b"]], y)
    assert model.predict(rows).npartitions == rows.npartitions == 6
    predicted = stored.assign(predicted=model.predict(rows)).compute().predicted
    np.testing.assert_array_equal(predicted, model.predict(whole[["a", "b"]]))


@pytest.mark.parametrize("named", [False, True])
def test_labels_of_another_kind_have_no_score(named):
    classes = np.array(["no", "yes"]) if named else np.array([0, 1])
    others = np.array([0, 1]) if named else np.array(["no", "yes"])
    model = SAGAClassifier().fit(A, classes[(y > 0).astype(int)])
    for rows in (A, X):
        with pytest.raises(ValueError, match="y has labels such as"):
            model.score(rows, others[(y > 0).astype(int)])


def test_blocks_that_do_not_match_are_told_how_they_could():
    with pytest.raises(ValueError, match=r"y has 3; block one like the other: y.rechunk\(\(X.chunks\[0\],\)\)"):
        SAGAClassifier().fit(X, labels.rechunk(200))
    with pytest.raises(ValueError, match=r"frame = frame.persist\(\); X, y = frame\[columns\], frame\[label\]"):
        SAGAClassifier().fit(unknown(X), unknown(labels.rechunk(200)))


@pytest.mark.parametrize("fault", ["label", "target", "row"])
def test_a_fit_that_fails_leaves_nothing_on_the_cluster(client, fault):
    missing = da.from_array(np.where(np.arange(600) == 500, np.nan, y), chunks=150)

    def fails():
        if fault == "label":
            with pytest.raises(ValueError, match="chunk 3: y contains NaN"):
                SAGAClassifier().fit(X, missing)
        elif fault == "target":
            with pytest.raises(ValueError, match="chunk 3: y contains NaN: 1 missing value;"):
                SAGARegressor().fit(X, missing)
        else:
            with pytest.raises(ValueError, match="chunk 3: X contains NaN: 8 missing values in"):
                SAGAClassifier().fit(X * missing[:, None], labels)

    def tasks():
        gc.collect()
        return client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)), len(client.futures)

    fails()
    for _ in range(100):
        if tasks() == (0, 0):
            return
        time.sleep(0.1)
    assert tasks() == (0, 0)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("n_parallel", [1, 2])
def test_the_same_bits_where_passes_are_undone(client, monkeypatch, tmp_path, n_parallel, only_visits):
    def is_third_or_seventh(place, ended, at_zero):
        return len(place.history) in (2, 6)

    monkeypatch.setattr(loop, "_is_diverging", is_third_or_seventh)
    settings = {"random_state": 0, "tol": 0.0, "max_iter": 12, "n_parallel": n_parallel}
    on_cluster = SAGAClassifier(**settings).fit(*small_blocks)
    norms = [row["gradient_norm"] for row in on_cluster.history_]
    assert norms[1] / 2 < norms[2] < 2 * norms[1], "that of the x before, but exact"
    with dask.config.set(scheduler="sync"):
        here = SAGAClassifier(**settings).fit(*small_blocks)
        SAGAClassifier(**{**settings, "max_iter": 4}).fit(*small_blocks, checkpoint=tmp_path)
        resumed = SAGAClassifier(**settings).fit(*small_blocks, checkpoint=tmp_path)
    for other in (here, resumed):
        assert other.coef_.tobytes() == on_cluster.coef_.tobytes()
        assert other.state_.digest == on_cluster.state_.digest
