"""The scikit-learn estimators."""

from .classifier import SAGAClassifier
from .regressor import SAGARegressor

__all__ = ["SAGAClassifier", "SAGARegressor"]
