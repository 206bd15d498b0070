"""A model goes on with data that grew: the old items keep their scores, the new ones have a start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import polars as pl
import pytest
import torch

from recsys.candidate_features import feature_columns, feature_width
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.events import Event
from recsys.model import UnifiedModel
from recsys.pipelines.checkpoint import load_model, stored_names
from recsys.pipelines.cli import main
from recsys.pipelines.data_module import PreparedData
from recsys.pipelines.fit import fit_dataset
from recsys.pipelines.prepare.build import prepare_frames
from recsys.pipelines.simulate.command import simulate
from recsys.pipelines.warm_start import warm_start

AT = 1_800_000_000
FAST = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False, "memory": False}
LISTS = ("item_ids", "actions", "surfaces", "times")
NEW_ACTION, NEW_SURFACE = "like", "related"
"""Both stand between others in the order of names, so that nothing keeps its number."""


def earlier(frame: pl.DataFrame, lists: bool) -> pl.DataFrame:
    """Rows of the first 60 % of the time, of 200 of the items, without one action and one surface."""
    rows = (
        frame.explode(LISTS).rename({"item_ids": "item_id", "surfaces": "surface", "actions": "action"})
        if lists
        else frame
    )
    rows = rows.filter(
        pl.col("timestamp") < frame["timestamp"].quantile(0.6),
        pl.col("item_id") < "i00200",
        pl.col("surface") != NEW_SURFACE,
    ).with_columns(pl.col("action").str.split("+").list.filter(pl.element() != NEW_ACTION).list.join("+"))
    if not lists:
        return rows
    rows = rows.rename({"item_id": "item_ids", "surface": "surfaces", "action": "actions"})
    return rows.group_by("slate_id", "user_id", "timestamp", maintain_order=True).agg(LISTS)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    raw = tmp_path_factory.mktemp("world") / "raw"
    simulate(raw, users=60, items=240, seed=1)
    return {name: pl.read_parquet(raw / f"{name}.parquet") for name in ("interactions", "items", "impressions")}


@pytest.fixture(scope="module")
def young(tables: dict[str, pl.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare_frames(
        earlier(tables["interactions"], lists=False),
        tables["items"].filter(pl.col("item_id") < "i00200"),
        impressions=earlier(tables["impressions"], lists=True),
        output=tmp_path_factory.mktemp("young") / "data",
    )


@pytest.fixture(scope="module")
def grown(tables: dict[str, pl.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    # Another order of the items, so that no item keeps its number.
    items = tables["items"].sort("item_id", descending=True)
    return prepare_frames(
        tables["interactions"],
        items,
        impressions=tables["impressions"],
        output=tmp_path_factory.mktemp("grown") / "data",
    )


@pytest.fixture(scope="module")
def checkpoint(young: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_dataset(
        young, tmp_path_factory.mktemp("old") / "run", max_epochs=2, dim=16, window=32, lr=0.003, quiet=True, **FAST
    )


def events_of(dataset: Dataset, user: int) -> list[Event]:
    """A user's events in words that every dataset understands."""
    history, manifest = dataset.events.history(user), dataset.manifest
    return [
        Event(
            item_id=dataset.item_ids[int(history.item[row])],
            actions="+".join(name for bit, name in enumerate(manifest.actions) if history.yes[row] >> bit & 1),
            unknown="+".join(name for bit, name in enumerate(manifest.actions) if not history.known[row] >> bit & 1),
            timestamp=int(history.timestamp[row]),
            surface=manifest.surfaces[int(history.surface[row])] or None,
        )
        for row in range(len(history))
    ]


def features(model: UnifiedModel, dataset: Dataset, shape: torch.Size) -> torch.Tensor:
    """The same figures for the actions and sums that both datasets have, noise for those of the new action."""
    actions = dataset.manifest.actions
    both = [name for name in actions if name != NEW_ACTION]
    stood = torch.tensor(
        feature_columns(model.config, [both.index(n) if n in both else -1 for n in actions], len(both))
    )
    generator = torch.Generator().manual_seed(3)
    known_BCF = torch.randn(*shape, int(stood.max()) + 1, generator=generator)
    return torch.where(stood >= 0, known_BCF[..., stood], torch.randn(*shape, len(stood), generator=generator))


def scores(
    model: UnifiedModel, dataset: Dataset, events: list[list[Event]], item_ids: pl.Series
) -> tuple[torch.Tensor, ...]:
    """Learned scores [B, items], and logits [B, items, actions] of the two actions that both datasets have."""
    states = model.encode([dataset.vocabulary.history(one) for one in events])
    at_B = torch.full((len(events),), AT)
    surface_B = torch.full_like(at_B, dataset.vocabulary.surface_index("feed"))
    item = torch.from_numpy(dataset.item_index(item_ids))
    learned_BI = (model.query(states, at_B, surface_B) @ model.item_vectors().T)[:, item]
    item_BC = item.expand(len(events), -1)
    feature_BCF = features(model, dataset, item_BC.shape) if feature_width(model.config) else None
    logits_BCA = model.rank(states, item_BC, at_B, surface_B[:, None].expand_as(item_BC), feature_BCF)
    return learned_BI, logits_BCA[..., [dataset.manifest.actions.index(name) for name in ("click", "share")]]


