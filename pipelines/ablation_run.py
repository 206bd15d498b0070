"""One training of an ablation, in a process of its own with one thread: figures of its best epoch on validation.

``python -P -m recsys.pipelines.ablation_run JOB OUTPUT`` reads a JSON file and writes another; it ends by itself when
its standard input ends, so that no training outlives the runner that started it.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.files import read_json, write_json
from recsys.pipelines.unified_module import SELECTION

__all__ = ["code_hash", "one_training"]

_NDCG = "val/dense_learned/ndcg@10"
_SHOWN = {"NDCG@10": _NDCG, "Recall@10": "val/dense_learned/recall@10", "Recall@100": "val/dense_learned/recall@100"}
_DECIDES = ("recsys.pipelines.fit", "recsys.pipelines.memory_weights", "recsys.pipelines.unified_module")


class _Watcher(L.Callback):
    """Keeps the figures of every validation, and the time that training steps take without validations."""

    def __init__(self) -> None:
        self.epochs: list[tuple[float, dict[str, float]]] = []
        """What the epoch is selected by, and its figures."""
        self.seconds, self.steps = 0.0, 0
        self.took = 0.0
        self._mark = self._began = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.took = time.perf_counter() - self._began

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
        now = time.perf_counter()
        self.seconds, self.steps, self._mark = self.seconds + now - self._mark, self.steps + 1, now

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = time.perf_counter()
        metrics = trainer.callback_metrics
        if trainer.sanity_checking or _NDCG not in metrics:
            return
        figures = {shown: float(metrics[name]) for shown, name in _SHOWN.items() if name in metrics}
        for name, value in metrics.items():
            if name.startswith("val/") and name.endswith("/auc"):
                figures[f"AUC {name.removeprefix('val/').removesuffix('/auc')}"] = float(value)
        self.epochs.append((float(metrics[SELECTION]), figures))


def one_training(job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Train once and judge on validation; the test split is never asked for.

    Args:
        job: ``data`` folder, ``flags`` of `recsys fit` with their values, ``seed``, ``minutes`` and ``epochs``, the
            most of either, where ``epochs`` may be None.
        folder: of the run.

    Returns:
        the figures of the epoch that `fit` keeps, ``epochs``, ``s/step``, and the NDCG@10 of the sum with memory
        terms, None where there is nothing to add or to judge.

    Raises:
        InputError: a setting is wrong, or no epoch came to its validation.
    """
    from recsys.pipelines.fit import fit_dataset
    from recsys.pipelines.item_graphs import chosen_relations
    from recsys.pipelines.memory_weights import add_memory_weights

    dataset, watcher = Dataset.open(job["data"]), _Watcher()
    length = timedelta(seconds=max(1, round(60 * job["minutes"])))
    hours, rest = divmod(length.seconds, 3600)
    flags = [f"{flag}={value}" for flag, value in job["flags"].items()]
    flags.append(f"--trainer.max_time={length.days:02}:{hours:02}:{rest // 60:02}:{rest % 60:02}")
    if job["epochs"] is not None:
        flags.append(f"--trainer.max_epochs={job['epochs']}")
    best = fit_dataset(
        dataset,
        folder,
        quiet=True,
        memory=False,
        code_epochs=0,
        logger=False,
        last_every_n_steps=sys.maxsize,
        enable_progress_bar=False,
        seed=job["seed"],
        flags=flags,
        watchers=[watcher],
    )
    if not watcher.epochs:
        raise InputError("training ended before its first validation; allow more minutes")
    figures: dict[str, Any] = dict(max(watcher.epochs, key=lambda epoch: epoch[0])[1])
    chosen = add_memory_weights(best, dataset, chosen_relations(dataset, "default"))
    figures["NDCG@10 of the sum"] = chosen.sum_ndcg if chosen.num_requests else None
    figures |= {"epochs": len(watcher.epochs), "s/step": watcher.seconds / max(1, watcher.steps)}
    return figures | {"out of time": watcher.took >= length.total_seconds()}


def code_hash() -> str:
    """Of every file of this package that a training imports, directly or not: other figures may come of others."""
    found: dict[str, bytes] = {}
    waiting = list(_DECIDES)
    while waiting:
        name = waiting.pop()
        spec = None if name in found else importlib.util.find_spec(name)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            continue
        found[name] = Path(spec.origin).read_bytes()
        waiting += _imported(found[name])
    return hashlib.sha256(
        b"\0".join(part for name in sorted(found) for part in (name.encode(), found[name]))
    ).hexdigest()


def _imported(source: bytes) -> list[str]:
    """Modules of this package that a source names; imports in it are absolute.

    >>> _imported(b"import torch, recsys.events; from recsys.files import read_json")
    ['recsys.events', 'recsys.files']
    """
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.append(node.module)
    return [name for name in names if name.startswith("recsys.")]


def _end_with_the_runner() -> None:
    """Its standard input is a pipe that the runner never writes to: it ends when the runner does."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(argv: Sequence[str]) -> int:
    """Run the job of a JSON file, and write its figures or the line that says why there are none."""
    import torch

    torch.set_num_threads(1)
    job, output = read_json(Path(argv[0])), Path(argv[1])
    _end_with_the_runner()
    try:
        result: dict[str, Any] = {"figures": one_training(job, output.parent / "run")}
    except (
        InputError,
        argparse.ArgumentError,
        ArithmeticError,
        MemoryError,
        OSError,
        RuntimeError,
        ValueError,
    ) as error:
        result = {"error": " ".join(str(error).split())[:300] or type(error).__name__}
    write_json(output, result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
