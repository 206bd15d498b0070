"""Questions in words to a recommender: a page that fits what was asked, or facts from items and one's own events."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from recsys.errors import InputError, shown
from recsys.events import Event
from recsys.retrieval.page import Hit, Page
from recsys.retrieval.rag.ask_answer import AskAnswer, AskedItem, Turn
from recsys.retrieval.rag.ask_carried import asks_for_others, carried_over, starts_over
from recsys.retrieval.rag.ask_catalogue import AskCatalogue
from recsys.retrieval.rag.ask_facts import answer_facts
from recsys.retrieval.rag.ask_filter import Filter
from recsys.retrieval.rag.ask_model import filters_chat, read_filters, united, without_denied
from recsys.retrieval.rag.ask_negation import THINGS
from recsys.retrieval.rag.ask_reply import checked_reply
from recsys.retrieval.rag.ask_words import asks_for_facts, filters_in, left_words
from recsys.retrieval.rag.ask_work import AskWork
from recsys.retrieval.rag.fused_ranks import fused_ranks
from recsys.retrieval.rag.passage_store import PassageStore
from recsys.retrieval.rag.sql.column_values import Encoder
from recsys.retrieval.rag.sql.limits import SqlLimits
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.rerank.as_data import as_data
from recsys.retrieval.rerank.background_loop import run
from recsys.retrieval.rerank.lm.protocol import LanguageModel
from recsys.retrieval.rerank.prompt import Prompt
from recsys.retrieval.rerank.request import RerankItem, RerankRequest
from recsys.retrieval.rerank.reranker import Reranker, answered
from recsys.retrieval.rerank.result import RerankResult

__all__ = ["Asker", "Conversation", "ask"]

_PROMPTS = Path(__file__).parent / "prompts"
_LONGEST_QUESTION = 2_000
_MOST_TURNS = 20
_MOST_READ = 20
"""Newest events that a reranker reads in words."""
_SOFT = 0.9
"""Part of the time that is left after which a reranker is to come to its end."""
_LATELY = 5
"""Titles of the user's newest items that a reply may speak of."""

_LOGGER = logging.getLogger("recsys.ask")


