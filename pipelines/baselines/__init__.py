"""Classical methods and published networks on the same split: what a model has to beat."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

from recsys.pipelines.baselines.ease import MAX_ITEMS, fit_ease
from recsys.pipelines.baselines.esasrec import fit_esasrec
from recsys.pipelines.baselines.hstu import fit_hstu
from recsys.pipelines.baselines.item_knn import fit_item_knn
from recsys.pipelines.baselines.lightgbm_rates import fit_lightgbm_rates
from recsys.pipelines.baselines.logistic_rates import fit_logistic_rates
from recsys.pipelines.baselines.past_rates import fit_past_rates
from recsys.pipelines.baselines.popularity import fit_popularity, fit_recent_popularity
from recsys.pipelines.baselines.sasrec import fit_sasrec
from recsys.pipelines.baselines.text_knn import fit_text_knn, text_sources
from recsys.pipelines.scorer import RankingScorer, Scorer

if TYPE_CHECKING:
    from recsys.dataset import Dataset

__all__ = ["NETWORKS", "RANKING", "RETRIEVAL", "skip_reason"]

RETRIEVAL: dict[str, Callable[[Dataset], Scorer]] = {
    "popularity": fit_popularity,
    "recent_popularity": fit_recent_popularity,
    "item_knn": fit_item_knn,
    "text_knn": fit_text_knn,
    "ease": fit_ease,
    "sasrec": fit_sasrec,
    "esasrec": fit_esasrec,
    "hstu": fit_hstu,
}
"""Factories of scorers fitted on training events, settings chosen on validation."""

NETWORKS = ("sasrec", "esasrec", "hstu")
"""Those of them that train a network, in minutes where the others take seconds."""

RANKING: dict[str, Callable[[Dataset], RankingScorer]] = {
    "past_rates": fit_past_rates,
    "logistic_rates": fit_logistic_rates,
    "lightgbm_rates": fit_lightgbm_rates,
}
"""Factories of slate scorers fitted on training slates."""


def skip_reason(name: str, dataset: Dataset) -> str | None:
    """Why a baseline cannot run on a dataset, in one sentence; None where it can.

    ``--baselines all`` leaves such a one out and says why; asked for by name, its factory raises.
    """
    if name == "ease" and dataset.num_items > MAX_ITEMS:
        return f"ease inverts a matrix of all items and takes at most {MAX_ITEMS}; there are {dataset.num_items}"
    if name == "text_knn" and not text_sources(dataset):
        return "text_knn compares item texts or vectors and the data has none"
    if name in NETWORKS and not (dataset.train_end > 0).any():
        return f"{name} trains on events and the split leaves none"
    if name in RANKING and dataset.slates is None:
        return f"{name} ranks slates and the data has none"
    if name == "lightgbm_rates" and importlib.util.find_spec("lightgbm") is None:
        return "lightgbm_rates needs LightGBM: pip install 'recsys[baselines]'"
    return None
