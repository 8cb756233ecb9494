"""SAGA for data in chunks: linear models that converge, on Dask and scikit-learn."""

from .chunk import chunk_saga
from .estimators import SAGAClassifier, SAGARegressor
from .solve import SAGAResult, saga
from .state import SAGAState

__version__ = "0.1.0.dev0"

__all__ = ["SAGAClassifier", "SAGARegressor", "SAGAResult", "SAGAState", "chunk_saga", "saga"]
