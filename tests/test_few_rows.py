"""Streams of chunks of very few rows: the first pass learns from each of them."""

import itertools

import numpy as np
import pytest
import scipy.sparse as sp

from dask_saga import SAGAClassifier, SAGARegressor

KINDS = {"sparse": lambda n: sp.csr_array((n, 3)), "dense": lambda n: np.zeros((n, 3))}


def one_pass(rows, labels, **settings):
    model = SAGAClassifier(random_state=0, **settings)
    for k, label in enumerate(labels):
        model.partial_fit(rows, [label] * rows.shape[0], classes=[0, 1], chunk_id=k)
    return model


@pytest.mark.parametrize("curvature", ["auto", False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_more_frequent_label_wins_after_one_pass(n, kind, curvature):
    rows = KINDS[kind](n)
    for labels in set(itertools.permutations([0, 1, 1])):
        assert one_pass(rows, labels, curvature=curvature).predict(rows)[0] == 1
    for labels in set(itertools.permutations([0, 0, 1])):
        assert one_pass(rows, labels, curvature=curvature).predict(rows)[0] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 8])
def test_curvature_too(n, kind):
    rows = KINDS[kind](n)
    for labels in ([0, 1, 1], [1, 0, 1]):  # sorted by the frequent label first, all is lost but the last chunk
        model = one_pass(rows, labels, curvature=True)
        assert model.predict(rows)[0] == 1
    for _ in range(3):
        for k, label in enumerate(labels):
            model.partial_fit(rows, [label] * n, chunk_id=k)
    np.testing.assert_allclose(model.intercept_, np.log(2), atol=1e-3)


def test_equal_chunks_without_a_name_are_one():
    rows = np.zeros((1, 3))
    model = SAGAClassifier(random_state=0)
    for label in (0, 1, 1):
        model.partial_fit(rows, [label], classes=[0, 1])
    assert len(model.state_.chunks) == 2
    # Fit sees all chunks at once, so that it can tell a chunk that comes twice from two of equal content.
    assert SAGAClassifier(random_state=0).fit(np.zeros((3, 3)), [0, 1, 1]).predict(rows)[0] == 1


@pytest.mark.parametrize("size", [1, 2])
def test_a_shuffled_stream_of_single_rows(size):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 3))
    y = X @ [1.0, -2.0, 0.5] + 3.0
    model = SAGARegressor(random_state=0)
    for k in range(0, 300, size):
        model.partial_fit(X[k : k + size], y[k : k + size])
    assert model.score(X, y) > 0.95
