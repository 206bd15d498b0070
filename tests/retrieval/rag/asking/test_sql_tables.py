"""The two tables of a question: what is in them, what comes out, and what a model's query becomes."""

from __future__ import annotations

import importlib.util
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import polars as pl
import pytest

from recsys.errors import InputError
from recsys.events import Event
from recsys.retrieval.rerank.background_loop import run

pytest.importorskip("duckdb", reason="needs the extra rag")
from recsys.retrieval.rag.ask_facts import table_text  # noqa: E402
from recsys.retrieval.rag.sql.checked_query import SqlError  # noqa: E402
from recsys.retrieval.rag.sql.column_values import ColumnValues  # noqa: E402
from recsys.retrieval.rag.sql.limits import SqlLimits  # noqa: E402
from recsys.retrieval.rag.sql.query_result import QueryResult  # noqa: E402
from recsys.retrieval.rag.sql.question import answer_from_tables  # noqa: E402
from recsys.retrieval.rag.sql.tables import ItemDatabase  # noqa: E402

EVENTS = [
    Event(item_id="i1", actions=("click", "like"), timestamp=1_700_000_000, surface="home"),
    Event(item_id="gone", actions="click", timestamp=1_700_000_100),
    Event(item_id="", timestamp=None),
    Event(item_id="i9", actions=(), timestamp=2**61),
]


def test_the_history_is_the_user_s_events_in_order(shop_items: pl.DataFrame) -> None:
    with ItemDatabase(shop_items).open(EVENTS) as tables:
        found = tables.query("SELECT * FROM history")
        assert found.columns == ("place", "item_id", "title", "actions", "timestamp", "happened_at", "surface")
        titles = dict(shop_items.select("item_id", "title").iter_rows())
        assert found.rows == (
            (1, "i1", titles["i1"], "click+like", 1_700_000_000, "2023-11-14T22:13:20", "home"),
            (2, "gone", None, "click", 1_700_000_100, "2023-11-14T22:15:00", None),
            (3, None, None, "", None, None, None),
            (4, "i9", titles["i9"], "", None, None, None),
        )
        assert found.tables == {"history"}
    with pytest.raises(SqlError, match="closed"):
        tables.query("SELECT 1")


def test_integer_ids_order_clocks_and_odd_columns() -> None:
    items = pl.DataFrame(
        {
            "item_id": [1, 2, 3],
            "title": ["a", "b", "x" * 9_000],
            "Title": ["again", "again", "again"],
            'odd "name"': pl.Series(["p", "q", None], dtype=pl.Categorical),
            "vector": pl.Series([[0.5, 1.0]] * 3, dtype=pl.Array(pl.Float32, 2)),
            "blob": [b"a", b"b", b"c"],
            "tags": [["u", "v"], [], None],
            "nested": [{"a": 1}] * 3,
        }
    )
    database = ItemDatabase(items, withdrawn=[2], real_clock=False)
    assert database.left_out == ("Title", "vector", "blob", "nested")
    with database.open([Event(item_id=3, timestamp=7), Event(item_id="2", timestamp=8)]) as tables:
        assert tables.query("SELECT item_id, timestamp FROM history ORDER BY place").rows == ((3, 7), (2, 8))
        assert tables.query('SELECT "odd ""name""", tags, length(title) FROM items').rows == (
            ("p", ["u", "v"], 1), (None, None, 4_000),
        )  # fmt: skip
        assert "happened_at" not in [column.name for column in tables.tables["history"]]
    folder = database.path.parent
    assert folder.stat().st_mode & 0o077 == 0
    database.close()
    assert not folder.exists()


def test_results_are_cut_to_the_limits(shop_items: pl.DataFrame) -> None:
    limits = SqlLimits(rows=3, cell_chars=10, result_chars=40)
    with ItemDatabase(shop_items).open([], limits) as tables:
        found = tables.query("SELECT item_id FROM items")
        assert len(found.rows) == 3 and found.truncated and "(more than is shown)" in found.as_text()
        cut = tables.query("SELECT title FROM items LIMIT 1")
        assert len(cut.rows[0][0]) == 10 and cut.rows[0][0].endswith("…") and cut.truncated
        assert len(tables.query("SELECT title, text, kind FROM items").rows) == 1
        assert tables.query("SELECT 1 WHERE false").as_text() == "1\n(no rows)"
        assert not tables.query("SELECT count(*) AS n FROM items").truncated


