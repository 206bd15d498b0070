"""Many people at once while the catalogue changes, bundles take over and the store of events fails: no page is wrong.

What was acknowledged is in every later answer, what was withdrawn in none, and every page is checked afterwards: all
changes are made again, in their order, to a recommender without a memory, which is given the whole history.
"""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import SourceUnavailable
from recsys.events import Event
from recsys.retrieval.async_recommender import AsyncRecommender
from recsys.retrieval.history_sources import RedisHistories, SqliteHistories, over_bundle
from recsys.retrieval.history_sources.source import Mark, Tail
from recsys.retrieval.page import Page
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.rules import Cap

AT = 1_702_000_000
THREADS, COROUTINES = 16, 64
WRITERS = 3
USERS = {"u1": 4, "u8": 5, "u18": 6, "n0": 0, "n1": 0, "n2": 0}
"""Events of each in the bundles."""
QUESTIONS: list[dict[str, Any]] = [
    {"retrievers": ("dense",)},
    {"retrievers": ("dense", "memory"), "exclude_history": False},
    {"retrievers": ("generative",), "rank": False},
    {"retrievers": ("hybrid",), "rank_by": "like", "candidates": 12, "rules": [Cap("colour", n=2)]},
    {"retrievers": ("parallel", "set"), "exclude": ["i3", "i4"]},
]
HOLD = """
import sqlite3, sys, time
file = sqlite3.connect(sys.argv[1], isolation_level=None)
file.execute("BEGIN IMMEDIATE")
file.execute("DELETE FROM events")  # which is never committed
print("held", flush=True)
time.sleep(60)
"""


class FailingSource:
    """A store that cannot be reached now and then, before or after it did its work."""

    def __init__(self, store: Any, rate: float) -> None:
        self.store, self._rate, self._draw = store, rate, random.Random(3)

    def _fails(self) -> None:
        if self._draw.random() < self._rate:
            raise SourceUnavailable("the store is away")

    def events(self, user_ids: Sequence[Any]) -> list[list[Event] | None]:
        self._fails()
        found: list[list[Event] | None] = self.store.events(user_ids)
        return found

    def tails(self, user_ids: Sequence[Any], marks: Sequence[Mark | None]) -> list[Tail]:
        self._fails()
        found: list[Tail] = self.store.tails(user_ids, marks)
        return found

    def append(self, user_id: Any, events: Sequence[Event]) -> None:
        self._fails()
        self.store.append(user_id, events)
        self._fails()

    def close(self) -> None:
        self.store.close()


@dataclass
class Oracle:
    """What was promised, and what was answered."""

    base: dict[str, list[Event]]
    lock: threading.Lock = field(default_factory=threading.Lock)
    written: dict[str, list[Event]] = field(default_factory=lambda: {user: [] for user in USERS})
    """Events whose append began, in order; each is repeated until it is acknowledged."""
    acknowledged: dict[str, int] = field(default_factory=lambda: dict.fromkeys(USERS, 0))
    withdrawn: dict[str, int] = field(default_factory=dict)
    """Items whose withdrawal has returned and whose return has not begun, and which change that withdrawal was."""
    changes: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    pages: dict[tuple[str, int, str, int], Page] = field(default_factory=dict)
    """By version, question, user and length of the history."""
    num_pages: int = 0
    num_unavailable: int = 0
    faults: list[str] = field(default_factory=list)

    def before(self, user: str) -> tuple[int, dict[str, int]]:
        with self.lock:
            return self.acknowledged[user], dict(self.withdrawn)

    def after(self, user: str, number: int, page: Page, before: tuple[int, dict[str, int]]) -> None:
        length = page.timings["counts"]["history_events"]
        with self.lock:
            self.num_pages += 1
            if not before[0] <= length - USERS[user] <= len(self.written[user]):
                self.faults.append(f"{user} has {length} events of {USERS[user]} + {before[0]} acknowledged ones")
            # One that came back and was withdrawn again meanwhile may have been there when the page was made.
            throughout = {item for item, change in before[1].items() if self.withdrawn.get(item) == change}
            found = set(page.item_ids) & throughout
            if found:
                self.faults.append(f"{found} were withdrawn ({page.version})")
            known = self.pages.setdefault((page.version, number, user, length), page)
        if not same(page, known):
            self.faults.append(f"{user}, question {number}: two answers of {page.version}")

    def check(self, bundles: list[Path]) -> int:
        """Make all changes anew and compare the pages of every version; returns the number of compared ones."""
        by_version: dict[str, list[tuple[int, str, int, Page]]] = {}
        for (version, number, user, length), page in self.pages.items():
            by_version.setdefault(version, []).append((number, user, length, page))
        plain, num_compared = Recommender.load(bundles[0], state_bytes=0), 0
        draw = random.Random(5)
        for what, change in [("", {}), *self.changes]:
            if what:
                getattr(plain, what)(**change)
            pages = by_version.pop(plain._snapshot.version, [])
            for number, user, length, page in draw.sample(pages, min(len(pages), 4)):
                history = [*self.base.get(user, []), *self.written[user][: length - USERS[user]]]
                city = {"city": ["Rome", "Oslo"][int(user[1:]) % 2]} if user in self.base else {}
                right = plain.recommend(history=history, user_features=city, k=6, at=AT, **QUESTIONS[number])
                assert same(page, right), (page.version, number, user, length)
                num_compared += 1
        assert not by_version, f"nobody made the versions {list(by_version)[:3]}"
        return num_compared


