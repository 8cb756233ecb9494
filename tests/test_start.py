"""Where passes begin, and how far the first ones get."""

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp

from dask_saga import SAGAClassifier
from dask_saga.data.chunk import join_chunks
from dask_saga.data.statistics import column_stats, merge
from dask_saga.data.validation import read_chunk
from dask_saga.fitting.preparation import Handover
from dask_saga.losses import LogLoss, SquaredError
from dask_saga.penalties import ElasticNet
from dask_saga.solver import subsample
from dask_saga.solver.optimality import chunk_gradient
from dask_saga.solver.preconditioned_problem import PreconditionedProblem
from dask_saga.solver.preconditioner_choice import choose_preconditioner
from dask_saga.solver.problem import Problem
from dask_saga.solver.subsample import (
    ROWS_A_COLUMN,
    SAMPLE_SHARE,
    effective_rows,
    make_sample,
    sample_rows,
    subsample_step,
)

from .conftest import make_rows

PROBLEM = Problem(LogLoss(), ElasticNet(l2=1e-3), True)


def norm_at(chunk, x, problem=PROBLEM):
    gradient = chunk_gradient(chunk, x, problem)[1][0] / chunk.weight
    return np.linalg.norm(gradient + np.append(problem.penalty.l2 * x[0, :-1], 0.0))


def started(sample, stats, problem=PROBLEM):
    zero = np.zeros((1, sample.rows.shape[1] + 1))
    return subsample_step(
        make_sample(sample, PreconditionedProblem(problem, choose_preconditioner(stats, problem))),
        zero,
        None,
        problem,
        0,
    )


def test_a_sample_weighs_as_much_as_its_chunk_and_repeats():
    n = 30000
    A, b = make_rows(n, 5)
    w = np.random.default_rng(0).random(n) * (np.arange(n) % 3 > 0)
    for rows in (A, sp.csr_array(A), A.astype(np.float32)):
        chunk = read_chunk(rows, b, w)
        sample, again = sample_rows(chunk, 1), sample_rows(chunk, 1)
        assert len(sample.targets) == int(np.count_nonzero(w) * SAMPLE_SHARE)
        assert sample.weight == pytest.approx(chunk.weight)
        assert sample.rows.dtype == rows.dtype
        assert np.array_equal(sample.targets, again.targets)
        assert len(sample_rows(chunk, 10**6).targets) == 1
    wide = read_chunk(np.zeros((50, 400)), b[:50])
    assert not len(sample_rows(wide, 1).targets), "16 MB are too few rows of so many columns"
    for rows in (A, sp.csr_array(A)):
        short = read_chunk(rows[:4000], b[:4000])
        assert not len(sample_rows(short, 1).targets), "an eighth of the only chunk is too few rows"
        assert len(sample_rows(short, 2).targets) == 500
    nothing = sample_rows(read_chunk(A, b, np.zeros(n)), 1)
    assert nothing.weight == 0
    assert not effective_rows([nothing])
    assert not effective_rows([])


def test_the_sample_of_large_data_is_a_share_of_them(monkeypatch):
    A, b = make_rows(64000, 5)
    monkeypatch.setattr(subsample, "LEAST_BYTES", 40 * 1000)  # five columns of eight bytes
    monkeypatch.setattr(subsample, "MOST_BYTES", 40 * 3000)
    chunk, part = read_chunk(A, b), read_chunk(A[:8000], b[:8000])
    assert len(sample_rows(chunk, 1).targets) == 2000, "a 32nd"
    assert len(sample_rows(chunk, 2).targets) == 1500, "half of the most"
    assert len(sample_rows(part, 1).targets) == 0, "the least are too few rows"
    assert len(sample_rows(part, 2).targets) == 500, "half of the least"
    assert len(sample_rows(part, 100).targets) == 30, "a 100th of the most"


def test_rows_without_weight_are_not_drawn():
    """They would make the sample smaller, or empty, beside rows that count."""
    A, b = make_rows(8000, 3)
    w = np.zeros(8000)
    w[:40] = 2.0
    sample = sample_rows(read_chunk(A, b, w), 2)
    assert len(sample.targets) == 5
    np.testing.assert_allclose(sample.weights, 16.0)


@pytest.mark.parametrize(("sparse", "most"), [(False, 0.3), (True, 1.2)])
def test_the_start_is_the_optimum_of_the_sample(sparse, most):
    A, b = make_rows(40000, 5)
    ratios = []
    for seed in range(8):
        order = np.random.default_rng(seed).permutation(len(b))
        chunk = read_chunk(sp.csr_array(A[order]) if sparse else A[order], b[order])
        sample = sample_rows(chunk, 1)
        x = started(sample, column_stats(chunk, PROBLEM))
        ratios.append(norm_at(sample, x) / norm_at(chunk, x))
        assert norm_at(chunk, x) < 0.1 * norm_at(chunk, np.zeros_like(x))
    # What the sample has left is small beside what it cannot know; SOLVED is asked of it by an estimate, which the
    # memory of sparse rows makes too small.
    assert np.exp(np.log(ratios).mean()) < most


