"""Published sequence models as settings of our encoder, trained in the same job and kept as safetensors."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.errors import InputError
from recsys.pipelines.baselines.cache import cache_entry

if TYPE_CHECKING:
    from recsys.dataset import Dataset
    from recsys.events import Requests
    from recsys.model import UnifiedModel

__all__ = ["IDS_OF_POSITIVES", "SequenceScorer", "fit_sequence_model"]

IDS_OF_POSITIVES: dict[str, Any] = {
    "use_content": False,
    "use_actions": False,
    "use_surfaces": False,
    "positives_only": True,
    "layout": "mam",
    "score": "dot",
    "crop": 0.0,
    "label_smoothing": 0.0,
    "neighbour_targets": 0.0,
    "positive_recency": False,
}
"""What the published models have in common: they read the item ids of positive events and nothing else.

Sizes, batch and schedule are those that `recsys fit` chooses for the dataset; training stops by validation NDCG@10.
"""


class SequenceScorer:
    """Inner products of a query with all item vectors."""

    def __init__(
        self, name: str, model: UnifiedModel, dataset: Dataset, settings: Mapping[str, Any], *, kept: bool = False
    ) -> None:
        self.name, self.model, self.dataset = name, model, dataset
        self.settings = dict(settings)
        self.kept = kept
        """Whether the weights come from an earlier run."""
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


def fit_sequence_model(name: str, settings: Mapping[str, Any], dataset: Dataset) -> SequenceScorer:
    """The model trained on the dataset's training events, or as an earlier run kept it.

    Args:
        name: of the baseline.
        settings: of ``fit``, by name.
        dataset: the prepared data.
    """
    folder = cache_entry(dataset, "weights", name, settings, trains=True)
    model = _kept(folder)
    if model is not None:
        return SequenceScorer(name, model, dataset, settings, kept=True)
    model = _trained(name, settings, dataset)
    _keep(model, folder)
    return SequenceScorer(name, model, dataset, settings)


def _trained(name: str, settings: Mapping[str, Any], dataset: Dataset) -> UnifiedModel:
    from recsys.pipelines.checkpoint import load_model
    from recsys.pipelines.fit import fit_dataset

    if dataset.user_dim:
        settings = {**settings, "use_user_features": False}
    quietly: dict[str, Any] = {"quiet": True, "memory": False, "enable_progress_bar": False, "accelerator": "cpu"}
    with tempfile.TemporaryDirectory(prefix=f"recsys-{name}-") as folder:
        return load_model(fit_dataset(dataset, Path(folder), **quietly, **settings))[0]


def _kept(folder: Path) -> UnifiedModel | None:
    """The model of an earlier run; None where there is none, or none that can be read."""
    from recsys.model import UnifiedModel

    try:
        return UnifiedModel.load(folder) if folder.is_dir() else None
    except (InputError, OSError):
        return None


def _keep(model: UnifiedModel, folder: Path) -> None:
    """Write the weights, all or nothing; of runs that finish together one keeps its own, whichever it is."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", suffix=".partial", dir=folder.parent) as partial:
            model.save(Path(partial) / "model")
            if folder.exists() and _kept(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
            (Path(partial) / "model").rename(folder)  # fails where another run's weights stand by now
    except OSError:
        return
