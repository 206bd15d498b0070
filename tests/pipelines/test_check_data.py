"""Bad tables: one line that names file, column, row and what to do; dropped and counted where asked for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.errors import InputError
from recsys.pipelines.prepare.build import check_tables, prepare_frames
from recsys.pipelines.prepare.command import check_data, prepare
from recsys.pipelines.prepare.reading import as_frame, read_table
from recsys.pipelines.prepare.settings import PrepareSettings, parse_columns, parse_time

ROWS = 12


def interactions(**changed: Any) -> pl.DataFrame:
    columns: dict[str, Any] = {
        "user_id": [f"u{row % 3}" for row in range(ROWS)],
        "item_id": [f"i{row % 5}" for row in range(ROWS)],
        "timestamp": [1_700_000_000 + row for row in range(ROWS)],
        "action": ["click", "click+buy", "none", "hide"] * 3,
    }
    return pl.DataFrame({**columns, **changed}, strict=False)


def slates(**changed: Any) -> pl.DataFrame:
    columns: dict[str, Any] = {
        "slate_id": ["s0", "s1", "s2"],
        "user_id": ["u0", "u1", "u2"],
        "timestamp": [1_700_000_000, 1_700_000_003, 1_700_000_009],
        "item_ids": [["i0", "i1"], ["i2"], ["i3", "i4", "i0"]],
        "actions": [["click", "none"], ["click+buy"], ["none", "hide", ""]],
    }
    return pl.DataFrame({**columns, **changed})


def with_value(column: str, row: int, value: Any, **kind: Any) -> pl.DataFrame:
    frame = interactions()
    values = frame[column].to_list()
    values[row - 1] = value
    return frame.with_columns(pl.Series(column, values, **kind))


BAD_EVENTS = [
    (with_value("user_id", 5, None), "column user_id, row 5: the id is missing"),
    (with_value("item_id", 3, ""), "column item_id, row 3: the id is missing"),
    (interactions(user_id=[1.0] * 6 + [math.nan] + [2.0] * 5), "column user_id, row 7: the id is missing"),
    (interactions(item_id=[1.0] * 6 + [1.5] + [2.0] * 5), r"column item_id, row 7: the id is no whole number \(1.5\)"),
    (with_value("timestamp", 2, None), "column timestamp, row 2: the time is missing"),
    (interactions(timestamp=[1.0] * 8 + [math.nan] * 4), r"timestamp, row 9: the time is no finite .*\(4 such rows\)"),
    (interactions(timestamp=[1.0] * 8 + [math.inf] * 4), "column timestamp, row 9: the time is no finite number"),
    (interactions(timestamp=[5] * 8 + [-(2**63), 2**62, -1, 6]), r"timestamp, row 9: the time is too large .*\(2 such"),
    (interactions(value=[1.0, math.nan] * 6), "column value, row 2: not a finite number"),
    (interactions(time_known=[0, 1, 2] * 4), r"column time_known, row 3: neither 0 nor 1 \(2\)"),
]


@pytest.mark.parametrize(("frame", "message"), BAD_EVENTS)
def test_bad_event_is_named_with_column_and_row(frame: pl.DataFrame, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as error:
        prepare_frames(frame, output=tmp_path / "data")
    assert "\n" not in str(error.value)
    assert "interactions" in str(error.value) and "; " in str(error.value)
    assert not list(tmp_path.iterdir()), "something was left behind"


@pytest.mark.parametrize(("frame", "message"), BAD_EVENTS)
def test_dropping_leaves_out_exactly_the_bad_events(frame: pl.DataFrame, message: str, tmp_path: Path) -> None:
    data = prepare_frames(frame, output=tmp_path / "data", bad_rows="drop")
    dropped = sum(data.manifest.dropped.values())
    assert dropped > 0
    assert data.num_events + data.manifest.counts["rows_united"] == ROWS - dropped
    reason = next(iter(data.manifest.dropped))
    assert reason.startswith("interactions: ") and reason.split(": ")[1] in message


WRONG_TYPES = [
    (interactions(user_id=[[1]] * ROWS), "column user_id, row 1: its type .* text or integers"),
    (interactions(item_id=[True] * ROWS), "column item_id, row 1: its type Boolean"),
    (interactions(timestamp=["soon"] * ROWS), "column timestamp, row 1: its type String .* an integer, a date"),
    (interactions(action=[3] * ROWS), "column action, row 1: its type Int64 .* action names"),
    (interactions(value=["high"] * ROWS), "column value, row 1: its type String .* numbers"),
    (interactions(time_known=["yes"] * ROWS), "column time_known, row 1"),
    (interactions(surface=[1.5] * ROWS), "column surface, row 1"),
    (interactions().drop("timestamp"), "column timestamp is missing .*--columns timestamp=THEIRS"),
    (interactions().drop("action"), "column action is missing"),
    (interactions().head(0), "interactions is empty, row 1 is missing"),
    (interactions(user_id=[None] * ROWS), "column user_id, row 1: the id is missing"),
    (interactions(action=["none"] * ROWS), "no action occurs in any row, only bare exposures"),
    (interactions(action=["hide"] * ROWS), r"every action that occurs \(hide\) is negative"),
    (interactions(action=[f"a{row}+b{row}+c{row}" for row in range(ROWS)]), "36 different actions occur"),
]


@pytest.mark.parametrize(("frame", "message"), WRONG_TYPES)
def test_table_that_cannot_be_used_is_an_error_even_when_dropping(frame: pl.DataFrame, message: str) -> None:
    # Nothing of such a table is left to drop rows from.
    with pytest.raises(InputError, match=message):
        check_tables({"interactions": as_frame(frame, "interactions")}, PrepareSettings())
    with pytest.raises(InputError):
        check_tables({"interactions": as_frame(frame, "interactions")}, PrepareSettings(bad_rows="drop"))


BAD_SLATES = [
    (slates(slate_id=["s0", "s1", "s0"]), r"column slate_id, row 3: the id stands in an earlier row too \('s0'\)"),
    (slates(slate_id=["s0", None, "s2"]), "column slate_id, row 2: the id is missing"),
    (slates(user_id=[None, "u1", "u2"]), "column user_id, row 1: the id is missing"),
    (slates(timestamp=[1, None, 3]), "column timestamp, row 2: the time is missing"),
    (slates(item_ids=[["i0", "i1"], [], ["i3", "i4", "i0"]]), "column item_ids, row 2: the slate is empty"),
    (slates(item_ids=[["i0", None], ["i2"], ["i3", "i4", "i0"]]), "column item_ids, row 1: the id is missing"),
    (slates(actions=[["click", "none"], ["buy"], ["none"]]), "actions, row 3: its length is not that of item_ids"),
    (slates(actions=[["click", "none"], None, ["none"] * 3]), "actions, row 2: its length is not that of item_ids"),
    (slates(times=[[1, 2], [3, 4], [5, 6, 7]]), "column times, row 2: its length is not that of item_ids"),
    (slates(values=[[1.0, math.nan], [1.0], [1.0] * 3]), "column values, row 1: not a finite number"),
    (slates(times=[[1, 2], [3], [5, 6, 2**62]]), "column times, row 3: the time is too large"),
]


@pytest.mark.parametrize(("frame", "message"), BAD_SLATES)
def test_bad_slate_is_named_or_dropped_whole(frame: pl.DataFrame, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"impressions, .*{message}"):
        prepare_frames(interactions(), impressions=frame, output=tmp_path / "data")
    assert not list(tmp_path.iterdir())
    data = prepare_frames(interactions(), impressions=frame, output=tmp_path / "data", bad_rows="drop")
    assert data.manifest.num_slates == 2
    assert sum(data.manifest.dropped.values()) == 1


def test_wrong_list_type_of_slates() -> None:
    tables = {"interactions": as_frame(interactions(), "interactions")}
    for frame, column in ((slates(item_ids=["a", "b", "c"]), "item_ids"), (slates(times=[1, 2, 3]), "times")):
        with pytest.raises(InputError, match=f"impressions, column {column}, row 1: .* must be a list"):
            check_tables({**tables, "impressions": as_frame(frame, "impressions")}, PrepareSettings())


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (
            pl.DataFrame({"item_id": ["i0", "i1", "i0"]}),
            "items, column item_id, row 3: the id stands in an earlier row",
        ),
        (pl.DataFrame({"item_id": ["i0", None]}), "items, column item_id, row 2: the id is missing"),
        (pl.DataFrame({"item": ["i0"]}), "items: column item_id is missing"),
        (pl.DataFrame({"item_id": ["i0"], "title": [3]}), "items, column title, row 1: its type Int64"),
    ],
)
def test_bad_items(items: pl.DataFrame, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        prepare_frames(interactions(), items, output=tmp_path / "data")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"negative": ("boo",)}, "--negative boo: no such action occurs; the actions are buy, click, hide"),
        ({"positive": ("boo",)}, "--positive boo: no such action occurs"),
        ({"positive": ("buy",), "negative": ("buy",)}, "both --positive and --negative"),
        ({"columns": {"user_id": "uid"}}, "--columns user_id=uid: no column 'uid' in interactions"),
        ({"columns": {"uid": "user_id"}}, "--columns maps onto 'uid', which is none of ours"),
        ({"split": "random"}, "--split random is not known; choose leave-one-out or time"),
        ({"split": "time"}, "needs both --valid-from T and --test-from T"),
        ({"split": "time", "valid_from": 5, "test_from": 5}, "--valid-from 5 must be before --test-from 5"),
        ({"split": "time", "valid_from": 5, "test_from": 9}, "--valid-from 5: no event is before it .*1700000011"),
        ({"split": "time", "valid_from": "soon", "test_from": 9}, "--valid-from 'soon' is no time"),
        ({"valid_from": 5}, "belong to --split time"),
        ({"clock": "wall"}, "--clock wall is not known"),
        ({"bad_rows": "mend"}, "--bad-rows mend is not known"),
        ({"min_user_events": -1}, "--min-user-events must not be negative"),
        ({"min_user_events": 99}, "no event is left with --min-user-events 99"),
        ({"item_features": ("price",)}, "--item-features price: there is no items table"),
        ({"user_features": ("age",)}, "--user-features age: there is no users table"),
        ({"text_encoder": "/nowhere"}, "--text-encoder: .* has no text to encode"),
    ],
)
def test_flag_that_cannot_be_followed(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        prepare_frames(interactions(), output=tmp_path / "data", **settings)
    assert not list(tmp_path.iterdir())


def test_missing_encoder_package_names_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    items = pl.DataFrame({"item_id": ["i0", "i1"], "title": ["red train", "blue train"]})
    (tmp_path / "modules.json").write_text("[]")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=r"needs sentence-transformers; pip install 'recsys\[text\]'"):
        prepare_frames(interactions(), items, output=tmp_path / "data", text_encoder=str(tmp_path))


def write_csv(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "bad.csv is empty, row 1 is missing"),
        ("user_id,item_id,timestamp,action\n", "bad.csv is empty, row 1 is missing"),
        (
            "user_id,item_id,timestamp,action\n1,2,3,click\n1,2,soon,click\n",
            r"bad.csv, column timestamp, row 2: .*'soon'",
        ),
        (
            "user_id,item_id,timestamp,action\n1,2,3,click\n,2,4,click\n",
            "bad.csv, column user_id, row 2: the id is miss",
        ),
        ("user_id,item_id,timestamp,action\n1,2,3,click\n1,2,3,click,9\n", "bad.csv, row 2: 5 values under 4 column"),
        (
            "user_id,item_id,timestamp,action,value\n1,2,3,click,x\n",
            r"bad.csv, column value, row 1: not a number \('x'\)",
        ),
        (
            "user_id;item_id;timestamp;action\n1;2;3;click\n",
            "its values are separated by semicolons; write it with commas",
        ),
        ("user_id,item_id,item_id,timestamp,action\n1,2,3,4,click\n", "two columns are called item_id"),
        ("user_id, item_id,timestamp,action\n1,2,3,click\n", "item_id is missing .there are: user_id, ' item_id'"),
        ("user_id,item_id,timestamp,action\n\n\n", "nothing but empty lines"),
        (
            "user_id,item_id,timestamp,action,time_known\n1,2,3,click,maybe\n",
            "time_known, row 1: neither true nor false",
        ),
    ],
)
def test_bad_csv_is_named_with_its_row(text: str, message: str, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "bad.csv", text)
    with pytest.raises(InputError, match=message) as error:
        check_data(interactions=str(path))
    assert "\n" not in str(error.value)


def test_broken_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nothing that makes sense")
    with pytest.raises(InputError, match="bad.parquet cannot be read"):
        read_table(tmp_path / "bad.parquet")
    with pytest.raises(InputError, match="none.csv does not exist"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "table.xlsx").touch()
    with pytest.raises(InputError, match=r"only \.parquet and \.csv"):
        read_table(tmp_path / "table.xlsx")
    (tmp_path / "latin.csv").write_bytes("user_id\nJosé\n".encode("latin-1"))
    with pytest.raises(InputError, match="save it as UTF-8"):
        read_table(tmp_path / "latin.csv")
    with pytest.raises(InputError, match="interactions is a list; give a polars or pandas frame"):
        as_frame([1, 2], "interactions")


def test_empty_lines_of_a_csv_are_no_rows(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "log.csv", "user_id,item_id,timestamp,action\n\n1,2,3,click\n1,3,soon,click\n\n")
    assert read_table(path).frame["user_id"].to_list() == ["1", "1"]
    with pytest.raises(InputError, match="row 3: .*'soon'"):  # as an editor counts lines, less the names
        check_data(interactions=str(path))


def test_a_folder_of_parquet_files_is_one_table(tmp_path: Path) -> None:
    folder = tmp_path / "run=7" / "log.parquet"

    def part(day: int, kind: Any = pl.Int64) -> None:
        (folder / f"day={day}").mkdir(parents=True)
        frame = pl.DataFrame({"user_id": [day, day], "item_id": ["a", "b"], "timestamp": [day, 2], "action": "click"})
        frame.cast({"user_id": kind}).write_parquet(folder / f"day={day}" / "part-0.parquet")

    part(2)
    part(1)
    (folder / "_SUCCESS").touch()
    table = read_table(folder)
    assert table.frame.columns == ["__row", "user_id", "item_id", "timestamp", "action", "day"]
    assert table.frame["day"].to_list() == table.frame["user_id"].to_list() == [1, 1, 2, 2]
    assert prepare_frames(table.frame, output=tmp_path / "data").num_events == 4
    part(3, pl.String)
    with pytest.raises(InputError, match=r"log.parquet cannot be read as one table \(.*user_id"):
        read_table(folder)
    (folder / "notes.txt").touch()
    with pytest.raises(InputError, match=r"is a folder and holds notes\.txt; give a file, or"):
        read_table(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty is a folder and is empty"):
        read_table(tmp_path / "empty")


def test_names_of_files_are_no_patterns(tmp_path: Path) -> None:
    interactions().write_parquet(tmp_path / "log[1].parquet")
    assert read_table(tmp_path / "log[1].parquet").frame.height == ROWS


def test_what_is_probably_meant_otherwise_is_noted(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": ["0", "1"], "title": ["a red thing", "a blue thing"]})
    table = interactions(timestamp=[1_700_000_000_000_000 + row for row in range(ROWS)], unknown=["clicks", None] * 6)
    notes = " ".join(prepare_frames(table, items, output=tmp_path / "data").manifest.notes)
    assert "look like microseconds" in notes and "divide them by 1,000,000" in notes
    assert "None of the items in the events has a row in the items table (an id here is 'i0', there '0')" in notes
    assert "The column unknown names what is never an action: clicks." in notes
    whole = prepare_frames(
        interactions(unknown="buy"), items.with_columns(item_id="i" + pl.col("item_id")), output=tmp_path / "b"
    )
    assert not whole.manifest.notes


def test_nothing_of_a_failed_preparation_replaces_an_earlier_one(tmp_path: Path) -> None:
    good = prepare_frames(interactions(), output=tmp_path / "data")
    with pytest.raises(InputError):
        prepare_frames(interactions(value=[math.nan] * ROWS), output=tmp_path / "data")
    assert type(good).open(tmp_path / "data").manifest.data_hash == good.manifest.data_hash
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not empty and holds no manifest.json"):
        prepare_frames(interactions(), output=tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_commands_say_what_the_tables_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interactions().write_parquet(tmp_path / "events.parquet")
    slates().write_parquet(tmp_path / "slates.parquet")
    given = {"interactions": str(tmp_path / "events.parquet"), "impressions": str(tmp_path / "slates.parquet")}
    check_data(**given)
    shown = capsys.readouterr().out
    assert "in order" in shown and "action hide" in shown and "real" in shown
    assert not (tmp_path / "data").exists()
    prepare(**given, output=tmp_path / "data")
    assert "data hash" in capsys.readouterr().out
    assert (tmp_path / "data" / "manifest.json").is_file()
    with pytest.raises(InputError, match="prepare needs --output"):
        prepare(interactions=given["interactions"])


def test_names_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Markup of the terminal library: a closing tag without an opening one is an error there, a tag disappears.
    folder = tmp_path / "log [bold]"
    folder.mkdir()
    interactions(action=["click [/b]", ":heart: [red]", "none"] * 4).write_parquet(folder / "events.parquet")
    prepare(interactions=str(folder / "events.parquet"), output=folder / "data")
    shown = capsys.readouterr().out
    assert ":heart: [red], click [/b]" in shown and "log [bold]/data" in shown.replace("\n", "")


def test_words_of_flags() -> None:
    assert parse_columns("user_id=uid, item_id = asin") == {"user_id": "uid", "item_id": "asin"}
    with pytest.raises(InputError, match="must read ours=theirs"):
        parse_columns("user_id")
    assert parse_time("--test-from", "17") == 17
    assert parse_time("--test-from", "1970-01-02") == 86_400
    assert parse_time("--test-from", "1970-01-01T01:00:00+01:00") == 0
    with pytest.raises(InputError, match="--test-from 'soon' is no time"):
        parse_time("--test-from", "soon")
