"""The target-aware loss against one written row by row, and what it changes of a training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from recsys.attention import equal_length_groups
from recsys.errors import InputError
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.objective import Objective
from recsys.pipelines.data_module import PreparedData
from recsys.pipelines.unified_module import build_network
from recsys.target_aware import TargetAware, drawn_negatives

CONFIG = ModelConfig(num_items=9, num_actions=1, num_surfaces=1, positive_mask=1, dim=6, target_aware=1.0)


def by_hand(module: TargetAware, z: torch.Tensor, offsets: list[int], at: int, vector: torch.Tensor) -> torch.Tensor:
    """The score of one candidate of one request."""
    start = max(offset for offset in offsets if offset <= at)
    rows = z[start : at + 1]
    attention = ((module.key(rows) @ module.query(vector)) * len(vector) ** -0.5).softmax(0)
    return (attention[:, None] * module.value(rows)).sum(0) @ vector


def made_up() -> tuple[TargetAware, torch.Tensor, torch.Tensor, list[int]]:
    torch.manual_seed(0)
    module = TargetAware(CONFIG)
    for layer in (module.query, module.key, module.value):
        torch.nn.init.normal_(layer.weight, std=0.7)
    return module, torch.randn(10, 6, requires_grad=True), torch.randn(9, 6, requires_grad=True), [0, 1, 4, 7]


def test_scores_are_those_of_attention_inside_the_own_sequence_up_to_the_request():
    module, z, table, offsets = made_up()
    at, items = torch.tensor([0, 2, 3, 9, 4]), torch.randint(0, 9, (5, 3))
    scores = module(z, at, table[items], equal_length_groups([1, 3, 3, 3]))
    wanted = torch.stack(
        [
            torch.stack([by_hand(module, z, offsets, int(t), table[i]) for i in row])
            for t, row in zip(at, items, strict=True)
        ]
    )
    assert torch.allclose(scores, wanted, atol=1e-5)
    weight = torch.randn(5, 3)
    inputs = [z, table, module.query.weight, module.key.weight, module.value.weight]
    ours, theirs = (torch.autograd.grad((weight * out).sum(), inputs) for out in (scores, wanted))
    for one, other in zip(ours, theirs, strict=True):
        assert one.any() and torch.allclose(one, other, atol=1e-5)


def test_the_loss_is_a_softmax_over_the_target_and_its_negatives(monkeypatch):
    module, z, table, offsets = made_up()
    at, target = torch.tensor([1, 6, 8]), torch.tensor([4, 0, 7])
    negatives = torch.tensor([[1, 2, 4], [3, 3, 5], [8, 1, 2]])  # 4 is the target of its row
    monkeypatch.setattr("recsys.target_aware.drawn_negatives", lambda *_: negatives)
    groups = equal_length_groups([1, 3, 3, 3])
    loss = module.loss(z, at, torch.zeros(3, 6), target, torch.arange(9), lambda items: table[items], groups)
    wanted = torch.zeros(())
    for t, own, others in zip(at.tolist(), target.tolist(), negatives.tolist(), strict=True):
        seen = [own, *(item for item in others if item != own)]
        scores = torch.stack([by_hand(module, z, offsets, t, table[item]) for item in seen])
        wanted = wanted - scores.log_softmax(0)[0] / 3
    assert torch.allclose(loss, wanted, atol=1e-5)
    nothing = torch.zeros(0, dtype=torch.int64)
    empty = module.loss(z, nothing, z[:0], nothing, torch.arange(9), lambda items: table[items], groups)
    assert empty == 0 and empty.requires_grad


def test_half_of_the_negatives_are_hard_and_none_is_untrained():
    torch.manual_seed(1)
    table, trained = torch.randn(400, 6), torch.arange(0, 400, 2)
    query, target = torch.randn(50, 6), trained[torch.randint(200, (50,))]
    drawn = drawn_negatives(query, target, trained, lambda items: table[items], 8)
    assert drawn.shape == (50, 8) and (drawn % 2 == 0).all()
    hard, even = drawn[:, :4], drawn[:, 4:]
    assert not (hard == target[:, None]).any() and all(len(set(row)) == 4 for row in hard.tolist())
    scores = query @ table.T
    assert (scores.gather(1, hard).min(1).values > scores[:, trained].quantile(0.9, dim=1)).float().mean() > 0.8
    assert abs(scores.gather(1, even).mean() - scores[:, trained].mean()) < 0.5
    few = drawn_negatives(query, torch.zeros(50, dtype=torch.int64), trained[:1], lambda items: table[items], 8)
    assert not few.any(), "a catalogue of one item"


def steps(dataset: Any, changes: dict[str, Any], num_steps: int = 3) -> tuple[UnifiedModel, list[Any]]:
    data = PreparedData(str(dataset.path), batch_tokens=200)
    model = build_network(data, {"dim": 16, **changes})
    objective = Objective(model, torch.from_numpy(dataset.train_item_counts()))
    examples = data.examples(model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    seen = []
    for step in range(num_steps):
        torch.manual_seed(step)
        losses = objective(examples.batch(step))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        seen.append(losses)
    return model, seen


def test_switched_off_nothing_changes(toy_dataset):
    """The same bytes as with a model that never had the option: its number of negatives has no effect."""
    plain, _ = steps(toy_dataset, {})
    other, _ = steps(toy_dataset, {"target_aware": 0.0, "target_aware_negatives": 3})
    assert plain.target_aware is None and not any("target_aware" in name for name in plain.state_dict())
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    # On, the first step's other losses are still the same: what is drawn is drawn after them.
    off, on = steps(toy_dataset, {}, 1)[1][0], steps(toy_dataset, {"target_aware": 0.5}, 1)[1][0]
    assert torch.equal(off.item, on.item) and torch.equal(off.action, on.action) and off.total != on.total


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": "mam"},
        {"layout": "lagged"},
        {"layout": "interleaved", "retrieval_loss": "sampled"},
        {"block": "hstu", "score": "cosine"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_it_is_learned_with_packed_batches(toy_dataset, changes):
    model, seen = steps(toy_dataset, {"target_aware": 1.0, "dropout": 0.0, "mask_prob": 0.0, **changes}, 60)
    assert model.target_aware is not None
    extra = [float(losses.total.detach() - losses.item - losses.action) for losses in seen]
    assert sum(extra[-5:]) < sum(extra[:5]) - 0.5
    for parameter in (*model.target_aware.parameters(), *model.encoder.parameters()):
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()
    assert all(p.grad is not None and p.grad.any() for p in model.target_aware.parameters())


def test_a_target_is_not_seen_by_its_own_request(toy_dataset):
    """Events after the request change no score of it."""
    data = PreparedData(str(toy_dataset.path), batch_tokens=200)
    model = build_network(data, {"dim": 16, "target_aware": 1.0}).eval()
    batch = data.examples(model.config).batch(0)
    assert model.target_aware is not None
    cut = int(batch.events.offsets_S1[-2]) + 1  # the first event of the last, longest sequence
    changed = replace(batch.events, item_T=batch.events.item_T.clone())
    changed.item_T[cut + 1 :] = (changed.item_T[cut + 1 :] + 1) % toy_dataset.num_items
    at, candidates = torch.tensor([cut]), torch.arange(5)[None]
    scores = []
    for events in (batch.events, changed):
        z, _ = model.encode_packed(events, torch.zeros_like(events.time_known_T), model.items.rows)
        scores.append(model.target_aware(z, at, model.items.rows(candidates), events.groups))
    assert torch.allclose(*scores, atol=1e-6) and len(batch.events.item_T) > cut + 1


def test_impossible_settings_are_said():
    with pytest.raises(InputError, match="model.target_aware must not be negative"):
        replace(CONFIG, target_aware=-0.1)
    with pytest.raises(InputError, match="model.target_aware_negatives must be positive"):
        replace(CONFIG, target_aware_negatives=0)
    old = {name: value for name, value in CONFIG.to_dict().items() if not name.startswith("target_aware")}
    assert ModelConfig.from_dict(old).target_aware == 0.0
