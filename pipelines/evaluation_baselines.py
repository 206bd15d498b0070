"""Baselines for the evaluation: fitted, applied, and kept under the hash of the data.

Suffixes: S = rows of a split's slates, A = actions, Q = requests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.events import Requests
from recsys.index.item_graph import ItemGraph
from recsys.pipelines.baselines import NETWORKS, RANKING, RETRIEVAL, skip_reason
from recsys.pipelines.baselines.cache import cache_entry, cache_folder, read_arrays, write_arrays
from recsys.pipelines.evaluation_ranking import SlateRows
from recsys.pipelines.item_graphs import chosen_relations, training_graph
from recsys.pipelines.scorer import Scorer
from recsys.pipelines.targets import RankedTargets, histories_of, rank_all
from recsys.recent import recent_positives
from recsys.retrieval.memory import MemoryRetriever, RecentItems

__all__ = ["BaselineRuns", "MemoryScorer", "baseline_names"]

RECENT_ITEMS = 4
_RANKED = ("rank_Q", "reachable_Q", "tied_Q", "list_QK")


class MemoryScorer:
    """The retriever that needs no training, without a model beside it."""

    name = "memory"

    def __init__(self, dataset: Dataset, graph: ItemGraph) -> None:
        self._dataset = dataset
        self._retriever = MemoryRetriever(graph)
        self.settings: dict[str, Any] = {}

    def score(self, requests: Requests) -> NDArray[np.float32]:
        """[Q, I]; -inf for items that no recent item has as a neighbour."""
        histories = histories_of(self._dataset, requests)
        recent = recent_positives(histories, self._dataset.manifest.positive_mask, RECENT_ITEMS)
        scores_QI: NDArray[np.float32] = self._retriever.scores(RecentItems(recent)).numpy()
        return np.where(scores_QI > 0, scores_QI, np.float32(-np.inf))


def baseline_names(asked: str | None, dataset: Dataset) -> tuple[list[str], list[str]]:
    """The baselines to run, and a sentence for each that ``all`` leaves out.

    Args:
        asked: ``all``, or names separated by commas, those after a minus left out; None or empty = none.
        dataset: what they would run on.

    Raises:
        InputError: a name that there is not, or that cannot run on this dataset.
    """
    every = [*RETRIEVAL, *(name for name in ("memory",) if name not in RETRIEVAL), *RANKING]
    words = [word.strip() for word in (asked or "").split(",") if word.strip()]
    for word in words:
        if word.removeprefix("-") not in (*every, "all") or word == "-all":
            raise InputError(f"--baselines: there is no {word!r}; choose all, or some of {','.join(every)}")
    chosen, notes = [], []
    for name in every:
        if (name not in words and "all" not in words) or f"-{name}" in words:
            continue
        reason = skip_reason(name, dataset)
        if reason is None:
            chosen.append(name)
        elif name in words:
            raise InputError(f"--baselines {name}: {reason}")
        else:
            notes.append(f"{reason}; left out")
    return chosen, notes


@dataclass(slots=True)
class BaselineRuns:
    """Runs baselines on one dataset, or finds what an earlier run kept.

    What is kept goes by the hash of the data, the name, its settings, the version of the package and the code.
    """

    dataset: Dataset
    graph: ItemGraph | None = None
    """Item graph of training transitions for ``memory``; built where it is None or has other relations than usual."""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By baseline, what was chosen on validation."""
    reused: list[str] = field(default_factory=list)
    """Baselines that were not fitted anew."""

    def ranked(self, name: str, asked: Mapping[str, Requests]) -> dict[str, RankedTargets]:
        """Ranks of a retrieval baseline, fitted once at most.

        Args:
            name: key of ``RETRIEVAL``, or memory.
            asked: by a name for the cache, the requests whose targets are ranked.
        """
        out: dict[str, RankedTargets] = {}
        scorer: Scorer | None = None
        for what, requests in asked.items():
            path = cache_entry(self.dataset, what, name, {}, trains=name in NETWORKS).with_suffix(".npz")
            kept = read_arrays(path, (*_RANKED, "settings"))
            if kept is not None and len(kept["rank_Q"]) == len(requests):
                out[what] = RankedTargets(name, requests, *(kept[column] for column in _RANKED))
                self.settings[name] = json.loads(str(kept["settings"]))
                continue
            scorer = scorer or self._fitted(name)
            self.settings[name] = dict(getattr(scorer, "settings", {}))
            # The split is that of the targets, which stand in the requests.
            (out[what],) = rank_all([scorer], self.dataset, "test", requests=requests)
            arrays = {column: getattr(out[what], column) for column in _RANKED}
            write_arrays(path, arrays | {"settings": np.array(json.dumps(self.settings[name], sort_keys=True))})
        if scorer is None or getattr(scorer, "kept", False):
            self.reused.append(name)
        return out

    def slates(self, name: str, split: int, rows: SlateRows) -> NDArray[np.float32]:
        """[S, A] probabilities of a ranking baseline for the slate rows of a split (1 = validation, 2 = test)."""
        actions = self.dataset.manifest.actions
        path = cache_entry(self.dataset, f"slates-{split}", name, {}).with_suffix(".npz")
        kept = read_arrays(path, ("prob_SA", "settings"))
        if kept is not None and kept["prob_SA"].shape == (len(rows.row_S), len(actions)):
            self.reused.append(name)
            self.settings[name] = json.loads(str(kept["settings"]))
            return kept["prob_SA"].astype(np.float32)
        scorer = RANKING[name](self.dataset)
        predicted = scorer.predict(self.dataset, split)
        prob_SA = np.full((len(rows.row_S), len(actions)), np.nan, dtype=np.float32)
        for place, action in enumerate(actions):
            if action in predicted:
                prob_SA[:, place] = predicted[action][rows.row_S]
        self.settings[name] = dict(getattr(scorer, "settings", {}))
        write_arrays(path, {"prob_SA": prob_SA, "settings": np.array(json.dumps(self.settings[name], sort_keys=True))})
        return prob_SA

    def notes(self) -> list[str]:
        """What people should know of these runs."""
        if not self.reused:
            return []
        return [f"kept in {cache_folder()} by an earlier run on this data, not fitted anew: {', '.join(self.reused)}"]

    def _fitted(self, name: str) -> Scorer:
        if name == "memory" and name not in RETRIEVAL:
            usual = self.graph is not None and self.graph.relations == chosen_relations(self.dataset, None)
            graph = self.graph if self.graph is not None and usual else training_graph(self.dataset)
            return MemoryScorer(self.dataset, graph)
        return RETRIEVAL[name](self.dataset)