class Asker:
    """Answers questions about one recommender, from any thread. What it makes of the item table is kept.

    Without a language model rules find the filters and the text is a list; with one, the model finds filters and
    writes a sentence or two, and rules stand by for what it cannot do. An answer holds items of its page only, whatever
    the model says, and no event of anybody but the user who asks is ever read.
    """

    def __init__(
        self,
        recommender: Recommender,
        lm: LanguageModel | None = None,
        *,
        store: PassageStore | None = None,
        reranker: Reranker | None = None,
        encoder: Encoder | None = None,
        sql_limits: SqlLimits | None = None,
        grounded: bool = True,
        filters_prompt: Prompt | None = None,
        reply_prompt: Prompt | None = None,
        sql_prompt: Prompt | None = None,
    ) -> None:
        """Prepare; the item table is read at the first question.

        Args:
            recommender: recommends, and knows the items and the users' events.
            lm: reads and writes; None = rules alone.
            store: passages about the items; what no filter says is searched in them, and the ranks are fused.
            reranker: orders the page at last, told the question.
            encoder: compares wordings with values of columns by meaning as well.
            sql_limits: of queries to tables.
            grounded: False believes filters of the model that no word of the question names.
            filters_prompt, reply_prompt, sql_prompt: other wordings.
        """
        self.recommender, self.lm, self.store, self.reranker = recommender, lm, store, reranker
        self._encoder, self._limits, self._grounded = encoder, sql_limits or SqlLimits(), grounded
        self._filters_prompt = filters_prompt or Prompt.load(_PROMPTS / "ask_filters.yaml")
        self._reply_prompt = reply_prompt or Prompt.load(_PROMPTS / "ask_reply.yaml")
        self._sql_prompt = sql_prompt or Prompt.load(_PROMPTS / "sql.yaml")
        self._lock = threading.Lock()
        self._kept: AskCatalogue | None = None

    def close(self) -> None:
        """Remove what was written for queries."""
        with self._lock:
            if self._kept is not None:
                self._kept.close()
            self._kept = None

    def ask(self, user: Any, question: str, **settings: Any) -> AskAnswer:
        """See :meth:`ask_async`, for callers without an event loop."""
        return run(self.ask_async(user, question, **settings))

    async def ask_async(
        self,
        user: Any,
        question: str,
        *,
        history: Sequence[Event] | None = None,
        turns: Sequence[Turn] = (),
        k: int = 5,
        candidates: int = 50,
        facts: bool | None = None,
        relax: bool = True,
        reply: bool = True,
        deadline_ms: float | None = None,
        **settings: Any,
    ) -> AskAnswer:
        """Answer one question.

        Args:
            user: an id that the recommender's source of histories knows; None with ``history``, or for nobody known.
            question: in words; at most 2,000 characters.
            history: the user's events, instead of stored ones.
            turns: of the conversation so far, oldest first: what they filtered still counts where the question does
                not say otherwise.
            k: items to show.
            candidates: items that are recommended before ``store`` and ``reranker`` order them.
            facts: True asks the tables, False recommends; None = what the question sounds like.
            relax: where no item passes all filters, leave out the least sure one after the other and say so; what the
                question excludes stays excluded.
            reply: whether the model writes sentences; without them the text is the list of items.
            deadline_ms: after which the model is not waited for; what rules know is answered.
            settings: further fields of :class:`recsys.retrieval.request.Request`, such as ``at`` and ``surface``.

        Raises:
            InputError: what :meth:`Recommender.recommend` refuses, an empty or too long question, or a missing extra.
        """
        if not isinstance(question, str) or not question.strip():
            raise InputError(f"the question must be a text, got {shown(question)}")
        if len(question) > _LONGEST_QUESTION:
            raise InputError(f"the question has {len(question)} characters; ask in at most {_LONGEST_QUESTION}")
        if taken := {"allow", "user_id", "new_events"} & set(settings):
            raise InputError(f"{sorted(taken)[0]} cannot be given to ask; it follows from the question and the user")
        if deadline_ms is not None and not deadline_ms > 0:
            raise InputError(f"deadline_ms must be above 0, got {shown(deadline_ms)}")
        question = question.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        work = AskWork(question, None if deadline_ms is None else time.monotonic() + deadline_ms / 1000)
        turns = () if starts_over(question) else tuple(turns)[-_MOST_TURNS:]
        with work.stage("catalogue"):
            catalogue = await asyncio.to_thread(self._catalogue)
        who = {"history": history} if user is None else {"user_id": user}
        if user is not None and history is not None:
            raise InputError("give user or history, not both")
        if asks_for_facts(question) if facts is None else facts:
            events = await asyncio.to_thread(self._events, user, history)
            return await answer_facts(
                work, catalogue, events, self.lm, limits=self._limits, turns=turns, prompt=self._sql_prompt
            )
        filters = await self._filters(work, catalogue, turns)
        page, filters = await self._page(work, catalogue, filters, who, turns, k, candidates, relax, settings)
        return await self._answer(work, catalogue, page, filters, user, history, reply)

    def _catalogue(self) -> AskCatalogue:
        with self._lock:
            if self._kept is None or self._kept.version != self.recommender.version:
                self._kept = AskCatalogue(self.recommender, self._encoder)  # an older one goes with its last question
            return self._kept

    # -- filters ---------------------------------------------------------------------------------------------------

    async def _filters(self, work: AskWork, catalogue: AskCatalogue, turns: Sequence[Turn]) -> list[Filter]:
        columns = catalogue.columns
        with work.stage("words"):
            read_words = await asyncio.to_thread(filters_in, work.question, columns)
        by_rule, work.unread = read_words.filters, read_words.unread
        new: list[Filter] | None = None
        if self.lm is not None:
            with work.stage("filters"):
                matches = columns.values.match(work.question)
                earlier = [turn.question for turn in turns]
                chat = filters_chat(self._filters_prompt, work.question, columns, matches, earlier)
                answer = await work.generate(self.lm, self._filters_prompt, chat)
            if answer is not None:
                text = self._filters_prompt.prefill + answer.text
                read = read_filters(text, work.question, columns, matches, grounded=self._grounded)
                read = without_denied(read, by_rule)
                work.count("malformed", int(read.malformed))
                work.count("dropped_filters", len(read.dropped))
                if read.filters:
                    new = united(read.filters, by_rule)
                    work.notes += read.dropped
                    if not any(one.negate for one in read.filters):
                        work.notes += read_words.unread_notes()
                elif not read.malformed and by_rule:
                    work.count("unused")
        if new is None:
            new = by_rule
            work.notes += [*read_words.notes, *read_words.unread_notes()]
        last = turns[-1].filters if turns else ()
        return carried_over(last, new, work.question)

    async def _page(
        self,
        work: AskWork,
        catalogue: AskCatalogue,
        filters: list[Filter],
        who: dict[str, Any],
        turns: Sequence[Turn],
        k: int,
        candidates: int,
        relax: bool,
        settings: dict[str, Any],
    ) -> tuple[Page, list[Filter]]:
        exclude = list(settings.pop("exclude", ()))
        if turns and asks_for_others(work.question):
            exclude += [item_id for turn in turns for item_id in turn.item_ids]
        wanted = max(k, candidates) if self.store is not None or self.reranker is not None else k
        unused = [] if self.store is not None else left_words(work.question, filters, work.unread)
        unused = [word for word in unused if not re.fullmatch(THINGS, word)]
        columns, page, allow = catalogue.columns, Page((), 0), None

        def recommended(among: Any) -> Page:
            return self.recommender.recommend(**who, k=wanted, allow=among, exclude=exclude, **settings)

        with work.stage("recommend"):
            while True:
                mask = await asyncio.to_thread(columns.mask, filters) if filters else None
                allow = None if mask is None else catalogue.items["item_id"].filter(mask)
                if allow is None or len(allow):
                    page = await asyncio.to_thread(recommended, allow)
                wishes = [one for one in filters if not one.negate]  # what is refused is never shown instead
                if len(page) or not wishes or not relax:
                    break
                least = min(wishes, key=lambda one: (one.source != "earlier", one.score))
                filters = [one for one in filters if one is not least]
                work.notes.append(f"no item was left with “{as_data(str(least), 80)}”, so it was not asked for")
        if filters and not len(page):
            work.notes.append("no item fits all that was asked for")
        if unused:
            work.notes.append(f"without passages nothing was searched for “{as_data(', '.join(unused), 80)}”")
        work.notes += page.notes
        hits = list(page.hits)
        if self.store is not None and work.late():
            work.notes.append("the deadline passed, so passages were not searched")
        elif self.store is not None:
            with work.stage("passages"):
                hits = await self._with_passages(self.store, work, hits, filters, allow, wanted, recommended)
        if self.reranker is not None and len(hits) > 1:
            with work.stage("rerank"):
                hits = await self._reranked(work, catalogue, hits, who, settings)
        return replace(page, hits=tuple(hits[:k])), filters

    async def _with_passages(
        self,
        store: PassageStore,
        work: AskWork,
        hits: list[Hit],
        filters: Sequence[Filter],
        allow: pl.Series | None,
        wanted: int,
        recommended: Callable[[list[Any]], Page],
    ) -> list[Hit]:
        """The hits and items whose passages speak of what no filter says, in one order by reciprocal ranks.

        What passages bring goes through the recommender like everything else, which leaves out what may not be shown.
        """
        words = left_words(work.question, filters, work.unread)
        if not words:
            return hits
        among = None if allow is None else allow.to_list()
        found = await asyncio.to_thread(store.search, " ".join(words), wanted, item_ids=among)
        told = list(dict.fromkeys(one.passage.item_id for one in found if one.passage.item_id is not None))
        if not told:
            return hits
        more = await asyncio.to_thread(recommended, told)
        known = {hit.item_id: hit for hit in (*hits, *more)}
        place = {item_id: at for at, item_id in enumerate(known)}
        lists = {
            "recommender": [place[hit.item_id] for hit in hits],
            "passages": [place[item_id] for item_id in told if item_id in place],
        }
        every = list(known.values())
        return [every[at] for at, _ in fused_ranks(lists)]

    async def _reranked(
        self, work: AskWork, catalogue: AskCatalogue, hits: list[Hit], who: dict[str, Any], settings: dict[str, Any]
    ) -> list[Hit]:
        assert self.reranker is not None
        events = await asyncio.to_thread(self._events, who.get("user_id"), who.get("history"))
        at = settings.get("at")
        texts = catalogue.texts_of([hit.item_id for hit in hits])
        lately = events[-_MOST_READ:]
        past = catalogue.texts_of([event.item_id for event in lately])
        request = RerankRequest(
            candidates=[
                RerankItem(item_id=hit.item_id, text=text, score=-float(at))
                for at, (hit, text) in enumerate(zip(hits, texts, strict=True))
            ],
            history=[
                RerankItem(item_id=event.item_id, text=text, actions=_names(event))
                for event, text in zip(lately, past, strict=True)
            ],
            events=events,
            at=int(time.time()) if at is None and catalogue.real_clock else at,
            surface=settings.get("surface"),
            user_K=catalogue.user_features(who.get("user_id"), settings.get("user_features")),
            query=work.question,
        )
        result = await self._order(work, self.reranker, request)
        if result is None:
            return hits
        work.add_result(result)
        by_id = {hit.item_id: hit for hit in hits}
        return [by_id[item_id] for item_id in result.ids]

    async def _order(self, work: AskWork, reranker: Reranker, request: RerankRequest) -> RerankResult | None:
        """What the reranker says; None, counted and noted, where it fails or says nothing in time."""
        now = time.monotonic()
        left = None if work.deadline is None else work.deadline - now
        try:
            if left is not None and left <= 0:
                raise TimeoutError
            async with asyncio.timeout(left):
                (result,) = await answered(reranker, [request], None if left is None else now + _SOFT * left)
            return result
        except InputError:
            raise
        except TimeoutError:
            why = "did not answer in time"
        except Exception:
            _LOGGER.warning("the reranker %s failed", reranker.name, exc_info=True)
            why = "failed"
        work.complete = False
        work.count("failed")
        work.notes.append(f"the reranker {reranker.name} {why}; the order is that from before it")
        return None

    # -- the answer ------------------------------------------------------------------------------------------------

    async def _answer(
        self,
        work: AskWork,
        catalogue: AskCatalogue,
        page: Page,
        filters: list[Filter],
        user: Any,
        history: Sequence[Event] | None,
        reply: bool,
    ) -> AskAnswer:
        ids = page.item_ids
        titles = catalogue.titles_of(ids)
        items = tuple(
            AskedItem(number=at, item_id=item_id, title=title)
            for at, (item_id, title) in enumerate(zip(ids, titles, strict=True), start=1)
        )
        common = "; ".join(str(one) for one in filters)
        sentences: tuple[str, ...] = ()
        if self.lm is not None and reply and items:
            with work.stage("reply"):
                sentences = await self._reply(work, catalogue, items, common, user, history)
        lines = [*sentences]
        if items:
            if not sentences:
                lines.append(f"{'These fit' if filters else 'For you'}{f' ({common})' if common else ''}:")
            lines += [f"[{item.number}] {as_data(item.title, 200)}" for item in items]
        else:
            lines.append("Nothing was found that fits.")
        return AskAnswer(
            kind="items",
            text="\n".join(lines),
            page=page,
            items=items,
            filters=tuple(filters),
            condition=catalogue.columns.sql(filters) if filters else "",
            sentences=sentences,
            turn=Turn(question=work.question, filters=tuple(filters), item_ids=tuple(ids)),
            **work.gathered(),
        )

    async def _reply(
        self,
        work: AskWork,
        catalogue: AskCatalogue,
        items: Sequence[AskedItem],
        common: str,
        user: Any,
        history: Sequence[Event] | None,
    ) -> tuple[str, ...]:
        assert self.lm is not None
        prompt = self._reply_prompt
        most = prompt.option("max_items", 5)
        told = list(items)[:most]
        texts = catalogue.texts_of([item.item_id for item in told])
        lines = [as_data(text, prompt.option("item_chars", 160)) for text in texts]
        events = await asyncio.to_thread(self._events, user, history)
        lately = catalogue.titles_of([event.item_id for event in events[-_LATELY:] if event.item_id != ""])
        chat = prompt.render(
            items="\n".join(f"[{item.number}] {line}" for item, line in zip(told, lines, strict=True)),
            history=as_data("; ".join(as_data(title, 60) for title in lately), 400),
            filters=as_data(common, 300),
            question=as_data(work.question, 500),
        )
        answer = await work.generate(self.lm, prompt, chat)
        if answer is None:
            return ()
        titles = [as_data(item.title, 200) for item in told]
        text, allowed = prompt.prefill + answer.text, f"{work.question} ; {common}"
        reply = checked_reply(text, titles, lines, catalogue.titles, allowed_words=allowed)
        work.count("dropped_sentences", reply.dropped)
        work.count("unsupported_sentences", reply.unsupported)
        return reply.sentences

    # -- events ------------------------------------------------------------------------------------------

    def _events(self, user: Any, history: Sequence[Event] | None) -> list[Event]:
        if user is None:
            return list(history or ())
        return self.recommender.events_of(user) or []


