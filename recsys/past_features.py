"""What training reads of past rates: the features of its rows, and the forecast that the ranking head begins with.

Suffixes: N = events, R = slate rows, B = rows computed at once, A = actions, F = features, G = features and a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.event_counts import mask_bits
from recsys.logistic import fit_logistic
from recsys.past_counts import PastLog, event_owners, training_mask
from recsys.past_rates import COUNTED, GROUPS, log_features, past_width

if TYPE_CHECKING:
    from recsys.dataset import Dataset

__all__ = ["PastFeatures", "WideStart", "slate_features", "training_features"]

_PLAIN = {"all": -0.9, "item": 0.5, "user": 0.7, "item_surface": 0.7}
_PENALTY = 20.0
_START_ROWS = 1 << 18
_MIN_SCALE = 0.25
"""A feature that hardly moved in training, such as the overall rate, must not become huge when it moves later."""
_CHUNK = 1 << 17
"""Rows whose features are computed at once; bounds what float64 takes."""


@dataclass(frozen=True, slots=True)
class PastFeatures:
    """What training reads."""

    events_NF: NDArray[np.float16]
    slates_RF: NDArray[np.float32] | None
    """None where the data has no slates."""

    @classmethod
    def of(cls, dataset: Dataset) -> PastFeatures:
        """Features of the training events and of all slate rows; raises as :meth:`PastLog.of`."""
        past = PastLog.of(dataset)
        slates_RF = None if dataset.slates is None else slate_features(past, dataset)
        return cls(training_features(past, dataset), slates_RF)

    def start(self, dataset: Dataset) -> WideStart:
        """What the linear term of a ranking head begins with: a logistic regression on rows of the training slates,
        else on training events."""
        slates, num_actions = dataset.slates, len(dataset.manifest.actions)
        if slates is not None and self.slates_RF is not None and (slates.split == 0).any():
            row_R = np.flatnonzero(np.repeat(slates.split == 0, np.diff(slates.offsets)))
            row_R = row_R[:: 1 + len(row_R) // _START_ROWS]
            feature_RF: NDArray[np.floating] = self.slates_RF[row_R]
            yes_R, known_R = slates.yes[row_R], slates.known[row_R]
        else:
            row_R = np.flatnonzero(training_mask(dataset))
            row_R = row_R[:: 1 + len(row_R) // _START_ROWS]
            feature_RF = self.events_NF[row_R]
            yes_R, known_R = dataset.events.yes[row_R], dataset.events.known[row_R]
        return WideStart.fit(
            feature_RF.astype(np.float64), mask_bits(yes_R, num_actions), mask_bits(known_R, num_actions)
        )


@dataclass(frozen=True, slots=True)
class WideStart:
    """A forecast from past rates alone: logits = weight · (features − mean) / scale + bias."""

    mean_F: Tensor
    scale_F: Tensor
    weight_AF: Tensor
    bias_A: Tensor

    @classmethod
    def fit(cls, feature_RF: NDArray[np.float64], yes_RA: NDArray[np.bool_], known_RA: NDArray[np.bool_]) -> WideStart:
        """A logistic regression per action, held near the plain combination of rates: rare actions stay there."""
        num_actions, width = yes_RA.shape[1], feature_RF.shape[1]
        mean_F, scale_F = feature_RF.mean(0), np.maximum(feature_RF.std(0), _MIN_SCALE)
        x_RG = np.concatenate([(feature_RF - mean_F) / scale_F, np.ones((len(feature_RF), 1))], 1)
        plain_AF = _plain_weights(num_actions)
        prior_AG = np.concatenate([plain_AF * scale_F, plain_AF @ mean_F[:, None]], 1)
        penalty_GG = np.diag(np.full(width + 1, _PENALTY))
        found_AG = [
            fit_logistic(x_RG[known_R], yes_R[known_R], prior_G, penalty_GG)
            for yes_R, known_R, prior_G in zip(yes_RA.T, known_RA.T, prior_AG, strict=True)
        ]
        weight_AG = torch.from_numpy(np.stack(found_AG)).float()
        return cls(
            torch.from_numpy(mean_F).float(), torch.from_numpy(scale_F).float(), weight_AG[:, :-1], weight_AG[:, -1]
        )


def training_features(past: PastLog, dataset: Dataset) -> NDArray[np.float16]:
    """[N, F] features of the training events, each as of its own time; zeros for the others.

    Half precision: 10 million events of 3 actions take 360 MB.
    """
    events, row_N = dataset.events, np.flatnonzero(training_mask(dataset))
    out_NF = np.zeros((len(events), past_width(past.num_actions)), dtype=np.float16)
    owner_N = event_owners(events)
    for low in range(0, len(row_N), _CHUNK):
        row_B = row_N[low : low + _CHUNK]
        out_NF[row_B] = log_features(
            past, owner_N[row_B], events.item[row_B], events.surface[row_B], events.timestamp[row_B]
        )
    return out_NF


def slate_features(past: PastLog, dataset: Dataset, split: int | None = None) -> NDArray[np.float32]:
    """[R, F] features of the slate rows of a split (of all where it is None) as of their slates' times; else zeros."""
    slates = dataset.slates
    assert slates is not None
    slate_R = np.repeat(np.arange(len(slates)), np.diff(slates.offsets))
    out_RF = np.zeros((len(slate_R), past_width(past.num_actions)), dtype=np.float32)
    row_R = np.arange(len(slate_R)) if split is None else np.flatnonzero(slates.split[slate_R] == split)
    for low in range(0, len(row_R), _CHUNK):
        row_B = row_R[low : low + _CHUNK]
        of_B = slate_R[row_B]
        out_RF[row_B] = log_features(
            past, slates.user[of_B], slates.item[row_B], slates.surface[row_B], slates.timestamp[of_B]
        )
    return out_RF


def _plain_weights(num_actions: int) -> NDArray[np.float64]:
    """[A, F] weights that make an action's own odds a forecast without any training."""
    eye = np.eye(num_actions)
    by_group = [_PLAIN.get(group, 0.0) * eye for group in GROUPS]
    return np.concatenate([*by_group, np.zeros((num_actions, len(COUNTED)))], 1)
