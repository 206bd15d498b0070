"""The head of sets of codes: queries that do not see each other, the same on packed batches and on cached states."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from recsys.code_decoder import PackedReader, StateReader
from recsys.model_config import ModelConfig
from recsys.packing import pack_histories
from recsys.parallel_codes import code_scores

AT = 1_702_000_000


@pytest.fixture
def request_of(code_model, toy_dataset):
    """Histories (one of them empty), states and queries of five requests."""
    histories = [toy_dataset.events.history(user, end) for user, end in ((3, 5), (4, 0), (9, 2), (1, 4), (7, 5))]
    states = code_model.encode(histories)
    return histories, states, code_model.query(states, torch.full((5,), AT), torch.arange(5) % 3).detach()


@torch.no_grad()
def test_packed_rows_have_the_probabilities_of_cached_states(code_model, request_of):
    histories, states, query_BD = request_of
    logp_JBK = code_model.set_codes(query_BD, StateReader(states))
    lengths = torch.tensor([len(history) for history in histories])
    order = lengths.argsort(stable=True)
    batch = pack_histories([histories[i] for i in order])
    _, cache = code_model.encode_packed(batch, torch.zeros_like(batch.time_known_T), code_model.items.rows)
    # Every request twice, last first, among rows that see less of the same histories.
    user_N = torch.tensor([4, 3, 2, 1, 0, 0, 1, 2, 3, 4])
    visible_N = lengths[user_N]
    visible_N[5:] -= (visible_N[5:] > 0).long()
    read = PackedReader(cache, batch.groups, 5, order.argsort()[user_N], visible_N)
    packed_JNK = code_model.set_codes(query_BD[user_N], read)
    torch.testing.assert_close(packed_JNK[:, :5], logp_JBK.flip(1), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(packed_JNK[0, 9], packed_JNK[0, 0], atol=1e-4)  # one event less is another answer


@torch.no_grad()
def test_a_query_does_not_depend_on_the_others(code_model, request_of):
    _, states, query_BD = request_of
    head, read = code_model.set_codes, StateReader(states)
    before_JBK = head(query_BD, read)
    kept = head.token_JD[1].clone()
    try:
        head.token_JD[1] = kept.flip(0)
        after_JBK = head(query_BD, read)
    finally:
        head.token_JD[1] = kept
    torch.testing.assert_close(after_JBK[[0, 2]], before_JBK[[0, 2]], atol=1e-6, rtol=0)
    assert not torch.allclose(after_JBK[1, :, :5], before_JBK[1, :, :5], atol=1e-4)


@torch.no_grad()
def test_each_codebook_has_probabilities_of_its_own_codes_alone(code_model, request_of):
    _, states, query_BD = request_of
    logp_JBK = code_model.set_codes(query_BD, StateReader(states))
    assert logp_JBK.shape == (3, 5, 5)
    torch.testing.assert_close(logp_JBK.exp().sum(2), torch.ones(3, 5))
    for place, size in enumerate(code_model.config.set_sizes):
        assert torch.isfinite(logp_JBK[place, :, :size]).all()
        assert (logp_JBK[place, :, size:] == -torch.inf).all()


@torch.no_grad()
def test_the_loss_is_minus_the_score_of_the_targets(code_model, request_of):
    _, states, query_BD = request_of
    code_NJ = torch.tensor([[0, 4, 1], [2, 0, 0], [1, 3, 1], [0, 0, 0], [2, 4, 1]])
    score_NN = code_scores(code_model.set_codes(query_BD, StateReader(states)), code_NJ)
    loss = code_model.set_codes.loss(query_BD, code_NJ, StateReader(states))
    torch.testing.assert_close(loss, -score_NN.diagonal().mean())


def test_the_loss_teaches_every_part_of_the_head(code_model, request_of):
    _, states, query_BD = request_of
    code_NJ = torch.tensor([[0, 4, 1], [2, 0, 0], [1, 3, 1], [0, 0, 0], [2, 4, 1]])
    parameters = dict(code_model.set_codes.named_parameters())
    loss = code_model.set_codes.loss(query_BD, code_NJ, StateReader(states))
    for name, slope in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
        assert slope.abs().max() > 0, name


def test_configurations_written_before_the_head_load(code_model):
    values = code_model.config.to_dict()
    assert ModelConfig.from_dict(values) == code_model.config
    for name in ("set_sizes", "set_blocks", "code_children"):
        del values[name]
    assert ModelConfig.from_dict(values) == dataclasses.replace(code_model.config, set_sizes=(), set_blocks=1)
