"""Why a user gets an item, in a few sentences that cite their evidence."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from recsys.errors import InputError
from recsys.events import Event
from recsys.retrieval.explain import Explanation
from recsys.retrieval.rag.citations import MIN_OVERLAP, CheckedAnswer, Entails, check_answer, judged_answer
from recsys.retrieval.rag.evidence import evidence_for, title_of
from recsys.retrieval.rag.passage import Passage
from recsys.retrieval.rag.passage_store import PassageStore
from recsys.retrieval.rag.prompt_lines import load_prompt, numbered, shown_answer
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.rerank.as_data import as_data
from recsys.retrieval.rerank.background_loop import run
from recsys.retrieval.rerank.lm.protocol import LanguageModel
from recsys.retrieval.rerank.lm.usage import Usage
from recsys.retrieval.rerank.prompt import Prompt

__all__ = ["MOST_SENTENCES", "RecommendationReason", "explain_recommendation", "explain_recommendation_async"]

MOST_SENTENCES = 4
_MAX_TOKENS = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendationReason:
    """The sentences and what they stand on."""

    item_id: Any
    text: str
    """At most four sentences; each cites evidence that holds it."""
    written_by: Literal["model", "template"]
    """``template`` where there is no model, or nothing that it wrote stands on the evidence."""
    evidence: tuple[Passage, ...]
    """Number n of a citation is ``evidence[n - 1]``; sources are event, history, probability, item graph, and those of
    the item's passages."""
    citations: CheckedAnswer
    explanation: Explanation = field(repr=False)
    """The exact counterfactuals behind it."""
    model_text: str = ""
    """All that the model wrote."""
    usage: Usage = field(default_factory=Usage)
    notes: tuple[str, ...] = ()


def explain_recommendation(
    recommender: Recommender, user_id: Any = None, item_id: Any = None, **settings: Any
) -> RecommendationReason:
    """As :func:`explain_recommendation_async`, for callers without an event loop (within one it blocks the loop)."""
    return run(explain_recommendation_async(recommender, user_id, item_id, **settings))


async def explain_recommendation_async(
    recommender: Recommender,
    user_id: Any = None,
    item_id: Any = None,
    *,
    history: Sequence[Event] | None = None,
    new_events: Sequence[Event] = (),
    lm: LanguageModel | None = None,
    store: PassageStore | None = None,
    prompt: str | Path | Prompt = "explain",
    retriever: str = "dense",
    at: int | None = None,
    surface: str | None = None,
    user_features: Mapping[str, Any] | None = None,
    max_events: int = 32,
    entails: Entails | None = None,
    min_overlap: float = MIN_OVERLAP,
    deadline: float | None = None,
) -> RecommendationReason:
    """Say why. The evidence is computed and not guessed, and holds no event of anybody else; of what a model writes,
    only sentences that their citations support are kept.

    Args:
        item_id: any item of the catalogue.
        user_id, history, new_events, retriever, at, surface, user_features, max_events: see
            :meth:`Recommender.explain`.
        lm: writes the sentences; None = a template does.
        store: passages about the item; None = the item table alone.
        prompt: name or path of a prompt file with the places ``item`` and ``evidence``.
        entails, min_overlap: see :func:`recsys.retrieval.rag.citations.check_answer`.
        deadline: a reading of :func:`time.monotonic`; past it the template answers.

    Raises:
        InputError, SourceUnavailable: as :meth:`Recommender.explain`.
    """
    words = load_prompt(prompt)
    check_answer("", [], min_overlap=min_overlap)

    def known() -> tuple[Explanation, list[Passage], str]:
        explanation = recommender.explain(
            user_id, item_id, history=history, new_events=new_events, retriever=retriever, at=at, surface=surface,
            user_features=user_features, max_events=max_events,
        )  # fmt: skip
        return (
            explanation,
            evidence_for(recommender, explanation, store=store),
            title_of(recommender, explanation.item_id),
        )

    explanation, evidence, name = await asyncio.to_thread(known)
    template = _template(evidence)
    usage, notes, written, kept = Usage(), list[str](), "", ""
    if lm is not None:
        chat = words.render(
            item=as_data(name, words.option("item_chars", 120)),
            evidence="\n".join(numbered(evidence, words.option("passage_chars", 300))),
        )
        try:
            (said,) = await lm.generate([chat], max_tokens=_MAX_TOKENS, prefill=words.prefill, deadline=deadline)
        except InputError as error:  # the prompt is ours, so that its faults are not the caller's
            notes.append(f"the model gave no answer: {error}")
        else:
            usage, written = said.usage, shown_answer(said.text)
            if said.finish in ("deadline", "error"):
                notes.append(f"the model's text ends early: {said.error or 'the deadline'}")
            checked, more = await asyncio.to_thread(
                judged_answer, written, evidence, min_overlap=min_overlap, entails=entails
            )
            notes += more
            held = [one for one in checked.sentences if one.supported and one.support is not None and not one.unknown]
            kept = " ".join(one.text for one in held[:MOST_SENTENCES])
            citations = CheckedAnswer.of(kept, held[:MOST_SENTENCES], checked.judged_by)
            if left_out := len(checked.sentences) - len(held):
                notes.append(f"{left_out} sentences of the model are not supported by what they cite and left out")
    if not kept:
        citations = check_answer(template, evidence, min_overlap=min_overlap)
    return RecommendationReason(
        item_id=explanation.item_id,
        text=kept or template,
        written_by="model" if kept else "template",
        evidence=tuple(evidence),
        citations=citations,
        explanation=explanation,
        model_text=written,
        usage=usage,
        notes=tuple(notes),
    )


def _template(evidence: Sequence[Passage]) -> str:
    """Pieces of evidence that are one sentence, as they stand, each with its number."""
    wanted = [number for number, one in enumerate(evidence, start=1) if one.source in ("event", "history")][:2]
    wanted += [number for number, one in enumerate(evidence, start=1) if one.source == "probability"]
    wanted += [number for number, one in enumerate(evidence, start=1) if one.source == "item graph"]
    lines = [f"{evidence[number - 1].text.removesuffix('.')} [{number}]." for number in wanted]
    return " ".join(lines[:MOST_SENTENCES])
