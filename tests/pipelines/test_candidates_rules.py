"""Business rules of a batch: the pages that the same rules give to requests, whatever is killed and resumed."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.events import Event
from recsys.model import UnifiedModel
from recsys.pipelines.candidates import candidates
from recsys.pipelines.export import export_model
from recsys.pipelines.rerank_options import RerankOptions
from recsys.pipelines.rule_file import read_rules
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.reordering import Reordered, ShortList

WHERE = {"rule": "where", "column": "stock", "at_least": 1}
CAP = {"rule": "cap", "column": "brand", "n": 2, "missing": "group"}
BOOST = {"rule": "boost", "items": ["i9", "i4", "gone"], "weight": 0.5}
FRESH = {"rule": "freshness", "column": "born", "half_life": 400_000, "weight": 0.7}
PIN = {"rule": "pin", "item": "i8", "place": 2}
MMR = {"rule": "mmr", "lam": 0.6}
FLOOR = {"rule": "floor", "on": "action", "action": "like", "at_least": 0.45}
DRAW = {"rule": "explore", "seed": 3, "temperature": 0.5}
COIN = {"rule": "explore", "seed": 3, "epsilon": 0.4}


def with_columns(dataset: Dataset) -> Dataset:
    """The same data with more columns of items, which no model reads."""
    number = range(dataset.num_items)
    more = copy.copy(dataset)
    more.__dict__["items"] = dataset.items.with_columns(
        brand=pl.Series([["a", "b", None, "c"][i * 7 % 4] for i in number]),
        stock=pl.Series([i * i % 13 for i in number], dtype=pl.UInt16),
        born=pl.Series([dataset.manifest.max_timestamp - 40_000 * (i * 11 % 30) for i in number], dtype=pl.Int64),
    )
    return more


@pytest.fixture(scope="module")
def bundle(toy_model: UnifiedModel, toy_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rules") / "bundle"
    export_model(toy_model, with_columns(toy_dataset), path, histories=True)
    return path


@pytest.fixture(scope="module")
def code_bundle(code_model: UnifiedModel, toy_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rules") / "codes"
    export_model(code_model, with_columns(toy_dataset), path, histories=True)
    return path


def written(path: Path, rules: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rules), encoding="utf-8")
    return path


def read(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(sorted(folder.glob("*.parquet")))


def same_as_recommended(bundle: Path, dataset: Dataset, folder: Path, rules: Path, k: int, **asked: Any) -> None:
    """A row of the table is the page of its user."""
    table, rec, given = read(folder), Recommender.load(bundle), read_rules(rules)
    assert table["user_id"].to_list() == dataset.user_ids.to_list()
    explores = any(rule["rule"] == "explore" for rule in json.loads(rules.read_text()))
    assert explores == ("propensity" in table.columns)
    at = dataset.manifest.max_timestamp
    pages = rec.recommend_batch(
        [{"user_id": user, "k": k, "at": at, "rules": given, **asked} for user in table["user_id"]]
    )
    for row, page in zip(table.iter_rows(named=True), pages, strict=True):
        assert row["item_ids"] == page.item_ids
        assert row["retriever"] == [hit.retriever for hit in page]
        np.testing.assert_allclose(row["retrieval_scores"], [hit.score for hit in page], atol=1e-4)
        if explores:
            np.testing.assert_allclose(row["propensity"], [hit.propensity for hit in page], rtol=1e-3)
        for place, chance in enumerate(row.get("prob_like", ())):
            assert chance is None or abs(chance - page[place].actions["like"]) < 1e-4


@pytest.mark.parametrize(
    ("retrievers", "rank", "rules"),
    [
        ("dense", 0, [WHERE]),
        ("dense", 4, [WHERE, CAP, PIN, BOOST, COIN]),
        ("dense", 3, [FLOOR, CAP]),
        ("dense", 0, [FRESH, MMR, CAP]),
        ("memory", 0, [CAP, BOOST]),
        ("memory,dense", 3, [WHERE, CAP, PIN, DRAW]),
    ],
)
def test_lists_are_the_pages_of_the_same_rules(
    bundle: Path, toy_dataset: Dataset, tmp_path: Path, retrievers: str, rank: int, rules: list[dict[str, Any]]
) -> None:
    path, k = written(tmp_path / "rules.json", rules), 9
    candidates(
        bundle, toy_dataset.path, tmp_path / "out", k=k, rank=rank, retrievers=retrievers, rules=path, shard_users=17,
        batch_users=8,
    )  # fmt: skip
    asked = {"retrievers": retrievers.split(","), "rank": rank > 0}
    same_as_recommended(bundle, toy_dataset, tmp_path / "out", path, k, **asked)
    if rank:
        given = read(tmp_path / "out")["prob_like"].list.eval(pl.element().is_not_null()).list.sum()
        assert given.max() == rank


@pytest.mark.parametrize("retriever", ["generative", "hybrid"])
def test_retrievers_by_codes_too(code_bundle: Path, toy_dataset: Dataset, tmp_path: Path, retriever: str) -> None:
    path = written(tmp_path / "rules.json", [WHERE, CAP, PIN, BOOST, DRAW])
    candidates(code_bundle, toy_dataset.path, tmp_path / "out", k=6, rank=2, retrievers=retriever, rules=path)
    same_as_recommended(code_bundle, toy_dataset, tmp_path / "out", path, 6, retrievers=[retriever])


def test_k_items_come_back_where_k_exist(bundle: Path, toy_dataset: Dataset, tmp_path: Path) -> None:
    """Rules act before lists are cut: with a cap there is still a full list wherever the catalogue has one."""
    path = written(tmp_path / "rules.json", [{"rule": "cap", "column": "stock", "n": 1}])
    candidates(bundle, toy_dataset.path, tmp_path / "out", k=5, rules=path)
    stock = dict(Bundle.open(bundle).items.select("item_id", "stock").iter_rows())
    log = toy_dataset.events
    for user, items in enumerate(read(tmp_path / "out")["item_ids"].to_list()):
        seen = set(toy_dataset.item_ids.gather(log.history(user).item))
        exist = len({value for item, value in stock.items() if item not in seen})
        assert len({stock[item] for item in items}) == len(items) == min(5, exist)


def test_allow_and_exclude_join_the_filters(
    bundle: Path, toy_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "rules.json", [WHERE, CAP, {**PIN, "item": "i3"}])
    (tmp_path / "allow.txt").write_text("\n".join(f"i{i}" for i in range(20)))
    (tmp_path / "exclude.txt").write_text("i3\ni5")
    candidates(
        bundle, toy_dataset.path, tmp_path / "out", k=8, rules=path, allow=tmp_path / "allow.txt",
        exclude=tmp_path / "exclude.txt",
    )  # fmt: skip
    left = [f"i{i}" for i in range(20) if i not in (3, 5)]
    same_as_recommended(bundle, toy_dataset, tmp_path / "out", path, 8, allow=left)
    said = " ".join(capsys.readouterr().out.split())
    assert "note: filters on item columns let" in said and "lists shorter than 8" in said
    assert "note: pinned item 'i3' is withdrawn, or left out by filters or lists, and will not be shown" in said


def test_held_out_targets_have_their_own_times(bundle: Path, toy_dataset: Dataset, tmp_path: Path) -> None:
    path = written(tmp_path / "rules.json", [FRESH, CAP, FLOOR])
    candidates(
        bundle, toy_dataset.path, tmp_path / "out", k=7, split="test", retrievers="dense_learned", rules=path, rank=1
    )
    rec, requests, log = Recommender.load(bundle), toy_dataset.requests("test"), toy_dataset.events
    words, given = rec.bundle.vocabulary, read_rules(path)
    asked = []
    for row, user in enumerate(requests.user.tolist()):
        past = log.history(user, int(requests.end[row]))
        events = [
            Event(
                item_id=words.items.take([item])[0],
                timestamp=time,
                actions=[name for bit, name in enumerate(words.actions) if yes >> bit & 1],
                surface=words.surfaces[surface],
            )
            for item, time, yes, surface in zip(*(
                column.tolist() for column in (past.item, past.timestamp, past.yes, past.surface)
            ), strict=True)
        ]  # fmt: skip
        asked.append(
            {
                "history": events, "k": 7, "at": int(requests.timestamp[row]), "rules": given,
                "surface": words.surfaces[int(requests.surface[row])], "retrievers": ("dense_learned",),
            }
        )  # fmt: skip
    table = read(tmp_path / "out")
    assert [page.item_ids for page in rec.recommend_batch(asked)] == table["item_ids"].to_list()


class Backwards:
    """A reranker that turns the first five candidates round."""

    num_reordered, reranker = 5, SimpleNamespace(name="backwards")

    def reorder(self, lists: Sequence[ShortList], *, deadline: float | None) -> list[Reordered]:
        return [Reordered(places=range(len(one.row_C))[::-1]) for one in lists]


@pytest.mark.parametrize("k", [3, 6])
def test_a_reranker_looks_as_deep_as_for_a_request(
    k: int, bundle: Path, toy_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of the five that it puts in order, not the first three in order."""
    monkeypatch.setattr(RerankOptions, "chain", lambda *_, **__: Backwards())
    candidates(bundle, toy_dataset.path, tmp_path / "out", k=k, rerank="first", lm="none")
    same_as_recommended(bundle, toy_dataset, tmp_path / "out", written(tmp_path / "none", []), k, reranker=Backwards())


