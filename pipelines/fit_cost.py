"""What a plain ``recsys fit`` costs on a dataset: seconds, parameters, peak memory, as a table under docs/results/.

``python -P -m recsys.pipelines.fit_cost --data NAME=DATA,NAME=DATA`` trains each once, in a process of its own,
and records one row for each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.pipelines.checkpoint import load_model
from recsys.pipelines.command_parser import run_call
from recsys.pipelines.results import record, write

__all__ = ["fit_cost", "main", "publish"]

_COLUMNS = (
    "data",
    "training events",
    "items",
    "parameters",
    "of them item ids",
    "minutes",
    "CPU minutes",
    "peak memory, GiB",
    "validation",
)
_RESULT = "best validation "


def fit_cost(data: Path, work: Path, threads: int, flags: Sequence[str] = ()) -> dict[str, Any]:
    """Train the recipe of a dataset in a process of its own.

    Args:
        data: a prepared dataset.
        work: an empty folder for the run.
        threads: processor threads that it may use.
        flags: of `recsys fit`, where it shall not be the plain one.

    Returns:
        The row: sizes, minutes by the clock and of the processor, peak resident memory, what validation said.

    Raises:
        InputError: the training failed; its last line is in the message.
    """
    dataset = Dataset.open(data)
    command = [sys.executable, "-P", "-m", "recsys.pipelines.cli", "fit", "--data.path", str(data)]
    command += ["--trainer.default_root_dir", str(work), "--trainer.enable_progress_bar", "false", *flags]
    log = work.parent / f"{work.name}.log"
    began = time.monotonic()
    with log.open("w") as out:
        limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **limits})
        _, status, usage = os.wait4(process.pid, 0)
    minutes = (time.monotonic() - began) / 60
    process.returncode = os.waitstatus_to_exitcode(status)
    lines = log.read_text().splitlines()
    if process.returncode != 0:
        raise InputError(f"recsys fit --data.path {data} ended with {process.returncode}: {lines[-1] if lines else ''}")
    model, _ = load_model(work / "checkpoints" / "best.ckpt")
    tables = sum(p.numel() for name, p in model.named_parameters() if name == "items.ids.weight")
    return {
        "training events": int(dataset.train_end.sum()),
        "items": model.config.num_items,
        "parameters": sum(p.numel() for p in model.parameters()),
        "of them item ids": tables,
        "minutes": round(minutes, 2),
        "CPU minutes": round((usage.ru_utime + usage.ru_stime) / 60, 2),
        "peak memory, GiB": round(usage.ru_maxrss / 2**20, 2),
        "validation": next((line.removeprefix(_RESULT) for line in lines if line.startswith(_RESULT)), "none"),
    }


def publish(*, data: str, threads: int = 2, work: str | None = None, note: str | None = None) -> None:
    """Measure datasets and record a row for each.

    Args:
        data: NAME=DATA,… : prepared datasets and what to call them.
        threads: processor threads that a training may use.
        work: folder that keeps the runs, each in a folder NAME that must not exist; default none is kept.
        note: a sentence below the table.
    """
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for named in data.split(","):
            name, found, path = named.partition("=")
            if not found:
                raise InputError(f"--data: expected NAME=DATA, got {named!r}")
            folder = Path(work or scratch) / name
            if folder.exists():
                raise InputError(f"--work: {folder} exists; name another folder, or the dataset otherwise")
            folder.parent.mkdir(parents=True, exist_ok=True)
            rows.append({"data": name, **fit_cost(Path(path), folder, threads)})
    notes = [
        "Everything that `fit` does: training, choice of the weights, heads of semantic IDs, one training each. "
        f"{threads} threads; CPU minutes are of all threads together.",
        *([note] if note else []),
    ]
    record("fit-cost", "What a plain fit costs", "recsys fit --data.path DATA", rows, _COLUMNS, notes=notes)
    write(Path())


def main(argv: Sequence[str]) -> int:
    """Measure the datasets named, in the root of the repository."""
    return run_call(publish, argv, prog="fit_cost", example="fit_cost --data toys=DATA")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
