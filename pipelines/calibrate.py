"""Calibration of a trained model on the validation slates of its dataset.

Suffixes: R = slate rows, A = actions.
"""

from __future__ import annotations

import numpy as np

from recsys.calibration import Calibration
from recsys.dataset import Dataset
from recsys.event_counts import mask_bits
from recsys.index.item_graph import ItemGraph
from recsys.model import UnifiedModel
from recsys.ranking import predict_slates

__all__ = ["fit_calibration"]

VALIDATION = 1


def fit_calibration(model: UnifiedModel, dataset: Dataset, graph: ItemGraph | None = None) -> Calibration:
    """Temperature and offset of every action; the identity where there are no validation slates or nothing to rank.

    Args:
        graph: of training events' transitions, for a model with memory features.
    """
    slates, num_actions = dataset.slates, model.config.num_actions
    if model.action_head is None or slates is None or not (slates.split == VALIDATION).any():
        return Calibration.identity(num_actions)
    predicted = predict_slates(model, dataset, VALIDATION, graph=graph)
    row_R = predicted.row_R
    return Calibration.fit(
        predicted.logit_RA.astype(np.float32),
        mask_bits(slates.yes[row_R], num_actions),
        mask_bits(slates.known[row_R], num_actions),
    )
