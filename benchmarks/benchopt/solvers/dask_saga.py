"""The solver for benchopt's logistic regression: all that another benchmark of this objective needs."""

import warnings

import numpy as np
from benchopt import BaseSolver
from sklearn.exceptions import ConvergenceWarning

from dask_saga import SAGAClassifier


class Solver(BaseSolver):
    name = "dask-saga"
    sampling_strategy = "callback"
    requirements = ["pip::dask-saga"]
    references = ["Defazio, Bach, Lacoste-Julien, SAGA: a fast incremental gradient method, NeurIPS 2014"]
    parameters = {"n_threads": [1]}

    def set_objective(self, X, y, lmbd, fit_intercept):
        self.X, self.y, self.fit_intercept = X, y, fit_intercept
        self.model = SAGAClassifier(
            alpha=lmbd / len(y), fit_intercept=fit_intercept, tol=0.0, max_iter=100_000, n_threads=self.n_threads,
            random_state=0,
        )  # fmt: skip
        warnings.simplefilter("ignore", ConvergenceWarning)

    def warm_up(self):
        self.run_once(stop_val=1)

    def run(self, callback):
        self.beta = np.zeros(self.X.shape[1] + self.fit_intercept)
        if callback():
            self.model.fit(self.X, self.y, callback=lambda info: not self._goes_on(info, callback))

    def _goes_on(self, info, callback):
        self.beta = np.append(info.x, info.intercept) if self.fit_intercept else info.x
        return callback()

    def get_result(self):
        return dict(beta=self.beta)
