"""The scikit-learn estimators: SAGAClassifier and SAGARegressor."""

from .classifier import SAGAClassifier
from .regressor import SAGARegressor

__all__ = ["SAGAClassifier", "SAGARegressor"]
