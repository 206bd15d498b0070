"""Interactions: ids, order, union, actions, clocks, columns, formats and hashes."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.events import MOST_ACTIONS
from recsys.pipelines.prepare.build import prepare_frames, prepare_tables
from recsys.pipelines.prepare.command import prepare
from recsys.pipelines.prepare.reading import read_table
from recsys.pipelines.prepare.settings import PrepareSettings

COLUMNS = ["user_id", "item_id", "timestamp", "action"]


def frame(*rows: tuple[Any, ...], columns: list[str] = COLUMNS) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=columns, orient="row")


def stored(data: Dataset) -> list[tuple[Any, ...]]:
    """Events in the callers' words."""
    names = data.manifest.actions
    table = pl.read_parquet(data.path / "events.parquet")
    return [
        (
            data.user_ids[row["user"]],
            data.item_ids[row["item"]],
            row["timestamp"],
            "+".join(name for bit, name in enumerate(names) if row["yes"] >> bit & 1),
        )
        for row in table.to_dicts()
    ]


def test_events_are_ordered_by_user_time_and_row(tmp_path: Path) -> None:
    given_rows = [
        ("b", "x", 5, "click"),
        ("a", "y", 9, "click"),
        ("b", "z", 5, "click"),
        ("a", "x", 2, "buy"),
        ("b", "w", 1, "click"),
        ("a", "w", 9, "click"),
    ]
    data = prepare_frames(frame(*given_rows), output=tmp_path / "data")
    assert data.user_ids.to_list() == ["b", "a"]  # order of first appearance
    assert data.item_ids.to_list() == ["x", "y", "z", "w"]
    assert stored(data) == [given_rows[at] for at in (4, 0, 2, 3, 1, 5)]
    assert data.events.offsets.tolist() == [0, 3, 6]


def test_equal_rows_are_one_event_at_the_place_of_the_first(tmp_path: Path) -> None:
    rows = frame(
        ("u", "a", 1, "click", None, None, False),
        ("u", "b", 1, "none", 2.0, "home", True),
        ("u", "a", 1, "buy", 7.0, "mail", True),
        ("u", "a", 2, "click", 1.0, "home", True),
        columns=[*COLUMNS, "value", "surface", "time_known"],
    )
    data = prepare_frames(rows, output=tmp_path / "data")
    assert stored(data) == [("u", "a", 1, "buy+click"), ("u", "b", 1, ""), ("u", "a", 2, "click")]
    assert data.manifest.counts["rows_united"] == 1
    assert data.events.value.tolist() == [7.0, 2.0, 1.0]
    assert [data.manifest.surfaces[at] for at in data.events.surface] == ["mail", "home", "home"]
    assert data.events.time_known.tolist() == [True, True, True]


def test_as_many_actions_as_a_dataset_can_hold_and_no_more(tmp_path: Path) -> None:
    rows = [("u", "a", at, f"a{at}") for at in range(MOST_ACTIONS + 1)]
    data = prepare_frames(frame(*rows[:-1]), output=tmp_path / "data")
    assert len(data.manifest.actions) == MOST_ACTIONS
    assert data.manifest.positive_mask == data.events.known[0] == 2**MOST_ACTIONS - 1
    with pytest.raises(InputError, match=rf"{MOST_ACTIONS + 1} different actions occur .* at most {MOST_ACTIONS} are"):
        prepare_frames(frame(*rows), output=tmp_path / "more")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_forms_of_actions_say_the_same(tmp_path: Path) -> None:
    joined = frame(("u", "a", 1, "click+buy"), ("u", "b", 2, "none"), ("u", "c", 3, None), ("u", "d", 4, "buy"))
    lists = joined.with_columns(pl.Series("action", [["click", "buy"], [], None, ["buy"]]))
    named = joined.with_columns(pl.Series("action", [["click+buy"], ["shown"], ["", None], ["Exposure", " buy "]]))
    category = joined.with_columns(pl.col("action").cast(pl.Categorical))
    for number, table in enumerate((joined, lists, named, category)):
        data = prepare_frames(table, output=tmp_path / f"data{number}")
        assert data.manifest.actions == ("buy", "click")
        assert data.events.yes.tolist() == [3, 0, 0, 1]
        assert data.events.known.tolist() == [3, 3, 3, 3]
        assert data.manifest.counts["bare_exposures"] == 2


