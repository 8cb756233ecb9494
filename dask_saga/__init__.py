"""SAGA for data in chunks: linear models that converge, on Dask and scikit-learn."""

from .estimators import SAGAClassifier, SAGARegressor
from .functional import SAGAResult, saga
from .solver.state import SAGAState
from .solver.visit import chunk_saga

__version__ = "0.1.0.dev0"

__all__ = ["SAGAClassifier", "SAGARegressor", "SAGAResult", "SAGAState", "chunk_saga", "saga"]
