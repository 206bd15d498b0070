"""rerank, evaluate --rerank and candidates --rerank, with a small language model made on the spot."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.pipelines.cli import main, run_command
from recsys.pipelines.evaluate import evaluate_bundle
from recsys.pipelines.language_model import ModelOptions
from recsys.pipelines.rerank_fit_lists import FitLists, validation_users
from recsys.pipelines.rerank_options import RerankOptions
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.reordering import Reordered, ShortList
from recsys.retrieval.rerank.chain import RerankChain
from recsys.retrieval.rerank.open import METHODS, open_reranker

AT = 1_700_900_000


@pytest.fixture(scope="module")
def lm(small_lm_folder: Path) -> str:
    return str(small_lm_folder)


def run(*words: object) -> None:
    run_command([str(word) for word in words])


def test_rerank_shows_and_writes_what_a_request_would_get(
    toy_bundle: Path, lm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, lists = tmp_path / "out.json", tmp_path / "lists.parquet"
    run("rerank", "--bundle", toy_bundle, "--user", "u3", "--method", "first", "--lm", lm, "--at", AT, "--top", 8,
        "--json", out, "--output", lists)  # fmt: skip
    said = capsys.readouterr().out
    assert "for user u3" in said and "1 lists, the first ten of" in said and "faults: none" in said
    rec = Recommender.load(toy_bundle)
    chain = RerankChain(open_reranker("first", lm=lm), top=8)
    page = rec.recommend("u3", k=8, at=AT, reranker=chain)
    (one,) = json.loads(out.read_text())["lists"]
    assert one["item_ids"] == page.item_ids and one["item_ids_before"] == rec.recommend("u3", k=8, at=AT).item_ids
    assert (one["calls"], one["failed"]) == (1, 0) and one["prompt_tokens"] > 100
    assert one["model_ms"] >= 0 and one["cost_millionths"] == 0
    frame = pl.read_parquet(lists)
    assert frame.to_dicts() == [{"user_id": "u3", "item_ids": page.item_ids}]


def test_items_are_found_and_reordered_at_one_time(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --at that of the clock, also for the reranker, as in a request."""
    seen: list[ShortList] = []
    reorder = RerankChain.reorder

    def noted(self: RerankChain, lists: Sequence[ShortList], *, deadline: float | None) -> list[Reordered]:
        seen.extend(lists)
        return reorder(self, lists, deadline=deadline)

    monkeypatch.setattr(RerankChain, "reorder", noted)
    began = int(time.time())
    run("rerank", "--bundle", toy_bundle, "--user", "u3", "--method", "embedding-feedback", "--top", 8)
    rec = Recommender.load(toy_bundle)
    assert began <= seen[0].at <= time.time()
    page = rec.recommend("u3", k=8, at=seen[0].at)
    assert seen[0].score_C.tolist() == pytest.approx([hit.score for hit in page], abs=1e-6)


def test_lists_from_elsewhere_are_reordered_around_what_is_not_known(
    toy_bundle: Path, lm: str, tmp_path: Path, toy_dataset: Dataset
) -> None:
    given, out = tmp_path / "given.parquet", tmp_path / "out.parquet"
    lists = {"u1": ["i4", "nowhere", "i9", "i2"], "u2": ["i7"], "u5": ["i1", "i3", "i5", "i8", "i2"]}
    pl.DataFrame({"user_id": list(lists), "item_ids": list(lists.values())}).write_parquet(given)
    run("rerank", "--bundle", toy_bundle, "--lists", given, "--method", "pointwise", "--lm", lm, "--top", 3,
        "--output", out, "--json", tmp_path / "out.json")  # fmt: skip
    found = dict(pl.read_parquet(out).iter_rows())
    assert list(found) == list(lists)
    assert found["u1"][1] == "nowhere" and found["u2"] == ["i7"] and found["u5"][3:] == ["i8", "i2"]
    assert all(sorted(found[user]) == sorted(ids) for user, ids in lists.items())
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["sums"]["calls"] == 6 and result["settings"]["method"] == "pointwise"
    run("evaluate", "--data", toy_dataset.path, "--lists", out, "--json", tmp_path / "eval.json")
    assert json.loads((tmp_path / "eval.json").read_text())["protocol"]["candidates"] == "lists"


