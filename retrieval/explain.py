"""Why an item: what would change if an event had not happened, computed and not guessed.

Every number here is exact. Each event is left out in turn and the history without it encoded anew, as a request with
that history would be; the memory terms of a score are listed one by one as they are added up.

Suffixes: B = histories, E = events left out, A = actions, M = recent positive items, R = relations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.errors import InputError, shown
from recsys.events import History
from recsys.index.memory_terms import MemoryTerms
from recsys.retrieval.dense import DenseRetriever
from recsys.retrieval.memory import MemoryRetriever
from recsys.retrieval.question import Question
from recsys.retrieval.snapshot import Snapshot

__all__ = ["MAX_EVENTS", "EventEffect", "Explanation", "MemoryReason", "explained"]

MAX_EVENTS = 64
"""Events that are left out in turn unless more are asked for; each costs one encoding of the window."""
_ROWS_AT_ONCE = 1 << 13
"""Rows of histories that are encoded together."""


@dataclass(frozen=True, slots=True)
class MemoryReason:
    """One memory term of a score: because of this event, by this relation of the item graph."""

    relation: str
    """``transition``: people went on from the one item to the other. ``text`` and other names: alike in content."""
    value: float
    """Added to the retrieval score."""


@dataclass(frozen=True, slots=True)
class EventEffect:
    """One event of the history, and what it does."""

    place: int
    """In the whole history, 0 = the oldest."""
    item_id: Any
    """The caller's id; None for an item outside the catalogue."""
    actions: tuple[str, ...]
    timestamp: int | None
    """None where it is not known."""
    score_change: float
    """Retrieval score with the event minus without it: above 0 where the event speaks for the item."""
    action_changes: dict[str, float]
    """The same of the probability of every action."""
    memory: tuple[MemoryReason, ...] = ()
    """Memory terms that the score has from this event, whatever else would change without it: without it, an older
    event takes its place."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an item has the score and the probabilities that it has."""

    item_id: Any
    retriever: str
    score: float
    """Of this retriever, as :meth:`Recommender.recommend` returns it; of ``hybrid``, before its head of lists."""
    actions: dict[str, float]
    """Probability of every action."""
    effects: tuple[EventEffect, ...]
    """By the size of the change of the score, largest first; of equal ones the newer event first."""
    num_events: int
    """Of the whole history; more than there are effects where not all were left out."""
    memory: float | None
    """What of the score is memory terms; None for a retriever without."""
    memory_start: float = 0.0
    """What of that a user has who has no event at all."""
    attention: NDArray[np.float32] | None = None
    """[layers, heads, events of the window, oldest first] attention weights of the item's row over the history, where
    asked for. A picture of where the model looks and no explanation: a row that is looked at may change nothing, and
    what it says may have come from any earlier row."""

    @property
    def by_time(self) -> tuple[EventEffect, ...]:
        """The same effects, newest event first."""
        return tuple(sorted(self.effects, key=lambda effect: -effect.place))


@torch.inference_mode()
def explained(
    snapshot: Snapshot, question: Question, item_id: Any, *, max_events: int = MAX_EVENTS, attention: bool = False
) -> Explanation:
    """Leave out one event after another, the newest first.

    Args:
        question: of one retriever; the time and surface of its request stay as they are, whichever event is left out.
        max_events: most events to leave out; those before the window never are.
        attention: keep the attention weights.

    Raises:
        InputError: the catalogue does not hold the item, or ``max_events`` is below 1.
    """
    if isinstance(max_events, bool) or not isinstance(max_events, int) or max_events < 1:
        raise InputError(f"max_events must be a positive integer, got {shown(max_events)}")
    bundle, history = snapshot.bundle, question.history
    words, config = bundle.vocabulary, bundle.model.config
    item = int(words.items.index([item_id])[0])
    if item < 0:
        raise InputError(f"item {shown(item_id)} is not in the catalogue of {bundle.path}")
    # Under `positives_only` the window counts positive events; the cap keeps the work bounded all the same.
    first = 0 if config.positives_only else config.first_visible(len(history))
    places = list(range(len(history)))[first:][::-1][:max_events]
    without = [_without(history, place) for place in places]
    score_B, chance_BA = _scored(snapshot, question, [history, *without], item)
    change_E, change_EA = score_B[0] - score_B[1:], chance_BA[0] - chance_BA[1:]
    reasons, memory, start = _memory(snapshot, question, item)
    effects = []
    for number, place in enumerate(places):
        known = int(history.item[place])
        effects.append(
            EventEffect(
                place=place,
                item_id=words.items.take([known])[0] if known >= 0 else None,
                actions=tuple(name for bit, name in enumerate(words.actions) if int(history.yes[place]) >> bit & 1),
                timestamp=int(history.timestamp[place]) if history.time_known[place] else None,
                score_change=float(change_E[number]),
                action_changes=dict(zip(snapshot.actions, change_EA[number].tolist(), strict=True)),
                memory=reasons.get(place, ()),
            )
        )
    effects.sort(key=lambda effect: (-abs(effect.score_change), -effect.place))
    return Explanation(
        item_id=words.items.take([item])[0],
        retriever=question.request.retrievers[0],
        score=float(score_B[0]),
        actions=dict(zip(snapshot.actions, chance_BA[0].tolist(), strict=True)),
        effects=tuple(effects),
        num_events=len(history),
        memory=memory,
        memory_start=start,
        attention=_attention(snapshot, question, item) if attention else None,
    )