def test_unknown_is_neither_yes_nor_no(tmp_path: Path) -> None:
    table = frame(
        ("u", "a", 1, "click"),
        ("u", "b", 2, "none"),
        ("u", "b", 2, "click"),
        ("u", "c", 3, "none"),
        ("u", "d", 4, "buy"),
    )
    silent = [["buy"], ["buy", "click"], [], ["buy", "click", "dance"], ["buy"]]
    table = table.with_columns(pl.Series("unknown", silent))
    data = prepare_frames(table, output=tmp_path / "data")
    assert data.manifest.actions == ("buy", "click")  # what only `unknown` names never happened
    assert data.events.yes.tolist() == [2, 2, 0, 1]
    # United rows know what one of them knows, and an action that happened is known whatever else is said.
    assert data.events.known.tolist() == [2, 3, 0, 3]
    assert data.manifest.raw["action_counts"]["buy"] == {"yes": 1, "known": 2}
    text = prepare_frames(table.with_columns(pl.col("unknown").list.join("+")), output=tmp_path / "text")
    assert text.events.known.tolist() == data.events.known.tolist()


@pytest.mark.parametrize(
    ("flags", "positives", "negatives"),
    [
        ({}, ("click", "like"), ("hide",)),
        ({"negative": ("click",)}, ("hide", "like"), ("click",)),
        ({"negative": ()}, ("click", "hide", "like"), ()),
        ({"positive": ("like",)}, ("like",), ("hide",)),
        ({"positive": ("hide",)}, ("hide",), ()),
    ],
)
def test_positives_follow_the_flags(
    flags: dict[str, Any], positives: tuple[str, ...], negatives: tuple[str, ...], tmp_path: Path
) -> None:
    rows = [("u", f"i{at}", at, action) for at, action in enumerate(("click", "hide", "like", "hide+click", "none"))]
    data = prepare_frames(frame(*rows), output=tmp_path / "data", **flags)
    assert (data.manifest.positives, data.manifest.negatives) == (positives, negatives)
    expected = [bool(set(row[3].split("+")) & set(positives)) for row in rows]
    assert data.is_positive().tolist() == expected


def test_dates_datetimes_and_fractions_of_seconds(tmp_path: Path) -> None:
    day = datetime(2024, 3, 1, tzinfo=UTC)
    seconds = int(day.timestamp())
    moments = [day + timedelta(seconds=1.5), day + timedelta(seconds=1.2), day]
    rows = [("u", f"i{at}", 0, "click") for at in range(3)]
    for number, (times, expected) in enumerate(
        [
            (moments, [seconds, seconds + 1, seconds + 1]),
            ([moment.replace(tzinfo=None) for moment in moments], [seconds, seconds + 1, seconds + 1]),
            ([date(2024, 3, 3), date(2024, 3, 2), date(2024, 3, 1)], [seconds + at * 86_400 for at in range(3)]),
            ([seconds + 1.5, seconds + 1.2, float(seconds)], [seconds, seconds + 1, seconds + 1]),
        ]
    ):
        data = prepare_frames(frame(*rows).with_columns(pl.Series("timestamp", times)), output=tmp_path / f"d{number}")
        assert data.events.timestamp.tolist() == expected
        # Order is that of the full precision, though whole seconds are kept.
        assert data.item_ids.gather(data.events.item).to_list() == ["i2", "i1", "i0"]
        assert data.manifest.clock == "real"


def test_clock_is_recognised_and_said(tmp_path: Path) -> None:
    rows = frame(*[("u", f"i{at}", at, "click") for at in range(5)])
    data = prepare_frames(rows, output=tmp_path / "order")
    assert data.manifest.clock == "order"
    assert any("only count" in note for note in data.manifest.notes)
    assert any("Only one action occurs (click)" in note for note in data.manifest.notes)
    real = prepare_frames(rows, output=tmp_path / "real", clock="real")
    assert real.manifest.clock == "real" and not any("only count" in note for note in real.manifest.notes)
    late = prepare_frames(rows.with_columns(pl.col("timestamp") + 1_700_000_000), output=tmp_path / "late")
    assert late.manifest.clock == "real"
    assert late.manifest.max_timestamp == 1_700_000_004


