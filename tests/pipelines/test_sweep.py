"""The search over settings: what it draws, what it records, and that a killed one goes on where it was."""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.files import read_json
from recsys.pipelines import sweep_trial
from recsys.pipelines.cli import main
from recsys.pipelines.data_module import PreparedData
from recsys.pipelines.sweep import sweep
from recsys.pipelines.sweep_space import search_space
from recsys.pipelines.sweep_trial import Figures

pytest.importorskip("optuna", reason="the extra `sweep` is not installed")


def made_up(flags: Sequence[str], epoch: int) -> Figures:
    """Figures that are best at a dropout of 0.2 and a small learning rate."""
    values = dict(flag.split("=") for flag in flags)
    loss = abs(float(values["--model.dropout"]) - 0.2) + float(values["--model.lr"])
    ndcg = (1.0 - loss) * epoch / 4
    return Figures(ndcg * 0.5, ndcg, {"click": 0.75})


def interrupted() -> None:
    raise KeyboardInterrupt


class Trainings:
    """Stands for trainings of four epochs, to look at the search alone."""

    def __init__(
        self, kill_at: int | None = None, fail_at: int | None = None, kill: Callable[[], None] = interrupted
    ) -> None:
        self.kill_at, self.fail_at, self.kill = kill_at, fail_at, kill
        self.flags: list[list[str]] = []

    def __call__(
        self, dataset: Dataset, folder: Path, flags: Sequence[str], hopeless: Any
    ) -> tuple[Figures, int, bool]:
        self.flags.append(list(flags))
        for epoch in range(1, 5):
            if hopeless(epoch, made_up(flags, epoch)):
                return made_up(flags, epoch), epoch, True
            if len(self.flags) == self.kill_at and epoch == 2:
                self.kill()
            if len(self.flags) == self.fail_at and epoch == 2:
                raise RuntimeError("out of memory\nin two lines")
        return made_up(flags, 4), 4, False


def search(data: Path, study: Path, trainings: Trainings, trials: int, **more: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_trial, "run_trial", trainings)
        return sweep(data, trials=trials, study=study, **more)


def drawn(result: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(trial["state"], trial["objective"], trial["settings"]) for trial in result["trials"]]


def test_the_default_comes_first_and_the_search_finds_better(toy_dataset, tmp_path):
    trainings = Trainings()
    result = search(toy_dataset.path, tmp_path / "s.db", trainings, 12)
    space = search_space(PreparedData(str(toy_dataset.path)), {})
    assert trainings.flags[0] == [f"{setting.flag}={setting.default}" for setting in space]
    assert len(result["trials"]) == 12 and result["objective"] == "ndcg@10 × (2 auc − 1)"
    assert {trial["state"] for trial in result["trials"]} == {"complete", "pruned"}
    objectives = [trial["objective"] for trial in result["trials"] if trial["state"] == "complete"]
    assert result["best"]["objective"] == max(objectives) > result["trials"][0]["objective"]
    assert result["best"]["objective"] == pytest.approx(result["best"]["ndcg@10"] * 0.5)
    best = [f"{flag}={value}" for flag, value in result["best"]["settings"].items()]
    assert result["command"] == ["recsys", "fit", "--data.path", str(toy_dataset.path), *best]


def test_killed_and_run_again_it_ends_like_an_undisturbed_one(toy_dataset, tmp_path):
    whole = search(toy_dataset.path, tmp_path / "whole.db", Trainings(), 11)
    study = tmp_path / "killed.db"
    for kill_at in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            search(toy_dataset.path, study, Trainings(kill_at=kill_at), 11)
    # A signal that nobody can catch, where the sampler has learned already.
    code = (
        "import os, pathlib, runpy, signal, sys; here = runpy.run_path(sys.argv[1]);"
        "kill = lambda: os.kill(os.getpid(), signal.SIGKILL);"
        "here['search'](*map(pathlib.Path, sys.argv[2:]), here['Trainings'](kill_at=9, kill=kill), 11)"
    )
    words = [sys.executable, "-P", "-c", code, __file__, str(toy_dataset.path), str(study)]
    assert subprocess.run(words, capture_output=True, timeout=120).returncode == -signal.SIGKILL
    rest = Trainings()
    result = search(toy_dataset.path, study, rest, 11)
    assert 0 < len(rest.flags) < 4, "what was done before is not done again"
    assert drawn(result) == drawn(whole)
    # With every trial there, nothing runs; with more wanted, only those.
    more = Trainings()
    assert drawn(search(toy_dataset.path, study, more, 11)) == drawn(whole) and not more.flags
    search(toy_dataset.path, study, more, 12)
    assert len(more.flags) == 1


