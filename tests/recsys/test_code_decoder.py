"""The decoder of semantic IDs: one prefix at a time, on cached states, gives what training computes at once."""

from __future__ import annotations

import pytest
import torch

from recsys.code_decoder import PackedReader
from recsys.packing import pack_histories

AT = 1_702_000_000


def states_of(model, dataset):
    histories = [dataset.events.history(user, end) for user, end in ((3, 5), (4, 0), (9, 2), (1, 4), (7, 5))]
    states = model.encode(histories)
    return histories, states, torch.full((5,), AT), torch.arange(5) % 3


def test_beams_of_cached_states_have_the_logits_of_training(code_model, toy_dataset):
    histories, states, at_B, surface_B = states_of(code_model, toy_dataset)
    generator = torch.Generator().manual_seed(0)
    # Two beams after the first level, three after the second, in an order that is not their parents'.
    parent = [None, torch.zeros(5, 2, dtype=torch.int64), torch.tensor([[1, 0, 1]] * 5)]
    code = [None, torch.randint(0, 5, (5, 2), generator=generator), torch.randint(0, 4, (5, 3), generator=generator)]
    decoding = code_model.decode(states, at_B, surface_B)
    found = [decoding.logits(*step) for step in zip(parent, code, strict=True)]

    query_BD = code_model.query(states, at_B, surface_B)
    lengths = torch.tensor([len(history) for history in histories])
    order = lengths.argsort(stable=True)
    batch = pack_histories([histories[i] for i in order])
    _, cache = code_model.encode_packed(batch, torch.zeros_like(batch.time_known_T), code_model.items.rows)
    first = code[1].gather(1, parent[2])
    prefixes = torch.stack([first, code[2], torch.zeros_like(first)], -1)
    user_N = torch.arange(5).repeat_interleave(3)
    sequence_N = order.argsort()[user_N]
    read = PackedReader(cache, batch.groups, 5, sequence_N, lengths[user_N])
    with torch.no_grad():
        logits = code_model.code_decoder(query_BD[user_N], prefixes.flatten(0, 1), read)
    for level, beams in enumerate(found):
        wanted = logits[level].view(5, 3, -1)
        mine = (
            beams
            if level == 2
            else beams[:, [0, 0, 0]]
            if level == 0
            else beams.gather(1, parent[2][..., None].expand(-1, -1, beams.shape[2]))
        )
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-5)
    assert found[2].std(1).min() > 1e-3  # beams differ


def test_logits_do_not_depend_on_who_else_is_in_the_batch(code_model, toy_dataset):
    histories, states, at_B, surface_B = states_of(code_model, toy_dataset)
    together = code_model.decode(states, at_B, surface_B).logits(None, None)
    for user, history in enumerate(histories):
        alone = code_model.decode(code_model.encode([history]), at_B[:1], surface_B[user : user + 1]).logits(None, None)
        torch.testing.assert_close(alone[0], together[user], atol=1e-5, rtol=1e-5)


def test_a_decoder_needs_keys_and_values(code_model, toy_model, toy_dataset):
    histories, _, at_B, surface_B = states_of(code_model, toy_dataset)
    with pytest.raises(ValueError, match="keep_cache=True"):
        code_model.decode(code_model.encode(histories, keep_cache=False), at_B, surface_B)
    with pytest.raises(ValueError, match="generates no semantic IDs"):
        toy_model.decode(toy_model.encode(histories), at_B, surface_B)
