"""One training of a sweep: the code of `fit` in a folder that nobody keeps, watched after every validation."""

from __future__ import annotations

import gc
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.pipelines.fit import fit_dataset
from recsys.pipelines.unified_module import SELECTION

__all__ = ["Figures", "run_trial"]

_NDCG = "val/dense_learned/ndcg@10"


@dataclass(frozen=True, slots=True)
class Figures:
    """Validation figures of one epoch."""

    objective: float
    """What ``fit`` selects the epoch by: NDCG@10, times 2 AUC − 1 where slates are ranked."""
    ndcg: float
    auc: dict[str, float]
    """By action; empty without slates."""


class _Watcher(L.Callback):
    """Hands the figures of every epoch on, and ends a training that is not worth its time."""

    def __init__(self, hopeless: Callable[[int, Figures], bool]) -> None:
        self.hopeless = hopeless
        self.epochs: list[Figures] = []
        self.is_pruned = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or _NDCG not in trainer.callback_metrics:
            return
        metrics = trainer.callback_metrics
        auc = {
            name.removeprefix("val/").removesuffix("/auc"): float(value)
            for name, value in metrics.items()
            if name.startswith("val/") and name.endswith("/auc")
        }
        self.epochs.append(Figures(float(metrics[SELECTION]), float(metrics[_NDCG]), auc))
        if self.hopeless(len(self.epochs), self.epochs[-1]):
            self.is_pruned = trainer.should_stop = True


def run_trial(
    dataset: Dataset, folder: Path, flags: Sequence[str], hopeless: Callable[[int, Figures], bool]
) -> tuple[Figures, int, bool]:
    """Train once.

    Args:
        dataset: prepared data; its validation split alone is looked at.
        folder: for the time of the training; what a killed one left there is removed first.
        flags: words of `recsys fit`.
        hopeless: asked after every epoch, from 1, whether to stop.

    Returns:
        The figures of the epoch whose checkpoint `fit` keeps; the number of epochs; and whether it was stopped.

    Raises:
        InputError: a setting is wrong, or no epoch came to its validation.
    """
    watcher = _Watcher(hopeless)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        fit_dataset(
            dataset,
            folder,
            quiet=True,
            memory=False,
            code_epochs=0,
            logger=False,
            last_every_n_steps=sys.maxsize,
            enable_progress_bar=sys.stderr.isatty(),
            flags=flags,
            watchers=[watcher],
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    gc.collect()  # trainer, module and data refer to each other in circles
    if not watcher.epochs:
        raise InputError("training ended before its first validation; allow more steps")
    return max(watcher.epochs, key=lambda figures: figures.objective), len(watcher.epochs), watcher.is_pruned
