"""Weights and head of the hybrid retriever, chosen and fitted on validation.

Suffixes: Q = requests, B = requests of a batch, C = candidates of a request.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recsys.dataset import Dataset
from recsys.files import atomic_file
from recsys.index.code_trie import CodeTrie
from recsys.index.exact import ExactIndex
from recsys.index.memory_terms import MemoryWeights
from recsys.model import UnifiedModel
from recsys.pipelines.checkpoint import load_model
from recsys.pipelines.console import progress_bar
from recsys.pipelines.hybrid_head import fit_hybrid_head
from recsys.pipelines.item_graphs import training_graph, weighted_relations
from recsys.pipelines.list_head_fit import FittedListHead
from recsys.pipelines.recipe import validation_requests
from recsys.pipelines.request_tensors import exclusions, request_tensors
from recsys.retrieval.bundle_retrievers import RetrieverParts
from recsys.retrieval.hybrid import LISTED, Union
from recsys.retrieval.hybrid_weights import HybridWeights

__all__ = ["ChosenHybrid", "add_hybrid_weights", "choose_hybrid_weights", "code_trie", "hybrid_parts"]

_MOST_REQUESTS = 10_000
_BUDGETS = {"dense": 100, "generative": 50, "parallel": 50, "set": 50, "memory": 0, "cold": 20}
_WEIGHTS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5)
"""Of the sum over an item's codes; a retriever whose score is their mean gets as many times more as there are codes."""
_LEARNED = (0.0, -0.2, -0.4, -0.6, -0.8)
"""In parts of what the learned score counts in the dense one."""
_COLD = (0.0, 0.25, 0.5, 1.0)
_SELDOM = 0.5
_ROUNDS = 3
_BATCH = 128
_STANDARD_ERRORS = 2.0
"""By which a gain must exceed 0: weights of scores that say much the same fit the requests they were chosen on."""


@dataclass(frozen=True, slots=True)
class ChosenHybrid:
    """The weights, and what they did on the requests they were chosen on."""

    weights: HybridWeights
    ndcg: float
    """Validation NDCG@10 of the hybrid score."""
    dense_ndcg: float
    """The same with all weights 0, which is the order of ``dense``."""
    num_requests: int
    head: FittedListHead | None = None
    """What then has the last word on the first hits; None where there were too few lists to learn from, or where it
    gained nothing."""


def add_hybrid_weights(checkpoint: Path, dataset: Dataset) -> ChosenHybrid | None:
    """Choose the weights for a checkpoint, fit the head of lists and keep both in it; None where its model has no heads
    of semantic IDs.

    Args:
        checkpoint: that holds the weights of the memory terms already, where there are some.
        dataset: that it was trained on.
    """
    model, meta = load_model(checkpoint)
    if not model.codes.sizes:
        return None
    stored = meta.get("memory_weights")
    weights = MemoryWeights.from_dict(stored or {"learned": 1.0, "relations": {}})
    parts = hybrid_parts(model, dataset, weights)
    chosen = choose_hybrid_weights(parts, dataset)
    chosen = replace(chosen, head=fit_hybrid_head(parts, chosen.weights, dataset))
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    content["recsys"]["hybrid_weights"] = chosen.weights.to_dict()
    content["recsys"]["hybrid_head"] = None if chosen.head is None else chosen.head.head.to_dict()
    with atomic_file(checkpoint) as temporary:
        torch.save(content, temporary)
    return chosen


def hybrid_parts(model: UnifiedModel, dataset: Dataset, memory_weights: MemoryWeights) -> RetrieverParts:
    """What retrievers of validation are made of: training events alone.

    Args:
        model: in evaluation mode, with heads of semantic IDs.
        dataset: that it was trained on.
        memory_weights: of the dense score.
    """
    vectors_ID = model.item_vectors()
    return RetrieverParts(
        model=model,
        vectors_ID=vectors_ID,
        index=ExactIndex(vectors_ID),
        graph=training_graph(dataset, weighted_relations(memory_weights)),
        memory_weights=memory_weights,
        trie=code_trie(model, dataset),
    )


