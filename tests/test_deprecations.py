"""Typical uses give no warning, also where Python makes every warning an error."""

import subprocess
import sys
import warnings
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

import dask_saga
from dask_saga import SAGAClassifier, SAGARegressor

USES = """
import pickle
import sys

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import scipy.sparse as sp
from dask_ml.wrappers import Incremental
from sklearn.base import clone

from dask_saga import SAGAClassifier, SAGARegressor, saga

folder = sys.argv[1]
rng = np.random.default_rng(0)
rows = pd.DataFrame(rng.standard_normal((1000, 3)), columns=["a", "b", "c"])
rows = rows.assign(late=rows.a > 0, count=pd.array(rng.integers(0, 9, 1000), dtype="Int64"), carrier="UA")
rows.loc[::2, "carrier"] = "DL"
names = ["a", "b", "c", "count"]
for k in range(5):
    rows[k * 200 : (k + 1) * 200].to_parquet(f"{folder}/{k}.parquet")

model = SAGAClassifier(random_state=0).fit(rows[names], rows.carrier)
model.predict_proba(rows[names]), model.score(rows[names], rows.carrier)
pickle.loads(pickle.dumps(clone(model).fit(sp.csr_array(rows[["a", "b"]].to_numpy()), rows.late)))
SAGARegressor(random_state=0).partial_fit(rows[names], rows.a).partial_fit(rows[names], rows.a)
for arguments in ({}, {"dtype_backend": "pyarrow"}):
    frame = dd.read_parquet(folder, **arguments)
    for persist in (True, False):
        model = SAGAClassifier(random_state=0).fit(frame[names], frame["late"], persist=persist)
    model.predict(frame[names]).compute(), model.score(frame[names], frame["late"])
X, y = da.from_array(rows[["a", "b"]].to_numpy(), chunks=(200, 2)), da.from_array(rows.c.to_numpy(), chunks=200)
SAGARegressor(random_state=0).fit(X, y).predict(X).compute()
Incremental(SAGARegressor(random_state=0)).fit(X, y)
saga([(X.blocks[k], y.blocks[k]) for k in range(5)], "squared_error", max_iter=3)
"""


@pytest.mark.slow
def test_warnings_as_errors(tmp_path):
    script, data = tmp_path / "uses.py", tmp_path / "data"
    script.write_text(USES)
    data.mkdir()
    done = subprocess.run([sys.executable, "-W", "error", script, data], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_parquet_without_an_index(tmp_path):
    """Files of polars or Spark have none. Dask resets it in a way that newer versions of pandas warn of."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(rng.standard_normal((600, 3)), columns=list("abc"))
    for k in range(3):
        part = rows[k * 200 : (k + 1) * 200]
        parquet.write_table(pyarrow.table({name: part[name].to_numpy() for name in part}), tmp_path / f"{k}.parquet")
    frame = dd.read_parquet(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for persist in (True, False):
            SAGARegressor(random_state=0).fit(frame[["a", "b"]], frame["c"], persist=persist)
            SAGAClassifier(random_state=0).fit(frame[["a", "b"]], frame["c"] > 0, persist=persist)
    package = str(Path(dask_saga.__file__).parent)
    assert [one for one in caught if one.filename.startswith(package)] == []
