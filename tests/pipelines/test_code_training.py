"""Heads of semantic IDs that learn after the best epoch: the encoder stays, they learn, a second run is the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from recsys.code_children import CodeChildren
from recsys.code_distillation import CodeDistillation
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.model import UnifiedModel
from recsys.objective import Objective
from recsys.pipelines.checkpoint import load_model
from recsys.pipelines.code_training import add_code_heads
from recsys.pipelines.data_module import PreparedData
from recsys.pipelines.fit import fit_dataset
from recsys.pipelines.model_codes import CODE_HEADS
from recsys.pipelines.prepare.build import prepare_frames

FAST: dict[str, Any] = {
    "accelerator": "cpu", "enable_progress_bar": False, "memory": False, "quiet": True, "dim": 16, "window": 16,
    "max_epochs": 2, "batch_tokens": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(toy_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codes") / "run"
    fit_dataset(toy_dataset, folder, code_epochs=6, **FAST)
    return folder


def test_the_rest_of_the_model_is_that_of_a_fit_without_heads(run: Path, toy_dataset: Dataset, tmp_path: Path) -> None:
    plain = load_model(fit_dataset(toy_dataset, tmp_path / "run", code_epochs=0, logger=False, **FAST))[0].state_dict()
    found = load_model(run / "checkpoints" / "best.ckpt")[0].state_dict()
    assert len(found) > len(plain) > 10
    assert all(torch.equal(found[name], value) for name, value in plain.items())
    assert all(name.startswith(("codes.", *CODE_HEADS)) for name in set(found) - set(plain))


def test_the_heads_learn_and_the_logs_say_so(run: Path, toy_dataset: Dataset, tmp_path: Path) -> None:
    log = pl.read_csv(run / "logs" / "version_0" / "metrics.csv", infer_schema_length=None)
    assert log["train/code_nats"].drop_nulls().is_finite().all()
    assert len(log["val/codes/level1_accuracy"].drop_nulls()) == 6
    plain = fit_dataset(toy_dataset, tmp_path / "run", code_epochs=0, logger=False, **FAST)
    data = PreparedData(str(toy_dataset.path), batch_tokens=64)
    started = add_code_heads(plain, data, 0)
    learned = load_model(run / "checkpoints" / "best.ckpt")[0]
    assert started is not None

    def nats(model: UnifiedModel) -> list[float]:
        """Of the decoder and of the other heads, on one batch with labels of dense retrieval."""
        examples = data.examples(model.config, slates=False, batch_tokens=256)
        objective = Objective(model.eval(), torch.from_numpy(toy_dataset.train_item_counts()))
        children = CodeChildren.of(model.codes.of("codes"), model.config.code_sizes)
        objective.distillation = CodeDistillation(
            model.item_vectors(), torch.from_numpy(toy_dataset.train_item_counts()), 0.5, 1024, children
        )
        torch.manual_seed(0)
        both, decoder = objective.code_loss(examples.batch(0))
        assert both is not None and decoder is not None
        return [float(decoder), float(both.detach()) - float(decoder)]

    assert all(after < before for before, after in zip(nats(started), nats(learned), strict=True))


def test_heads_that_are_there_are_left_alone(run: Path, toy_dataset: Dataset, tmp_path: Path) -> None:
    copy = tmp_path / "best.ckpt"
    shutil.copyfile(run / "checkpoints" / "best.ckpt", copy)
    before = copy.read_bytes()
    assert add_code_heads(copy, PreparedData(str(toy_dataset.path)), 3) is not None
    assert copy.read_bytes() == before


def test_a_model_that_does_not_move_keeps_codes_and_heads_on_grown_data(
    run: Path, toy_dataset: Dataset, toy_frames: dict[str, pl.DataFrame], tmp_path: Path
) -> None:
    old = load_model(run / "checkpoints" / "best.ckpt")[0]
    more = pl.DataFrame({"item_id": ["a0", "z9"], "title": ["new", "new"], "text": ["red ship", "blue car"]})
    items = pl.concat([toy_frames["items"], more])
    grown = prepare_frames(toy_frames["interactions"], items, output=tmp_path / "grown")
    rows = torch.from_numpy(grown.item_index(toy_dataset.item_ids))
    given = {**FAST, "init_from": str(run / "checkpoints" / "best.ckpt"), "logger": False}
    frozen = load_model(fit_dataset(grown, tmp_path / "frozen", code_epochs=2, **{**given, "max_epochs": 0}))[0]
    trained = load_model(fit_dataset(grown, tmp_path / "trained", code_epochs=2, **given))[0]
    weights = {name: value for name, value in old.state_dict().items() if name.startswith(CODE_HEADS)}
    assert all(torch.equal(frozen.state_dict()[name], value) for name, value in weights.items())
    assert any(not torch.equal(trained.state_dict()[name], value) for name, value in weights.items())
    for kind in old.codes.sizes:
        assert torch.equal(frozen.codes.of(kind)[rows], old.codes.of(kind))


def test_a_model_that_does_not_move_learns_other_codes_where_they_are_given(
    run: Path, toy_dataset: Dataset, tmp_path: Path
) -> None:
    from_run = {**FAST, "init_from": str(run / "checkpoints" / "best.ckpt"), "max_epochs": 0, "logger": False}
    codes = [[item % 7, item // 7 % 3, item // 21] for item in range(toy_dataset.num_items)]
    sids = tmp_path / "codes.parquet"
    pl.DataFrame({"item_id": toy_dataset.item_ids, "codes": codes}).write_parquet(sids)
    once, twice = (
        load_model(fit_dataset(toy_dataset, tmp_path / str(epochs), sids=str(sids), code_epochs=epochs, **from_run))[0]
        for epochs in (1, 2)
    )
    assert once.codes.of("codes").tolist() == codes
    assert once.code_decoder is not None and twice.code_decoder is not None
    learned = dict(twice.code_decoder.named_parameters())
    assert all(not torch.equal(value, learned[name]) for name, value in once.code_decoder.named_parameters())


def test_a_file_of_codes_that_cannot_be_read_is_said_before_training(toy_dataset: Dataset, tmp_path: Path) -> None:
    pl.DataFrame({"item_id": ["i1"], "codes": [[1, 2]]}).write_parquet(tmp_path / "codes.parquet")
    with pytest.raises(InputError, match="has no codes of the item"):
        fit_dataset(toy_dataset, tmp_path / "run", sids=str(tmp_path / "codes.parquet"), logger=False, **FAST)
    assert not (tmp_path / "run" / "checkpoints").exists()
