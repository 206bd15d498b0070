"""Calibration of a trained model on the validation slates of its dataset.

Suffixes: R = slate rows, A = actions, F = folds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.calibration import Calibration
from recsys.dataset import Dataset
from recsys.event_counts import mask_bits
from recsys.index.item_graph import ItemGraph
from recsys.isotonic_curve import IsotonicCurve
from recsys.model import UnifiedModel
from recsys.ranking import predict_slates
from recsys.ranking_metrics import calibration_error, logloss_rows

__all__ = ["FittedCalibration", "calibrate_rows", "fit_calibration"]

VALIDATION = 1
NUM_FOLDS = 5
FEWEST = 50
"""Rows of the rarer outcome below which an action gets no curve."""

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FittedCalibration:
    """A calibration and how it was chosen."""

    calibration: Calibration
    figures: dict[int, dict[str, float | str]] = field(default_factory=dict)
    """By action: the method, and of the raw, Platt-scaled and isotonic probabilities the log loss in nats and the
    expected calibration error, those of rows whose users the fit did not see."""


def fit_calibration(model: UnifiedModel, dataset: Dataset, graph: ItemGraph | None = None) -> FittedCalibration:
    """Calibration of every action; the identity where there are no validation slates or nothing to rank.

    Args:
        graph: of training events' transitions, for a model with memory features.
    """
    slates, num_actions = dataset.slates, model.config.num_actions
    if model.action_head is None or slates is None or not (slates.split == VALIDATION).any():
        return FittedCalibration(Calibration.identity(num_actions))
    predicted = predict_slates(model, dataset, VALIDATION, graph=graph)
    row_R = predicted.row_R
    slate_R = np.searchsorted(slates.offsets, row_R, side="right") - 1
    return calibrate_rows(
        predicted.logit_RA.astype(np.float32),
        mask_bits(slates.yes[row_R], num_actions),
        mask_bits(slates.known[row_R], num_actions),
        slates.user[slate_R],
    )


def calibrate_rows(logit_RA: Floats32, yes_RA: Bools, known_RA: Bools, user_R: Ints) -> FittedCalibration:
    """Temperature and offset of every action, and a curve where it is better on users that its fit did not see.

    Users are dealt out to folds; every fold is predicted by fits to the others. An action gets a curve where the log
    loss is then lower than that of Platt scaling by more than a standard error, users being drawn.
    """
    platt = Calibration.fit(logit_RA, yes_RA, known_RA)
    fold_R = _folds(user_R)
    curves: dict[int, IsotonicCurve] = {}
    figures: dict[int, dict[str, float | str]] = {}
    for action in range(logit_RA.shape[1]):
        known_R = known_RA[:, action]
        logit_R1, yes_R1 = logit_RA[known_R, action : action + 1], yes_RA[known_R, action : action + 1]
        if min(int(yes_R1.sum()), int((~yes_R1).sum())) < FEWEST or len(np.unique(fold_R[known_R])) < NUM_FOLDS:
            continue
        unseen = _unseen(logit_R1, yes_R1, fold_R[known_R])
        loss = {name: logloss_rows(yes_R1[:, 0], prob_R) for name, prob_R in unseen.items()}
        gain_U = np.bincount(user_R[known_R], weights=loss["platt"] - loss["isotonic"])
        gain_U = gain_U[np.bincount(user_R[known_R]) > 0]
        better = gain_U.sum() > np.sqrt(len(gain_U)) * gain_U.std()
        if better:
            curves[action] = isotonic(logit_R1[:, 0], yes_R1[:, 0])
        figures[action] = {"method": "isotonic" if better else "platt"}
        for name, prob_R in unseen.items():
            figures[action][f"logloss_{name}"] = float(loss[name].mean())
            figures[action][f"calibration_error_{name}"] = calibration_error(yes_R1[:, 0], prob_R)
    return FittedCalibration(replace(platt, curves=curves), figures)


def isotonic(logit_R: Floats32, yes_R: Bools) -> IsotonicCurve:
    """The rising curve of least squared error."""
    from sklearn.isotonic import IsotonicRegression

    found = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(logit_R.astype(np.float64), yes_R)
    return IsotonicCurve(found.X_thresholds_.astype(np.float64), found.y_thresholds_.astype(np.float64))


def _unseen(logit_R1: Floats32, yes_R1: Bools, fold_R: Ints) -> dict[str, NDArray[np.float64]]:
    """Probabilities of every row by fits to the other folds, and raw ones."""
    logits = torch.from_numpy(np.ascontiguousarray(logit_R1))
    found = {"raw": torch.sigmoid(logits)[:, 0].double().numpy()}
    found |= {name: np.empty(len(logit_R1)) for name in ("platt", "isotonic")}
    for fold in range(NUM_FOLDS):
        fit_R, held_R = fold_R != fold, fold_R == fold
        platt = Calibration.fit(logit_R1[fit_R], yes_R1[fit_R], np.ones_like(yes_R1[fit_R]))
        curved = replace(platt, curves={0: isotonic(logit_R1[fit_R, 0], yes_R1[fit_R, 0])})
        held = logits[torch.from_numpy(held_R)]
        found["platt"][held_R] = platt.probabilities(held)[:, 0].double().numpy()
        found["isotonic"][held_R] = curved.probabilities(held)[:, 0].double().numpy()
    return found


def _folds(user_R: Ints) -> Ints:
    """[R] fold of every row; rows of a user share one."""
    users, index_R = np.unique(user_R, return_inverse=True)
    fold_U = np.random.default_rng(0).permutation(len(users)) % NUM_FOLDS
    found_R: Ints = fold_U[index_R].astype(np.int64)
    return found_R
