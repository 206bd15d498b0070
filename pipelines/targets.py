"""Where the targets of a split stand among the whole catalogue, for anything that scores it.

Suffixes: Q = requests, I = items, K = places of a list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.events import History, Requests
from recsys.kernels.topk import topk_smaller_id
from recsys.metrics import target_ranks
from recsys.model import UnifiedModel
from recsys.pipelines.request_tensors import exclusions
from recsys.pipelines.scorer import Scorer
from recsys.retrieval.memory import MemoryRetriever
from recsys.retrieval.protocol import Retriever
from recsys.user_state import UserStates

__all__ = [
    "LIST_LENGTH",
    "BatchStates",
    "RankedTargets",
    "RetrieverScorer",
    "rank_all",
    "rank_targets",
    "targets_of",
]

LIST_LENGTH = 10
"""Places of the lists that coverage, novelty and the like are taken from."""

_DEPTH = 100
"""Places of the longest lists that figures look at, and of those that retrievers which cannot score the whole catalogue
are judged by."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RankedTargets:
    """What one scorer made of the requests of a split."""

    name: str
    requests: Requests
    rank_Q: Ints
    """From 1; :data:`recsys.metrics.MISS` for a target in its own history."""
    reachable_Q: NDArray[np.bool_]
    tied_Q: NDArray[np.bool_]
    list_QK: Ints
    """The first items of each list, history filtered, equal scores by smaller id; -1 = empty place."""


class BatchStates:
    """User states of the batch at hand, encoded once for all retrievers that read them.

    Args:
        model: in eval mode.
        dataset: with the histories.
        keep_cache: whether some retriever reads keys and values.
    """

    def __init__(self, model: UnifiedModel, dataset: Dataset, *, keep_cache: bool = False) -> None:
        self.model = model
        self.dataset = dataset
        self.keep_cache = keep_cache
        self._requests: Requests | None = None
        self._states: UserStates | None = None

    def of(self, requests: Requests) -> UserStates:
        """States of the requests' histories; the same object is encoded once."""
        if self._states is None or self._requests is not requests:
            self._requests = requests
            histories, user_BK = histories_of(self.dataset, requests), self.dataset.user_rows(requests.user)
            self._states = self.model.encode(histories, keep_cache=self.keep_cache, user_BK=user_BK)
        return self._states


