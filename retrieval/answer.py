"""The stages of an answer on one snapshot: encode, search, rank, rerank, apply the rules, lay out the page.

A history is encoded at most once, or taken from the kept states; search and ranking read the same keys and values.

Suffixes: B = requests, C = candidates of a request, E = exclusions, N = allowed items, A = actions, K = hits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.errors import InputError
from recsys.index.hits import SourcedHits
from recsys.retrieval.page import Hit, Page
from recsys.retrieval.protocol import source_labels
from recsys.retrieval.question import Found, Ints, Question
from recsys.retrieval.reordering import Reordered, ShortList, reordered
from recsys.retrieval.rules.apply import Chosen, Probabilities, choose_pages
from recsys.retrieval.snapshot import Snapshot
from recsys.retrieval.timings import BatchTimings
from recsys.user_state import UserStates

__all__ = ["answer", "of_rows", "padded", "search_lists", "short_notes"]


def answer(snapshot: Snapshot, questions: Sequence[Question], timings: BatchTimings | None = None) -> list[Page]:
    """One page for every question, in fewer and larger passes than one by one.

    Args:
        timings: started when the requests came in, stages of theirs included; None = they begin here.
    """
    if not questions:
        return []
    if timings is None:
        timings = BatchTimings([question.request for question in questions])
    with torch.inference_mode():
        with timings.stage("encode"):
            states = _encode(snapshot, questions, timings)
        rules = timings.stage("rules")

        def look(rows: list[int], asked: list[Question]) -> tuple[list[Found], list[Probabilities]]:
            nonlocal rules
            rules.end()
            mine = of_rows(snapshot, states, rows)
            found = search_lists(snapshot, mine, asked, timings, rows)
            for row, hits in zip(rows, found, strict=True):
                timings.request_counts[row]["candidates"] = len(hits)
            probability = _rank(snapshot, mine, asked, found, timings, rows)
            rules = timings.stage("rules")
            return found, probability

        spent_ms = 0.0

        def reorder(lists: dict[int, ShortList]) -> dict[int, Reordered]:
            nonlocal rules, spent_ms
            rules.end()
            asked = []
            for row, one in lists.items():
                request = questions[row].request
                assert request.reranker is not None
                left_ms = None if request.rerank_ms is None else max(request.rerank_ms - spent_ms, 0.0)
                asked.append((request.reranker, left_ms, one))
            with timings.stage("rerank", list(lists)) as stage:
                orders = reordered(asked)
            spent_ms += 1e3 * stage.seconds
            for row, order in zip(lists, orders, strict=True):
                for name, count in order.counts.items():
                    timings.request_counts[row][name] = timings.request_counts[row].get(name, 0) + count
            rules = timings.stage("rules")
            return dict(zip(lists, orders, strict=True))

        chosen = choose_pages(snapshot, questions, look, reorder)
        rules.end()
    with timings.stage("page"):
        pages = [_page(snapshot, *row) for row in zip(questions, chosen, strict=True)]
    for counts, question in zip(timings.request_counts, questions, strict=True):
        counts.setdefault("candidates", 0)
        counts["history_events"] = len(question.history)
    timings.finish()
    for row, page in enumerate(pages):
        page.timings.update(timings.of(row))
    return pages


def _encode(snapshot: Snapshot, questions: Sequence[Question], timings: BatchTimings) -> UserStates:
    ranks = bool(snapshot.actions) and any(question.request.rank for question in questions)
    asked = {name for question in questions for name in question.request.retrievers}
    keep_cache = ranks or any(snapshot.retrievers[name].reads_cache for name in asked)
    user_BK = np.stack([question.user_K for question in questions])
    histories = [question.history for question in questions]
    keys = [question.state_key for question in questions]
    states, counts = snapshot.states.states(
        keys, histories, keep_cache=keep_cache, user_BK=user_BK, item_ID=snapshot.item_ID
    )
    timings.states(counts)
    return states


def search_lists(
    snapshot: Snapshot,
    states: UserStates,
    questions: Sequence[Question],
    timings: BatchTimings,
    batch_rows: Sequence[int],
) -> list[Found]:
    """The candidates of every question, in the order of retrieval; ``batch_rows`` are their places in the batch."""
    lists: list[dict[str, Found]] = [{} for _ in questions]
    for name in dict.fromkeys(name for question in questions for name in question.request.retrievers):
        retriever = snapshot.retrievers[name]
        groups: dict[tuple[Any, ...], list[int]] = {}
        for row, question in enumerate(questions):
            if name in question.request.retrievers and question.num_reachable:
                groups.setdefault(question.search_key, []).append(row)
        for rows in groups.values():
            stage = timings.stage(f"search/{name}", [batch_rows[row] for row in rows])
            group = [questions[row] for row in rows]
            first = group[0]
            try:
                hits = retriever.search(
                    of_rows(snapshot, states, rows),
                    first.num_wanted,
                    at_B=_tensor(snapshot, [question.at for question in group]),
                    surface_B=_tensor(snapshot, [question.surface for question in group]),
                    exclude_QE=_tensor(snapshot, padded([question.exclude_E for question in group])),
                    allow_N=None if first.allow_N is None else _tensor(snapshot, first.allow_N),
                )
            except ValueError as error:  # the question is checked, so what is wrong are the numbers of the model
                raise InputError(f"{snapshot.bundle.path}: {' '.join(str(error).split())}") from error
            labels = source_labels(retriever)
            source_QK = hits.source_QK if isinstance(hits, SourcedHits) else torch.zeros_like(hits.ids_QK)
            parts = (hits.ids_QK.tolist(), hits.scores_QK.tolist(), source_QK.tolist())
            for row, *columns in zip(rows, *parts, strict=True):
                found = zip(*columns, strict=True)
                lists[row][name] = [(i, score, labels[source]) for i, score, source in found if i >= 0]
            stage.end()
    return [
        _take_turns([parts.get(name, []) for name in question.request.retrievers])[: question.num_wanted]
        for parts, question in zip(lists, questions, strict=True)
    ]


def _rank(
    snapshot: Snapshot,
    states: UserStates,
    questions: Sequence[Question],
    found: Sequence[Found],
    timings: BatchTimings,
    batch_rows: Sequence[int],
) -> list[Probabilities]:
    """[C, A] probabilities of every question's candidates; None where none were asked for."""
    bundle = snapshot.bundle
    rows = [row for row, question in enumerate(questions) if question.request.rank and found[row]]
    result: list[Probabilities] = [None] * len(questions)
    if rows and snapshot.actions:
        stage = timings.stage("rank", [batch_rows[row] for row in rows])
        items = [np.array([hit[0] for hit in found[row]], dtype=np.int64) for row in rows]
        item_BC = _tensor(snapshot, padded(items))
        surface_B = _tensor(snapshot, [questions[row].surface for row in rows])
        ranked = of_rows(snapshot, states, rows)
        at_B = _tensor(snapshot, [questions[row].at for row in rows])
        surface_BC = surface_B[:, None].expand_as(item_BC)
        feature_BCF = bundle.features().of(ranked, item_BC, at_B, surface_BC)
        logits = bundle.model.rank(ranked, item_BC, at_B, surface_BC, feature_BCF, snapshot.item_ID)
        probability = bundle.calibration.probabilities(logits).cpu().numpy()
        if np.isnan(probability).any():
            raise InputError(f"{bundle.path}: its model gives probabilities that are no numbers; export it again")
        for place, row in enumerate(rows):
            result[row] = probability[place, : len(found[row])]
        stage.end()
    return result


