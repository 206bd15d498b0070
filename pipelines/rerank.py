"""The command ``rerank``: short lists put in another order, or a look at what a language model would be asked."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.markup import escape
from rich.table import Table

from recsys.errors import InputError
from recsys.events import Event, History
from recsys.files import atomic_file, write_json
from recsys.pipelines.console import progress_bar, stdout_console
from recsys.pipelines.evaluation_lists import read_lists
from recsys.pipelines.id_list import read_ids
from recsys.pipelines.language_model import ModelDtype, ModelOptions, cost_text
from recsys.pipelines.rerank_options import RerankOptions
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.reordering import ShortList
from recsys.retrieval.rerank.chain import RerankChain, request_of
from recsys.retrieval.rerank.cross_encoder import CrossEncoderReranker
from recsys.retrieval.rerank.lm.protocol import Chat, Message
from recsys.retrieval.rerank.lm.usage import Prices
from recsys.retrieval.rerank.prompted import PromptedReranker
from recsys.retrieval.rerank.request import RerankRequest
from recsys.retrieval.user_features import stored_user
from recsys.vocabulary import empty_history

__all__ = ["INCOMPLETE", "rerank"]

INCOMPLETE = 3
"""Exit code where some list has not got a whole answer; all lists are written all the same."""
_AT_ONCE = 8
_MOST_SHOWN = 3
"""Lists that are shown as tables."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A user's list: the known items among its first ones are reordered, everything else keeps its place."""

    user_id: Any
    item_ids: list[Any]
    known: list[int]
    """Places that are reordered."""
    short: ShortList
    notes: tuple[str, ...]
    """Of the retrieval."""


def rerank(
    bundle: Path,
    method: str,
    user: str | None = None,
    users: Path | None = None,
    lists: Path | None = None,
    lm: str | None = None,
    lm_dtype: ModelDtype | None = None,
    lm_prices: str | None = None,
    lm_timeout_s: float | None = None,
    lm_retries: int | None = None,
    lm_prefill: bool = True,
    cross_encoder: Path | None = None,
    feedback: Path | None = None,
    prompt: str | None = None,
    top: int = 20,
    weight: float | None = None,
    deadline_ms: float | None = None,
    retrievers: str = "dense",
    at: int | None = None,
    k: int = 10,
    dry: bool = False,
    output: Path | None = None,
    json: Path | None = None,
) -> None:
    """Put the first items of users' lists in another order, and show what moved.

    The lists are what the bundle retrieves for users whose histories it holds, or anyone's, by --lists. Exit codes: 0
    all lists got a whole answer; 2 bad input; 3 some did not (a deadline, a server's errors), kept their order wholly
    or in part, and are written all the same.

    Args:
        bundle: what `recsys export --histories` wrote.
        method: pointwise, pairwise-all, pairwise-heap, pairwise-sliding, listwise, first, full-list, set,
            embedding-feedback or cross-encoder.
        user: a user id.
        users: or many: Parquet or CSV with a column user_id, or text with one id per line.
        lists: or lists made elsewhere: Parquet with the columns user_id and item_ids (lists, best first).
        lm: the language model: a folder, or http(s)://host/v1#model, whose key is read from RECSYS_API_KEY.
        lm_dtype: numbers that a local model computes with; default bfloat16 on a GPU that has it, else float32, whose
            orders are the same everywhere. Processors with instructions for bfloat16 read prompts twice as fast in it.
        lm_prices: INPUT,CACHED,OUTPUT of a million of its tokens, such as 2.50,1.25,10, to count the cost in the same
            currency; default none, and a cost of 0.
        lm_timeout_s: seconds that a server may take for an answer, all tries together; default 60.
        lm_retries: how often a server that fails is asked again; default 2.
        lm_prefill: for servers that begin anew instead of going on with the beginning of an answer: leave that out.
        cross_encoder: folder of the model of cross-encoder.
        feedback: folder of a trained head of embedding-feedback; default none.
        prompt: name or file of another prompt than the method's own.
        top: how many of the first items are reordered.
        weight: of the reranker's score beside the earlier one; default its order alone.
        deadline_ms: milliseconds for the lists of one call, at most 8; past them lists keep their order.
        retrievers: who finds the items, A,B, where no lists are given.
        at: time of the requests; default the wall clock, or the last event's time.
        k: items shown of a list.
        dry: show what the language model would be asked first about the first list, and its tokens; no model is called.
            With --json these questions are written, too.
        output: write the lists in their new order, as Parquet that `recsys evaluate --lists` reads.
        json: write orders, tokens, times and faults to this file.
    """
    if sum(given is not None for given in (user, users, lists)) != 1:
        raise InputError("give one of --user, --users and --lists to say whose lists")
    for flag, number in (("--k", k), ("--deadline-ms", deadline_ms)):
        if number is not None and not number > 0:
            raise InputError(f"{flag} must be above 0, got {number}")
    if dry and output is not None:
        raise InputError("--output: a dry view puts nothing in order; leave it out, or leave out --dry")
    model = ModelOptions.of_flags(lm_dtype, lm_prices, lm_timeout_s, lm_retries, lm_prefill)
    options = RerankOptions(
        method=method, lm=lm, model=model, cross_encoder=cross_encoder, feedback=feedback, prompt=prompt, top=top,
        weight=weight,
    )  # fmt: skip
    rec = Recommender.load(bundle)
    if at is None and rec.bundle.vocabulary.clock == "real":
        at = int(time.time())  # one time for all lists, for who finds the items and for who reorders them
    if lists is not None:
        asked = list(_given(rec, lists, top, at))
    else:
        wanted = [user] if users is None else read_ids(users, "user_id", "--users").to_list()
        names = tuple(name.strip() for name in retrievers.split(","))
        asked = list(_retrieved(rec, wanted, names, top, at))
    if not asked:
        raise InputError("there is no list to rerank: the file names nobody")
    reranker = options.open(rec.bundle)
    chain = RerankChain(reranker, top=top, weight=weight, deadline_ms=deadline_ms)
    if dry:
        request = request_of(asked[0].short, chain.history_events)
        chats = _show_prompts(reranker, request, asked[0].user_id, model.prices)
        if json is not None:
            prompts = [[{"role": one.role, "text": one.text} for one in chat] for chat in chats]
            write_json(json, {"settings": options.identity(), "user_id": asked[0].user_id, "prompts": prompts})
        return
    answers = list(_answers(chain, asked))
    if output is not None:
        frame = pl.DataFrame({"user_id": [one.user_id for one in asked], "item_ids": [ids for ids, _, _ in answers]})
        with atomic_file(output) as partial:
            frame.write_parquet(partial)
    if json is not None:
        write_json(json, {"settings": options.identity(), **model.priced(), **_as_json(asked, answers)})
    for one, (ids, _, notes) in list(zip(asked, answers, strict=True))[:_MOST_SHOWN]:
        _show(rec, one, ids[:k], notes)
    _show_sums(asked, answers, model.prices)
    if any(counts.get("rerank_failed") for _, counts, _ in answers):
        raise SystemExit(INCOMPLETE)