def choose_hybrid_weights(parts: RetrieverParts, dataset: Dataset) -> ChosenHybrid:
    """Coordinate ascent on validation NDCG@10 over the weights of the learned score and of each retriever by codes,
    and the term of cold items.

    At most 10,000 requests are looked at. Equal figures go to the smaller weight. All weights are 0 where the gain is
    within two standard errors: that of each half of the requests under the weights that the other half chooses. A
    retriever of weight 0 is not asked. Items without training events keep the places of the dense score where they are
    seldom right on validation.

    Args:
        parts: see :func:`hybrid_parts`.
        dataset: that the model was trained on.
    """
    model, learned = parts.model, parts.memory_weights.learned
    names = [one.name for one in parts.by_codes()]
    start = HybridWeights(dict.fromkeys(names, 1.0), budgets=_BUDGETS)
    requests = validation_requests(dataset)
    if len(requests) > _MOST_REQUESTS:
        picked = np.random.default_rng(0).choice(len(requests), _MOST_REQUESTS, replace=False)
        requests = requests.rows(np.sort(picked))
    if not len(requests):
        return ChosenHybrid(HybridWeights(budgets=_BUDGETS), 0.0, 0.0, 0)
    retriever = parts.hybrid(start)
    unions: list[_Asked] = []
    with torch.inference_mode(), progress_bar("hits of hybrid", len(requests), "requests") as advance:
        for low in range(0, len(requests), _BATCH):
            part = requests.rows(np.arange(low, min(low + _BATCH, len(requests))))
            advance(len(part))
            histories, at_B, surface_B, target_B = request_tensors(dataset, part, model.device)
            states = model.encode(histories, user_BK=dataset.user_rows(part.user))
            exclude_BE = exclusions(histories).to(model.device)
            union = retriever.union(states, 10, at_B=at_B, surface_B=surface_B, exclude_QE=exclude_BE)
            unions.append(_Asked.of(union, target_B))
    codes = {name: 1 if name == "generative" else len(model.codes.sizes[f"{name}_codes"]) for name in names}
    grid = [("learned", part * learned) for part in _LEARNED]
    grid += [(name, value * codes[name] * learned) for name in names for value in _WEIGHTS]
    holds_new = _seldom_right(unions)
    grid += [] if holds_new else [("cold", value) for value in _COLD]
    nothing = HybridWeights(dict.fromkeys(names, 0.0), budgets=_BUDGETS, holds_new=holds_new)
    dense_Q = _gains(unions, nothing)
    first_Q = torch.arange(len(dense_Q), device=dense_Q.device) % 2 == 0
    best = _ascent(unions, nothing, grid, torch.ones_like(first_Q))
    if best != nothing:
        # Each half of the requests judges what the other one chose.
        by_second_Q = _gains(unions, _ascent(unions, nothing, grid, ~first_Q))
        by_first_Q = _gains(unions, _ascent(unions, nothing, grid, first_Q))
        more_Q = torch.where(first_Q, by_second_Q, by_first_Q) - dense_Q
        if float(more_Q.mean()) <= _STANDARD_ERRORS * float(more_Q.std()) / len(more_Q) ** 0.5:
            best = nothing
    kept = {name: weight for name, weight in best.codes.items() if weight}
    budgets = {name: size for name, size in _BUDGETS.items() if name not in names or name in kept}
    ndcg = float(_gains(unions, best).mean())
    chosen = replace(best, codes=kept, budgets=budgets)
    return ChosenHybrid(chosen, ndcg, float(dense_Q.mean()), len(requests))


def _ascent(
    unions: list[_Asked], start: HybridWeights, grid: list[tuple[str, float]], asked_Q: Tensor
) -> HybridWeights:
    """Coordinate ascent on the NDCG@10 of some requests, [Q] bool, over the values that a grid names for weights."""

    def judged(weights: HybridWeights) -> float:
        return float(_gains(unions, weights)[asked_Q].mean())

    best, score = start, judged(start)
    for _ in range(_ROUNDS):
        before = score
        for name, value in grid:
            if name == "cold":
                tried = replace(best, cold=value)
            elif name == "learned":
                tried = replace(best, learned=value)
            else:
                tried = replace(best, codes={**best.codes, name: value})
            found = judged(tried)
            if found > score + 1e-6:
                best, score = tried, found
        if score == before:
            break
    return best


