"""Servers for the language-model tier: one over a model's own forward pass, one that does what a test says; a small
model, and lists to put in order."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from recsys.retrieval.rerank import RerankItem, RerankRequest

if TYPE_CHECKING:
    from recsys.retrieval.rerank.lm.local import LocalLanguageModel

WORDS = ["red", "green", "blue", "train", "ship", "car", "wood", "steel", "small", "large", "kite"]


def completions_app(folder: Path, *, log_probs: bool = True) -> Any:
    """An app that answers chat completions by transformers alone, with log-probabilities, greedily."""
    import torch
    from fastapi import FastAPI
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    lock = threading.Lock()
    app = FastAPI()

    @app.post("/v1/chat/completions")
    def complete(body: dict[str, Any]) -> dict[str, Any]:
        messages, most = body["messages"], int(body["max_tokens"])
        goes_on = messages[-1]["role"] == "assistant"
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not goes_on, continue_final_message=goes_on
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        num_prompt = ids.shape[1]
        content, reason, answer = [], "length", ""
        with lock, torch.inference_mode():
            for _ in range(most):
                log_prob_V = model(ids).logits[0, -1].log_softmax(-1)
                token = int(log_prob_V.argmax())
                top = log_prob_V.topk(min(int(body.get("top_logprobs") or 1), log_prob_V.numel()))
                rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
                named: list[dict[str, Any]] = [
                    {"token": tokenizer.decode([at]), "logprob": value} for at, value in rows
                ]
                content.append({**named[0], "top_logprobs": named})
                if token == tokenizer.eos_token_id:
                    reason = "stop"
                    break
                ids = torch.cat([ids, torch.tensor([[token]])], 1)
                answer = str(tokenizer.decode(ids[0, num_prompt:], skip_special_tokens=True))
                ends = [answer.find(stop) for stop in body.get("stop") or [] if stop in answer]
                if ends:
                    answer, reason = answer[: min(ends)], "stop"
                    break
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": answer},
            "finish_reason": reason,
        }
        if body.get("logprobs") and log_probs:
            choice["logprobs"] = {"content": content}
        used = {"prompt_tokens": num_prompt, "completion_tokens": ids.shape[1] - num_prompt}
        return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": used}

    return app


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """The base URL of an app that runs in a thread."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(500):
        if server.started:
            break
        time.sleep(0.02)
    assert server.started
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="session")
def lm_server(small_lm_folder: Path) -> Iterator[str]:
    """Base URL of the small model behind a real HTTP server that gives log-probabilities."""
    for name in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(name, reason="needs the extras llm and serve-example")
    with served(completions_app(small_lm_folder)) as url:
        yield url


@pytest.fixture(scope="session")
def lm_server_without_log_probs(small_lm_folder: Path) -> Iterator[str]:
    """The same, of a server that silently leaves log-probabilities out."""
    for name in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(name, reason="needs the extras llm and serve-example")
    with served(completions_app(small_lm_folder, log_probs=False)) as url:
        yield url


Behaviour = Callable[[http.server.BaseHTTPRequestHandler, int], None]


class HostileServer:
    """A server whose answer to its n-th request is a function's doing."""

    def __init__(self) -> None:
        self.behaviour: Behaviour = lambda handler, count: None
        self.requests = 0
        self.bodies: list[bytes] = []
        """Of the requests."""
        self.closing = threading.Event()
        """Set when the server ends; what sleeps should wait for it."""
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.body = self.rfile.read(int(self.headers.get("content-length", 0)))
                outer.bodies.append(self.body)
                outer.requests += 1
                self.close_connection = True
                with contextlib.suppress(OSError):
                    outer.behaviour(self, outer.requests)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def does(self, behaviour: Behaviour) -> HostileServer:
        """From now on this, counted from the first request."""
        self.behaviour, self.requests, self.bodies = behaviour, 0, []
        return self


@pytest.fixture(scope="session")
def hostile_server() -> Iterator[HostileServer]:
    """A real HTTP server that misbehaves as told: ``hostile_server.does(lambda handler, count: …)``."""
    server = HostileServer()
    yield server
    server.closing.set()
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture(scope="session")
def small_lm(small_lm_folder: Path) -> LocalLanguageModel:
    """The untrained small model."""
    from recsys.retrieval.rerank.lm.local import LocalLanguageModel

    return LocalLanguageModel.load(small_lm_folder, device="cpu", dtype="float32")


def made_request(count: int, seed: int = 0, history: int = 3) -> RerankRequest:
    """A list of made items; ids are numbers that have nothing to do with places or labels."""
    items = [
        RerankItem(item_id=1000 + 7 * at, text=f"{WORDS[(at * 5 + seed) % 11]} {WORDS[(at + seed) % 11]} {at}")
        for at in range(count + history)
    ]
    return RerankRequest(candidates=items[:count], history=items[count:])


@pytest.fixture(scope="session")
def requests_of_many_lengths() -> list[RerankRequest]:
    """From nothing to more than a window."""
    return [made_request(count, seed) for seed, count in enumerate([0, 1, 2, 7, 20, 21, 45])]


@pytest.fixture(scope="session")
def few_requests() -> list[RerankRequest]:
    """Two short lists, an empty one, and one of one candidate."""
    return [made_request(5), made_request(0), made_request(1), made_request(4, seed=3, history=0)]
