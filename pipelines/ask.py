"""The command ``ask``: a question in words, answered with recommendations, facts, or from passages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from recsys.bundle import Bundle
from recsys.errors import InputError
from recsys.files import check_file_output, write_json
from recsys.pipelines.ask_rounds import answer_in_rounds, is_whole, rounds_json, show_rounds
from recsys.pipelines.console import stderr_console, stdout_console
from recsys.pipelines.language_model import ModelDtype, ModelOptions, cost_text, named_model, usage_text
from recsys.pipelines.passages import open_passages
from recsys.pipelines.rerank_options import RerankOptions
from recsys.retrieval.rag.ask import Asker
from recsys.retrieval.rag.ask_answer import AskAnswer
from recsys.retrieval.rag.dry_model import DryModel, DryReranker
from recsys.retrieval.rag.passage import estimated_tokens
from recsys.retrieval.rag.prompt_lines import shown_answer
from recsys.retrieval.rag.rounds import MOST_ROUNDS
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.rerank.lm.protocol import Chat, LanguageModel
from recsys.retrieval.rerank.lm.usage import Prices, Usage
from recsys.retrieval.rerank.open import NEEDS_LM
from recsys.retrieval.rerank.reranker import Reranker

__all__ = ["INCOMPLETE", "ask"]

INCOMPLETE = 3
"""Exit code of an answer that a language model should have had a part in and had not."""
_SHOWN = 5
"""Items."""


def ask(
    question: str,
    bundle: Path | None = None,
    user: str | None = None,
    lm: str | None = None,
    lm_dtype: ModelDtype | None = None,
    lm_prices: str | None = None,
    lm_timeout_s: float | None = None,
    lm_retries: int | None = None,
    lm_prefill: bool = True,
    k: int | None = None,
    facts: Literal["auto", "yes", "no"] = "auto",
    passages: bool = False,
    store: Path | None = None,
    encoder: Path | None = None,
    sparse_encoder: Path | None = None,
    rerank: str | None = None,
    cross_encoder: Path | None = None,
    feedback: Path | None = None,
    prompt: str | None = None,
    candidates: int | None = None,
    rounds: int | None = None,
    budget_tokens: int | None = None,
    deadline_ms: float | None = None,
    dry: bool = False,
    json: Path | None = None,
) -> None:
    """Answer a question in words: recommend items that fit it, look facts up, or answer from passages.

    Facts come from the items and the user's own events alone. With --rounds a language model answers from passages and
    cites them, and may name what to look up next before it does. Exit code 3: the answer is there, but the language
    model had no part in it, or not all of the part, that it should have had (an error, the
    deadline, a spent budget, an answer cut short).

    Args:
        question: in words, such as "a puzzle, but no jigsaw puzzle".
        bundle: what `recsys export --histories` wrote.
        user: a user id; default nobody known.
        lm: a language model: the folder of one, or http(s)://host/v1#model of an OpenAI-compatible server, whose key is
            read from RECSYS_API_KEY; default none: rules find the filters.
        lm_dtype: numbers that a local model computes with; default bfloat16 on a GPU that has it, else float32, whose
            orders are the same everywhere. Processors with instructions for bfloat16 read prompts twice as fast in it.
        lm_prices: INPUT,CACHED,OUTPUT of a million of its tokens, such as 2.50,1.25,10, to count the cost in the same
            currency; default none, and a cost of 0.
        lm_timeout_s: seconds that a server may take for an answer, all tries together; default 60.
        lm_retries: how often a server that fails is asked again; default 2.
        lm_prefill: for servers that begin anew instead of going on with the beginning of an answer: leave that out.
        k: items to show; default 5.
        facts: yes looks facts up, no recommends; auto decides by the question.
        passages: search the items' texts for what no filter says (needs recsys[rag]).
        store: search passages that `recsys passages` saved instead.
        encoder: folder of the sentence-transformers model that the store was made with.
        sparse_encoder: folder of the SPLADE model that the store was made with.
        rerank: order the page by this method at last, told the question: pointwise, pairwise-all, pairwise-heap,
            pairwise-sliding, listwise, first, full-list, set (these ask --lm), embedding-feedback, cross-encoder.
        cross_encoder: folder of the model of cross-encoder.
        feedback: folder of a trained head of embedding-feedback; default none.
        prompt: name or file of another prompt than the reranker's own.
        candidates: items that are recommended before passages and reranker order them; default 50.
        rounds: answer from passages, in at most so many rounds, up to 5.
        budget_tokens: of prompts and answers of all rounds together; default 6000.
        deadline_ms: after which the language model is not waited for.
        dry: show what a language model would be told, and ask none.
        json: write the answer to this file too.
    """
    model = ModelOptions.of_flags(lm_dtype, lm_prices, lm_timeout_s, lm_retries, lm_prefill)
    model.check(lm)
    reranked = None if rerank is None else RerankOptions(
        method=rerank, lm=lm if rerank in NEEDS_LM else None, cross_encoder=cross_encoder, feedback=feedback,
        prompt=prompt,
    )  # fmt: skip
    searched = "--passages" if passages else None if store is None else "--store"
    _belong("--rerank METHOD", rerank, {"--cross-encoder": cross_encoder, "--feedback": feedback, "--prompt": prompt})
    _belong("--store or --passages", searched, {"--encoder": encoder, "--sparse-encoder": sparse_encoder})
    _belong("--passages, --store or --rerank", searched or rerank, {"--candidates": candidates})
    _belong("--rounds", rounds, {"--budget-tokens": budget_tokens})
    if passages and store is not None:
        raise InputError("--passages makes passages of the items, --store opens saved ones; give one of the two")
    for flag, number in (("--k", k), ("--candidates", candidates), ("--deadline-ms", deadline_ms)):
        if number is not None and not 0 < number < math.inf:
            raise InputError(f"{flag} must be above 0, got {number}")
    shown = _SHOWN if k is None else k
    if candidates is not None and candidates < shown:
        raise InputError(f"--candidates must be at least the {shown} items of --k, got {candidates}")
    if facts == "yes" and (searched or rerank):
        raise InputError(f"{searched or '--rerank'} is for items, and --facts yes asks tables; leave one of them out")
    if json is not None:
        check_file_output(json, "--json")
    if rounds is not None:
        given = {"--user": user, "--k": k, "--rerank": rerank, "--facts": None if facts == "auto" else facts}
        _check_rounds(rounds, budget_tokens, searched, lm is not None or dry, given)
        if store is not None and bundle is not None:
            raise InputError("--bundle: with --rounds the passages of --store are all that is read; leave it out")
    if bundle is None and not (rounds is not None and store is not None):
        raise InputError("--bundle must be given: a folder that `recsys export --histories` wrote")
    talker: LanguageModel | None = DryModel() if dry else None if lm is None else named_model(lm, model)
    if rounds is not None:
        assert talker is not None
        items = None if bundle is None else Bundle.open(bundle).items
        found = answer_in_rounds(
            question, talker, open_passages(items, store, encoder, sparse_encoder), rounds=rounds,
            budget_tokens=budget_tokens, deadline_ms=deadline_ms,
        )  # fmt: skip
        written, usage, complete = rounds_json(found), found.answer.usage, is_whole(found)
        show, condition = lambda: show_rounds(found), ""
    else:
        assert bundle is not None
        rec = Recommender.load(bundle)
        ids = rec.items["item_id"]
        passages_of = open_passages(rec.items, store, encoder, sparse_encoder, known=ids) if searched else None
        asker = Asker(rec, talker, store=passages_of, reranker=_reranker(reranked, rec, talker))
        try:
            answer = asker.ask(
                user, question, k=shown, facts=None if facts == "auto" else facts == "yes", deadline_ms=deadline_ms,
                **({} if candidates is None else {"candidates": candidates}),
            )  # fmt: skip
        finally:
            asker.close()
        written, usage, complete = {"user_id": user, **answer.as_json()}, answer.usage, answer.complete
        show, condition = lambda: _show(answer), answer.condition
    written = {"question": question, **written, **model.priced()}
    if isinstance(talker, DryModel):
        _show_prompts(talker.told, condition, model.prices)
        written["prompts"] = [[{"role": one.role, "text": one.text} for one in chat] for chat in talker.told]
    else:
        show()
        _show_costs(usage, written["faults"], model.prices)
    if json is not None:
        write_json(json, written)
    if not dry and not complete:
        raise SystemExit(INCOMPLETE)


def _belong(to: str, owner: object, flags: Mapping[str, object]) -> None:
    """Refuse flags without the one that they belong to."""
    for flag, value in flags.items():
        if value is not None and owner is None:
            raise InputError(f"{flag} belongs to {to}; give that, or leave it out")


def _check_rounds(
    rounds: int, budget_tokens: int | None, searched: str | None, any_lm: bool, given: Mapping[str, object]
) -> None:
    """Refuse what an answer in rounds lacks, cannot mean, or does not read (``given``)."""
    if not 1 <= rounds <= MOST_ROUNDS:
        raise InputError(f"--rounds must be from 1 to {MOST_ROUNDS}, got {rounds}")
    if budget_tokens is not None and budget_tokens < 1:
        raise InputError(f"--budget-tokens must be at least 1, got {budget_tokens}")
    for flag, value in given.items():
        if value is not None:
            raise InputError(f"{flag}: --rounds answers from passages, for nobody and without items; leave one out")
    if searched is None:
        raise InputError("--rounds looks things up in passages; give --store, or --passages with --bundle")
    if not any_lm:
        raise InputError("--rounds needs a language model; give --lm")


def _reranker(options: RerankOptions | None, rec: Recommender, talker: LanguageModel | None) -> Reranker | None:
    if options is None:
        return None
    if not isinstance(talker, DryModel):
        return options.open(rec.bundle, lm=talker)
    # That of a set takes no other model than its own, which is then loaded and not asked.
    return DryReranker(options.open(rec.bundle, lm=None if options.method == "set" else talker), talker)


def _show(answer: AskAnswer) -> None:
    console = stdout_console()
    console.print(answer.text, markup=False)
    for step in answer.table.steps if answer.table is not None else ():
        console.print(f"query ({step.outcome}): {shown_answer(step.sql or step.error or '')}", markup=False)
    for note in answer.notes:
        console.print(f"note: {note}", markup=False)


def _show_costs(usage: Usage, faults: Mapping[str, int], prices: Prices | None) -> None:
    """What the answer took and what was wrong with those of the model, where it was asked."""
    if usage.calls:
        wrong = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in faults.items() if count)
        stderr_console().print(f"{usage_text(usage, prices)}; faults: {wrong or 'none'}", soft_wrap=True)


def _show_prompts(prompts: Sequence[Chat], condition: str, prices: Prices | None) -> None:
    console = stdout_console()
    if not prompts:
        console.print("--- no prompt: there is nothing that a language model would be asked")
    for number, chat in enumerate(prompts, start=1):
        tokens = sum(estimated_tokens(message.text) for message in chat)
        cost = "" if prices is None else f", {cost_text(prices.cost(tokens, 0, 0))} to read"
        console.print(f"--- prompt {number}, at most about {tokens} tokens{cost}", markup=False)
        for message in chat:
            console.print(f"{message.role}: {message.text}", markup=False)
    if condition:
        console.print(f"--- filters by rules: {condition}", markup=False)
