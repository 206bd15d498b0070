"""The example service, asked over HTTP: answers, errors, limits, and what outlives its process."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import InputError
from recsys.retrieval.history_sources import SqliteHistories, over_bundle
from recsys.retrieval.recommender import Recommender

httpx = pytest.importorskip("httpx", reason="httpx asks the service")
for package in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason=f"the service needs {package}")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def client(service: Any) -> Iterator[Any]:
    with httpx.Client(base_url=service.url, trust_env=False, timeout=60) as client:
        yield client


def ids(page: Any) -> list[str]:
    """Items of a reply of /recommend or /similar."""
    assert page.status_code == 200, page.text
    return [hit["item_id"] for hit in page.json()["items"]]


def error(reply: Any) -> tuple[int, str]:
    """Status and type of an error reply, which has one line of text."""
    body = reply.json()
    assert set(body) == {"type", "message"} and body["message"] and "\n" not in body["message"]
    return reply.status_code, body["type"]


def click(item_id: str, **fields: Any) -> dict[str, Any]:
    return {"item_id": item_id, "actions": ["click"], **fields}


# -- what it answers -----------------------------------------------------------------------------------------------


def test_a_user_of_the_bundle_gets_a_page_with_titles_probabilities_and_reasons(client: Any) -> None:
    assert client.get("/health").json() == client.get("/ready").json() == {"status": "ok"}
    about = client.get("/about").json()
    assert about["actions"] == ["click", "hide", "like"] and about["num_items"] >= 30 and "u3" in about["user_ids"]
    page = client.post("/recommend", json={"user_id": "u3", "k": 4}).json()
    assert len(page["items"]) == 4 and page["version"] == about["version"]
    first = page["items"][0]
    assert first["title"] == f"title {first['item_id'][1:]}" and set(first["actions"]) == set(about["actions"])
    assert all(0 < chance < 1 for chance in first["actions"].values())
    why = client.post("/explain", json={"user_id": "u3", "item_id": first["item_id"]}).json()
    assert why["score"] == pytest.approx(first["score"], rel=1e-4) and why["reasons"]
    events = client.get("/events", params={"user_id": "u3", "limit": 3}).json()
    assert len(events["events"]) == 3 < events["total"]
    times = [event["timestamp"] for event in events["events"]]
    assert times == sorted(times, reverse=True)
    near = client.get("/similar", params={"item_id": first["item_id"], "k": 5})
    assert len(ids(near)) == 5 and first["item_id"] not in ids(near)


def test_the_very_next_recommendation_knows_an_event(client: Any) -> None:
    assert error(client.get("/events", params={"user_id": "newcomer"})) == (404, "not_found")
    before = ids(client.post("/recommend", json={"user_id": "newcomer"}))
    for _ in range(3):
        seen = ids(client.post("/recommend", json={"user_id": "newcomer"}))[0]
        reply = client.post("/events", json={"user_id": "newcomer", "events": [click(seen)]})
        assert reply.status_code == 201 and reply.json() == {"accepted": 1}
        assert seen not in ids(client.post("/recommend", json={"user_id": "newcomer"}))
        newest = client.get("/events", params={"user_id": "newcomer"}).json()["events"][0]
        assert newest["item_id"] == seen and newest["actions"] == ["click"]
        assert abs(newest["timestamp"] - time.time()) < 60
    assert ids(client.post("/recommend", json={"user_id": "newcomer"})) != before


def test_an_event_with_a_time_may_be_sent_again(client: Any) -> None:
    message = {"user_id": "repeats", "events": [click("i3", timestamp=1_700_000_000)]}
    for _ in range(2):
        assert client.post("/events", json=message).status_code == 201
    assert client.get("/events", params={"user_id": "repeats"}).json()["total"] == 1


def test_rules_and_weights_of_actions_go_over_the_wire(client: Any) -> None:
    rules = [{"rule": "pin", "item": "i7", "place": 1}, {"rule": "explore", "seed": 7, "epsilon": 0.2}]
    page = client.post("/recommend", json={"user_id": "pinned", "rules": rules, "k": 5})
    assert ids(page)[0] == "i7" and page.json()["items"][0]["retriever"] == "pin"
    assert any(hit["propensity"] < 1 for hit in page.json()["items"])
    liked = client.post("/recommend", json={"user_id": "pinned", "rank_by": {"like": 1.0}, "k": 5}).json()["items"]
    chances = [hit["actions"]["like"] for hit in liked]
    assert chances == sorted(chances, reverse=True)
    only = client.post("/recommend", json={"history": [click("i1")], "allow": ["i1", "i2", "i3"], "exclude": ["i2"]})
    assert ids(only) == ["i3"]


def test_metrics_say_what_was_done(client: Any) -> None:
    client.post("/recommend", json={"user_id": "u5"})
    text = client.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain")
    values = dict(line.rsplit(" ", 1) for line in text.text.splitlines() if not line.startswith("#"))
    assert float(values['recsys_requests_total{recommender="default"}']) >= 1
    assert float(values['recsys_cache_bytes{recommender="default",tier="all"}']) > 0
    assert float(values['service_replies_total{route="/recommend",status="200"}']) >= 1
    assert float(values["service_waiting_requests"]) == 0


def test_messages_name_files_without_their_folders(client: Any, toy_bundle: Path) -> None:
    reply = client.post("/items", json={"withdraw": ["/tmp/x/nothing"]})
    assert error(reply) == (400, "bad_request")
    said = reply.json()["message"]
    assert str(toy_bundle.parent) not in said and f"of {toy_bundle.name}" in said and "'/tmp/x/nothing'" in said


# -- what it refuses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "message", "expected"),
    [
        ("/recommend", {"k": 0}, (422, "invalid")),
        ("/recommend", {"k": 10**9}, (422, "invalid")),
        ("/recommend", {"k": 2.5}, (422, "invalid")),
        ("/recommend", {"colour": "red"}, (422, "invalid")),
        ("/recommend", {"user_id": ["u1"]}, (422, "invalid")),
        ("/recommend", {"user_id": "u" * 300}, (422, "invalid")),
        ("/recommend", {"exclude": ["x"] * 10_001}, (422, "invalid")),
        ("/recommend", {"rank_by": {"like": 1e9}}, (422, "invalid")),
        ("/recommend", [], (422, "invalid")),
        ("/recommend", {"user_id": "u1", "history": []}, (400, "bad_request")),
        ("/recommend", {"retrievers": ["guess"]}, (400, "bad_request")),
        ("/recommend", {"rank_by": {"buy": 1}}, (400, "bad_request")),
        ("/recommend", {"rules": [{"rule": "cap", "column": "brand", "n": 2}]}, (400, "bad_request")),
        ("/recommend", {"rules": [{"rule": "guess"}]}, (400, "bad_request")),
        ("/recommend", {"rules": [{"rule": "mmr", "lam": 10**400}]}, (400, "bad_request")),
        ("/recommend", {"rules": [{"rule": "floor", "at_least": -(10**400)}]}, (400, "bad_request")),
        ("/events", {"user_id": "u1", "events": []}, (422, "invalid")),
        ("/events", {"user_id": "u1", "events": [click("i1", timestamp=-1)]}, (422, "invalid")),
        ("/explain", {"user_id": "u1", "item_id": "nothing"}, (404, "not_found")),
        ("/explain", {"user_id": "u1", "item_id": "i1", "retriever": "guess"}, (400, "bad_request")),
        ("/items", {"withdraw": ["nothing"]}, (400, "bad_request")),
        ("/items", {"items": [{"title": "no id"}]}, (400, "bad_request")),
        ("/items", {"items": [{"item_id": "i1", "colour": "red"}]}, (400, "bad_request")),
        ("/nowhere", {}, (404, "not_found")),
        ("/health", {}, (405, "not_allowed")),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_meant_is_a_typed_error(client: Any, path: str, message: Any, expected: tuple[int, str]) -> None:
    assert error(client.post(path, json=message)) == expected


def test_bodies_that_are_no_messages_are_refused(client: Any) -> None:
    json = {"Content-Type": "application/json"}
    for body in (b"{", b"\xff\xfe", b"[" * 100_000, b'{"k": ' + b"9" * 5_000 + b"}"):
        assert error(client.post("/recommend", content=body, headers=json)) == (400, "bad_request")
    for body in (b'{"user_id": "\\ud800"}', b'{"\\ud800": 1}', b'{"rank_by": {"like": NaN}}'):
        assert error(client.post("/recommend", content=body, headers=json)) == (422, "invalid")
    assert error(client.post("/recommend", content=b" " * 2_000_001, headers=json)) == (413, "too_large")
    assert error(client.post("/recommend", content=iter([b"{}"]), headers=json)) == (411, "length_required")
    assert error(client.get("/similar", params={"item_id": "nothing"})) == (404, "not_found")
    assert error(client.get("/similar", params={"item_id": "i1", "k": "many"})) == (422, "invalid")
    assert client.get("/health").status_code == 200


def asked_of_app(toy_bundle: Path, events: Path, limits: dict[str, Any], questions: Callable[[Any], Any]) -> None:
    """Put questions to an application in this process, with other limits than the usual ones."""
    sys.path.append(str(ROOT))
    try:
        from examples.service.app import create_app
        from examples.service.service import Settings
    finally:
        sys.path.remove(str(ROOT))

    async def ask(app: Any) -> None:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://service") as client,
        ):
            await questions(client)

    with SqliteHistories(events) as store:
        recommender = Recommender.load(toy_bundle, history_source=over_bundle(store))
        asyncio.run(ask(create_app(recommender, Settings(**limits))))


def test_beyond_the_queue_there_is_an_answer_at_once(toy_bundle: Path, tmp_path: Path) -> None:
    async def questions(client: Any) -> None:
        asked = [client.post("/recommend", json={"user_id": f"u{row}"}) for row in range(40)]
        replies = await asyncio.gather(*asked)
        served = [reply for reply in replies if reply.status_code == 200]
        turned_away = [reply for reply in replies if reply.status_code != 200]
        assert served and turned_away
        assert all(error(reply) == (503, "overloaded") for reply in turned_away)
        assert all(reply.headers["retry-after"] == "1" for reply in turned_away)
        slow = [client.post("/explain", json={"user_id": "u1", "item_id": "i1"}) for _ in range(5)]
        statuses = [reply.status_code for reply in await asyncio.gather(*slow)]
        assert statuses.count(200) == 2 and statuses.count(503) == 3
        assert (await client.post("/recommend", json={"user_id": "u1"})).status_code == 200

    limits = {"max_queue": 2, "max_batch": 1, "max_slow": 2}
    asked_of_app(toy_bundle, tmp_path / "events.sqlite", limits, questions)


def test_an_answer_that_is_late_and_one_too_many_bodies_are_named(toy_bundle: Path, tmp_path: Path) -> None:
    async def late(client: Any) -> None:
        assert error(await client.post("/recommend", json={"user_id": "u1"})) == (504, "timeout")

    async def many(client: Any) -> None:
        asked = [client.post("/recommend", json={"user_id": f"u{row}"}) for row in range(9)]
        statuses = [reply.status_code for reply in await asyncio.gather(*asked)]
        assert statuses.count(200) == 3 and statuses.count(503) == 6

    async def late_too(client: Any) -> None:
        asked = {"user_id": "u1", "events": [click("i1")]}
        replies = [
            await client.get("/similar", params={"item_id": "i1"}),
            await client.get("/events", params={"user_id": "u1"}),
            await client.get("/ready"),
            await client.post("/events", json=asked),
            await client.post("/explain", json={"user_id": "u1", "item_id": "i1"}),
        ]
        assert [error(reply) for reply in replies] == [(504, "timeout")] * 5

    limits = {"timeout_seconds": 1e-6, "slow_timeout_seconds": 1e-6}
    asked_of_app(toy_bundle, tmp_path / "a.sqlite", limits, late)
    asked_of_app(toy_bundle, tmp_path / "c.sqlite", limits, late_too)
    asked_of_app(toy_bundle, tmp_path / "b.sqlite", {"max_requests": 3}, many)


def test_an_explanation_that_is_late_keeps_its_turn_and_one_that_never_began_does_not(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, asked = threading.Event(), list[Any]()

    def explain(_: Recommender, user_id: Any, *args: Any, **options: Any) -> Any:
        asked.append(user_id)
        assert free.wait(30)
        raise InputError("explained")

    async def questions(client: Any) -> None:
        monkeypatch.setattr(Recommender, "explain", explain)
        late = [client.post("/explain", json={"user_id": user, "item_id": "i1"}) for user in ("u1", "u2")]
        assert [error(reply) for reply in await asyncio.gather(*late)] == [(504, "timeout")] * 2
        assert asked == ["u1"]  # the other one's turn never came
        third = asyncio.create_task(client.post("/explain", json={"user_id": "u3", "item_id": "i1"}))
        await asyncio.sleep(0.1)
        assert asked == ["u1"]  # one at a time, whoever has left
        free.set()
        assert error(await third) == (400, "bad_request") and asked == ["u1", "u3"]

    asked_of_app(toy_bundle, tmp_path / "events.sqlite", {"slow_timeout_seconds": 0.5}, questions)


def test_rules_wait_for_no_store_and_search_no_whole_catalogue(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = tmp_path / "events.sqlite"
    impossible = {"rule": "floor", "at_least": 1.0, "on": "action", "action": "like"}

    async def questions(client: Any) -> None:
        monkeypatch.setattr("examples.service.messages.MAX_CANDIDATES", 7)
        other = sqlite3.connect(events, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        stored = [
            asyncio.create_task(client.post("/events", json={"user_id": f"u{row}", "events": [click("i1")]}))
            for row in range(4)
        ]
        await asyncio.sleep(0.1)
        page = await client.post("/recommend", json={"rules": [impossible], "k": 3})
        assert not any(task.done() for task in stored)
        assert ids(page) == [] and page.json()["notes"][-1] == "the rules left 0 of the 3 items asked for, among 7"
        other.close()
        assert [reply.status_code for reply in await asyncio.gather(*stored)] == [201] * 4

    asked_of_app(toy_bundle, events, {"timeout_seconds": 60.0}, questions)


def test_the_catalogue_is_changed_with_the_token_only(toy_bundle: Path, tmp_path: Path) -> None:
    async def questions(client: Any) -> None:
        change = {"withdraw": ["i1"]}
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret "}):
            reply = await client.post("/items", json=change, headers=given)
            assert error(reply) == (401, "unauthorized") and reply.headers["www-authenticate"] == "Bearer"
        done = await client.post("/items", json=change, headers={"Authorization": "Bearer secret"})
        assert done.status_code == 200 and done.json()["num_withdrawn"] == 1

    asked_of_app(toy_bundle, tmp_path / "events.sqlite", {"admin_token": "secret"}, questions)


def test_histories_that_cannot_be_read_are_unavailable_and_nothing_is_made_up(toy_bundle: Path, tmp_path: Path) -> None:
    events = tmp_path / "events.sqlite"

    async def questions(client: Any) -> None:
        assert (await client.get("/ready")).status_code == 200
        for path in tmp_path.glob("events.sqlite*"):
            path.unlink()
        assert error(await client.get("/ready")) == (503, "unavailable")
        assert error(await client.post("/recommend", json={"user_id": "u1"})) == (503, "unavailable")
        assert (await client.post("/recommend", json={"history": [click("i1")]})).status_code == 200
        assert (await client.get("/health")).status_code == 200

    asked_of_app(toy_bundle, events, {}, questions)


# -- what it promises ----------------------------------------------------------------------------------------------


def test_withdrawn_items_never_come_after_the_reply_and_new_ones_do(client: Any) -> None:
    message = {"user_id": "shopper", "k": 30, "exclude_history": False}
    victim = ids(client.post("/recommend", json=message))[0]
    stop, pages = threading.Event(), list[tuple[float, list[str]]]()

    def ask() -> None:
        while not stop.is_set():
            began = time.monotonic()
            pages.append((began, ids(client.post("/recommend", json=message))))
            near = client.get("/similar", params={"item_id": "i2", "k": 30})
            pages.append((began, ids(near)))

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(ask) for _ in range(4)]
        try:
            time.sleep(0.2)
            reply = client.post("/items", json={"withdraw": [victim]})
            gone = time.monotonic()
            assert reply.status_code == 200 and reply.json()["num_withdrawn"] == 1
            time.sleep(0.3)
        finally:
            stop.set()
        for worker in workers:
            worker.result()
    after = [page for began, page in pages if began > gone]
    assert len(after) > 4 and not any(victim in page for page in after)
    assert any(victim in page for began, page in pages if began < gone)
    version = client.post("/items", json={"restore": [victim]}).json()["version"]
    restored = client.post("/recommend", json=message)
    assert victim in ids(restored) and restored.json()["version"] == version
    fresh = {"item_id": "fresh", "title": "a new train", "text": "red train wood small"}
    assert client.post("/items", json={"items": [fresh]}).json()["num_items"] == 31
    assert "fresh" in ids(client.post("/recommend", json=message | {"k": 31}))
    assert len(ids(client.get("/similar", params={"item_id": "fresh"}))) == 10


def test_many_users_at_a_time_each_see_their_own_clicks(client: Any) -> None:
    def live(user: str) -> list[str]:
        clicked: list[str] = []
        for _ in range(5):
            page = ids(client.post("/recommend", json={"user_id": user, "k": 30}))
            assert not set(page) & set(clicked)
            clicked.append(page[len(clicked)])
            assert client.post("/events", json={"user_id": user, "events": [click(clicked[-1])]}).status_code == 201
        return clicked

    users = [f"crowd-{number}" for number in range(12)]
    with ThreadPoolExecutor(len(users)) as pool:
        clicks = dict(zip(users, pool.map(live, users), strict=True))
    for user, clicked in clicks.items():
        events = client.get("/events", params={"user_id": user}).json()["events"]
        assert sorted(event["item_id"] for event in events) == sorted(clicked)


@pytest.mark.slow
def test_acknowledged_events_outlive_a_kill_and_the_end_waits_for_requests(
    start_service: Callable[..., Any], tmp_path: Path
) -> None:
    events = tmp_path / "events.sqlite"
    first = start_service(events)
    acknowledged: list[tuple[str, int]] = []

    def append(user: str) -> None:
        with httpx.Client(base_url=first.url, trust_env=False) as client:
            for number in range(100_000):
                message = {"user_id": user, "events": [click("i1", timestamp=1_700_000_000 + number)]}
                try:
                    reply = client.post("/events", json=message)
                except httpx.TransportError:
                    return
                assert reply.status_code == 201
                acknowledged.append((user, 1_700_000_000 + number))

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(append, f"writer-{number}") for number in range(4)]
        time.sleep(1)
        os.kill(first.process.pid, signal.SIGKILL)
        for writer in writers:
            writer.result()
    assert len(acknowledged) > 20

    second = start_service(events)
    kept = set()
    for user in {user for user, _ in acknowledged}:
        reply = httpx.get(f"{second.url}/events", params={"user_id": user, "limit": 1000}, trust_env=False).json()
        assert reply["total"] <= 1000
        kept |= {(user, event["timestamp"]) for event in reply["events"]}
    assert set(acknowledged) <= kept

    body = b'{"user_id": "last", "events": [{"item_id": "i4", "actions": ["like"]}]}'
    with socket.create_connection(("127.0.0.1", second.port), timeout=30) as wire:
        wire.sendall(
            b"POST /events HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        assert wire.recv(1000).startswith(b"HTTP/1.1 100")  # the request is under way
        second.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 30
        while "Shutting down" not in second.log.read_text(encoding="utf-8"):
            assert time.monotonic() < until
            time.sleep(0.02)
        wire.sendall(body)
        assert wire.recv(1000).startswith(b"HTTP/1.1 201")
    assert second.process.wait(30) == 0
    with SqliteHistories(events) as store:
        (stored,) = store.events(["last"])
    assert stored is not None and [event.item_id for event in stored] == ["i4"]


# -- the page ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
def test_a_click_on_the_page_changes_the_list(service: Any, client: Any) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        troubles: list[str] = []
        page.on("pageerror", lambda trouble: troubles.append(str(trouble)))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(service.url)
        page.wait_for_selector("#hits > li")
        page.fill("#user", "viewer")
        page.press("#user", "Enter")
        page.wait_for_selector("#history >> text=nothing yet")
        before = page.locator("#hits .top .title").all_inner_texts()
        assert len(before) == 10 and page.locator("#hits > li").first.locator(".chance").count() == 3
        page.locator("#hits > li").first.locator("button.act", has_text="like").click()
        page.wait_for_selector("#hits > li.new")
        after = page.locator("#hits .top .title").all_inner_texts()
        assert before[0] not in after and len(after) == 10
        assert page.locator("#history > li").count() == 1
        assert page.locator("#history .title").inner_text() in before[0]
        page.locator("button.ask").first.click()
        page.wait_for_selector(".why b")
        assert "like: title" in page.locator(".why").first.inner_text()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        browser.close()
    assert troubles == [] and all(url.startswith((service.url, "data:")) for url in asked)
    (event,) = client.get("/events", params={"user_id": "viewer"}).json()["events"]
    assert event["actions"] == ["like"]


def test_titles_go_onto_the_page_as_text(root: Path) -> None:
    page = (root / "examples" / "service" / "page.html").read_text(encoding="utf-8")
    assert "innerHTML" not in page and "http://" not in page and "https://" not in page