def test_before_any_training_old_items_score_as_in_the_checkpoint(young, grown, checkpoint):
    assert grown.num_items == 240 and young.num_items == 200
    assert NEW_ACTION in grown.manifest.actions and NEW_ACTION not in young.manifest.actions
    assert NEW_SURFACE in grown.manifest.surfaces and NEW_SURFACE not in young.manifest.surfaces
    old, _ = load_model(checkpoint)
    new = warm_start(PreparedData(str(grown.path)), {}, checkpoint).network.eval()
    events = [events_of(young, user) for user in range(young.num_users)]
    before, after = (scores(model, data, events, young.item_ids) for model, data in ((old, young), (new, grown)))
    assert before[0].std() > 0.1 and before[1].std() > 0.01
    assert torch.allclose(before[0], after[0], atol=1e-5)
    # Slates have other lengths now, so that the mean bias of a shown rank may be another constant of each action.
    shift_A = (after[1] - before[1]).flatten(0, 1)
    assert torch.allclose(shift_A, shift_A[0].expand_as(shift_A), atol=1e-5)
    assert shift_A[0].abs().max() < 0.05


def test_new_items_stand_where_their_content_says(young, grown, checkpoint):
    old, _ = load_model(checkpoint)
    started = warm_start(PreparedData(str(grown.path)), {}, checkpoint)
    items, before = started.network.items, old.items
    is_new = torch.from_numpy(young.item_index(grown.item_ids) < 0)
    assert int(is_new.sum()) == 40
    assert not items.ids.weight[is_new].any()
    assert items.has_id_I[is_new].any(), "new items train"
    # Their features stand on the axes of the checkpoint: items of their category are near, others are not.
    content = torch.nn.functional.normalize(items.content_IC, dim=1)
    category = grown.items["category"].to_numpy()
    same = torch.from_numpy(category[:, None] == category[None, :])
    alike = content[is_new] @ content[~is_new].T
    near = same[is_new][:, ~is_new]
    assert alike[near].mean() > alike[~near].mean() + 0.2
    assert before.content_IC.shape[1] == items.content_IC.shape[1]
    assert any("turned to the checkpoint's" in note for note in started.notes)
    assert any(NEW_ACTION in note for note in started.notes) and any(NEW_SURFACE in note for note in started.notes)


def test_new_actions_and_surfaces_have_no_influence_yet(grown, checkpoint):
    new = warm_start(PreparedData(str(grown.path)), {}, checkpoint).network
    place = grown.manifest.actions.index(NEW_ACTION)
    dim, count = new.config.dim, len(grown.manifest.actions)
    columns = new.tokens.mix.weight[:, dim : dim + 2 * count]
    assert not columns[:, [place, count + place]].any()
    assert columns.any(0).sum() >= count - 1
    surface = new.tokens.context.surface.weight
    assert torch.equal(surface[grown.manifest.surfaces.index(NEW_SURFACE)], surface[0])


def test_no_steps_leave_the_checkpoint_as_it_was_in_the_names_of_the_grown_data(grown, checkpoint, tmp_path, capsys):
    best = fit_dataset(grown, tmp_path / "run", max_epochs=0, init_from=str(checkpoint), **FAST)
    said = capsys.readouterr().out
    assert "200 of its 200 items are here, 40 are new" in said
    frozen, meta = load_model(best)
    assert meta["data_hash"] == grown.manifest.data_hash
    started = warm_start(PreparedData(str(grown.path)), {}, checkpoint).network
    share_A = torch.tensor([meta["ranking_shares"][action] for action in grown.manifest.actions])
    for name, value in started.state_dict().items():
        if name.startswith("action_head.out."):  # weighed by the slates of the grown data
            value = value * (share_A[:, None] if value.dim() > 1 else share_A)
            assert torch.allclose(value, frozen.state_dict()[name], rtol=1e-6), name
        else:
            assert torch.equal(value, frozen.state_dict()[name]), name