Answer = tuple[list[Any], dict[str, int], tuple[str, ...]]
"""Ids in their new order, counts, notes."""


def _retrieved(
    rec: Recommender, users: Sequence[Any], retrievers: tuple[str, ...], top: int, at: int | None
) -> Iterator[_Asked]:
    """What the bundle retrieves for users, with their histories."""
    pages = rec.recommend_batch(
        [{"user_id": one, "k": top, "retrievers": retrievers, "at": at, "rank": False} for one in users]
    )
    several = len(set(retrievers)) > 1
    for user_id, page in zip(users, pages, strict=True):
        scores = [1.0 / place if several else hit.score for place, hit in enumerate(page, start=1)]
        yield _asked(rec, user_id, page.item_ids, scores, top, at, page.notes)


def _given(rec: Recommender, lists: Path, top: int, at: int | None) -> Iterator[_Asked]:
    """Anyone's lists: the item at place p counts 1 / p."""
    for user_id, item_ids in read_lists(lists).iter_rows():
        if len(set(item_ids)) < len(item_ids):
            raise InputError(f"--lists: the list of user {user_id!r} holds an item twice; give every item once")
        yield _asked(rec, user_id, item_ids, [1.0 / place for place in range(1, len(item_ids) + 1)], top, at)


def _asked(
    rec: Recommender,
    user_id: Any,
    item_ids: list[Any],
    scores: Sequence[float],
    top: int,
    at: int | None,
    notes: tuple[str, ...] = (),
) -> _Asked:
    bundle = rec.bundle
    events: list[Event] = rec.events_of(user_id) or []
    history: History = bundle.vocabulary.history(events) if events else empty_history()
    row_K = bundle.vocabulary.items.index(item_ids)
    known = np.flatnonzero(row_K >= 0)[:top]
    last = int(history.timestamp[-1]) if len(history) else bundle.vocabulary.max_timestamp
    short = ShortList(
        items=bundle.items,
        words=bundle.vocabulary,
        row_C=row_K[known],
        score_C=np.asarray(scores, dtype=np.float64)[known],
        history=history,
        at=last if at is None else at,
        user_K=stored_user(bundle, user_id),
    )
    return _Asked(user_id, list(item_ids), known.tolist(), short, notes)


def _answers(chain: RerankChain, asked: Sequence[_Asked]) -> Iterator[Answer]:
    with progress_bar(f"rerank: {chain.reranker.name}", len(asked), unit="lists") as advance:
        for low in range(0, len(asked), _AT_ONCE):
            part = asked[low : low + _AT_ONCE]
            orders = chain.reorder([one.short for one in part], deadline=None)
            for one, order in zip(part, orders, strict=True):
                ids = list(one.item_ids)
                for place, at in zip(one.known, order.places, strict=True):
                    ids[place] = one.item_ids[one.known[at]]
                yield ids, order.counts, (*one.notes, *order.notes)
            advance(len(part))


