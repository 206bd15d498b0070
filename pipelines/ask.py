"""The command ``ask``: a question in words, answered with recommendations or facts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from recsys.errors import InputError
from recsys.files import write_json
from recsys.pipelines.console import stderr_console, stdout_console
from recsys.pipelines.language_model import named_model
from recsys.retrieval.rag.ask import Asker
from recsys.retrieval.rag.ask_answer import AskAnswer
from recsys.retrieval.rag.dry_model import DryModel
from recsys.retrieval.rag.passage import estimated_tokens
from recsys.retrieval.rag.prompt_lines import shown_answer
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.rerank.lm.protocol import LanguageModel

__all__ = ["INCOMPLETE", "ask"]

INCOMPLETE = 3
"""Exit code of an answer that a language model should have had a part in and had not."""


def ask(
    question: str,
    bundle: Path | None = None,
    user: str | None = None,
    lm: str | None = None,
    k: int = 5,
    facts: Literal["auto", "yes", "no"] = "auto",
    passages: bool = False,
    deadline_ms: float | None = None,
    dry: bool = False,
    json: Path | None = None,
) -> None:
    """Answer a question in words: recommend items that fit it, or look facts up.

    Facts come from the items and the user's own events alone. Exit code 3: the answer is there, but the language model
    had no part in it that it should have had (an error, the deadline).

    Args:
        question: in words, such as "a puzzle, but no jigsaw puzzle".
        bundle: what `recsys export --histories` wrote.
        user: a user id; default nobody known.
        lm: a language model: the folder of one, or http(s)://host/v1#model of an OpenAI-compatible server, whose key is
            read from RECSYS_API_KEY; default none: rules find the filters.
        k: items to show.
        facts: yes looks facts up, no recommends; auto decides by the question.
        passages: search the items' texts for what no filter says (needs recsys[rag]).
        deadline_ms: after which the language model is not waited for.
        dry: show what a language model would be told, and ask none.
        json: write the answer to this file too.
    """
    if bundle is None:
        raise InputError("--bundle must be given: a folder that `recsys export --histories` wrote")
    model: LanguageModel | None = DryModel() if dry else None if lm is None else named_model(lm)
    recommender = Recommender.load(bundle)
    store = None
    if passages:
        from recsys.retrieval.rag.passage_store import PassageStore
        from recsys.retrieval.rag.passages_of import item_passages

        store = PassageStore.build(item_passages(recommender.items))
    asker = Asker(recommender, model, store=store)
    try:
        wanted = None if facts == "auto" else facts == "yes"
        answer = asker.ask(user, question, k=k, facts=wanted, deadline_ms=deadline_ms)
    finally:
        asker.close()
    if dry:
        _show_prompts(answer)
    else:
        _show(answer)
    if json is not None:
        written = {"user_id": user, "question": question, **answer.as_json()}
        if dry:
            written["prompts"] = [[{"role": one.role, "text": one.text} for one in chat] for chat in answer.prompts]
        write_json(json, written)
    if not dry and not answer.complete:
        raise SystemExit(INCOMPLETE)


def _show(answer: AskAnswer) -> None:
    console = stdout_console()
    console.print(answer.text, markup=False)
    for step in answer.table.steps if answer.table is not None else ():
        console.print(f"query ({step.outcome}): {shown_answer(step.sql or step.error or '')}", markup=False)
    for note in answer.notes:
        console.print(f"note: {note}", markup=False)
    if answer.usage.calls:
        usage = answer.usage
        stderr_console().print(
            f"{usage.calls} calls, {usage.prompt_tokens} tokens read, {usage.generated_tokens} written, "
            f"{1000 * usage.seconds:.0f} ms",
            markup=False,
        )


def _show_prompts(answer: AskAnswer) -> None:
    console = stdout_console()
    for number, chat in enumerate(answer.prompts, start=1):
        tokens = sum(estimated_tokens(message.text) for message in chat)
        console.print(f"--- prompt {number}, at most about {tokens} tokens", markup=False)
        for message in chat:
            console.print(f"{message.role}: {message.text}", markup=False)
    if answer.condition:
        console.print(f"--- filters by rules: {answer.condition}", markup=False)
