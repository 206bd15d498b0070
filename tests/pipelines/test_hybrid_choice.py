"""Weights of the hybrid score: chosen on validation, kept only where they gain more than chance."""

from __future__ import annotations

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
