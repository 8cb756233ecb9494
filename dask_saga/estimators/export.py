"""Export of fitted models: as estimators of scikit-learn, and as SQL expressions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, SGDClassifier
from sklearn.multioutput import MultiOutputRegressor
from sklearn.svm import LinearSVC
from sklearn.utils.validation import check_is_fitted

from ..losses import LogLoss, ModifiedHuber, MultinomialLogLoss, PoissonLoss, resolve_loss
from .prediction import threshold_of

if TYPE_CHECKING:
    from .base import SAGABase

__all__ = ["SQL_METHODS", "sklearn_model", "sql_expressions"]


# Names of the methods of which ``sql_expressions`` writes the result.
SQL_METHODS = ("predict", "predict_proba", "decision_function")

# Most terms of a sum in SQL. Longer sums are nested, because SQLite limits the depth of an expression to 1000.
MOST_TERMS = 100


# How predictions follow from linear predictions z: as a logistic function, a clipped line or exp(z).
LINKS: dict[type, str] = {
    LogLoss: "logistic",
    MultinomialLogLoss: "logistic",
    ModifiedHuber: "clipped",
    PoissonLoss: "exp",
}


def _link(model: SAGABase) -> str | None:
    """Return the link of the loss, or None if the loss defines neither a probability nor a mean."""
    loss = resolve_loss(model.loss)
    link, member = LINKS.get(type(loss)), "probability" if hasattr(model, "classes_") else "mean"
    if link is None and hasattr(loss, member):
        raise ValueError(
            f"loss={model.loss!r} defines its own `{member}`, which cannot be exported; export a model with a built-in "
            f"loss, or compute `{member}` from coef_ and intercept_ yourself"
        )
    return link


def sklearn_model(model: SAGABase) -> Any:
    """Return a fitted estimator of scikit-learn with the same predictions; see ``SAGABase.to_sklearn``."""
    check_is_fitted(model)
    exported = _classifier(model) if hasattr(model, "classes_") else _regressor(model)
    for one in (exported, *getattr(exported, "estimators_", [])):
        one.n_features_in_ = model.n_features_in_
        if hasattr(model, "feature_names_in_"):
            one.feature_names_in_ = model.feature_names_in_.copy()
    return exported


def _classifier(model: SAGABase) -> Any:
    link, fitted = _link(model), {"fit_intercept": bool(model.fit_intercept)}
    exported: Any
    if link == "logistic":
        exported = LogisticRegression(**fitted)
        exported.n_iter_ = np.array([model.n_iter_], dtype=np.int32)
    else:
        exported = SGDClassifier("modified_huber", **fitted) if link == "clipped" else LinearSVC(**fitted)
        exported.n_iter_ = model.n_iter_
    coef, intercept = model.coef_.copy(), model.intercept_.copy()
    if len(coef) == len(model.classes_) == 2:  # a multinomial loss of two classes: only the difference counts
        coef, intercept = np.diff(coef, axis=0), np.diff(intercept)
    exported.coef_, exported.intercept_, exported.classes_ = coef, intercept, model.classes_.copy()
    return exported


def _regressor(model: SAGABase) -> Any:
    exported: Any
    if _link(model) == "exp":
        models = [_poisson(model, *one) for one in zip(np.atleast_2d(model.coef_), model.intercept_, strict=True)]
        if len(models) == 1:
            return models[0]
        exported = MultiOutputRegressor(PoissonRegressor(fit_intercept=bool(model.fit_intercept)))
        exported.estimators_ = models
        return exported
    exported = LinearRegression(fit_intercept=bool(model.fit_intercept))
    exported.coef_ = model.coef_.copy()
    exported.intercept_ = model.intercept_.copy() if len(model.intercept_) > 1 else float(model.intercept_[0])
    return exported


def _poisson(model: SAGABase, coef: np.ndarray, intercept: float) -> PoissonRegressor:
    exported = PoissonRegressor(fit_intercept=bool(model.fit_intercept))
    exported.coef_, exported.intercept_, exported.n_iter_ = coef.copy(), float(intercept), model.n_iter_
    exported._base_loss = exported._get_loss()  # its `predict` applies the inverse link of this loss
    return exported


def sql_expressions(model: SAGABase, columns: Sequence[str] | None, method: str) -> str | list[str]:
    """Return the SQL expression of each output of a method; see ``SAGABase.to_sql``."""
    check_is_fitted(model)
    if method not in SQL_METHODS:
        raise ValueError(f"method={method!r} is unknown; choose one of {list(SQL_METHODS)}")
    names = _column_names(model, columns)
    coef, intercept = np.atleast_2d(model.coef_), model.intercept_
    if hasattr(model, "classes_"):
        return _classifier_sql(model, names, coef, intercept, method)
    if method != "predict":
        raise ValueError(f"method={method!r} is for classifiers; use 'predict' for a {type(model).__name__}")
    sums = [_linear(names, *one) for one in zip(coef, intercept, strict=True)]
    return _only([f"EXP({one})" for one in sums] if _link(model) == "exp" else sums)


def _column_names(model: SAGABase, columns: Sequence[str] | None) -> list[str]:
    """Return the quoted names of the table's columns."""
    if columns is None:
        if not hasattr(model, "feature_names_in_"):
            raise ValueError(
                "the model was fitted without column names; give the table's columns: to_sql(columns=[...])"
            )
        columns = model.feature_names_in_
    names = list(columns)
    if isinstance(columns, str) or not all(isinstance(name, str) for name in names):
        raise TypeError("columns must be a list of names, one for each column of X")
    if len(names) != model.n_features_in_:
        raise ValueError(
            f"columns has {len(names)} names, but the model was fitted with {model.n_features_in_} columns"
        )
    return [_quoted(name, '"') for name in names]


