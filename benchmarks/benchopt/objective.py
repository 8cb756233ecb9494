"""L2-penalised logistic regression as the public benchmark of benchopt has it: a sum over the rows, labels -1 and 1."""

import numpy as np
from benchopt import BaseObjective


class Objective(BaseObjective):
    name = "L2 logistic regression"
    min_benchopt_version = "1.6"
    parameters = {"lmbd": [1.0], "fit_intercept": [True]}

    def set_data(self, X, y):
        self.X, self.y = X, y

    def get_objective(self):
        return dict(X=self.X, y=self.y, lmbd=self.lmbd, fit_intercept=self.fit_intercept)

    def evaluate_result(self, beta):
        coef, intercept = (beta[:-1], beta[-1]) if self.fit_intercept else (beta, 0.0)
        losses = np.logaddexp(0.0, -self.y * (self.X @ coef + intercept))
        return dict(value=losses.sum() + 0.5 * self.lmbd * coef @ coef)

    def get_one_result(self):
        return dict(beta=np.zeros(self.X.shape[1] + self.fit_intercept))
