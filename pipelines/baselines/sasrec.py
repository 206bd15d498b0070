"""SASRec with the full softmax: our encoder, so configured, trained in the same job.

Kang & McAuley (arXiv 1808.09781) with the loss that Klenitskiy & Vasilev (arXiv 2309.07602) found it to need: item ids
of positive events alone, causal softmax attention, tied item vectors, cross-entropy over the whole catalogue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recsys.pipelines.baselines.sequence_model import IDS_OF_POSITIVES, SequenceScorer, fit_sequence_model

if TYPE_CHECKING:
    from recsys.dataset import Dataset

__all__ = ["SASREC_SETTINGS", "fit_sasrec"]

SASREC_SETTINGS: dict[str, Any] = IDS_OF_POSITIVES | {
    "block": "softmax",
    "use_time": False,
    "position_bias": False,
    "retrieval_loss": "full",
}


def fit_sasrec(dataset: Dataset) -> SequenceScorer:
    """Train on the dataset's training events, stopped early on its validation split."""
    return fit_sequence_model("sasrec", SASREC_SETTINGS, dataset)
