"""SAGA for data in chunks: fit linear models to convergence, with the API of scikit-learn, in memory or on Dask."""

from .estimators import SAGAClassifier, SAGAClassifierCV, SAGAPath, SAGARegressor, SAGARegressorCV, saga_path
from .functional import SAGAResult, saga
from .solver.state import SAGAState
from .solver.visit import chunk_saga
from .versions import show_versions

__version__ = "0.1.0.dev0"

__all__ = [
    "SAGAClassifier",
    "SAGAClassifierCV",
    "SAGAPath",
    "SAGARegressor",
    "SAGARegressorCV",
    "SAGAResult",
    "SAGAState",
    "chunk_saga",
    "saga",
    "saga_path",
    "show_versions",
]
