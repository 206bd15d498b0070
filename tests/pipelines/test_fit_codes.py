"""Training with codes of the items: what every head adds to the loss, and what validation says of the codes."""

from __future__ import annotations

from dataclasses import replace

import lightning as L
import numpy as np
import polars as pl
import pytest
import torch

from recsys.code_accuracy import code_accuracy
from recsys.code_children import CodeChildren
from recsys.code_decoder import StateReader
from recsys.errors import InputError
from recsys.objective import Objective
from recsys.pipelines.checkpoint import load_model
from recsys.pipelines.data_module import PreparedData
from recsys.pipelines.fit import fit_dataset
from recsys.pipelines.recipe import validation_requests
from recsys.pipelines.unified_module import started_network

KINDS = {"codes": (6, 5, 4), "parallel_codes": (4, 4, 4), "set_codes": (5, 3)}
FAST = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False, "memory": False, "dim": 16, "window": 16}
HEADS = ("code_decoder", "parallel_codes", "set_codes")


@pytest.fixture(scope="module")
def sids(toy_dataset, tmp_path_factory):
    """A file of drawn codes of all kinds."""
    rng = np.random.default_rng(0)
    columns = {
        kind: [rng.integers(0, sizes).tolist() for _ in range(toy_dataset.num_items)] for kind, sizes in KINDS.items()
    }
    path = tmp_path_factory.mktemp("sids") / "codes.parquet"
    pl.DataFrame({"item_id": toy_dataset.items["item_id"], **columns}).write_parquet(path)
    return path


class Watcher(L.Callback):
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.figures = {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("among_children", [False, True])
def test_validation_tells_how_often_each_code_is_right(toy_dataset, sids, tmp_path, among_children):
    watcher = Watcher()
    best = fit_dataset(
        toy_dataset, tmp_path / "run", max_epochs=1, watchers=[watcher], sids=str(sids), batch_users=7,
        code_children=among_children, set_blocks=2, detach_codes=False, **FAST,
    )  # fmt: skip
    model = load_model(best)[0].eval()
    assert model.config.set_sizes == KINDS["set_codes"] and model.config.set_blocks == 2
    requests, data = validation_requests(toy_dataset), PreparedData(str(toy_dataset.path), sids=str(sids))
    states = model.encode(data.histories_of(requests), user_BK=toy_dataset.user_rows(requests.user))
    query_BD = model.query(states, torch.from_numpy(requests.timestamp), torch.from_numpy(requests.surface))
    code_BL = model.codes.of("codes")[torch.from_numpy(requests.target)].long()
    children = CodeChildren.of(model.codes.of("codes"), KINDS["codes"]) if among_children else None
    wanted = code_accuracy(model.code_decoder, query_BD, code_BL, StateReader(states), children).figures()
    found = {name.removeprefix("val/codes/"): v for name, v in watcher.figures.items() if name.startswith("val/codes/")}
    assert found == pytest.approx(wanted) and {"level1_accuracy", "level3_accuracy_after_wrong"} <= set(found)


@pytest.mark.parametrize("detach", [True, False])
def test_every_head_adds_its_loss(toy_dataset, sids, detach):
    data = PreparedData(str(toy_dataset.path), sids=str(sids))
    changes = {"dim": 16, "window": 16, "detach_codes": False, "dropout": 0.0, "mask_prob": 0.0}
    model = started_network(data, changes)[0]
    model.config = replace(model.config, detach_codes=detach)
    model.eval()
    counts_I = torch.from_numpy(toy_dataset.train_item_counts())
    batch = data.examples(model.config).batch(0)

    def total():
        torch.manual_seed(0)
        return Objective(model, counts_I)(batch).total

    whole, parts = total(), {}
    for name in HEADS:
        head = getattr(model, name)
        slope = torch.autograd.grad(whole, list(head.parameters()), retain_graph=True)
        assert any(part.abs().max() > 0 for part in slope), name
    kept = {name: getattr(model, name) for name in HEADS}
    sizes, encoder = dict(model.codes.sizes), list(model.encoder.parameters())
    slopes = torch.autograd.grad(whole, encoder, allow_unused=True)
    model.codes.sizes = {}
    plain = total()
    same = all(
        torch.equal(one, other)
        for one, other in zip(slopes, torch.autograd.grad(plain, encoder, allow_unused=True), strict=True)
        if one is not None and other is not None
    )
    assert same == detach
    for name, kind in zip(HEADS, KINDS, strict=True):
        for other in HEADS:
            setattr(model, other, kept[other] if other == name else None)
        model.codes.sizes = {kind: sizes[kind]}
        parts[name] = float((total() - plain).detach())
        assert parts[name] > 0
    assert float(plain.detach()) + sum(parts.values()) == pytest.approx(float(whole.detach()), rel=1e-5)


def test_among_children_there_is_nothing_to_learn_where_only_one_code_can_follow(toy_dataset, sids):
    data = PreparedData(str(toy_dataset.path), sids=str(sids))
    counts_I = torch.from_numpy(toy_dataset.train_item_counts())
    found = {}
    for among in (False, True):
        model = started_network(data, {"dim": 16, "window": 16, "code_children": among, "detach_codes": False})[
            0
        ].eval()
        batch = data.examples(model.config).batch(0)
        for name, codes in (("drawn", model.codes.of("codes").clone()), ("one", torch.tensor([5, 0, 3]))):
            model.codes.of("codes").copy_(codes)
            torch.manual_seed(0)
            found[name, among] = float(Objective(model, counts_I)(batch).code)
    assert found["one", True] == 0 < found["drawn", True] < found["drawn", False]
    assert found["one", False] > 1


def test_children_without_codes_are_refused(toy_dataset):
    data = PreparedData(str(toy_dataset.path), sids="none")
    with pytest.raises(InputError, match="code_children needs semantic IDs"):
        started_network(data, {"code_children": True})
