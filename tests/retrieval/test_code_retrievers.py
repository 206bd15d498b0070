"""Retrievers by semantic IDs: their lists are the sorted scores of the catalogue, less what a user must not get."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.code_decoder import StateReader
from recsys.index.code_trie import CodeTrie
from recsys.model import UnifiedModel
from recsys.retrieval.beam_config import BeamConfig
from recsys.retrieval.generative import GenerativeRetriever
from recsys.retrieval.parallel import ParallelRetriever
from recsys.retrieval.protocol import Retriever
from recsys.retrieval.set_retriever import SetRetriever

AT = 1_702_000_000


def drawn(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([rng.integers(0, size, 30) for size in sizes], 1))


def retrievers(model):
    trie = CodeTrie.build(model.codes.of("codes"), model.config.code_sizes)
    return [GenerativeRetriever(model, trie, BeamConfig(widths=(30,))), ParallelRetriever(model), SetRetriever(model)]


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("k", [1, 7, 30])
def test_lists_are_the_best_of_all_scores(code_model, toy_dataset, which, cut, k):
    retriever = retrievers(code_model)[which]
    assert isinstance(retriever, Retriever)
    states = code_model.encode([toy_dataset.events.history(user, user) for user in range(8)])
    request = {"at_B": torch.full((8,), AT), "surface_B": torch.arange(8) % 3}
    score_BI = retriever.scores(states, **request)
    assert score_BI.shape == (8, 30) and torch.isfinite(score_BI).all()
    limits = {}
    if cut:
        limits = {
            "exclude_QE": torch.stack([torch.tensor([user, -1, 29]) for user in range(8)]),
            "allow_N": torch.arange(5, 30),
        }
        score_BI[:, :5] = score_BI[:, 29] = -torch.inf
        score_BI[torch.arange(8), torch.arange(8)] = -torch.inf
    hits = retriever.search(states, k, **request, **limits)
    for user in range(8):
        ids = hits.ids_QK[user][hits.ids_QK[user] >= 0]
        assert len(ids) == min(k, int((score_BI[user] > -torch.inf).sum())) == len(ids.unique())
        best = score_BI[user].sort(descending=True).values[: len(ids)]
        torch.testing.assert_close(hits.scores_QK[user, : len(ids)], best, atol=1e-5, rtol=0)
        torch.testing.assert_close(score_BI[user, ids], best, atol=1e-5, rtol=0)


def test_codes_of_another_model_are_refused(code_model):
    trie = CodeTrie.build(drawn((5, 4, 4)), (5, 4, 4))
    with pytest.raises(ValueError, match=r"sizes \(5, 4, 3\) and the trie holds \(5, 4, 4\)"):
        GenerativeRetriever(code_model, trie)
    few = CodeTrie.build(drawn((5, 4, 3))[:20], (5, 4, 3))
    with pytest.raises(ValueError, match="holds 20 items and the model knows 30"):
        GenerativeRetriever(code_model, few)
    drawn_of = {"parallel_codes": drawn((4, 3, 4, 2)), "set_codes": drawn((3, 5, 2))}
    with pytest.raises(ValueError, match=r"parallel_codes must be \[30, 4\], got \[30, 3\]"):
        code_model.codes.fill({**drawn_of, "codes": drawn((5, 4, 3)), "parallel_codes": drawn((4, 3, 4))})
    with pytest.raises(ValueError, match=r"codes must be at least 0 and below \[5, 4, 3\]"):
        code_model.codes.fill({**drawn_of, "codes": drawn((5, 4, 4))})


def test_a_model_without_such_heads_is_refused(toy_model):
    with pytest.raises(ValueError, match="predicts no parallel codes"):
        ParallelRetriever(toy_model)
    with pytest.raises(ValueError, match="predicts no sets of codes"):
        SetRetriever(toy_model)


def test_a_set_needs_keys_and_values(code_model, toy_dataset):
    retriever = SetRetriever(code_model)
    states = code_model.encode([toy_dataset.events.history(1, 4)], keep_cache=False)
    with pytest.raises(ValueError, match="keep_cache=True"):
        retriever.search(states, 3, at_B=torch.tensor([AT]), surface_B=torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("which", [1, 2])
def test_scores_are_mean_log_probabilities_of_the_codes(code_model, toy_dataset, which):
    retriever = retrievers(code_model)[which]
    states = code_model.encode([toy_dataset.events.history(user, user) for user in range(4)])
    request = {"at_B": torch.full((4,), AT), "surface_B": torch.arange(4) % 3}
    query_BD = code_model.query(states, **request)
    with torch.no_grad():
        logp_JBK = retriever.head(query_BD) if which == 1 else retriever.head(query_BD, StateReader(states))
    score_BI = retriever.scores(states, **request)
    codes = code_model.codes.of(("parallel_codes", "set_codes")[which - 1])
    for user in range(4):
        for item, row in enumerate(codes.tolist()):
            wanted = float(np.mean([float(logp_JBK[place, user, code]) for place, code in enumerate(row)]))
            assert float(score_BI[user, item]) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("which", [1, 2])
def test_lists_do_not_depend_on_how_many_users_are_scored_at_once(code_model, toy_dataset, which, monkeypatch):
    retriever = retrievers(code_model)[which]
    states = code_model.encode([toy_dataset.events.history(user, user) for user in range(8)])
    request = {"at_B": torch.full((8,), AT), "surface_B": torch.arange(8) % 3}
    limits = {"exclude_QE": torch.stack([torch.tensor([user, -1, 29]) for user in range(8)])}
    whole = retriever.search(states, 30, **request, **limits)
    monkeypatch.setattr("recsys.retrieval.code_catalogue._SCORES_AT_ONCE", 90)
    parts = retriever.search(states, 30, **request, **limits)
    assert torch.equal(whole.ids_QK, parts.ids_QK) and torch.equal(whole.scores_QK, parts.scores_QK)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_broken_numbers_are_an_error_and_no_empty_list(code_model, toy_dataset, which):
    model = copy.deepcopy(code_model)
    with torch.no_grad():
        for head in (model.parallel_codes, model.set_codes):
            head.codes_JKD[1].mul_(torch.nan)
        model.code_decoder.out[1].weight.mul_(torch.nan)
    states = model.encode([toy_dataset.events.history(user, user) for user in range(3)])
    request = {"at_B": torch.full((3,), AT), "surface_B": torch.arange(3)}
    with pytest.raises(ValueError, match=r"request 0, hold a NaN.*; check the model's weights"):
        retrievers(model)[which].search(states, 3, **request)


def test_a_model_trained_among_children_is_searched_among_children(code_model):
    trie = CodeTrie.build(code_model.codes.of("codes"), code_model.config.code_sizes)
    assert GenerativeRetriever(code_model, trie).config.normalise == "all"
    among = UnifiedModel(replace(code_model.config, code_children=True))
    assert GenerativeRetriever(among, trie).config.normalise == "children"
    assert GenerativeRetriever(among, trie, BeamConfig()).config.normalise == "all"
