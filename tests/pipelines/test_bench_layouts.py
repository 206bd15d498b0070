"""The benchmark of layouts trains each on the same batches."""

from __future__ import annotations

import polars as pl
import pytest
import torch

from recsys.errors import InputError
from recsys.pipelines.bench import layouts
from recsys.pipelines.bench.command import run_bench
from recsys.pipelines.data_module import PreparedData
from recsys.pipelines.prepare.build import prepare_frames


def test_layouts_are_trained_on_the_same_steps(small_world, monkeypatch):
    ways = {}

    def timed(given, *, repeats):
        ways.update(given)
        return {name: (3.0 if name == "interleaved" else 2.0) for name in given}

    monkeypatch.setattr(layouts, "interleaved_seconds", timed)
    monkeypatch.setattr(layouts, "_STEPS", 2)
    result = run_bench("layouts", data=small_world.path)
    assert list(ways) == ["mam", "interleaved", "lagged"]
    assert [case["name"] for case in result["cases"]] == ["mam against interleaved", "mam against lagged"]
    first, last = result["cases"]
    assert first["ratio"] == 1.5 and last["ratio"] == 1.0
    assert first["ours"]["ms_per_step"] == 1000.0 and first["other"]["ms_per_step"] == 1500.0
    for way in ways.values():
        way()


def test_layouts_learn_from_the_same_batches(small_world):
    data = PreparedData(str(small_world.path), sids="none")
    ways = {layout: layouts._Training(data, layout) for layout in ("mam", "interleaved", "lagged")}
    for layout, training in ways.items():
        assert training.model.config.layout == layout
        before = {name: value.clone() for name, value in training.model.state_dict().items()}
        training()
        changed = [name for name, value in training.model.state_dict().items() if not torch.equal(value, before[name])]
        assert any("items" in name for name in changed) and any("block" in name for name in changed)
        assert len(training.batches) == layouts._STEPS
        for one, other in zip(training.batches, ways["mam"].batches, strict=True):
            assert one.events.item_T.equal(other.events.item_T) and one.target_T.equal(other.target_T)


def test_without_actions_there_is_nothing_to_place(tmp_path):
    rows = [{"user_id": at // 6, "item_id": at * at % 11, "timestamp": at, "action": "buy"} for at in range(120)]
    prepare_frames(interactions=pl.DataFrame(rows), output=tmp_path / "data")
    with pytest.raises(InputError, match="has no actions that a layout could place"):
        run_bench("layouts", data=tmp_path / "data")