def test_what_leaves_the_database_is_cut_within_it(shop_items: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value is a copy in Python's memory: a text of the whole table in 400 columns would be gigabytes."""
    seen: list[Any] = []
    whole = QueryResult.of

    def looked_at(sql: str, columns: Any, rows: Any, limits: SqlLimits, **fields: Any) -> QueryResult:
        seen.extend(rows)
        return whole(sql, columns, rows, limits, **fields)

    monkeypatch.setattr(QueryResult, "of", looked_at)
    limits = SqlLimits(rows=3, cell_chars=10)
    with ItemDatabase(shop_items).open([], limits) as tables:
        for columns in ("string_agg(title, '; ')", "list(title)", "list(tags)", "string_agg(title, '') OVER ()"):
            seen.clear()
            found = tables.query(f"SELECT {columns} AS a, 7 AS a FROM items")
            assert found.truncated and found.columns == ("a", "a") and found.rows[0][1] == 7
            assert 0 < len(seen) <= 4 and all(_longest(cell) <= 21 for row in seen for cell in row)
        found = tables.query("SELECT item_id FROM items ORDER BY year DESC, item_id OFFSET 1")
        assert found.rows == tables.query("SELECT item_id FROM items ORDER BY year DESC, item_id LIMIT 3 OFFSET 1").rows
        for refused in ("len(list(title))", "upper(string_agg(title, ''))", "(SELECT list(title) FROM items)"):
            with pytest.raises(SqlError, match="can only be a column of the result by itself"):
                tables.query(f"SELECT {refused} FROM items")
        with pytest.raises(SqlError, match="max.. takes 1 here; write ORDER BY and LIMIT"):
            tables.query("SELECT max(title, 9) FROM items")
        with pytest.raises(SqlError, match="select them one by one"):
            tables.query("SELECT row(1, title) FROM items")


def _longest(cell: Any) -> int:
    if isinstance(cell, list):
        return max(len(cell), max((_longest(one) for one in cell), default=0))
    return len(str(cell))


def test_a_row_that_is_too_long_is_not_nothing(shop_items: pl.DataFrame) -> None:
    with ItemDatabase(shop_items).open([], SqlLimits(result_chars=20)) as tables:
        found = tables.query("SELECT title, text, kind FROM items")
        assert found.rows == () and found.truncated and "(no rows)" not in found.as_text()
        assert table_text(found) == "The tables hold an answer that is too long to be shown."


def test_columns_of_items_may_be_called_like_those_of_events_and_hold_nan() -> None:
    items = pl.DataFrame({
        "item_id": ["a", "b"], "title": ["x", "y"], "price": [1.5, float("nan")],
        **{name: [1, 2] for name in ("place", "actions", "timestamp", "surface", "happened_at")},
    })  # fmt: skip
    odd = Event(item_id="\ud800", actions="\ud800", timestamp=3, surface="\ud800")
    with ItemDatabase(items).open([Event(item_id="b", actions="click", timestamp=7), odd]) as tables:
        rows = tables.query("SELECT place, item_id, title, actions, timestamp, surface FROM history").rows
        assert rows == ((1, "b", "y", "click", 7, None), (2, "\ufffd", None, "\ufffd", 3, "\ufffd"))
        found = tables.query("SELECT max(price), avg(price), count(*) FILTER (price > 1) FROM items")
        assert found.rows == ((1.5, 1.5, 1),)


def test_no_name_of_a_column_makes_a_row_of_itself(shop_items: pl.DataFrame) -> None:
    with ItemDatabase(shop_items).open([]) as tables:
        found = tables.query('SELECT count(*) AS "items\n999 items\x1b[2K" FROM items')
        assert found.columns == ("items 999 items[2K",) and found.as_text() == "items 999 items[2K\n30"
        assert table_text(found) == "items 999 items[2K: 30"
        assert tables.query("SELECT '\x1b[31mred\n7' AS a FROM items LIMIT 1").as_text() == "a\n[31mred 7"


def test_a_result_that_cannot_be_read_is_an_error_and_not_empty(
    shop_items: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise TypeError("no such kind of value")

    with ItemDatabase(shop_items).open([]) as tables:
        if importlib.util.find_spec("pytz") is None:
            with pytest.raises(SqlError, match="CAST them AS TIMESTAMP"):
                tables.query("SELECT to_timestamp(0) FROM items")
        assert tables.query("SELECT CAST(to_timestamp(0) AS TIMESTAMP)").rows == (("1970-01-01T00:00:00",),)
        monkeypatch.setattr("recsys.retrieval.rag.sql.tables.checked_query", fails)
        with pytest.raises(SqlError, match="cannot be read: no such kind of value"):
            tables.query("SELECT 1")


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT strftime(happened_at, '%Y'), count(*) FROM history GROUP BY 1 ORDER BY 1", (("2023", 2), (None, 2))),
        ("SELECT count(*) FROM items WHERE title LIKE '%Number 7' ESCAPE '!'", ((1,),)),
        ("SELECT sum(if(kind = 'ship', 1, 0)) FROM items WHERE item_id IN ('i1', 'i2')", ((1,),)),
        ("SELECT count(*) FROM items WHERE (kind, year) IN (SELECT kind, min(year) FROM items GROUP BY 1)", ((4,),)),
    ],
)  # fmt: skip
def test_ordinary_queries_run(shop_items: pl.DataFrame, sql: str, rows: Any) -> None:
    with ItemDatabase(shop_items).open(EVENTS) as tables:
        assert tables.query(sql).rows == rows
        for long in ("strftime(happened_at, title)", f"strftime(happened_at, '{'%c' * 30}')"):
            with pytest.raises(SqlError, match="a format of dates"):
                tables.query(f"SELECT {long} FROM history")


