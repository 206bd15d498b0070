"""A small shop, and a server that says what a test tells it to."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.bundle import Bundle
from recsys.retrieval.recommender import Recommender

CANARY = "canary-of-another-user"


@pytest.fixture(scope="session")
def shop_items() -> pl.DataFrame:
    """30 items with a column of every kind that a filter may name."""
    kinds, makers = ["train", "ship", "car", "doll"], ["Brio", "Märklin & Sons", "J.K. Toymaker", "C++ {Kits}", None]
    tags = ["wood, red", "steel, blue", "wood, science-fiction", "red, science-fiction, small", None, "a.b*c, wood"]
    return pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(30)],
            "title": [f"The {['Red', 'Blue', 'Green'][n % 3]} {kinds[n % 4].title()} Number {n}" for n in range(30)],
            "text": [f"A {kinds[n % 4]} of kind {n}." for n in range(30)],
            "kind": [kinds[n % 4] for n in range(30)],
            "maker": [makers[n % 5] for n in range(30)],
            "tags": [tags[n % 6] for n in range(30)],
            "colors": [["red", "blue"] if n % 2 else ["green"] for n in range(30)],
            "price": [None if n == 7 else float("nan") if n == 8 else 5.0 + 2.5 * n for n in range(30)],
            "year": [1985 + n for n in range(30)],
            "average_rating": [1.0 + (n % 9) / 2 for n in range(30)],
            "in_stock": [None if n == 3 else n % 2 == 0 for n in range(30)],
            "released": [date(1985 + n, 6, 1) for n in range(30)],
        }
    )


@pytest.fixture(scope="session")
def shop(toy_bundle: Path, shop_items: pl.DataFrame) -> Recommender:
    """The toy model over those items. In the histories of all users but u0 and u1 events carry the canary as surface
    and action."""
    bundle = Bundle.open(toy_bundle)
    order = {item_id: row for row, item_id in enumerate(shop_items["item_id"])}
    rows = [order[item_id] for item_id in bundle.items["item_id"]]
    words = bundle.vocabulary
    marked = replace(words, surfaces=(*words.surfaces, CANARY))
    assert bundle.histories is not None
    events = bundle.histories.events
    surface = events.surface.copy()
    own = [int(user) for user in bundle.histories.users.index(["u0", "u1"])]
    for user in range(len(events.offsets) - 1):
        if user not in own:
            surface[events.offsets[user] : events.offsets[user + 1]] = len(words.surfaces)
    histories = replace(bundle.histories, events=replace(events, surface=surface))
    return Recommender(replace(bundle, items=shop_items[rows], vocabulary=marked, histories=histories))


class TalkingServer:
    """A real HTTP server of chat completions whose words are a function's of the conversation."""

    def __init__(self) -> None:
        self.says: Callable[[str], str | int] = lambda told: ""
        """Of everything that was told: the answer, or a status of HTTP to fail with."""
        self.told: list[str] = []
        self.cut = False
        """Whether answers end for their length."""
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                told = "\n".join(str(message["content"]) for message in body["messages"])
                outer.told.append(told)
                said = outer.says(told)
                choice = {"index": 0, "message": {"role": "assistant", "content": said}}
                choice["finish_reason"] = "length" if outer.cut else "stop"
                answer: dict[str, Any] = {
                    "id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice],
                    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
                }  # fmt: skip
                data = json.dumps(answer if isinstance(said, str) else {"error": {"message": "no"}}).encode()
                self.send_response(200 if isinstance(said, str) else said)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture(scope="session")
def _talking() -> Iterator[TalkingServer]:
    server = TalkingServer()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def talking(_talking: TalkingServer) -> TalkingServer:
    """The server, silent and without a memory."""
    _talking.says, _talking.told, _talking.cut = lambda told: "", [], False
    return _talking


@pytest.fixture
def talker(talking: TalkingServer) -> Any:
    """A language model that is that server."""
    pytest.importorskip("openai", reason="needs the extra llm")
    from recsys.retrieval.rerank.lm.server import ServerLanguageModel

    return ServerLanguageModel("m", base_url=talking.url, timeout_s=5, max_retries=0)
