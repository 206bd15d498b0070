"""LightGBM on past rates: one small booster per action.

Suffixes: R = slate rows, B = rows asked for, A = actions, F = features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recsys.errors import InputError
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

__all__ = ["LightGBMRates", "fit_lightgbm_rates", "rate_features"]

STRENGTH = 20.0
MAX_ROUNDS = 1000
PATIENCE = 50
ROUNDS_UNWATCHED = 100
"""Where no validation slate says when to stop."""


def rate_features(dataset: Dataset, rows_B: NDArray[np.int64]) -> NDArray[np.float32]:
    """[B, F] smoothed rates of every action and group, how many events they rest on, and the surface (last column).

    The place in the slate is no feature: nobody knows it before the slate is shown.
    """
    counts = past_counts(dataset, rows_B)
    rates = smoothed_rates(counts, STRENGTH)
    events = [
        np.log1p(counts.known[group].max(1, keepdims=True)) for group in GROUPS if group not in ("all", "surface")
    ]
    surface_B1 = slates_of(dataset).surface[rows_B][:, None]
    return np.concatenate([*(rates[group] for group in GROUPS), *events, surface_B1], axis=1).astype(np.float32)


class LightGBMRates:
    """Trained on the training slates, stopped early on the validation slates."""

    name = "lightgbm_rates"

    def __init__(self, dataset: Dataset) -> None:
        try:
            import lightgbm
        except ImportError:
            raise InputError(
                "the baseline lightgbm_rates needs LightGBM, which is not installed; pip install 'recsys[baselines]'"
            ) from None
        self.settings: dict[str, dict[str, float]] = {}
        """Per action: number of trees, or the training share of an action too rare to learn from."""
        self._models: dict[str, Any] = {}
        train_B, valid_B = rows_of_split(dataset, 0), rows_of_split(dataset, 1)
        (yes_TA, known_TA), (yes_VA, known_VA) = row_labels(dataset, train_B), row_labels(dataset, valid_B)
        train_TF, valid_VF = rate_features(dataset, train_B), rate_features(dataset, valid_B)
        parameters = {
            "objective": "binary",
            "num_leaves": 31,
            "learning_rate": 0.05,
            "verbosity": -1,
            "seed": 0,
            "deterministic": True,
            "force_row_wise": True,
        }
        for action, name in enumerate(dataset.manifest.actions):
            use_T, use_V = known_TA[:, action], known_VA[:, action]
            label_T, label_V = yes_TA[use_T, action], yes_VA[use_V, action]
            if label_T.all() or not label_T.any():
                self.settings[name] = {"constant": float(label_T.mean()) if len(label_T) else 0.5}
                continue
            train = lightgbm.Dataset(
                train_TF[use_T], label_T, params=parameters, categorical_feature=[train_TF.shape[1] - 1]
            )
            watched = bool(label_V.any() and not label_V.all())
            model = lightgbm.train(
                parameters,
                train,
                num_boost_round=MAX_ROUNDS if watched else ROUNDS_UNWATCHED,
                valid_sets=[train.create_valid(valid_VF[use_V], label_V)] if watched else None,
                callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)] if watched else None,
            )
            self._models[name] = model
            self.settings[name] = {"trees": float(model.best_iteration if watched else ROUNDS_UNWATCHED)}

    def predict(self, dataset: Dataset, split: int) -> dict[str, NDArray[np.float32]]:
        """Probabilities over all slate rows, NaN outside ``split``."""
        rows_B = rows_of_split(dataset, split)
        feature_BF = rate_features(dataset, rows_B)
        out = {}
        for name, setting in self.settings.items():
            out[name] = np.full(len(slates_of(dataset).item), np.nan, dtype=np.float32)
            if name in self._models and len(rows_B):
                out[name][rows_B] = self._models[name].predict(feature_BF, num_iteration=int(setting["trees"]))
            elif len(rows_B):
                out[name][rows_B] = setting["constant"]
        return out


def fit_lightgbm_rates(dataset: Dataset) -> LightGBMRates:
    """One booster per action.

    Raises:
        InputError: LightGBM is not installed, or the data has no slates.
    """
    slates_of(dataset)
    return LightGBMRates(dataset)
