"""Weights of the memory terms beside the learned score, chosen on validation.

Suffixes: Q = requests, C = candidates of a request, F = features (the learned score, then one per recent item and
relation), B = requests of a batch, I = items, M = recent items, R = relations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recsys.dataset import Dataset
from recsys.events import Requests
from recsys.files import atomic_file
from recsys.index.item_graph import ItemGraph
from recsys.index.memory_terms import MemoryTerms, MemoryWeights
from recsys.model import UnifiedModel
from recsys.pipelines.checkpoint import load_model
from recsys.pipelines.item_graphs import training_graph
from recsys.pipelines.new_item_factor import ChosenFactor, choose_new_item_factor
from recsys.pipelines.new_user_start import ChosenStart, choose_new_user_start
from recsys.pipelines.recipe import validation_requests
from recsys.pipelines.request_tensors import request_tensors

__all__ = ["ChosenWeights", "add_memory_weights", "choose_memory_weights"]

_LEARNED, _DECAY = 0.5, 0.6
"""Where the search starts, with 1 for transitions and 2 for each kind of text."""
_TOP = {"learned": 80, "memory": 100, "sum": 140}
"""Candidates of a request: the best by the learned score, by the rule, and by their sum at the start weights."""
_FACTORS = (0.0, 0.5, 0.7, 0.85, 1.2, 1.5, 2.0)
_DECAYS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_ROUNDS = 4
_MOST_FLOATS = 1 << 27
"""Features held at once: 512 MiB."""
_MOST_SCORES = 1 << 32
"""Scores of items looked at; larger catalogues look at fewer requests."""
_SCORES_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class ChosenWeights:
    """The weights, and what they did on the requests they were chosen on."""

    weights: MemoryWeights
    learned_ndcg: float
    """Validation NDCG@10 of the learned score alone (full ranking, history filtered, among the best candidates)."""
    sum_ndcg: float
    num_requests: int
    new_items: ChosenFactor | None = None
    """What was chosen for items without training events, and how such items fare; None = there was nothing to choose.
    The other figures are without it."""
    new_users: ChosenStart | None = None
    """The same for users without any event."""


def add_memory_weights(
    checkpoint: Path,
    dataset: Dataset,
    relations: Sequence[str] | None = None,
    new_item_factor: float | None = None,
) -> ChosenWeights:
    """Choose the weights for a checkpoint of a dataset and keep them in it; the last step of a fit.

    Args:
        checkpoint: which gets the weights, and with them the names of the relations that everything after uses.
        dataset: that it was trained on.
        relations: as in :func:`recsys.pipelines.item_graphs.training_graph`.
        new_item_factor: taken instead of a chosen one.
    """
    model, _ = load_model(checkpoint)
    chosen = choose_memory_weights(model, dataset, training_graph(dataset, relations))
    if new_item_factor is not None:
        chosen = replace(chosen, weights=replace(chosen.weights, new_items=float(new_item_factor)), new_items=None)
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    content["recsys"]["memory_weights"] = chosen.weights.to_dict()
    with atomic_file(checkpoint) as temporary:
        torch.save(content, temporary)
    return chosen


def choose_memory_weights(model: UnifiedModel, dataset: Dataset, graph: ItemGraph) -> ChosenWeights:
    """Coordinate ascent on validation NDCG@10 over w, one weight per relation, and the decay per item further back.

    Only items that some sensible weighting could put among the first ten are looked at, so that a weighting costs a
    small matrix product. Where there is nothing to choose from, the start weights (w = .5, transitions 1, texts 2,
    walks .5, decay .6) stand.

    Args:
        model: in evaluation mode.
        graph: with transitions of training events alone.
    """
    relations = graph.default_weights
    if not relations:
        nothing = ChosenWeights(MemoryWeights(1.0, {}), 0.0, 0.0, 0)
        return _with_start(nothing, model, dataset, validation_requests(dataset))
    recent = model.config.recent
    requests = validation_requests(dataset)
    width = 1 + recent * len(relations)
    most = min(_MOST_FLOATS // ((1 + sum(_TOP.values())) * width), max(256, _MOST_SCORES // dataset.num_items))
    if len(requests) > most:
        picked = np.random.default_rng(0).choice(len(requests), most, replace=False)
        requests = requests.rows(np.sort(picked))
    start = Weighting(_LEARNED, dict(relations), _DECAY)
    if not len(requests):
        return ChosenWeights(start.memory_weights(recent), 0.0, 0.0, 0)
    judge = _Judge(*_features(model, dataset, graph, requests, start), tuple(relations), recent)
    alone = judge(Weighting(1.0, dict.fromkeys(relations, 0.0), 1.0))
    starts = [start, Weighting(4 * _LEARNED, dict(relations), _DECAY)]
    best, score = max((_ascend(judge, one) for one in starts), key=lambda found: found[1])
    weights = best.memory_weights(recent)
    new_items = choose_new_item_factor(model, dataset, graph, requests, weights)
    if new_items is not None:
        weights = replace(weights, new_items=new_items.factor)
    return _with_start(ChosenWeights(weights, alone, score, len(requests), new_items), model, dataset, requests)


def _with_start(chosen: ChosenWeights, model: UnifiedModel, dataset: Dataset, requests: Requests) -> ChosenWeights:
    start = choose_new_user_start(model, dataset, requests, chosen.weights.learned)
    if start is None:
        return chosen
    weights = replace(chosen.weights, start_items=start.items, start_values=start.values)
    return replace(chosen, weights=weights, new_users=start)


@dataclass(frozen=True, slots=True)
class Weighting:
    """A point of the search."""

    learned: float
    relations: dict[str, float]
    decay: float

    def memory_weights(self, recent: int) -> MemoryWeights:
        rounded = {name: round(b, 4) for name, b in self.relations.items()}
        return MemoryWeights.decaying(round(self.learned, 4), rounded, recent, self.decay)

    def neighbours(self) -> list[Weighting]:
        """Weightings that differ in one number."""
        found = [Weighting(self.learned * factor, self.relations, self.decay) for factor in _FACTORS if factor]
        for name, b in self.relations.items():
            found += [Weighting(self.learned, {**self.relations, name: b * f}, self.decay) for f in _FACTORS if b]
        return found + [Weighting(self.learned, self.relations, decay) for decay in _DECAYS]


class _Judge:
    """NDCG@10 of weightings on fixed candidates; the target is the first of each row."""

    def __init__(
        self, feature_QCF: Tensor, valid_QC: Tensor, reachable_Q: Tensor, relations: tuple[str, ...], recent: int
    ) -> None:
        self.feature_QCF, self.valid_QC, self.reachable_Q = feature_QCF, valid_QC, reachable_Q
        self.relations, self.recent = relations, recent

    def __call__(self, weighting: Weighting) -> float:
        rows = [weighting.learned]
        for place in range(self.recent):
            rows += [weighting.relations[name] * weighting.decay**place for name in self.relations]
        score_QC = self.feature_QCF @ torch.tensor(rows)
        ahead_Q = ((score_QC[:, 1:] >= score_QC[:, :1]) & self.valid_QC[:, 1:]).sum(1)
        gain_Q = torch.where((ahead_Q < 10) & self.reachable_Q, 1.0 / torch.log2(ahead_Q + 2.0), 0.0)
        return float(gain_Q.double().mean())


def _ascend(judge: _Judge, start: Weighting) -> tuple[Weighting, float]:
    best, score = start, judge(start)
    for _ in range(_ROUNDS):
        before = score
        for place in range(len(best.neighbours())):
            around = best.neighbours()
            if place >= len(around):
                break
            found = judge(around[place])
            if found > score + 1e-5:
                best, score = around[place], found
        if score == before:
            break
    return best, score


@torch.inference_mode()
def _features(
    model: UnifiedModel, dataset: Dataset, graph: ItemGraph, requests: Requests, start: Weighting
) -> tuple[Tensor, Tensor, Tensor]:
    """[Q, C, F] features, the target first; [Q, C] whether a candidate counts; [Q] whether the target can be hit."""
    vectors_ID = model.item_vectors()
    recent, relations = model.config.recent, tuple(start.relations)
    rule = MemoryTerms(graph, start.memory_weights(recent).relations)
    places = [MemoryTerms(graph, {name: [0.0] * j + [1.0]}) for j in range(recent) for name in relations]
    step = max(1, _SCORES_AT_ONCE // dataset.num_items)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for low in range(0, len(requests), step):
        part = requests.rows(np.arange(low, min(low + step, len(requests))))
        histories, at_B, surface_B, target_B = request_tensors(dataset, part, model.device)
        states = model.encode(histories, keep_cache=False, user_BK=dataset.user_rows(part.user))
        recent_BM = states.recent_BM.cpu()
        learned_BI = (model.query(states, at_B, surface_B) @ vectors_ID.T).float().cpu()
        target_B = target_B.cpu()
        seen_X = torch.from_numpy(np.concatenate([history.item for history in histories]))
        user_X = torch.repeat_interleave(torch.tensor([len(history) for history in histories]))
        known_X = seen_X >= 0
        seen_BI = torch.zeros_like(learned_BI, dtype=torch.bool)
        seen_BI[user_X[known_X], seen_X[known_X]] = True
        memory_BI = torch.zeros_like(learned_BI)
        rule.add_to(memory_BI, recent_BM)
        lists = {"learned": learned_BI, "memory": memory_BI, "sum": memory_BI + start.learned * learned_BI}
        id_BC = torch.cat(
            [target_B[:, None]]
            + [
                scores.masked_fill(seen_BI, -torch.inf).topk(min(_TOP[name], scores.shape[1]), dim=1).indices
                for name, scores in lists.items()
            ],
            dim=1,
        )
        sorted_BC, order_BC = id_BC.sort(dim=1, stable=True)
        repeat_BC = torch.zeros_like(id_BC, dtype=torch.bool)
        repeat_BC[:, 1:] = sorted_BC[:, 1:] == sorted_BC[:, :-1]
        valid_BC = ~torch.zeros_like(repeat_BC).scatter(1, order_BC, repeat_BC) & ~seen_BI.gather(1, id_BC)
        columns = [learned_BI.gather(1, id_BC)]
        for terms in places:
            memory_BI.zero_()
            terms.add_to(memory_BI, recent_BM)
            columns.append(memory_BI.gather(1, id_BC))
        reachable_B = ~seen_BI.gather(1, target_B[:, None]).squeeze(1)
        parts.append((torch.stack(columns, -1), valid_BC, reachable_B))
    feature_QCF, valid_QC, reachable_Q = (torch.cat(column) for column in zip(*parts, strict=True))
    return feature_QCF, valid_QC, reachable_Q
