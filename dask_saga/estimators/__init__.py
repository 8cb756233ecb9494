"""The estimators with the API of scikit-learn: SAGAClassifier for classification, SAGARegressor for regression."""

from .classifier import SAGAClassifier
from .regressor import SAGARegressor

__all__ = ["SAGAClassifier", "SAGARegressor"]