def same(one: Page, other: Page) -> bool:
    """Whether two pages are one to rounding; items of equal score may change places."""
    pairs = list(zip(one, other, strict=False))
    return len(one) == len(other) and all(
        abs(a.score - b.score) < 1e-4 and (a.item_id != b.item_id or a.actions == pytest.approx(b.actions, abs=1e-4))
        for a, b in pairs
    )


@dataclass
class Soak:
    """Everything that happens at once."""

    rec: Recommender
    bundles: list[Path]
    oracle: Oracle
    disturb: Callable[[random.Random], None]
    update_s: float
    swap_s: float
    stop: threading.Event = field(default_factory=threading.Event)

    def ask(self, draw: random.Random) -> tuple[str, int, dict[str, Any]]:
        user, number = draw.choice(list(USERS)), draw.randrange(len(QUESTIONS))
        return user, number, {"user_id": user, "k": 6, "at": AT, **QUESTIONS[number]}

    def unavailable(self) -> None:
        with self.oracle.lock:
            self.oracle.num_unavailable += 1

    def read(self, seed: int) -> None:
        draw = random.Random(seed)
        while not self.stop.is_set():
            user, number, fields = self.ask(draw)
            before = self.oracle.before(user)
            try:
                page = self.rec.recommend(**fields)
            except SourceUnavailable:
                self.unavailable()
                continue
            self.oracle.after(user, number, page, before)

    def read_together(self) -> None:
        async def one(front: AsyncRecommender, seed: int) -> None:
            draw = random.Random(seed)
            while not self.stop.is_set():
                user, number, fields = self.ask(draw)
                before = self.oracle.before(user)
                try:
                    page = await front.recommend(**fields)
                except SourceUnavailable:
                    self.unavailable()
                    await asyncio.sleep(0)
                    continue
                self.oracle.after(user, number, page, before)

        async def everybody() -> None:
            async with AsyncRecommender(self.rec, max_batch=16, num_threads=2) as front:
                await asyncio.gather(*(one(front, seed) for seed in range(COROUTINES)))

        asyncio.run(everybody())

    def write(self, place: int) -> None:
        draw, users = random.Random(place), list(USERS)[place::WRITERS]
        while not self.stop.is_set():
            user = draw.choice(users)
            count = len(self.oracle.written[user])
            event = Event(item_id=f"i{draw.randrange(32)}", actions="like", timestamp=AT - 10**6 + count)
            with self.oracle.lock:
                self.oracle.written[user].append(event)
            while not self.stop.is_set():
                try:
                    self.rec.append_events(user, [event])
                except SourceUnavailable:
                    self.unavailable()
                    continue
                with self.oracle.lock:
                    self.oracle.acknowledged[user] += 1
                break
            self.stop.wait(0.05 * draw.random())

    def change(self) -> None:
        """The only one who changes anything, so that the order of changes is known."""
        draw, step, swapped = random.Random(8), 0, time.monotonic()
        while not self.stop.wait(self.update_s):
            step += 1
            if time.monotonic() - swapped > self.swap_s:
                number = sum(what == "swap" for what, _ in self.oracle.changes) + 1
                self.make("swap", bundle=self.bundles[number % 2])
                swapped = time.monotonic()
            gone = list(self.oracle.withdrawn)
            if step % 3 == 0 and len(gone) > 4:
                with self.oracle.lock:
                    del self.oracle.withdrawn[gone[0]]
                self.make("update_items", restore=[gone[0]])
            elif step % 3 == 1:
                name = draw.choice([item for item in (f"i{n}" for n in range(30)) if item not in gone])
                self.make("update_items", withdraw=[name])
                with self.oracle.lock:
                    self.oracle.withdrawn[name] = step
            elif step % 2:
                row = {"item_id": f"x{step % 8}", "text": f"red ship {step}", "vec": [1.0, draw.random(), 0.0, 0.0]}
                self.make("update_items", items=[row])
            else:
                self.make("update_items", items=[{"item_id": f"i{draw.randrange(9)}", "text": f"wood {step}"}])

    def make(self, what: str, **change: Any) -> None:
        getattr(self.rec, what)(**change)
        self.oracle.changes.append((what, change))

    def disturb_again(self) -> None:
        draw = random.Random(2)
        while not self.stop.wait(0.3 + 0.5 * draw.random()):
            self.disturb(draw)

    def run(self, seconds: float, together: bool) -> None:
        readers = [self.read_together] if together else [lambda n=n: self.read(n) for n in range(THREADS - WRITERS)]
        writers = [lambda n=n: self.write(n) for n in range(WRITERS)]
        with ThreadPoolExecutor(THREADS + 2) as pool:
            jobs = [pool.submit(job) for job in (*readers, *writers, self.change, self.disturb_again)]
            began = time.monotonic()
            while time.monotonic() - began < 10 * seconds and not any(job.done() for job in jobs):
                time.sleep(0.1)
                if time.monotonic() - began > seconds and self.enough():
                    break  # a busy machine takes longer to do anything at all
            self.stop.set()
            for job in jobs:
                job.result()

    def enough(self) -> bool:
        oracle = self.oracle
        with oracle.lock:
            versions = {version for version, *_ in oracle.pages}
            written = sum(oracle.acknowledged.values())
        swapped = len({version.split(".")[0] for version in versions}) == 2
        return swapped and len(versions) > 4 and oracle.num_pages > 60 and written > 20 and oracle.num_unavailable > 0


