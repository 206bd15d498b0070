"""Allow lists and exclusions of requests, as nodes of the code trie that lead to nothing any more.

A node whose items are all excluded never enters a beam, so that it cannot hold a place that a reachable item should
have. An allow list marks the nodes above its items; exclusions are few per request and are counted node by node.

Suffixes: B = requests, E = exclusions of a request, A = allowed items, N = nodes of a level, M = nodes of the level
above, W = beams, T = children of beams or items of leaves, X = excluded items below beams.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from recsys.index.code_trie import Children, CodeTrie

__all__ = ["TrieFilter"]


class TrieFilter:
    """What a batch of requests may reach."""

    def __init__(
        self, trie: CodeTrie, num_requests: int, *, allow_N: Tensor | None = None, exclude_BE: Tensor | None = None
    ) -> None:
        """Turn items into places.

        Args:
            trie: of the catalogue.
            num_requests: B.
            allow_N: [N] int64 ids, strictly rising: nothing else is reached by any request; None = all items.
            exclude_BE: [B, E] int64 ids that the request must not get, padded with −1; others outside the catalogue are
                ignored.
        """
        self.trie = trie
        self.place_A = None if allow_N is None else _minus(trie.place_I[allow_N].long().sort().values, trie.gone_G)
        self.place_BE = torch.full((num_requests, 0), trie.num_items)
        if exclude_BE is not None and exclude_BE.shape[1]:
            self.place_BE = self._counted(exclude_BE)

    def _counted(self, exclude_BE: Tensor) -> Tensor:
        """[B, E] places of distinct excluded items that would be reached otherwise, rising; all others = num_items."""
        trie = self.trie
        known_BE = (exclude_BE >= 0) & (exclude_BE < trie.num_items)
        place_BE = trie.place_I[exclude_BE.masked_fill(~known_BE, 0)].long()
        reached_BE = known_BE if self.place_A is None else known_BE & _holds(self.place_A, place_BE)
        if trie.gone_G is not None:
            reached_BE = reached_BE & ~_holds(trie.gone_G, place_BE)
        place_BE = place_BE.masked_fill(~reached_BE, trie.num_items).sort(1).values
        place_BE[:, 1:] = place_BE[:, 1:].masked_fill(place_BE[:, 1:] == place_BE[:, :-1], trie.num_items)
        return place_BE.sort(1).values

    def reachable(self) -> Tensor:
        """[B] int64 number of items that each request may get."""
        total = self.trie.num_left if self.place_A is None else len(self.place_A)
        return total - (self.place_BE < self.trie.num_items).sum(1)

    def _alive(self, level: int) -> Tensor | None:
        """[N] bool nodes of a level that lead to an allowed item that is not removed; None = all do."""
        if self.place_A is None:
            return self.trie.levels[level].alive_N
        start_N1 = self.trie.levels[level].start_N1
        alive_N = torch.zeros(len(start_N1) - 1, dtype=torch.bool)
        alive_N[_node(start_N1, self.place_A)] = True
        return alive_N

    def cut(
        self, level: int, node_BW: Tensor, children: Children, above_BE: Tensor | None
    ) -> tuple[Children, Tensor | None]:
        """Children of beams without those that lead to nothing.

        Args:
            level: of the children.
            node_BW: nodes of the level above.
            children: from :meth:`recsys.index.code_trie.TrieLevel.spread`, not used any more afterwards.
            above_BE: what this method returned at the level above; None at the first one.

        Returns:
            the children with −1 where nothing is left, and [B, E] the node of each excluded item below a beam.
        """
        found = self.trie.levels[level]
        alive_N = self._alive(level)
        node_T = children.node_T
        if alive_N is not None:
            node_T = node_T.masked_fill(~alive_N[node_T.clamp_min(0)], -1)
        if not self.place_BE.shape[1]:
            return children if alive_N is None else replace(children, node_T=node_T), None
        if above_BE is None:
            above_BE = (self.place_BE < self.trie.num_items).long() - 1  # the root, or nowhere
        # Most excluded items are below no beam, and deeper down nearly all. Each is looked up among the beams: a table
        # of all exclusions times all beams would take gigabytes where both are many.
        sorted_BW, order_BW = node_BW.sort(1)
        at_BE = torch.searchsorted(sorted_BW, above_BE).clamp_max(node_BW.shape[1] - 1)
        row_X, column_X = ((sorted_BW.gather(1, at_BE) == above_BE) & (above_BE >= 0)).nonzero(as_tuple=True)
        beam_X = order_BW[row_X, at_BE[row_X, column_X]]
        node_X = _node(found.start_N1, self.place_BE[row_X, column_X])
        node_BE = torch.full_like(above_BE, -1)
        node_BE[row_X, column_X] = node_X
        _, which_X, count_Y = (row_X * found.num_nodes + node_X).unique(return_inverse=True, return_counts=True)
        is_dead_X = count_Y[which_X] >= self._left(found.start_N1, node_X)
        row_X, beam_X, node_X = row_X[is_dead_X], beam_X[is_dead_X], node_X[is_dead_X]
        if found.table_MK is None:
            slot_X = node_X - found.child_M1[node_BW[row_X, beam_X]].long()
        else:
            slot_X = found.code_N[node_X].long()
        node_T[children.first_X1[row_X * node_BW.shape[1] + beam_X] + slot_X] = -1
        return replace(children, node_T=node_T), node_BE

    def _left(self, start_N1: Tensor, node_X: Tensor) -> Tensor:
        """[X] items of nodes that may be reached as long as they are not excluded."""
        low_X, high_X = start_N1[node_X].long(), start_N1[node_X + 1].long()
        if self.place_A is not None:
            return _between(self.place_A, low_X, high_X)
        if self.trie.gone_G is not None:
            return high_X - low_X - _between(self.trie.gone_G, low_X, high_X)
        return high_X - low_X

    def items(self, level: int, node_BW: Tensor, score_BW: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The first k items that the requests may get below some nodes, node by node in the order of the trie.

        Args:
            level: of the nodes.
            node_BW: [B, W] int64 distinct nodes, best first; −1 = none. score_BW: [B, W] float32, of all their items.
            k: items wanted.

        Returns:
            [B, k] int64 ids and [B, k] float32 scores; unfilled places are (−1, −inf).
        """
        trie, num_requests = self.trie, len(node_BW)
        start_N1 = trie.levels[level].start_N1
        low_BW, high_BW = (start_N1[node_BW.clamp_min(0) + step].long() for step in (0, 1))
        most_BW = torch.full_like(low_BW, k + self.place_BE.shape[1])
        if self.place_A is not None:
            low_BW, high_BW = (torch.searchsorted(self.place_A, bound_BW) for bound_BW in (low_BW, high_BW))
        elif trie.gone_G is not None:
            most_BW = most_BW + _between(trie.gone_G, low_BW, high_BW)
        count_X = torch.minimum(high_BW - low_BW, most_BW).masked_fill(node_BW < 0, 0).flatten()
        owner_T = torch.repeat_interleave(count_X)
        first_X = count_X.cumsum(0) - count_X
        place_T = low_BW.flatten()[owner_T] + torch.arange(len(owner_T)) - first_X[owner_T]
        if self.place_A is not None:
            place_T = self.place_A[place_T]
        row_T = owner_T // max(1, node_BW.shape[1])
        if self.place_BE.shape[1] or (self.place_A is None and trie.gone_G is not None):
            # Numbers of a row end with that of no place, so that rows stay apart.
            key_X = (self.place_BE + torch.arange(num_requests)[:, None] * (trie.num_items + 1)).flatten()
            keep_T = ~_holds(key_X, row_T * (trie.num_items + 1) + place_T)
            if self.place_A is None and trie.gone_G is not None:
                keep_T &= ~_holds(trie.gone_G, place_T)
            owner_T, row_T, place_T = owner_T[keep_T], row_T[keep_T], place_T[keep_T]
        kept_B = torch.bincount(row_T, minlength=num_requests)
        column_T = torch.arange(len(row_T)) - (kept_B.cumsum(0) - kept_B)[row_T]
        fits_T = column_T < k
        at_T = row_T[fits_T], column_T[fits_T]
        id_BK = torch.full((num_requests, k), -1, dtype=torch.int64)
        score_BK = torch.full((num_requests, k), -torch.inf)
        id_BK[at_T] = trie.item_P[place_T[fits_T]].long()
        score_BK[at_T] = score_BW.flatten()[owner_T[fits_T]]
        return id_BK, score_BK


def _node(start_N1: Tensor, place: Tensor) -> Tensor:
    return torch.searchsorted(start_N1, place.to(start_N1.dtype), right=True) - 1


def _between(sorted_X: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How many sorted numbers are at least ``low`` and less than ``high``."""
    return torch.searchsorted(sorted_X, high) - torch.searchsorted(sorted_X, low)


def _holds(sorted_X: Tensor, value: Tensor) -> Tensor:
    if not len(sorted_X):
        return torch.zeros_like(value, dtype=torch.bool)
    at = torch.searchsorted(sorted_X, value).clamp_max(len(sorted_X) - 1)
    return sorted_X[at] == value


def _minus(sorted_X: Tensor, other_Y: Tensor | None) -> Tensor:
    return sorted_X if other_Y is None else sorted_X[~_holds(other_Y, sorted_X)]
