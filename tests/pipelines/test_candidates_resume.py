"""A killed run of candidates goes on where it was, and ends with the bytes of an undisturbed one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.pipelines.candidates import candidates

SETTINGS = {"k": 12, "rank": 6, "split": "test", "shard_users": 1, "batch_users": 3}


def parts(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def kill_midway(bundle: Path, data: Path, output: Path) -> int:
    """Run the command in a process of its own, kill it once it has written some parts, and count them."""
    flags = [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    code = "import sys, torch; torch.set_num_threads(1); from recsys.pipelines.cli import main; sys.exit(main())"
    where = ["--bundle", str(bundle), "--data", str(data), "--output", str(output)]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code, "candidates", *where, *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        if output.is_dir() and len(list(output.glob("*.parquet"))) >= 3:
            break
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return len(list(output.glob("*.parquet")))


def test_killed_and_resumed_is_undisturbed(toy_bundle: Path, toy_dataset: Dataset, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    candidates(toy_bundle, toy_dataset.path, whole, **SETTINGS)  # type: ignore[arg-type]
    num_parts = len(list(whole.glob("*.parquet")))
    for _ in range(5):  # a busy machine may let the process finish before it is killed
        shutil.rmtree(killed, ignore_errors=True)
        num_done = kill_midway(toy_bundle, toy_dataset.path, killed)
        if num_done < num_parts:
            break
    assert 3 <= num_done < num_parts
    (killed / ".part-00039.parquet.1.partial").write_bytes(b"half a part")
    before = {file.name: file.stat().st_mtime_ns for file in killed.glob("*.parquet")}
    candidates(toy_bundle, toy_dataset.path, killed, resume=True, **SETTINGS)  # type: ignore[arg-type]
    assert parts(killed) == parts(whole)
    assert all((killed / name).stat().st_mtime_ns == at for name, at in before.items())


def test_resume_of_a_new_or_finished_run(toy_bundle: Path, toy_dataset: Dataset, tmp_path: Path) -> None:
    candidates(toy_bundle, toy_dataset.path, tmp_path / "out", k=5, shard_users=15, resume=True)
    first = parts(tmp_path / "out")
    candidates(toy_bundle, toy_dataset.path, tmp_path / "out", k=5, shard_users=15, resume=True)
    assert parts(tmp_path / "out") == first
    assert sorted(first) == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet", "plan.json"]


def test_output_that_is_not_ours_is_left_alone(toy_bundle: Path, toy_dataset: Dataset, tmp_path: Path) -> None:
    output = tmp_path / "out"
    candidates(toy_bundle, toy_dataset.path, output, k=5)
    before = parts(output)
    with pytest.raises(InputError, match="is not empty; --resume goes on with it"):
        candidates(toy_bundle, toy_dataset.path, output, k=5)
    (tmp_path / "two.txt").write_text("u1\nu2\n")
    changes: list[tuple[dict[str, object], str]] = [
        ({"k": 6}, "k"),
        ({"k": 5, "at": 1}, "at"),
        ({"k": 5, "split": "validation"}, "split"),
        ({"k": 5, "rank": 2}, "rank"),
        ({"k": 5, "retrievers": "memory"}, "retrievers"),
        ({"k": 5, "users": tmp_path / "two.txt"}, "users"),
        ({"k": 5, "batch_users": 9}, "batch users"),
    ]
    for change, name in changes:
        with pytest.raises(InputError, match=f"was begun with another {name};"):
            candidates(toy_bundle, toy_dataset.path, output, resume=True, **change)  # type: ignore[arg-type]
    assert parts(output) == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds no plan.json"):
        candidates(toy_bundle, toy_dataset.path, tmp_path / "notes", resume=True)
    assert parts(tmp_path / "notes") == {"diary.txt": b"mine"}