def _without(history: History, place: int) -> History:
    keep = np.ones(len(history), dtype=np.bool_)
    keep[place] = False
    return history.at(keep)


def _scored(
    snapshot: Snapshot, question: Question, histories: Sequence[History], item: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[B] retrieval scores and [B, A] probabilities of an item after each history."""
    bundle, model = snapshot.bundle, snapshot.bundle.model
    retriever = snapshot.retrievers[question.request.retrievers[0]]
    step = max(1, _ROWS_AT_ONCE // max(1, max(map(model.num_visible, histories))))
    score, chance = [], []
    for low in range(0, len(histories), step):
        part = histories[low : low + step]
        user_BK = np.repeat(question.user_K[None], len(part), axis=0)
        states = model.encode(part, user_BK=user_BK, item_ID=snapshot.item_ID)
        item_B1 = torch.full((len(part), 1), item, device=snapshot.device)
        at_B = torch.full_like(item_B1[:, 0], question.at)
        surface_B1 = torch.full_like(item_B1, question.surface)
        request: dict[str, Tensor] = {"at_B": at_B, "surface_B": surface_B1[:, 0]}
        scores_of = getattr(retriever, "scores_of", None)
        if scores_of is None:
            score.append(retriever.scores(states, **request)[:, item])
        else:
            score.append(scores_of(states, item_B1, **request)[:, 0])
        if snapshot.actions:
            feature_BCF = bundle.features().of(states, item_B1, at_B, surface_B1)
            logits = model.rank(states, item_B1, at_B, surface_B1, feature_BCF, snapshot.item_ID)
            chance.append(bundle.calibration.probabilities(logits)[:, 0])
        else:
            chance.append(torch.zeros(len(part), 0))
    return torch.cat(score).double().cpu().numpy(), torch.cat(chance).double().cpu().numpy()


def _memory(
    snapshot: Snapshot, question: Question, item: int
) -> tuple[dict[int, tuple[MemoryReason, ...]], float | None, float]:
    """The terms of every event that has some, their sum with what new users have, and that alone."""
    retriever, config = snapshot.retrievers[question.request.retrievers[0]], snapshot.bundle.model.config
    terms = retriever.memory if isinstance(retriever, DenseRetriever) else retriever
    if not isinstance(terms, (MemoryTerms, MemoryRetriever)):
        return {}, None, 0.0
    history = question.history
    positive_N = np.flatnonzero((history.yes & config.positive_mask != 0) & (history.item >= 0))
    place_M = positive_N[::-1][: config.recent]
    part_MR = terms.parts(torch.from_numpy(history.item[place_M]).to(snapshot.device), item).tolist()
    relations = terms.graph.relations
    reasons = {
        int(place): tuple(MemoryReason(name, value) for name, value in zip(relations, row, strict=True) if value)
        for place, row in zip(place_M, part_MR, strict=False)
    }
    is_new = not snapshot.bundle.model.num_visible(history)
    start = terms.start_value(item) if isinstance(terms, MemoryTerms) and is_new else 0.0
    return reasons, sum(sum(row) for row in part_MR) + start, start


def _attention(snapshot: Snapshot, question: Question, item: int) -> NDArray[np.float32] | None:
    model = snapshot.bundle.model
    states = model.encode([question.history], user_BK=question.user_K[None], item_ID=snapshot.item_ID)
    item_11 = torch.full((1, 1), item, device=snapshot.device)
    at_1 = torch.full_like(item_11[0], question.at)
    layers = model.attention(states, item_11, at_1, torch.full_like(item_11, question.surface))
    weight_YHL = torch.stack([weight_BCHL[0, 0] for weight_BCHL in layers])
    # Layouts with several rows an event: what the rows of one get together.
    scale = model.layout.rows_per_event
    weight_YHE = weight_YHL.unflatten(2, (weight_YHL.shape[2] // scale, scale)).sum(3)
    found: NDArray[np.float32] = weight_YHE.float().cpu().numpy()
    return found