@pytest.mark.parametrize("kind", [pl.Int8, pl.UInt16, pl.Int32, pl.Int64, pl.UInt64, pl.String, pl.Categorical])
def test_ids_keep_their_type(kind: Any, tmp_path: Path) -> None:
    rows = frame(*[(str(at % 3), str(at % 4), at, "click") for at in range(12)])
    numbers = (
        pl.col("user_id", "item_id").cast(pl.Int64).cast(kind) if kind not in (pl.String, pl.Categorical) else None
    )
    table = rows.with_columns(numbers if numbers is not None else pl.col("user_id", "item_id").cast(kind))
    items = table.select("item_id", pl.lit("x").alias("shelf")).unique(maintain_order=True)
    data = prepare_frames(table, items, output=tmp_path / "data")
    expected = pl.String if kind == pl.Categorical else kind
    assert data.item_ids.dtype == expected and data.user_ids.dtype == expected
    assert data.item_index(["2", "9", None]).tolist() == [2, -1, -1]
    if kind not in (pl.String, pl.Categorical):
        assert data.item_index([2]).tolist() == [2]


def test_ids_of_two_types_meet(tmp_path: Path) -> None:
    rows = frame(*[(at % 2, at % 3, at, "click") for at in range(6)])
    items = pl.DataFrame({"item_id": ["2", "1", "7"], "shelf": ["c", "b", "h"]})
    data = prepare_frames(rows, items, output=tmp_path / "data")
    assert data.item_ids.to_list() == [2, 1, 7, 0] and data.item_ids.dtype == pl.Int64
    assert data.items["shelf"].to_list() == ["c", "b", "h", None]
    assert data.manifest.counts["items_without_row"] == 1
    words = prepare_frames(rows, pl.DataFrame({"item_id": ["2", "x"]}), output=tmp_path / "words")
    assert words.item_ids.to_list() == ["2", "x", "0", "1"]
    wide = prepare_frames(
        rows.with_columns(pl.col("item_id").cast(pl.Int32)),
        pl.DataFrame({"item_id": [2, 2**40]}),
        output=tmp_path / "wide",
    )
    assert wide.item_ids.to_list() == [2, 2**40, 0, 1]


IDS = st.one_of(st.text(min_size=1, max_size=6), st.sampled_from(["007", "7", " 7", "7.0", "null", "NaN", "a+b", "ß"]))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(IDS, IDS, st.integers(-5, 5)), min_size=1, max_size=15))
def test_text_ids_come_back_unchanged(rows: list[tuple[str, str, int]]) -> None:
    table = frame(*[(*row, "click") for row in rows])
    with TemporaryDirectory() as folder:
        data = prepare_frames(table, output=Path(folder) / "data")
        expected: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        for place, (user, item, time) in enumerate(rows):
            if (time, item) not in {(known, name) for known, _, name in expected[user]}:
                expected[user].append((time, place, item))
        assert data.user_ids.to_list() == list(expected)
        for user, name in enumerate(data.user_ids):
            history = data.events.history(user)
            assert data.item_ids.gather(history.item).to_list() == [item for _, _, item in sorted(expected[name])]
            assert (np.diff(history.timestamp) >= 0).all()
        assert data.user_index(data.user_ids.to_list()).tolist() == list(range(data.num_users))


def test_unknown_columns_are_kept(tmp_path: Path) -> None:
    table = frame(("u", "a", 1, "click"), ("v", "b", 2, "click")).with_columns(
        device=pl.Series(["phone", None]), item=pl.Series([1.5, 2.5]), yes=pl.Series(["x", "y"])
    )
    data = prepare_frames(table, output=tmp_path / "data")
    kept = pl.read_parquet(data.path / "events.parquet")
    assert kept["device"].to_list() == ["phone", None]
    assert kept["input_item"].to_list() == [1.5, 2.5] and kept["input_yes"].to_list() == ["x", "y"]
    assert kept.columns[:8] == ["user", "item", "timestamp", "yes", "known", "surface", "value", "time_known"]


def test_columns_named_as_ours_are_kept_under_names_of_their_own(tmp_path: Path) -> None:
    table = frame(*[("u", item, at, "click") for at, item in enumerate("abab")], ("v", "c", 1, "click")).with_columns(
        user=pl.lit(1), input_user=pl.lit(2), _user=pl.lit(3), _item=pl.lit(4),
        original_value=pl.lit(5), value=pl.lit(6.0), worth=pl.lit(7.0),
    )  # fmt: skip
    data = prepare_frames(table, output=tmp_path / "data", columns={"value": "worth"}, min_user_events=2)
    kept = pl.read_parquet(data.path / "events.parquet").row(0, named=True)
    assert (kept["input_input_user"], kept["input_user"], kept["_user"], kept["_item"]) == (1, 2, 3, 4)
    assert (kept["original_value"], kept["original_original_value"], kept["value"]) == (5, 6.0, 7.0)


