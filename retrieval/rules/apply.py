"""From candidates to pages by the rules of each request; fetches more candidates where rules leave too few.

A request's pool is its best n candidates, n being the first of C, 2C, 4C, … that gives k items, or everything that the
retrievers reach; ``Request.max_candidates`` bounds it. What decides for caps and floors alone is the order of the
scores, so that the page is the one that the same rules give over the whole catalogue.

A reranker comes before the rules: it changes the order of the first candidates, and which of them has which place's
score for boosts, diversity and chance to work on. Floors look at each item's own figures. So whatever a rule promises
holds for a reranked page too.

Suffixes: B = requests, C = candidates of a request, A = actions, D = width of item vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.retrieval.question import Found, Ints, Question, action_weights
from recsys.retrieval.reordering import Reordered, ShortList
from recsys.retrieval.rules.rule import LARGEST, Explore, Floor, Freshness
from recsys.retrieval.rules.selection import select
from recsys.retrieval.snapshot import Snapshot
from recsys.vocabulary import id_text

__all__ = ["Chosen", "Look", "Probabilities", "Reorder", "choose_pages"]

_TOGETHER = 1 << 16
"""Candidates looked at in one pass where some requests need more than others."""

Probabilities = NDArray[np.float32] | None
"""[C, A]; None where none were asked for."""
Look = Callable[[list[int], list[Question]], tuple[list[Found], list[Probabilities]]]
"""Candidates of some requests, by their places in the batch, with probabilities."""
Reorder = Callable[[dict[int, ShortList]], dict[int, Reordered]]
"""Asks the rerankers of some requests, by their places in the batch."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The items of one page, in order."""

    found: Found
    probability: Probabilities
    propensity: list[float]
    num_candidates: int
    """Candidates that they were chosen among."""
    notes: tuple[str, ...] = ()
    reranker_notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Pool:
    question: Question
    found: Found
    probability: Probabilities
    place_score_C: NDArray[np.float64] | None = None
    """Of the places, falling, where a reranker has put the candidates in their order; None = each has its own."""
    reranker_notes: tuple[str, ...] = ()
    is_sorted: bool = True
    """Whether no item that the retriever did not bring has a higher score than one that it did."""

    @property
    def is_all(self) -> bool:
        """Whether a wider search brings nothing that could be shown."""
        question = self.question
        if len(self.found) < question.num_wanted or question.num_wanted >= _most(question):
            return True
        floors = [floor.at_least for floor in question.rules.floors if floor.on == "retrieval"]
        return self.is_sorted and bool(floors) and min(hit[1] for hit in self.found) < max(floors)


