"""Splits: the targets are those of the definition, and nothing at or after a held-out target trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.dataset import Dataset, offsets_of
from recsys.errors import InputError
from recsys.pipelines.prepare.build import prepare_frames
from recsys.pipelines.prepare.splits import leave_one_out, split_by_time

BARE = ["none", "exposure", "impression", "shown", ""]


@st.composite
def logs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets, positives and times of a few users, some without events."""
    lengths = draw(st.lists(st.integers(0, 7), min_size=1, max_size=6))
    total = sum(lengths)
    positive = np.array(draw(st.lists(st.booleans(), min_size=total, max_size=total)), dtype=np.bool_)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    times = np.array(draw(st.lists(st.integers(0, 20), min_size=total, max_size=total)), dtype=np.int64)
    for low, high in zip(offsets[:-1], offsets[1:], strict=True):
        times[low:high].sort()
    return offsets, positive, times


@settings(deadline=None, max_examples=200)
@given(logs())
def test_leave_one_out_is_its_definition(log: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    offsets, positive, _ = log
    split = leave_one_out(offsets, positive)
    for user in range(len(offsets) - 1):
        events = positive[offsets[user] : offsets[user + 1]]
        targets = [place for place, is_positive in enumerate(events) if is_positive and place > 0]
        test = targets[-1] if targets else -1
        valid = targets[-2] if len(targets) > 1 else -1
        assert (split.test_at_U[user], split.valid_at_U[user]) == (test, valid)
        # Nothing at or after the first held-out target trains, and everything before it does.
        held = [place for place in (valid, test) if place >= 0]
        assert split.train_end_U[user] == (min(held) if held else len(events))


@settings(deadline=None, max_examples=200)
@given(logs(), st.integers(-1, 21), st.integers(1, 10))
def test_time_split_is_its_definition(log: tuple[np.ndarray, np.ndarray, np.ndarray], low: int, length: int) -> None:
    offsets, positive, times = log
    split = split_by_time(offsets, positive, times, valid_from=low, test_from=low + length)
    for user in range(len(offsets) - 1):
        rows = range(offsets[user], offsets[user + 1])
        train = [row for row in rows if times[row] < low]
        valid = [row for row in rows if low <= times[row] < low + length and positive[row]]
        test = [row for row in rows if times[row] >= low + length and positive[row]]
        assert split.train_end_U[user] == len(train)
        assert split.valid_at_U[user] == (valid[0] - offsets[user] if valid else -1)
        assert split.test_at_U[user] == (test[0] - offsets[user] if test else -1)


def outside_targets(frame: pl.DataFrame) -> pl.DataFrame:
    """The last positive with an event before it, and the events before it, from the raw table alone."""
    negative = ["hide", "dislike", "hate", "report"]
    events = frame.with_row_index("row").with_columns(pl.col("user_id", "item_id").cast(pl.String))
    parts = (
        pl.col("action")
        if events.schema["action"] == pl.List(pl.String)
        else pl.col("action").cast(pl.String).str.split("+")
    )
    positive = parts.list.eval(~pl.element().is_in(BARE + negative)).list.any().fill_null(False)
    events = events.with_columns(positive=positive)
    events = events.group_by("user_id", "item_id", "timestamp").agg(pl.col("row").min(), pl.col("positive").any())
    events = events.sort("user_id", "timestamp", "row").with_columns(at=pl.int_range(pl.len()).over("user_id"))
    last = events.filter(pl.col("positive") & (pl.col("at") > 0)).group_by("user_id").agg(end=pl.col("at").max())
    joined = events.join(last, on="user_id")
    target = joined.filter(pl.col("at") == pl.col("end")).select("user_id", "end", target="item_id")
    history = joined.filter(pl.col("at") < pl.col("end")).sort("at").group_by("user_id").agg(history="item_id")
    return target.join(history, on="user_id").sort("user_id")


def inside_targets(data: Dataset) -> pl.DataFrame:
    requests = data.requests("test")
    ids = data.item_ids.cast(pl.String)
    return pl.DataFrame(
        {
            "user_id": data.user_ids.gather(requests.user).cast(pl.String),
            "end": requests.end,
            "target": ids.gather(requests.target),
            "history": [
                ids.gather(data.events.history(user, end).item).to_list()
                for user, end in zip(requests.user.tolist(), requests.end.tolist(), strict=True)
            ],
        }
    ).sort("user_id")


def random_log(seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    count = 400
    choices = ["click", "click+like", "none", "", "hide", "hide+like", "like", None]
    return pl.DataFrame(
        {
            "user_id": rng.integers(0, 40, count),
            "item_id": rng.integers(0, 6, count),
            "timestamp": rng.integers(0, 5, count),  # many ties and many equal rows
            "action": [choices[at] for at in rng.integers(0, len(choices), count)],
        }
    )


@pytest.mark.parametrize("seed", range(3))
def test_test_targets_and_histories_are_those_found_from_the_raw_table(seed: int, tmp_path: Path) -> None:
    frame = random_log(seed)
    data = prepare_frames(frame, output=tmp_path / "data")
    assert data.manifest.counts["rows_united"] > 0
    expected = outside_targets(frame)
    assert inside_targets(data).equals(expected.with_columns(pl.col("end").cast(pl.Int64)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["amazon_toys", "goodbooks_10k_sample", "kuairand_pure_part"])
def test_real_test_targets_are_those_found_from_the_raw_table(data_root: Path, name: str, tmp_path: Path) -> None:
    frame = pl.read_parquet(data_root / name / "interactions.parquet")
    data = prepare_frames(frame, output=tmp_path / "data")
    assert inside_targets(data).equals(outside_targets(frame).with_columns(pl.col("end").cast(pl.Int64)))


def slates(*rows: tuple[str, str, int, list[str], list[str], list[int] | None]) -> pl.DataFrame:
    return pl.DataFrame(
        rows, schema=["slate_id", "user_id", "timestamp", "item_ids", "actions", "times"], orient="row", strict=False
    ).with_columns(pl.col("times").cast(pl.List(pl.Int64)))


def one_user(*rows: tuple[str, int]) -> pl.DataFrame:
    return pl.DataFrame(
        [("u", item, time, "click") for item, time in rows],
        schema=["user_id", "item_id", "timestamp", "action"],
        orient="row",
    )


def split_of(data: Dataset) -> dict[str, tuple[int, list[str]]]:
    frame = pl.read_parquet(data.path / "slates.parquet")
    return {row["slate_id"]: (row["split"], data.item_ids.gather(row["items"]).to_list()) for row in frame.to_dicts()}


def test_leave_one_out_slates(tmp_path: Path) -> None:
    # Validation target v at 20, test target t at 30.
    events = one_user(
        ("a", 10),
        ("v", 20),
        ("t", 30),
    )
    shown = slates(
        ("train", "u", 11, ["a", "b"], ["", ""], [11, 19]),
        ("holds v", "u", 12, ["a", "v"], ["", ""], [12, 13]),
        ("ends at v", "u", 13, ["a", "b"], ["", ""], [13, 20]),
        ("starts at v", "u", 20, ["b"], [""], [20]),
        ("valid", "u", 21, ["b", "a"], ["", ""], [21, 22]),
        ("valid, late row", "u", 22, ["b", "a", "t"], ["", "", ""], [22, 30, 23]),
        ("starts at t", "u", 30, ["b"], [""], [30]),
        ("test", "u", 31, ["b", "t"], ["", ""], [31, 40]),
        ("stranger", "w", 99, ["b"], [""], None),
    )
    data = prepare_frames(events, impressions=shown, output=tmp_path / "data")
    assert split_of(data) == {
        "train": (0, ["a", "b"]),
        "holds v": (3, ["a", "v"]),
        "ends at v": (3, ["a", "b"]),
        "starts at v": (3, ["b"]),
        "valid": (1, ["b", "a"]),
        "valid, late row": (1, ["b"]),
        "starts at t": (3, ["b"]),
        "test": (2, ["b", "t"]),
        "stranger": (0, ["b"]),  # nothing of this user is held out
    }
    assert data.manifest.counts["slate_rows_left_out"] == 2
    assert data.user_ids.to_list() == ["u", "w"]
    assert data.train_end.tolist() == [1, 0] and data.events.offsets.tolist() == [0, 3, 3]


def test_slates_of_a_user_with_a_test_target_only(tmp_path: Path) -> None:
    events = one_user(("a", 10), ("t", 30))
    shown = slates(
        ("train", "u", 11, ["a"], [""], [11]),
        ("holds t", "u", 12, ["t"], [""], [12]),
        ("across", "u", 13, ["a", "b"], ["", ""], [13, 31]),
        ("test", "u", 31, ["a"], [""], [31]),
    )
    data = prepare_frames(events, impressions=shown, output=tmp_path / "data")
    assert (data.valid_at.tolist(), data.test_at.tolist(), data.train_end.tolist()) == ([-1], [1], [1])
    assert {name: split for name, (split, _) in split_of(data).items()} == {
        "train": 0,
        "holds t": 3,
        "across": 3,
        "test": 2,
    }


def test_time_split_slates(tmp_path: Path) -> None:
    events = one_user(("a", 1), ("b", 10), ("c", 20))
    shown = slates(
        ("train", "u", 2, ["a", "b"], ["", ""], [2, 9]),
        ("across valid", "u", 3, ["a", "b", "c"], ["", "", "click"], [3, 12, 9]),
        ("valid", "u", 10, ["a", "b"], ["", ""], [10, 20]),
        ("test", "u", 20, ["a"], [""], [20]),
        ("early row", "u", 22, ["a", "b"], ["", ""], [22, 19]),
    )
    data = prepare_frames(
        events, impressions=shown, output=tmp_path / "data", split="time", valid_from=10, test_from=20
    )
    assert split_of(data) == {
        "train": (0, ["a", "b"]),
        "across valid": (0, ["a", "c"]),
        "valid": (1, ["a"]),
        "test": (2, ["a"]),
        "early row": (1, ["b"]),  # its first exposure is what it belongs by
    }
    log = data.slates
    assert log is not None
    assert log.timestamp.tolist() == [2, 3, 10, 19, 20]  # never later than the first exposure
    counts = data.manifest.counts
    assert (counts["slate_rows"], counts["slate_rows_left_out"]) == (7, 3)
    assert [counts[f"slates_{name}"] for name in ("train", "validation", "test", "no_split")] == [2, 2, 1, 0]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**16), by_time=st.booleans())
def test_no_training_slate_reaches_a_held_out_event(
    seed: int, by_time: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    frame = random_log(seed)
    rows = []
    for number in range(60):
        length = int(rng.integers(1, 5))
        times = (int(rng.integers(0, 5)) + np.sort(rng.integers(0, 3, length))).tolist()
        items = rng.integers(0, 8, length).tolist()
        rows.append((number, int(rng.integers(0, 45)), times[0], items, ["click"] * length, times))
    shown = pl.DataFrame(
        rows, schema=["slate_id", "user_id", "timestamp", "item_ids", "actions", "times"], orient="row"
    )
    flags: dict[str, Any] = {"split": "time", "valid_from": 2, "test_from": 4} if by_time else {}
    data = prepare_frames(frame, impressions=shown, output=tmp_path_factory.mktemp("split") / "data", **flags)
    log = data.slates
    assert log is not None
    for slate in range(len(log)):
        user, at = int(log.user[slate]), slice(int(log.offsets[slate]), int(log.offsets[slate + 1]))
        assert at.stop > at.start and log.timestamp[slate] <= log.time[at].min()
        if log.split[slate] != 0:
            continue
        if by_time:
            assert (log.time[at] < 2).all()
            continue
        start, end = int(data.events.offsets[user]), int(data.train_end[user])
        held = slice(start + end, int(data.events.offsets[user + 1]))
        if data.test_at[user] >= 0:
            assert (log.time[at] < data.events.timestamp[held.start]).all()
            assert data.events.item[held.start] not in log.item[at]
    assert (np.diff(log.user) >= 0).all()
    assert log.user_offsets.tolist() == offsets_of(log.user, data.num_users).tolist()


def test_requests(tmp_path: Path) -> None:
    events = one_user(("a", 10), ("b", 20), ("c", 30), ("d", 30)).with_columns(
        surface=pl.Series(["home", "mail", "home", "web"])
    )
    events = pl.concat([events, events.head(1).with_columns(user_id=pl.lit("w"), timestamp=pl.lit(50, pl.Int64))])
    data = prepare_frames(events, output=tmp_path / "data")
    test, valid, now = data.requests("test"), data.requests("validation"), data.requests("now")
    assert (test.user.tolist(), test.end.tolist(), test.timestamp.tolist()) == ([0], [3], [30])
    assert data.item_ids.gather(test.target).to_list() == ["d"]
    assert data.item_ids.gather(valid.target).to_list() == ["c"] and valid.end.tolist() == [2]
    assert data.manifest.surfaces[int(test.surface[0])] == "web"
    assert (now.user.tolist(), now.end.tolist(), now.target.tolist()) == ([0, 1], [4, 1], [-1, -1])
    assert now.timestamp.tolist() == [50, 50] and now.surface.tolist() == [0, 0]
    assert data.requests("now", at=77).timestamp.tolist() == [77, 77]
    assert data.train_item_counts().tolist() == [2, 1, 0, 0]
    with pytest.raises(InputError, match="no split 'train'; choose validation, test, cold or now"):
        data.requests("train")


def test_all_positives_of_a_period(tmp_path: Path) -> None:
    events = one_user(("a", 1), ("b", 10), ("c", 11), ("d", 20), ("e", 21), ("f", 22)).with_columns(
        action=pl.Series(["click", "click", "", "", "click", "click"])
    )
    data = prepare_frames(events, output=tmp_path / "data", split="time", valid_from=10, test_from=20)
    assert data.requests("test").end.tolist() == [4]
    every = data.requests("test", all_positives=True)
    assert (every.end.tolist(), data.item_ids.gather(every.target).to_list()) == ([4, 5], ["e", "f"])
    assert data.requests("validation", all_positives=True).end.tolist() == [1]
    assert data.train_item_counts().sum() == 1


@pytest.mark.slow
def test_kuairand_slates_are_those_of_its_description(data_root: Path, tmp_path: Path) -> None:
    folder = data_root / "kuairand_pure_part"
    tables = {name: pl.read_parquet(folder / f"{name}.parquet") for name in ("interactions", "impressions")}
    data = prepare_frames(
        **tables, output=tmp_path / "data", split="time", valid_from=1_651_635_258, test_from=1_651_736_483
    )
    log = data.slates
    assert log is not None and len(log) == 49_746
    length = np.diff(log.offsets)
    assert ((log.split == 2).sum(), length[log.split == 2].sum()) == (9_950, 29_168)
    assert (log.split != 2).sum() == 39_796
    # Across the test start alone the description counts 2,238 rows; the others lie across the validation start.
    raw = tables["impressions"].filter(pl.col("timestamp") < 1_651_736_483).explode("times")
    assert (raw["times"] >= 1_651_736_483).sum() == 2_238
    valid = raw.filter((pl.col("timestamp") < 1_651_635_258) & (pl.col("times") >= 1_651_635_258)).height
    late = raw.filter((pl.col("timestamp") >= 1_651_635_258) & (pl.col("times") >= 1_651_736_483)).height
    assert data.manifest.counts["slate_rows_left_out"] == valid + late
