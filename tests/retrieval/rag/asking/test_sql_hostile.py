"""Queries that must not work: none writes a file, runs on, fills the memory, or fails in another way than by a word."""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import yaml

from recsys.events import Event

pytest.importorskip("duckdb", reason="needs the extra rag")
from recsys.retrieval.rag.sql.checked_query import CheckedQuery, SqlError  # noqa: E402
from recsys.retrieval.rag.sql.limits import SqlLimits  # noqa: E402
from recsys.retrieval.rag.sql.tables import ItemDatabase  # noqa: E402
from recsys.retrieval.rag.sql.words import FUNCTIONS  # noqa: E402

CASES = yaml.safe_load((Path(__file__).parent / "hostile" / "sql.yaml").read_text(encoding="utf-8"))
LIMITS = SqlLimits(seconds=0.3, rows=10, cell_chars=80, result_chars=2_000, memory_mb=64)
REFUSED = {"writes", "settings", "files", "the_session"}
"""Kinds of which no case may run at all."""
SECRET = "canary-of-a-file"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that no query may read, change or add to."""
    import duckdb

    folder = tmp_path_factory.mktemp("watched")
    (folder / "secret.csv").write_text(f"a,b\n{SECRET},2\n", encoding="utf-8")
    pl.DataFrame({"a": [SECRET]}).write_parquet(folder / "items.parquet")
    with duckdb.connect(str(folder / "other.duckdb")) as other:
        other.execute(f"CREATE TABLE history AS SELECT '{SECRET}' AS user_id")
    return folder


@pytest.fixture(scope="module")
def database() -> Iterator[ItemDatabase]:
    items = pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(400)],
            "title": ["a" * 300 + f"{n}" for n in range(400)],
            "text": ["%a%e" * 500 + f"{n}" for n in range(400)],
        }
    )
    database = ItemDatabase(items)
    yield database
    database.close()


def state(*folders: Path) -> dict[str, str]:
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_there_are_enough_cases() -> None:
    texts = [text for cases in CASES.values() for text in cases]
    assert len(texts) >= 150 and len(set(texts)) == len(texts)


@pytest.mark.parametrize("kind", CASES)
def test_no_query_writes_runs_on_or_fills_the_memory(
    kind: str, folder: Path, database: ItemDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where a relative path would lead
    a_frame_of_python = pl.DataFrame({"a": [SECRET]})
    before, memory = state(folder, tmp_path, database.path.parent), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    events = [Event(item_id="i1", actions="click", timestamp=5), Event(item_id="i2", timestamp=6)]
    with database.open(events, LIMITS) as tables:
        for case in CASES[kind]:
            started = time.monotonic()
            try:
                found = tables.query(case.replace("{dir}", str(folder)))
            except SqlError as error:
                assert "\n" not in str(error) and str(error) and SECRET not in str(error), case
            else:
                assert len(found.rows) <= LIMITS.rows and SECRET not in str(found.rows), case
                assert sum(len(str(cell)) for row in found.rows for cell in row) <= LIMITS.result_chars, case
                assert kind not in REFUSED, f"{case} ran"
            assert time.monotonic() - started < LIMITS.seconds + 1.5, case
            # whatever it was, the tables still answer, and with the same rows
            assert tables.query("SELECT count(*), max(place) FROM history").rows == ((2, 2),), case
    assert state(folder, tmp_path, database.path.parent) == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300_000, "kilobytes"
    assert len(a_frame_of_python) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO history VALUES (1)",
        "UPDATE items SET title = 'x'",
        "DELETE FROM history",
        "DROP VIEW items",
        "CREATE TABLE x (a INTEGER)",
        "COPY items TO '{dir}/out.csv'",
        "ATTACH '{dir}/other.duckdb' AS other",
        "EXPORT DATABASE '{dir}/export'",
        "SET threads = 4",
        "SET enable_external_access = true",
        "LOAD httpfs",
        "SELECT * FROM read_csv('{dir}/secret.csv')",
        "SELECT * FROM '{dir}/items.parquet'",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM a_frame_of_python",
        "INSERT INTO catalogue.items SELECT * FROM catalogue.items",
    ],
)
def test_what_the_check_refuses_the_database_refuses_too(statement: str, folder: Path, database: ItemDatabase) -> None:
    """Put past the check, as if it had missed them: files, settings and writes are locked below it as well."""
    import duckdb

    a_frame_of_python = pl.DataFrame({"a": [SECRET]})
    before = state(folder, database.path.parent)
    with database.open([Event(item_id="i1")], LIMITS) as tables:
        connection = tables._connection
        assert connection is not None
        connection.execute("BEGIN TRANSACTION READ ONLY")
        with pytest.raises(duckdb.Error):
            connection.execute(statement.replace("{dir}", str(folder))).fetchall()
    assert state(folder, database.path.parent) == before and len(a_frame_of_python) == 1


def test_each_lock_holds_by_itself(database: ItemDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is attached for reading, settings are locked, and a query that passed the check could not write."""
    import duckdb

    with database.open([Event(item_id="i1")], LIMITS) as tables:
        connection = tables._connection
        assert connection is not None
        with pytest.raises(duckdb.Error, match="read-only"):
            connection.execute("DELETE FROM catalogue.items")
        locks = ("enable_external_access", "lock_configuration", "python_enable_replacements")
        found = [connection.execute(f"SELECT current_setting('{name}')").fetchone() for name in locks]
        assert found == [(False,), (True,), (False,)]
        monkeypatch.setattr(
            "recsys.retrieval.rag.sql.tables.checked_query", lambda *_: CheckedQuery("SELECT 1", frozenset())
        )
        monkeypatch.setattr("recsys.retrieval.rag.sql.tables.cut_to_limits", lambda *_: "DELETE FROM history")
        with pytest.raises(SqlError, match="read-only"):
            tables.query("SELECT 1")
        assert connection.execute("SELECT count(*) FROM history").fetchone() == (1,)


def test_what_is_refused_by_name_exists(database: ItemDatabase) -> None:
    """The functions that read files or settings are there, so that their refusal is not a typing error."""
    import duckdb

    there = {row[0] for row in duckdb.sql("SELECT DISTINCT function_name FROM duckdb_functions()").fetchall()}
    hostile = {"read_csv", "read_text", "sleep_ms", "repeat", "current_setting", "getvariable", "lpad", "replace"}
    assert hostile <= there and not hostile & FUNCTIONS
