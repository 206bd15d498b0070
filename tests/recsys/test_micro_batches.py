"""Micro-batches of candidates and a kept table of item vectors change no result."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.events import History
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig

NUM_ITEMS, AT = 40, 1_700_000_000
KINDS = [
    ("softmax", {}),
    ("hstu", {}),
    ("ligr", {"time_encoding": "rotary"}),
    ("hstu", {"time_encoding": "both", "position_bias": True, "layout": "interleaved"}),
]


def make_model(block: str, changes: dict) -> UnifiedModel:
    torch.manual_seed(0)
    config = ModelConfig(
        num_items=NUM_ITEMS, num_actions=3, num_surfaces=2, positive_mask=1, content_dim=5, dim=16, window=16,
        block=block, **changes,
    )  # fmt: skip
    model = UnifiedModel(config)
    for parameter in model.parameters():  # far from the small initial values, so that every path carries weight
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    model.items.set_catalogue(torch.randn(NUM_ITEMS, 5), torch.arange(NUM_ITEMS) % 7 > 0)
    return model.eval()


def make_history(length: int) -> History:
    rng = np.random.default_rng(length)
    known = rng.integers(0, 8, length)
    return History(
        rng.integers(-1, NUM_ITEMS, length), AT - 10**6 + np.sort(rng.integers(0, 10**6, length)),
        known & rng.integers(0, 8, length), known, rng.integers(0, 2, length), rng.random(length) > 0.2,
    )  # fmt: skip


@pytest.mark.parametrize(("block", "changes"), KINDS)
def test_micro_batches_of_any_size_give_the_same_logits(block: str, changes: dict):
    model = make_model(block, changes)
    states = model.encode([make_history(n) for n in (0, 5, 30)])
    item_BC = torch.arange(3 * 23).view(3, 23) % NUM_ITEMS
    at_B, surface_BC = torch.full((3,), AT), item_BC % 2
    whole = model.rank(states, item_BC, at_B, surface_BC)
    for micro_batch in (1, 2, 7, 3 * 22, 3 * 23, 1000):
        model.micro_batch = micro_batch
        assert torch.allclose(model.rank(states, item_BC, at_B, surface_BC), whole, atol=1e-5)
    assert model.rank(states, item_BC[:, :0], at_B, surface_BC[:, :0]).shape == (3, 0, 3)
    assert whole.std() > 0.05


@pytest.mark.parametrize(("block", "changes"), KINDS)
def test_a_kept_table_of_items_is_what_is_looked_up(block: str, changes: dict):
    model = make_model(block, changes)
    table_ID = model.items.table().detach()
    histories = [make_history(n) for n in (0, 5, 30)]
    item_BC = torch.tensor([[-1, 0, 7], [39, 3, 3], [14, -1, 21]])
    at_B, surface_BC = torch.full((3,), AT), torch.zeros_like(item_BC)
    fresh, kept = model.encode(histories), model.encode(histories, item_ID=table_ID)
    assert torch.allclose(fresh.last_BD, kept.last_BD, atol=1e-6)
    wanted = model.rank(fresh, item_BC, at_B, surface_BC)
    assert torch.allclose(model.rank(kept, item_BC, at_B, surface_BC, None, table_ID), wanted, atol=1e-5)