def test_columns_are_renamed_in_every_table(tmp_path: Path) -> None:
    table = pl.DataFrame({"uid": ["u", "u"], "asin": ["a", "b"], "ts": [1, 2], "timestamp": [9, 8], "action": "click"})
    items = pl.DataFrame({"asin": ["b", "a"], "shelf": [1, 2]})
    mapping = {"user_id": "uid", "item_id": "asin", "timestamp": "ts"}
    data = prepare_frames(table, items, output=tmp_path / "data", columns=mapping)
    assert stored(data) == [("u", "a", 1, "click"), ("u", "b", 2, "click")]
    assert pl.read_parquet(data.path / "events.parquet")["original_timestamp"].to_list() == [9, 8]
    assert data.items.columns == ["item_id", "shelf"]


def test_rare_users_and_items_are_left_out_until_none_is_rare(tmp_path: Path) -> None:
    rows = [("u", item, at, "click") for at, item in enumerate("abc")]
    rows += [("v", item, at, "click") for at, item in enumerate("abc")]
    # w has three events, one of an item that is rare, after which w is rare, after which d is.
    rows += [("w", "rare", 0, "click"), ("w", "a", 1, "click"), ("w", "d", 2, "click"), ("u", "d", 9, "click")]
    items = pl.DataFrame({"item_id": ["cold", "a", "b", "c", "d"]})
    slates = pl.DataFrame(
        {"slate_id": [1, 2], "user_id": ["u", "w"], "timestamp": [1, 1], "item_ids": [["a", "d", "b"], ["a"]]}
    ).with_columns(actions=pl.Series([["click", "", "click"], [""]]))
    data = prepare_frames(
        frame(*rows), items, impressions=slates, output=tmp_path / "data", min_user_events=3, min_item_events=2
    )
    assert data.user_ids.to_list() == ["u", "v"] and data.item_ids.to_list() == ["a", "b", "c"]
    assert [row[:2] for row in stored(data)] == [(user, item) for user in "uv" for item in "abc"]
    assert data.slates is not None and data.slates.item.tolist() == [0, 1] and data.slates.yes.tolist() == [1, 1]
    assert data.manifest.dropped["users with fewer than 3 events"] == 1
    assert data.manifest.dropped["items with fewer than 2 events"] == 3


def test_csv_parquet_and_pandas_give_the_same_dataset(tmp_path: Path) -> None:
    table = frame(*[(at % 3, at % 4, 1_700_000_000 + at, ["click", "click+buy", ""][at % 3]) for at in range(20)])
    table = table.with_columns(value=pl.Series([None if at % 2 else at / 4 for at in range(20)]), shelf=pl.lit("s"))
    items = pl.DataFrame({"item_id": [2, 0], "title": ["red, blue", None], "price": [1.5, 2.0]})
    for name, one in (("events", table), ("items", items)):
        one.write_csv(tmp_path / f"{name}.csv")
        one.write_parquet(tmp_path / f"{name}.parquet")
    made = [
        prepare_tables(
            {"interactions": read_table(tmp_path / f"events.{kind}"), "items": read_table(tmp_path / f"items.{kind}")},
            tmp_path / kind,
            PrepareSettings(),
        )
        for kind in ("csv", "parquet")
    ]
    made.append(prepare_frames(table, items, output=tmp_path / "frames"))
    made.append(prepare_frames(table.to_pandas(), items.to_pandas(), output=tmp_path / "pandas"))
    made.append(prepare_frames(table.lazy(), items.lazy(), output=tmp_path / "lazy"))
    assert len({data.manifest.data_hash for data in made}) == 1


def test_csv_ids_that_only_look_like_numbers_stay_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "user_id,item_id,timestamp,action\n007,1,2024-03-01 00:00:05,click\n7,2,2024-03-01,buy\n"
    )
    data = prepare_tables({"interactions": read_table(tmp_path / "a.csv")}, tmp_path / "data", PrepareSettings())
    assert data.user_ids.to_list() == ["007", "7"]
    assert data.item_ids.to_list() == [1, 2]
    assert data.events.timestamp.tolist() == [1_709_251_205, 1_709_251_200]