def test_rules_choose_among_what_a_reranker_ordered(
    bundle: Path, toy_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RerankOptions, "chain", lambda *_, **__: Backwards())
    path = written(tmp_path / "rules.json", [WHERE, CAP, PIN])
    candidates(bundle, toy_dataset.path, tmp_path / "out", k=6, rules=path, rerank="first", lm="none")
    same_as_recommended(bundle, toy_dataset, tmp_path / "out", path, 6, reranker=Backwards())
    with pytest.raises(AssertionError):
        same_as_recommended(bundle, toy_dataset, tmp_path / "out", path, 6)


def test_killed_and_resumed_with_rules(bundle: Path, toy_dataset: Dataset, tmp_path: Path) -> None:
    """What is left to chance too is the same after a resume; other rules are noticed, and so are none."""
    path, whole, again = written(tmp_path / "rules.json", [CAP, COIN]), tmp_path / "whole", tmp_path / "again"
    settings: dict[str, Any] = {"k": 6, "rank": 2, "shard_users": 9, "rules": path}
    for folder in (whole, again):
        candidates(bundle, toy_dataset.path, folder, **settings)
    for number in (1, 4):
        (again / f"part-0000{number}.parquet").unlink()
    (again / ".part-00001.parquet.1.partial").write_bytes(b"half a part")
    candidates(bundle, toy_dataset.path, again, resume=True, **settings)
    files = sorted(file.name for file in whole.iterdir())
    assert files == sorted(file.name for file in again.iterdir()) and len(files) == 6
    assert all((whole / name).read_bytes() == (again / name).read_bytes() for name in files)
    other = written(tmp_path / "other.json", [CAP, {**COIN, "seed": 4}])
    for change in ({"rules": other}, {"rules": None}):
        with pytest.raises(InputError, match="was begun with another rules;"):
            candidates(bundle, toy_dataset.path, again, resume=True, **{**settings, **change})