class Conversation:
    """Questions of one user, each understood with those before it. One thread at a time."""

    def __init__(self, asker: Asker, user: Any, *, history: Sequence[Event] | None = None) -> None:
        self.asker, self.user, self.history = asker, user, history
        self.turns: list[Turn] = []

    def ask(self, question: str, **settings: Any) -> AskAnswer:
        """See :meth:`Asker.ask_async`."""
        answer = self.asker.ask(self.user, question, history=self.history, turns=self.turns, **settings)
        if starts_over(question):
            self.turns.clear()
        self.turns = [*self.turns, answer.turn][-_MOST_TURNS:]
        return answer


def ask(
    recommender: Recommender,
    user: Any,
    question: str,
    lm: LanguageModel | None = None,
    store: PassageStore | None = None,
    **settings: Any,
) -> AskAnswer:
    """One question to a recommender; keep an :class:`Asker` for more, which reads the item table once.

    Args:
        recommender, lm, store: see :class:`Asker`.
        user, question, settings: see :meth:`Asker.ask_async`.
    """
    asker = Asker(recommender, lm, store=store)
    try:
        return asker.ask(user, question, **settings)
    finally:
        asker.close()


def _names(event: Event) -> tuple[str, ...]:
    return tuple(event.actions.split("+")) if isinstance(event.actions, str) else tuple(event.actions)