def test_too_few_rows_are_no_start():
    A, b = make_rows(2500, 200)
    chunk = read_chunk(A, b, np.ones(2500))
    assert ROWS_A_COLUMN * 200 > 2500
    assert not effective_rows([chunk])
    A, b = make_rows(4000, 5)
    few = np.where(np.arange(4000) < 10, 1e6, 1.0)  # ten rows have all the weight
    assert not effective_rows([read_chunk(A, b, few)])
    assert effective_rows([read_chunk(A, b, np.ones(4000))]) == pytest.approx(4000)


@pytest.mark.parametrize("sort", [False, True])
def test_one_pass_of_many_rows_is_enough(sort):
    """With replacement in mind, or from zero, it would leave a hundred times as much and more."""
    A, b = make_rows(60000, 6)
    if sort:
        rows = np.argsort(b, kind="stable")
        A, b = A[rows], b[rows]
    X, y = da.from_array(A, chunks=(6000, -1)), da.from_array(b, chunks=6000)
    best = SAGAClassifier(alpha=1e-3, tol=1e-9, max_iter=100, memory_dtype="float64", random_state=0).fit(A, b)
    for data, limit in (((A, b), 1e-5), ((X, y), 1e-3)):
        model = SAGAClassifier(alpha=1e-3, tol=0.0, random_state=0).fit(*data, callback=lambda info: True)
        assert model.n_iter_ == 1
        off = np.append(model.coef_ - best.coef_, model.intercept_ - best.intercept_)
        assert np.linalg.norm(off) ** 2 < limit * np.linalg.norm(best.coef_) ** 2


def test_products_of_some_rows_are_like_those_of_all():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((50000, 6)) @ rng.standard_normal((6, 6)) + 1e4
    chunk = read_chunk(A, np.tile([-1.0, 1.0], 25000))
    some, all_of_them = (
        column_stats(chunk, Problem(loss, ElasticNet(l2=1e-3))) for loss in (LogLoss(), SquaredError())
    )
    size = np.sqrt(np.outer(some.squares, some.squares))
    np.testing.assert_allclose(all_of_them.products, (A - A.mean(axis=0)).T @ (A - A.mean(axis=0)), rtol=1e-9)
    np.testing.assert_array_equal(np.diag(some.products), some.squares)
    np.testing.assert_allclose(some.products / size, all_of_them.products / size, atol=0.05)
    assert np.linalg.eigvalsh(some.products).min() > 0
    assert not np.array_equal(some.products, all_of_them.products)


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_variances_keep_their_digits(offset):
    """Of columns far from zero, of rows sorted, and where the first rows are unlike all others."""
    rng = np.random.default_rng(0)
    n = 20000
    A = np.column_stack([rng.random(n), np.sort(rng.random(n)), np.full(n, 3.0), rng.random(n)]) + offset
    A[:: n // 1000, 3] = offset + 1e5
    w = np.where(A[:, 3] > offset + 2, 1e-12, 1.0)
    problem = Problem(LogLoss(), ElasticNet(l1=1e-3), True)
    stats = column_stats(read_chunk(A, np.tile([-1.0, 1.0], n // 2), w), problem)
    mean = np.average(A - offset, axis=0, weights=w)
    squares = w @ (A - offset - mean) ** 2
    np.testing.assert_allclose(stats.squares[[0, 1, 3]], squares[[0, 1, 3]], rtol=1e-5)
    assert stats.squares[2] == 0
    parts = [column_stats(read_chunk(A[k::3], np.ones(len(A[k::3])), w[k::3]), problem) for k in range(3)]
    np.testing.assert_allclose(merge(merge(*parts[:2]), parts[2]).squares, stats.squares, rtol=1e-5, atol=1e-9)


def test_samples_of_chunks_join():
    A, b = make_rows(400, 3)
    one, other = read_chunk(A[:200], b[:200]), read_chunk(A[200:], b[200:], np.full(200, 2.0))
    joined = join_chunks(sample_rows(one, 2), sample_rows(other, 2))
    assert joined.weight == pytest.approx(600)


def test_sparse_chunks_of_any_density_are_in_the_sample():
    rng = np.random.default_rng(0)
    b = np.where(rng.random(4000) < 0.5, 1.0, -1.0)
    for each in (4, 110):  # of 700 columns, of which 16 MB of the denser rows alone would not be enough
        A = sp.csr_array((np.ones(4000 * each), np.tile(np.arange(each), 4000), np.arange(0, 4000 * each + 1, each)))
        A.resize(4000, 700)
        sample = sample_rows(read_chunk(A, b), 2)
        assert len(sample.targets) == 500
        assert sample.weight == pytest.approx(4000.0)


def test_what_only_the_start_needs_is_handed_over_once():
    handover = Handover(["limits"], "sample")
    assert handover.take() == (["limits"], "sample")
    with pytest.raises(RuntimeError, match="prepare again"):
        handover.take()
