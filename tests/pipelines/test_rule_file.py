"""Rules from a file: what the classes take, and one line for what they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import InputError
from recsys.pipelines.lookup import recommend
from recsys.pipelines.rule_file import read_rules, rule_of
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.rules import MMR, Boost, Cap, Explore, Floor, Freshness, Pin, Where

AT = 1_702_000_000
GIVEN: list[tuple[dict[str, Any], Any]] = [
    ({"rule": "where", "column": "b", "values": ["1", "x"], "negate": True}, Where("b", ("1", "x"), negate=True)),
    ({"rule": "where", "column": "sold", "values": True}, Where("sold", True)),
    ({"rule": "where", "column": "price", "at_least": 2}, Where("price", at_least=2)),
    ({"rule": "cap", "column": "brand", "n": 2, "missing": "group"}, Cap("brand", 2, "group")),
    ({"rule": "mmr", "lam": 0.5}, MMR(0.5)),
    ({"rule": "floor", "at_least": 0.1, "on": "action", "action": "like"}, Floor(0.1, "action", "like")),
    ({"rule": "freshness", "column": "born", "half_life": 60}, Freshness("born", 60)),
    ({"rule": "boost", "items": ["a", 3], "weight": -1.5}, Boost(("a", 3), -1.5)),
    ({"rule": "pin", "item": "i3", "place": 1}, Pin("i3", 1)),
    ({"rule": "explore", "seed": 3, "temperature": 0.5}, Explore(3, temperature=0.5)),
]  # fmt: skip


def test_a_file_holds_every_rule(tmp_path: Path):
    path = tmp_path / "rules.json"
    path.write_text(json.dumps([fields for fields, _ in GIVEN]), encoding="utf-8")
    assert read_rules(path) == [rule for _, rule in GIVEN]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rule": "cap", "column": "brand", "n": 2.5}, "Cap.n must be a positive integer, got 2.5"),
        ({"rule": "cap", "column": 3, "n": 2}, "Cap.column must be the name of a column, got 3"),
        ({"rule": "cap", "column": "brand", "n": "2"}, "Cap.n must be a positive integer, got '2'"),
        ({"rule": "cap", "column": "brand"}, "cap: it lacks n"),
        ({"rule": "cap", "column": "brand", "n": 2, "x": 1}, "no field 'x'; its fields are column, n, missing"),
        ({"rule": "cap", "column": "brand", "n": 2, "a\nb": {}}, r"cap has no field 'a\nb'"),
        ({"rule": "mmr", "lam": 2}, "MMR.lam must be from 0 to 1"),
        ({"rule": "mmr", "lam": float("nan")}, "MMR.lam must be a finite number"),
        ({"rule": "mmr", "lam": 10**400}, "MMR.lam must be a finite number, got an integer of 1329 bits"),
        ({"rule": "mmr", "lam": 0.5, "scale": "no"}, "MMR.scale must be True or False, got 'no'"),
        ({"rule": "floor", "at_least": -(10**400)}, "Floor.at_least must be a finite number"),
        ({"rule": "freshness", "column": "born", "half_life": 10**400}, "Freshness.half_life must be a finite number"),
        ({"rule": "where", "column": "brand", "values": {"a": 1}}, "where: values takes a plain value or a list"),
        ({"rule": "where", "column": "brand", "values": [{"a": 1}]}, "where: values takes a plain value or a list"),
        ({"rule": "explore", "seed": 1, "epsilon": "x"}, "Explore.epsilon must be a finite number, got 'x'"),
        ({"rule": "boost", "items": 3, "weight": 1}, "Boost.items must be a collection of item ids, got 3"),
        ({"rule": "sort"}, '"rule" must be one of where, cap, mmr, floor, freshness, boost, pin, explore'),
        (["cap"], '"rule" must be one of'),
    ],
)
def test_what_is_no_rule_is_one_line(fields, said):
    with pytest.raises(InputError) as caught:
        rule_of(fields)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_error_names_file_and_rule(tmp_path: Path):
    path = tmp_path / "rules.json"
    path.write_text('[{"rule": "mmr", "lam": 0.5}, {"rule": "cap"}]', encoding="utf-8")
    with pytest.raises(InputError, match=r"rules.json, rule 2: cap: it lacks column, n"):
        read_rules(path)
    path.write_text('{"rule": "mmr", "lam": 0.5}', encoding="utf-8")
    with pytest.raises(InputError, match="must hold a list of rules"):
        read_rules(path)


def test_the_command_obeys_them(toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = Recommender.load(toy_bundle).recommend("u3", k=3, at=AT).item_ids
    path, out = tmp_path / "rules.json", tmp_path / "page.json"
    path.write_text(json.dumps([{"rule": "pin", "item": first[2], "place": 1}]), encoding="utf-8")
    recommend(toy_bundle, "u3", k=2, at=AT, rules=path, json=out)
    hits = json.loads(out.read_text(encoding="utf-8"))["hits"]
    assert [hit["item_id"] for hit in hits] == [first[2], first[0]]
    assert "propensity" not in hits[0] and "pin" in capsys.readouterr().out
    path.write_text('[{"rule": "explore", "seed": 1, "epsilon": 0.9}]', encoding="utf-8")
    recommend(toy_bundle, "u3", k=3, at=AT, rules=path, json=out)
    assert all(0 < hit["propensity"] < 1 for hit in json.loads(out.read_text(encoding="utf-8"))["hits"])