class RetrieverScorer:
    """A retriever as the evaluation sees it: scores of the whole catalogue for requests."""

    def __init__(self, retriever: Retriever, states: BatchStates) -> None:
        self.name = retriever.name
        self._retriever = retriever
        self._states = states

    @torch.inference_mode()
    def score(self, requests: Requests) -> NDArray[np.float32]:
        """[Q, I]; -inf for an item that the retriever never returns to this user, or not among its first 100."""
        states = self._states.of(requests)
        device = self._states.model.device
        at_B = torch.from_numpy(np.ascontiguousarray(requests.timestamp)).to(device)
        surface_B = torch.from_numpy(np.ascontiguousarray(requests.surface)).to(device)
        if self._retriever.lists_only:
            scores_QI = self._listed(states, requests, at_B, surface_B)
        else:
            scores_QI = self._retriever.scores(states, at_B=at_B, surface_B=surface_B).float()
        if isinstance(self._retriever, MemoryRetriever):
            scores_QI = torch.where(scores_QI > 0, scores_QI, -torch.inf)
        out: NDArray[np.float32] = scores_QI.cpu().numpy()
        return out

    def _listed(self, states: UserStates, requests: Requests, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[Q, I] of a list of 100 hits, from which the items of all earlier events are left out."""
        exclude_QE = exclusions(histories_of(self._states.dataset, requests))
        num_items = self._states.dataset.num_items
        hits = self._retriever.search(
            states, min(_DEPTH, num_items), at_B=at_B, surface_B=surface_B, exclude_QE=exclude_QE.to(at_B.device)
        )
        scores_QI = torch.full((len(requests), num_items + 1), -torch.inf, device=at_B.device)
        return scores_QI.scatter_(1, hits.ids_QK % (num_items + 1), hits.scores_QK.float())[:, :num_items]


def targets_of(dataset: Dataset, split: str) -> Requests:
    """The requests of a split that has targets.

    Raises:
        InputError: nobody has one, or there is no such split.
    """
    requests = dataset.requests(split)
    if not len(requests):
        raise InputError(f"{dataset.path} has no {split} targets; evaluate another split or prepare more data")
    return requests


def histories_of(dataset: Dataset, requests: Requests) -> list[History]:
    """The events that each request may see."""
    log = dataset.events
    return [log.history(int(user), int(end)) for user, end in zip(requests.user, requests.end, strict=True)]


def rank_targets(scorer: Scorer, dataset: Dataset, split: str, batch: int = 1024) -> RankedTargets:
    """Rank the target of every request of a split; see :func:`rank_all`."""
    return rank_all([scorer], dataset, split, batch=batch)[0]


def rank_all(
    scorers: Sequence[Scorer],
    dataset: Dataset,
    split: str,
    *,
    batch: int = 1024,
    requests: Requests | None = None,
    advance: Callable[[int], None] | None = None,
) -> list[RankedTargets]:
    """Rank the targets with several scorers, batch by batch, so that they can share what a batch costs.

    The history filter removes the items of all earlier events, whatever their action; exact ties count against the
    target. One whose score is -inf stands last, and behind every list.

    Args:
        scorers: what scores the catalogue.
        dataset: the prepared data.
        split: ``validation`` or ``test``.
        batch: most requests at a time; fewer where the catalogue is large.
        requests: of the split, where they are not the one target of each user.
        advance: told how many requests are done, for a progress bar.

    Raises:
        InputError: the split has no targets.
    """
    requests = targets_of(dataset, split) if requests is None else requests
    batch = max(1, min(batch, 2**26 // max(1, dataset.num_items)))
    # Histories of like length share a batch: what is padded or packed together is then of one size.
    order_Q = np.argsort(requests.end, kind="stable")
    parts: list[list[tuple[Ints, NDArray[np.bool_], NDArray[np.bool_], Ints]]] = [[] for _ in scorers]
    for low in range(0, len(requests), batch):
        part = requests.rows(order_Q[low : low + batch])
        seen = [history.item for history in histories_of(dataset, part)]
        for found, scorer in zip(parts, scorers, strict=True):
            scores_QI = scorer.score(part)
            ranks = target_ranks(scores_QI, part.target, seen)
            # No list holds what is never returned, however few items are left to stand ahead of it.
            never_Q = np.isneginf(scores_QI[np.arange(len(part)), part.target])
            rank_Q = np.where(never_Q, np.maximum(ranks.rank_Q, _DEPTH + 1), ranks.rank_Q)
            found.append((rank_Q, ranks.reachable_Q, ranks.tied_Q, _lists(scores_QI)))
            if advance is not None:
                advance(len(part))
    back_Q = np.argsort(order_Q, kind="stable")
    results = []
    for scorer, found in zip(scorers, parts, strict=True):
        rank_Q, reachable_Q, tied_Q, list_QK = (np.concatenate(column)[back_Q] for column in zip(*found, strict=True))
        results.append(RankedTargets(scorer.name, requests, rank_Q, reachable_Q, tied_Q, list_QK))
    return results


def _lists(scores_QI: NDArray[np.float32]) -> Ints:
    """[Q, K] the best items by score, equal ones by smaller id; -inf is never listed."""
    scores_QI = np.ascontiguousarray(scores_QI, dtype=np.float32)
    scores = torch.from_numpy(scores_QI)
    best_QW, item_QW = scores.topk(min(LIST_LENGTH + 1, scores.shape[1]), dim=1)
    _, ids_QK = topk_smaller_id(best_QW[:, :LIST_LENGTH], item_QW[:, :LIST_LENGTH], LIST_LENGTH)
    if best_QW.shape[1] > LIST_LENGTH:
        # Sorting whole rows by (score, id) is slow and matters only where a tie lies across the end of the list.
        last_Q, next_Q = best_QW[:, LIST_LENGTH - 1], best_QW[:, LIST_LENGTH]
        row_T = ((last_Q == next_Q) & (next_Q > -torch.inf)).nonzero().squeeze(1)
        every_TI = torch.arange(scores.shape[1]).expand(len(row_T), -1)
        ids_QK[row_T] = topk_smaller_id(scores[row_T], every_TI, LIST_LENGTH)[1]
    ids: Ints = ids_QK.numpy()
    return ids