def test_a_failed_trial_is_recorded_and_the_search_goes_on(toy_dataset, tmp_path, capsys):
    result = search(toy_dataset.path, tmp_path / "s.db", Trainings(fail_at=2), 4)
    assert [trial["state"] for trial in result["trials"]][:2] == ["complete", "fail"]
    assert result["trials"][1]["error"] == "out of memory in two lines"
    said = capsys.readouterr()
    assert "failed: out of memory in two lines" in said.err and "1 failed" in said.out
    with pytest.raises(InputError, match="none of the 1 trials .*: out of memory"):
        search(toy_dataset.path, tmp_path / "s.db", Trainings(fail_at=1), 1, seed=1)


def test_what_is_given_is_not_tuned(toy_dataset, tmp_path):
    trainings = Trainings()
    fixed = ["--model.use_actions=false", "--model.dim=24", "--model.use_content=false"]
    result = search(toy_dataset.path, tmp_path / "s.db", trainings, 5, fixed=fixed, epochs=7)
    tuned = {flag.split("=")[0] for flag in trainings.flags[0]}
    assert {"--model.mask_prob", "--model.action_weight", "--model.id_dropout"}.isdisjoint(tuned)
    for flags in trainings.flags:
        assert {*fixed, "--trainer.max_epochs=7"} <= set(flags) and len(flags) == len(tuned)
    assert {*fixed, "--trainer.max_epochs=7"} <= set(result["command"])
    # Other flags make another study in the same file.
    other = Trainings()
    search(toy_dataset.path, tmp_path / "s.db", other, 2)
    assert len(other.flags) == 2


def test_no_trial_starts_after_the_hours(toy_dataset, tmp_path):
    trainings = Trainings()
    search(toy_dataset.path, tmp_path / "s.db", trainings, 50, hours=1e-9)
    assert len(trainings.flags) == 1


def test_trials_are_trainings_that_never_ask_for_the_test_split(toy_dataset, tmp_path, monkeypatch, capsys):
    asked: set[str] = set()
    requests = Dataset.requests

    def watched(self: Dataset, split: str, **more: Any) -> Any:
        asked.add(split)
        return requests(self, split, **more)

    monkeypatch.setattr(Dataset, "requests", watched)
    monkeypatch.chdir(tmp_path)
    flags = ["--trials", "2", "--epochs", "2", "--trainer.accelerator", "cpu", "--model.window=16", "--model.dim=16"]
    assert main(["sweep", "--data.path", str(toy_dataset.path), *flags, "--json", "out.json"]) == 0
    assert asked == {"validation"}
    study = f"sweep-{toy_dataset.manifest.data_hash[:12]}.db"
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [study, f"{study}.lock"]
    found = read_json(tmp_path / "out.json")
    said = capsys.readouterr().out
    assert found["objective"] == "ndcg@10" and not found["best"]["auc"], "these data have no slates"
    assert shlex.join(found["command"]) in said and "default" in said
    # The printed command trains what was measured.
    assert main([*found["command"][1:], "--trainer.default_root_dir=run", "--trainer.enable_progress_bar=false"]) == 0
    assert f"best validation NDCG@10 of dense_learned: {found['best']['ndcg@10']:.4f}" in capsys.readouterr().out


def test_bad_input_is_one_line(toy_dataset, tmp_path, capsys):
    (tmp_path / "text.db").write_text("not a database")
    data = ["--data.path", str(toy_dataset.path), "--study", str(tmp_path / "s.db")]
    for flags, words in (
        ([], "--data.path must be given"),
        (["--data.path", str(tmp_path / "nothing")], "not a prepared dataset"),
        ([*data, "--trials", "0"], "--trials must be positive"),
        ([*data, "--trial", "3"], "did you mean --trials?"),
        ([*data, "--hours=-1"], "--hours must be positive"),
        ([*data, "--study", str(tmp_path / "text.db")], "no SQLite file"),
        ([*data, "--study", str(tmp_path)], "is a folder"),
        ([*data, "--model.dimm=3"], "dimm"),
        ([*data, "--model.layout=sideways"], "layout"),
        ([*data, "--trainer.default_root_dir=x"], "--trainer.default_root_dir cannot be given"),
    ):
        code = main(["sweep", *flags])
        error = capsys.readouterr().err
        assert code == 2 and words in error and len(error.strip().splitlines()) == 1, error


def test_two_sweeps_on_one_study_do_not_mix(toy_dataset, tmp_path):
    from recsys.pipelines.sweep import _alone

    with _alone(tmp_path / "s.db"), pytest.raises(InputError, match="another sweep is at work"):
        search(toy_dataset.path, tmp_path / "s.db", Trainings(), 1)


def test_without_optuna_it_names_the_extra(toy_dataset, monkeypatch, capsys):
    with contextlib.suppress(KeyError):
        monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["sweep", "--data.path", str(toy_dataset.path)]) == 2
    assert "pip install 'recsys[sweep]'" in capsys.readouterr().err
