"""A job killed at any step and resumed ends with the bytes of an undisturbed one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from recsys.errors import InputError
from recsys.pipelines.checkpoint import load_model
from recsys.pipelines.data_module import PreparedData
from recsys.pipelines.fit import _resumed, _SaveConfig
from recsys.pipelines.last_checkpoint import WholeCheckpoints

FLAGS = (
    "--trainer.max_epochs=3 --trainer.accelerator=cpu --last_every_n_steps=3 --patience=9 --data.batch_tokens=10"
    " --model.dim=16 --trainer.enable_progress_bar=false"
).split()
SCRIPT = (
    "import sys, torch; torch.set_num_threads(1); from recsys.pipelines.cli import main; sys.exit(main(sys.argv[1:]))"
)


def start(data: Path, run: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", SCRIPT, "fit", "--data.path", str(data), "--trainer.default_root_dir", str(run)]
    return subprocess.Popen([*command, *more], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()[-2000:]


def kill_after_writes(process: subprocess.Popen[bytes], last: Path, writes: int) -> bool:
    """SIGKILL once ``last.ckpt`` was written so many times; whether it came before the end."""
    seen, stamp = 0, last.stat().st_mtime_ns if last.exists() else 0
    while process.poll() is None and seen < writes:
        time.sleep(0.002)
        now = last.stat().st_mtime_ns if last.exists() else stamp
        seen, stamp = seen + (now != stamp), now
    process.send_signal(signal.SIGKILL)
    process.wait()
    return process.returncode == -signal.SIGKILL


def epoch_of(dataset) -> range:
    """The steps of an epoch with the flags above."""
    data = PreparedData(str(dataset.path), batch_tokens=10)
    return range(data.examples(data.recipe.model).steps_per_epoch)


def test_killed_three_times_ends_bit_equal(toy_dataset, tmp_path):
    undisturbed = start(toy_dataset.path, tmp_path / "whole", *FLAGS)
    disturbed = tmp_path / "killed"
    rng = random.Random(11)
    epoch_steps = len(epoch_of(toy_dataset))
    inside_an_epoch = 0
    for attempt in range(3):
        more = FLAGS if attempt == 0 else ["--ckpt_path", "last"]
        process = start(toy_dataset.path, disturbed, *more)
        assert kill_after_writes(process, disturbed / "checkpoints" / "last.ckpt", rng.randint(2, 6))
        kept = torch.load(disturbed / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
        inside_an_epoch += kept % epoch_steps > 0
    assert inside_an_epoch >= 2
    finish(start(toy_dataset.path, disturbed, "--ckpt_path", "last"))
    finish(undisturbed)
    for name in ("last", "best"):
        whole, killed = (
            torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
            for run in (tmp_path / "whole", disturbed)
        )
        assert whole["global_step"] == killed["global_step"] > 10
        assert whole["state_dict"].keys() == killed["state_dict"].keys()
        for key, value in whole["state_dict"].items():
            assert torch.equal(value, killed["state_dict"][key]), (name, key)
    assert sorted(p.name for p in (disturbed / "checkpoints").glob("*.ckpt")) == ["best.ckpt", "last.ckpt"]


def test_bad_training_flags_are_one_line_and_leave_no_run(toy_dataset, tmp_path, capsys, monkeypatch):
    from recsys.pipelines.cli import main

    monkeypatch.chdir(tmp_path)
    absent, broken = str(tmp_path / "absent"), tmp_path / "broken.ckpt"
    broken.write_bytes(b"PAR1 not a checkpoint")
    for flags, words in (
        (["--data.path", str(tmp_path / "nothing")], "not a prepared dataset"),
        (["--data.path", str(toy_dataset.path), "--model.dim", "15"], "must be a multiple of model.num_heads"),
        (["--data.path", str(toy_dataset.path), "--data.sids", absent], "absent is no file"),
        (["--data.path", str(toy_dataset.path), "--model.dimm", "16"], "dimm"),
        (["--data.path", str(toy_dataset.path), "--model.block", "lstm"], "block"),
        (
            ["--data.path", str(toy_dataset.path), "--trainer.default_root_dir", "s3://b/run"],
            "s3:/b/run is a URL",
        ),
        (["--data.path", str(toy_dataset.path), "--trainer.max_epoch", "1"], "unknown flag --trainer.max_epoch"),
        (["--data.path", str(toy_dataset.path), "--trainer.devices=0"], "the --trainer.… flags cannot be followed"),
        (["--data.path", str(toy_dataset.path), "--ckpt_path", str(broken)], "cannot be read as a checkpoint (no file"),
        (
            ["--data", str(toy_dataset.path)],
            f"must be --data.path here, as in `recsys fit --data.path {toy_dataset.path}`",
        ),
        (["--data.path", str(toy_dataset.path), "--ckpt_path=last", "--trainer.default_root_dir", absent], "absent"),
    ):
        code = main(["fit", *flags, "--trainer.accelerator=cpu"])
        out, error = capsys.readouterr()
        assert code == 2 and words in error and len(error.strip().splitlines()) == 1 and out == "", error
        assert [path.name for path in tmp_path.iterdir()] == ["broken.ckpt"], words


def test_last_is_of_the_newest_run_or_of_the_one_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("new", "old")):
        last = tmp_path / "runs" / name / "checkpoints" / "last.ckpt"
        last.parent.mkdir(parents=True)
        last.touch()
        os.utime(last, (1000 - age, 1000 - age))
    for command in ("validate", "test"):
        newest = _resumed([command, "--ckpt_path=last", "--data.path", "data"])
        assert newest == [command, "--data.path", "data", "--ckpt_path", "runs/new/checkpoints/last.ckpt"]
        named = _resumed([command, "--trainer.default_root_dir=runs/old", "--ckpt_path", "last"])
        assert named[-1] == "runs/old/checkpoints/last.ckpt"
    assert _resumed(["fit", "--ckpt_path", "last"])[-3:] == [
        "runs/new",
        "--ckpt_path",
        "runs/new/checkpoints/last.ckpt",
    ]
    shutil.rmtree(tmp_path / "runs")
    with pytest.raises(InputError, match="no run stands in runs/"):
        _resumed(["test", "--ckpt_path", "last"])


def test_foreign_or_broken_checkpoint_is_one_line(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    (tmp_path / "broken.ckpt").write_bytes(b"PK\x03\x04 not a checkpoint")
    for name, words in (("foreign", "no checkpoint of"), ("broken", "cannot be read"), ("missing", "does not exist")):
        with pytest.raises(InputError, match=words):
            load_model(tmp_path / f"{name}.ckpt")
    for strange in (b"hello\n", b"h", b"\x80\x02X\x01", b"\x80\x02X\x01\x00\x00\x00\xff.", b"\x80\x02K\x01K\x02s."):
        (tmp_path / "strange.ckpt").write_bytes(strange)
        with pytest.raises(InputError, match="cannot be read as a checkpoint") as caught:
            load_model(tmp_path / "strange.ckpt")
        assert "\n" not in str(caught.value)
    shutil.rmtree(tmp_path)


def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_one(tmp_path):
    whole = WholeCheckpoints()
    whole.save_checkpoint({"step": 1}, tmp_path / "deep" / "best.ckpt")
    with pytest.raises(AttributeError):  # a local function cannot be pickled, which shows when half is written
        whole.save_checkpoint({"step": 2, "not": lambda: None}, str(tmp_path / "deep" / "best.ckpt"))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["best.ckpt"]
    assert torch.load(tmp_path / "deep" / "best.ckpt", weights_only=True) == {"step": 1}


def test_settings_that_cannot_be_written_leave_the_earlier_ones(tmp_path):
    class Half:
        def save(self, config, path, **how):
            Path(path).write_text("model:\n  di")
            raise OSError("killed")

    (tmp_path / "config.yaml").write_text("model: {}\n")
    trainer = SimpleNamespace(is_global_zero=True, default_root_dir=str(tmp_path))
    with pytest.raises(OSError, match="killed"):
        _SaveConfig(Half(), None).setup(trainer, None, "fit")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["model: {}\n"]


def test_a_run_without_validation_still_leaves_a_checkpoint(toy_dataset, tmp_path):
    from recsys.pipelines.fit import fit_dataset

    writers = []

    class Watch(L.Callback):
        def on_fit_end(self, trainer, pl_module):
            writers.append(trainer.strategy.checkpoint_io)

    for number, settings in enumerate(({"max_steps": 1}, {"max_epochs": 1, "limit_val_batches": 0})):
        best = fit_dataset(
            toy_dataset, tmp_path / str(number), watchers=[Watch()], quiet=True, enable_progress_bar=False,
            accelerator="cpu", **settings,
        )  # fmt: skip
        assert isinstance(writers.pop(), WholeCheckpoints)
        assert load_model(best)[1]["data_hash"] == toy_dataset.manifest.data_hash
