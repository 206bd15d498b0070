"""Memory terms as features of a candidate: what the item graph says of it, given the user's last positive items.

Per relation, over the last m positive items known before the request: the sum of f_r(h_j -> i) with a fixed decay of
items further back, and the strongest of them; ln(1 + x) of both.

A training row must not read its own label. Transitions are counted from training events, the row's own among them, so
a pair that its user makes at or after the row's time is taken out of the counts again: a row reads the graph as it
would be if its user had stopped before it, which is how validation and test read it. Relations of content say nothing
of what anybody did. Walks over the transitions hold them too, in sums that no
pair can be taken out of: they are not read.

Suffixes: B = rows or requests, C = candidates of a request, M = recent items, R = relations, F = features,
P = positive training events, T = counted edges, K = distinct pairs, I = items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.event_counts import SumsBefore
from recsys.index.item_graph import GAMMA, TRANSITION, ItemGraph
from recsys.index.pair_values import pair_values
from recsys.index.transitions import REVERSE, STEPS
from recsys.past_counts import event_owners, training_mask

if TYPE_CHECKING:
    from recsys.dataset import Dataset

__all__ = ["MemoryLog", "memory_features", "memory_width", "readable_relations"]

DECAY = 0.6
"""Of each item further back."""
_NOISE = 1e-6
"""Sums of counts differ by less than this from rounding alone."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


def memory_width(num_relations: int) -> int:
    """Number of features."""
    return 2 * num_relations


def readable_relations(dataset: Dataset) -> tuple[str, ...]:
    """Relations of the dataset's item graphs that a ranking head may read: transitions, then those of content."""
    text = () if dataset.sparse_text is None else ("text",)
    return (TRANSITION, *text, *dataset.relation_vectors)


def memory_features(graph: ItemGraph, relations: Sequence[str], recent_BM: Tensor, item_BC: Tensor) -> Tensor:
    """[B, C, F] features of the candidates of requests, on their device.

    Args:
        graph: of everything that may be known.
        relations: names, in the order of the features.
        recent_BM: [B, M] last positive items, newest first, -1 padded. item_BC: [B, C]; a negative one has zeros.
    """
    shape = (*item_BC.shape, recent_BM.shape[1])
    source_X = recent_BM[:, None].expand(shape).flatten()
    value_XR = pair_values(graph, source_X, item_BC[:, :, None].expand(shape).flatten())
    places = [graph.relations.index(name) for name in relations]
    return _summed(value_XR[:, places].view(*shape, len(places)))


def _summed(value_BMR: Tensor) -> Tensor:
    """[..., M, R] values to [..., F] features."""
    decay_M1 = DECAY ** torch.arange(value_BMR.shape[-2], device=value_BMR.device)[:, None]
    parts = [(value_BMR * decay_M1).sum(-2), value_BMR.amax(-2)]
    return torch.log1p(torch.cat(parts, -1))


