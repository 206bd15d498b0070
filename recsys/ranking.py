"""Action probabilities for the slates of a data set.

Suffixes: R = slate rows, A = actions, B = slates of a batch, C = candidates, F = features of a candidate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.calibration import Calibration
from recsys.candidate_features import feature_width
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.index.item_graph import ItemGraph
from recsys.model import UnifiedModel
from recsys.packing import ranges
from recsys.training_batches import events_before
from recsys.training_features import DatasetFeatures

__all__ = ["SlatePredictions", "predict_slates"]


@dataclass(frozen=True, slots=True)
class SlatePredictions:
    """What the ranking head says of slate rows."""

    row_R: NDArray[np.int64]
    """Rows of the :class:`recsys.events.SlateLog`."""
    logit_RA: NDArray[np.float32]
    log_value_R: NDArray[np.float32] | None = None
    """Predicted ln(1 + value), for a model that regresses values."""

    @property
    def prob_RA(self) -> NDArray[np.float32]:
        """Probabilities, not calibrated."""
        prob_RA: NDArray[np.float32] = torch.from_numpy(self.logit_RA).sigmoid().numpy()
        return prob_RA

    def calibrated_RA(self, calibration: Calibration) -> NDArray[np.float32]:
        """Probabilities as they are served."""
        prob_RA: NDArray[np.float32] = calibration.probabilities(torch.from_numpy(self.logit_RA)).numpy()
        return prob_RA


@torch.inference_mode()
def predict_slates(
    model: UnifiedModel,
    dataset: Dataset,
    split: int,
    *,
    batch_slates: int = 256,
    feature_RF: NDArray[np.float32] | None = None,
    graph: ItemGraph | None = None,
) -> SlatePredictions:
    """Probability of every action for each candidate of the slates of a split (1 = validation, 2 = test).

    A slate sees its user's events strictly before its own time, and nothing of its own.

    Args:
        feature_RF: features of all slate rows where the caller has them; made here otherwise.
        graph: of training events' transitions, for a model with memory features where ``feature_RF`` is not given.

    Raises:
        InputError: the data set has no slates.
    """
    slates, log = dataset.slates, dataset.events
    if slates is None:
        raise InputError(f"{dataset.path} has no slates; prepare it with --impressions to rank them")
    if not feature_width(model.config):
        feature_RF = None
    elif feature_RF is None:
        feature_RF = DatasetFeatures(dataset, model.config, graph).slates(split)
    chosen = np.flatnonzero(slates.split == split)
    visible = events_before(log, slates.user[chosen], slates.timestamp[chosen])
    by_length = np.argsort(visible, kind="stable")
    chosen, visible = chosen[by_length], visible[by_length]
    size = np.diff(slates.offsets)
    rows_out: list[NDArray[np.int64]] = []
    logits_out: list[NDArray[np.float32]] = []
    device = model.device
    for low in range(0, len(chosen), batch_slates):
        slate, end = chosen[low : low + batch_slates], visible[low : low + batch_slates]
        pairs, inverse = np.unique(np.stack([slates.user[slate], end], 1), axis=0, return_inverse=True)
        histories = [log.history(int(user), int(stop)) for user, stop in pairs]
        states = model.encode(histories, user_BK=dataset.user_rows(pairs[:, 0]))
        states = states.select(torch.from_numpy(inverse.reshape(-1)).to(device))
        rows = ranges(slates.offsets[slate], size[slate])
        line = np.repeat(np.arange(len(slate)), size[slate])
        column = ranges(np.zeros_like(size[slate]), size[slate])
        item = np.full((len(slate), int(size[slate].max(initial=0))), -1, dtype=np.int64)
        surface = np.zeros_like(item)
        item[line, column], surface[line, column] = slates.item[rows], slates.surface[rows]
        feature_BCF = None
        if feature_RF is not None:
            feature_BCF = np.zeros((*item.shape, feature_RF.shape[1]), dtype=np.float32)
            feature_BCF[line, column] = feature_RF[rows]
        logits = model.rank_with_value(
            states,
            torch.from_numpy(item).to(device),
            torch.from_numpy(np.ascontiguousarray(slates.timestamp[slate])).to(device),
            torch.from_numpy(surface).to(device),
            None if feature_BCF is None else torch.from_numpy(feature_BCF).to(device),
        )
        rows_out.append(rows)
        logits_out.append(logits.cpu().numpy()[line, column])
    if not rows_out:
        return SlatePredictions(np.zeros(0, np.int64), np.zeros((0, model.config.num_actions), np.float32))
    out_RX, num_actions = np.concatenate(logits_out), model.config.num_actions
    log_value_R = np.ascontiguousarray(out_RX[:, num_actions]) if model.config.regress_value else None
    return SlatePredictions(np.concatenate(rows_out), np.ascontiguousarray(out_RX[:, :num_actions]), log_value_R)
