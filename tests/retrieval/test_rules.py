"""Business rules: every page is the one that a plain reading of the rules gives over the whole catalogue."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.bundle import Bundle
from recsys.errors import InputError
from recsys.pipelines.export import export_model
from recsys.retrieval.page import Page
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.request import Request
from recsys.retrieval.rules import MMR, Boost, Cap, Explore, Floor, Freshness, Pin, Rule, Where
from recsys.retrieval.rules.item_table import ItemTable

AT = 1_702_000_000
BRANDS = ["a", "b", None, "c"]
SHOWN_TAGS = [["x"], ["x", "y"], [], None, ["y", "z", "z"], ["w"]]


def table(items: pl.DataFrame) -> pl.DataFrame:
    """The items with columns of every kind."""
    number = range(len(items))
    return items.with_columns(
        brand=pl.Series([BRANDS[i * 7 % 4] for i in number]),
        price=pl.Series([None if i % 11 == 3 else float("nan") if i % 11 == 5 else i * 1.5 for i in number]),
        stock=pl.Series([i * i % 13 for i in number], dtype=pl.UInt16),
        tags=pl.Series([SHOWN_TAGS[i * 5 % 6] for i in number], dtype=pl.List(pl.String)),
        sold=pl.Series([i % 3 == 0 for i in number]),
        day=pl.Series([None if i % 9 == 4 else date(2023, 11, 1 + i % 29) for i in number]),
        born=pl.Series([None if i % 9 == 4 else AT - 40_000 * (i * 11 % 30) for i in number], dtype=pl.Int64),
    )


@pytest.fixture(scope="module")
def rec(toy_bundle: Path) -> Recommender:
    plain = Recommender.load(toy_bundle).bundle
    return Recommender(replace(plain, items=table(plain.items)))


# -- the definition, read plainly ----------------------------------------------------------------------------------


def passes(row: dict[str, Any], rule: Where) -> bool:
    value = row[rule.column]
    several = value if isinstance(value, list) else [value]
    several = [one for one in several if one is not None and one == one]
    if not several:
        return rule.missing

    def fits(one: Any) -> bool:
        if rule.values is not None:
            return one in rule.operands
        return (rule.at_least is None or one >= rule.at_least) and (rule.at_most is None or one <= rule.at_most)

    return any(fits(one) for one in several) != rule.negate


def groups(row: dict[str, Any], cap: Cap) -> set[Any]:
    value = row[cap.column]
    found = {one for one in (value if isinstance(value, list) else [value]) if one is not None and one == one}
    return found or ({"no value"} if cap.missing == "group" else set())


def oracle(rec: Recommender, request: dict[str, Any], rules: list[Rule], k: int, pool: int) -> list[Any]:
    """Item ids of the page, from the sorted catalogue."""
    rows = {row["item_id"]: row for row in rec.items.to_dicts()}
    everything = rec.recommend(k=len(rows), at=AT, **{**request, "rank_by": None})
    weights = request.get("rank_by")
    hits = [hit for hit in everything if all(passes(rows[hit.item_id], r) for r in rules if isinstance(r, Where))]
    changes = any(isinstance(rule, (MMR, Boost, Freshness)) for rule in rules)
    size = max(k, pool) if changes or weights else k
    cosine = cosines(rec)
    while True:
        scored = []
        for hit in hits[:size]:
            score = hit.score if not weights else sum(w * hit.actions[a] for a, w in weights.items())
            looked = {"retrieval": hit.score, "rank_by": score}
            floors = [rule for rule in rules if isinstance(rule, Floor)]
            if any((hit.actions[f.action] if f.action else looked[f.on]) < f.at_least for f in floors):
                continue
            for rule in rules:
                if isinstance(rule, Boost):
                    score += rule.weight * (hit.item_id in rule.items)
                if isinstance(rule, Freshness):
                    born = rows[hit.item_id][rule.column]
                    lift = 0.0 if born is None else rule.weight * 0.5 ** (max(0, AT - born) / rule.half_life)
                    score += lift if rule.mode == "add" else abs(score) * lift
            scored.append((hit.item_id, score))
        scored.sort(key=lambda pair: -pair[1])
        chosen = greedy(scored, rows, rules, k, cosine)
        if len(chosen) == k or size >= len(hits):
            return chosen
        size *= 2


def greedy(
    scored: list[tuple[Any, float]], rows: dict[Any, Any], rules: list[Rule], k: int, cosine: dict[Any, Any]
) -> list[Any]:
    mmr = next((rule for rule in rules if isinstance(rule, MMR)), None)
    pins = {rule.place - 1: rule.item for rule in rules if isinstance(rule, Pin)}
    scored = [pair for pair in scored if pair[0] not in pins.values()]
    low, high = min((s for _, s in scored), default=0.0), max((s for _, s in scored), default=0.0)
    chosen: list[Any] = []
    while len(chosen) < k:
        if len(chosen) in pins:
            chosen.append(pins.pop(len(chosen)))
            continue
        taken = [*chosen, *pins.values()]
        best: tuple[Any, float] | None = None
        for item, score in scored:
            capped = False
            for cap in (rule for rule in rules if isinstance(rule, Cap)):
                for value in groups(rows[item], cap):
                    capped |= sum(value in groups(rows[other], cap) for other in taken) >= cap.n
            if item in chosen or capped:
                continue
            if mmr is not None:
                if mmr.scale:
                    score = (score - low) / (high - low) if high > low else 0.0
                nearest = max((cosine[item][other] for other in taken), default=0.0)
                score = mmr.lam * score - (1 - mmr.lam) * nearest
            if best is None or score > best[1]:
                best = (item, score)
        if best is None:
            return [*chosen, *(pins[place] for place in sorted(pins))]
        chosen.append(best[0])
    return chosen


def cosines(rec: Recommender) -> dict[Any, dict[Any, float]]:
    unit = (rec.bundle.vectors / rec.bundle.vectors.norm(dim=1, keepdim=True)).double().numpy()
    ids = rec.items["item_id"].to_list()
    return {one: dict(zip(ids, (unit * unit[row]).sum(1).tolist(), strict=True)) for row, one in enumerate(ids)}


WHERE = st.sampled_from(
    [
        Where("brand", "a"),
        Where("brand", ("a", "c")),
        Where("brand", "b", negate=True),
        Where("brand", "b", negate=True, missing=True),
        Where("price", at_least=6, at_most=33.0),
        Where("price", at_least=30, negate=True),
        Where("stock", at_least=3.5),
        Where("stock", (1, 3.0, 9, 3.5, 70_000)),
        Where("tags", ("y", "w")),
        Where("tags", "x", negate=True),
        Where("sold", False),
        Where("day", at_least=date(2023, 11, 9)),
    ]
)
CAP = st.builds(
    Cap, st.sampled_from(["brand", "tags", "stock", "sold"]), st.integers(1, 3), st.sampled_from(["free", "group"])
)
SHIFT = st.one_of(
    st.builds(Boost, st.lists(st.integers(0, 31).map("i{}".format), max_size=4).map(tuple), st.floats(-0.5, 0.5)),
    st.builds(
        Freshness, st.just("born"), st.sampled_from([1e3, 1e5]), st.floats(0, 1), st.sampled_from(["add", "multiply"])
    ),
)
FLOOR = st.one_of(
    st.builds(Floor, st.floats(-0.5, 0.5)), st.builds(Floor, st.floats(0, 1), st.just("action"), st.just("like"))
)
RULES = st.tuples(
    st.lists(WHERE, max_size=2), st.lists(CAP, max_size=2), st.lists(SHIFT, max_size=2), st.lists(FLOOR, max_size=1),
    st.lists(st.builds(MMR, st.floats(0, 1), st.booleans()), max_size=1),
).map(lambda parts: [rule for part in parts for rule in part])  # fmt: skip
SETTINGS = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SETTINGS
@given(
    rules=RULES,
    order=st.randoms(use_true_random=False),
    k=st.integers(1, 12),
    pool=st.integers(1, 30),
    user=st.sampled_from(["u1", "u7", "u30", None]),
    rank_by=st.sampled_from([None, {"like": 1.0}, {"click": 0.5, "hide": -1.0}]),
)
def test_pages_are_those_of_the_whole_catalogue(rec, rules, order, k, pool, user, rank_by):
    order.shuffle(rules)
    asked = {"user_id": user, "rank_by": rank_by}
    page = rec.recommend(k=k, candidates=pool, at=AT, rules=rules, **asked)
    assert page.item_ids == oracle(rec, asked, rules, k, pool)
    assert {hit.propensity for hit in page} <= {1.0}


@SETTINGS
@given(
    k=st.integers(1, 20),
    n=st.integers(1, 4),
    column=st.sampled_from(["brand", "stock", "sold"]),
    user=st.integers(0, 39),
)
def test_k_items_come_back_when_k_exist(rec, k, n, column, user):
    page = rec.recommend(f"u{user}", k=k, at=AT, rules=[Cap(column, n, "group")])
    everything = rec.recommend(f"u{user}", k=30, at=AT).item_ids
    values = dict(zip(rec.items["item_id"], rec.items[column], strict=True))
    left = [values[item] for item in everything]
    exist = sum(min(n, left.count(value)) for value in set(left))
    shown = [values[item] for item in page.item_ids]
    assert len(page) == min(k, exist)
    assert max(shown.count(value) for value in shown) <= n
    if len(page) < k <= len(everything):
        assert any(note.startswith(f"the rules left {len(page)} of the {k} items") for note in page.notes)


@settings(SETTINGS, max_examples=20)
@given(rules=RULES, k=st.integers(1, 6), places=st.lists(st.integers(1, 6), max_size=3, unique=True), data=st.data())
def test_pinned_items_stand_at_their_places(rec, rules, k, places, data):
    places = [place for place in places if place <= k]
    rules = [rule for rule in rules if not isinstance(rule, Where)]
    everything = rec.recommend("u7", k=30, at=AT).item_ids
    items = data.draw(st.permutations(everything))[: len(places)]
    rules += [Pin(item, place) for item, place in zip(items, places, strict=True)]
    page = rec.recommend("u7", k=k, candidates=12, at=AT, rules=rules)
    assert page.item_ids == oracle(rec, {"user_id": "u7"}, rules, k, 12)
    plain = {hit.item_id: hit for hit in rec.recommend("u7", k=30, at=AT)}
    for hit in page:
        assert hit.score == pytest.approx(plain[hit.item_id].score, abs=1e-5)
        assert hit.actions == pytest.approx(plain[hit.item_id].actions, abs=1e-5)
        assert hit.retriever == ("pin" if hit.item_id in items else "dense")


def test_caps_act_before_the_page_is_cut(rec):
    page = rec.recommend("u7", k=4, at=AT, rules=[Cap("brand", 1, "group")])
    brands = dict(zip(rec.items["item_id"], rec.items["brand"], strict=True))
    assert len(page) == 4 and {brands[item] for item in page.item_ids} == set(BRANDS)
    assert page[0].item_id == rec.recommend("u7", k=1, at=AT).item_ids[0]
    assert any("a cap of 1 on brand kept" in note for note in page.notes)


def test_diversity_moves_away_from_what_is_chosen(rec):
    cosine = cosines(rec)
    page = rec.recommend("u7", k=3, candidates=30, at=AT, rules=[MMR(0.0)])
    first = rec.recommend("u7", k=30, at=AT).item_ids
    assert page.item_ids[0] == first[0]
    assert page.item_ids[1] == min(first[1:], key=lambda item: cosine[first[0]][item])
    assert rec.recommend("u7", k=5, at=AT, rules=[MMR(1.0)]).item_ids == first[:5]


def test_a_search_stops_where_its_limit_or_its_floor_says(rec, monkeypatch):
    asked = []
    search = type(rec._snapshot.retrievers["dense"]).search

    def spy(self, states, k, **rest):
        asked.append(k)
        return search(self, states, k, **rest)

    monkeypatch.setattr(type(rec._snapshot.retrievers["dense"]), "search", spy)
    hopeless = [Floor(1.0, on="action", action="like")]
    page = rec.recommend("u7", k=2, at=AT, rules=hopeless)
    assert (len(page), asked) == (0, [2, 4, 8, 16, page.num_reachable])
    asked.clear()
    assert len(rec.recommend("u7", k=2, at=AT, rules=hopeless, max_candidates=7)) == 0
    assert asked == [2, 4, 7]
    asked.clear()
    assert len(rec.recommend("u7", k=2, at=AT, rules=[Floor(1e6)])) == 0
    assert asked == [2]


# -- filters -------------------------------------------------------------------------------------------------------


def test_filters_are_worked_out_once_per_snapshot(rec):
    items = rec._snapshot.item_table
    first = items.allowed([Where("brand", "a"), Where("sold", True)])
    assert items.allowed([Where("sold", True), Where("brand", ["a"])]) is first
    assert items.allowed([Where("brand", "a")]) is not first
    other = Recommender(rec.bundle)._snapshot
    assert replace(other, bundle=replace(rec.bundle, items=rec.items.clear())).item_table is not other.item_table
    alone = Where("item_id", rec.items["item_id"][1])
    assert ItemTable(rec.items.head(3)).allowed([alone]).ids_N.tolist() == [1]
    assert ItemTable(rec.items.head(3), np.array([1])).allowed([alone]).ids_N.tolist() == []


def test_kept_filters_are_bounded(rec, monkeypatch):
    monkeypatch.setattr("recsys.retrieval.rules.item_table._BYTES", 0)
    items = ItemTable(rec.items)
    found = [items.allowed([Where("stock", number)]) for number in range(6)]
    assert items.allowed([Where("stock", 5)]) is found[5]
    assert items.allowed([Where("stock", 0)]) is not found[0]


def test_values_of_kept_filters_are_bounded_too(rec, monkeypatch):
    monkeypatch.setattr("recsys.retrieval.rules.item_table._BYTES", 100_000)
    monkeypatch.setattr("recsys.retrieval.rules.item_table._MOST", 12)
    items = ItemTable(rec.items)
    for number in range(9):
        items.allowed([Where("brand", [f"{number}-{value}" for value in range(500)])])  # 40 KB each
        small = items.allowed([Where("stock", number)])
    assert len(items._kept) <= 6 and items.allowed([Where("stock", 8)]) is small
    for number in range(20):
        items.allowed([Where("stock", number)])
    assert len(items._kept) == 12 and 0 < items._num_bytes < 12 * 500


def test_filters_join_the_allow_list_and_exclusions(rec):
    brands = dict(zip(rec.items["item_id"], rec.items["brand"], strict=True))
    allow = ["i1", "i2", "i4", "i8", "i12", "not there"]
    page = rec.recommend(k=9, at=AT, allow=allow, exclude=["i4"], rules=[Where("brand", ("a", "b", "c"))])
    assert set(page.item_ids) == {item for item in allow[:5] if brands[item] and item != "i4"}
    assert page.num_reachable == len(page)
    nothing = rec.recommend(k=3, at=AT, rules=[Where("brand", "no such brand")])
    assert len(nothing) == 0 and "filters on item columns let 0 of 30 items pass" in nothing.notes


def test_dates_are_points_in_time():
    zoned = pl.Series([datetime(2024, 1, 1, 0, 30), None]).dt.replace_time_zone("Europe/Berlin")
    frame = pl.DataFrame({"item_id": ["a", "b"], "day": [date(2024, 1, 1), date(2024, 1, 2)], "zoned": zoned})
    items = ItemTable(frame)

    def found(rule: Where) -> list[int]:
        return items.allowed([rule]).ids_N.tolist()

    assert found(Where("day", "2024-01-01")) == found(Where("day", datetime(2024, 1, 1, tzinfo=UTC))) == [0]
    assert found(Where("day", at_least="2024-01-01T00:00:01")) == [1]
    assert found(Where("zoned", at_most="2023-12-31T23:30:00Z")) == [0]
    assert found(Where("zoned", at_most="2023-12-31T23:29:59Z")) == []
    assert (
        items.seconds("zoned", np.array([0, 1])).tolist()[0] == datetime(2023, 12, 31, 23, 30, tzinfo=UTC).timestamp()
    )


# -- chance --------------------------------------------------------------------------------------------------------


def test_what_comes_after_the_request_is_new(rec):
    """Whatever its distance: with a full lift for every item the order stays."""
    dated, early = Where("born", at_least=0), {"user_id": "u1", "k": 12, "at": AT - 1_300_000}
    plain = rec.recommend(**early, rules=[dated])
    assert rec.recommend(**early, rules=[dated, Freshness("born", 4e5, weight=5.0)]).item_ids == plain.item_ids


def test_chance_is_that_of_seed_and_user(rec):
    users = [f"u{row}" for row in range(12)]
    for rule in (Explore(3, temperature=0.3), Explore(3, epsilon=0.5)):
        ask = {"k": 5, "candidates": 20, "at": AT}
        together = rec.recommend_batch([Request(user_id=user, rules=[rule], **ask) for user in users])
        for user, page in zip(users, together, strict=True):
            alone = rec.recommend(user, rules=[rule], **ask)
            assert alone.item_ids == page.item_ids
            assert [hit.propensity for hit in alone] == pytest.approx([hit.propensity for hit in page], abs=1e-4)
        seeds = [rec.recommend("u1", rules=[replace(rule, seed=seed)], **ask).item_ids for seed in range(8)]
        assert len({tuple(ids) for ids in seeds}) > 4
        one_page = {tuple(rec.recommend(history=[], rules=[replace(rule, seed=s)], **ask).item_ids) for s in (1, 1, 2)}
        assert len(one_page) == 2


def test_frames_and_batches_take_rules(rec):
    rules = [Where("sold", False), Cap("brand", 1), Explore(1, epsilon=0.2)]
    frame = rec.recommend_frame(["u1", "u2"], k=3, at=AT, rules=rules)
    pages = rec.recommend_batch([{"user_id": user, "k": 3, "at": AT, "rules": rules} for user in ("u1", "u2")])
    assert frame["item_id"].to_list() == [hit.item_id for page in pages for hit in page]
    assert frame["propensity"].to_list() == pytest.approx([hit.propensity for page in pages for hit in page])
    assert "propensity" not in rec.recommend_frame(["u1"], k=3, at=AT, rules=rules[:2]).columns


def test_several_retrievers_keep_to_the_rules(rec):
    brands = dict(zip(rec.items["item_id"], rec.items["brand"], strict=True))
    for rules in ([Cap("brand", 1, "group")], [Where("sold", False), MMR(0.5)], [Explore(5, temperature=1.0)]):
        page: Page = rec.recommend("u6", k=4, at=AT, retrievers=("memory", "dense"), rules=rules)
        assert len(set(page.item_ids)) == 4
    capped = rec.recommend("u6", k=9, at=AT, retrievers=("memory", "dense"), rules=[Cap("brand", 1, "group")])
    assert sorted(map(str, (brands[item] for item in capped.item_ids))) == sorted(map(str, BRANDS))
    first = rec.recommend("u6", k=4, at=AT, retrievers=("memory", "dense")).item_ids
    boosted = rec.recommend("u6", k=4, at=AT, retrievers=("memory", "dense"), rules=[Boost([first[2]], 0.2)]).item_ids
    assert boosted == [first[0], first[2], first[1], first[3]]  # 1, 1/3 + .2, 1/2, 1/4


# -- weights and errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), True, "1", None])
def test_weights_of_actions_are_finite_numbers(rec, weight):
    with pytest.raises(InputError, match="rank_by: the weight of 'like' must be a finite number"):
        rec.recommend("u1", rank_by={"like": weight})


def test_a_negative_weight_lowers_what_is_hidden(rec):
    page = rec.recommend("u9", k=12, candidates=30, at=AT, rank_by={"hide": np.float32(-1)})
    hides = [hit.actions["hide"] for hit in page]
    everything = [hit.actions["hide"] for hit in rec.recommend("u9", k=30, at=AT)]
    assert hides == pytest.approx(sorted(everything)[:12])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Cap("brand", 0), "Cap.n must be a positive integer, got 0"),
        (lambda: Cap("brand", True), "Cap.n must be a positive integer"),
        (lambda: Cap("brand", 1, "never"), "Cap.missing must be"),
        (lambda: MMR(1.1), "MMR.lam must be from 0 to 1, got 1.1"),
        (lambda: MMR(float("nan")), "MMR.lam must be a finite number"),
        (lambda: Where("brand"), "it got neither"),
        (lambda: Where("brand", "a", at_most=3), "it got both"),
        (lambda: Where("brand", [["a"]]), "compares with texts, numbers and dates"),
        (lambda: Where("price", at_least=float("inf")), "give a finite number"),
        (lambda: Where("price", 3, negate=1), "Where.negate must be True or False"),
        (lambda: Where(3, 3), "Where.column must be the name of a column"),
        (lambda: Floor(float("inf")), "Floor.at_least must be a finite number"),
        (lambda: Floor(0.1, on="action"), "needs the name of an action"),
        (lambda: Floor(0.1, on="luck"), "Floor.on must be"),
        (lambda: Freshness("born", 0), "Freshness.half_life must be positive"),
        (lambda: Freshness("born", 1, mode="divide"), "Freshness.mode must be"),
        (lambda: Boost("i1", 1), "must be a collection of item ids"),
        (lambda: Boost(["i1"], 1e300), "Boost.weight must be a finite number"),
        (lambda: Pin("i1", 0), "Pin.place must be a positive integer"),
        (lambda: Explore(1), "epsilon or temperature, and not both"),
        (lambda: Explore(1, 0.1, 0.1), "epsilon or temperature, and not both"),
        (lambda: Explore(1.5, 0.1), "Explore.seed must be an integer"),
        (lambda: Explore(10**5000, 0.1), "Explore.seed must be an integer of at most 128 bits, got an integer of"),
        (lambda: Where("brand", ["a", "\ud800"]), "cannot compare with '\\ud800', which no file holds"),
        (lambda: Where("price", 10**5000), "give a finite number"),
        (lambda: Cap("brand", 1, np.array(["free", "group"])), "Cap.missing must be"),
        (lambda: Floor(0.1, on=pl.Series([1.5])), "Floor.on must be"),
        (lambda: Floor(0.1, on="action", action=["like"]), "Floor.action must be the name of an action, got ['like']"),
        (lambda: Where("price", range(10**9)), "Where('price') holds more than 10,000,000 ids"),
        (lambda: Boost(range(10**9), 1), "Boost.items holds more than 10,000,000 ids"),
        (lambda: MMR(0.5, scale=1), "MMR.scale must be True or False, got 1"),
        (lambda: Floor(10**5000), "Floor.at_least must be a finite number, got an integer of 16610 bits"),
        (lambda: Pin("i1", 10**5000), "Pin.place must be a positive integer, got an integer of 16610 bits"),
        (lambda: Cap("brand", 2**63), "Cap.n must be a positive integer, got 9223372036854775808"),
        (lambda: Explore(1, 1.5), "Explore.epsilon must be from 0 to 1"),
        (lambda: Explore(1, temperature=0), "Explore.temperature must be positive"),
        (lambda: Request(rules=[MMR(0.5), MMR(0.4)]), "rules hold MMR 2 times"),
        (lambda: Request(rules=["cap"]), "got 'cap'"),
        (lambda: Request(rules=Cap("brand", 1)), "must be a sequence of rules"),
        (lambda: Request(k=3, rules=[Pin("i1", 4)]), "place 4 is beyond the 3 items"),
        (lambda: Request(rules=[Pin("i1", 4), Pin("i2", 4)]), "two items are pinned to place 4"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_meant_is_one_line(make, said):
    with pytest.raises(InputError) as caught:
        make()
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([Where("colour", "red")], "Where: the items have no column 'colour'; they have item_id, title"),
        ([Cap("colour", 1)], "Cap: the items have no column 'colour'"),
        ([Freshness("colour", 1)], "Freshness: the items have no column 'colour'"),
        ([Freshness("brand", 1)], "Freshness: column 'brand' holds String; name one of dates"),
        ([Where("brand", 3)], "column 'brand' holds String, which cannot be compared with 3"),
        ([Where("sold", 1)], "column 'sold' holds Boolean, which cannot be compared with 1"),
        ([Where("stock", "1")], "cannot be compared with '1'"),
        ([Where("day", "soon")], "cannot be compared with 'soon'"),
        ([Where("brand", at_least="a")], "at_least and at_most are for numbers, dates"),
        ([Floor(0.1, on="rank_by")], "on='rank_by' needs rank_by"),
        ([Floor(0.1, on="action", action="buy")], "not by 'buy'"),
        ([Pin("i1", 1), Pin("i1", 2)], "item 'i1' is pinned twice"),
    ],
)
def test_a_rule_that_does_not_fit_the_bundle_is_one_line(rec, rules, said):
    with pytest.raises(InputError) as caught:
        rec.recommend("u1", at=AT, rules=rules)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_floor_on_a_union_ends_no_search_early(full_world):
    bundle = Bundle.open(full_world.bundle)
    few = {"dense": 1, "generative": 1, "parallel": 1, "set": 0, "memory": 0, "cold": 0}
    weights = {"codes": {"generative": 3.0, "parallel": 0.3}, "cold": 0.0, "budgets": few}
    rec = Recommender(replace(bundle, manifest={**bundle.manifest, "hybrid_weights": weights}, hybrid_head=None))
    for user in range(6):
        ask = {"user_id": f"u{user}", "at": AT, "retrievers": ("hybrid",)}
        best = rec.recommend(**ask, k=30).hits[:6]
        page = rec.recommend(**ask, k=4, rules=[Floor(best[-1].score - 1e-4)])
        assert len(page) == 4 and set(page.item_ids) <= {hit.item_id for hit in best}
        hopeless = rec.recommend(**ask, k=4, rules=[Floor(1e9)], max_candidates=9)
        assert len(hopeless) == 0 and hopeless.notes[-1].endswith("among 9")


def test_floors_need_a_score_that_compares(rec):
    with pytest.raises(InputError, match="scores of several retrievers do not compare"):
        rec.recommend("u1", retrievers=("dense", "memory"), rules=[Floor(0.1)])
    with pytest.raises(InputError, match="needs rank=True"):
        rec.recommend("u1", rank=False, rules=[Floor(0.1, on="action", action="like")])


def test_pins_that_may_not_be_shown_are_said(rec):
    page = rec.recommend(k=3, at=AT, exclude=["i2"], rules=[Pin("i2", 1), Pin("i3", 2), Pin("nowhere", 3)])
    assert page.item_ids[1] == "i3" and "i2" not in page.item_ids and len(page) == 3
    assert page.notes == (
        "pinned item 'nowhere' is not in the catalogue",
        "1 pinned items are not among those that may be shown",
    )
    odd = rec.recommend(k=3, at=AT, rules=[Pin(10**5000, 1), Boost(["i3"], 10**20), Freshness("born", 1, -(10**29))])
    assert odd.notes == ("pinned item an integer of 16610 bits is not in the catalogue",)
    short = rec.recommend(k=9, at=AT, allow=["i1", "i2"], rules=[Pin("i2", 9)])
    assert short.item_ids == ["i1", "i2"]


def test_retrievers_by_codes_keep_to_the_rules(code_model, toy_dataset, tmp_path):
    export_model(code_model, toy_dataset, tmp_path / "bundle", histories=True)
    plain = Recommender.load(tmp_path / "bundle").bundle
    rec = Recommender(replace(plain, items=table(plain.items)))
    rows = {row["item_id"]: row for row in rec.items.to_dicts()}
    stock, cap, pin = Where("stock", at_least=1), Cap("tags", 2), Pin("i8", 2)
    for name in ("generative", "parallel", "set", "hybrid"):
        ask = {"user_id": "u3", "at": AT, "retrievers": (name,), "k": 6}
        page = rec.recommend(**ask, rules=[stock, cap, pin, Boost(["i9"], 0.5)], exclude_history=False)
        assert len(page) == len(set(page.item_ids)) == 6 and page.item_ids[1] == "i8"
        assert all(rows[item]["stock"] >= 1 for item in page.item_ids)
        for tag in "xyzw":
            assert sum(tag in (rows[item]["tags"] or ()) for item in page.item_ids) <= 2
        drawn = {tuple(rec.recommend(**ask, rules=[Explore(seed, temperature=3.0)]).item_ids) for seed in range(4)}
        assert len(drawn) == 4


ODD = st.one_of(
    st.sampled_from(["brand", "price", "stock", "tags", "sold", "day", "born", "item_id", "i3", "like", "add", "free"]),
    st.integers(-2, 4), st.integers(), st.floats(), st.booleans(), st.none(), st.dates(), st.datetimes(), st.text(),
    st.binary(max_size=3), st.lists(st.one_of(st.integers(), st.text(max_size=2), st.floats(), st.none()), max_size=3),
)  # fmt: skip


@settings(SETTINGS, max_examples=80)
@given(kind=st.sampled_from([Where, Cap, MMR, Floor, Freshness, Boost, Pin, Explore]), data=st.data())
def test_odd_values_give_a_page_or_one_line(rec, kind, data):
    fields = data.draw(st.dictionaries(st.sampled_from(list(kind.__dataclass_fields__)), ODD, min_size=2))
    if "column" in kind.__dataclass_fields__:
        fields["column"] = data.draw(st.sampled_from(rec.items.columns))
    try:
        page = rec.recommend("u1", k=3, candidates=5, at=AT, rules=[kind(**fields)])
    except InputError as error:
        assert "\n" not in str(error)
    except TypeError as error:  # Python's own, for fields that are not there
        assert "required positional argument" in str(error)
    else:
        assert len(page) <= 3 and all(np.isfinite(hit.score) and 0 <= hit.propensity <= 1 for hit in page)
