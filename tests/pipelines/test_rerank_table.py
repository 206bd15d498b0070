"""The table of rerankers: rows, controls, resuming, comparisons and what is published."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.pipelines import rerank_runs, rerank_table_store
from recsys.pipelines.language_model import ModelOptions
from recsys.pipelines.rerank_lists import RerankLists, lists_of
from recsys.pipelines.rerank_options import RerankOptions
from recsys.pipelines.rerank_runs import run_lists, seconds_in_turns, shuffled
from recsys.pipelines.rerank_table import main
from recsys.pipelines.rerank_table_figures import change, tau
from recsys.pipelines.rerank_table_publish import method_rows, publish, side_rows
from recsys.pipelines.rerank_table_store import file_of, read_rows, stored_run
from recsys.retrieval.rerank import Reranker, RerankRequest, RerankResult
from recsys.retrieval.rerank.lm.usage import Usage


class ById(Reranker):
    """Orders by id, so that the order of the input does not matter; counts its lists."""

    name = "by-id"

    def __init__(self) -> None:
        self.num_lists = 0

    async def rerank_async(
        self, requests: Sequence[RerankRequest], *, deadline: float | None = None
    ) -> list[RerankResult]:
        self.num_lists += len(requests)
        return [
            RerankResult(ids=tuple(sorted(one.ids)), candidates=one.ids, usage=Usage(calls=2, prompt_tokens=5))
            for one in requests
        ]


@pytest.fixture(scope="module")
def lists(toy_bundle: Path, toy_dataset: Dataset) -> RerankLists:
    return lists_of(Bundle.open(toy_bundle), toy_dataset, "test", 8, 9, hits_only=True)


def words(toy_bundle: Path, toy_dataset: Dataset, work: Path, *more: object) -> list[str]:
    return [str(one) for one in ("--bundle", toy_bundle, "--data", toy_dataset.path, "--work", work, *more)]


def test_rows_hold_both_sides_and_controls_and_are_measured_once(
    toy_bundle: Path, toy_dataset: Dataset, small_lm_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = words(
        toy_bundle, toy_dataset, tmp_path, "--lm", small_lm_folder, "--methods", "first,pairwise-all,pairwise-heap",
        "--users", 30, "--validation-users", 5, "--top", 6,
    )  # fmt: skip
    assert main(asked) == 0
    rows = {row["name"]: row for row in read_rows(tmp_path / "rows.jsonl")}
    assert list(rows) == ["first", "pairwise-all", "pairwise-heap"]
    num = rows["first"]["before"]["num_lists"]
    assert num >= 3
    for row in rows.values():
        before, after, fused = row["before"], row["after"], row["fused"]
        assert before["num_lists"] == after["num_lists"] == before["num_hits"] == num <= before["num_asked"]
        assert after["ndcg@10_hits_change"] == pytest.approx(after["ndcg@10_hits"] - before["ndcg@10_hits"])
        assert after["ndcg@10"] == pytest.approx(after["ndcg@10_hits"] * num / before["num_asked"])
        assert fused["adopted"] == (fused["weight"] > 0) and fused["num_validation"] == 5
        assert row["shuffled"]["num_lists"] == num and -1.0 <= row["shuffled"]["kendall_tau"] <= 1.0
        assert row["num_incomplete"] == 0 and row["settings"]["lm_hash"]
    assert rows["first"]["calls_per_list"] == 1.0 and rows["pairwise-all"]["calls_per_list"] == 30.0
    capsys.readouterr()
    assert main(asked) == 0
    assert "its row is there already" in capsys.readouterr().out
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 3

    assert (
        main(["compare", *words(toy_bundle, toy_dataset, tmp_path, "--ours", "first", "--other", "pairwise-all")]) == 0
    )
    more = ("--of", "pairwise-all", "--others", "pairwise-heap", "--lists", 3)
    assert main(["reference", *words(toy_bundle, toy_dataset, tmp_path, *more)]) == 0
    more = ("--lm", small_lm_folder, "--lists", 2, "--count", 5, "--top", 6)
    assert main(["permutations", *words(toy_bundle, toy_dataset, tmp_path, *more)]) == 0
    side = {row["kind"]: row for row in read_rows(tmp_path / "rows.jsonl") if "kind" in row}
    compared = side["compare"]
    difference = rows["first"]["after"]["ndcg@10_hits"] - rows["pairwise-all"]["after"]["ndcg@10_hits"]
    assert compared["ndcg@10_hits_change"] == pytest.approx(difference) and compared["num_lists"] == num
    assert compared["num_timed"] == num - 1 and 0 < compared["time_ratio"] < 1  # 1 call against 30
    asked_again = ("--ours", "first", "--other", "pairwise-all", "--timed", 0)
    assert main(["compare", *words(toy_bundle, toy_dataset, tmp_path, *asked_again)]) == 0
    stored = next(row for row in read_rows(tmp_path / "rows.jsonl") if row.get("kind") == "compare")
    ratio = rows["first"]["ms_per_list"] / rows["pairwise-all"]["ms_per_list"]
    assert stored["num_timed"] == 0 and stored["time_ratio"] == pytest.approx(ratio)
    assert side["reference"]["num_lists"] == 3 and 0 < side["reference"]["calls_ratio"] <= 1
    assert 0 <= side["reference"]["same_top10"] <= 1
    found = side["permutations"]
    assert found["num_lists"] == found["num_identical"] == 2 and found["most_orders"] == 1
    assert found["largest_score_difference"] <= 1e-4
    assert main(["compare", *words(toy_bundle, toy_dataset, tmp_path, "--ours", "first", "--other", "second")]) == 2
    assert "has no row 'second'" in capsys.readouterr().err
    assert main(["tables"]) == 2


def test_a_row_goes_on_with_more_time(
    toy_bundle: Path,
    toy_dataset: Dataset,
    small_lm_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stored_run, "__kwdefaults__", (stored_run.__kwdefaults__ or {}) | {"at_once": 1})
    asked = words(
        toy_bundle, toy_dataset, tmp_path, "--lm", small_lm_folder, "--methods", "first",
        "--users", 30, "--validation-users", 2, "--top", 4,
    )  # fmt: skip
    assert main([*asked, "--minutes", "0"]) == 0
    (cut,) = read_rows(tmp_path / "rows.jsonl")
    assert cut["after"]["num_lists"] == cut["fused"]["num_validation"] == 1
    assert main([*asked, "--minutes", "5"]) == 0
    (whole,) = read_rows(tmp_path / "rows.jsonl")
    assert whole["after"]["num_lists"] >= 3 and whole["fused"]["num_validation"] == 2
    assert main(asked) == 0
    assert "its row is there already, with all lists" in capsys.readouterr().out


def test_an_ended_job_goes_on_where_it_stopped(lists: RerankLists, tmp_path: Path) -> None:
    path, whole = tmp_path / "run.jsonl", ById()
    truth = run_lists(ById(), lists.requests)
    first = stored_run(path, whole, lists.requests, seconds=0.0, at_once=2)
    assert len(first) == 2  # one call, whatever the time
    path.write_text(path.read_text() + '{"candidates": ["i1"')
    rest = stored_run(path, whole, lists.requests, seconds=60.0, at_once=2)
    assert rest.results == truth.results and whole.num_lists == len(lists)
    again = stored_run(path, None, lists.requests[:5], seconds=0.0)
    assert again.results == truth.results[:5] and again.usage == Usage(calls=10, prompt_tokens=25)
    with pytest.raises(InputError, match="holds results of other lists"):
        stored_run(path, None, lists.requests[::-1], seconds=0.0)


def test_methods_are_timed_by_turns_without_their_first_list(
    lists: RerankLists, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(rerank_runs, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    asked: list[tuple[str, list[RerankRequest]]] = []

    class Slow(ById):
        def __init__(self, name: str, seconds: float) -> None:
            super().__init__()
            self.name, self.seconds = name, seconds

        async def rerank_async(
            self, requests: Sequence[RerankRequest], *, deadline: float | None = None
        ) -> list[RerankResult]:
            asked.append((self.name, list(requests)))
            clock[0] += self.seconds * (100 if self.num_lists == 0 else 1)
            return await super().rerank_async(requests, deadline=deadline)

    both = [Slow("slow", 4.0), Slow("fast", 1.0)]
    seven = (list(lists.requests) * 7)[:7]
    assert seconds_in_turns(both, seven, at_once=2) == [12.0, 3.0]
    assert [name for name, _ in asked] == ["slow", "fast", "fast", "slow", "slow", "fast", "fast", "slow"]
    assert [len(requests) for _, requests in asked] == [1, 1, 2, 2, 2, 2, 2, 2]
    assert sum((requests for name, requests in asked if name == "fast"), []) == seven


def test_options_are_those_of_a_row_again_unless_the_model_is_another(small_lm_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_lm_folder, tmp_path / "lm")
    options = RerankOptions(method="first", lm=str(folder), model=ModelOptions(dtype="bfloat16"), top=7)
    assert RerankOptions.of_identity(options.identity()) == options
    feedback = RerankOptions(method="embedding-feedback", feedback=tmp_path / "head")
    assert RerankOptions.of_identity(json.loads(json.dumps(feedback.identity()))) == feedback
    said = options.identity()
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(InputError, match="has changed since its row"):
        RerankOptions.of_identity(said)


def test_no_time_left_begins_no_more_lists(lists: RerankLists) -> None:
    assert len(run_lists(ById(), lists.requests, seconds=0.0, at_once=3)) == 3
    told: list[int] = []
    assert len(run_lists(ById(), lists.requests, at_once=4, advance=told.append)) == len(lists) == sum(told)


def test_shuffled_lists_hold_the_same_items_in_another_order(lists: RerankLists) -> None:
    mixed = shuffled(lists.requests, 0)
    assert mixed == shuffled(lists.requests, 0) != shuffled(lists.requests, 1)
    for one, other in zip(lists.requests, mixed, strict=True):
        assert set(one.candidates) == set(other.candidates) and one.history == other.history
    assert [one.ids for one in lists.requests] != [one.ids for one in mixed]
    orders, others = run_lists(ById(), lists.requests).orders, run_lists(ById(), mixed).orders
    assert orders == others
    assert [tau(*pair) for pair in zip(orders, others, strict=True)] == pytest.approx([1.0] * len(lists))
    assert tau(("a", "b", "c"), ("c", "b", "a")) == -1.0 and tau(("a",), ("a",)) == 1.0


def test_a_change_counts_lists_that_were_not_kept_as_nothing(lists: RerankLists) -> None:
    best = [
        sorted(one.ids, key=lambda item_id, target=target: item_id != target)
        for one, target in zip(lists.requests, lists.target_ids, strict=True)
    ]
    found = change(lists, best, None, seed=0)
    before = lists.ndcg()
    assert found["ndcg@10_hits_change"] == pytest.approx(float(np.mean(1.0 - before)))
    assert found["ndcg@10_change"] == pytest.approx(float(np.sum(1.0 - before)) / lists.num_asked)
    assert change(lists, best, best, seed=0)["ndcg@10_hits_change_ci"] == [0.0, 0.0]


def test_file_names_are_plain() -> None:
    assert file_of("first (trained)") == "first-trained" and file_of("a/b") == "a-b"


def row(name: str, after: float, weight: float) -> dict[str, Any]:
    ci = [after - 0.01, after + 0.01]
    figures = {"num_lists": 5, "num_asked": 50, "ndcg@10_hits": after, "ndcg@10_hits_ci": ci, "changed": 0.4}
    figures |= {key: ci if key.endswith("ci") else 0.02 for key in (
        "ndcg@10_change", "ndcg@10_change_ci", "ndcg@10_hits_change", "ndcg@10_hits_change_ci")}  # fmt: skip
    return {
        "name": name, "top": 20, "retriever": "dense", "data_hash": "ab" * 32, "after": figures,
        "before": {"ndcg@10_hits": 0.3}, "fused": figures | {"weight": weight, "adopted": weight > 0},
        "shuffled": {"ndcg@10_hits": 0.2, "ndcg@10_hits_random": 0.1}, "ms_per_list": 12.6,
        "prompt_tokens_per_list": 700.2, "reused_tokens_per_list": 3.0, "generated_tokens_per_list": 0.0,
    }  # fmt: skip


def test_published_rows_say_what_was_not_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("weak", 0.2, 0.0), row("strong", 0.4, 0.5)]
    shown = method_rows(rows)
    assert [one["method"] for one in shown] == ["strong", "weak"]
    assert shown[0]["weight"] == "0.5" and shown[0]["fused"] == 0.4
    assert shown[1]["weight"] == "not adopted" and "fused" not in shown[1]
    same = {"name": "set on 100 permutations", "kind": "permutations", "num_lists": 3, "num_identical": 3,
            "largest_score_difference": 1e-6}  # fmt: skip
    assert side_rows([same])[0]["same top 10"] == "3 of 3 lists: one order for all"
    for one in [*rows, same]:
        rerank_table_store.append_row(tmp_path / "work.jsonl", one)
    work, root = tmp_path / "work", tmp_path / "repository"
    work.mkdir()
    (tmp_path / "work.jsonl").rename(work / "rows.jsonl")
    (root / "docs" / "results").mkdir(parents=True)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(root)]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "start"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.chdir(root)
    publish(work, "toys", "Rerankers on Toys", "rerank_table …", device="a machine")
    result = json.loads((root / "docs" / "results" / "rerank-toys.json").read_text())
    assert [one["method"] for one in result["rows"]] == ["strong", "weak"] and result["device"] == "a machine"
    assert (root / "docs" / "results" / "rerank-toys-checks.json").exists()
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no measured method"):
        publish(tmp_path / "none", "toys", "t", "c")
