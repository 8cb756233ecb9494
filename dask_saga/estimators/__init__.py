"""The estimators ``SAGAClassifier`` and ``SAGARegressor``, and those that choose `alpha` by cross-validation."""

from .classifier import SAGAClassifier
from .cv import SAGAClassifierCV, SAGAPath, SAGARegressorCV, saga_path
from .regressor import SAGARegressor

__all__ = ["SAGAClassifier", "SAGAClassifierCV", "SAGAPath", "SAGARegressor", "SAGARegressorCV", "saga_path"]
