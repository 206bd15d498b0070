"""Models with random weights and random histories for tests of user states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from recsys.events import History
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.user_state import UserStates

NUM_ITEMS, NUM_ACTIONS, NUM_SURFACES = 40, 3, 3
START = 1_600_000_000
MakeModel = Callable[..., UnifiedModel]
MakeHistory = Callable[..., History]


@pytest.fixture(scope="session")
def state_model() -> MakeModel:
    """Make a model far from its initial values, so that every path carries weight."""

    def make(*, seed: int = 0, **changes: Any) -> UnifiedModel:
        config = ModelConfig(
            num_items=NUM_ITEMS, num_actions=NUM_ACTIONS, num_surfaces=NUM_SURFACES, positive_mask=0b011,
            content_dim=5, dim=16, num_heads=2, window=16, block="hstu",
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = UnifiedModel(replace(config, **changes))
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, 0.0, 0.3)
            model.items.set_catalogue(torch.randn(NUM_ITEMS, 5), torch.arange(NUM_ITEMS) % 7 > 0)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def state_history() -> MakeHistory:
    """Make random events, with unknown items, unknown actions and unknown times among them."""

    def make(length: int, seed: int = 0, *, start: int = START, vouched: float = 0.8) -> History:
        rng = np.random.default_rng(seed)
        known = rng.integers(0, 2**NUM_ACTIONS, length)
        return History(
            item=rng.integers(-1, NUM_ITEMS, length),
            timestamp=start + np.cumsum(rng.integers(0, 10**5, length)),
            yes=known & rng.integers(0, 2**NUM_ACTIONS, length),
            known=known,
            surface=rng.integers(0, NUM_SURFACES, length),
            time_known=rng.random(length) < vouched,
        )

    return make


@pytest.fixture(scope="session")
def assert_same_states() -> Callable[..., None]:
    """Compare what later stages read of two batches of states."""

    def check(model: UnifiedModel, ours: UserStates, theirs: UserStates, atol: float = 1e-5) -> None:
        for name in ("num_rows_B", "num_events_B", "first_B", "last_time_B", "positive_age_B", "recent_BM", "past_BX",
                     "time_BL", "time_known_BL"):  # fmt: skip
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        hidden_B = theirs.last_actions.hidden  # of an empty history, whose last action nobody reads
        assert torch.equal(ours.last_actions.hidden, hidden_B)
        for name in ("yes", "known"):
            pair = (getattr(states.last_actions, name).masked_fill(hidden_B, 0) for states in (ours, theirs))
            assert torch.equal(*pair), name
        assert torch.allclose(ours.user_BD, theirs.user_BD)
        users = ours.num_users
        draw = torch.Generator().manual_seed(users)
        item_BC = torch.randint(0, NUM_ITEMS, (users, 6), generator=draw)
        surface_BC = torch.randint(0, NUM_SURFACES, (users, 6), generator=draw)
        at_B = torch.full((users,), START + 10**7)
        query = [model.query(states, at_B, surface_BC[:, 0]) for states in (ours, theirs)]
        cosine_B = torch.nn.functional.cosine_similarity(*query)
        assert torch.allclose(cosine_B, torch.ones(users), atol=atol)
        assert bool(ours.cache) == bool(theirs.cache)
        if ours.cache and model.action_head is not None and not model.config.past_rates:
            chance = [model.rank(states, item_BC, at_B, surface_BC).sigmoid() for states in (ours, theirs)]
            assert torch.allclose(*chance, atol=atol)
        for ours_KV, theirs_KV in zip(ours.cache, theirs.cache, strict=True):
            for mine, other in zip(ours_KV, theirs_KV, strict=True):
                assert mine.shape == other.shape
                assert torch.allclose(mine, other, atol=10 * atol, rtol=10 * atol)

    return check