def _classifier_sql(
    model: SAGABase, names: list[str], coef: np.ndarray, intercept: np.ndarray, method: str
) -> str | list[str]:
    if method == "predict_proba":
        return _probabilities(model, names, coef, intercept)
    sums = [_linear(names, *one) for one in zip(coef, intercept, strict=True)]
    if method == "decision_function":
        return _only(sums)
    labels = [_literal(label) for label in model.classes_.tolist()]
    if len(sums) == 1:
        threshold = threshold_of(resolve_loss(model.loss))
        limit = _number(threshold) if threshold else "0"
        return f"CASE WHEN {sums[0]} > {limit} THEN {labels[1]} WHEN {sums[0]} <= {limit} THEN {labels[0]} END"
    return _largest(labels, names, coef, intercept)


def _probabilities(model: SAGABase, names: list[str], coef: np.ndarray, intercept: np.ndarray) -> list[str]:
    link = _link(model)
    if link is None:
        raise ValueError(f"loss={model.loss!r} has no probabilities; use method='predict' or 'decision_function'")
    if len(coef) == 1:  # of two classes, the first has the linear prediction zero
        coef, intercept = np.vstack([0.0 * coef, coef]), np.append(0.0, intercept)
        if link == "clipped":
            return [_clipped(_difference(names, coef, intercept, c, 1 - c)) for c in (0, 1)]
    k = len(coef)
    if link == "logistic":
        return [_softmax([_difference(names, coef, intercept, j, c) for j in range(k) if j != c]) for c in range(k)]
    parts = [_clipped(_linear(names, *one)) for one in zip(coef, intercept, strict=True)]
    total = " + ".join(parts)
    return [f"CASE WHEN {total} > 0 THEN {part} / ({total}) ELSE {total} + {_number(1 / k)} END" for part in parts]


def _difference(names: list[str], coef: np.ndarray, intercept: np.ndarray, c: int, other: int) -> str:
    """Write the linear prediction of a class minus that of another one."""
    return _linear(names, coef[c] - coef[other], intercept[c] - intercept[other])


def _linear(names: list[str], coef: np.ndarray, intercept: float) -> str:
    """Write ``intercept + coef'a`` without the columns of coefficient zero."""
    terms = [(intercept, "")] if intercept or not coef.any() else []
    terms += [(value, f" * {name}") for value, name in zip(coef, names, strict=True) if value]
    return f"({_sum(terms)})"


def _sum(terms: list[tuple[float, str]]) -> str:
    if len(terms) > MOST_TERMS:
        size = max(MOST_TERMS, -(-len(terms) // MOST_TERMS))
        return " + ".join(f"({_sum(terms[k : k + size])})" for k in range(0, len(terms), size))
    signs = ["-" if value < 0 else "+" for value, _ in terms]
    parts = [f"{sign} {_number(abs(value))}{name}" for sign, (value, name) in zip(signs, terms, strict=True)]
    return " ".join(parts).removeprefix("+ ")


def _number(value: float) -> str:
    """Write a number with an exponent: standard SQL then computes in double precision, not in decimals."""
    text = repr(float(value))
    return text if "e" in text else f"{text}e0"


def _literal(label: Any) -> str:
    if isinstance(label, bool):
        return str(label).upper()
    return repr(label) if isinstance(label, (int, float)) else _quoted(str(label), "'")


def _quoted(text: str, mark: str) -> str:
    return mark + text.replace(mark, 2 * mark) + mark


def _only(expressions: list[str]) -> str | list[str]:
    return expressions[0] if len(expressions) == 1 else expressions


def _softmax(others: list[str]) -> str:
    """Write the probability of a class, where `others` are the linear predictions of the others minus its own."""
    return f"1.0e0 / (1.0e0 + {' + '.join(f'EXP({one})' for one in others)})"


def _clipped(z: str) -> str:
    """Write ``ModifiedHuber.probability``."""
    return f"CASE WHEN {z} >= 1 THEN 1.0e0 WHEN {z} <= -1 THEN 0.0e0 ELSE ({z} + 1.0e0) / 2.0e0 END"


def _largest(labels: list[str], names: list[str], coef: np.ndarray, intercept: np.ndarray) -> str:
    """Write the label of the largest prediction; of equal ones it is the first, as in ``argmax``.

    A class is compared with the later ones only, because it is reached only if a later one is above all earlier ones.
    """
    used = [name for name, one in zip(names, coef.T, strict=True) if one.any()]
    cases = [f"WHEN {' OR '.join(f'{name} IS NULL' for name in used)} THEN NULL"] if used else []
    for c, label in enumerate(labels[:-1]):
        later = range(c + 1, len(labels))
        wins = " AND ".join(f"{_difference(names, coef, intercept, c, other)} >= 0" for other in later)
        cases.append(f"WHEN {wins} THEN {label}")
    return f"CASE {' '.join(cases)} ELSE {labels[-1]} END"
