"""Training on the texts of some catalogues, and figures on one that it never saw.

Suffixes: Q = requests, I = items, K = dimensions, D = model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.events import Requests
from recsys.index.exact import ExactIndex
from recsys.metrics import TargetRanks, target_ranks
from recsys.model import UnifiedModel
from recsys.pipelines.baselines.item_knn import DECAYS
from recsys.pipelines.baselines.popularity import fit_popularity
from recsys.pipelines.baselines.selection import validation_ndcg
from recsys.pipelines.baselines.training_matrix import history_matrix
from recsys.pipelines.console import progress_bar
from recsys.pipelines.evaluation_retrieval import mean_figures, ndcg_minus
from recsys.pipelines.scorer import Scorer
from recsys.pipelines.targets import BatchStates, RankedTargets, RetrieverScorer, histories_of
from recsys.pipelines.text_codes import TextCodes
from recsys.pipelines.text_only_model import moved_model, train_text_only
from recsys.pipelines.united_data import united_data
from recsys.pipelines.zero_shot_blend import Blend, Kept
from recsys.retrieval.dense import DenseRetriever
from recsys.retrieval.parallel import ParallelRetriever

__all__ = ["Catalogue", "TextNeighbours", "TextOnly", "zero_shot_figures"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Catalogue:
    """A prepared dataset and the vectors of its texts."""

    data: Dataset
    vectors_IK: Floats
    """Centred over the catalogue, unit rows, zero for items without text."""


class TextNeighbours:
    """Cosine of every item to those of the history, the k-th newest weighing decay ** k; no item needs an event."""

    name = "text_knn"

    def __init__(self, catalogue: Catalogue, decay: float) -> None:
        self.settings = {"decay": decay}
        self._catalogue = catalogue

    @classmethod
    def fit(cls, catalogue: Catalogue) -> float:
        """The decay that is best on the validation targets of a catalogue."""
        tried = [
            (validation_ndcg(catalogue.data, cls(catalogue, decay).score), -place, decay)
            for place, decay in enumerate(DECAYS)
        ]
        return max(tried)[2]

    def score(self, requests: Requests) -> Floats:
        """[Q, I] sums of cosines."""
        vectors_IK = self._catalogue.vectors_IK
        history_QK = history_matrix(self._catalogue.data, requests, self.settings["decay"]) @ vectors_IK
        return np.asarray(history_QK @ vectors_IK.T, dtype=np.float32)


@dataclass(frozen=True)
class TextOnly:
    """A training on some catalogues, and what it answers for others. Each part is made when it is first asked for.

    Args:
        catalogues: whose positive events train.
        codes: fitted on their texts alone.
        folder: of the united data and the checkpoint.
        dim: width of the model.
        epochs: passes at most.
        seed: of the training.
        reads: what the model knows of an item: its ``codes``, or its ``vectors`` as they are.
    """

    catalogues: tuple[Catalogue, ...]
    codes: TextCodes
    folder: Path
    dim: int
    epochs: int
    seed: int
    reads: str = "codes"

    @property
    def name(self) -> str:
        return " + ".join(catalogue.data.path.name for catalogue in self.catalogues)

    @cached_property
    def united(self) -> Catalogue:
        """These catalogues as one."""
        vectors_IK = np.concatenate([catalogue.vectors_IK for catalogue in self.catalogues])
        datasets = [catalogue.data for catalogue in self.catalogues]
        data = united_data(datasets, self.content(vectors_IK), self.folder / "data")
        return Catalogue(data, vectors_IK[data.item_ids.to_numpy()])

    @cached_property
    def model(self) -> UnifiedModel:
        """Trained; the epoch is chosen on the validation targets of these catalogues."""
        vectors_IK = self.united.vectors_IK
        return train_text_only(
            self.united.data, self.content(vectors_IK), self.codes.of(vectors_IK), self.codes.sizes,
            self.folder / "checkpoints", epochs=self.epochs, seed=self.seed, settings={"dim": self.dim},
        )  # fmt: skip

    def content(self, vectors_IK: Floats) -> Floats:
        """[I, K] what the model reads of items of any catalogue."""
        return vectors_IK if self.reads == "vectors" else self.codes.read(vectors_IK)

    def scorers(self, catalogue: Catalogue) -> list[RetrieverScorer]:
        """``dense`` and ``parallel`` for a catalogue, be it one that the model never saw."""
        vectors_IK = catalogue.vectors_IK
        model = moved_model(self.model, catalogue.data, self.content(vectors_IK), self.codes.of(vectors_IK))
        vectors_ID, states = model.item_vectors(), BatchStates(model, catalogue.data)
        return [
            RetrieverScorer(DenseRetriever(model, ExactIndex(vectors_ID), vectors_ID, "dense"), states),
            RetrieverScorer(ParallelRetriever(model), states),
        ]


def zero_shot_figures(training: TextOnly, unseen: Catalogue, *, seed: int) -> list[dict[str, Any]]:
    """Rows of a model and of what stands beside them, on the test targets of a catalogue.

    Args:
        training: the model; its catalogues choose the decay of text_knn and the weight beside it too.
        unseen: the catalogue; of its events only histories and test targets are read, and those of training by
            ``popularity``.
        seed: of the intervals.
    """
    home = training.united
    decay = TextNeighbours.fit(home)
    weight = Blend.fit(training.scorers(home)[0], TextNeighbours(home, decay), home.data)

    def scorers(catalogue: Catalogue) -> list[Scorer]:
        read = Catalogue(catalogue.data, training.codes.read(catalogue.vectors_IK))
        nearest, learned = Kept(TextNeighbours(catalogue, decay)), training.scorers(catalogue)
        kept = Kept(learned[0])
        rules: list[Scorer] = [nearest, TextNeighbours(read, decay), fit_popularity(catalogue.data)]
        return [*rules, kept, *learned[1:], Blend(kept, nearest, weight)]

    about = [
        ("–", "vectors"),
        ("–", "codes"),
        (unseen.data.path.name, "events"),
        *[(training.name, training.reads)] * 2,
        (training.name, "vectors" if training.reads == "vectors" else f"{training.reads}, vectors"),
    ]
    ranked = _ranked(scorers(unseen), unseen.data)
    at_home = _ranked(scorers(home), home.data)
    rows: list[dict[str, Any]] = []
    for (trained_on, reads), (filtered, whole), (seen, _) in zip(about, ranked, at_home, strict=True):
        figures, all_figures, home_figures = (mean_figures(one, seed=seed) for one in (filtered, whole, seen))
        row: dict[str, Any] = {"model": filtered.name, "trained on": trained_on, "reads": reads}
        for title, key in (("NDCG@10", "ndcg@10"), ("Recall@10", "recall@10")):
            row |= {title: figures[key], f"{title}_ci": figures[f"{key}_ci"]}
            row |= {f"unfiltered {title}": all_figures[key], f"unfiltered {title}_ci": all_figures[f"{key}_ci"]}
        row |= {"Recall@100": figures["recall@100"], "seen catalogues NDCG@10": home_figures["ndcg@10"]}
        if filtered.name.endswith(f"+ {TextNeighbours.name}"):
            row["weight of the model"] = weight
        if rows:  # the first is what the others are compared with
            difference = ndcg_minus(filtered, ranked[0][0], seed=seed)
            row |= {"it − text_knn": difference["ndcg@10_minus"], "it − text_knn_ci": difference["ndcg@10_minus_ci"]}
        rows.append(row)
    return rows


def _ranked(scorers: Sequence[Scorer], data: Dataset) -> list[tuple[RankedTargets, RankedTargets]]:
    """Ranks of the test targets by each scorer, among the items that are not in the history and among all."""
    requests = data.requests("test")
    if not len(requests):
        raise InputError(f"{data.path} has no test targets; prepare more data")
    requests = requests.rows(np.argsort(requests.end, kind="stable"))  # like lengths in a batch
    step = max(1, min(1024, 2**25 // data.num_items))
    found: list[list[tuple[TargetRanks, TargetRanks]]] = [[] for _ in scorers]
    with progress_bar(f"rank targets of {data.path.name}", len(scorers) * len(requests), "targets") as advance:
        for low in range(0, len(requests), step):
            part = requests.rows(slice(low, low + step))
            seen = [history.item for history in histories_of(data, part)]
            for parts, scorer in zip(found, scorers, strict=True):
                score_QI = scorer.score(part)
                whole = target_ranks(score_QI, part.target, [part.target[:0]] * len(part))
                parts.append((target_ranks(score_QI, part.target, seen), whole))
                advance(len(part))
    joined = []
    for scorer, parts in zip(scorers, found, strict=True):
        filtered, unfiltered = (_joined(scorer.name, requests, ranks) for ranks in zip(*parts, strict=True))
        joined.append((filtered, unfiltered))
    return joined


def _joined(name: str, requests: Requests, parts: Sequence[TargetRanks]) -> RankedTargets:
    rank_Q, reachable_Q, tied_Q = (
        np.concatenate([getattr(part, column) for part in parts]) for column in ("rank_Q", "reachable_Q", "tied_Q")
    )
    return RankedTargets(name, requests, rank_Q, reachable_Q, tied_Q, np.zeros((len(requests), 0), dtype=np.int64))
