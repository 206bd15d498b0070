"""How checkpoints are written: whole or not at all, and one that a killed job goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from recsys.errors import InputError
from recsys.files import atomic_file

__all__ = ["LastCheckpoint", "WholeCheckpoints", "last_of_run"]


def last_of_run(folder: Path | None) -> Path:
    """Where the checkpoint stands that ``--ckpt_path last`` means; there may be none yet.

    Args:
        folder: of the run; None = the run in ``runs/`` whose last checkpoint is the newest.

    Raises:
        InputError: there is no such run.
    """
    if folder is None:
        runs = sorted(Path("runs").glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
        if not runs:
            raise InputError(
                "--ckpt_path last: no run stands in runs/; name its folder with --trainer.default_root_dir"
            )
        return runs[-1]
    if not folder.is_dir():
        raise InputError(f"--ckpt_path last: {folder} does not exist; give the folder of the run")
    return folder / "checkpoints" / "last.ckpt"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the checkpoint and renames.

    Lightning's own way writes to the folder of temporary files and moves from there, which is a copy, half-written
    when it is killed, where that is another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_file(Path(path)) as partial:
            torch.save(checkpoint, partial)


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