def _page(snapshot: Snapshot, question: Question, chosen: Chosen) -> Page:
    names = snapshot.bundle.vocabulary.items.take([item for item, _, _ in chosen.found])
    hits, actions = [], snapshot.actions
    for place, (name, (_, score, retriever)) in enumerate(zip(names, chosen.found, strict=True)):
        row_A = None if chosen.probability is None else chosen.probability[place].tolist()
        chances = {} if row_A is None else dict(zip(actions, row_A, strict=True))
        hits.append(Hit(name, score, chances, retriever, chosen.propensity[place]))
    short = short_notes(len(hits), question.request.k, question.num_reachable)
    if chosen.notes and question.num_reachable >= question.request.k:
        short = ()  # the rules say why
    notes = (*question.notes, *chosen.reranker_notes, *chosen.notes, *short)
    return Page(tuple(hits), question.num_reachable, notes, snapshot.version)


def short_notes(num_hits: int, k: int, num_reachable: int) -> tuple[str, ...]:
    """Why a page is shorter than asked for; nothing where it is not."""
    if num_hits >= k:
        return ()
    if num_reachable < k:
        return (f"{k} items were asked for and {num_reachable} were left to choose from",)
    return (f"the retrievers found {num_hits} of the {k} items asked for; add one that reaches more, such as 'dense'",)


def of_rows(snapshot: Snapshot, states: UserStates, rows: Sequence[int]) -> UserStates:
    """States of some rows, which rise; nothing is copied where they are all."""
    return states if len(rows) == states.num_users else states.select(_tensor(snapshot, rows))


def _tensor(snapshot: Snapshot, values: Sequence[int] | Ints) -> Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.int64), device=snapshot.device)


def padded(parts: Sequence[Ints]) -> Ints:
    """Rows of different length as one matrix, -1 where there is nothing."""
    matrix = np.full((len(parts), max(len(part) for part in parts)), -1, dtype=np.int64)
    for row, part in zip(matrix, parts, strict=True):
        row[: len(part)] = part
    return matrix


def _take_turns(lists: Sequence[Found]) -> Found:
    """Best of each list, then second of each, and so on; an item stays where it first came up."""
    merged: dict[int, tuple[int, float, str]] = {}
    for turn in zip_longest(*lists):
        for hit in turn:
            if hit is not None:
                merged.setdefault(hit[0], hit)
    return list(merged.values())