def code_trie(model: UnifiedModel, dataset: Dataset) -> CodeTrie | None:
    """The trie of a model's semantic IDs; of items that share a leaf, those with more training events come first."""
    if model.code_decoder is None:
        return None
    rank_I = -torch.from_numpy(dataset.train_item_counts())
    trie = CodeTrie.build(model.codes.of("codes").cpu(), model.codes.sizes["codes"], rank_I=rank_I)
    return trie.to(model.device)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Candidates of some requests, with what does not depend on weights."""

    union: Union
    is_target_BC: Tensor
    place_BC: Tensor
    """[B, C] int64, from 1, by the dense score; ties count against the item."""
    left_BC: Tensor
    """[B, C] int64 the same places, rising, first those of items with training events."""

    @classmethod
    def of(cls, union: Union, target_B: Tensor) -> _Asked:
        """For [B] targets."""
        dense_BC = union.dense_BC.masked_fill(union.item_BC < 0, -torch.inf)
        rising_BC = (-dense_BC).sort(dim=1).values.contiguous()
        place_BC = torch.searchsorted(rising_BC, (-dense_BC).contiguous(), right=True)
        order_BC = dense_BC.argsort(dim=1, descending=True, stable=True)
        left_BC = union.cold_BC.gather(1, order_BC).to(torch.uint8).argsort(dim=1, stable=True) + 1
        return cls(union, union.item_BC == target_B[:, None], place_BC, left_BC)


def _seldom_right(unions: list[_Asked]) -> bool:
    """Whether items without training events are targets less than half as often, of lists that hold their target, as
    they stand in them.

    Validation then knows such items as dead ones: it was split off a log in which they had no events yet. What it says
    of them is nothing about items that are new.
    """
    right = listed = right_new = listed_new = 0
    for asked in unions:
        first_BC = (asked.place_BC <= LISTED) & (asked.union.item_BC >= 0)
        holds_BC = first_BC & (asked.is_target_BC & first_BC).any(1, keepdim=True)
        target_BC = holds_BC & asked.is_target_BC
        right, listed = right + int(target_BC.sum()), listed + int(holds_BC.sum())
        right_new += int((target_BC & asked.union.cold_BC).sum())
        listed_new += int((holds_BC & asked.union.cold_BC).sum())
    return listed_new > 0 and right_new / right < _SELDOM * listed_new / listed


def _gains(unions: list[_Asked], weights: HybridWeights) -> Tensor:
    """[Q] float64 NDCG@10 of requests over the whole catalogue: what no search brought is not listed; ties count
    against the target."""
    parts = []
    for asked in unions:
        score_BC = asked.union.sum(weights)
        own_B1 = score_BC.masked_fill(~asked.is_target_BC, -torch.inf).amax(1, keepdim=True)
        if weights.holds_new:
            # The place of a new item is that of the dense score, other ones fill the places between in their order.
            cold_BC = asked.union.cold_BC
            among_B = ((score_BC >= own_B1) & ~cold_BC).sum(1, keepdim=True)
            filled_B = asked.left_BC.gather(1, (among_B - 1).clamp(0, score_BC.shape[1] - 1))[:, 0]
            kept_B = (asked.place_BC * asked.is_target_BC).sum(1)
            place_B = torch.where((cold_BC & asked.is_target_BC).any(1), kept_B, filled_B)
        else:
            place_B = (score_BC >= own_B1).sum(1)
        found_B = asked.is_target_BC.any(1) & (place_B <= 10)
        parts.append(torch.where(found_B, 1.0 / torch.log2(place_B + 1.0), 0.0).double())
    return torch.cat(parts)
