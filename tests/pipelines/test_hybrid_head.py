"""The head of the hybrid retriever: fitted on validation, believed only where it gains, kept in the bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.index.memory_terms import MemoryWeights
from recsys.list_head import ListHead
from recsys.pipelines import hybrid_head, list_head_fit
from recsys.pipelines.export import export_model
from recsys.pipelines.hybrid_choice import hybrid_parts
from recsys.pipelines.hybrid_head import fit_hybrid_head
from recsys.pipelines.request_tensors import exclusions, request_tensors
from recsys.retrieval.bundle_retrievers import RetrieverParts
from recsys.retrieval.hybrid_weights import HybridWeights

NOTHING = MemoryWeights(1.0, {})


@pytest.fixture(scope="module")
def parts(chain: tuple[Dataset, Bundle]) -> RetrieverParts:
    dataset, bundle = chain
    return hybrid_parts(bundle.model, dataset, NOTHING)


def test_a_head_learns_what_the_sum_lacks_and_serves_it(
    chain: tuple[Dataset, Bundle], parts: RetrieverParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, bundle = chain
    assert fit_hybrid_head(parts, HybridWeights(), dataset) is None  # 110 lists are too few
    monkeypatch.setattr(hybrid_head, "_LEAST", 50)
    fitted = fit_hybrid_head(parts, HybridWeights(), dataset)
    assert fitted is not None and fitted.ndcg > fitted.start_ndcg + 0.05
    # Test targets, which nothing was fitted on.
    requests = dataset.requests("test")
    histories, at_B, surface_B, target_B = request_tensors(dataset, requests)
    states = bundle.model.encode(histories)
    request = {"at_B": at_B, "surface_B": surface_B, "exclude_QE": exclusions(histories)}
    plain = parts.hybrid(HybridWeights())
    refined = type(plain)(
        plain.dense, plain.memory, [], plain.cold_N, HybridWeights(), fitted.head, _features(plain, parts)
    )
    gains = []
    for one in (plain, refined):
        hit_BK = one.search(states, 10, **request).ids_QK == target_B[:, None]
        gains.append(float((hit_BK / torch.arange(2, 12).log2()).sum(1).mean()))
    assert gains[1] > gains[0] + 0.05
    monkeypatch.setattr(list_head_fit, "_STANDARD_ERRORS", 1e6)
    assert fit_hybrid_head(parts, HybridWeights(), dataset) is None


def _features(plain: object, parts: RetrieverParts) -> object:
    from recsys.retrieval.list_features import ListFeatures

    return ListFeatures(plain.dense, parts.graph)  # type: ignore[attr-defined]


@pytest.mark.parametrize("new_targets", [True, False])
def test_what_it_says_of_new_items_is_heard_only_where_targets_were_new(new_targets: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    target_Q = torch.randint(8, (240,), generator=draw)
    is_target_QK = torch.arange(8) == target_Q[:, None]
    is_new_QK = torch.rand(240, 8, generator=draw) < 0.3
    if not new_targets:
        is_new_QK &= ~is_target_QK
    feature_QKF = torch.randn(240, 8, 3, generator=draw)
    feature_QKF[..., 0] += 2.0 * is_target_QK
    score_QK = torch.arange(8, 0, -1).float().expand(240, 8) / 8
    lists = list_head_fit.TargetLists(feature_QKF, score_QK, is_target_QK, 240, ("a", "b", "c"), is_new_QK)
    fitted = list_head_fit.fit_list_head(lists, judged=8)
    assert fitted.head.weight > 0 and fitted.head.knows_new == new_targets
    refined_QK = fitted.head.refined(score_QK, feature_QKF, is_new_QK)
    place_QK = refined_QK.argsort(dim=1, descending=True)
    assert torch.equal(place_QK[is_new_QK], torch.arange(8).expand(240, 8)[is_new_QK]) != new_targets
    deaf = list_head_fit.fit_list_head(lists, judged=8, hears_new=False).head
    assert not deaf.knows_new and deaf.weight > 0


def test_a_bundle_keeps_the_head_and_refuses_one_of_other_features(
    code_model: object, toy_dataset: Dataset, tmp_path: Path
) -> None:
    from recsys.retrieval.bundle_retrievers import bundle_retrievers

    parts = hybrid_parts(code_model, toy_dataset, NOTHING)  # type: ignore[arg-type]
    names = _features(parts.hybrid(HybridWeights()), parts).names  # type: ignore[attr-defined]
    torch.manual_seed(0)
    net = list_head_fit.ListNet(len(names), 4, 2)
    head = ListHead(
        names=names, mean_F=torch.zeros(len(names)), scale_F=torch.ones(len(names)), net=net, weight=0.75,
        knows_new=False,
    )  # fmt: skip
    stored = head.to_dict()
    export_model(code_model, toy_dataset, tmp_path / "bundle", hybrid_head=stored)  # type: ignore[arg-type]
    found = Bundle.open(tmp_path / "bundle")
    assert found.hybrid_head is not None and found.hybrid_head.weight == 0.75 and not found.hybrid_head.knows_new
    feature_BKF = torch.randn(2, 5, len(names))
    assert torch.equal(found.hybrid_head.added(feature_BKF), head.added(feature_BKF))
    assert bundle_retrievers(found, ["hybrid"])["hybrid"].head is found.hybrid_head  # type: ignore[attr-defined]
    export_model(
        code_model, toy_dataset, tmp_path / "other", hybrid_head={**stored, "names": [*stored["names"][1:], "another"]}
    )  # type: ignore[arg-type]
    with pytest.raises(InputError, match="reads other features than there are"):
        bundle_retrievers(Bundle.open(tmp_path / "other"), ["hybrid"])
    for broken in ({**stored, "weight": -1.0}, {**stored, "names": stored["names"][1:]}, {**stored, "tensors": {}}):
        export_model(code_model, toy_dataset, tmp_path / "broken", hybrid_head=broken)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="do not fit together"):
            Bundle.open(tmp_path / "broken")