def test_csv_lists_and_words(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "user_id,item_id,timestamp,action,unknown,time_known,surface,value\n"
        'u,a,1,"[""click"", ""buy""]",,true,3,\nu,b,2,,buy,FALSE,,1.5\n'
    )
    (tmp_path / "s.csv").write_text(
        "slate_id,user_id,timestamp,item_ids,actions,times\n"
        's,u,1,"[""a"", ""c""]","[""click+buy"", null]","[1, 4]"\nt,u,3,"[""a""]","[[""buy""]]","[3]"\n'
    )
    tables = {"interactions": read_table(tmp_path / "a.csv"), "impressions": read_table(tmp_path / "s.csv")}
    data = prepare_tables(tables, tmp_path / "data", PrepareSettings())
    assert data.events.yes.tolist() == [3, 0] and data.events.known.tolist() == [3, 2]
    assert data.events.time_known.tolist() == [True, False]
    assert data.manifest.surfaces == ("", "3") and data.events.surface.tolist() == [1, 0]
    assert np.isnan(data.events.value[0]) and data.events.value[1] == 1.5
    assert data.slates is not None
    assert data.slates.yes.tolist() == [3, 0, 1] and data.slates.time.tolist() == [1, 4, 3]
    assert data.item_ids.to_list() == ["a", "b", "c"]


def test_same_input_and_flags_give_the_same_hash_and_other_flags_another(tmp_path: Path) -> None:
    rows = frame(*[(f"u{at % 3}", f"i{at % 4}", at, ["click", "like"][at % 2]) for at in range(20)])
    items = pl.DataFrame({"item_id": [f"i{at}" for at in range(4)], "title": ["red ship", "red car", "blue car", ""]})

    def made(name: str, **flags: Any) -> str:
        return prepare_frames(rows, items, output=tmp_path / name, **flags).manifest.data_hash

    assert made("one") == made("two")
    others = [made("neg", negative=("like",)), made("time", split="time", valid_from=5, test_from=9)]
    assert len({made("one"), *others}) == 3


def test_users_and_their_columns(tmp_path: Path) -> None:
    rows = frame(*[(f"u{at % 3}", f"i{at % 4}", at, "click") for at in range(12)])
    users = pl.DataFrame({"user_id": ["u2", "nobody", "u0"], "age": [30, 40, 50]})
    data = prepare_frames(rows, users=users, output=tmp_path / "data", user_features=("age",))
    assert data.users.to_dicts() == [
        {"user_id": "u0", "age": 50},
        {"user_id": "u1", "age": None},
        {"user_id": "u2", "age": 30},
    ]
    assert data.manifest.counts["user_rows_without_events"] == 1
    assert data.manifest.counts["users_without_row"] == 1
    assert data.manifest.user_features == ("age",)
    assert data.user_dim == 1 and data.user_content[:, 0].tolist() == [1.0, 0.0, -1.0]


@pytest.mark.slow
def test_a_user_of_a_million_events_is_ordinary(tmp_path: Path) -> None:
    count = 1_000_000
    rng = np.random.default_rng(0)
    table = pl.DataFrame(
        {
            "user_id": "u",
            "item_id": rng.integers(0, 1000, count),
            "timestamp": rng.permutation(count),
            "action": "click",
        }
    )
    data = prepare_frames(table, output=tmp_path / "data")
    assert data.num_events == count and data.test_at.tolist() == [count - 1]
    assert (np.diff(data.events.timestamp) > 0).all()


@pytest.mark.parametrize(
    ("name", "users", "items", "events"),
    [("amazon_toys", 19_412, 11_924, 167_597), ("goodbooks_10k_sample", 2_672, 10_000, 298_176)],
)
def test_real_data_sets_have_their_known_sizes(
    data_root: Path, name: str, users: int, items: int, events: int, tmp_path: Path
) -> None:
    folder = data_root / name
    prepare(
        interactions=str(folder / "interactions.parquet"), items=str(folder / "items.parquet"), output=tmp_path / "data"
    )
    data = Dataset.open(tmp_path / "data")
    assert (data.num_users, data.num_items, data.num_events) == (users, items, events)
    assert data.manifest.clock == "order"
    assert len(data.requests("test")) == len(data.requests("validation")) == users
    assert data.content is not None and data.content.shape == (items, 128)
    # The targets of the published split: the last event, and the one before.
    assert (data.test_at == np.diff(data.events.offsets) - 1).all()
    assert (data.valid_at == data.test_at - 1).all()
