"""SASRec with the full softmax: our encoder, so configured, trained in the same job.

Kang & McAuley (arXiv 1808.09781) with the loss that Klenitskiy & Vasilev (arXiv 2309.07602) found it to need: item ids
of positive events alone, causal softmax attention, tied item vectors, cross-entropy over the whole catalogue.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.dataset import Dataset
from recsys.events import Requests
from recsys.model import UnifiedModel

__all__ = ["SASREC_SETTINGS", "SasRecScorer", "fit_sasrec"]

SASREC_SETTINGS: dict[str, Any] = {
    "use_content": False,
    "use_actions": False,
    "use_surfaces": False,
    "use_time": False,
    "positives_only": True,
    "block": "softmax",
    "retrieval_loss": "full",
}
"""What is switched off; sizes, batch and schedule are those that `recsys fit` chooses for the dataset."""


class SasRecScorer:
    """Inner products of the last output row with all item vectors."""

    name = "sasrec"

    def __init__(self, model: UnifiedModel, dataset: Dataset) -> None:
        self.model, self.dataset = model, dataset
        self.settings = dict(SASREC_SETTINGS)
        self.vectors_ID = model.item_vectors()

    @torch.inference_mode()
    def score(self, requests: Requests) -> NDArray[np.float32]:
        """[Q, I]; see :class:`recsys.pipelines.scorer.Scorer`."""
        events, model = self.dataset.events, self.model
        histories = [events.history(int(u), int(e)) for u, e in zip(requests.user, requests.end, strict=True)]
        states = model.encode(histories, keep_cache=False)
        at_Q = torch.from_numpy(np.ascontiguousarray(requests.timestamp))
        surface_Q = torch.from_numpy(np.ascontiguousarray(requests.surface))
        scores: NDArray[np.float32] = (model.query(states, at_Q, surface_Q) @ self.vectors_ID.T).numpy()
        return scores


def fit_sasrec(dataset: Dataset) -> SasRecScorer:
    """Train on the dataset's training events, stopped early on its validation split."""
    from recsys.pipelines.checkpoint import load_model
    from recsys.pipelines.fit import fit_dataset

    with tempfile.TemporaryDirectory(prefix="recsys-sasrec-") as folder:
        best = fit_dataset(
            dataset,
            Path(folder),
            quiet=True,
            memory=False,
            enable_progress_bar=False,
            accelerator="cpu",
            **SASREC_SETTINGS,
        )
        model, _ = load_model(best)
    return SasRecScorer(model, dataset)