class Killed(L.Callback):
    """Ends a training in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyError("killed")


def test_a_warm_start_killed_and_resumed_ends_bit_equal(grown, checkpoint, tmp_path):
    """Before its first checkpoint it starts again from the same weights, later it goes on from its own."""
    settings = {"max_steps": 6, "last_every_n_steps": 2, "init_from": str(checkpoint), "quiet": True, **FAST}
    whole, _ = load_model(fit_dataset(grown, tmp_path / "whole", **settings))
    started = warm_start(PreparedData(str(grown.path)), {}, checkpoint).network
    moved = (whole.items.ids.weight - started.items.ids.weight).abs().max()
    assert 0 < moved < 0.05 and whole.config.dim == 16 and whole.config.num_items == 240
    for step in (1, 3):
        run = tmp_path / f"killed-at-{step}"
        with pytest.raises(KeyError):
            fit_dataset(grown, run, watchers=[Killed(step)], **settings)
        assert (run / "checkpoints" / "last.ckpt").exists() == (step > 2)
        assert main(["fit", "--trainer.default_root_dir", str(run), "--ckpt_path", "last"]) == 0
        resumed, _ = load_model(run / "checkpoints" / "best.ckpt")
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), (step, name)


def test_what_does_not_fit_is_one_line(toy_dataset, young, grown, checkpoint, tmp_path, capsys):
    flags = ["fit", "--data.path", str(grown.path), "--trainer.default_root_dir", str(tmp_path / "run")]
    content = torch.load(checkpoint, weights_only=True)
    del content["recsys"]["names"]
    older = tmp_path / "older.ckpt"
    torch.save(content, older)
    for more, words in (
        (["--init-from", str(checkpoint), "--model.dim=32"], "model.dim = 16, not 32"),
        (["--init-from", str(checkpoint), "--model.num_blocks=1"], "model.num_blocks = 2, not 1"),
        (["--init_from", str(checkpoint), "--model.use_content=false"], "model.use_content"),
        (["--init-from", str(older)], "holds no item ids"),
        (["--init-from", str(tmp_path / "no.ckpt")], "does not exist"),
    ):
        assert main([*flags, *more]) == 2
        error = capsys.readouterr().err
        assert words in error and len(error.strip().splitlines()) == 1, error
    with pytest.raises(InputError, match="no item id of"):
        warm_start(PreparedData(str(toy_dataset.path)), {}, checkpoint)


def test_another_width_of_content_starts_the_projection_anew(tables, young, checkpoint, tmp_path):
    wide = prepare_frames(
        tables["interactions"],
        tables["items"],
        impressions=tables["impressions"],
        output=tmp_path / "wide",
        item_features=("category",),
    )
    started = warm_start(PreparedData(str(wide.path)), {"dropout": 0.1}, checkpoint)
    old, _ = load_model(checkpoint)
    new = started.network.eval()
    assert new.config.content_dim > old.config.content_dim and new.config.dropout == 0.1
    assert any("projection starts anew" in note for note in started.notes)
    row = torch.from_numpy(wide.item_index(young.item_ids))
    before, after = old.items.table()[:-1], new.items.table()[row]
    assert (after - before).norm() < 0.3 * before.norm(), "the new projection gives items about what they had"


def test_without_content_new_items_are_the_mean_item(tables, tmp_path):
    """And what had no id part in the checkpoint counts as new."""
    events = tables["interactions"]
    first = prepare_frames(earlier(events, lists=False), output=tmp_path / "first")
    second = prepare_frames(events, output=tmp_path / "second")
    best = fit_dataset(first, tmp_path / "run", max_epochs=1, dim=16, window=32, quiet=True, **FAST)
    old, _ = load_model(best)
    new = warm_start(PreparedData(str(second.path)), {}, best).network.eval()
    mean = old.items.ids.weight[old.items.has_id_I].mean(0)
    row = torch.from_numpy(second.item_index(first.item_ids))
    assert torch.equal(new.items.ids.weight[row][old.items.has_id_I], old.items.ids.weight[old.items.has_id_I])
    others = torch.ones(second.num_items, dtype=torch.bool)
    others[row[old.items.has_id_I]] = False
    assert others.any() and torch.equal(new.items.ids.weight[others], mean.expand(int(others.sum()), -1))
    assert torch.allclose(new.item_vectors()[row], old.item_vectors(), atol=1e-6)


@pytest.mark.parametrize("kind", [pl.String, pl.Int32, pl.UInt64])
def test_ids_of_every_type_come_back(kind, tmp_path):
    from recsys.pipelines.checkpoint import names_to_store

    names = ["ä1", "", "b+c", "数"] if kind == pl.String else [7, 0, 2**31 - 1, 3]
    if kind == pl.UInt64:
        names[0] = 2**64 - 1

    class Data:
        item_ids = pl.Series(names, dtype=kind)
        user_blocks: list[dict[str, object]] = []
        manifest = type("M", (), {"actions": ("a",), "surfaces": ("", "feed")})

    torch.save({"names": names_to_store(Data)}, tmp_path / "x.ckpt")  # type: ignore[arg-type]
    found = stored_names(torch.load(tmp_path / "x.ckpt", weights_only=True), tmp_path)
    assert found.item_ids.to_list() == names and found.item_ids.dtype == kind
    assert found.actions == ("a",) and found.surfaces == ("", "feed")
    assert json.dumps(found.actions)
