"""Whatever a model or its server says, a result is a permutation of the candidates, and what was wrong is counted.

The answers come from a real HTTP server that says what a case of ``hostile/*.yaml`` holds.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from recsys.retrieval.rerank import Faults, RerankItem, RerankRequest, RerankResult
from recsys.retrieval.rerank.first import FirstReranker
from recsys.retrieval.rerank.full_list import FullListReranker
from recsys.retrieval.rerank.listwise import ListwiseReranker
from recsys.retrieval.rerank.lm.server import ServerLanguageModel
from recsys.retrieval.rerank.pairwise import PairwiseReranker
from recsys.retrieval.rerank.pointwise import PointwiseReranker
from recsys.retrieval.rerank.reranker import Reranker

pytest.importorskip("openai", reason="needs the extra llm")

HOSTILE = Path(__file__).parent / "hostile"
CANDIDATES = [RerankItem(item_id=1000 + 7 * at, text=f"item {at}") for at in range(5)]
REQUEST = RerankRequest(candidates=CANDIDATES, history=CANDIDATES[:1])
SHORT = RerankRequest(candidates=CANDIDATES[:3])
OTHER = RerankRequest(candidates=CANDIDATES[::-1][:2])


def cases(name: str) -> list[Any]:
    found = yaml.safe_load((HOSTILE / f"{name}.yaml").read_text(encoding="utf-8"))
    assert len({case["name"] for case in found}) == len(found)
    return [pytest.param(case, id=case["name"]) for case in found]


def every_method(lm: ServerLanguageModel) -> list[Reranker]:
    return [
        PointwiseReranker(lm),
        *(PairwiseReranker(lm, sort=sort, top=2) for sort in ("all", "heap", "sliding")),
        ListwiseReranker(lm),
        ListwiseReranker(lm, window=3, step=1),
        FirstReranker(lm),
        FullListReranker(lm),
        FullListReranker(lm, top=2, letters=True),
    ]


def check(result: RerankResult, request: RerankRequest) -> None:
    assert sorted(result.ids) == sorted(request.ids) and result.candidates == request.ids
    if result.scores is not None:
        best_first = sorted(range(len(request.ids)), key=lambda at: -(result.scores or ())[at])
        assert [request.ids[at] for at in best_first] == list(result.ids)
        assert all(abs(score) <= 1e308 for score in result.scores), "scores are numbers"
    assert result.complete is (result.faults.failed == 0)
    assert result.complete or result.notes, "the result says why"
    assert all(len(note) < 400 and "\n" not in note for note in result.notes)


def completion(text: str, finish: str = "stop", logprobs: Any = None) -> str:
    message = {"role": "assistant", "content": text}
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "message": message}
    if logprobs is not None:
        choice["logprobs"] = {"content": [{"token": "x", "logprob": -0.1, "top_logprobs": logprobs}]}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})


def says(server: Any, body: bytes, status: int = 200, length: int | None = None) -> None:
    def answer(handler: Any, count: int) -> None:
        handler.send_response(status)
        handler.send_header("content-type", "application/json")
        handler.send_header("connection", "close")
        handler.send_header("content-length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)

    server.does(answer)


@pytest.fixture(scope="module")
def one_lm(hostile_server: Any) -> ServerLanguageModel:
    return ServerLanguageModel("m", base_url=hostile_server.url, timeout_s=20, max_retries=0)


@pytest.fixture
def lm(one_lm: ServerLanguageModel) -> ServerLanguageModel:
    """A model of the hostile server of which nothing is known yet."""
    one_lm.gives_log_probs = None
    return one_lm


@pytest.mark.parametrize("case", cases("answers"))
def test_answers(case: dict[str, Any], hostile_server: Any, lm: ServerLanguageModel) -> None:
    text = case["answer"] * case.get("repeat", 1)
    says(hostile_server, completion(text, case.get("finish", "stop")).encode())
    letters = case.get("labels") == "letters"
    reranker = FullListReranker(lm, letters=True) if letters else ListwiseReranker(lm)
    (result,) = reranker.rerank([REQUEST])
    check(result, REQUEST)
    assert result.complete and result.usage.calls == 1
    if "order" in case:
        assert [REQUEST.ids.index(item) for item in result.ids] == case["order"]
    if "faults" in case:
        assert result.faults == Faults(**case["faults"])
    elif "order" in case:
        assert not result.faults


EVERY = cases("answers")


@pytest.mark.parametrize(
    "case", [*EVERY[::70], *(pytest.param(*case.values, marks=pytest.mark.slow, id=case.id) for case in EVERY)]
)
def test_answers_to_every_method(case: dict[str, Any], hostile_server: Any, lm: ServerLanguageModel) -> None:
    text = (case["answer"] * case.get("repeat", 1))[:5000]
    says(hostile_server, completion(text, case.get("finish", "stop")).encode())
    for method in every_method(lm):
        for result, request in zip(method.rerank([SHORT, OTHER]), (SHORT, OTHER), strict=True):
            check(result, request)


@pytest.mark.parametrize("case", cases("choices"))
def test_choices(case: dict[str, Any], hostile_server: Any, lm: ServerLanguageModel) -> None:
    special = {"nan": float("nan"), "inf": float("inf")}
    rows = None
    if case["tokens"] is not None:
        rows = [
            {"token": token, "logprob": special[next(iter(value))] if isinstance(value, dict) else value}
            for token, value in case["tokens"]
        ]
    says(hostile_server, completion("A", "length", rows).encode())
    (result,) = FirstReranker(lm).rerank([REQUEST])
    check(result, REQUEST)
    if "order" in case:
        assert [REQUEST.ids.index(item) for item in result.ids] == case["order"]
    if "faults" in case:
        assert result.faults == Faults(**case["faults"])
    if case.get("failed"):
        assert result.faults == Faults(failed=1) and not result.complete
    for method in (PointwiseReranker(lm), PairwiseReranker(lm)):
        check(method.rerank([OTHER])[0], OTHER)


@pytest.mark.parametrize("case", cases("servers"))
def test_servers(case: dict[str, Any], hostile_server: Any, lm: ServerLanguageModel) -> None:
    if case.get("close"):
        hostile_server.does(lambda handler, count: handler.connection.close())
    else:
        body = case["body"].encode("latin-1", "replace") * case.get("repeat", 1)
        says(hostile_server, body, case["status"], case.get("length"))
    for method in (PointwiseReranker(lm), PairwiseReranker(lm), ListwiseReranker(lm), FirstReranker(lm)):
        (result,) = method.rerank([OTHER])
        check(result, OTHER)
        assert not result.complete and result.faults.failed
        assert result.ids == OTHER.ids or result.usage.generated_tokens, "the earlier order"


@pytest.mark.parametrize("late", ["first", "later"])
def test_silence_until_the_deadline(late: str, hostile_server: Any, lm: ServerLanguageModel) -> None:
    """A server that stops answering costs no more than the deadline; what came before it is kept."""

    def answer(handler: Any, count: int) -> None:
        if late == "first" or count > 3:
            hostile_server.closing.wait(8)
            return
        body = completion("2] > [1]").encode()
        handler.send_response(200)
        handler.send_header("connection", "close")
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    for method in every_method(lm):
        hostile_server.does(answer)
        start = time.monotonic()
        (result,) = method.rerank([REQUEST], deadline=start + 0.2)
        assert time.monotonic() - start < 4
        check(result, REQUEST)
        if late == "first":
            assert result.ids == REQUEST.ids and not result.complete
            assert "deadline" in result.notes[0]


def test_words_are_read_where_a_server_has_no_likelihoods(lm_server_without_log_probs: str, lm_server: str) -> None:
    spoken = ServerLanguageModel("m", base_url=lm_server_without_log_probs)
    for method in (PointwiseReranker(spoken), PairwiseReranker(spoken, sort="all")):
        for result in (method.rerank([OTHER])[0], method.rerank([OTHER])[0]):
            check(result, OTHER)
            assert result.complete and any("no log-probabilities" in note for note in result.notes)
    (result,) = FirstReranker(spoken).rerank([REQUEST])
    assert not result.complete and "gives no log-probabilities" in result.notes[0]
    chosen = ServerLanguageModel("m", base_url=lm_server)
    for other in (PointwiseReranker(chosen), PairwiseReranker(chosen, sort="all"), FirstReranker(chosen)):
        (result,) = other.rerank([OTHER])
        check(result, OTHER)
        assert result.complete and not result.notes and asdict(result.usage)["generated_tokens"] >= 0


@pytest.mark.parametrize(
    ("said", "scores"),
    [
        ("Yes", 1.0),
        ("yes.", 1.0),
        (" **No**", 0.0),
        ("No, since", 0.0),
        ("Nothing", None),
        ("", None),
        ("Yesterday", None),
    ],
)
def test_spoken_words(said: str, scores: float | None, hostile_server: Any, lm: ServerLanguageModel) -> None:
    says(hostile_server, completion(said).encode())
    (result,) = PointwiseReranker(lm).rerank([REQUEST])
    assert result.scores == (None if scores is None else (scores,) * 5) and result.ids == REQUEST.ids
    assert result.faults == Faults(malformed=0 if scores is not None else 5)
