"""Text from outside stays data: a prompt keeps its structure whatever titles, ids, actions and questions say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from recsys.retrieval.rerank import RerankItem, RerankRequest
from recsys.retrieval.rerank.first import FirstReranker
from recsys.retrieval.rerank.full_list import FullListReranker
from recsys.retrieval.rerank.listwise import ListwiseReranker
from recsys.retrieval.rerank.lm import Chat
from recsys.retrieval.rerank.pairwise import PairwiseReranker
from recsys.retrieval.rerank.pointwise import PointwiseReranker
from recsys.retrieval.rerank.prompted import PromptedReranker

pytest.importorskip("transformers", reason="needs the extra llm")

INJECTIONS = yaml.safe_load((Path(__file__).parent / "hostile" / "injections.yaml").read_text(encoding="utf-8"))
METHODS = [PointwiseReranker, PairwiseReranker, ListwiseReranker, FirstReranker, FullListReranker]
LABEL = re.compile(r"\[(\w+)\] (?=\S)")


def request_with(case: dict[str, Any], harmless: bool = False) -> RerankRequest:
    """Three candidates and two events; the second of each is hostile, and so are action and question."""
    text = "plain words" if harmless else case["text"] * case.get("repeat", 1)
    hostile = "plain" if harmless else case["text"]
    kite, ship = RerankItem(item_id="k", text="kite"), RerankItem(item_id="s", text="ship")
    bad = RerankItem(item_id=hostile) if case.get("id") else RerankItem(item_id="x", text=text)
    if case.get("id"):
        return RerankRequest(candidates=[kite, bad, ship], history=[kite, bad])
    done = [RerankItem(item_id="k", text="car", actions=("like",)), RerankItem(item_id="h", text=text, actions=(text,))]
    return RerankRequest(candidates=[kite, bad, ship], history=done, query=text or None)


def shape(chat: Chat, one_candidate: bool) -> list[str]:
    """Roles, and every line with what is data in it taken out."""
    found: list[str] = [message.role for message in chat]
    for message in chat:
        lines = message.text.split("\n")
        for at, line in enumerate(lines):
            if line.startswith("The user asks for: "):
                continue  # left out where there is no question
            elif line.startswith("- "):
                found.append("- …")
            elif label := LABEL.match(line):
                found.append(f"{label[0]}…")
            elif one_candidate and at == len(lines) - 1 and line.startswith("Item: "):
                found.append("Item: …")
            else:
                found.append(line)
    return found


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in INJECTIONS])
def test_prompts_keep_their_structure(case: dict[str, Any], small_lm: Any) -> None:
    hostile, harmless = request_with(case), request_with(case, harmless=True)
    special = set(small_lm.tokenizer.all_special_ids)
    for method in METHODS:
        reranker: PromptedReranker = method(small_lm)
        one = method is PointwiseReranker
        for chat, twin in zip(reranker.questions(hostile), reranker.questions(harmless), strict=True):
            assert shape(chat, one) == shape(twin, one)
            assert len(chat[-1].text.splitlines()) == len(chat[-1].text.split("\n")), "no other line ends"
            assert len(chat[-1].text) < len(twin[-1].text) + 900, "texts are short"
            # Not even a template that is filled in as plain text sees a special token more.
            counts = []
            for one_chat in (chat, twin):
                messages = [{"role": message.role, "content": message.text} for message in one_chat]
                text = small_lm.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
                counts.append(sum(token in special for token in small_lm.tokenizer.encode(text)))
                assert sum(token in special for token in small_lm.encode_chat(one_chat)) == counts[-1]
            assert counts[0] == counts[1]


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_reads_them_returns_the_candidates(method: Any, small_lm: Any) -> None:
    """Many hostile requests in one batch; of the generating methods fewer, an untrained model talks on."""
    cases = INJECTIONS[::3] if method is FirstReranker else INJECTIONS[::20]
    requests = [request_with(case) for case in cases]
    results = method(small_lm).rerank(requests)
    for request, result in zip(requests, results, strict=True):
        assert set(result.ids) == set(request.ids) and len(result.ids) == 3
        assert result.complete
    harmless = RerankRequest(candidates=requests[0].candidates[::2], history=requests[0].history[:1])
    mixed, alone = method(small_lm).rerank([harmless, *requests[:3]])[0], method(small_lm).rerank([harmless])[0]
    assert mixed.ids == alone.ids, "hostile requests of a batch do not touch the others"


@pytest.mark.slow
@pytest.mark.parametrize("method", [PointwiseReranker, FirstReranker, FullListReranker])
def test_smollm2_returns_the_candidates(method: Any, smollm2_folder: Path) -> None:
    from recsys.retrieval.rerank.lm.local import LocalLanguageModel

    lm = LocalLanguageModel.load(smollm2_folder)
    requests = [request_with(case) for case in INJECTIONS[::20]]
    for request, result in zip(requests, method(lm).rerank(requests), strict=True):
        assert set(result.ids) == set(request.ids) and len(result.ids) == 3 and result.complete