def _as_json(asked: Sequence[_Asked], answers: Sequence[Answer]) -> dict[str, Any]:
    lists = [
        {
            "user_id": one.user_id,
            "item_ids": ids,
            "item_ids_before": one.item_ids,
            "notes": list(notes),
            **{name.removeprefix("rerank_"): count for name, count in counts.items()},
        }
        for one, (ids, counts, notes) in zip(asked, answers, strict=True)
    ]
    return {"lists": lists, "sums": _sums(answers), "changed": _changed(asked, answers)}


def _sums(answers: Sequence[Answer]) -> dict[str, int]:
    names = dict.fromkeys(name for _, counts, _ in answers for name in counts)
    return {name.removeprefix("rerank_"): sum(counts.get(name, 0) for _, counts, _ in answers) for name in names}


def _changed(asked: Sequence[_Asked], answers: Sequence[Answer]) -> float:
    """Share of lists whose first ten differ."""
    return sum(ids[:10] != one.item_ids[:10] for one, (ids, _, _) in zip(asked, answers, strict=True)) / len(asked)


def _show(rec: Recommender, one: _Asked, ids: Sequence[Any], notes: Sequence[str]) -> None:
    table = Table(title=escape(f"for user {one.user_id}"), title_justify="left")
    titles: list[str | None] = [None] * len(ids)
    if "title" in rec.items.columns:
        rows = rec.bundle.vocabulary.items.index(ids)
        found = rec.items["title"].gather(np.maximum(rows, 0)).to_list()
        titles = [title if row >= 0 else None for title, row in zip(found, rows, strict=True)]
    for name in ("", "before", "item", *(["title"] if any(titles) else [])):
        table.add_column(name, justify="left" if name in ("item", "title") else "right", overflow="fold")
    for place, (item_id, title) in enumerate(zip(ids, titles, strict=True), start=1):
        before = one.item_ids.index(item_id) + 1
        moved = f"{before}" if before == place else f"{before} {'↑' if before > place else '↓'}"
        table.add_row(str(place), moved, escape(str(item_id)), *([escape(title or "")] if any(titles) else []))
    console = stdout_console()
    console.print(table)
    for note in notes:
        console.print(f"note: {note}", markup=False)


def _show_sums(asked: Sequence[_Asked], answers: Sequence[Answer], prices: Prices | None) -> None:
    sums = _sums(answers)
    cost = "" if prices is None else f"{cost_text(sums.get('cost_millionths', 0) / 1e6)}; "
    faults = [
        f"{sums[name]} {name}" for name in ("missing", "repeated", "foreign", "malformed", "failed") if sums.get(name)
    ]
    changed = f"the first ten of {_changed(asked, answers):.0%} changed"
    stdout_console().print(
        f"{len(asked):,} lists, {changed}; {sums.get('calls', 0):,} calls, "
        f"{sums.get('prompt_tokens', 0):,} prompt tokens ({sums.get('reused_tokens', 0):,} reused), "
        f"{sums.get('generated_tokens', 0):,} generated, {sums.get('model_ms', 0):,} ms of the model; {cost}"
        f"faults: {', '.join(faults) or 'none'}",
        markup=False,
    )


def _show_prompts(reranker: Any, request: RerankRequest, user_id: Any, prices: Prices | None) -> list[Chat]:
    """The first questions about a list, as chats, the first one printed with its tokens."""
    console = stdout_console()
    if not isinstance(reranker, PromptedReranker):
        console.print(f"{reranker.name} asks no language model; it reads {len(request.candidates)} items of user "
                      f"{user_id} and {len(request.events)} events", markup=False)  # fmt: skip
        if not isinstance(reranker, CrossEncoderReranker):
            return []
        query = reranker.query(request)
        console.rule("read beside each item", align="left")
        console.print(query, markup=False)
        console.rule()
        return [[Message("user", query)]]
    chats = reranker.questions(request)
    console.print(
        f"{reranker.name} would first ask {len(chats)} questions about the list of user {user_id}", markup=False
    )
    for chat in chats[:1]:
        for message in chat:
            console.rule(message.role, align="left")
            console.print(message.text, markup=False)
        if reranker.prompt.prefill:
            console.rule("assistant begins with", align="left")
            console.print(reranker.prompt.prefill, markup=False)
        console.rule()
    tokens = [sum(reranker.lm.count_tokens([message.text for message in chat])) for chat in chats]
    if tokens:
        cost = "" if prices is None else f"; {cost_text(prices.cost(sum(tokens), 0, 0))} to read them all"
        console.print(
            f"about {tokens[0]:,} tokens in this question, {sum(tokens):,} in all of them, without those of the chat "
            f"template; the model reads up to {reranker.lm.context_tokens:,}{cost}",
            markup=False,
        )
    return chats
