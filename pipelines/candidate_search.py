"""Retrieval and ranking for the users of one shard, batch by batch.

Suffixes: Q = requests of the shard, B = requests of a batch, K = hits, E = exclusions, C = ranked hits, A = actions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.bundle import Bundle
from recsys.errors import InputError
from recsys.events import EventLog, History, Requests
from recsys.index.hits import SourcedHits
from recsys.packing import ranges
from recsys.past_counts import PastSource
from recsys.pipelines.candidate_rerank import ListReorder
from recsys.pipelines.candidate_rules import ListRules
from recsys.recent import recent_positives
from recsys.retrieval.bundle_retrievers import bundle_retrievers
from recsys.retrieval.memory import MemoryRetriever, RecentItems
from recsys.retrieval.protocol import source_labels
from recsys.retrieval.rules.apply import Chosen
from recsys.user_state import UserStates

__all__ = ["CandidateLists", "CandidateSearch", "length_batches"]

Ints = NDArray[np.int64]

_EXCLUSIONS_AT_ONCE = 1 << 23
"""Places of one batch's exclusion matrix: 64 MiB. One user's history may be longer still."""

_RANKED_AT_ONCE = {"cpu": 1 << 13, "cuda": 1 << 17}
"""Candidate rows of one delta forward. A CPU's cache holds the working set of a few users, not of 512: ranking 200 each
was 2 times faster with 2^12 to 2^14 rows than with a whole batch of users."""


@dataclass(frozen=True, slots=True)
class CandidateLists:
    """Lists of a shard; place k of a row is its k-th hit, empty places are at the end."""

    item_QK: NDArray[np.int32]
    """Internal items; -1 = empty."""
    score_QK: NDArray[np.float32]
    retriever_QK: NDArray[np.uint8]
    """Which of the labels of :class:`CandidateSearch` found it."""
    prob_QCA: NDArray[np.float32]
    """Probabilities of the first C hits."""
    propensity_QK: NDArray[np.float64] | None = None
    """With which probability each hit was taken for its place; None where nothing is left to chance."""

    @property
    def count_Q(self) -> Ints:
        """Hits of each row."""
        counts: Ints = (self.item_QK >= 0).sum(1)
        return counts


class CandidateSearch:
    """A bundle's retrievers and ranking head, asked for many users at once."""

    def __init__(
        self,
        bundle: Bundle,
        names: Sequence[str],
        *,
        k: int,
        rank: int,
        training_only: bool,
        allow_N: Ints | None,
        batch_users: int,
        past: PastSource | None = None,
        reorder: ListReorder | None = None,
        rules: ListRules | None = None,
    ) -> None:
        """Make the retrievers.

        Args:
            bundle: loaded.
            names: retrievers; several take turns, an item belongs to the first that brought it.
            k: hits per user.
            rank: how many of them get probabilities.
            training_only: whether transitions of training events alone may be used.
            allow_N: the only items that may be returned, strictly rising; None = all.
            batch_users: requests encoded together at most.
            past: counts that past rates are read from; None = the bundle's, of everything known.
            reorder: puts the first hits of a batch in another order before they are ranked; None = as retrieved.
            rules: choose the hits among the candidates; None = none do. Filters are in ``allow_N``.

        Raises:
            InputError: the bundle lacks a retriever, or cannot rank.
        """
        self._model, self._calibration = bundle.model, bundle.calibration
        self._features = bundle.features(past=past, training_only=training_only)
        try:
            more = () if rules is None else rules.retrievers_of_pins
            found = bundle_retrievers(bundle, [*names, *more], training_only=training_only)
        except InputError as error:
            raise InputError(f"--retrievers: {error}") from None
        if rank and bundle.model.action_head is None:
            raise InputError(f"--rank: the model of {bundle.path} learned no action probabilities; leave --rank out")
        self._reorder, self._rules = reorder, rules
        self._retrievers = list(found.values())
        if rules is not None:
            rules.open(found, reorder)
        self.labels = [label for one in self._retrievers for label in source_labels(one)]
        self._keeps_cache = bool(rank) or any(one.reads_cache for one in self._retrievers)
        self._device = bundle.vectors.device
        self._encodes = bool(rank) or any(not isinstance(one, MemoryRetriever) for one in self._retrievers)
        self._allow_N = None if allow_N is None else torch.from_numpy(allow_N).to(self._device)
        if more:
            self.labels.append("pin")
        num_reachable = len(bundle.vectors) if allow_N is None else len(allow_N)
        self.k, self.rank = min(k, num_reachable), min(rank, k, num_reachable)
        depth = 0 if reorder is None else reorder.chain.num_reordered
        self._wanted = max(self.k, min(depth, num_reachable))
        self.batch_users = batch_users

    @torch.inference_mode()
    def lists(
        self,
        log: EventLog,
        requests: Requests,
        advance: Callable[[int], None],
        user_UK: NDArray[np.float32] | None = None,
        user_ids: pl.Series | None = None,
    ) -> CandidateLists:
        """The lists of a shard's requests, in their order.

        Args:
            log: the events of the shard's users, in the bundle's numbers.
            requests: of these users.
            advance: told how many more requests are done.
            user_UK: features of the shard's users, for a model that reads some.
            user_ids: of the shard's users in the callers' words, for rules that leave something to chance.
        """
        num_requests = len(requests)
        found = CandidateLists(
            item_QK=np.full((num_requests, self.k), -1, dtype=np.int32),
            score_QK=np.full((num_requests, self.k), -np.inf, dtype=np.float32),
            retriever_QK=np.zeros((num_requests, self.k), dtype=np.uint8),
            prob_QCA=np.full((num_requests, self.rank, self._model.config.num_actions), np.nan, dtype=np.float32),
            propensity_QK=np.ones((num_requests, self.k)) if self._rules is not None and self._rules.explores else None,
        )
        for row_B in length_batches(requests.end, self.batch_users):
            if self.k:
                self._batch(log, requests.rows(row_B), row_B, found, user_UK, user_ids)
            advance(len(row_B))
        return found

    def _batch(
        self,
        log: EventLog,
        requests: Requests,
        row_B: Ints,
        found: CandidateLists,
        user_UK: NDArray[np.float32] | None,
        user_ids: pl.Series | None,
    ) -> None:
        histories = [
            log.history(user, end) for user, end in zip(requests.user.tolist(), requests.end.tolist(), strict=True)
        ]
        states: Any  # memory alone reads recent items and nothing else
        user_BK = None if user_UK is None else user_UK[requests.user]
        if self._encodes:
            states = self._model.encode(histories, keep_cache=self._keeps_cache, user_BK=user_BK)
        else:
            config = self._model.config
            states = RecentItems(recent_positives(histories, config.positive_mask, config.recent).to(self._device))
        if self._rules is not None:
            asking = [None] * len(row_B) if user_ids is None else user_ids.gather(requests.user).to_list()
            chosen = self._rules.choose(states, histories, requests, asking, user_BK, self._probabilities)
            self._put(chosen, row_B, found)
        else:
            self._retrieve(log, requests, row_B, found, histories, user_BK, states)
        if self.rank:
            item_BC = found.item_QK[row_B, : self.rank].astype(np.int64)
            found.prob_QCA[row_B] = self._probabilities(states, item_BC, requests.timestamp, requests.surface)

    def _put(self, chosen: Sequence[Chosen], row_B: Ints, found: CandidateLists) -> None:
        """Write lists that rules chose into those of the shard."""
        number = {label: place for place, label in enumerate(self.labels)}
        for row, one in zip(row_B.tolist(), chosen, strict=True):
            count = len(one.found)
            found.item_QK[row, :count] = [item for item, _, _ in one.found]
            found.score_QK[row, :count] = [score for _, score, _ in one.found]
            found.retriever_QK[row, :count] = [number[label] for _, _, label in one.found]
            if found.propensity_QK is not None:
                found.propensity_QK[row, :count] = one.propensity

    def _retrieve(
        self,
        log: EventLog,
        requests: Requests,
        row_B: Ints,
        found: CandidateLists,
        histories: Sequence[History],
        user_BK: NDArray[np.float32] | None,
        states: Any,
    ) -> None:
        """Write the lists of a batch as the retrievers, and a reranker, order them."""
        at_B, surface_B = self._tensor(requests.timestamp), self._tensor(requests.surface)
        exclude_BE = self._tensor(_earlier_items(log, requests))
        items, scores, labels = [], [], []
        first_label = 0
        for retriever in self._retrievers:
            hits = retriever.search(
                states, self._wanted, at_B=at_B, surface_B=surface_B, exclude_QE=exclude_BE, allow_N=self._allow_N
            )
            items.append(hits.ids_QK.cpu().numpy())
            scores.append(hits.scores_QK.cpu().numpy())
            label_BK = np.full(items[-1].shape, first_label, dtype=np.uint8)
            if isinstance(hits, SourcedHits):
                label_BK += hits.source_QK.cpu().numpy().astype(np.uint8)
            labels.append(label_BK)
            first_label += len(source_labels(retriever))
        if len(items) == 1:
            item_BK, score_BK, label_BK = items[0], scores[0], labels[0]
        else:
            item_BK, place_BK = _take_turns(items, self._wanted)
            flat_BM = [np.stack(parts, 2).reshape(len(row_B), -1) for parts in (scores, labels)]
            score_BK = np.take_along_axis(flat_BM[0], place_BK, 1)
            label_BK = np.take_along_axis(flat_BM[1], place_BK, 1)
        if self._reorder is not None:
            place_BK = self._reorder(histories, requests, item_BK, score_BK if len(items) == 1 else None, user_BK)
            item_BK, score_BK, label_BK = (
                np.take_along_axis(rows, place_BK, 1) for rows in (item_BK, score_BK, label_BK)
            )
        found.retriever_QK[row_B] = label_BK[:, : self.k]
        found.item_QK[row_B] = item_BK[:, : self.k]
        found.score_QK[row_B] = score_BK[:, : self.k]

    def _probabilities(self, states: UserStates, item_BC: Ints, time_B: Ints, place_B: Ints) -> Any:
        """[B, C, A] of some hits, from the keys and values that retrieval left; NaN in empty places.

        Args:
            time_B: times of the requests. place_B: their surfaces.
        """
        item, at_B, surface_B = self._tensor(item_BC), self._tensor(time_B), self._tensor(place_B)
        step = max(1, _RANKED_AT_ONCE.get(self._device.type, 1 << 13) // item_BC.shape[1])
        parts = []
        for low in range(0, len(item), step):
            rows = torch.arange(low, min(low + step, len(item)), device=self._device)
            surface_bC = surface_B[rows, None].expand(-1, item.shape[1])
            some = states.select(rows)
            feature_bCF = self._features.of(some, item[rows], at_B[rows], surface_bC)
            logits = self._model.rank(some, item[rows], at_B[rows], surface_bC, feature_bCF)
            prob = self._calibration.probabilities(logits)
            parts.append(prob.masked_fill(item[rows][..., None] < 0, torch.nan))
        return torch.cat(parts).cpu().numpy()

    def _tensor(self, values: Ints) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device)


