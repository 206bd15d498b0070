"""Weights of the hybrid score: chosen on validation, kept only where they gain more than chance."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from recsys.dataset import Dataset
from recsys.index.memory_terms import MemoryWeights
from recsys.model import UnifiedModel
from recsys.pipelines import hybrid_choice
from recsys.pipelines.export import export_model
from recsys.pipelines.hybrid_choice import choose_hybrid_weights, hybrid_parts
from recsys.pipelines.recipe import validation_requests
from recsys.retrieval.bundle_retrievers import bundle_retrievers
from recsys.retrieval.hybrid import Union
from recsys.retrieval.hybrid_weights import HybridWeights

NOTHING = MemoryWeights(1.0, {})


def test_heads_that_say_nothing_get_no_weight(code_model: UnifiedModel, toy_dataset: Dataset) -> None:
    chosen = choose_hybrid_weights(hybrid_parts(code_model, toy_dataset, NOTHING), toy_dataset)
    assert chosen.weights.codes == {} and chosen.weights.cold == 0 and chosen.ndcg == chosen.dense_ndcg
    assert not {"generative", "parallel", "set"} & set(chosen.weights.budgets)  # what weighs nothing is not asked
    assert chosen.num_requests == len(validation_requests(toy_dataset))


def test_a_head_that_knows_the_target_gets_weight(
    code_model: UnifiedModel, toy_dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Parallel scores that favour the targets of validation are believed, and a bundle serves them."""
    targets = torch.bincount(torch.from_numpy(validation_requests(toy_dataset).target), minlength=30).float()

    def knowing(self: object, states: object, item_BC: torch.Tensor, **_: object) -> torch.Tensor:
        return targets[item_BC.clamp_min(0)]

    monkeypatch.setattr("recsys.retrieval.parallel.ParallelRetriever.scores_of", knowing)
    monkeypatch.setattr(hybrid_choice, "_STANDARD_ERRORS", -1e6)  # halves of 40 requests say little of each other
    chosen = choose_hybrid_weights(hybrid_parts(code_model, toy_dataset, NOTHING), toy_dataset)
    assert chosen.weights.codes["parallel"] > 0 and chosen.ndcg > chosen.dense_ndcg
    export_model(code_model, toy_dataset, tmp_path / "bundle", hybrid_weights=chosen.weights.to_dict())
    from recsys.bundle import Bundle

    hybrid = bundle_retrievers(Bundle.open(tmp_path / "bundle"), ["hybrid"])["hybrid"]
    assert hybrid.weights == chosen.weights  # type: ignore[attr-defined]
    monkeypatch.setattr(hybrid_choice, "_STANDARD_ERRORS", 1e6)
    assert choose_hybrid_weights(hybrid_parts(code_model, toy_dataset, NOTHING), toy_dataset).weights.codes == {}


def made_union(rows: int, new_share: float) -> Union:
    draw = torch.Generator().manual_seed(rows)
    item_BC = torch.rand(rows, 60, generator=draw).argsort(dim=1)[:, :14].sort(dim=1).values
    item_BC[::3, -2:] = -1
    dense_BC, learned_BC, logp_BC = torch.randn(3, rows, 14, generator=draw)
    cold_BC = (torch.rand(rows, 14, generator=draw) < new_share) & (item_BC >= 0)
    return Union(item_BC, torch.zeros_like(item_BC), dense_BC, learned_BC, {"set": logp_BC}, cold_BC)


@pytest.mark.parametrize("new_share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("holds_new", [False, True])
def test_weights_are_judged_by_the_order_that_is_served(new_share: float, holds_new: bool) -> None:
    union = made_union(40, new_share)
    target_B = union.item_BC.clamp_min(0)[torch.arange(40), torch.arange(40) % 12]
    for weights in (HybridWeights(holds_new=holds_new), HybridWeights({"set": 0.8}, 0.5, {}, -0.2, holds_new)):
        score_BC = union.score(weights)
        assert not score_BC.isnan().any()
        expected = []
        for row, target in enumerate(target_B.tolist()):
            order = score_BC[row].argsort(descending=True).tolist()
            place = 1 + [int(union.item_BC[row, candidate]) for candidate in order].index(target)
            expected.append(1 / math.log2(place + 1) if place <= 10 else 0.0)
        gains_Q = hybrid_choice._gains([hybrid_choice._Asked.of(union, target_B)], weights)
        torch.testing.assert_close(gains_Q, torch.tensor(expected, dtype=torch.float64))


def test_new_items_are_held_where_targets_are_seldom_among_them() -> None:
    union = made_union(40, 0.3)
    old_B = union.dense_BC.masked_fill(union.cold_BC | (union.item_BC < 0), -torch.inf).argmax(1, keepdim=True)
    any_B = union.dense_BC.masked_fill(union.item_BC < 0, -torch.inf).argmax(1, keepdim=True)
    held, free = (
        hybrid_choice._seldom_right([hybrid_choice._Asked.of(union, union.item_BC.gather(1, place_B1)[:, 0])])
        for place_B1 in (old_B, any_B)
    )
    assert held and not free
