"""The checkpoint that a killed job goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

__all__ = ["LastCheckpoint"]


class LastCheckpoint(L.Callback):
    """Writes ``last.ckpt`` every so many steps and at the end of every epoch, so that a killed job can go on.

    Inside an epoch it is not written after the last step: a run resumed there would skip that epoch's validation.
    """

    def __init__(self, folder: Path, every_n_steps: int) -> None:
        self.path, self.every_n_steps = folder / "last.ckpt", every_n_steps

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        is_last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if trainer.global_step % self.every_n_steps == 0 and not is_last:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.save_checkpoint(self.path)
