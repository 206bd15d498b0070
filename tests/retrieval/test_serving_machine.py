"""Whatever happened before, a page is the one that a fresh recommender without a memory gives of the whole history.

Events, requests on every path, evictions, changes of the catalogue and exchanges of bundles come in any order. What
each page must be says a plain model: lists of events, and the changes made so far, told to a recommender loaded anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from recsys.bundle import Bundle
from recsys.events import Event
from recsys.retrieval.async_recommender import AsyncRecommender
from recsys.retrieval.history_sources import SqliteHistories, over_bundle
from recsys.retrieval.page import Page
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.rules import MMR, Boost, Cap, Explore, Pin, Where
from recsys.state_store import StoreCounts, UserStateStore

NOW = 1_702_000_000
USERS: list[Any] = ["u0", "u1", "u2", "somebody", 7, "7"]
"""Ids of a table of strings: the last two are one person."""
KEYS: list[Any] = ["u0", "u1", "7", 7, "shared", None]
ITEMS = [f"i{n}" for n in range(32)]
NEW = ["x0", "x1", "x2"]
TEXTS = ["red train", "small wooden ship", "a blue steel car", "large"]
RETRIEVERS = ["dense", "dense_learned", "memory", "generative", "parallel", "set", "hybrid"]
PATHS = ["one", "batch", "async", "threads"]
RULES = [Cap("colour", n=2), Where("colour", ["red", "green"]), MMR(0.6), Boost(["i3", "x1"], 0.5), Pin("i4", 2),
         Explore(seed=3, epsilon=0.4)]  # fmt: skip


@dataclass
class Plain:
    """What happened, as lists."""

    bundles: list[Path]
    base: dict[str, list[Event]]
    """What the bundles hold."""
    present: int = 0
    stored: dict[str, list[Event]] = field(default_factory=dict)
    """What was appended."""
    calls: list[dict[str, Any]] = field(default_factory=list)
    """Changes of the catalogue since this bundle came, the first of them being what was brought along."""
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    withdrawn: dict[str, None] = field(default_factory=dict)
    num_changes: int = 0
    versions: dict[str, int] = field(default_factory=dict)
    answers: Recommender | None = None

    def change(self, **call: Any) -> None:
        self.calls.append(call)
        rows = {name: dict(row) for name, row in self.rows.items()}
        for row in call.get("items", ()):
            self.rows.setdefault(row["item_id"], {}).update(row)
        self.withdrawn |= dict.fromkeys(call.get("withdraw", ()))
        for name in call.get("restore", ()):
            self.withdrawn.pop(name)
        self.num_changes += bool(rows != self.rows or call.get("withdraw") or call.get("restore"))
        self.answers = None

    def swap(self, number: int, keep: bool) -> None:
        rows, gone = (list(self.rows.values()), list(self.withdrawn)) if keep else ([], [])
        self.present, self.calls, self.rows, self.withdrawn = number, [], {}, {}
        for call in ({"items": rows}, {"withdraw": gone}):
            if any(call.values()):
                self.change(**call)
        self.num_changes += 1
        self.answers = None

    def recommender(self) -> Recommender:
        """Loaded anew after each change."""
        if self.answers is None:
            self.answers = of_bundle(self.bundles[self.present])
            for call in self.calls:
                self.answers.update_items(**call)
        return self.answers

    def history(self, user: Any) -> list[Event]:
        return [*self.base.get(str(user), []), *self.stored.get(str(user), [])]

    def items(self) -> list[str]:
        return [*ITEMS, *(name for name in self.rows if name in NEW)]


def of_bundle(path: Path, max_bytes: float = 0, host_bytes: float = 0, **settings: Any) -> Recommender:
    """With room for so many states of a full window."""
    bundle = Bundle.open(path)
    store = UserStateStore(bundle.model, model_hash=bundle.model_hash, max_bytes=0, host_bytes=0, page_rows=4)
    full = store.layout.state_bytes(bundle.model.config.window)
    states = UserStateStore(
        bundle.model, model_hash=bundle.model_hash, max_bytes=int(max_bytes * full),
        host_bytes=int(host_bytes * full), page_rows=4,
    )  # fmt: skip
    return Recommender(bundle, clock=lambda: NOW, states=states, **settings)


def assert_same(ours: Page, theirs: Page) -> None:
    assert ours.item_ids == theirs.item_ids
    assert [hit.retriever for hit in ours] == [hit.retriever for hit in theirs]
    assert ours.num_reachable == theirs.num_reachable
    assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=1e-5)
    for one, other in zip(ours, theirs, strict=True):
        assert one.actions == pytest.approx(other.actions, abs=1e-5)
        assert one.propensity == pytest.approx(other.propensity, abs=1e-5)


EVENTS = st.builds(
    Event,
    item_id=st.sampled_from([*ITEMS, *NEW, "nobody's"]),
    actions=st.sampled_from(["click", "like", "click+like", "hide", ""]),
    timestamp=st.sampled_from([None, *range(NOW - 40, NOW)]),
    surface=st.sampled_from(["home", "mail", None]),
)
NAMES = st.lists(st.sampled_from([*ITEMS, *NEW, "nobody's"]), max_size=4, unique=True)
ASKED = st.fixed_dictionaries(
    {
        "user": st.sampled_from(USERS),
        "given": st.sampled_from([False, False, True]),
        "cut": st.sampled_from([0, 0, 1, 3]),
        "cache_key": st.sampled_from(KEYS),
        "new_events": st.lists(EVENTS.filter(lambda event: event.timestamp is not None), max_size=2),
        "retrievers": st.lists(st.sampled_from(RETRIEVERS), min_size=1, max_size=2, unique=True),
        "k": st.integers(2, 12),
        "candidates": st.integers(5, 25),
        "ranking": st.sampled_from([None, "no", "like", {"click": 1.0, "hide": -2.0}]),
        "exclude": NAMES,
        "allow": st.one_of(st.none(), st.none(), st.none(), NAMES.map(lambda names: [*names, *ITEMS[:20]])),
        "exclude_history": st.booleans(),
        "surface": st.sampled_from(["home", "mail", None]),
        "at": st.sampled_from([None, NOW + 1000]),
        "rules": st.lists(st.sampled_from(RULES), max_size=2, unique_by=type),
    }
)


def machine_of(bundles: list[Path], base: dict[str, list[Event]], totals: list[StoreCounts]) -> type:
    """People to whom things happen, a catalogue and bundles that change, little memory."""

    class Serving(RuleBasedStateMachine):
        @initialize()
        def start(self) -> None:
            self.folder = TemporaryDirectory()
            self.store = SqliteHistories(Path(self.folder.name) / "events.sqlite")
            self.rec = of_bundle(bundles[0], 2.6, 1.6, history_source=over_bundle(self.store))
            self.plain = Plain(bundles, base)
            self.now = NOW

        def teardown(self) -> None:
            totals.append(self.rec.state_counts)
            self.store.close()
            self.folder.cleanup()

        @rule(user=st.sampled_from(USERS), events=st.lists(EVENTS, min_size=1, max_size=3))
        def events_happen(self, user: Any, events: list[Event]) -> None:
            self.rec.append_events(user, events)
            mine = self.plain.stored.setdefault(str(user), [])
            mine += [event if event.timestamp is not None else at_once(event) for event in events]

        @rule(user=st.sampled_from(USERS), state_alone=st.booleans())
        def somebody_is_forgotten(self, user: Any, state_alone: bool) -> None:
            self.rec.states.forget([user, str(user)])
            names: list[Any] = [key[1] for key in self.rec.states._tiers.keys()]  # type: ignore[index]
            assert user not in names and str(user) not in names
            if not state_alone:
                self.store.forget(str(user))
                self.plain.stored.pop(str(user), None)

        @rule(asked=st.lists(ASKED, min_size=1, max_size=3), path=st.sampled_from(PATHS))
        def people_ask(self, asked: list[dict[str, Any]], path: str) -> None:
            self.check([self.requests(**fields) for fields in asked], path)

        @rule(asked=st.lists(ASKED, min_size=1, max_size=3), paths=st.tuples(*[st.sampled_from(PATHS)] * 3))
        def people_return(self, asked: list[dict[str, Any]], paths: tuple[str, ...]) -> None:
            asked = [{**fields, "new_events": [], "cut": 0} for fields in asked]
            for path in paths:
                for number, fields in enumerate(asked):
                    self.now += 1
                    self.events_happen(fields["user"], [Event(item_id=f"i{number}", timestamp=self.now)])
                self.check([self.requests(**fields) for fields in asked], path)
                self.check([self.requests(**fields) for fields in asked], "one")

        def check(self, pairs: list[tuple[dict[str, Any], dict[str, Any]]], path: str) -> None:
            pages = answers(self.rec, [ours for ours, _ in pairs], path)
            for (_, theirs), page in zip(pairs, pages, strict=True):
                assert not set(page.item_ids) & set(self.plain.withdrawn)
                assert page.version.split(".")[0] == self.rec.bundle.manifest["checksum"][:16]
                assert self.plain.versions.setdefault(page.version, self.plain.num_changes) == self.plain.num_changes
                assert_same(page, self.plain.recommender().recommend(**theirs))

        def requests(
            self, user: Any, given: bool, cut: int, cache_key: Any, ranking: Any, **fields: Any
        ) -> tuple[dict[str, Any], dict[str, Any]]:
            """What is asked, and the same for somebody who knows nothing but the request."""
            fields |= {"rank": ranking != "no", "rank_by": None if ranking == "no" else ranking}
            history = self.plain.history(user)
            features = {"city": ["Rome", "Oslo"][int(user[1:]) % 2]} if user in base else {}
            if given:
                history = history[: max(0, len(history) - cut)]
                mine = {"history": history, "user_features": features}
            else:
                mine = {"user_id": user}  # chance goes by its name, so nothing is left to chance
                fields["rules"] = [one for one in fields["rules"] if not isinstance(one, Explore)]
            theirs = {**fields, "history": [*history, *fields["new_events"]], "new_events": ()}
            return {**fields, **mine, "cache_key": cache_key}, {**theirs, "user_features": features}

        @rule(name=st.sampled_from(NEW), text=st.sampled_from(TEXTS), side=st.integers(-1, 1))
        def an_item_comes(self, name: str, text: str, side: int) -> None:
            row = {"item_id": name, "title": text, "text": text, "colour": "red", "vec": [1.0, side, 0.0, 0.5]}
            self.change(items=[row])

        @rule(name=st.sampled_from([*ITEMS[:8], *NEW]), text=st.sampled_from(TEXTS))
        def a_text_changes(self, name: str, text: str) -> None:
            if name in self.plain.items():
                self.change(items=[{"item_id": name, "text": text}])

        @rule(names=st.lists(st.sampled_from([*ITEMS, *NEW]), min_size=1, max_size=3, unique=True))
        def items_are_withdrawn(self, names: list[str]) -> None:
            there = [name for name in names if name in self.plain.items() and name not in self.plain.withdrawn]
            if there:
                self.change(withdraw=there)

        @rule(place=st.integers(0, 9))
        def an_item_is_restored(self, place: int) -> None:
            if self.plain.withdrawn:
                self.change(restore=[list(self.plain.withdrawn)[place % len(self.plain.withdrawn)]])

        def change(self, **call: Any) -> None:
            self.rec.update_items(**call)
            self.plain.change(**call)
            assert set(self.rec.withdrawn) == set(self.plain.withdrawn)

        @rule(number=st.integers(0, 2), keep=st.booleans())
        def a_bundle_takes_over(self, number: int, keep: bool) -> None:
            self.rec.swap(bundles[number], keep_updates=keep)
            self.plain.swap(number, keep)
            assert set(self.rec.withdrawn) == set(self.plain.withdrawn)

    return Serving


def at_once(event: Event) -> Event:
    return Event(item_id=event.item_id, actions=event.actions, timestamp=NOW, surface=event.surface)


def answers(rec: Recommender, requests: list[dict[str, Any]], path: str) -> list[Page]:
    """Pages of requests, on one of the ways that lead to them."""
    if path == "one":
        return [rec.recommend(**fields) for fields in requests]
    if path == "batch":
        return rec.recommend_batch(requests)

    async def ask() -> list[Page]:
        async with AsyncRecommender(rec, max_batch=3, num_threads=1 + (path == "threads")) as front:
            return list(await asyncio.gather(*(front.recommend(**fields) for fields in requests)))

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def machine(serving_worlds: Any, other_weights: Path, toy_frames: Any) -> Callable[[list[StoreCounts]], type]:
    base: dict[str, list[Event]] = {}
    for user, item, time, action, surface in toy_frames["interactions"].iter_rows():
        base.setdefault(user, []).append(Event(item_id=item, actions=action, timestamp=time, surface=surface))
    bundles = [serving_worlds[0].bundle, other_weights, serving_worlds[1].bundle]
    return lambda totals: machine_of(bundles, base, totals)


def run(machine: Callable[[list[StoreCounts]], type], **budget: Any) -> StoreCounts:
    totals: list[StoreCounts] = []
    checks = list(HealthCheck)
    run_state_machine_as_test(
        machine(totals), settings=settings(deadline=None, suppress_health_check=checks, database=None, **budget)
    )
    return sum(totals, StoreCounts())


def test_every_page_is_that_of_a_fresh_recommender(machine: Any) -> None:
    counts = run(machine, max_examples=7, stateful_step_count=25, derandomize=True, phases=[Phase.generate])
    assert min(counts.hits, counts.appended, counts.encoded, counts.evicted) > 0, counts


@pytest.mark.slow
def test_every_page_is_that_of_a_fresh_recommender_at_length(machine: Any) -> None:
    counts = run(machine, max_examples=40, stateful_step_count=50)
    assert min(counts.hits, counts.appended, counts.encoded, counts.evicted) > 20, counts