def length_batches(length_Q: Ints, batch_users: int) -> Iterator[Ints]:
    """Rows of requests whose histories are about equally long: little padding, and exclusions of bounded size."""
    order_Q = np.argsort(length_Q, kind="stable")
    sorted_Q = length_Q[order_Q]
    low = 0
    while low < len(order_Q):
        high = min(low + batch_users, len(order_Q))
        while high > low + 1 and (high - low) * int(sorted_Q[high - 1]) > _EXCLUSIONS_AT_ONCE:
            high = low + (high - low) // 2
        yield order_Q[low:high]
        low = high


def _earlier_items(log: EventLog, requests: Requests) -> Ints:
    """[B, E] items of the whole histories, whatever was done with them; -1 padded."""
    exclude_BE = np.full((len(requests), int(requests.end.max(initial=0))), -1, dtype=np.int64)
    line_N = np.repeat(np.arange(len(requests)), requests.end)
    column_N = ranges(np.zeros_like(requests.end), requests.end)
    exclude_BE[line_N, column_N] = log.item[ranges(log.offsets[requests.user], requests.end)]
    return exclude_BE


def _take_turns(items: Sequence[Ints], k: int) -> tuple[Ints, Ints]:
    """Best of each list, then second of each, and so on; an item stays where it first came up.

    Args:
        items: per retriever [B, K], -1 padded.

    Returns:
        [B, k] items, -1 padded, and [B, k] their places among the interleaved columns.
    """
    turn_BM = np.stack(items, 2).reshape(len(items[0]), -1)
    order_BM = np.argsort(turn_BM, axis=1, kind="stable")
    sorted_BM = np.take_along_axis(turn_BM, order_BM, 1)
    repeated_BM = np.zeros(turn_BM.shape, dtype=np.bool_)
    repeated_BM[:, 1:] = sorted_BM[:, 1:] == sorted_BM[:, :-1]
    gone_BM = np.zeros_like(repeated_BM)
    np.put_along_axis(gone_BM, order_BM, repeated_BM, 1)
    gone_BM |= turn_BM < 0
    place_BK = np.argsort(gone_BM, axis=1, kind="stable")[:, :k]
    item_BK = np.take_along_axis(turn_BM, place_BK, 1)
    return np.where(np.take_along_axis(gone_BM, place_BK, 1), -1, item_BK), place_BK
