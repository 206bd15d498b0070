"""HSTU on item ids: our encoder with the blocks of Zhai et al. (arXiv 2402.17152), trained in the same job.

Item ids of positive events alone, SiLU attention with biases of distance and, where the data has a clock, of time. The
softmax is full or sampled as `recsys fit` chooses by the size of the catalogue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recsys.pipelines.baselines.sequence_model import IDS_OF_POSITIVES, SequenceScorer, fit_sequence_model

if TYPE_CHECKING:
    from recsys.dataset import Dataset

__all__ = ["HSTU_SETTINGS", "fit_hstu"]

HSTU_SETTINGS: dict[str, Any] = IDS_OF_POSITIVES | {
    "block": "hstu",
    "time_encoding": "bias",
    "position_bias": True,
}


def fit_hstu(dataset: Dataset) -> SequenceScorer:
    """Train on the dataset's training events, stopped early on its validation split."""
    return fit_sequence_model("hstu", HSTU_SETTINGS, dataset)