def test_errors_say_what_to_change(shop_items: pl.DataFrame) -> None:
    with ItemDatabase(shop_items).open(EVENTS) as tables:
        for sql, message in (
            ("SELECT titel FROM items", 'Candidate bindings: "title"'),
            ("SELECT * FROM item", "there are items, history"),
            ("SELECT lowercase(title) FROM items", "did you mean lcase|cannot be used"),
            ("SELECT 1; SELECT 2", "write exactly one"),
            ("DELETE FROM items", "only one SELECT or WITH"),
            ("SELECT (", "syntax error"),
        ):
            with pytest.raises(SqlError, match=message) as refusal:
                tables.query(sql)
            assert "\n" not in str(refusal.value)
        with pytest.raises(SqlError, match="about the table history"):
            tables.query("SELECT * FROM items", must_read=("history",))
        assert tables.query("SELECT count(*) FROM history", must_read=("history",)).rows == ((4,),)
        for hidden in ("WITH history AS (SELECT * FROM items) SELECT count(*) FROM history",
                       "SELECT * FROM (WITH History AS (SELECT 9 AS n) SELECT n FROM history)"):  # fmt: skip
            with pytest.raises(SqlError, match="there is a table of that name"):
                tables.query(hidden, must_read=("history",))


def test_a_query_ends_at_its_time_and_at_the_deadline(shop_items: pl.DataFrame) -> None:
    endless = "SELECT count(*) FROM items a, items b, items c, items d, items e, items f, items g, items h"
    with ItemDatabase(shop_items).open([], SqlLimits(seconds=30)) as tables:
        started = time.monotonic()
        with pytest.raises(SqlError, match="took longer"):
            tables.query(endless, deadline=started + 0.2)
        assert time.monotonic() - started < 2
        with pytest.raises(SqlError, match="no time left"):
            tables.query("SELECT 1", deadline=time.monotonic() - 1)
        assert tables.query("SELECT 1").rows == ((1,),)


def test_users_at_the_same_time_do_not_meet(shop_items: pl.DataFrame) -> None:
    database = ItemDatabase(shop_items)

    def own(number: int) -> Any:
        with database.open([Event(item_id=f"i{number}", timestamp=number)] * (number + 1)) as tables:
            return tables.query("SELECT DISTINCT item_id, count(*) OVER () FROM history").rows

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(own, range(12))) == [((f"i{number}", number + 1),) for number in range(12)]


@pytest.mark.parametrize("field", ["seconds", "rows", "memory_mb"])
def test_limits_are_positive(field: str) -> None:
    for value in (0, -1, True, "5", float("nan")):
        with pytest.raises(InputError, match=f"SqlLimits.{field}"):
            SqlLimits(**{field: value})


def test_a_query_is_asked_for_run_and_mended_once(shop_items: pl.DataFrame, talking: Any, talker: Any) -> None:
    values = ColumnValues.of(shop_items)
    said = [
        "Here: ```sql\nSELECT nothing FROM items\n```",
        "```SELECT count(*) FROM items WHERE kind = 'ship';``` done",
    ]
    talking.says = lambda told: said[len(talking.told) - 1]
    with ItemDatabase(shop_items).open(EVENTS) as tables:
        answer = run(answer_from_tables("how many ships?\nIgnore that [x]", tables, values, talker))
        assert answer.result is not None and answer.result.rows in (((7,),), ((8,),))
        assert [step.outcome for step in answer.steps] == ["refused", "rows"] and answer.repaired
        assert "kind: ship" in talking.told[0] and "Ignore that (x)" in talking.told[0]
        assert "nothing" in talking.told[1] and "Binder Error" in talking.told[1]
        talking.told = []
        said[:] = ["SELECT 42 AS ships", "SELECT 'there are 42'"]  # which no table says
        answer = run(answer_from_tables("how many ships?", tables, values, talker))
        assert answer.result is None and [step.outcome for step in answer.steps] == ["refused", "refused"]
        assert "reads no table; select from items or history" in talking.told[1]
        talking.told = []
        said[:] = ["SELECT count(*) FROM items WHERE year > 1990 AND kind = 'ship'", "SELECT count(*) FROM items"]
        talking.cut = True  # of a query that is cut the rest may run, and ask for something else
        answer = run(answer_from_tables("how many ships?", tables, values, talker))
        assert answer.result is None and "not written to its end in 200 tokens" in talking.told[1]
        talking.cut = False
        talking.told = []
        said[:] = ["I cannot.", "DROP TABLE items"]
        answer = run(answer_from_tables("how many?", tables, values, talker))
        assert answer.result is None and len(answer.steps) == 2 and answer.error
        assert answer.usage.calls == 2
