"""Every source of histories keeps the same promises; each of its own are tested below."""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import os
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.bundle import Bundle
from recsys.errors import Closed, DamagedHistory, InputError, SourceUnavailable
from recsys.events import Event
from recsys.retrieval.history_sources import (
    BundleHistories,
    HistorySource,
    LayeredHistories,
    RedisHistories,
    SqliteHistories,
    over_bundle,
)
from recsys.retrieval.history_sources.event_text import MAX_APPEND, MAX_CHARACTERS, event_texts, events_of, id_text
from recsys.retrieval.history_sources.reader import HistoryReader
from recsys.retrieval.history_sources.reading import continued_history, read_histories
from recsys.retrieval.history_sources.source import in_time_order
from recsys.vocabulary import IdMap, Vocabulary

WORDS = Vocabulary(
    items=IdMap(pl.Series([f"i{i}" for i in range(20)])),
    actions=("click", "like"),
    surfaces=("", "home"),
    clock="real",
    max_timestamp=1_700_000_000,
)


class RedisServer:
    """A server of the test's own, on a free port of the loopback interface, its files in a folder of the test's."""

    def __init__(self, program: str, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.program, self.folder = program, folder
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "save": "", "loglevel": "warning"}
        options |= {"appendonly": "yes", "appendfsync": "always"}
        command = [self.program, *itertools.chain(*((f"--{name}", str(value)) for name, value in options.items()))]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def redis_server(redis_program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(redis_program, tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


Opener = Callable[[], HistorySource]


@pytest.fixture(params=["sqlite", "redis", "layered"])
def opener(request: pytest.FixtureRequest, tmp_path: Path, toy_bundle: Path) -> Opener:
    """Opens the same store again and again."""
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        prefix = f"test{time.monotonic_ns()}"
        return lambda: RedisHistories(server.url, prefix=prefix)
    if request.param == "layered":
        base = BundleHistories(Bundle.open(toy_bundle))
        return lambda: LayeredHistories(base, SqliteHistories(tmp_path / "events.sqlite"))
    return lambda: SqliteHistories(tmp_path / "events.sqlite")


@pytest.fixture
def store(opener: Opener) -> Iterator[HistorySource]:
    source = opener()
    yield source
    source.close()


def clicks(*times: int | None, item: str = "i1") -> list[Event]:
    return [Event(item_id=item, actions="click", timestamp=time) for time in times]


# -- what every store promises -------------------------------------------------------------------------------------


def test_events_come_back_in_time_order_after_the_store_is_opened_again(opener: Opener) -> None:
    store = opener()
    assert isinstance(store, HistorySource)
    late, early = clicks(30), [*clicks(10), Event(item_id="i2", timestamp=30, surface="home", value=2.5)]
    store.append("a", late)
    store.append("a", early)
    store.append("b", [])
    expected = [[early[0], late[0], early[1]], None, [early[0], late[0], early[1]]]
    assert store.events(["a", "b", "a"]) == expected
    assert store.events([]) == []
    store.close()
    store.close()
    again = opener()
    assert again.events(["a", "b", "a"]) == expected
    again.close()


def test_ids_keep_their_type(store: HistorySource) -> None:
    ids: list[str | int] = ["7", 7, "07", "", "ü\0'", "\ud800", 2**70, -1, "x" * MAX_CHARACTERS]
    for place, user in enumerate(ids):
        store.append(user, [Event(item_id=user, timestamp=place)])
    for place, (user, events) in enumerate(zip(ids, store.events(ids), strict=True)):
        assert events == [Event(item_id=user, timestamp=place)]
        assert type(events[0].item_id) is type(user)
    assert store.events([np.int64(7)]) == store.events([7])


def test_equal_events_with_a_time_are_kept_once_and_others_unite(store: HistorySource) -> None:
    first = Event(item_id="i1", actions="click", timestamp=5)
    store.append("a", [first, first])
    store.append("a", [first])
    store.append("a", [Event(item_id="i1", actions="like", timestamp=5)])
    (events,) = store.events(["a"])
    assert events is not None and [event.actions for event in events] == ["click", "like"]
    (read,) = read_histories(store, ["a"], WORDS)
    assert read is not None
    assert (read.history.yes.tolist(), read.history.known.tolist()) == ([3], [3])
    store.append("b", clicks(None, None))
    store.append("b", clicks(None))
    assert store.events(["b"]) == [clicks(None, None, None)]


def test_an_event_without_a_time_stays_behind_the_one_before_it(store: HistorySource) -> None:
    arrived = [
        *clicks(None, item="zero"),
        *clicks(20),
        *clicks(None, item="then"),
        *clicks(10),
        *clicks(20, item="new"),
    ]
    for event in arrived:
        store.append("a", [event])
    (events,) = store.events(["a"])
    assert events is not None
    assert [(event.item_id, event.timestamp) for event in events] == [
        ("zero", None), ("i1", 10), ("i1", 20), ("then", None), ("new", 20)
    ]  # fmt: skip


def test_words_that_no_bundle_knows_are_kept_and_understood_as_far_as_possible(store: HistorySource) -> None:
    strange = [
        Event(item_id="not yet", actions="click+dance", timestamp=1, surface="moon"),
        Event(item_id="i1", actions=("dance",), unknown=("like", "sing"), timestamp=2),
        Event(item_id="i2", actions="Shown", timestamp=3),
    ]
    store.append("a", strange)
    assert store.events(["a"]) == [strange]
    (read,) = read_histories(store, ["a"], WORDS)
    assert read is not None and read.num_strange_actions == 2
    assert read.history.item.tolist() == [-1, 1, 2]
    assert read.history.yes.tolist() == [1, 0, 0]
    assert read.history.known.tolist() == [3, 1, 3]
    assert read.history.surface.tolist() == [0, 0, 0]


BAD_EVENTS: list[tuple[Any, str]] = [
    ({"item_id": "i1"}, "event 1: must be an Event"),
    (Event(item_id=None), "event 1: item_id: an id is an integer or a string"),  # type: ignore[arg-type]
    (Event(item_id=True), "event 1: item_id: an id is an integer or a string"),
    (Event(item_id="x" * (MAX_CHARACTERS + 1)), "at most 4,096 characters"),
    (Event(item_id=2**130), "an id is an integer or a string"),
    (Event(item_id="i1", timestamp=1.5), r"event 1 \(item 'i1'\): timestamp must be an integer"),  # type: ignore[arg-type]
    (Event(item_id="i1", timestamp=2**62), "timestamp must be an integer below 2\\^62"),
    (Event(item_id="i1", timestamp=-(2**63)), "timestamp must be an integer below 2\\^62"),
    (Event(item_id="i1", actions=[1]), "actions must be a name or at most 64 names"),  # type: ignore[list-item]
    (Event(item_id="i1", unknown=["x"] * 65), "unknown must be a name or at most 64 names"),
    (Event(item_id="i1", surface=3), "surface must be a short string"),  # type: ignore[arg-type]
    (Event(item_id="i1", value="high"), "value must be a number"),  # type: ignore[arg-type]
    (Event(item_id="i1", value=10**400), "value must be a number"),
]


@pytest.mark.parametrize(("bad", "match"), BAD_EVENTS, ids=range(len(BAD_EVENTS)))
def test_nothing_of_an_append_with_a_bad_event_is_stored(store: HistorySource, bad: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        store.append("a", [*clicks(1), bad])
    assert store.events(["a"]) == [None]


def test_bad_users_and_too_many_events_are_named(store: HistorySource) -> None:
    for user in (None, True, 1.5, b"u", "x" * (MAX_CHARACTERS + 1)):
        with pytest.raises(InputError, match="user_id: an id is an integer or a string"):
            store.append(user, clicks(1))
        with pytest.raises(InputError, match="user_id: an id is an integer or a string"):
            store.events([user])
    with pytest.raises(InputError, match="append 100,000 at a time"):
        store.append("a", clicks(1) * (MAX_APPEND + 1))
    with pytest.raises(InputError, match="events must be a sequence of Event"):
        store.append("a", clicks(1)[0])  # type: ignore[arg-type]


def test_a_forgotten_user_is_unknown_and_may_come_back(store: HistorySource) -> None:
    inner = store.store if isinstance(store, LayeredHistories) else store
    assert isinstance(inner, (SqliteHistories, RedisHistories))
    store.append("a", clicks(1, 2))
    store.append("b", clicks(3))
    reader = HistoryReader(inner, WORDS)
    assert None not in reader.read(["a", "b"])
    inner.forget("a")
    inner.forget("nobody")
    assert store.events(["a", "b"]) == [None, clicks(3)]
    assert [stored is None for stored in reader.read(["a", "b"])] == [True, False]
    store.append("a", clicks(5, 4))
    assert store.events(["a"]) == [clicks(4, 5)]
    (stored,) = reader.read(["a"])
    assert stored is not None and stored.history.timestamp.tolist() == [4, 5]


def test_a_forgotten_user_who_comes_back_brings_nothing_back(store: HistorySource) -> None:
    """Also where the new events end as the forgotten ones did, and nobody asked in between."""
    reader, kept = HistoryReader(store, WORDS), getattr(store, "store", store)
    for first in (3, 4, 5):
        store.append("zoe", [*clicks(10, item=f"i{first}"), *clicks(20, item="i2")])
        (found,) = reader.read(["zoe"])
        assert found is not None and found.history.item.tolist() == [first, 2]
        kept.forget("zoe")


def test_a_closed_source_says_so(store: HistorySource) -> None:
    store.append("a", clicks(1))
    store.close()
    with pytest.raises(Closed, match="was closed"):
        store.append("a", clicks(2))
    with pytest.raises(Closed, match="was closed"):
        store.events(["a"])


def test_threads_append_and_read_together(store: HistorySource) -> None:
    """Every reader sees every append whole, and all in the order of each writer."""
    start = threading.Barrier(8)

    def write(number: int) -> None:
        start.wait()
        for step in range(12):
            store.append(
                "a", [Event(item_id=number, timestamp=step * 2), Event(item_id=number, timestamp=step * 2 + 1)]
            )
            assert store.events([number]) == [None]

    def read() -> None:
        start.wait()
        seen = 0
        for _ in range(12):
            events = store.events(["a"])[0] or []
            assert len(events) % 2 == 0 and len(events) >= seen
            seen = len(events)

    with ThreadPoolExecutor(8) as pool:
        for done in [*(pool.submit(write, number) for number in range(6)), pool.submit(read), pool.submit(read)]:
            done.result()
    (events,) = store.events(["a"])
    assert events is not None and len(events) == 6 * 24
    for number in range(6):
        assert [event.timestamp for event in events if event.item_id == number] == list(range(24))


def write_and_say(where: str, number: int, count: int, pipe: Connection) -> None:
    """What a child process does: append, and say each step once its append has returned."""
    store = RedisHistories(where, prefix="processes") if where.startswith("redis") else SqliteHistories(where)
    pipe.recv()
    for step in range(count):
        store.append(step % 3, [Event(item_id=number, timestamp=step)])
        pipe.send(step)
    pipe.close()


def writers(where: str, num_processes: int, count: int) -> list[tuple[BaseProcess, Connection]]:
    """Forked, which takes no time for imports; they touch nothing but their store."""
    children: list[tuple[BaseProcess, Connection]] = []
    context = multiprocessing.get_context("fork")
    for number in range(num_processes):
        ours, theirs = context.Pipe()
        process = context.Process(target=write_and_say, args=(where, number, count, theirs), daemon=True)
        process.start()
        theirs.close()
        children.append((process, ours))
    for _, pipe in children:
        pipe.send("go")
    return children


def said_until_the_end(pipe: Connection) -> list[int]:
    said: list[int] = []
    with contextlib.suppress(EOFError, ConnectionResetError):
        while True:
            said.append(pipe.recv())
    return said


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_processes_write_one_store(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    where = request.getfixturevalue("redis_server").url if kind == "redis" else str(tmp_path / "events.sqlite")
    for process, pipe in writers(where, num_processes=3, count=30):
        assert said_until_the_end(pipe) == list(range(30))
        process.join(timeout=30)
        assert process.exitcode == 0
    store = RedisHistories(where, prefix="processes") if kind == "redis" else SqliteHistories(where)
    for user, events in enumerate(store.events([0, 1, 2])):
        assert events is not None
        assert sorted((e.item_id, e.timestamp) for e in events) == [
            (n, s) for n in range(3) for s in range(user, 30, 3)
        ]
    store.close()


# -- texts ---------------------------------------------------------------------------------------------------------

IDS = st.one_of(
    st.text(max_size=20), st.text("0123456789+-e. \0\ud800", max_size=5), st.integers(-(2**126) + 1, 2**126 - 1)
)
NAMES = st.text(max_size=8)
EVENTS = st.builds(
    Event,
    item_id=IDS,
    actions=st.one_of(NAMES, st.lists(NAMES, max_size=4).map(tuple)),
    timestamp=st.none() | st.integers(-(2**62) + 1, 2**62 - 1),
    surface=st.none() | NAMES,
    value=st.none() | st.floats(allow_nan=False),
    unknown=st.one_of(NAMES, st.lists(NAMES, max_size=3).map(tuple)),
)


@settings(deadline=None, max_examples=60)
@given(events=st.lists(EVENTS, max_size=8))
def test_any_event_survives_its_text(events: list[Event]) -> None:
    texts = event_texts(events)
    assert events_of(texts) == events
    assert all(text.isascii() for text in texts)
    assert len(set(texts)) == len({repr(event) for event in events})
    # What a store has taken can be read by a bundle: nothing that is kept keeps a user from being answered.
    assert len(continued_history(None, in_time_order(events), WORDS).history) <= len(events)


@given(one=IDS, other=IDS)
def test_different_ids_have_different_texts(one: str | int, other: str | int) -> None:
    assert (id_text(one) == id_text(other)) == (type(one) is type(other) and one == other)


@settings(deadline=None, max_examples=15)
@given(appends=st.lists(st.tuples(IDS, st.lists(EVENTS, min_size=1, max_size=4)), max_size=6), data=st.data())
def test_a_file_holds_what_a_dictionary_would(
    appends: list[tuple[Any, list[Event]]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("any") / "events.sqlite"
    model: dict[str, list[Event]] = {}
    store = SqliteHistories(path)
    for user, events in appends:
        store.append(user, events)
        kept = model.setdefault(repr(user), [])
        for event in events:
            if event.timestamp is None or repr(event) not in map(repr, kept):
                kept.append(event)
        if data.draw(st.booleans()):
            store.close()
            store = SqliteHistories(path)
    users = [user for user, _ in appends] + ["somebody else", 3]
    expected = [in_time_order(model[repr(user)]) if repr(user) in model else None for user in users]
    assert store.events(users) == expected
    store.close()


def test_any_string_is_an_event_text_or_a_plain_error() -> None:
    for text in (
        "",
        "[]",
        "{}",
        "[null]",
        "[1,true,1]",
        '["a",1.5]',
        "[1,2,[],null,null,[],7]",
        "[[1]]",
        "[1",
        "nonsense",
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - the store adds what and where
            events_of([text])
    assert events_of(['["a",3]what a store adds']) == [Event(item_id="a", timestamp=3)]


# -- SQLite --------------------------------------------------------------------------------------------------------


def test_acknowledged_events_survive_a_kill(tmp_path: Path) -> None:
    """The child says each event only after its append returned, and dies in the middle of the next ones."""
    path, most = tmp_path / "events.sqlite", {0}
    for round_ in range(3):
        ((child, pipe),) = writers(str(path), num_processes=1, count=100_000)
        acknowledged = {pipe.recv() for _ in range(15 + 10 * round_)}
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        acknowledged |= set(said_until_the_end(pipe))
        child.join()
        assert child.exitcode == -signal.SIGKILL
        with SqliteHistories(path) as store:
            there = {event.timestamp or 0 for events in store.events([0, 1, 2]) for event in events or ()}
        assert len(acknowledged) >= 15 and acknowledged <= there
        assert max(there) <= max(*most, *acknowledged) + 1  # the one under way, and nothing else
        most |= acknowledged | there
    assert [row[0] for row in sqlite3.connect(path).execute("PRAGMA integrity_check")] == ["ok"]


def test_an_append_is_there_for_another_connection_when_it_returns(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    with SqliteHistories(path) as store:
        other = sqlite3.connect(path)
        for step in range(5):
            store.append("a", clicks(step))
            assert other.execute("SELECT count(*) FROM events").fetchone() == (step + 1,)
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert store._writer.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        other.close()


def test_a_history_is_one_range_of_the_file(tmp_path: Path) -> None:
    from recsys.retrieval.history_sources.sqlite import _READ

    with SqliteHistories(tmp_path / "events.sqlite") as store:
        plan = " | ".join(row[3] for row in store._writer.execute(f"EXPLAIN QUERY PLAN {_READ}", (1, 0)))
    assert "SEARCH events USING PRIMARY KEY (user=? AND place>?)" in plan
    assert "SCAN" not in plan and "TEMP B-TREE" not in plan


def test_foreign_files_are_refused_unchanged(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE mine (a)")
    text = tmp_path / "notes.txt"
    text.write_text("not a database, and long enough to be looked at " * 30)
    later = tmp_path / "later.sqlite"
    SqliteHistories(later).close()
    with sqlite3.connect(later) as database:
        database.execute("PRAGMA user_version=9")
    for path, match in (
        (foreign, "another program's database"),
        (text, "is no SQLite database"),
        (later, "events in format 9, this version reads format 1"),
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "folder.sqlite", "its folder does not exist"),
    ):
        before = path.read_bytes() if path.is_file() else None
        with pytest.raises(InputError, match=match):
            SqliteHistories(path)
        assert before is None or path.read_bytes() == before


def test_a_writer_that_holds_the_file_makes_others_wait_and_then_fail_clearly(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    with SqliteHistories(path, busy_timeout_s=0.2) as store:
        store.append("a", clicks(1))
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SourceUnavailable, match=r"cannot be written: database is locked for 0\.2 s; try again"):
            store.append("a", clicks(2))
        assert store.events(["a"]) == [clicks(1)]  # readers do not wait
        release = threading.Timer(0.05, other.execute, ["ROLLBACK"])
        release.start()
        store.append("a", clicks(2))
        release.join()
        assert store.events(["a"]) == [clicks(1, 2)]
        other.close()


def test_a_file_that_goes_away_or_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    store = SqliteHistories(path)
    store.append("a", clicks(1))
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(SourceUnavailable, match="is gone"):
        store.append("a", clicks(2))
    SqliteHistories(tmp_path / "new").close()
    (tmp_path / "new").rename(path)
    with pytest.raises(SourceUnavailable, match="was replaced by another file"):
        store.events(["a"])
    store.close()


@pytest.mark.parametrize("damage", ["'x'", "CAST(x'FF00' AS TEXT)"])
def test_damaged_events_are_an_error_not_a_shorter_history(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "events.sqlite"
    with SqliteHistories(path) as store:
        store.append("a", clicks(1, 2))
        store.append("b", clicks(1))
        with sqlite3.connect(path) as database:
            database.execute(f"UPDATE events SET body = {damage} WHERE place = 1")
        with pytest.raises(DamagedHistory, match="holds events that cannot be read") as error:  # of this user alone
            store.events(["a", "b"])
        assert "\n" not in str(error.value)
        assert store.events(["b"])[0] is not None


def test_a_file_whose_pages_are_overwritten_is_to_be_restored(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    with SqliteHistories(path) as store:
        for user in range(60):
            store.append(f"u{user}", clicks(*range(9)))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\x55" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(SourceUnavailable, match="restore a copy"), SqliteHistories(path) as store:
        store.events(["u1"])


def test_a_fork_does_not_share_the_file(tmp_path: Path) -> None:
    with SqliteHistories(tmp_path / "events.sqlite") as store:
        parent = store._process
        store._process = parent + 1  # as a child would see it
        with pytest.raises(SourceUnavailable, match="open it anew after a fork"):
            store.append("a", clicks(1))
        store._process = parent


def test_waiting_appends_share_a_commit(tmp_path: Path) -> None:
    """While one transaction runs, the appends that arrive wait together and are written in one more."""
    with SqliteHistories(tmp_path / "events.sqlite") as store:
        commits: list[str] = []
        store._writer.set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else None)
        with ThreadPoolExecutor(8) as pool:
            with store._writing:
                waiting = [pool.submit(store.append, number, clicks(number)) for number in range(8)]
                while len(store._waiting) < 8:
                    time.sleep(0.001)
            for done in waiting:
                done.result()
        assert len(commits) == 1
        assert store.events(range(8)) == [clicks(number) for number in range(8)]


# -- Redis ---------------------------------------------------------------------------------------------------------


def test_events_survive_the_death_of_a_server_that_keeps_its_log(redis_server: RedisServer) -> None:
    store = RedisHistories(redis_server.url, prefix="death", timeout_s=1.0)
    store.append("a", clicks(1, None))
    redis_server.kill()
    for call in (lambda: store.events(["a"]), lambda: store.append("a", clicks(2))):
        with pytest.raises(SourceUnavailable, match=r"Redis at 127\.0\.0\.1:\d+ cannot be (read|written): .*retry"):
            call()
    redis_server.start()
    assert store.events(["a"]) == [clicks(1, None)]  # by itself, on a new connection and without the script
    store.append("a", clicks(3))
    assert store.events(["a"]) == [clicks(1, None, 3)]
    store.close()


def test_a_long_history_is_read_in_pieces(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.retrieval.history_sources.redis.PIECE", 3)
    with RedisHistories(redis_server.url, prefix="pieces") as store:
        for user, length in enumerate((2, 3, 7, 9)):
            store.append(user, clicks(*range(length)))
        assert store.events([3, 0, 1, 2, 9]) == [clicks(*range(n)) for n in (9, 2, 3, 7)] + [None]


@pytest.mark.parametrize("more", [0, 2, 9])
def test_a_long_history_that_is_forgotten_while_it_is_read_is_no_part_of_two(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    monkeypatch.setattr("recsys.retrieval.history_sources.redis.PIECE", 3)
    with RedisHistories(redis_server.url, prefix=f"torn{more}") as store:
        store.append("a", clicks(*range(8)))
        store.append("b", clicks(*range(4)))
        pipeline, num_trips = store._client.pipeline, 0

        def forgotten_after_a_piece(**settings: Any) -> Any:
            nonlocal num_trips
            num_trips += 1
            if num_trips == 3:
                store.forget("a")
                store.append("a", clicks(*range(20, 20 + more)))
            return pipeline(**settings)

        monkeypatch.setattr(store._client, "pipeline", forgotten_after_a_piece)
        tails = store.tails(["a", "b"], [None, None])
        assert num_trips >= 3
        assert [tail.events for tail in tails] == [clicks(*range(20, 20 + more)), clicks(*range(4))]
        again, _ = store.tails(["a", "b"], [tail.mark for tail in tails])
        assert (again.events, again.continues) == ([], more > 0)


def test_servers_that_lose_events_are_warned_of(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    import redis

    with redis.Redis.from_url(redis_server.url) as admin, caplog.at_level(logging.WARNING):
        RedisHistories(redis_server.url).close()
        assert caplog.messages == []
        admin.config_set("appendonly", "no")
        admin.config_set("maxmemory", "100mb")
        admin.config_set("maxmemory-policy", "allkeys-lru")
        try:
            RedisHistories(redis_server.url).close()
        finally:
            admin.config_set("maxmemory", "0")
            admin.config_set("maxmemory-policy", "noeviction")
            admin.config_set("appendonly", "yes")
    assert ["no append-only file" in caplog.messages[0], "evicts keys" in caplog.messages[1]] == [True, True]


def test_foreign_keys_and_addresses_are_named(redis_server: RedisServer) -> None:
    import redis

    with redis.Redis.from_url(redis_server.url) as admin, RedisHistories(redis_server.url, prefix="foreign") as store:
        admin.set('foreign:events:1:"a"', "something else")
        with pytest.raises(DamagedHistory, match="WRONGTYPE"):  # not of others, who are asked for again
            store.events(["b", "a"])
        with pytest.raises(DamagedHistory, match="WRONGTYPE"):
            store.append("a", clicks(1))
    odd: list[Any] = [
        "http://127.0.0.1",
        "redis://h:99999999",
        "redis://127.0.0.1:1/0?foo=1",
        f"redis://{'a' * 70}",
        None,
    ]
    for url in odd:
        with pytest.raises(InputError, match="is no address of a Redis server"):
            RedisHistories(url)
    for url in ("redis://:hunt#er2@127.0.0.1/0", "redis://:hunt/er2@127.0.0.1/0?password=hunter2&db=er2"):
        with pytest.raises(InputError, match="is no address of a Redis server") as refused:
            RedisHistories(url)
        assert "hunt" not in str(refused.value) and "er2" not in str(refused.value)
        assert refused.value.__cause__ is None
    numbers: list[dict[str, Any]] = [{"timeout_s": -1}, {"timeout_s": 0}, {"timeout_s": np.nan}, {"num_retries": -1}]
    for number in numbers:
        with pytest.raises(InputError, match=f"{next(iter(number))} must be"):
            RedisHistories("redis://127.0.0.1:1", **number)
    with pytest.raises(SourceUnavailable, match="cannot be reached"):
        RedisHistories("redis://127.0.0.1:1", timeout_s=0.2, num_retries=0)


def test_a_reader_of_redis_asks_for_what_came_since(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import redis

    monkeypatch.setattr("recsys.retrieval.history_sources.redis.PIECE", 3)
    with (
        RedisHistories(redis_server.url, prefix="tails") as store,
        redis.Redis.from_url(redis_server.url) as admin,
    ):
        reader = HistoryReader(store, WORDS)
        store.append("a", clicks(1, 2, 3, 4, None))
        (whole,) = store.tails(["a"], [None])
        assert (whole.events, whole.continues) == (clicks(1, 2, 3, 4, None), False)
        store.append("a", clicks(5, 6, 7, 8))
        tail, unknown = store.tails(["a", "b"], [whole.mark, None])
        assert (tail.events, tail.continues) == (clicks(5, 6, 7, 8), True)
        assert (unknown.events, unknown.mark) == ([], None)
        for events in ([], clicks(9), clicks(2, item="i2"), clicks(None), clicks(10)):
            store.append("a", events)
            for got, expected in zip(reader.read(["a"]), read_histories(store, ["a"], WORDS), strict=True):
                assert got is not None and expected is not None
                assert np.array_equal(got.history.timestamp, expected.history.timestamp)
                assert np.array_equal(got.history.item, expected.history.item)
        admin.zremrangebyrank('tails:events:1:"a"', 2, 2)  # one from the middle
        store.append("a", clicks(11))
        (got,), (expected,) = reader.read(["a"]), read_histories(store, ["a"], WORDS)
        assert got is not None and expected is not None
        assert got.history.timestamp.tolist() == expected.history.timestamp.tolist()
        assert 3 not in got.history.timestamp and got.history.timestamp[-1] == 11
        admin.delete('tails:events:1:"a"')
        store.append("a", clicks(1, item="i7"))
        (after,) = reader.read(["a"])
        assert after is not None and after.history.item.tolist() == [7]


# -- bundles -------------------------------------------------------------------------------------------------------


def test_a_bundle_speaks_the_callers_words(toy_bundle: Path) -> None:
    bundle = Bundle.open(toy_bundle)
    source, stored = BundleHistories(bundle), bundle.histories
    assert stored is not None
    everybody = stored.users.ids.to_list()
    for user, (events, taken) in enumerate(
        zip(source.events(everybody), read_histories(source, everybody, bundle.vocabulary), strict=True)
    ):
        assert events is not None and taken is not None
        back, expected = bundle.vocabulary.history(events), stored.events.history(user)
        for name in ("item", "timestamp", "yes", "known", "surface", "time_known"):
            assert np.array_equal(getattr(back, name), getattr(expected, name)), name
            assert np.array_equal(getattr(taken.history, name), getattr(expected, name)), name
    assert source.events(["nobody"]) == [None]
    with pytest.raises(InputError, match=r"read-only.*over_bundle"):
        source.append("u1", clicks(1))
    source.close()


def test_a_store_over_a_bundle_continues_its_histories(toy_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(toy_bundle)
    store = SqliteHistories(tmp_path / "events.sqlite")
    source = over_bundle(store)(bundle)
    (old,) = BundleHistories(bundle).events(["u1"])
    assert old is not None
    new = [Event(item_id="i3", actions="like", timestamp=1_800_000_000), Event(item_id="gone", timestamp=3)]
    store.append("new user", new)
    source.append("u1", [*new, old[0]])  # one of them is in both
    reads = read_histories(source, ["u1", "new user", "nobody", "u2"], bundle.vocabulary)
    in_one = [bundle.vocabulary.history(events) for events in ([*old, *new], new)]
    for read, expected in zip(reads, in_one, strict=False):
        assert read is not None
        for name in ("item", "timestamp", "yes", "known", "surface", "time_known"):
            assert np.array_equal(getattr(read.history, name), getattr(expected, name)), name
    assert reads[2] is None and reads[3] is not None
    assert source.events(["u1"])[0] == in_time_order([*old, *new[:1], new[1], old[0]])
    source.close()


def test_a_bundle_without_histories_leaves_the_store_alone(toy_model: Any, toy_dataset: Any, tmp_path: Path) -> None:
    from recsys.pipelines.export import export_model

    export_model(toy_model, toy_dataset, tmp_path / "bare")
    bundle = Bundle.open(tmp_path / "bare")
    with SqliteHistories(tmp_path / "events.sqlite") as store:
        assert over_bundle(store)(bundle) is store
    with pytest.raises(InputError, match=r"holds no histories.*export with --histories"):
        BundleHistories(bundle)
