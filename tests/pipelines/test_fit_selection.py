"""The epoch that is kept: retrieval and, where slates are ranked, ranking count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from recsys.pipelines.fit import fit_dataset
from recsys.pipelines.unified_module import SELECTION, UnifiedModule

FAST = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False, "memory": False, "dim": 16, "window": 16}


class Watcher(L.Callback):
    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epochs.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def best_epoch(run: Path) -> int:
    return int(torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["epoch"])


def test_an_epoch_is_judged_by_retrieval_and_by_ranking(small_world, tmp_path):
    watcher = Watcher()
    fit_dataset(small_world, tmp_path / "run", max_epochs=2, watchers=[watcher], **FAST)
    slates = small_world.slates
    assert slates is not None
    rows = np.repeat(slates.split == 1, np.diff(slates.offsets))
    for figures in watcher.epochs:
        total = weight = 0.0
        for place, action in enumerate(small_world.manifest.actions):
            known = ((slates.known[rows] >> place) & 1).astype(bool)
            yes = ((slates.yes[rows] >> place) & 1).astype(bool)[known]
            rarer = min(yes.sum(), (~yes).sum())
            if rarer:
                total, weight = total + rarer * figures[f"val/{action}/auc"], weight + rarer
        beyond_chance = max(0.0, 2 * total / weight - 1)
        assert figures[SELECTION] == pytest.approx(figures["val/dense_learned/ndcg@10"] * beyond_chance, abs=1e-6)
    best = max(range(2), key=lambda epoch: watcher.epochs[epoch][SELECTION])
    assert best_epoch(tmp_path / "run") == best


@pytest.mark.parametrize(("auc", "kept"), [((0.9, 0.51, 0.51), 0), ((0.51, 0.51, 0.9), 2)])
def test_ranking_that_gets_worse_ends_what_is_kept(auc, kept, small_world, tmp_path, monkeypatch):
    told = iter(auc)

    def slate_figures(self: Any, split: int) -> tuple[dict[str, float], float]:
        value = next(told)
        return {"click/auc": value}, value

    monkeypatch.setattr(UnifiedModule, "_slate_figures", slate_figures)
    fit_dataset(small_world, tmp_path / "run", max_epochs=3, **FAST)
    assert best_epoch(tmp_path / "run") == kept


@pytest.mark.parametrize(("decay_share", "epochs"), [(0.3, 6), (0.6, 4)])
def test_patience_begins_where_the_learning_rate_falls(decay_share, epochs, small_world, tmp_path, monkeypatch):
    """The first epoch is the best. In the sixth or fourth of seven the rate falls; a patience of one ends it."""
    told = iter([0.9] + [0.51] * 6)

    def slate_figures(self: Any, split: int) -> tuple[dict[str, float], float]:
        value = next(told)
        return {"click/auc": value}, value

    monkeypatch.setattr(UnifiedModule, "_slate_figures", slate_figures)
    watcher = Watcher()
    settings = {**FAST, "max_epochs": 7, "patience": 1, "decay_share": decay_share, "code_epochs": 0}
    fit_dataset(small_world, tmp_path / "run", watchers=[watcher], limit_train_batches=2, **settings)
    assert len(watcher.epochs) == epochs and best_epoch(tmp_path / "run") == 0
