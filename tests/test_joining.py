"""Small chunks, which ``fit`` visits together and remembers apart."""

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp

from dask_saga import SAGAClassifier, SAGARegressor
from dask_saga.fitting import preparation

from . import oracles

pytestmark = pytest.mark.joins
ROWS = (150, 50, 1, 249, 150)
TIGHT = {"tol": 1e-8, "max_iter": 1000, "random_state": 0}


def blocks_of(array, rows=ROWS):
    return [array[end - n : end] for n, end in zip(rows, np.cumsum(rows), strict=True)]


def lazily(A, b, rows=ROWS):
    X = da.concatenate([da.from_array(block, chunks=block.shape, asarray=False) for block in blocks_of(A, rows)])
    return X, da.from_array(b, chunks=(rows,))


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, np.float32])
def test_joined_chunks_are_remembered_apart(binary, kind):
    A, y = kind(binary[0]), binary[1]
    model = SAGAClassifier(**TIGHT).fit(*lazily(A, y))
    assert [row["visits"] for row in model.history_] == [1 + k for k in range(model.n_iter_)]
    memories = list(model.state_.chunks.values())
    assert [len(memory.gradients) for memory in memories] == list(ROWS)
    whole = dict(zip(model.state_.chunks, blocks_of(A), strict=True))
    expected = oracles.gradient_sum_of(whole, model.state_)
    np.testing.assert_allclose(model.state_.head.gradient_sum[0], expected, rtol=0, atol=1e-8 * np.abs(A).max())
    for memory, rows in zip(memories, blocks_of(A), strict=True):
        if memory.total is not None:
            rows = rows.toarray() if sp.issparse(rows) else rows
            total = memory.gradients[:, 0].astype(float) @ np.c_[rows, np.ones(len(rows))]
            np.testing.assert_allclose(memory.total[0], total, atol=1e-10 * np.abs(A).max())
    assert any(memory.total is not None for memory in memories)
    visits = model.n_iter_
    for block, target in zip(blocks_of(A), blocks_of(y), strict=True):
        model.partial_fit(block, target)
    assert model.state_.n_samples == 600
    assert [m.visits for m in model.state_.chunks.values()] == [visits + 1 for _ in ROWS]


def test_the_optimum_is_that_of_chunks_visited_apart(numbers, monkeypatch):
    A, b = numbers
    weights = da.from_array(np.random.default_rng(0).integers(0, 3, len(b)).astype(float), chunks=(ROWS,))
    together = SAGARegressor(loss="huber", **TIGHT).fit(*lazily(A, b), weights)
    monkeypatch.setattr(preparation, "JOINED_BYTES", 0)
    apart = SAGARegressor(loss="huber", **TIGHT).fit(*lazily(A, b), weights)
    assert apart.history_[0]["visits"] == len(ROWS)
    assert together.converged_
    np.testing.assert_allclose(together.coef_, apart.coef_, rtol=1e-6)
    assert list(together.state_.chunks) == list(apart.state_.chunks)


def test_neither_large_nor_mixed_chunks_join(binary, monkeypatch):
    A, y = binary
    fit = SAGAClassifier(max_iter=2, tol=0.0, random_state=0).fit
    mixed = [sp.csr_matrix(block) if len(block) == 249 else block for block in blocks_of(A)]
    X = da.concatenate([da.from_array(block, chunks=block.shape, asarray=False) for block in mixed])
    with pytest.warns(match="max_iter=2"):
        assert [row["visits"] for row in fit(X, da.from_array(y, chunks=(ROWS,))).history_] == [5, 10]
    for limit, visits in ((A.nbytes, 1), (A.nbytes - 1, 5)):
        monkeypatch.setattr(preparation, "JOINED_BYTES", limit)
        with pytest.warns(match="max_iter=2"):
            assert fit(*lazily(A, y)).history_[0]["visits"] == visits


def test_what_was_found_for_one_chunk_is_not_carried_to_its_parts(binary, monkeypatch):
    together = SAGAClassifier(**TIGHT).fit(*lazily(*binary)).state_.head
    monkeypatch.setattr(preparation, "JOINED_BYTES", 0)
    apart = SAGAClassifier(**TIGHT).fit(*lazily(*binary)).state_.head
    np.testing.assert_allclose(together.limits, apart.limits)
    assert together.step_multiplier <= 1.0


def test_an_error_names_the_chunk_that_was_given(binary):
    A, y = binary
    A[500] = np.nan
    with pytest.raises(ValueError, match=r"chunk 4: .*X contains NaN"):
        SAGAClassifier().fit(*lazily(A, y))


def test_the_same_bits_on_a_cluster(binary, client):
    X, y = lazily(*binary)
    remote = SAGAClassifier(random_state=0).fit(X, y)
    with dask.config.set(scheduler="sync"):
        local = SAGAClassifier(random_state=0).fit(X, y)
    assert remote.coef_.tobytes() == local.coef_.tobytes()
    assert remote.state_.digest == local.state_.digest
    assert remote.history_[0]["visits"] == 1