class MemoryLog:
    """The same features for rows of a dataset, each as of its own time, its user's later transitions taken out."""

    def __init__(self, dataset: Dataset, graph: ItemGraph, relations: Sequence[str], recent: int) -> None:
        """Count the transitions of training events.

        Args:
            graph: of training events' transitions.
            relations: names, in the order of the features. recent: items that count (m).
        """
        self.graph, self.recent = graph, recent
        self._places = [graph.relations.index(name) for name in relations]
        log = dataset.events
        self._offsets = log.offsets
        self._item_N = log.item
        self._positive_P = np.flatnonzero(dataset.is_positive() & (log.item >= 0))
        self._transition = list(relations).index(TRANSITION) if TRANSITION in relations else None
        if self._transition is None:
            return
        trains_P = training_mask(dataset)[self._positive_P]
        edges = list(_counted_edges(self._positive_P[trains_P], event_owners(log), log.item))
        source_T, target_T, later_T, count_T = (np.concatenate(column) for column in zip(*edges, strict=True))
        self._key_K, pair_T = np.unique(source_T * dataset.num_items + target_T, return_inverse=True)
        self._num_items, self._end = dataset.num_items, len(log)
        every_row = np.arange(len(log) + 1)
        self._pairs = SumsBefore(pair_T, later_T, count_T[:, None], every_row)
        self._rows = SumsBefore(source_T, later_T, count_T[:, None], every_row)
        source_K = self._key_K // self._num_items
        self._cut_I = np.bincount(source_K, minlength=self._num_items) > graph.max_neighbours

    def features(self, user_B: Ints, visible_B: Ints, item_B: Ints) -> Floats:
        """[B, F] features of rows.

        Args:
            visible_B: how many of the user's events are strictly before the row.
        """
        row_B = self._offsets[user_B] + visible_B
        recent_BM = self._recent(user_B, row_B)
        target_BM = np.broadcast_to(item_B[:, None], recent_BM.shape)
        value_XR = pair_values(
            self.graph, torch.from_numpy(recent_BM.flatten()), torch.from_numpy(target_BM.flatten())
        ).cpu()[:, self._places]
        if self._transition is not None:
            end_B = self._offsets[user_B + 1]
            later = (np.repeat(bound_B, self.recent) for bound_B in (row_B, end_B))
            self._take_out_later(
                value_XR[:, self._transition].numpy(), recent_BM.flatten(), target_BM.flatten(), *later
            )
        return _summed(value_XR.view(*recent_BM.shape, len(self._places))).numpy()

    def _recent(self, user_B: Ints, row_B: Ints) -> Ints:
        """[B, M] last positive items before rows of the log."""
        if not len(self._positive_P):
            return np.full((len(row_B), self.recent), -1, dtype=np.int64)
        place_BM = np.searchsorted(self._positive_P, row_B)[:, None] - 1 - np.arange(self.recent)
        event_BM = self._positive_P[place_BM.clip(0)]
        own_BM = (place_BM >= 0) & (event_BM >= self._offsets[user_B][:, None])
        return np.where(own_BM, self._item_N[event_BM], -1)

    def _take_out_later(self, value_X: Floats, source_X: Ints, target_X: Ints, row_X: Ints, end_X: Ints) -> None:
        """Put f of the smaller counts in the place of [X] transitions whose user makes later ones from the source."""

        def within(sums: SumsBefore, key: Ints, low: Ints, high: Ints) -> NDArray[np.float64]:
            found: NDArray[np.float64] = (sums.before(key, high) - sums.before(key, low))[:, 0]
            return found

        changed = np.flatnonzero((source_X >= 0) & (target_X >= 0))
        own = within(self._rows, source_X[changed], row_X[changed], end_X[changed])
        changed, own = changed[own > _NOISE], own[own > _NOISE]
        source, target, last = source_X[changed], target_X[changed], np.full(len(changed), self._end)
        total = self._rows.before(source, last)[:, 0] - own
        pair = self._pair(source, target)
        count = self._pairs.before(pair, last)[:, 0]
        count -= within(self._pairs, pair, row_X[changed], end_X[changed])
        # Of more neighbours than a row of the graph holds, the last one that it holds is the bar for all.
        num_relations = len(self.graph.relations)
        stop = self.graph.indptr[source * num_relations + self.graph.relations.index(TRANSITION) + 1].cpu().numpy()
        last_kept = self.graph.neighbours[(stop - 1).clip(0)].cpu().numpy().astype(np.int64)
        bar = self._pairs.before(self._pair(source, last_kept), last)[:, 0]
        above = (count > bar + _NOISE) | ((count > bar - _NOISE) & (target <= last_kept))
        stays = (count > _NOISE) & (total > _NOISE) & (above | ~self._cut_I[source])
        share = np.where(stays, count, 0.0) / np.where(stays, total, 1.0)
        value_X[changed] = np.log1p(GAMMA * share)

    def _pair(self, source: Ints, target: Ints) -> Ints:
        """Places of pairs among the counted ones; -1 = never counted."""
        key = source * self._num_items + target
        if not len(self._key_K):
            return np.full(len(key), -1, dtype=np.int64)
        place = np.searchsorted(self._key_K, key).clip(max=len(self._key_K) - 1)
        return np.where(self._key_K[place] == key, place, -1)


def _counted_edges(
    event_P: Ints, owner_N: Ints, item_N: Ints
) -> Iterator[tuple[Ints, Ints, Ints, NDArray[np.float64]]]:
    """Source, target, row of the later event and count of every transition of positive events."""
    for step, weight in enumerate(STEPS, start=1):
        first_T, later_T = event_P[:-step], event_P[step:]
        counts = (owner_N[first_T] == owner_N[later_T]) & (item_N[first_T] != item_N[later_T])
        first_T, later_T = first_T[counts], later_T[counts]
        yield item_N[first_T], item_N[later_T], later_T, np.full(len(later_T), weight)
        yield item_N[later_T], item_N[first_T], later_T, np.full(len(later_T), weight * REVERSE)
