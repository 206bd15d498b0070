"""Memory terms of candidates: those of the graph, with nothing in them that happened at or after a row's own time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from recsys.candidate_features import CandidateFeatures, feature_width, features_without_surface
from recsys.index.item_graph import ItemGraph
from recsys.index.pair_values import pair_values
from recsys.index.transitions import transition_matrix
from recsys.memory_features import DECAY, MemoryLog, memory_features, memory_width, readable_relations
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.past_counts import training_mask
from recsys.past_rates import past_width
from recsys.pipelines.item_graphs import training_graph
from recsys.training_batches import events_before
from recsys.training_features import TrainingFeatures

RELATIONS = ("transition", "text")


@pytest.fixture(scope="module")
def graph(toy_dataset):
    return training_graph(toy_dataset)


def graph_without(dataset, user, time, max_neighbours=256):
    """Of training events, as if a user had stopped before a time."""
    log, trains = dataset.events, training_mask(dataset)
    owner = np.repeat(np.arange(dataset.num_users), np.diff(log.offsets))
    keep = trains & ~((owner == user) & (log.timestamp >= time))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[keep], minlength=dataset.num_users))])
    counts = transition_matrix(offsets, log.item[keep], dataset.is_positive()[keep], num_items=dataset.num_items)
    texts = {"text": dataset.sparse_text}
    return ItemGraph.build(dataset.num_items, transitions=counts, texts=texts, max_neighbours=max_neighbours)


def recent_before(dataset, user, time, m=4):
    history = dataset.events.history(user)
    liked = (history.yes & dataset.manifest.positive_mask != 0) & (history.timestamp < time)
    items = history.item[liked][::-1][:m].tolist()
    return torch.tensor([items + [-1] * (m - len(items))])


@pytest.mark.parametrize("at_once", [1, 50, 1 << 22])
def test_values_of_pairs_are_those_of_the_graph(graph, monkeypatch, at_once):
    monkeypatch.setattr("recsys.index.pair_values._EDGES_AT_ONCE", at_once)
    every = torch.arange(graph.num_items)
    source, target = (axis.flatten() for axis in torch.meshgrid(every, every, indexing="ij"))
    mixed = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
    found = pair_values(graph, source[mixed], target[mixed])[mixed.argsort()]
    for place, name in enumerate(graph.relations):
        expected = graph.scores(every[:, None], {name: 1.0})
        assert torch.equal(found[:, place].view(expected.shape), expected)
    assert not pair_values(graph, torch.tensor([-1, 3]), torch.tensor([3, -1])).any()


def test_pairs_need_not_lie_where_the_graph_does(graph, elsewhere):
    source, target = (torch.randint(-1, graph.num_items, (200,)) for _ in range(2))
    expected, there = pair_values(graph, source, target), graph.to(elsewhere)
    assert expected.any()
    for home in (elsewhere, source.device):
        found = pair_values(there, source.to(home), target.to(home))
        assert found.device == home and torch.equal(found.cpu(), expected)


def test_slates_are_judged_with_a_graph_on_another_device(toy_dataset, graph, elsewhere):
    user, item = np.arange(12), np.arange(12)
    visible = np.diff(toy_dataset.events.offsets)[:12] // 2
    rows = [MemoryLog(toy_dataset, own, RELATIONS, recent=4) for own in (graph, graph.to(elsewhere))]
    here, there = (log.features(user, visible, item) for log in rows)
    assert here.any() and np.array_equal(here, there)


def test_features_of_one_row_by_hand():
    transitions = np.array([[0, 0.5, 0.5], [1, 0, 0], [0, 0, 0]])
    graph = ItemGraph.build(3, transitions=csr_matrix(transitions))
    found = memory_features(
        graph, ("transition",), torch.tensor([[1, 0, -1], [-1, -1, -1]]), torch.tensor([[0, 1, 2]] * 2)
    )
    once, half = np.log1p(100), np.log1p(50)
    expected = np.log1p([[once, once], [DECAY * half, half], [DECAY * half, half]])
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    assert not found[1].any() and found.shape[-1] == memory_width(1)


@pytest.mark.parametrize("max_neighbours", [256, 6])
def test_a_training_row_reads_the_graph_of_a_user_who_stopped_before_it(toy_dataset, max_neighbours):
    """Bit for bit what others did, and nothing of what this user does from the row's time on."""
    whole = graph_without(toy_dataset, -1, 0, max_neighbours)
    log = MemoryLog(toy_dataset, whole, RELATIONS, recent=4)
    events, compared, leaks = toy_dataset.events, 0, 0
    differs = []
    for user in (0, 3, 7, 11, 20, 33):
        for row in range(int(events.offsets[user]), int(events.offsets[user] + toy_dataset.train_end[user])):
            time, every = events.timestamp[row], np.arange(toy_dataset.num_items)
            users = np.full_like(every, user)
            found = log.features(users, events_before(events, users, np.full_like(every, time)), every)
            recent = recent_before(toy_dataset, user, time)
            stopped = graph_without(toy_dataset, user, time, max_neighbours)
            expected = memory_features(stopped, RELATIONS, recent, torch.from_numpy(every)[None])[0].numpy()
            differs.append(np.abs(found - expected).max(1) > 1e-5)
            as_it_is = memory_features(whole, RELATIONS, recent, torch.from_numpy(every)[None])[0].numpy()
            label = events.item[row]
            leaks += bool(as_it_is[label, 0] > found[label, 0] + 1e-3)
            compared += 1
    # Where a row of the graph is cut, taking pairs out may let one more neighbour in at its very end.
    assert np.mean(differs) == 0 if max_neighbours == 256 else np.mean(differs) < 0.05
    assert compared > 40 and leaks > 10


