"""eSASRec: our encoder, configured as Tikhonovich et al. (arXiv 2508.06450) found SASRec to be at its best.

Item ids of positive events alone, gated LiGR blocks, and a sampled softmax with 256 uniform negatives, which our loss
joins with as many targets of the batch, each corrected by how often it is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recsys.pipelines.baselines.sequence_model import IDS_OF_POSITIVES, SequenceScorer, fit_sequence_model

if TYPE_CHECKING:
    from recsys.dataset import Dataset

__all__ = ["ESASREC_SETTINGS", "fit_esasrec"]

ESASREC_SETTINGS: dict[str, Any] = IDS_OF_POSITIVES | {
    "block": "ligr",
    "use_time": False,
    "position_bias": False,
    "retrieval_loss": "sampled",
    "num_negatives": 256,
}


def fit_esasrec(dataset: Dataset) -> SequenceScorer:
    """Train on the dataset's training events, stopped early on its validation split."""
    return fit_sequence_model("esasrec", ESASREC_SETTINGS, dataset)