@pytest.mark.parametrize(
    ("ids", "message"), [([["i1", "i2"], None], "row 1 has no item_ids"), ([[{"a": 1}], []], "must hold lists of ids")]
)
def test_lists_that_are_none_are_one_line(toy_bundle: Path, tmp_path: Path, ids: list[Any], message: str) -> None:
    given, out = tmp_path / "given.parquet", tmp_path / "out.parquet"
    pl.DataFrame({"user_id": ["u1", "u2"], "item_ids": ids}).write_parquet(given)
    with pytest.raises(InputError, match=message):
        run("rerank", "--bundle", toy_bundle, "--lists", given, "--method", "embedding-feedback", "--output", out)
    assert not out.exists()


def test_somebody_unknown_is_answered_as_new_and_it_is_said(
    toy_bundle: Path, lm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run("rerank", "--bundle", toy_bundle, "--user", "nobody", "--method", "first", "--lm", lm, "--at", AT)
    said = " ".join(capsys.readouterr().out.split())
    assert "note: user 'nobody' is not in this bundle" in said and "1 lists" in said


def test_a_dry_run_shows_the_prompt_and_its_tokens(
    toy_bundle: Path, lm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("rerank", "--bundle", toy_bundle, "--user", "u3", "--method", "first", "--lm", lm, "--at", AT, "--dry")
    said = capsys.readouterr().out
    rec = Recommender.load(toy_bundle)
    first = rec.items["title"][int(rec.bundle.vocabulary.items.index(rec.recommend("u3", at=AT).item_ids[:1])[0])]
    assert "first would first ask 1 questions" in said and f"[A] {first}" in said and "tokens in this question" in said
    assert "lists, the first ten" not in said
    written = tmp_path / "dry.json"
    run("rerank", "--bundle", toy_bundle, "--user", "u3", "--method", "pointwise", "--lm", lm, "--top", 3, "--dry",
        "--json", written)  # fmt: skip
    prompts = json.loads(written.read_text())["prompts"]
    assert len(prompts) == 3 and "Would the user choose" in prompts[0][-1]["text"]
    with pytest.raises(InputError, match="--output: a dry view puts nothing in order"):
        run("rerank", "--bundle", toy_bundle, "--user", "u3", "--method", "first", "--lm", lm, "--dry", "--output", "x")


def test_exit_codes_tell_bad_input_from_answers_in_part(
    toy_bundle: Path, lm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["rerank", "--bundle", str(toy_bundle), "--user", "u3", "--method", "pairwise-all", "--lm", lm]
    out = tmp_path / "late.json"
    with pytest.raises(SystemExit) as stop:
        main([*words, "--deadline-ms", "0.01", "--json", str(out)])
    assert stop.value.code == 3
    (one,) = json.loads(out.read_text())["lists"]
    assert one["item_ids"] == one["item_ids_before"] and "did not answer in time" in one["notes"][0]
    assert main(words[:5]) == 2
    capsys.readouterr()
    for more, message in [
        (["--users", "x"], "give one of --user, --users and --lists"),
        (["--cross-encoder", "x"], "--cross-encoder: the method pairwise-all does not read it"),
        (["--top", "1"], "--rerank-top must be at least 2"),
        (["--weight", "-1"], "--rerank-weight must be a number from 0"),
        (["--k", "0"], "--k must be above 0"),
        (["--lm-prices", "1,2"], "--lm-prices '1,2': give three numbers from 0"),
        (["--lm-timeout-s", "5"], "--lm-timeout-s is of a server, and --lm names a folder"),
    ]:
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err


def test_a_server_gets_its_key_from_the_environment(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="needs the extra llm")
    options = RerankOptions(method="first", lm="http://localhost:1/v1#m")
    for key in ("of-this-server", None):
        monkeypatch.delenv("RECSYS_API_KEY", raising=False)
        if key is not None:
            monkeypatch.setenv("RECSYS_API_KEY", key)
        reranker: Any = options.open(Bundle.open(toy_bundle))
        assert reranker.lm._connections._api_key == key and str(key) not in str(options.identity())


def test_costs_and_patience_of_a_server(
    toy_bundle: Path, tmp_path: Path, saying_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai", reason="needs the extra llm")
    out = tmp_path / "out.json"
    words = ["rerank", "--bundle", toy_bundle, "--user", "u3", "--method", "listwise", "--lm", f"{saying_server.url}#m",
             "--top", 3, "--at", AT, "--json", out]  # fmt: skip
    saying_server.say({"text": "3] > [1] > [2]", "cached": 4})
    run(*words, "--lm-prices", "100,10,1000")
    cost = 3 * 100 + 4 * 10 + 3 * 1000
    assert f"cost {cost / 1e6:.6f}; faults: none" in (said := capsys.readouterr().out) and "ms of the model" in said
    written = json.loads(out.read_text())
    assert written["sums"]["cost_millionths"] == written["lists"][0]["cost_millionths"] == cost
    assert written["prices_per_million_tokens"] == {"prompt": 100.0, "reused": 10.0, "generated": 1000.0}
    before = written["lists"][0]["item_ids_before"]
    assert written["lists"][0]["item_ids"] == [before[2], before[0], before[1]]
    assert saying_server.asked[0].endswith("Labels in order: [")
    saying_server.say("[2] > [1] > [3]")
    run(*words, "--no-lm-prefill")
    assert "cost" not in capsys.readouterr().out and saying_server.asked[0].endswith(
        "Answer with labels only, like [2] > [3] > [1]"
    )
    written = json.loads(out.read_text())
    assert written["sums"]["cost_millionths"] == 0 and "prices_per_million_tokens" not in written
    assert written["lists"][0]["item_ids"] == [before[1], before[0], before[2]]
    saying_server.say({"status": 503, "raw": ""})
    for flags in (["--lm-retries", 0], ["--lm-retries", 0, "--lm-timeout-s", 0.05]):
        saying_server.say({"status": 503, "raw": "", "wait": 0.2 if len(flags) > 2 else 0})
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in (*words, *flags)])
        assert stop.value.code == 3 and len(saying_server.asked) == 1
    assert "gave no answer within 0.05 s" in " ".join(capsys.readouterr().out.split())


def test_prices_decide_no_order_and_a_prefill_may() -> None:
    """A job of candidates goes on at other prices."""
    lm = "http://localhost:1/v1#m"
    plain = RerankOptions(method="first", lm=lm).identity()
    priced = ModelOptions.of_flags(None, "1,0,2", 5.0, 9, True)
    assert RerankOptions(method="first", lm=lm, model=priced).identity() == plain
    anew = ModelOptions.of_flags(None, None, None, None, False)
    assert RerankOptions(method="first", lm=lm, model=anew).identity() == {**plain, "lm_prefill": False}
    halves = ModelOptions.of_flags("bfloat16", None, None, None, True)
    local = RerankOptions(method="first", lm="models/none")
    assert RerankOptions(method="first", lm="models/none", model=halves).identity() == {
        **local.identity(),
        "lm_dtype": "bfloat16",
    }
    with pytest.raises(InputError, match="--lm-dtype is of a folder, and --lm names a server"):
        RerankOptions(method="first", lm=lm, model=halves)


def test_options_refuse_what_a_method_lacks_or_does_not_read() -> None:
    with pytest.raises(InputError, match="no reranking method is called 'frist'"):
        RerankOptions(method="frist")
    with pytest.raises(InputError, match="--lm must be given for the method first"):
        RerankOptions(method="first")
    with pytest.raises(InputError, match="--cross-encoder must be given"):
        RerankOptions(method="cross-encoder")
    with pytest.raises(InputError, match="--lm: the method embedding-feedback does not read it"):
        RerankOptions(method="embedding-feedback", lm="x")
    priced = ModelOptions.of_flags(None, "1,1,1", None, None, True)
    with pytest.raises(InputError, match="--lm-prices: the method embedding-feedback asks no language model"):
        RerankOptions(method="embedding-feedback", model=priced)
    made = RerankOptions.of_methods(
        "first, embedding-feedback", lm="x", model=priced, feedback=None, cross_encoder=None, prompt=None
    )
    assert [(one.method, one.lm, one.model.prices is None) for one in made] == [
        ("first", "x", False),
        ("embedding-feedback", None, True),
    ]
    with pytest.raises(InputError, match="names no method"):
        RerankOptions.of_methods(" , ")
    with pytest.raises(InputError, match="did you mean pairwise-heap"):
        open_reranker("pairwise-heep", lm="x")
    with pytest.raises(InputError, match="needs a language model"):
        open_reranker("set")
    with pytest.raises(InputError, match="words nothing; leave the prompt out"):
        open_reranker("embedding-feedback", prompt="first")
    assert len(METHODS) == 10


def test_evaluate_has_rows_before_and_after_of_the_same_users(
    toy_bundle: Path, toy_dataset: Dataset, lm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("evaluate", "--bundle", toy_bundle, "--data", toy_dataset.path, "--retrievers", "dense",
        "--rerank", "first,pointwise", "--lm", lm, "--lm-prices", "1,1,1", "--rerank-users", 12, "--rerank-top", 6,
        "--json", tmp_path / "e.json")  # fmt: skip
    said = capsys.readouterr().out
    assert "reranked" in said and "first(dense)" in said and "not adopted" in said
    result = json.loads((tmp_path / "e.json").read_text())
    reranked = result["reranked"]
    assert reranked["protocol"] | {"rule": ""} == {
        "split": "test", "retriever": "dense", "top": 6, "num_users": 12, "num_hits": reranked["protocol"]["num_hits"],
        "seed": 0, "rule": "",
    }  # fmt: skip
    names = ["dense", "first(dense)", "dense + first", "pointwise(dense)", "dense + pointwise"]
    assert set(reranked["rows"]) == set(names)
    for name in ("first(dense)", "pointwise(dense)"):
        row, before = reranked["rows"][name], reranked["rows"]["dense"]
        assert row["ndcg@10_change"] == pytest.approx(row["ndcg@10"] - before["ndcg@10"])
        low, high = row["ndcg@10_change_ci"]
        assert low <= row["ndcg@10_change"] <= high
        assert 0.0 <= row["changed"] <= 1.0 and row["prompt_tokens_per_list"] > 0 and row["num_incomplete"] == 0
        assert row["cost"] == pytest.approx(12 * row["prompt_tokens_per_list"] / 1e6) and row["validation"]["cost"] > 0
        paid = f"{name}: cost {row['cost']:.6f}, and cost {row['validation']['cost']:.6f} on validation"
        assert paid in said and row["prices_per_million_tokens"]["prompt"] == 1.0
    assert reranked["rows"]["pointwise(dense)"]["calls_per_list"] == 6.0
    for name in ("dense + first", "dense + pointwise"):
        fused = reranked["rows"][name]
        if not fused["adopted"]:
            assert fused["weight"] == 0.0 and fused["ndcg@10_change"] == 0.0 and fused["changed"] == 0.0


def test_a_reranked_row_of_all_users_starts_from_the_row_of_the_retriever(
    toy_bundle: Path, toy_dataset: Dataset, lm: str
) -> None:
    options = RerankOptions(method="first", lm=lm, top=5, weight=0.0)
    result = evaluate_bundle(toy_bundle, toy_dataset, retrievers=["dense"], rerank=[options], rerank_users=10_000)
    before, whole = result["reranked"]["rows"]["dense"], result["retrieval"]["dense"]
    assert result["reranked"]["protocol"]["num_users"] == result["protocol"]["num_users"]
    assert before["ndcg@10"] == pytest.approx(whole["ndcg@10"]) and before["mrr"] == pytest.approx(whole["mrr"])
    fused = result["reranked"]["rows"]["dense + first"]
    assert fused["mrr"] == before["mrr"] and fused["adopted"] is False
    with pytest.raises(InputError, match="--rerank-users must be at least 1"):
        evaluate_bundle(toy_bundle, toy_dataset, retrievers=["dense"], rerank=[options], rerank_users=0)
    for words in (["--lm", "x"], ["--rerank-weight", "1"], ["--lm-prices", "1,1,1"]):
        with pytest.raises(InputError, match="belongs? to --rerank METHOD"):
            run("evaluate", "--bundle", toy_bundle, "--data", toy_dataset.path, *words)


def candidates(toy_bundle: Path, toy_dataset: Dataset, output: Path, *words: object) -> pl.DataFrame:
    run("candidates", "--bundle", toy_bundle, "--data", toy_dataset.path, "--output", output, "--k", 9, *words)
    return pl.read_parquet(output / "part-*.parquet")


def test_candidates_are_those_of_reranked_requests(
    toy_bundle: Path, toy_dataset: Dataset, lm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users = tmp_path / "users.txt"
    users.write_text("\n".join(f"u{number}" for number in range(6)))
    plain = candidates(toy_bundle, toy_dataset, tmp_path / "plain", "--users", users, "--rank", 4)
    words = ("--users", users, "--rank", 4, "--rerank", "first", "--lm", lm, "--rerank-top", 5)
    found = candidates(toy_bundle, toy_dataset, tmp_path / "reranked", "--lm-prices", "1,1,1", *words)
    said = " ".join(capsys.readouterr().out.split())
    assert "reranked 6 lists with first: 1.0 calls" in said
    cost = re.search(r"calls, ([\d,]+) prompt tokens .*; cost ([\d.]+) in all", said)
    assert cost is not None and 6 * int(cost[1].replace(",", "")) / 1e6 == pytest.approx(float(cost[2]), abs=4e-6)
    rec = Recommender.load(toy_bundle)
    chain = RerankChain(open_reranker("first", lm=lm), top=5)
    at = toy_dataset.manifest.max_timestamp
    for before, row in zip(plain.iter_rows(named=True), found.iter_rows(named=True), strict=True):
        page = rec.recommend(row["user_id"], k=9, at=at, reranker=chain)
        assert row["item_ids"] == page.item_ids
        assert row["retrieval_scores"] == pytest.approx([hit.score for hit in page], abs=1e-4)
        own = dict(zip(before["item_ids"], before["retrieval_scores"], strict=True))
        assert [own[item] for item in row["item_ids"]] == row["retrieval_scores"]
        assert row["item_ids"][5:] == before["item_ids"][5:]
        likes = [hit.actions["like"] for hit in page][:4]
        assert row["prob_like"][:4] == pytest.approx(likes, abs=1e-4) and row["prob_like"][4:] == [None] * 5
    assert found["item_ids"].to_list() != plain["item_ids"].to_list()
    plan = json.loads((tmp_path / "reranked" / "plan.json").read_text())
    assert plan["rerank"]["method"] == "first" and plan["rerank"]["lm_hash"]
    with pytest.raises(InputError, match="begun with another rerank"):
        candidates(toy_bundle, toy_dataset, tmp_path / "reranked", *words[:-1], 6, "--resume")
    with pytest.raises(InputError, match="belong to --rerank METHOD"):
        candidates(toy_bundle, toy_dataset, tmp_path / "third", "--lm", lm)


def test_candidates_of_several_retrievers_take_turns_before_they_are_reranked(
    toy_bundle: Path, toy_dataset: Dataset, lm: str, tmp_path: Path
) -> None:
    users = tmp_path / "users.txt"
    users.write_text("u1\nu2")
    words = ("--users", users, "--retrievers", "dense,memory")
    plain = candidates(toy_bundle, toy_dataset, tmp_path / "plain", *words)
    rerank = ("--rerank", "first", "--lm", lm, "--rerank-weight", 0.5, "--rerank-top", 9)
    found = candidates(toy_bundle, toy_dataset, tmp_path / "new", *words, *rerank)
    for before, row in zip(plain.iter_rows(named=True), found.iter_rows(named=True), strict=True):
        assert sorted(before["item_ids"]) == sorted(row["item_ids"])
        label: dict[Any, Any] = dict(zip(before["item_ids"], before["retriever"], strict=True))
        assert [label[item] for item in row["item_ids"]] == row["retriever"]


def test_a_trained_models_weight_is_chosen_on_targets_that_it_has_not_seen(
    toy_bundle: Path, toy_dataset: Dataset, tmp_path: Path
) -> None:
    learned = FitLists(Bundle.open(toy_bundle), toy_dataset, 5, "dense", None, 3).learned(
        "validation", 100, add_missing=True
    )
    seen, unseen = validation_users(toy_dataset, 3)
    assert set(learned.user_Q.tolist()) <= set(seen.tolist()) and not set(seen.tolist()) & set(unseen.tolist())
    assert 0 < len(unseen) < len(seen)
    options = RerankOptions(method="first", lm=str(tmp_path))
    assert options.unseen_users(toy_dataset) is None
    settings = {"lists": "validation", "seed": 3, "data": toy_dataset.manifest.data_hash}
    (tmp_path / "rerank.json").write_text(json.dumps({"settings": settings}))
    found = options.unseen_users(toy_dataset)
    assert found is not None and found.tolist() == unseen.tolist()
    (tmp_path / "rerank.json").write_text(json.dumps({"settings": settings | {"lists": "train"}}))
    assert options.unseen_users(toy_dataset) is None
    (tmp_path / "rerank.json").write_text(json.dumps({"settings": settings | {"data": "other"}}))
    with pytest.raises(InputError, match="targets of other data"):
        options.unseen_users(toy_dataset)


def test_embedding_feedback_needs_no_language_model(
    toy_bundle: Path, toy_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("evaluate", "--bundle", toy_bundle, "--data", toy_dataset.path, "--retrievers", "dense",
        "--rerank", "embedding-feedback", "--rerank-users", 9, "--json", tmp_path / "e.json")  # fmt: skip
    rows = json.loads((tmp_path / "e.json").read_text())["reranked"]["rows"]
    assert set(rows) == {"dense", "embedding-feedback(dense)"}  # its score holds the retriever's: no weight is chosen
    assert rows["embedding-feedback(dense)"]["prompt_tokens_per_list"] == 0
    capsys.readouterr()
    run("rerank", "--bundle", toy_bundle, "--user", "u3", "--method", "embedding-feedback", "--dry")
    assert "asks no language model" in capsys.readouterr().out
    users = tmp_path / "users.txt"
    users.write_text("u1\nu2\nu3")
    words = ("--users", users, "--rerank", "embedding-feedback")
    now = candidates(toy_bundle, toy_dataset, tmp_path / "now", *words)
    test = candidates(toy_bundle, toy_dataset, tmp_path / "test", *words, "--split", "test")
    assert len(now) == 3 and len(test) <= 3


def test_on_validation_a_trained_model_is_judged_on_users_it_has_not_seen(
    toy_bundle: Path, toy_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unseen = validation_users(toy_dataset, 3)[1]
    monkeypatch.setattr(RerankOptions, "unseen_users", lambda self, dataset: unseen)
    found = {}
    for split in ("validation", "test"):
        run("evaluate", "--bundle", toy_bundle, "--data", toy_dataset.path, "--retrievers", "dense", "--split", split,
            "--rerank", "embedding-feedback", "--rerank-users", 99, "--json", tmp_path / f"{split}.json")  # fmt: skip
        found[split] = json.loads((tmp_path / f"{split}.json").read_text())["reranked"]["protocol"]
    assert 0 < found["validation"]["num_users"] == len(unseen) < found["test"]["num_users"]
