"""What a run of ``recsys rerank fit`` keeps beside its output until it is done, so that a killed one can go on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from recsys.errors import InputError
from recsys.files import read_json, write_json

__all__ = ["RunFolder"]

_SETTINGS, _BEFORE = "settings.json", "before.json"


class RunFolder:
    """The folder ``OUTPUT-run``: settings, figures before training, checkpoints."""

    def __init__(self, output: Path, settings: dict[str, Any], *, resume: bool) -> None:
        """Make the folder ready.

        Args:
            output: where the trained model will stand.
            settings: everything that decides what comes out.
            resume: go on with what is there; else start again.

        Raises:
            InputError: there is nothing to go on with, or it was begun with other settings.
        """
        self.path = output.with_name(f"{output.name}-run")
        stored = self.path / _SETTINGS
        if resume:
            if not stored.is_file():
                raise InputError(f"--resume: {self.path} holds no run to go on with; leave --resume out")
            begun = read_json(stored)
            other = next((name for name, value in settings.items() if begun.get(name) != value), None)
            if other is not None:
                flag = other.replace("_", "-")
                raise InputError(f"--resume: {self.path} was begun with another {flag}; repeat the command as it was")
            return
        if self.path.exists() and not stored.is_file() and (self.path.is_file() or any(self.path.iterdir())):
            raise InputError(f"{self.path} is in the way of the run's own folder; choose another --output")
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        write_json(stored, settings)

    @property
    def last(self) -> Path | None:
        """The checkpoint to go on from; None where none was written yet."""
        path = self.path / "last.ckpt"
        return path if path.is_file() else None

    @property
    def before(self) -> dict[str, Any] | None:
        """Figures before training, where they are known already."""
        path = self.path / _BEFORE
        return read_json(path) if path.is_file() else None

    def keep_before(self, figures: dict[str, Any]) -> None:
        """Store the figures before training."""
        write_json(self.path / _BEFORE, figures)

    def remove(self) -> None:
        """Nothing is left to go on with."""
        shutil.rmtree(self.path)
