"""The hybrid retriever: a union of searches under one score, and where each hit came from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from recsys.index.code_trie import CodeTrie
from recsys.index.exact import ExactIndex
from recsys.index.item_graph import ItemGraph
from recsys.retrieval.beam_config import BeamConfig
from recsys.retrieval.dense import DenseRetriever
from recsys.retrieval.generative import GenerativeRetriever
from recsys.retrieval.hybrid import HybridRetriever
from recsys.retrieval.hybrid_weights import HybridWeights
from recsys.retrieval.list_features import ListFeatures
from recsys.retrieval.memory import MemoryRetriever
from recsys.retrieval.parallel import ParallelRetriever
from recsys.retrieval.protocol import Retriever, source_labels

AT = 1_702_000_000
COLD = torch.tensor([3, 11, 28])


@pytest.fixture
def parts(code_model, toy_dataset):
    from recsys.pipelines.item_graphs import training_graph

    vectors = code_model.item_vectors()
    dense = DenseRetriever(code_model, ExactIndex(vectors), vectors)
    graph: ItemGraph = training_graph(toy_dataset)
    trie = CodeTrie.build(code_model.codes.of("codes"), code_model.config.code_sizes)
    generative = GenerativeRetriever(code_model, trie, BeamConfig(widths=(6,)))
    states = code_model.encode([toy_dataset.events.history(user, user) for user in range(8)])
    request = {"at_B": torch.full((8,), AT), "surface_B": torch.arange(8) % 3}
    return dense, MemoryRetriever(graph), [generative, ParallelRetriever(code_model)], states, request


def test_with_all_weights_zero_the_order_is_that_of_dense(parts):
    dense, memory, codes, states, request = parts
    budgets = {"dense": 3, "generative": 5, "cold": 1}  # fewer than the hits asked for
    hybrid = HybridRetriever(dense, memory, codes, COLD, HybridWeights(budgets=budgets))
    assert isinstance(hybrid, Retriever)
    ours, theirs = hybrid.search(states, 10, **request), dense.search(states, 10, **request)
    assert torch.equal(ours.ids_QK, theirs.ids_QK)
    torch.testing.assert_close(ours.scores_QK, theirs.scores_QK, atol=1e-5, rtol=0)


def test_the_score_of_a_union_as_large_as_the_catalogue_is_the_weighted_sum(parts):
    dense, memory, codes, states, request = parts
    weights = HybridWeights({"generative": 0.7, "parallel": 1.3}, 0.4, {"dense": 30, "generative": 30})
    hybrid = HybridRetriever(dense, memory, codes, COLD, weights)
    expected_BI = dense.scores(states, **request)
    expected_BI = expected_BI + 0.7 * codes[0].scores(states, **request) + 1.3 * codes[1].scores(states, **request)
    expected_BI[:, COLD] += 0.4
    torch.testing.assert_close(hybrid.scores(states, **request), expected_BI, atol=1e-4, rtol=0)
    hits = hybrid.search(states, 30, **request)
    best_BI, order_BI = expected_BI.sort(1, descending=True)
    torch.testing.assert_close(hits.scores_QK, best_BI, atol=1e-4, rtol=0)
    torch.testing.assert_close(expected_BI.gather(1, hits.ids_QK), best_BI, atol=1e-4, rtol=0)


def test_each_hit_says_which_search_brought_it_first(parts):
    dense, memory, codes, states, request = parts
    weights = HybridWeights({"generative": 5.0}, 0.0, {"dense": 3, "generative": 6, "memory": 4, "cold": 2})
    hybrid = HybridRetriever(dense, memory, codes, COLD, weights)
    hits = hybrid.search(states, 3, **request)
    labels = source_labels(hybrid)
    assert labels == ["hybrid/dense", "hybrid/generative", "hybrid/memory", "hybrid/cold"]
    lists = [
        dense.search(states, 3, **request).ids_QK,
        codes[0].search(states, 6, **request).ids_QK,
        memory.search(states, 4, **request).ids_QK,
        dense.search(states, 2, allow_N=COLD, **request).ids_QK,
    ]
    seen = set()
    for user in range(8):
        for item, source in zip(hits.ids_QK[user].tolist(), hits.source_QK[user].tolist(), strict=True):
            first = next(place for place, found in enumerate(lists) if item in found[user].tolist())
            assert source == first
            seen.add(source)
    assert len(seen) > 1  # the weight is large enough that beams enter


def test_nothing_excluded_or_not_allowed_is_returned_and_no_item_twice(parts):
    dense, memory, codes, states, request = parts
    weights = HybridWeights({"generative": 1.0, "parallel": 1.0}, 9.0, {"dense": 5, "memory": 9, "cold": 3})
    hybrid = HybridRetriever(dense, memory, codes, COLD, weights)
    exclude_QE = torch.stack([torch.tensor([user, -1, 28]) for user in range(8)])
    hits = hybrid.search(states, 30, **request, exclude_QE=exclude_QE, allow_N=torch.arange(4, 30))
    for user in range(8):
        ids = hits.ids_QK[user][hits.ids_QK[user] >= 0].tolist()
        assert len(ids) == len(set(ids)) and ids
        assert not set(ids) & {user, 28, 0, 1, 2, 3} and 11 in ids  # a cold item that is allowed


@pytest.fixture
def with_head(parts, random_list_head, monkeypatch):
    def make(weights: HybridWeights, listed: int, knows_new: bool = False) -> HybridRetriever:
        dense, memory, codes, *_ = parts
        monkeypatch.setattr("recsys.retrieval.hybrid.LISTED", listed)
        features = ListFeatures(dense, memory.graph)
        head = random_list_head(features.names, knows_new=knows_new)
        return HybridRetriever(dense, memory, codes, COLD, weights, head, features)

    return make


@pytest.mark.parametrize("knows_new", [True, False])
def test_a_head_orders_the_first_of_the_union_and_the_others_stay_behind(parts, with_head, knows_new):
    *_, states, request = parts
    weights = HybridWeights({"generative": 0.7}, 0.4, {"dense": 30})
    hybrid = with_head(weights, 12, knows_new)
    sums = hybrid.scores(states, **request)
    hits = hybrid.search(states, 30, **request)
    changed = with_cold = 0
    for user in range(8):
        listed = sorted(range(30), key=lambda item: (-float(sums[user, item]), item))
        item_BK = torch.tensor([listed[:12]])
        one = {name: value[user : user + 1] for name, value in request.items()}
        state = states.select(torch.tensor([user]))
        rows = hybrid.features(state, item_BK, state.recent_BM, one["at_B"], one["surface_B"])
        added = hybrid.head.added(rows.feature_BKF)[0].clone()
        cold = torch.tensor([item in COLD.tolist() for item in listed[:12]])
        refined = sums[user, item_BK[0]] + hybrid.head.weight * added
        order = sorted(range(12), key=lambda place: (-float(refined[place]), listed[place]))
        if not knows_new:
            others = iter([place for place in order if not cold[place]])
            order = [place if cold[place] else next(others) for place in range(12)]
        assert hits.ids_QK[user].tolist() == [listed[place] for place in order] + listed[12:]
        own = torch.tensor([knows_new or not bool(cold[place]) for place in order])
        torch.testing.assert_close(hits.scores_QK[user, :12][own], refined[order][own], atol=1e-4, rtol=0)
        assert (hits.scores_QK[user].diff() <= 0).all()
        changed += order != list(range(12))
        with_cold += bool(cold.any())
    assert changed > 4 and with_cold > 2


def test_new_items_keep_the_places_of_the_dense_score_where_weights_say_so(parts):
    dense, memory, codes, states, request = parts
    weights = HybridWeights({"generative": 0.7}, 0.4, {"dense": 30})
    free, held = (
        HybridRetriever(dense, memory, codes, COLD, replace(weights, holds_new=holds), None) for holds in (False, True)
    )
    ids = {name: one.search(states, 30, **request) for name, one in (("free", free), ("held", held), ("dense", dense))}
    assert (ids["held"].scores_QK.diff(dim=1) <= 0).all()
    cold, moved = set(COLD.tolist()), 0
    for user in range(8):
        by_dense, by_free, by_held = (ids[name].ids_QK[user].tolist() for name in ("dense", "free", "held"))
        others = iter([item for item in by_free if item not in cold])
        assert by_held == [item if item in cold else next(others) for item in by_dense]
        moved += by_held != by_free
    assert moved > 4


def test_a_head_scores_each_list_by_itself_and_returns_nothing_that_is_not_allowed(parts, with_head):
    *_, states, request = parts
    weights = HybridWeights({"parallel": 0.5}, 0.0, {"dense": 8, "memory": 6, "cold": 2})
    hybrid = with_head(weights, 5)
    # The first user may get three items alone, fewer than the head looks at; the others far more.
    exclude_QE = torch.full((8, 27), -1)
    exclude_QE[0] = torch.arange(27)
    hits = hybrid.search(states, 20, **request, exclude_QE=exclude_QE)
    assert sorted(hits.ids_QK[0, :3].tolist()) == [27, 28, 29] and (hits.ids_QK[0, 3:] == -1).all()
    assert (hits.scores_QK[0, 3:] == -torch.inf).all() and not hits.scores_QK.isnan().any()
    for user in range(8):
        alone = hybrid.search(
            states.select(torch.tensor([user])), 20, exclude_QE=exclude_QE[user : user + 1],
            **{name: value[user : user + 1] for name, value in request.items()},
        )  # fmt: skip
        ours = hits.ids_QK[user][hits.ids_QK[user] >= 0]
        assert torch.equal(ours, alone.ids_QK[0][alone.ids_QK[0] >= 0]) and len(ours.unique()) == len(ours)
        torch.testing.assert_close(
            hits.scores_QK[user, : len(ours)], alone.scores_QK[0, : len(ours)], atol=1e-4, rtol=0
        )
    nobody = states.select(torch.zeros(0, dtype=torch.int64))
    none = {name: value[:0] for name, value in request.items()}
    assert hybrid.search(nobody, 20, **none).ids_QK.shape == (0, 20)


def test_a_head_of_other_features_is_refused(parts, random_list_head):
    dense, memory, codes, _, _ = parts
    features = ListFeatures(dense, memory.graph)
    with pytest.raises(ValueError, match="reads other features"):
        HybridRetriever(dense, memory, codes, COLD, HybridWeights(), random_list_head(features.names[1:]), features)


def test_weights_of_a_retriever_that_is_not_there_are_refused(parts):
    dense, memory, codes, _, _ = parts
    with pytest.raises(ValueError, match=r"weights are of \['set'\]"):
        HybridRetriever(dense, memory, codes, COLD, HybridWeights({"set": 1.0}))
    weights = HybridWeights({"generative": 0.5}, 0.1, {"dense": 7})
    assert HybridWeights.from_dict(weights.to_dict()) == weights


@pytest.mark.parametrize(
    "wrong",
    [
        {"codes": {"generative": "x"}},
        {"codes": {"generative": None}},
        {"codes": {"generative": 1e300}},
        {"cold": math.inf},
        {"learned": math.nan},
        {"budgets": {"generative": -3}},
        {"budgets": {"cold": 2.5}},
        {"budgets": {"dense": "x"}},
        {"budgets": {"memory": True}},
        {"budgets": {"dense": 10**30}},
    ],
)
def test_weights_that_no_search_could_use_are_refused_when_they_are_read(wrong):
    good = {"codes": {"generative": 0.5}, "cold": 0.4, "budgets": {}}
    assert HybridWeights.from_dict(good).cold == 0.4
    with pytest.raises(ValueError, match="in the hybrid score must be"):
        HybridWeights.from_dict({**good, **wrong})


def test_codes_may_count_without_a_search_of_their_own(parts):
    dense, memory, codes, states, request = parts
    weights = HybridWeights({"generative": 0.7, "parallel": 1.3}, 0.0, {"dense": 30, "generative": 0, "parallel": 0})
    hybrid = HybridRetriever(dense, memory, codes, COLD, weights)
    hits = hybrid.search(states, 30, **request)
    wanted = hybrid.scores(states, **request).gather(1, hits.ids_QK)
    torch.testing.assert_close(hits.scores_QK, wanted, atol=1e-4, rtol=0)
    assert set(hits.source_QK.unique().tolist()) == {hybrid.sources.index("dense")}


def test_scores_of_given_items_are_those_of_the_whole_catalogue(parts, code_model):
    dense, memory, codes, states, request = parts
    item_BC = torch.stack([torch.randperm(30)[:9] for _ in range(8)])
    trie = codes[0].trie
    runs = replace(trie, levels=tuple(replace(level, table_MK=None) for level in trie.levels))
    assert any(level.table_MK is not None for level in trie.levels)
    among = BeamConfig(widths=(6,), normalise="children")
    forms = [GenerativeRetriever(code_model, trie, among), GenerativeRetriever(code_model, runs, among)]
    weights = HybridWeights({"generative": 0.7, "parallel": 1.3}, 0.4, {}, -0.2)
    hybrid = HybridRetriever(dense, memory, codes, COLD, weights)
    for retriever in (dense, *codes, GenerativeRetriever(code_model, runs), *forms, hybrid):
        expected = retriever.scores(states, **request).gather(1, item_BC)
        found = retriever.scores_of(states, item_BC, **request)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
