"""Heads of semantic IDs before training: they say what dense retrieval says, as far as codes can."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from recsys.code_decoder import StateReader
from recsys.code_vectors import num_pairs
from recsys.index.code_trie import CodeTrie
from recsys.model import UnifiedModel
from recsys.retrieval.beam_config import BeamConfig
from recsys.retrieval.generative import GenerativeRetriever

AT = 1_702_000_000


@pytest.fixture
def started(code_model, toy_dataset):
    """The model with heads that score by inner products, fresh and started from its item vectors."""
    code_IL = code_model.codes.of("codes").clone()
    code_IL[:, 2] = 0
    config = replace(
        code_model.config, code_score="dot", code_children=True, code_pairs=num_pairs(code_IL, (5, 4, 3)),
    )  # fmt: skip
    torch.manual_seed(0)
    model = UnifiedModel(config)
    heads = ("code_decoder.", "parallel_codes.", "set_codes.")
    model.load_state_dict({n: v for n, v in code_model.state_dict().items() if not n.startswith(heads)}, strict=False)
    model.codes.of("codes").copy_(code_IL)
    model.eval()
    with torch.no_grad():
        for layer in model.code_decoder.out:
            layer.weight.zero_()
        for kind, head in (
            ("codes", model.code_decoder), ("parallel_codes", model.parallel_codes), ("set_codes", model.set_codes),
        ):  # fmt: skip
            head.start_from(model.item_vectors(), model.codes.of(kind).long())
    states = model.encode([toy_dataset.events.history(user, user) for user in range(8)])
    return model, states, {"at_B": torch.full((8,), AT), "surface_B": torch.arange(8) % 3}


def test_a_fresh_decoder_gives_every_pair_of_codes_what_the_mean_vectors_of_its_items_say(started):
    model, states, request = started
    code_IL, vectors_ID = model.codes.of("codes").long(), model.item_vectors()
    trie = CodeTrie.build(code_IL, model.config.code_sizes)
    found_BI = GenerativeRetriever(model, trie, BeamConfig(normalise="children")).scores(states, **request)
    key_I = code_IL[:, 0] * 4 + code_IL[:, 1]
    query_BD = model.query(states, **request)
    mass = torch.stack(
        [query_BD @ vectors_ID[key_I == key].mean(0) + (key_I == key).sum().log() for key in key_I.unique()], 1
    )
    place_I = torch.searchsorted(key_I.unique(), key_I)
    torch.testing.assert_close(found_BI, mass.log_softmax(1)[:, place_I], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["parallel_codes", "set_codes"])
def test_fresh_heads_order_items_as_the_sums_of_their_codes_vectors(started, kind):
    model, states, request = started
    query_BD = model.query(states, **request)
    code_IJ = model.codes.of(kind).long()
    head = getattr(model, kind)
    with torch.no_grad():
        if kind == "parallel_codes":
            logp_JBK, query_JBD = head(query_BD), head.queries(query_BD)
        else:
            logp_JBK = head(query_BD, StateReader(states))
            query_JBD = head.read_queries(query_BD, StateReader(states))
        logit_BI = head.item_logits(query_JBD, code_IJ)
        vector_ID = sum(head.codes_JKD[j, code_IJ[:, j]] for j in range(code_IJ.shape[1]))
    torch.testing.assert_close(logit_BI, query_BD @ vector_ID.T, atol=1e-4, rtol=1e-4)
    short_BI = head.item_logits(query_JBD, code_IJ, torch.bfloat16)
    torch.testing.assert_close(short_BI, logit_BI, atol=0.02 * float(logit_BI.abs().max()), rtol=0.0)
    score_BI = sum(logp_JBK[j][:, code_IJ[:, j]] for j in range(code_IJ.shape[1]))
    torch.testing.assert_close(
        score_BI - score_BI.mean(1, keepdim=True), logit_BI - logit_BI.mean(1, keepdim=True), atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_a_pair_that_came_later_is_known_by_its_codes(started):
    model, states, request = started
    decoder, query_BD = model.code_decoder, model.query(states, **request)
    pairs = decoder.pair_scores(query_BD)
    known = set((model.codes.of("codes")[:, 0] * 4 + model.codes.of("codes")[:, 1]).tolist())
    first_BW = torch.arange(5).expand(8, -1)
    prior_BWK = decoder.prior(1, query_BD, pairs, first_BW)
    by_codes = (query_BD @ decoder.codebook(0).T)[:, :, None] + (query_BD @ decoder.codebook(1).T)[:, None]
    new = torch.tensor([[first * 4 + second not in known for second in range(4)] for first in range(5)])
    assert bool(new.any()) and not bool(new.all())
    torch.testing.assert_close(prior_BWK[:, new], by_codes[:, new])


@torch.no_grad()
def test_products_of_short_factors_come_in_few_shapes(started, monkeypatch):
    model, states, request = started
    query_JBD = model.parallel_codes.queries(model.query(states, **request))
    code_IJ, shapes, plain = model.codes.of("parallel_codes").long(), set(), torch.Tensor.__matmul__

    def product(one, other):
        shapes.add((one.dtype, one.shape[0], other.shape[-1]))
        return plain(one, other)

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    for num_items in (5, 9, 12):
        found = model.parallel_codes.item_logits(query_JBD, code_IJ[:num_items], torch.bfloat16)
        assert found.shape == (8, num_items) and found.dtype == torch.float32
    assert shapes == {(torch.bfloat16, 256, 256)}


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_training_reads_pairs_in_blocks_of_rows_as_all_at_once(started, rows, monkeypatch):
    model, states, request = started
    decoder, query_BD = model.code_decoder, model.query(states, **request)
    code_BL = model.codes.of("codes")[:8].long()
    pair_BP = decoder.pair_scores(query_BD)
    asked = []
    monkeypatch.setattr(decoder, "pair_scores", lambda query: (asked.append(len(query)), pair_BP[:0])[1])
    monkeypatch.setattr(decoder, "prior", lambda level, query, pairs, first: query[:, None, : decoder.sizes[level]] * 0)
    monkeypatch.setattr("recsys.code_decoder._PAIR_SCORES_CPU", rows * pair_BP.shape[1])
    plain = decoder(query_BD, code_BL, StateReader(states))
    assert asked == [min(rows, 8 - low) for low in range(0, 8, rows)]
    monkeypatch.undo()
    monkeypatch.setattr("recsys.code_decoder._PAIR_SCORES_CPU", rows * pair_BP.shape[1])
    found = decoder(query_BD, code_BL, StateReader(states))
    for level, (with_pairs, without) in enumerate(zip(found, plain, strict=True)):
        prior_B1K = decoder.prior(level, query_BD, pair_BP, code_BL[:, :1])
        torch.testing.assert_close(with_pairs, without + prior_B1K[:, 0], atol=1e-5, rtol=1e-5)
