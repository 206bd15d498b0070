"""Short lists of a bundle or as they were shown: what rerankers are trained and measured on.

Suffixes: Q = lists, N = events, K = places of a list, R = rows of all lists.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import InputError, shown
from recsys.events import Requests
from recsys.packing import ranges
from recsys.past_counts import PastLog
from recsys.pipelines.candidate_search import CandidateSearch
from recsys.pipelines.judged_lists import RerankLists
from recsys.retrieval.history_sources.bundle import in_words
from recsys.retrieval.rerank.item_text import item_texts
from recsys.retrieval.rerank.request import RerankItem, RerankRequest
from recsys.training_batches import events_before

__all__ = ["TRAIN", "RerankLists", "lists_of", "slate_lists"]

TRAIN = "train"
"""Lists whose target is the last positive of the events that train."""
_SLATE_SPLITS = {TRAIN: 0, "validation": 1, "test": 2}
_AT_ONCE = 2048
"""Requests asked of the retriever before it is seen whether enough lists hold their target."""
_BATCH_USERS = 256
_NOTHING = np.zeros(0, dtype=np.int64)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def lists_of(
    bundle: Bundle,
    dataset: Dataset,
    split: str,
    k: int = 20,
    num_users: int | None = None,
    seed: int = 0,
    retriever: str = "dense",
    rank_by: str | None = None,
    *,
    hits_only: bool = False,
    add_missing: bool = False,
    users: Ints | None = None,
    history: int = 50,
) -> RerankLists:
    """The first k items that a bundle retrieves for users of a split, with the target of each.

    A list sees what was known before its target: histories up to it, transitions of training events. Lists of the
    split ``train`` are easier than those of later ones, since the model and its transitions have seen their targets.

    Args:
        bundle: made from ``dataset``.
        dataset: the prepared data.
        split: ``validation``, ``test``, or ``train``: the last positive among each user's training events, which has
            to have an event before it.
        k: candidates of a list.
        num_users: how many lists; None = all. Users are drawn without replacement, and the first of a larger
            number are those of a smaller one.
        seed: of the draw.
        retriever: whose first k items they are.
        rank_by: order them by the probability of this action instead of by retrieval.
        hits_only: keep only lists that hold their target, and look at more users until there are enough.
        add_missing: put a target that was not retrieved in the place of the last candidate. For training only: such
            a list tells nothing of retrieval any more.
        users: internal users to draw from; None = all of the split.
        history: most events, the newest ones, that :attr:`RerankRequest.history` holds; ``events`` holds all.

    Raises:
        InputError: an unknown split, retriever or action, another dataset, or a split without targets.
    """
    bundle.check_data(dataset.manifest.data_hash, dataset.path)
    if k < 1 or (num_users is not None and num_users < 1):
        raise InputError(f"lists need at least one candidate and one user, got k={k} and users={num_users}")
    actions = bundle.vocabulary.actions
    if rank_by is not None and (rank_by not in actions or bundle.model.action_head is None):
        there = ", ".join(actions) if bundle.model.action_head is not None else "none"
        raise InputError(f"rank_by: {bundle.path} gives probabilities of {there}, not of {shown(rank_by)}")
    requests = _requests(dataset, split)
    if users is not None:
        requests = requests.rows(np.flatnonzero(np.isin(requests.user, users)))
    if not len(requests):
        raise InputError(f"{dataset.path} has no {split} targets to make lists of")
    rank = k if rank_by is not None else 0
    past = PastLog.of(dataset) if rank and bundle.past is not None else None
    search = CandidateSearch(
        bundle, [retriever], k=k, rank=rank, training_only=True, allow_N=None, batch_users=_BATCH_USERS, past=past
    )
    order_Q = np.random.default_rng(seed).permutation(len(requests))
    wanted = len(requests) if num_users is None else min(num_users, len(requests))
    parts: list[tuple[Requests, Ints, Floats]] = []
    user_UF = dataset.user_content if bundle.user_blocks else None
    found = asked = 0
    while found < wanted and asked < len(requests):
        size = _AT_ONCE if hits_only else wanted
        part = requests.rows(order_Q[asked : asked + size])
        lists = search.lists(dataset.events, part, lambda _: None, user_UF)
        item_QK, score_QK = lists.item_QK.astype(np.int64), lists.score_QK.astype(np.float64)
        if rank_by is not None:
            prob_QK = np.nan_to_num(lists.prob_QCA[:, :, actions.index(rank_by)].astype(np.float64), nan=-np.inf)
            best_QK = np.argsort(-prob_QK, axis=1, kind="stable")
            item_QK = np.take_along_axis(item_QK, best_QK, 1)
            score_QK = np.take_along_axis(prob_QK, best_QK, 1)
        if add_missing:
            _add_targets(item_QK, part.target)
        if hits_only:
            hit = np.flatnonzero((item_QK == part.target[:, None]).any(axis=1))[: wanted - found]
            asked += int(hit[-1]) + 1 if len(hit) == wanted - found else len(part)
            part, item_QK, score_QK = part.rows(hit), item_QK[hit], score_QK[hit]
        else:
            asked += len(part)
        found += len(part)
        parts.append((part, item_QK, score_QK))
    return _made(dataset, parts, asked, history, user_UF=user_UF)


def slate_lists(
    dataset: Dataset,
    split: str,
    num_users: int | None = None,
    seed: int = 0,
    *,
    k: int = 20,
    history: int = 50,
) -> RerankLists:
    """Slates as they were shown, with their positives: one per user, those with positives and others alike.

    Args:
        dataset: prepared with impressions.
        split: ``train``, ``validation`` or ``test``.
        num_users: how many lists; None = one for every user that has such a slate.
        seed: of the draw of users and of their slates.
        k: most items of a slate, the first that were shown.
        history: as in :func:`lists_of`.

    Raises:
        InputError: the data has no slates, or none of this split tells anything.
    """
    slates = dataset.slates
    if slates is None:
        raise InputError(f"{dataset.path} has no slates; prepare it with --impressions, or make lists of targets")
    if split not in _SLATE_SPLITS:
        raise InputError(f"there is no split {split!r}; choose train, validation or test")
    drawn = np.random.default_rng(seed)
    mask, seen = dataset.manifest.positive_mask, set[int]()
    chosen: list[int] = []
    for slate in drawn.permutation(np.flatnonzero(slates.split == _SLATE_SPLITS[split])).tolist():
        rows = slice(slates.offsets[slate], min(slates.offsets[slate] + k, slates.offsets[slate + 1]))
        num_chosen = int(np.count_nonzero(slates.yes[rows] & mask))
        user, length = int(slates.user[slate]), len(slates.item[rows])
        if 0 < num_chosen < length and user not in seen and len(set(slates.item[rows].tolist())) == length:
            seen.add(user)
            chosen.append(slate)
        if num_users is not None and len(chosen) >= num_users:
            break
    if not chosen:
        raise InputError(f"{dataset.path} has no {split} slate with both items that were chosen and others")
    place = np.array(chosen, dtype=np.int64)
    end_Q = events_before(dataset.events, slates.user[place], slates.timestamp[place])
    asked = Requests(slates.user[place], end_Q, np.full_like(place, -1), slates.timestamp[place], np.zeros_like(place))
    length_Q = np.minimum(np.diff(slates.offsets)[place], k)
    row_R = ranges(slates.offsets[place], length_Q)
    item_QK = np.full((len(place), int(length_Q.max())), -1, dtype=np.int64)
    gain_QK = np.zeros(item_QK.shape)
    at = np.repeat(np.arange(len(place)), length_Q), ranges(np.zeros_like(length_Q), length_Q)
    item_QK[at], gain_QK[at] = slates.item[row_R], (slates.yes[row_R] & mask) != 0
    score_QK = np.broadcast_to(-np.arange(item_QK.shape[1], dtype=np.float64), item_QK.shape)
    return _made(dataset, [(asked, item_QK, score_QK)], len(place), history, gain_QK=gain_QK)


def _requests(dataset: Dataset, split: str) -> Requests:
    if split in ("validation", "test"):
        return dataset.requests(split)
    if split != TRAIN:
        raise InputError(f"there is no split {split!r}; choose train, validation or test")
    log = dataset.events
    row_N = np.arange(len(log)) - np.repeat(log.offsets[:-1], np.diff(log.offsets))
    user_N = np.repeat(np.arange(dataset.num_users), np.diff(log.offsets))
    target_N = np.flatnonzero((row_N < dataset.train_end[user_N]) & (row_N > 0) & dataset.is_positive())
    last = np.append(np.diff(user_N[target_N]) > 0, True) if len(target_N) else np.zeros(0, dtype=np.bool_)
    target_Q = target_N[last]
    return Requests(
        user_N[target_Q], row_N[target_Q], log.item[target_Q], log.timestamp[target_Q], log.surface[target_Q]
    )


def _add_targets(item_QK: Ints, target_Q: Ints) -> None:
    """Put targets that are missing in the place of the last item that is there."""
    missing = np.flatnonzero(~(item_QK == target_Q[:, None]).any(axis=1))
    last = np.maximum((item_QK[missing] >= 0).sum(axis=1) - 1, 0)
    item_QK[missing, last] = target_Q[missing]


def _made(
    dataset: Dataset,
    parts: Sequence[tuple[Requests, Ints, Floats]],
    num_asked: int,
    history: int,
    *,
    user_UF: NDArray[np.float32] | None = None,
    gain_QK: Floats | None = None,
) -> RerankLists:
    """Lists in the caller's words, each text looked up once."""
    log, words = dataset.events, dataset.vocabulary
    every: list[tuple[int, int, int, int, int, Ints, Floats]] = [
        (int(user), int(end), int(target), int(time), int(surface), items, scores)
        for asked, item_QK, score_QK in parts
        for user, end, target, time, surface, items, scores in zip(
            asked.user, asked.end, asked.target, asked.timestamp, asked.surface, item_QK, score_QK, strict=True
        )
    ]
    shown_items = [log.history(user, end).item[-history:] if history else _NOTHING for user, end, *_ in every]
    used = np.unique(np.concatenate([_NOTHING, *(items for *_, items, _ in every), *shown_items]))
    used = used[used >= 0]
    text_of = dict(zip(used.tolist(), item_texts(dataset.items, used.tolist()), strict=True))
    name_of = dict(zip(used.tolist(), words.items.take(used.tolist()), strict=True))
    requests, gains, targets = [], [], []
    for row, (user, end, target, time, surface, items, scores) in enumerate(every):
        events = in_words(words, log.history(user, end))
        there = [place for place, item in enumerate(items.tolist()) if item >= 0]
        candidates = tuple(
            RerankItem(item_id=name_of[item], text=text_of[item], score=float(scores[place]))
            for place in there
            for item in (int(items[place]),)
        )
        past = tuple(
            RerankItem(item_id=event.item_id, text=text_of.get(item, ""), actions=tuple(event.actions))
            for event, item in zip(
                events[len(events) - len(shown_items[row]) :], shown_items[row].tolist(), strict=True
            )
        )
        request = RerankRequest(
            candidates=candidates,
            history=past,
            events=tuple(events),
            at=time,
            surface=words.surfaces[surface] if surface else None,
            user_K=None if user_UF is None else user_UF[user],
        )
        requests.append(request)
        if gain_QK is None:
            gains.append(tuple(float(items[place] == target) for place in there))
            targets.append(words.items.take([target])[0])
        else:
            gains.append(tuple(float(gain_QK[row, place]) for place in there))
            targets.append(None)
    user_Q = np.array([user for user, *_ in every], dtype=np.int64)
    return RerankLists(
        kind="targets" if gain_QK is None else "slates",
        requests=tuple(requests),
        user_Q=user_Q,
        user_ids=tuple(dataset.user_ids.gather(user_Q).to_list()),
        target_ids=tuple(targets),
        gains=tuple(gains),
        num_asked=num_asked,
    )