def choose_pages(snapshot: Snapshot, questions: Sequence[Question], look: Look, reorder: Reorder) -> list[Chosen]:
    """The items to show for every question.

    Args:
        snapshot: what answers.
        questions: of one batch.
        look: searches and ranks.
        reorder: asks rerankers; a list that was reordered once is not asked about again.
    """
    pinned = _pinned(snapshot, questions, look)
    chosen: dict[int, Chosen] = {}
    asked = dict(enumerate(questions))
    said: dict[int, tuple[bytes, Reordered]] = {}
    together = len(asked)
    while asked:
        rows, asked_again = list(asked), dict[int, Question]()
        for part in (rows[low : low + together] for low in range(0, len(rows), together)):
            found, probability = look(part, [asked[row] for row in part])
            pools = {
                row: _Pool(asked[row], hits, chances, is_sorted=_is_sorted(snapshot, asked[row]))
                for row, hits, chances in zip(part, found, probability, strict=True)
            }
            for row, one in _reranked(snapshot, pools, reorder, said).items():
                # Chance has no say in how many candidates there are, or propensities would not be those of the draw.
                made = _choose(snapshot, one, pinned.get(row), explore=None)
                if len(made.found) < one.question.request.k and one.question.rules.may_run_short and not one.is_all:
                    more = min(2 * one.question.num_wanted, _most(one.question))
                    asked_again[row] = replace(one.question, num_wanted=more)
                elif explore := one.question.rules.explore:
                    chosen[row] = _choose(snapshot, one, pinned.get(row), explore=explore)
                else:
                    chosen[row] = made
        asked = asked_again
        widest = max((question.num_wanted for question in asked.values()), default=1)
        together = max(1, _TOGETHER // widest)
    return [chosen[row] for row in range(len(questions))]


def _is_sorted(snapshot: Snapshot, question: Question) -> bool:
    """Beams and unions of searches are no beginning of the sorted catalogue, other searches are."""
    return not any(snapshot.retrievers[name].lists_only for name in question.request.retrievers)


def _most(question: Question) -> int:
    """Candidates that a search for this question can be asked for."""
    limit = question.request.max_candidates
    return question.num_reachable if limit is None else min(question.num_reachable, max(limit, question.request.k))


def _pinned(snapshot: Snapshot, questions: Sequence[Question], look: Look) -> dict[int, _Pool]:
    """The pinned items of the questions that have some, as their retrievers or else ``dense`` score them."""
    asked: dict[int, Question] = {}
    for row, question in enumerate(questions):
        if not question.rules.pins:
            continue
        items = np.setdiff1d(np.array(list(question.rules.pins.values()), dtype=np.int64), question.exclude_E)
        items = np.setdiff1d(items, snapshot.bundle.withdrawn_G)
        if question.allow_N is not None:
            items = np.intersect1d(items, question.allow_N)
        if len(items):
            retrievers = tuple(dict.fromkeys((*question.request.retrievers, "dense")))
            asked[row] = replace(
                question,
                request=replace(question.request, retrievers=retrievers, rules=()),
                allow_N=items,
                allow_key=items.tobytes(),
                num_wanted=len(items),
                num_reachable=len(items),
            )
    if not asked:
        return {}
    pools = zip(*look(list(asked), list(asked.values())), strict=True)
    return {row: _Pool(asked[row], *pool) for row, pool in zip(asked, pools, strict=True)}


def _reranked(
    snapshot: Snapshot, pools: dict[int, _Pool], reorder: Reorder, said: dict[int, tuple[bytes, Reordered]]
) -> dict[int, _Pool]:
    """Pools whose first candidates are in the order of the requests' rerankers; ``said`` is what these said so far."""
    lists: dict[int, ShortList] = {}
    ordered: dict[int, _Pool] = {}
    for row, pool in pools.items():
        question = pool.question
        reranker = question.request.reranker
        if reranker is None or len(pool.found) < 2:
            continue
        score_C = _scores(snapshot, pool).astype(np.float64)
        as_found = question.request.rank_by is None and not question.request.rules
        order_C = np.arange(len(score_C)) if as_found else np.argsort(-score_C, kind="stable")
        ordered[row] = pool = _in_order(pool, order_C, score_C[order_C])
        row_C = np.array([hit[0] for hit in pool.found[: reranker.num_reordered]], dtype=np.int64)
        if row not in said or said[row][0] != row_C.tobytes():
            lists[row] = ShortList(
                items=snapshot.bundle.items,
                words=snapshot.bundle.vocabulary,
                row_C=row_C,
                score_C=score_C[order_C][: len(row_C)],
                history=question.history,
                at=question.at,
                surface=question.surface,
                user_K=question.user_K,
            )
    if lists:
        said |= {row: (lists[row].row_C.tobytes(), order) for row, order in reorder(lists).items()}
    for row, pool in ordered.items():
        order = said[row][1]
        order_C = np.arange(len(pool.found))
        order_C[: len(order.places)] = order.places
        assert pool.place_score_C is not None
        ordered[row] = replace(_in_order(pool, order_C, pool.place_score_C), reranker_notes=order.notes)
    return pools | ordered


def _in_order(pool: _Pool, order_C: Ints, place_score_C: NDArray[np.float64]) -> _Pool:
    probability = None if pool.probability is None else pool.probability[order_C]
    return replace(pool, found=[pool.found[at] for at in order_C], probability=probability, place_score_C=place_score_C)


def _choose(snapshot: Snapshot, pool: _Pool, pinned: _Pool | None, *, explore: Explore | None) -> Chosen:
    """A page of some candidates; shorter where they do not suffice."""
    question, rules, notes = pool.question, pool.question.rules, list[str]()
    request = question.request
    own_C, found, probability = _scores(snapshot, pool), pool.found, pool.probability
    score_C = own_C if pool.place_score_C is None else pool.place_score_C
    if not request.rules:
        order = np.arange(len(found)) if request.rank_by is None else np.argsort(-score_C, kind="stable")
        order = order[: request.k]
        return _laid_out(pool, found, probability, order, [1.0] * len(order))
    item_C = np.array([hit[0] for hit in found], dtype=np.int64)
    keep_C = np.ones(len(found), dtype=np.bool_)
    for floor in rules.floors:
        under_C = _floored(snapshot, pool, floor, own_C) < floor.at_least
        if (under_C & keep_C).any():
            what = f"the probability of {floor.action}" if floor.action else f"the score of {floor.on}"
            notes.append(f"a floor of {floor.at_least:g} on {what} removed {int((under_C & keep_C).sum())} candidates")
        keep_C &= ~under_C
    score_C = _shifted(snapshot, question, item_C, score_C)
    places: dict[int, int] = {}
    if rules.pins:
        shown = {} if pinned is None else {hit[0]: at for at, hit in enumerate(pinned.found)}
        keep_C &= ~np.isin(item_C, list(shown))
        hidden = [item for item in rules.pins.values() if item not in shown]
        if hidden:
            notes.append(f"{len(hidden)} pinned items are not among those that may be shown")
        if pinned is not None:
            places = {place: len(found) + shown[item] for place, item in rules.pins.items() if item in shown}
            found = [*found, *((item, score, "pin") for item, score, _ in pinned.found)]
            item_C = np.array([hit[0] for hit in found], dtype=np.int64)
            keep_C = np.concatenate([keep_C, np.ones(len(shown), dtype=np.bool_)])
            score_C = np.concatenate([score_C, np.zeros(len(shown))])
            if pinned.probability is not None:
                parts = [pinned.probability] if probability is None else [probability, pinned.probability]
                probability = np.concatenate(parts)
    # Pins stand last among the kept, so that their places are known.
    kept = np.flatnonzero(keep_C)
    kept = kept[np.argsort(-np.where(kept < len(pool.found), score_C[kept], -np.inf), kind="stable")]
    place_of = {int(at): place for place, at in enumerate(kept)}
    vector_CD = None if rules.mmr is None else _directions(snapshot, item_C[kept])
    made = select(
        score_C[kept].astype(np.float64),
        item_C[kept],
        request.k,
        caps=[(cap, snapshot.item_table.groups(cap.column, item_C[kept])) for cap in rules.caps],
        pins={place: place_of[at] for place, at in places.items()},
        mmr=rules.mmr,
        vector_CD=vector_CD,
        explore=explore,
        key=id_text(request.user_id) or "",  # an id that nobody can have is nobody's
    )
    for cap, count in zip(rules.caps, made.num_capped, strict=True):
        if count:
            notes.append(f"a cap of {cap.n} on {cap.column} kept {count} candidates out")
    if notes and len(made.places) < request.k <= question.num_reachable:
        notes.append(f"the rules left {len(made.places)} of the {request.k} items asked for, among {len(pool.found)}")
    return _laid_out(pool, found, probability, kept[made.places], made.propensity, notes)


def _laid_out(
    pool: _Pool,
    found: Found,
    probability: Probabilities,
    order: Ints,
    propensity: list[float],
    notes: Sequence[str] = (),
) -> Chosen:
    probability = None if probability is None else probability[order]
    shown = [found[at] for at in order]
    return Chosen(shown, probability, propensity, len(pool.found), tuple(notes), pool.reranker_notes)


def _scores(snapshot: Snapshot, pool: _Pool) -> NDArray[np.floating]:
    """[C] what candidates are ordered by: the weighted probabilities, else the score of the only retriever.

    Scores of several retrievers do not compare: the candidate at place p (from 1) of their turns has 1 / p.
    """
    request = pool.question.request
    if request.rank_by is not None and pool.probability is not None:
        return pool.probability @ np.array(action_weights(snapshot, request))
    if len(set(request.retrievers)) > 1:
        return 1.0 / np.arange(1, len(pool.found) + 1)
    return np.array([hit[1] for hit in pool.found], dtype=np.float64)


def _floored(snapshot: Snapshot, pool: _Pool, floor: Floor, score_C: NDArray[np.floating]) -> NDArray[np.floating]:
    """[C] what a floor looks at."""
    if floor.on == "retrieval":
        return np.array([hit[1] for hit in pool.found], dtype=np.float64)
    if floor.action is None or pool.probability is None:
        return score_C
    return pool.probability[:, snapshot.actions.index(floor.action)]


def _shifted(
    snapshot: Snapshot, question: Question, item_C: Ints, score_C: NDArray[np.floating]
) -> NDArray[np.float64]:
    """[C] scores with boosts and freshness, in the order given."""
    shifted_C = score_C.astype(np.float64)
    for shift in question.rules.shifts:
        if isinstance(shift, Freshness):
            age_C = np.maximum(question.at - snapshot.item_table.seconds(shift.column, item_C), 0.0)
            with np.errstate(over="ignore"):
                lift_C = shift.weight * np.nan_to_num(np.exp2(-age_C / shift.half_life), nan=0.0)
            shifted_C = shifted_C + (lift_C if shift.mode == "add" else np.abs(shifted_C) * lift_C)
        else:
            boost, item_N = shift
            shifted_C = shifted_C + boost.weight * np.isin(item_C, item_N)
        shifted_C = np.clip(shifted_C, -LARGEST, LARGEST)  # finite, whatever is multiplied
    return shifted_C


def _directions(snapshot: Snapshot, item_C: Ints) -> NDArray[np.float64]:
    """[C, D] item vectors of length 1; of length 0 where they have none."""
    index_C = torch.from_numpy(item_C).to(snapshot.device)
    vector_CD = snapshot.bundle.vectors[index_C] / snapshot.length_I[index_C, None].clamp_min(1e-12)
    found_CD: NDArray[np.float64] = vector_CD.double().cpu().numpy()
    return found_CD
