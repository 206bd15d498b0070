"""Logistic regression on past rates: one linear model per action, on the rows and rates that LightGBM gets.

Suffixes: B = rows asked for, T, V = rows of training and validation, A = actions, F = features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recsys.pipelines.baselines.lightgbm_rates import STRENGTH
from recsys.pipelines.baselines.past_rates import (
    GROUPS,
    past_counts,
    row_labels,
    rows_of_split,
    slates_of,
    smoothed_rates,
)

if TYPE_CHECKING:
    from recsys.dataset import Dataset

__all__ = ["LogisticRates", "fit_logistic_rates", "log_odds_features"]

Floats = NDArray[np.float64]

INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0)
UNWATCHED = 0.1
"""Where no validation slate chooses."""
MAX_ITERATIONS = 300


def log_odds_features(dataset: Dataset, rows_B: NDArray[np.int64]) -> Floats:
    """[B, F] log odds of the smoothed rates of every action and group, how many events they rest on, the surface.

    The place in the slate is no feature: nobody knows it before the slate is shown.
    """
    counts = past_counts(dataset, rows_B)
    rates = smoothed_rates(counts, STRENGTH)
    odds = [np.clip(rates[group], 1e-5, 1 - 1e-5) for group in GROUPS]
    events = [
        np.log1p(counts.known[group].max(1, keepdims=True)) for group in GROUPS if group not in ("all", "surface")
    ]
    surface_BF = slates_of(dataset).surface[rows_B][:, None] == np.arange(1, len(dataset.manifest.surfaces))
    return np.concatenate([*(np.log(prob / (1 - prob)) for prob in odds), *events, surface_BF], axis=1)


class LogisticRates:
    """Trained on the training slates, the penalty chosen by log loss on the validation slates."""

    name = "logistic_rates"

    def __init__(self, dataset: Dataset) -> None:
        from sklearn.linear_model import LogisticRegression

        self.settings: dict[str, dict[str, float]] = {}
        """Per action: inverse penalty, or the training share of an action too rare to learn from."""
        self._models: dict[str, Any] = {}
        train_B, valid_B = rows_of_split(dataset, 0), rows_of_split(dataset, 1)
        (yes_TA, known_TA), (yes_VA, known_VA) = row_labels(dataset, train_B), row_labels(dataset, valid_B)
        train_TF, valid_VF = log_odds_features(dataset, train_B), log_odds_features(dataset, valid_B)
        self._mean_F = train_TF.mean(0) if len(train_TF) else np.zeros(train_TF.shape[1])
        spread_F = train_TF.std(0) if len(train_TF) else np.ones(train_TF.shape[1])
        self._spread_F = np.where(spread_F > 1e-9, spread_F, 1.0)
        train_TF, valid_VF = self._scaled(train_TF), self._scaled(valid_VF)
        for action, name in enumerate(dataset.manifest.actions):
            use_T, use_V = known_TA[:, action], known_VA[:, action]
            label_T, label_V = yes_TA[use_T, action], yes_VA[use_V, action]
            if label_T.all() or not label_T.any():
                self.settings[name] = {"constant": float(label_T.mean()) if len(label_T) else 0.5}
                continue
            watched = bool(label_V.any() and not label_V.all())
            best_nats = np.inf
            for inverse in INVERSE_PENALTIES if watched else (UNWATCHED,):
                model = LogisticRegression(C=inverse, max_iter=MAX_ITERATIONS).fit(train_TF[use_T], label_T)
                nats = _nats(_probability(model, valid_VF[use_V]), label_V) if watched else 0.0
                if nats < best_nats:
                    best_nats, self._models[name] = nats, model
                    self.settings[name] = {"inverse_penalty": inverse}

    def _scaled(self, feature_BF: Floats) -> Floats:
        return (feature_BF - self._mean_F) / self._spread_F

    def predict(self, dataset: Dataset, split: int) -> dict[str, NDArray[np.float32]]:
        """Probabilities over all slate rows, NaN outside ``split``."""
        rows_B = rows_of_split(dataset, split)
        feature_BF = self._scaled(log_odds_features(dataset, rows_B))
        out = {}
        for name, setting in self.settings.items():
            out[name] = np.full(len(slates_of(dataset).item), np.nan, dtype=np.float32)
            if name in self._models and len(rows_B):
                out[name][rows_B] = _probability(self._models[name], feature_BF)
            elif len(rows_B):
                out[name][rows_B] = setting["constant"]
        return out


def fit_logistic_rates(dataset: Dataset) -> LogisticRates:
    """One linear model per action.

    Raises:
        InputError: the data has no slates.
    """
    slates_of(dataset)
    return LogisticRates(dataset)


def _probability(model: Any, feature_BF: Floats) -> Floats:
    prob_B: Floats = np.clip(model.predict_proba(feature_BF)[:, 1], 1e-6, 1 - 1e-6)
    return prob_B


def _nats(prob_B: Floats, yes_B: NDArray[np.bool_]) -> float:
    return float(-np.log(np.where(yes_B, prob_B, 1 - prob_B)).mean())
