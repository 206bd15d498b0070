"""Retrieval by semantic IDs with the real heads: equal to scoring every item by itself, one request at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.code_decoder import PackedReader
from recsys.index.code_trie import CodeTrie
from recsys.packing import pack_histories
from recsys.retrieval import code_catalogue
from recsys.retrieval.beam_config import BeamConfig
from recsys.retrieval.generative import GenerativeRetriever
from recsys.retrieval.parallel import ParallelRetriever

AT = 1_702_000_000
ENDS = ((0, 3), (1, 0), (2, 4), (3, 1), (5, 4), (8, 2), (11, 4), (14, 0))
"""User and visible events: short, long and empty histories in no order."""


def drawn_codes(sizes, num_items=30):
    """Uneven codes; many items share theirs."""
    rng = np.random.default_rng(2)
    return torch.from_numpy(np.stack([np.minimum(rng.zipf(1.7, num_items) - 1, size - 1) for size in sizes], 1))


def requests(model, dataset):
    histories = [dataset.events.history(user, end) for user, end in ENDS]
    return histories, model.encode(histories), {"at_B": AT + 60 * torch.arange(8), "surface_B": torch.arange(8) % 3}


def teacher_forced(model, histories, states, limits, codes, trie, normalise):
    """[B, I] log-probabilities in float64, from the decoder as it is trained: all levels of every item at once."""
    num_users, num_items = len(histories), len(codes)
    lengths = torch.tensor([len(history) for history in histories])
    order = lengths.argsort(stable=True)
    batch = pack_histories([histories[i] for i in order])
    with torch.no_grad():
        _, cache = model.encode_packed(batch, torch.zeros_like(batch.time_known_T), model.items.rows)
        user_N = torch.arange(num_users).repeat_interleave(num_items)
        read = PackedReader(cache, batch.groups, num_users, order.argsort()[user_N], lengths[user_N])
        query_ND = model.query(states, **limits)[user_N]
        logits = model.code_decoder(query_ND, codes.repeat(num_users, 1), read)
    total_NI = torch.zeros(num_users, num_items, dtype=torch.float64)
    for level, logit_NK in enumerate(logits):
        for item, row in enumerate(codes.tolist()):
            among = list(range(trie.sizes[level]))
            if normalise == "children":
                among = sorted({other[level] for other in codes.tolist() if other[:level] == row[:level]})
            logit_BK = logit_NK.view(num_users, num_items, -1)[:, item].double()
            total_NI[:, item] += logit_BK[:, row[level]] - logit_BK[:, among].logsumexp(1)
    return total_NI


@pytest.mark.parametrize("normalise", ["all", "children"])
def test_a_beam_as_wide_as_the_catalogue_has_the_probabilities_of_training(code_model, toy_dataset, normalise):
    codes = drawn_codes(code_model.config.code_sizes)
    trie = CodeTrie.build(codes, code_model.config.code_sizes)
    histories, states, limits = requests(code_model, toy_dataset)
    exact_BI = teacher_forced(code_model, histories, states, limits, codes, trie, normalise)
    assert exact_BI.std(0).min() > 1e-3  # users differ
    retriever = GenerativeRetriever(code_model, trie, BeamConfig(widths=(30,), normalise=normalise))
    torch.testing.assert_close(retriever.scores(states, **limits).double(), exact_BI, atol=1e-5, rtol=0)
    hits = retriever.search(states, 30, **limits)
    assert (hits.num_found_Q == 30).all() and (hits.reachable_Q == 30).all()
    torch.testing.assert_close(hits.scores_QK.double(), exact_BI.gather(1, hits.ids_QK), atol=1e-5, rtol=0)
    assert torch.equal(hits.ids_QK.sort(1).values, torch.arange(30).expand(8, -1))
    best_BI = exact_BI.sort(1, descending=True).values
    torch.testing.assert_close(hits.scores_QK.double(), best_BI, atol=1e-5, rtol=0)
    one_of_each_leaf = trie.item_P[trie.levels[-1].start_N1[:-1].long()].long()
    total_B = hits.scores_QK.exp().gather(1, hits.ids_QK.argsort(1)[:, one_of_each_leaf]).sum(1)
    if normalise == "all":
        assert (total_B < 0.99).all()  # the rest belongs to codes of no item
    else:
        torch.testing.assert_close(total_B, torch.ones(8))


def both(model):
    codes = drawn_codes(model.config.code_sizes)
    trie = CodeTrie.build(codes, model.config.code_sizes).without(torch.tensor([3, 17]))
    narrow = BeamConfig(widths=(3, 6, 8), num_groups=2)
    return (
        GenerativeRetriever(model, trie, BeamConfig(widths=(30,))),
        GenerativeRetriever(model, trie, narrow),
        ParallelRetriever(model),
    )


def excluded():
    return torch.stack([torch.tensor([request, 29 - request, 12, -1]) for request in range(8)])


def same(hits, other):
    assert torch.equal(hits.ids_QK, other.ids_QK)
    torch.testing.assert_close(hits.scores_QK, other.scores_QK, atol=1e-5, rtol=0)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_request_gets_alone_what_it_gets_in_a_batch(code_model, toy_dataset, which):
    retriever = both(code_model)[which]
    histories, states, limits = requests(code_model, toy_dataset)
    together = retriever.search(states, 6, exclude_QE=excluded(), **limits)
    for request, history in enumerate(histories):
        one = {name: value[request : request + 1] for name, value in limits.items()}
        alone = retriever.search(code_model.encode([history]), 6, exclude_QE=excluded()[request : request + 1], **one)
        same(alone, replace(together, ids_QK=together.ids_QK[[request]], scores_QK=together.scores_QK[[request]]))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_permuting_requests_permutes_lists(code_model, toy_dataset, which):
    retriever = both(code_model)[which]
    _, states, limits = requests(code_model, toy_dataset)
    hits = retriever.search(states, 6, exclude_QE=excluded(), **limits)
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    moved = retriever.search(
        states.select(order), 6, exclude_QE=excluded()[order], **{name: value[order] for name, value in limits.items()}
    )
    same(moved, replace(hits, ids_QK=hits.ids_QK[order], scores_QK=hits.scores_QK[order]))
    assert len({tuple(row) for row in hits.ids_QK.tolist()}) > 4  # lists differ


@pytest.mark.parametrize("which", [0, 1, 2])
def test_padding_of_histories_changes_nothing(code_model, toy_dataset, which):
    retriever = both(code_model)[which]
    _, states, limits = requests(code_model, toy_dataset)
    hits = retriever.search(states, 6, **limits)
    rows = states.cache[0][0].shape[1]
    pad_BL = torch.arange(rows + 5) >= states.num_rows_B[:, None]
    padded = [
        tuple(
            torch.nn.functional.pad(part, (0, 0, 0, 0, 0, 5)).masked_fill(pad_BL[..., None, None], 1e4) for part in pair
        )
        for pair in states.cache
    ]
    assert pad_BL[:, :rows].any()
    same(retriever.search(replace(states, cache=padded), 6, **limits), hits)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_searching_again_gives_the_same_whatever_the_random_state(code_model, toy_dataset, which):
    retriever = both(code_model)[which]
    _, states, limits = requests(code_model, toy_dataset)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(retriever.search(states, 6, **limits))
    assert torch.equal(found[0].ids_QK, found[1].ids_QK) and torch.equal(found[0].scores_QK, found[1].scores_QK)


def test_many_requests_of_the_real_decoder_get_legal_items_alone(code_model, toy_dataset):
    trie = CodeTrie.build(drawn_codes(code_model.config.code_sizes), code_model.config.code_sizes)
    trie = trie.without(torch.tensor([3, 17, 29]))
    _, states, _ = requests(code_model, toy_dataset)
    retriever = GenerativeRetriever(code_model, trie, BeamConfig(widths=(4, 6), least=2, mass=0.95))
    states = states.select(torch.arange(8).repeat(125))
    generator = torch.Generator().manual_seed(0)
    limits = {"at_B": AT + torch.arange(1000), "surface_B": torch.randint(0, 3, (1000,), generator=generator)}
    allow_N = torch.arange(2, 30)
    exclude_QE = torch.randint(-1, 30, (1000, 12), generator=generator)
    hits = retriever.search(states, 10, exclude_QE=exclude_QE, allow_N=allow_N, **limits)
    for ids, out, found, reachable in zip(
        hits.ids_QK.tolist(), exclude_QE.tolist(), hits.num_found_Q, hits.reachable_Q, strict=True
    ):
        legal = set(range(2, 30)) - {3, 17, 29} - set(out)
        assert len(legal) == reachable and found == sum(item >= 0 for item in ids)
        assert len(set(ids[:found])) == found and set(ids[:found]) <= legal and set(ids[found:]) <= {-1}


def test_a_list_holds_k_items_however_narrow_the_beams_asked_for(code_model, toy_dataset):
    trie = CodeTrie.build(drawn_codes(code_model.config.code_sizes), code_model.config.code_sizes)
    _, states, limits = requests(code_model, toy_dataset)
    hits = GenerativeRetriever(code_model, trie, BeamConfig(widths=(1,))).search(
        states, 25, exclude_QE=torch.arange(8)[:, None] + torch.arange(10), **limits
    )
    assert (hits.num_found_Q == 20).all() and (hits.reachable_Q == 20).all() and (hits.ids_QK[:, 20:] == -1).all()


def test_parallel_codes_score_every_item_by_itself_and_ties_go_to_the_smaller_id(code_model, toy_dataset, monkeypatch):
    codes = code_model.codes.of("parallel_codes")
    retriever = ParallelRetriever(code_model)
    _, states, limits = requests(code_model, toy_dataset)
    logp_JBK = code_model.parallel_codes(code_model.query(states, **limits)).detach().double()
    exact_BI = torch.stack([logp_JBK[torch.arange(4), :, row].mean(0) for row in codes], 1)
    hits = retriever.search(states, 30, **limits)
    torch.testing.assert_close(hits.scores_QK.double(), exact_BI.gather(1, hits.ids_QK), atol=1e-5, rtol=0)
    assert len(codes.unique(dim=0)) < 30
    for ids, scores in zip(hits.ids_QK.tolist(), hits.scores_QK.tolist(), strict=True):
        pairs = [(-score, item) for score, item in zip(scores, ids, strict=True)]
        assert pairs == sorted(pairs) and sorted(ids) == list(range(30))
    cut = {"exclude_QE": torch.cat([excluded(), torch.full((8, 1), 99)], 1), "allow_N": torch.arange(4, 30)}
    few = retriever.search(states, 30, **limits, **cut)
    for request, ids in enumerate(few.ids_QK.tolist()):
        legal = [item for item in hits.ids_QK[request].tolist() if item >= 4 and item not in cut["exclude_QE"][request]]
        assert ids == legal + [-1] * (30 - len(legal))
    monkeypatch.setattr(code_catalogue, "_SCORES_AT_ONCE", 70)  # two requests at a time
    same(retriever.search(states, 30, **limits, **cut), few)
