"""Losses against plain computations, and the model's two ways to read item vectors."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.losses import action_loss, full_softmax_loss_sum, pairwise_loss, sampled_softmax_loss_sum
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.objective import Objective
from recsys.pipelines.data_module import PreparedData
from recsys.pipelines.unified_module import build_network


def test_softmax_in_chunks_is_the_softmax(monkeypatch):
    torch.manual_seed(0)
    query, vectors = torch.randn(13, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    target = torch.randint(0, 9, (13,))
    whole = full_softmax_loss_sum(query, vectors, target)
    by_hand = -(query @ vectors.T).log_softmax(1)[torch.arange(13), target].sum()
    grads = torch.autograd.grad(whole, [query, vectors])
    monkeypatch.setattr("recsys.losses._MAX_LOGITS", 30)
    parts = full_softmax_loss_sum(query, vectors, target)
    assert torch.allclose(whole, by_hand) and torch.allclose(whole, parts)
    for one, other in zip(grads, torch.autograd.grad(parts, [query, vectors]), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_sampled_softmax_with_the_whole_catalogue_is_the_full_one():
    """Every item drawn once and no in-batch repeats: the correction is the same for all and cancels."""
    torch.manual_seed(0)
    query, vectors = torch.randn(1, 4), torch.randn(6, 4)
    target = torch.tensor([2])
    everything = torch.arange(6)
    sampled = sampled_softmax_loss_sum(
        query, vectors[target], target, vectors, everything, torch.zeros(1), torch.zeros(6)
    )
    assert torch.allclose(sampled, full_softmax_loss_sum(query, vectors, target))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_smoothed_full_softmax_is_that_of_torch(smoothing, monkeypatch):
    torch.manual_seed(0)
    query, vectors = torch.randn(13, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    target = torch.randint(0, 9, (13,))
    monkeypatch.setattr("recsys.losses._MAX_LOGITS", 30)
    ours = full_softmax_loss_sum(query, vectors, target, label_smoothing=smoothing)
    torchs = torch.nn.functional.cross_entropy(query @ vectors.T, target, reduction="sum", label_smoothing=smoothing)
    assert torch.allclose(ours, torchs, rtol=1e-5)
    for one, other in zip(
        torch.autograd.grad(2 * ours, [query, vectors]), torch.autograd.grad(2 * torchs, [query, vectors]), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_shared_labels_are_those_of_torch(smoothing, monkeypatch):
    torch.manual_seed(0)
    query, vectors = torch.randn(13, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    label, weight = torch.randint(0, 9, (13, 3)), torch.rand(13, 3)
    label[0] = 5  # one item three times
    weight = weight / weight.sum(1, keepdim=True)
    monkeypatch.setattr("recsys.losses._MAX_LOGITS", 30)
    ours = full_softmax_loss_sum(query, vectors, label, weight, smoothing)
    wanted = torch.zeros(13, 9).scatter_add(1, label, weight)
    logits = query @ vectors.T
    torchs = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum", label_smoothing=smoothing)
    assert torch.allclose(ours, torchs, rtol=1e-5)
    for one, other in zip(
        torch.autograd.grad(2 * ours, [query, vectors]), torch.autograd.grad(2 * torchs, [query, vectors]), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bfloat16_factors_change_loss_and_gradients_by_their_rounding_alone(smoothing, monkeypatch):
    torch.manual_seed(0)
    query, vectors = torch.randn(70, 16, requires_grad=True), torch.randn(300, 16, requires_grad=True)
    label, weight = torch.randint(0, 300, (70, 3)), torch.rand(70, 3).softmax(1)
    monkeypatch.setattr("recsys.losses._MAX_LOGITS", 300 * 32)

    def both(factors):
        loss = full_softmax_loss_sum(query, vectors, label, weight, smoothing, factors)
        return [loss, *torch.autograd.grad(3 * loss, [query, vectors])]

    exact, rounded = both(torch.float32), both(torch.bfloat16)
    assert [part.dtype for part in rounded] == [torch.float32] * 3
    for one, other in zip(rounded, exact, strict=True):
        assert 0 < (one - other).norm() < 0.01 * other.norm()
    with torch.autocast("cpu", torch.bfloat16):
        autocast = both(None)
    assert all(torch.equal(one, other) for one, other in zip(autocast, rounded, strict=True))


def test_smoothed_sampled_softmax_is_that_of_torch_over_what_a_row_sees():
    torch.manual_seed(0)
    query, vectors = torch.randn(3, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    target, negative, log_q = torch.tensor([2, 0, 5]), torch.tensor([1, 2, 3, 4]), torch.randn(6)
    ours = sampled_softmax_loss_sum(
        query, vectors[target], target, vectors[negative], negative, log_q[target], log_q[negative], 0.2
    )
    torchs = torch.zeros(())
    for row, own in enumerate(target.tolist()):
        seen = [own, *(i for i in negative.tolist() if i != own)]
        logits = query[row] @ vectors[seen].T - log_q[seen]
        torchs = torchs + torch.nn.functional.cross_entropy(logits, torch.tensor(0), label_smoothing=0.2)
    assert torch.allclose(ours, torchs, rtol=1e-5)
    for one, other in zip(
        torch.autograd.grad(ours, [query, vectors]), torch.autograd.grad(torchs, [query, vectors]), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-5)


def test_logq_takes_what_is_drawn_more_often_down():
    query, vectors = torch.ones(1, 1), torch.ones(2, 1)
    plain = [torch.zeros(1), torch.zeros(1)]
    popular_negative = [torch.zeros(1), torch.log(torch.tensor([4.0]))]
    one = [vectors[:1], torch.tensor([0]), vectors[1:], torch.tensor([1])]
    assert sampled_softmax_loss_sum(query, *one, *plain).item() == pytest.approx(np.log(2))
    assert sampled_softmax_loss_sum(query, *one, *popular_negative).item() == pytest.approx(np.log(1 + 1 / 4))


def test_action_loss_counts_known_labels_only():
    logits = torch.tensor([[0.0, 2.0], [1.0, -3.0]])
    yes, known = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    first = (np.log(2) + np.log1p(np.exp(1.0))) / 2
    second = np.log1p(np.exp(2.0))
    assert action_loss(logits, yes, known).item() == pytest.approx(first + second, rel=1e-6)


def test_pairwise_loss_pairs_inside_a_slate():
    logits, known = torch.tensor([[1.0], [3.0], [9.0]]), torch.ones(3, 1)
    yes = torch.tensor([[1.0], [0.0], [0.0]])
    loss = pairwise_loss(logits, yes, known, torch.tensor([0, 0, 1]))
    assert loss.item() == pytest.approx(np.log1p(np.exp(2.0)), rel=1e-6)


def test_table_and_rows_are_the_same_vectors(toy_model):
    ids = torch.tensor([[0, 3], [-1, 29]])
    table = toy_model.items.table()
    assert torch.allclose(table[ids], toy_model.items.rows(ids), atol=1e-6)
    assert not table[-1].any() and not toy_model.items.rows(torch.tensor([-1])).any()


def test_item_without_events_has_content_alone(toy_model):
    items = toy_model.items
    kept = items.has_id_I.clone()
    items.has_id_I[4] = False
    try:
        assert torch.allclose(items.rows(torch.tensor(4)), items.project(items.content_IC[4]), atol=1e-6)
        assert torch.allclose(items.table()[4], items.project(items.content_IC[4]), atol=1e-6)
    finally:
        items.has_id_I.copy_(kept)


def layouts_and_losses(block):
    return [
        {"block": block, "layout": layout, "retrieval_loss": loss}
        for layout in ("mam", "lagged", "interleaved")
        for loss in ("full", "sampled")
    ]


@pytest.mark.parametrize(
    "changes",
    [
        *layouts_and_losses("softmax"),
        *layouts_and_losses("hstu"),
        {"block": "ligr", "position_bias": True, "positive_recency": True},
        {"block": "ligr", "retrieval_loss": "sampled", "label_smoothing": 0.1, "score": "cosine"},
        {"block": "hstu", "time_encoding": "both", "position_bias": True, "label_smoothing": 0.1, "crop": 0.5},
        {"time_encoding": "rotary", "score": "cosine"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_training_lowers_both_losses(toy_dataset, changes):
    data = PreparedData(str(toy_dataset.path), batch_tokens=200)
    model = build_network(data, {"dim": 16, "dropout": 0.0, **changes})
    objective = Objective(model, torch.from_numpy(toy_dataset.train_item_counts()))
    examples = data.examples(model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first, last, reached = [], [], set()
    for step in range(60):
        torch.manual_seed(step)
        losses = objective(examples.batch(step))
        optimizer.zero_grad()
        losses.total.backward()
        reached |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
        (first if step < 5 else last if step >= 55 else []).append((float(losses.item), float(losses.action)))
    left = {name for name, _ in model.named_parameters()} - reached
    assert left <= {"action_head.rank_bias.weight"}  # there are no slates
    assert np.mean([i for i, _ in last]) < np.mean([i for i, _ in first]) - 0.1
    assert np.mean([a for _, a in last]) < np.mean([a for _, a in first])


def test_items_without_training_events_stay_out_of_the_denominator(toy_dataset):
    data = PreparedData(str(toy_dataset.path))
    model: UnifiedModel = build_network(data, {"dim": 16, "dropout": 0.0, "id_dropout": 0.0, "mask_prob": 0.0}).eval()
    counts = torch.from_numpy(toy_dataset.train_item_counts()).clone()
    batch = data.examples(model.config).batch(0)
    unused = int(torch.tensor([i for i in range(len(counts)) if not (batch.target_T == i).any()])[0])
    counts[unused] = 0
    before = float(Objective(model, counts)(batch).item)
    with torch.no_grad():
        model.items.ids.weight[unused] += 100.0
    keep = ~(batch.events.item_T == unused).any()
    after = float(Objective(model, counts)(batch).item)
    if keep:
        assert after == pytest.approx(before, rel=1e-5)
    counts[unused] = 1
    assert abs(float(Objective(model, counts)(batch).item) - before) > 1e-3


def test_the_sampler_draws_as_often_as_the_correction_says(toy_model, monkeypatch):
    """Targets that come as often as items train, random negatives evenly: the means of what is drawn in a step."""
    model = UnifiedModel(replace(toy_model.config, retrieval_loss="sampled", num_negatives=24))
    counts = torch.arange(model.config.num_items) ** 2
    objective, drawn, said = Objective(model, counts), torch.zeros(len(counts)), {}

    def seen(query_ND, targets_ND, target_N, negatives_MD, negative_M, log_target_N, log_negative_M, smoothing):
        drawn.index_add_(0, negative_M, torch.ones(len(negative_M)))
        for item, log in zip([*target_N, *negative_M], [*log_target_N, *log_negative_M], strict=True):
            assert said.setdefault(int(item), float(log)) == float(log)
        return query_ND.sum()

    monkeypatch.setattr("recsys.objective.sampled_softmax_loss_sum", seen)
    torch.manual_seed(0)
    for _ in range(200):
        target_N = torch.multinomial(counts.float(), 16, replacement=True)
        objective._item_loss(torch.zeros(16, model.config.dim), target_N, None, model.items.rows)
    assert not drawn[0] and set(said) == set(range(1, len(counts)))
    expected = torch.tensor([said[item] for item in range(1, len(counts))]).exp()
    assert float(expected.sum()) == pytest.approx(24 + 16, rel=1e-4)
    assert torch.allclose(drawn[1:] / 200, expected, rtol=0.15, atol=0.1)


def test_a_place_that_is_not_known_stands_for_the_places_of_training(toy_model):
    head = copy.deepcopy(toy_model.action_head)
    share_P = torch.rand(toy_model.config.max_shown_rank).softmax(0)
    head.set_priors(torch.full((toy_model.config.num_actions,), 0.3), share_P)
    torch.nn.init.normal_(head.rank_bias.weight)
    z, vector = torch.randn(2, 1, toy_model.config.dim).expand(2, len(share_P), -1)
    at_each_PA, anywhere_A = head(z, vector, torch.arange(len(share_P))), head(z, vector)[0]
    assert torch.allclose(share_P @ at_each_PA, anywhere_A, atol=1e-4)
    assert at_each_PA.std(0).min() > 0.1
    assert torch.allclose(head(z[:1], vector[:1], torch.tensor([10**6])), at_each_PA[-1:])  # later ones share it


def test_some_requests_of_training_do_not_say_their_surface(toy_model):
    model = UnifiedModel(replace(toy_model.config, surface_dropout=0.3)).train()
    objective, surface = Objective(model, torch.ones(model.config.num_items)), torch.ones(4000, dtype=torch.int64)
    assert float((objective._partly_hidden(surface) == 0).float().mean()) == pytest.approx(0.3, abs=0.03)
    model.eval()
    assert torch.equal(objective._partly_hidden(surface), surface)


def test_dropout_of_ids_needs_content(toy_model):
    config = replace(toy_model.config, content_dim=0, id_dropout=0.9)
    assert UnifiedModel(config).items.id_dropout == 0.0


def test_an_item_of_a_step_loses_its_id_everywhere_or_nowhere():
    sizes = {"num_items": 5000, "num_actions": 1, "num_surfaces": 1, "positive_mask": 1, "content_dim": 4, "dim": 8}
    model = UnifiedModel(ModelConfig(**sizes, id_dropout=0.3))
    torch.nn.init.normal_(model.items.content_IC)
    every = torch.arange(-1, 5000)
    assert model.items.eval().rows_of_step()(every).equal(model.items.rows(every))
    whole, content = model.items.rows(every), torch.cat([torch.zeros(1, 8), model.items.content_part()])
    lost = []
    for _ in range(20):
        rows = model.items.train().rows_of_step()
        found = rows(every)
        dropped = (found == content).all(1)
        assert torch.equal(torch.where(dropped[:, None], content, whole), found) and dropped[0]
        some = torch.randint(-1, 5000, (7, 3))
        assert torch.equal(rows(some), found[some + 1])
        lost.append(dropped[1:])
    share = torch.stack(lost).float()
    assert float(share.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(share.mean(0).std()) == pytest.approx((0.3 * 0.7 / 20) ** 0.5, rel=0.2)  # others in every step


@pytest.mark.parametrize("loss", ["full", "sampled"])
def test_training_drops_ids_with_either_softmax(toy_dataset, loss):
    """Without any id the loss is that of a model whose ids are zero."""
    data = PreparedData(str(toy_dataset.path))
    settings = {"dim": 16, "dropout": 0.0, "mask_prob": 0.0, "surface_dropout": 0.0, "retrieval_loss": loss}
    model = build_network(data, settings).train()
    objective = Objective(model, torch.from_numpy(toy_dataset.train_item_counts()))
    batch = data.examples(model.config).batch(0)

    def loss_of(dropout: float) -> float:
        model.items.id_dropout = dropout
        torch.manual_seed(0)
        return float(objective(batch).item)

    found, plain = loss_of(1.0), loss_of(0.0)
    torch.nn.init.zeros_(model.items.ids.weight)
    assert found == pytest.approx(loss_of(1.0), rel=1e-6)
    assert abs(found - plain) > 1e-3


def test_item_of_which_nothing_is_known_scores_as_the_average_item(toy_model):
    config = replace(toy_model.config, content_dim=0)
    model = UnifiedModel(config).eval()
    trained = torch.arange(config.num_items) > 1
    model.items.set_catalogue(None, trained)
    vectors = model.item_vectors()
    assert torch.allclose(vectors[:2], vectors[2:].mean(0).expand(2, -1))
    assert torch.equal(vectors[2:], model.items.table()[2:-1])