def test_what_a_user_does_later_changes_no_earlier_row(toy_dataset):
    """Labels and items of the events at and after a row's time, its own among them."""
    events = toy_dataset.events
    before = MemoryLog(toy_dataset, training_graph(toy_dataset), RELATIONS, recent=4)
    every = np.arange(toy_dataset.num_items)
    for user in (1, 9, 25):
        row = int(events.offsets[user] + toy_dataset.train_end[user] // 2)
        late = np.arange(len(events)) >= row
        late &= np.arange(len(events)) < events.offsets[user + 1]
        changed = replace(events, yes=np.where(late, 2 - events.yes, events.yes), item=np.where(late, 5, events.item))
        users = np.full_like(every, user)
        visible = events_before(events, users, np.full_like(every, events.timestamp[row]))
        found = before.features(users, visible, every)
        toy_dataset.__dict__["events"] = changed
        try:
            after = MemoryLog(toy_dataset, training_graph(toy_dataset), RELATIONS, recent=4)
            again = after.features(users, visible, every)
        finally:
            toy_dataset.__dict__["events"] = events
        np.testing.assert_allclose(again, found, atol=1e-5)
        assert found.any()


def test_later_rows_of_the_same_user_read_what_validation_reads(toy_dataset, graph):
    """Nothing is taken out where all training events are before the row."""
    log = MemoryLog(toy_dataset, graph, RELATIONS, recent=4)
    requests = toy_dataset.requests("validation")
    found = log.features(requests.user, requests.end, requests.target)
    recent = torch.cat([_recent(toy_dataset, user, end) for user, end in zip(requests.user, requests.end, strict=True)])
    expected = memory_features(graph, RELATIONS, recent, torch.from_numpy(requests.target)[:, None])[:, 0]
    assert np.array_equal(found, expected.numpy()) and found.any()


def _recent(dataset, user, end):
    from recsys.recent import recent_positives

    return recent_positives([dataset.events.history(int(user), int(end))], dataset.manifest.positive_mask, 4)


def make_model(dataset, **changes) -> UnifiedModel:
    manifest = dataset.manifest
    torch.manual_seed(0)
    sizes = {
        "num_items": dataset.num_items, "num_actions": len(manifest.actions), "num_surfaces": len(manifest.surfaces),
        "positive_mask": manifest.positive_mask, "dim": 16, "window": 12, "memory_features": True,
        "relations": RELATIONS,
    }  # fmt: skip
    model = UnifiedModel(ModelConfig(**{**sizes, **changes}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    return model.eval()


@pytest.mark.parametrize("past_rates", [False, True])
def test_a_head_starts_as_a_logistic_regression_that_reads_them(toy_dataset, graph, past_rates):
    model = make_model(toy_dataset, past_rates=past_rates)
    features = TrainingFeatures.of(toy_dataset, model.config, graph)
    head = model.action_head
    head.set_features(features.start(toy_dataset))
    width = feature_width(model.config)
    assert features.events_NF.shape[1] == width == past_rates * past_width(model.config.num_actions) + 4
    rows = torch.from_numpy(features.events_NF[training_mask(toy_dataset)]).float()
    random = torch.randn(2, len(rows), 16)
    bias = (head.rank_share_P @ head.rank_bias.all_rows()).detach()
    chance = torch.sigmoid(head(random[0], random[1], None, rows).detach() - bias).mean(0)
    events = toy_dataset.events
    trains = training_mask(toy_dataset)
    happened = [(events.yes[trains] >> a & 1).mean() for a in range(model.config.num_actions)]
    np.testing.assert_allclose(chance, happened, atol=0.03)
    assert head.wide.weight[:, -4:].abs().max() > 1e-3


def test_only_the_rates_forget_a_hidden_surface(toy_dataset):
    config = make_model(toy_dataset, past_rates=True).config
    rows, hidden = torch.randn(6, feature_width(config)), torch.arange(6) % 2 == 0
    blind = features_without_surface(config, rows, hidden)
    assert torch.equal(blind[:, -4:], rows[:, -4:]) and torch.equal(blind[1::2], rows[1::2])
    assert not torch.equal(blind[::2], rows[::2])


def test_readable_relations_leave_walks_over_transitions_out(toy_dataset, graph):
    """They hold the user's own transitions as well, and none can be taken out of them."""
    assert readable_relations(toy_dataset) == RELATIONS
    assert set(RELATIONS) <= set(graph.relations)


def test_ranking_without_the_graph_says_what_is_missing(toy_dataset):
    model = make_model(toy_dataset)
    states = model.encode([toy_dataset.events.history(0)])
    one = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="item graph"):
        CandidateFeatures(model.config, None, None).of(states, one, torch.tensor([2]), one)
    with pytest.raises(ValueError, match="feature_BCF"):
        model.rank(states, one, torch.tensor([200]), one)
