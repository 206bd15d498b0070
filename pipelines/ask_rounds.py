"""What ``ask --rounds`` does: an answer from passages, for which a model may look things up several times."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from recsys.errors import InputError, shown
from recsys.pipelines.console import stdout_console
from recsys.retrieval.rag.answer import Answerer
from recsys.retrieval.rag.passage import plain_text
from recsys.retrieval.rag.passage_store import PassageStore
from recsys.retrieval.rag.rounds import AnswerInRounds, RoundAnswerer
from recsys.retrieval.rerank.as_data import as_data
from recsys.retrieval.rerank.lm.protocol import LanguageModel

__all__ = ["answer_in_rounds", "is_whole", "rounds_json", "show_rounds"]

_BUDGET_TOKENS = 6000
_SHOWN_CHARS = 120
"""Of a passage."""


def answer_in_rounds(
    question: str,
    lm: LanguageModel,
    store: PassageStore,
    *,
    rounds: int,
    budget_tokens: int | None,
    deadline_ms: float | None,
) -> AnswerInRounds:
    """Answer a question from passages; see :class:`recsys.retrieval.rag.rounds.RoundAnswerer`.

    Raises:
        InputError: there is no word in the question.
    """
    if not question.strip():
        raise InputError(f"the question must be a text, got {shown(question)}")
    deadline = None if deadline_ms is None else time.monotonic() + deadline_ms / 1000
    answerer = RoundAnswerer(
        Answerer(lm, store), max_rounds=rounds, budget_tokens=budget_tokens or _BUDGET_TOKENS
    )  # fmt: skip
    return answerer.answer(plain_text(question), deadline=deadline)


def is_whole(found: AnswerInRounds) -> bool:
    """Whether the model said all that it had to: also where there was nothing to ask it about."""
    return found.answer.status == "answered" or found.ended == "nothing found"


def rounds_json(found: AnswerInRounds) -> dict[str, Any]:
    """Plain values for a file."""
    answer = found.answer
    checked = answer.citations
    return {
        "kind": "passages",
        "text": answer.text,
        "status": answer.status,
        "ended": found.ended,
        "rounds": [
            {
                "question": one.question,
                "found": [passage.id for passage in one.found],
                "said": one.said,
                "usage": asdict(one.usage),
            }
            for one in found.rounds
        ],
        "passages": [
            {"number": number, "id": one.id, "source": one.source, "item_id": one.item_id, "text": one.text}
            for number, one in enumerate(answer.passages, start=1)
        ],
        "cited": list(checked.cited),
        "usage": asdict(answer.usage),
        "faults": {
            "malformed": int(found.ended == "unreadable"),
            "unknown_citations": len(checked.unknown_citations),
            "unsupported_sentences": len(checked.unsupported) if answer.status in ("answered", "cut") else 0,
            "failed": int(answer.status == "failed"),
        },
        "notes": list(answer.notes),
        "complete": is_whole(found),
        "milliseconds": {"answer": round(1000 * answer.seconds, 1)},
    }


def show_rounds(found: AnswerInRounds) -> None:
    """The answer, what it stands on, and how it came about."""
    console = stdout_console()
    console.print(found.answer.text)
    for number, one in enumerate(found.answer.passages, start=1):
        about = one.source if one.item_id is None else f"{one.source} {one.item_id}"
        console.print(f"[{number}] {as_data(about, 60)}: {as_data(one.text, _SHOWN_CHARS)}")
    for number, later in enumerate(found.rounds[1:], start=2):
        console.print(f"looked up in round {number}: {as_data(later.question, _SHOWN_CHARS)}")
    for note in found.answer.notes:
        console.print(f"note: {note}")
