"""scikit-learn's solvers of the same objective."""

import warnings

import numpy as np
from benchopt import BaseSolver
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression


class Solver(BaseSolver):
    name = "scikit-learn"
    sampling_strategy = "iteration"
    requirements = ["pip::scikit-learn"]
    parameters = {"solver": ["lbfgs", "newton-cholesky", "saga"]}

    def skip(self, X, y, lmbd, fit_intercept):
        wide = self.solver == "newton-cholesky" and X.shape[1] > 2000
        return (True, "needs a matrix of columns x columns") if wide else (False, None)

    def set_objective(self, X, y, lmbd, fit_intercept):
        self.X, self.y = X, y
        self.model = LogisticRegression(C=1 / lmbd, fit_intercept=fit_intercept, solver=self.solver, tol=0.0)
        warnings.simplefilter("ignore", ConvergenceWarning)

    def run(self, n_iter):
        self.iterations = n_iter
        if n_iter:
            self.model.set_params(max_iter=n_iter).fit(self.X, self.y)

    def get_result(self):
        if not self.iterations:
            return dict(beta=np.zeros(self.X.shape[1] + self.model.fit_intercept))
        beta = self.model.coef_[0]
        return dict(beta=np.append(beta, self.model.intercept_) if self.model.fit_intercept else beta)