@contextmanager
def sqlite_store(folder: Path) -> Iterator[tuple[Any, Callable[[random.Random], None]]]:
    """A file, and another process that holds it, changes it and is killed before it commits."""
    path = folder / "events.sqlite"

    def hold(draw: random.Random) -> None:
        command = [sys.executable, "-I", "-S", "-c", HOLD, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.3 * draw.random())
            process.kill()

    store = SqliteHistories(path, busy_timeout_s=0.1)
    yield store, hold
    store.close()


@contextmanager
def redis_store(program: str, folder: Path) -> Iterator[tuple[Any, Callable[[random.Random], None]]]:
    """A server that is killed and started again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"]
    words += ["--appendfsync", "always", "--dir", str(folder)]

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        for _ in range(400):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return process
            except OSError:
                time.sleep(0.02)
        raise AssertionError("the server did not start")

    server = [start()]

    def kill(draw: random.Random) -> None:
        server[0].kill()
        server[0].wait()
        time.sleep(0.2 * draw.random())
        server[0] = start()

    store = RedisHistories(f"redis://127.0.0.1:{port}/0", timeout_s=0.5, num_retries=0)
    yield store, kill
    store.close()
    server[0].kill()
    server[0].wait()


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Callable[[random.Random], None]]]:
    if request.param == "redis":
        opening = redis_store(request.getfixturevalue("redis_program"), tmp_path)
    else:
        opening = sqlite_store(tmp_path)
    with opening as opened:
        yield opened


def soak(serving_worlds: Any, toy_frames: Any, store: Any, seconds: float, update_s: float, swap_s: float) -> None:
    bundles = [world.bundle for world in serving_worlds]
    base: dict[str, list[Event]] = {}
    for user, item, at, action, surface in toy_frames["interactions"].iter_rows():
        base.setdefault(user, []).append(Event(item_id=item, actions=action, timestamp=at, surface=surface))
    source = over_bundle(FailingSource(store[0], rate=0.03))
    rec = Recommender.load(bundles[0], state_bytes=40_000, history_source=source)
    run = Soak(rec, bundles, Oracle(base), store[1], update_s, swap_s)
    run.run(seconds, together=isinstance(store[0], RedisHistories))
    assert not run.oracle.faults, run.oracle.faults[:5]
    assert run.enough()
    assert run.oracle.check(bundles) > 10
    assert rec.state_counts.hits + rec.state_counts.appended > 0


def test_no_page_is_wrong_lost_mixed_or_withdrawn(serving_worlds: Any, toy_frames: Any, store: Any) -> None:
    soak(serving_worlds, toy_frames, store, seconds=2.5, update_s=0.1, swap_s=0.4)


@pytest.mark.slow
def test_the_same_for_ten_minutes(serving_worlds: Any, toy_frames: Any, store: Any) -> None:
    soak(serving_worlds, toy_frames, store, seconds=600.0, update_s=1.0, swap_s=20.0)
