"""The messages that the troubleshooting page quotes are those that users see."""

import asyncio
import re
from pathlib import Path

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from dask.distributed import Client

from dask_saga import SAGAClassifier

from .conftest import make_rows

A, y = make_rows(n=60, p=3)
ROWS = pd.DataFrame(A, columns=list("abc")).assign(late=y)
FRAME = dd.from_pandas(ROWS, npartitions=3)
PAGE = Path(__file__).parents[1] / "docs" / "guide" / "troubleshooting.md"


def quoted():
    """Texts of the page on one line each."""
    blocks = re.findall(r"^```text\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [" ".join(block.split()) for block in blocks]


@pytest.mark.parametrize(
    ("X", "target"),
    [
        (dask.delayed(A), y),
        (FRAME[list("abc")], y),
        (FRAME[FRAME.a > 1e6][list("abc")], FRAME[FRAME.a > 1e6]["late"]),
        (dd.from_pandas(ROWS.assign(b=np.where(ROWS.index // 2 == 12, np.nan, 1.0)), 3)[list("abc")], FRAME["late"]),
        (ROWS.assign(carrier="UA"), y),
        (ROWS.assign(date=np.datetime64("2013-01-01", "ns")), y),
    ],
)
def test_errors_of_fit(X, target):
    with pytest.raises((TypeError, ValueError)) as caught:
        SAGAClassifier().fit(X, target)
    assert f"{type(caught.value).__name__}: {caught.value}" in quoted()


def test_warning_of_predict():
    model = SAGAClassifier(random_state=0).fit(A, y)
    with pytest.warns(UserWarning, match="X has feature names") as caught:
        model.predict(FRAME[list("abc")])
    assert f"UserWarning: {caught[0].message}" in quoted()


def test_the_error_of_an_asynchronous_client():
    async def fit():
        settings = {"processes": False, "n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}
        async with Client(asynchronous=True, **settings):
            SAGAClassifier().fit(da.from_array(A), da.from_array(y))

    with pytest.raises(RuntimeError) as caught:
        asyncio.run(fit())
    assert f"RuntimeError: {caught.value}" in quoted()


def test_the_remedy_is_for_the_kind_of_x():
    frame, array = FRAME[list("abc")], FRAME[list("abc")].to_dask_array()
    for X, remedy in (
        (frame, "too, such as a column of the same frame, or give X known lengths: X.to_dask_array()"),
        (array, "too, or give X known lengths: X"),
    ):
        for name, rest in (("y", (y,)), ("sample_weight", (FRAME["late"], np.ones(60)))):
            with pytest.raises(ValueError, match=f"^{name} is in memory") as caught:
                SAGAClassifier().fit(X, *rest)
            assert str(caught.value).endswith(f"make {name} a Dask collection {remedy}.compute_chunk_sizes()")


@pytest.mark.slow
def test_the_remedies_work_on_small_parquet_files(tmp_path, client):
    """Of which Dask reads several of few columns with one task."""
    for k in range(6):
        ROWS[k * 10 : (k + 1) * 10].assign(other="text").to_parquet(tmp_path / f"{k}.parquet")
    frame = dd.read_parquet(tmp_path)
    X, target = frame[["a", "b"]], frame["late"]
    assert len(target.to_delayed()) < frame.npartitions == 6
    expected = SAGAClassifier(random_state=0, tol=1e-8).fit(A[:, :2], y).coef_
    held = frame.persist()
    for arguments in (
        (X, target),
        (X.to_dask_array().compute_chunk_sizes(), y),
        (X, da.from_array(y, chunks=10)),
        (held[["a", "b"]], held["late"]),
        (held[["a", "b"]].to_dask_array(lengths=True), y),
        (held[["a", "b"]].to_dask_array(lengths=True), held["late"].to_dask_array(lengths=True)),
    ):
        model = SAGAClassifier(random_state=0, tol=1e-8).fit(*arguments)
        np.testing.assert_allclose(model.coef_, expected, rtol=1e-5)
