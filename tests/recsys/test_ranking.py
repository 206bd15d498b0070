"""Slates see what happened strictly before them, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from recsys.candidate_features import feature_width
from recsys.errors import InputError
from recsys.events import EventLog
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.objective import Objective
from recsys.pipelines.item_graphs import training_graph
from recsys.pipelines.prepare.build import prepare_frames
from recsys.ranking import predict_slates
from recsys.training_batches import TrainingExamples, events_before
from recsys.training_features import TrainingFeatures


@pytest.fixture(scope="module")
def slated(toy_frames, tmp_path_factory):
    """The toy data with slates at the very times of events, before them and after them."""
    rng = np.random.default_rng(0)
    events = toy_frames["interactions"]
    rows = []
    for number, (user, time) in enumerate(events.select("user_id", "timestamp").iter_rows()):
        if number % 3 == 0:
            items = [f"i{i}" for i in rng.choice(29, 3, replace=False)]
            rows.append((f"s{number}", user, time + [0, 1, -1][number % 9 // 3], items, ["click", "none", "like"]))
    schema = ["slate_id", "user_id", "timestamp", "item_ids", "actions"]
    return prepare_frames(
        events,
        toy_frames["items"],
        impressions=pl.DataFrame(rows, schema=schema, orient="row"),
        output=tmp_path_factory.mktemp("slated") / "data",
    )


@pytest.fixture(scope="module")
def model(slated):
    torch.manual_seed(0)
    config = ModelConfig(
        num_items=slated.num_items,
        num_actions=len(slated.manifest.actions),
        num_surfaces=len(slated.manifest.surfaces),
        positive_mask=slated.manifest.positive_mask,
        dim=16,
        window=12,
    )
    model = UnifiedModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    return model.eval()


def predictions(model, dataset, split, graph=None):
    found = predict_slates(model, dataset, split, batch_slates=7, graph=graph)
    return dict(zip(found.row_R.tolist(), found.prob_RA, strict=True))


def test_each_slate_of_a_split_is_predicted_once(slated, model):
    rows = sorted(row for split in (0, 1, 2) for row in predictions(model, slated, split))
    assigned = np.flatnonzero(np.repeat(slated.slates.split, np.diff(slated.slates.offsets)) < 3)
    assert rows == assigned.tolist() and len(rows) > 100


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positive_recency": True, "position_bias": True, "time_encoding": "both"},
        {"past_rates": True, "cross_layers": 2},
        {"memory_features": True, "relations": ("transition", "text")},
        {"past_rates": True, "memory_features": True, "relations": ("text",)},
    ],
)
def test_candidates_in_training_are_those_that_are_served(slated, model, changes):
    """The same rows from the packed training batch and from a cached user state."""
    torch.manual_seed(1)
    trained = UnifiedModel(replace(model.config, window=64, mask_prob=0.0, **changes)).eval()
    for parameter in trained.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    trained.action_head.rank_bias.weight.data.zero_()
    graph = training_graph(slated) if trained.config.memory_features else None
    served = predictions(trained, slated, 0, graph)
    log, slates = slated.events, slated.slates
    before = events_before(log, slates.user, slates.timestamp)
    logits = []
    trained.action_head.register_forward_hook(lambda module, inputs, output: logits.append(output))
    read = {}
    if feature_width(trained.config):
        features = TrainingFeatures.of(slated, trained.config, graph)
        read = {"feature_NF": features.events_NF, "feature_RF": features.slates_RF}
    examples = TrainingExamples(
        log, slated.train_end, slated.is_positive(), slates, window=64, batch_tokens=300, seed=0, **read
    )
    objective = Objective(trained, torch.from_numpy(slated.train_item_counts()))
    compared = 0
    for step in range(examples.steps_per_epoch):
        batch = examples.batch(step)
        logits.clear()
        objective(batch)
        rows = batch.candidates
        for slate, shown, found in zip(rows.slate_N.tolist(), rows.shown_N.tolist(), logits[-1], strict=True):
            if before[slate] <= slated.train_end[slates.user[slate]]:
                expected = served[int(slates.offsets[slate]) + shown]
                assert np.allclose(found.sigmoid().detach().numpy(), expected, atol=1e-5)
                compared += 1
    assert compared > 50


def test_detached_candidates_leave_item_vectors_to_retrieval(slated, model):
    examples = TrainingExamples(
        slated.events, slated.train_end, slated.is_positive(), slated.slates, window=12, batch_tokens=60, seed=0
    )
    batch = next(b for b in map(examples.batch, range(examples.steps_per_epoch)) if b.candidates is not None)
    shown_only = torch.from_numpy(np.setdiff1d(batch.candidates.item_N, batch.events.item_T))
    assert len(shown_only) > 5

    def gradient(**changes: object) -> torch.Tensor:
        trained = UnifiedModel(replace(model.config, **changes))
        trained.load_state_dict(model.state_dict())
        objective = Objective(trained, torch.from_numpy(slated.train_item_counts()))
        torch.manual_seed(0)
        objective(batch).total.backward()
        return trained.items.ids.weight.grad[shown_only]

    retrieval = gradient(action_weight=0.0)
    assert torch.allclose(gradient(detach_candidates=True), retrieval, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(gradient(), retrieval, rtol=1e-2)


def test_batches_of_any_size_predict_the_same(slated, model):
    one, many = (predict_slates(model, slated, 0, batch_slates=size) for size in (1, 500))
    order = np.argsort(one.row_R), np.argsort(many.row_R)
    assert np.array_equal(one.row_R[order[0]], many.row_R[order[1]])
    assert np.allclose(one.prob_RA[order[0]], many.prob_RA[order[1]], atol=1e-5)


def test_events_at_or_after_a_slate_change_nothing_bit_for_bit(slated, model):
    before = predictions(model, slated, 0)
    slates, log = slated.slates, slated.events
    chosen = [
        s for s in np.flatnonzero(slates.split == 0) if slates.timestamp[s] in log.history(slates.user[s]).timestamp
    ]
    assert len(chosen) > 20
    for slate in chosen[:10]:
        user, time = slates.user[slate], slates.timestamp[slate]
        later = (np.arange(len(log)) >= log.offsets[user]) & (np.arange(len(log)) < log.offsets[user + 1])
        later &= log.timestamp >= time
        assert later.any()
        changed = EventLog(
            log.offsets,
            np.where(later, 5, log.item),
            np.where(later, log.timestamp + 777, log.timestamp),
            np.where(later, 1, log.yes),
            log.known,
            np.where(later, 1, log.surface),
            log.value,
            log.time_known,
        )
        rows = range(slates.offsets[slate], slates.offsets[slate + 1])
        slated.__dict__["events"] = changed
        try:
            after = predictions(model, slated, 0)
        finally:
            slated.__dict__["events"] = log
        for row in rows:
            assert np.array_equal(before[row], after[row])


def test_event_just_before_a_slate_does_change_it(slated, model):
    before = predictions(model, slated, 0)
    slates, log = slated.slates, slated.events
    slate = next(
        s
        for s in np.flatnonzero(slates.split == 0)
        if (log.history(slates.user[s]).timestamp < slates.timestamp[s]).any()
    )
    seen = int((log.history(slates.user[slate]).timestamp < slates.timestamp[slate]).sum())
    row = log.offsets[slates.user[slate]] + seen - 1
    item = log.item[row]
    log.item[row] = (item + 1) % slated.num_items
    try:
        after = predictions(model, slated, 0)
    finally:
        log.item[row] = item
    assert not np.allclose(before[slates.offsets[slate]], after[slates.offsets[slate]], atol=1e-6)


def test_data_without_slates_says_so(toy_dataset, model):
    with pytest.raises(InputError, match="has no slates"):
        predict_slates(model, toy_dataset, 1)
