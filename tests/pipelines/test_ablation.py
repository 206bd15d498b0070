"""The ablation runner: what it trains, what it keeps when killed, what it says of options that fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.files import read_json
from recsys.pipelines import ablation as runner
from recsys.pipelines import fit
from recsys.pipelines.ablation import Job, ablation, main, train_apart
from recsys.pipelines.ablation_options import OPTIONS, chosen_options
from recsys.pipelines.ablation_run import code_hash
from recsys.pipelines.recipe import chosen_recipe
from recsys.pipelines.results import render
from recsys.pipelines.unified_module import UnifiedModule

NDCG = {"block": 0.11, "crop": 0.101, "": 0.1}


class Trainings:
    """Stands for trainings: figures by the first flag, plus a hundredth of the seed."""

    def __init__(self, kill_at: int | None = None, fails: str = "") -> None:
        self.kill_at, self.fails, self.jobs, self.lock = kill_at, fails, list[Job](), threading.Lock()

    def __call__(self, job: Job, folder: Path) -> dict[str, Any]:
        with self.lock:
            self.jobs.append(job)
            if len(self.jobs) == self.kill_at:
                raise KeyboardInterrupt
        flag = next(iter(job.flags), "").removeprefix("--model.")
        if flag and flag == self.fails:
            return {"error": "out of memory in one line"}
        figures = {"NDCG@10": NDCG[flag] + job.seed / 100, "Recall@10": 0.2, "Recall@100": 0.4, "AUC click": 0.6}
        return {"figures": figures | {"NDCG@10 of the sum": 0.12, "epochs": 3, "s/step": 0.01, "out of time": False}}


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "repository"
    (root / "docs" / "results").mkdir(parents=True)
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "start"], check=True)
    return root


def run(trainings: Any, dataset: Dataset, root: Path, **more: Any) -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "train_apart", trainings)
        settings = {"options": "block=hstu,crop=0.5", "jobs": 1, "work": root / "work", **more}
        path = ablation(dataset.path, "toy", root=root, **settings)
    result = read_json(path)
    assert path == root / "docs" / "results" / "ablation-toy.json" and "(defaults)" in render(result, "toy")
    assert set(result["columns"]) >= {
        "recsys fit …",
        "NDCG@10",
        "NDCG@10 of the sum",
        "AUC click",
        "× default",
        "s/step",
    }
    rows: list[dict[str, Any]] = result["rows"]
    return rows


def test_what_gains_is_trained_with_all_seeds_and_compared_with_the_default_of_the_same(toy_dataset, repository):
    trainings = Trainings()
    default, block, crop = run(trainings, toy_dataset, repository, seeds="0,1,2", jobs=2)
    assert len(trainings.jobs) == 3 + 2 * 2
    assert [row["seeds"] for row in (default, block, crop)] == [3, 3, 1]
    assert (default["NDCG@10"], block["NDCG@10"]) == (pytest.approx(0.11), pytest.approx(0.12))
    assert block["× default"] == pytest.approx(0.12 / 0.11) and default["× default"] == 1.0
    assert crop["× default"] == pytest.approx(1.01), "one seed beside the default's one seed, not its mean"
    assert block["recsys fit …"] == "--model.block hstu" and block["epochs"] == 3


def test_one_seed_alone_confirms_nothing(toy_dataset, repository):
    trainings = Trainings()
    rows = run(trainings, toy_dataset, repository, seeds="1")
    assert [job.seed for job in trainings.jobs] == [1, 1, 1] and [row["seeds"] for row in rows] == [1, 1, 1]


def test_killed_and_run_again_it_repeats_nothing_that_ended(toy_dataset, repository):
    for kill_at, ended in ((3, 2), (2, 3)):
        with pytest.raises(KeyboardInterrupt):
            run(Trainings(kill_at=kill_at), toy_dataset, repository, seeds="0,1")
        lines = (repository / "work" / "runs.jsonl").read_text().splitlines()
        assert len(lines) == ended
    with (repository / "work" / "runs.jsonl").open("a") as stream:
        stream.write('{"key": "cut sho')
    (repository / "work" / "run-left" / "run").mkdir(parents=True)
    rest = Trainings()
    rows = run(rest, toy_dataset, repository, seeds="0,1")
    assert not (repository / "work" / "run-left").exists()
    assert [(len(job.flags), job.seed) for job in rest.jobs] == [(0, 1), (1, 1)]
    again = Trainings()
    assert run(again, toy_dataset, repository, seeds="0,1") == rows and not again.jobs
    # Other settings, and other code, are other trainings.
    run(again, toy_dataset, repository, seeds="0", max_minutes=1.0)
    assert len(again.jobs) == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "code_hash", lambda: "other")
        run(again, toy_dataset, repository, seeds="0")
    assert len(again.jobs) == 6


def test_an_option_that_fails_gets_its_line_and_is_tried_again(toy_dataset, repository):
    default, block, crop = run(Trainings(fails="block"), toy_dataset, repository)
    assert block["failed"] == "out of memory in one line" and "NDCG@10" not in block
    assert default["seeds"] == crop["seeds"] == 1 and "failed" not in crop
    again = Trainings()
    assert run(again, toy_dataset, repository, seeds="0")[1]["NDCG@10"] == pytest.approx(0.11)
    assert len(again.jobs) == 1
    with pytest.raises(InputError, match="the default recipe does not train .*: broken"):
        run(lambda job, folder: {"error": "broken"}, toy_dataset, repository, epochs=7)


def test_a_training_in_a_process_of_its_own(toy_dataset, repository):
    """The whole path, with the network and the passes made small, and an option that cannot be built."""
    asked = {"--model.dim": "8", "--model.num_blocks": "1", "--model.window": "8", "--data.batch_tokens": "128"}
    about: dict[str, Any] = {
        "data": str(toy_dataset.path),
        "data_hash": "",
        "code_hash": "",
        "minutes": 1.0,
        "epochs": 1,
    }
    good = Job(flags=asked, seed=3, **about)
    figures = train_apart(good, repository)["figures"]
    assert {"NDCG@10", "Recall@10", "Recall@100", "NDCG@10 of the sum"} <= set(figures)
    assert 0 <= figures["NDCG@10"] <= figures["Recall@10"] <= figures["Recall@100"] <= 1
    assert figures["epochs"] == 1 and 0 < figures["s/step"] < 5 and figures["out of time"] is False
    bad = train_apart(Job(flags={"--model.dim": "7"}, seed=0, **about), repository)
    assert "multiple of model.num_heads" in bad["error"] and "\n" not in bad["error"]
    died = train_apart(good, repository, module="recsys.no_such_module")
    assert died["error"].startswith("its process ended with code 1")
    assert not list(repository.glob("run-*")), "nothing of a training is kept"


def test_the_runner_looks_at_validation_alone(toy_dataset, tmp_path, monkeypatch):
    from recsys.pipelines.ablation_run import one_training

    asked: set[str] = set()
    requests = Dataset.requests

    def watched(self: Dataset, split: str, **more: Any) -> Any:
        asked.add(split)
        return requests(self, split, **more)

    monkeypatch.setattr(Dataset, "requests", watched)
    monkeypatch.setattr(fit, "add_code_heads", lambda *_, **__: pytest.fail("no figure here is of semantic IDs"))
    flags = {"--model.dim": "8", "--model.num_blocks": "1", "--model.window": "8"}
    job = {"data": toy_dataset.path, "flags": flags, "seed": 0, "minutes": 1.0, "epochs": 1}
    one_training(job, tmp_path / "run")
    assert asked == {"validation"}


def test_slates_make_the_model_wider(toy_dataset, small_world):
    assert (chosen_recipe(toy_dataset).model.dim, chosen_recipe(toy_dataset).model.dropout) == (64, 0.3)
    recipe = chosen_recipe(small_world)
    assert (recipe.model.dim, recipe.model.dropout) == (96, 0.2)
    assert "96 wide" in recipe.reasons["dim"]


def test_options_name_settings_of_fit_and_those_without_effect_are_left_out(toy_dataset):
    recipe = chosen_recipe(toy_dataset).model
    parameters = UnifiedModule.__init__.__annotations__
    assert all(name in parameters for option in OPTIONS for name in option.settings)
    assert len({option.name for option in OPTIONS}) == len(OPTIONS)
    for option in OPTIONS:
        UnifiedModule(**option.settings)
    names = [option.name for option in chosen_options(toy_dataset, recipe, None)]
    assert "block=hstu" in names and "past_rates=true" not in names, "the toy data has no slates"
    told = [option.name for option in chosen_options(toy_dataset, replace(recipe, user_dim=3), None)]
    assert "use_user_features=false" in told and "use_user_features=false" not in names
    with pytest.raises(InputError, match="there is no 'blok'; there are block=hstu"):
        chosen_options(toy_dataset, recipe, ["blok"])
    with pytest.raises(InputError, match="pairwise_weight=0.5 changes nothing"):
        chosen_options(toy_dataset, recipe, ["pairwise_weight=0.5"])


def test_the_hash_of_the_code_covers_what_is_imported_and_no_more(tmp_path, monkeypatch):
    from recsys.pipelines import ablation_run

    before = code_hash()
    assert before == code_hash()
    read, seen = Path.read_bytes, set()

    def watched(self: Path) -> bytes:
        seen.add(self.name)
        return read(self) + (b"# changed" if self.name == change else b"")

    monkeypatch.setattr(ablation_run.Path, "read_bytes", watched)
    change = "objective.py"
    assert code_hash() != before
    change = "report.py"
    assert code_hash() == before and {"losses.py", "fit.py", "attention.py"} <= seen and "ablation.py" not in seen


def test_the_command_line(toy_dataset, capsys):
    given: dict[str, Any] = {}

    def kept(data: Path, **more: Any) -> None:
        given.update(more, data=data)

    words = ["--data.path", str(toy_dataset.path), "--name", "toy", "--options", "crop=0.5", "--max-minutes", "2"]
    assert main(words, kept) == 0
    assert (given["data"], given["name"], given["options"]) == (toy_dataset.path, "toy", "crop=0.5")
    assert (given["max_minutes"], given["seeds"], given["jobs"]) == (2.0, "0,1,2", 2)
    assert main([*words, "--jobs", "0"]) == 2 and "--jobs must be positive" in capsys.readouterr().err
    assert main([*words, "--seeds", "0,0"]) == 2 and "names one twice" in capsys.readouterr().err
    assert main([*words, "--job", "1"]) == 2 and "--job" in capsys.readouterr().err


def test_a_training_ends_with_the_runner(toy_dataset, tmp_path):
    """Killed with a signal that nobody can catch, the runner leaves no process behind."""
    job = {"data": str(toy_dataset.path), "flags": {}, "seed": 0, "minutes": 5.0, "epochs": 1000}
    (tmp_path / "job.json").write_text(json.dumps(job))
    words = [sys.executable, "-P", "-m", "recsys.pipelines.ablation_run", str(tmp_path / "job.json"), "answer.json"]
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=dict(os.environ), cwd=tmp_path
    )
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=60) == 1 and not (tmp_path / "answer.json").exists()
