"""One function, however it is computed: alone or in company, whole or continued."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.events import History
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig

NUM_ITEMS, NUM_ACTIONS = 40, 3
LAYOUTS = ("mam", "lagged", "interleaved")
VARIANTS = [(block, layout, {}) for block in ("softmax", "hstu", "ligr") for layout in LAYOUTS]
VARIANTS += [
    ("softmax", "mam", {"time_encoding": "rotary"}),
    ("softmax", "mam", {"time_encoding": "none"}),
    ("hstu", "interleaved", {"time_encoding": "both", "position_bias": True}),
    ("ligr", "lagged", {"time_encoding": "rotary", "position_bias": True}),
    ("softmax", "interleaved", {"time_encoding": "none", "position_bias": True, "positive_recency": True}),
    ("softmax", "mam", {"positive_recency": True, "score": "cosine"}),
    ("softmax", "lagged", {"positive_recency": True}),
    ("hstu", "interleaved", {"position_bias": True, "time_encoding": "both"}),
]


def make_model(block: str = "softmax", layout: str = "mam", **changes) -> UnifiedModel:
    torch.manual_seed(0)
    config = ModelConfig(
        num_items=NUM_ITEMS, num_actions=NUM_ACTIONS, num_surfaces=3, positive_mask=0b011, content_dim=5,
        dim=16, num_heads=2, window=16, block=block, layout=layout,
    )  # fmt: skip
    model = UnifiedModel(replace(config, **changes))
    for parameter in model.parameters():  # far from the small initial values, so that every path carries weight
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    model.items.set_catalogue(torch.randn(NUM_ITEMS, 5), torch.arange(NUM_ITEMS) % 7 > 0)
    return model.eval()


def make_history(length: int, seed: int = 0) -> History:
    rng = np.random.default_rng(seed)
    known = rng.integers(0, 2**NUM_ACTIONS, length)
    return History(
        item=rng.integers(-1, NUM_ITEMS, length),
        timestamp=1_600_000_000 + np.sort(rng.integers(0, 10**6, length)),
        yes=known & rng.integers(0, 2**NUM_ACTIONS, length),
        known=known,
        surface=rng.integers(0, 3, length),
        time_known=rng.random(length) > 0.2,
    )


def piece(history: History, low: int, high: int) -> History:
    return History(
        *(getattr(history, n)[low:high] for n in ("item", "timestamp", "yes", "known", "surface", "time_known"))
    )


def requests(num_users: int, columns: int, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    item = torch.randint(0, NUM_ITEMS, (num_users, columns), generator=generator)
    surface = torch.randint(0, 3, (num_users, columns), generator=generator)
    return item, torch.full((num_users,), 1_600_000_000 + 2 * 10**6), surface


def probs(model, states, item, at, surface):
    return model.rank(states, item, at, surface).sigmoid()


@pytest.mark.parametrize(("block", "layout", "changes"), VARIANTS)
def test_candidate_alone_scores_as_in_a_slate_and_permutes(block, layout, changes):
    model = make_model(block, layout, **changes)
    states = model.encode([make_history(n, n) for n in (0, 5, 16, 30)])
    item, at, surface = requests(4, 9)
    together = probs(model, states, item, at, surface)
    alone = torch.cat([probs(model, states, item[:, c : c + 1], at, surface[:, c : c + 1]) for c in range(9)], 1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together[:, order], probs(model, states, item[:, order], at, surface[:, order]), atol=1e-5)
    assert together.std() > 0.05


@pytest.mark.parametrize(("block", "layout", "changes"), VARIANTS)
def test_delta_forward_equals_one_longer_sequence(block, layout, changes):
    """A candidate is a last event whose action is hidden: prefill plus delta is the full forward pass."""
    model = make_model(block, layout, **changes)
    history = make_history(13, 4)
    longer = make_history(14, 4)
    at = int(history.timestamp[-1]) + 5000
    for name in ("item", "timestamp", "yes", "known", "surface", "time_known"):
        getattr(longer, name)[:13] = getattr(history, name)
    longer.timestamp[13], longer.time_known[13], longer.item[13], longer.surface[13] = at, True, 7, 2
    batch_hidden = torch.tensor([False] * 13 + [True])
    from recsys.packing import pack_histories

    batch = pack_histories([longer])
    z, _ = model.encode_packed(batch, batch_hidden, model.items.rows)
    z_last = model.layout.action_reads(z)[13:14]
    full = model.action_head(z_last, model.items.rows(torch.tensor([7])))[:, :NUM_ACTIONS].sigmoid()
    states = model.encode([history])
    delta = probs(model, states, torch.tensor([[7]]), torch.tensor([at]), torch.tensor([[2]]))[0]
    assert torch.allclose(full, delta, atol=1e-5)


@pytest.mark.parametrize(("block", "layout", "changes"), VARIANTS)
@pytest.mark.parametrize("lengths", [(9, 12, 0, 16), (20, 22, 3, 3)])
def test_appending_equals_encoding_the_longer_history(block, layout, changes, lengths):
    model = make_model(block, layout, **changes)
    before = (5, 12, 0, 7) if lengths[0] == 9 else (19, 21, 0, 1)
    whole = [make_history(n, 10 + i) for i, n in enumerate(lengths)]
    states = model.encode([h.prefix(n) for h, n in zip(whole, before, strict=True)])
    grown = model.append(states, [piece(h, n, len(h)) for h, n in zip(whole, before, strict=True)])
    fresh = model.encode(whole)
    item, at, surface = requests(4, 6)
    assert torch.equal(grown.recent_BM, fresh.recent_BM)
    assert torch.allclose(probs(model, grown, item, at, surface), probs(model, fresh, item, at, surface), atol=1e-5)
    q_grown, q_fresh = (model.query(s, at, surface[:, 0]) for s in (grown, fresh))
    assert torch.allclose(torch.nn.functional.cosine_similarity(q_grown, q_fresh), torch.ones(4), atol=1e-5)


def test_window_moves_by_strides_and_a_move_refuses_to_append():
    model = make_model()
    history = make_history(21, 3)
    assert [model.config.first_visible(n) for n in (0, 16, 17, 20, 21)] == [0, 0, 4, 4, 8]
    states = model.encode([history.prefix(16)])
    assert model.can_append(states, [1]) == [False]
    with pytest.raises(ValueError, match="its window moves"):
        model.append(states, [piece(history, 16, 17)])
    slid = model.encode([history.prefix(17)])
    only_visible = model.encode([piece(history, 4, 17)])
    item, at, surface = requests(1, 5)
    assert torch.allclose(
        probs(model, slid, item, at, surface), probs(model, only_visible, item, at, surface), atol=1e-5
    )


@pytest.mark.parametrize(("block", "layout", "changes"), VARIANTS)
def test_company_and_padding_do_not_matter(block, layout, changes):
    model = make_model(block, layout, **changes)
    histories = [make_history(n, 20 + n) for n in (3, 16, 1, 0, 8, 8, 33)]
    item, at, surface = requests(7, 4)
    together = model.encode(histories)
    for user, history in enumerate(histories):
        alone = model.encode([history])
        row = slice(user, user + 1)
        a = probs(model, alone, item[row], at[row], surface[row])
        b = probs(model, together, item, at, surface)[row]
        assert torch.allclose(a, b, atol=1e-5)
        query = [model.query(s, at[n], surface[n, 0]) for s, n in ((alone, row), (together, slice(None)))]
        cosine = torch.nn.functional.cosine_similarity(query[0][0], query[1][user], dim=0)
        assert abs(float(cosine) - 1) < 1e-5


def test_hidden_action_and_the_future_never_reach_an_output():
    model = make_model()
    from recsys.packing import pack_histories

    history = make_history(12, 5)
    hidden = torch.zeros(12, dtype=torch.bool)
    hidden[6] = True
    z, _ = model.encode_packed(pack_histories([history]), hidden, model.items.rows)
    history.yes[6:], history.known[6:] = 0b111 & ~history.yes[6:], 0b111
    history.item[7:], history.surface[7:] = 3, 1
    changed, _ = model.encode_packed(pack_histories([history]), hidden, model.items.rows)
    assert torch.equal(z[:7], changed[:7])
    assert not torch.allclose(z[7:], changed[7:])


def test_shown_action_does_reach_its_own_output():
    """The counterpart: what is not hidden is read, so the test above can fail."""
    model = make_model()
    from recsys.packing import pack_histories

    history = make_history(6, 6)
    history.known[3], history.yes[3] = 0b111, 0
    shown = torch.zeros(6, dtype=torch.bool)
    before, _ = model.encode_packed(pack_histories([history]), shown, model.items.rows)
    history.yes[3] = 0b111
    after, _ = model.encode_packed(pack_histories([history]), shown, model.items.rows)
    assert torch.equal(before[:3], after[:3]) and not torch.allclose(before[3], after[3])


def test_request_changes_no_state():
    model = make_model()
    states = model.encode([make_history(9, 8)])
    item, at, surface = requests(1, 4)
    model.query(states, at, surface[:, 0])
    kept = [k.clone() for k, _ in states.cache]
    early, late = probs(model, states, item, at, surface), probs(model, states, item, at + 86_400 * 30, surface)
    assert all(torch.equal(k, c[0]) for k, c in zip(kept, states.cache, strict=True))
    assert not torch.allclose(early, late)


def test_saved_model_answers_the_same(tmp_path):
    model = make_model()
    model.save(tmp_path / "m")
    again = UnifiedModel.load(tmp_path / "m")
    item, at, surface = requests(1, 4)
    history = [make_history(9, 8)]
    assert torch.equal(
        probs(model, model.encode(history), item, at, surface), probs(again, again.encode(history), item, at, surface)
    )