@pytest.mark.parametrize(
    ("rules", "settings", "message"),
    [
        ([CAP, {**CAP, "column": "brnd"}], {}, r"rules.json, rule 2: Cap: the items have no column 'brnd'; they have"),
        ([{**PIN, "item": "i77"}], {}, r"rule 1: pinned item 'i77' is not in the catalogue of"),
        ([{**BOOST, "items": ["i77", 3]}], {}, r"rule 1: the catalogue of .* holds none of the items to boost"),
        ([FLOOR], {}, r"rule 1: a floor on an action needs probabilities; give --rank"),
        ([{**FLOOR, "action": "buy"}], {"rank": 2}, r"rule 1: Floor: this model ranks by .*, not by 'buy'"),
        ([{"rule": "floor", "on": "rank_by", "at_least": 1}], {}, r"rule 1: a floor on rank_by needs an order by"),
        ([{"rule": "floor", "at_least": 1}], {"retrievers": "memory,dense"}, r"rule 1: Floor: scores of several"),
        ([{**PIN, "place": 6}], {}, r"rule 1: Pin: place 6 is beyond the 5 items asked for"),
        ([PIN, {**PIN, "place": 3}], {}, r"rules.json: Pin: item 'i8' is pinned twice"),
        ([MMR, MMR], {}, r"rules.json: rules hold MMR 2 times; give one"),
        ([{**WHERE, "at_least": 99}], {}, r"filters on item columns let 0 of 30 items pass; every list would be empty"),
        ([{"rule": "cap", "column": "brand"}], {}, r"rules.json, rule 1: cap: it lacks n"),
    ],
)
def test_what_cannot_be_meant_is_one_early_line(
    bundle: Path, toy_dataset: Dataset, tmp_path: Path, rules: list[Any], settings: dict[str, Any], message: str
) -> None:
    path = written(tmp_path / "rules.json", rules)
    with pytest.raises(InputError, match=message) as caught:
        candidates(bundle, toy_dataset.path, tmp_path / "out", **{"k": 5, **settings}, rules=path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
