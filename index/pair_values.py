"""What an item graph says of single pairs of items.

Suffixes: X = pairs, R = relations, S = distinct sources, T = their edges.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.index.item_graph import ItemGraph

__all__ = ["pair_values"]

_EDGES_AT_ONCE = 1 << 22


def pair_values(graph: ItemGraph, source_X: Tensor, target_X: Tensor) -> Tensor:
    """[X, R] f_r(source -> target), on the device of the items; 0 where there is no such edge, and for negative items.

    The edges of every source are looked at once, however many pairs it is in.
    """
    num_relations, home, device = len(graph.relations), source_X.device, graph.indptr.device
    source_X, target_X = source_X.to(device), target_X.to(device)
    out_XR = torch.zeros(len(source_X), num_relations, dtype=torch.float32, device=device)
    real_X = ((source_X >= 0) & (target_X >= 0)).nonzero().flatten()
    if not num_relations or not len(real_X):
        return out_XR.to(home)
    source_S, place_X = torch.unique(source_X[real_X], return_inverse=True)
    order_X = place_X.argsort(stable=True)
    first_S = torch.searchsorted(place_X[order_X], torch.arange(len(source_S) + 1, device=device))
    edges_S = graph.num_edges_of(source_S)
    low = 0
    while low < len(source_S):
        total_S = edges_S[low:].cumsum(0)
        high = low + max(1, int(torch.searchsorted(total_S, _EDGES_AT_ONCE, right=True)))
        block_X = order_X[first_S[low] : first_S[high]]
        out_XR[real_X[block_X]] = _values(graph, source_S[low:high], place_X[block_X] - low, target_X[real_X[block_X]])
        low = high
    return out_XR.to(home)


def _values(graph: ItemGraph, source_S: Tensor, place_X: Tensor, target_X: Tensor) -> Tensor:
    """[X, R] of pairs whose source is ``source_S[place_X]``."""
    num_relations, num_items = len(graph.relations), graph.num_items
    device = graph.indptr.device
    row_SR = source_S[:, None] * num_relations + torch.arange(num_relations, device=device)
    owner_T, id_T, value_T = graph.edges(row_SR.flatten())
    key_T, order_T = (owner_T * num_items + id_T).sort()
    asked_XR = place_X[:, None] * num_relations + torch.arange(num_relations, device=device)
    asked_XR = asked_XR * num_items + target_X[:, None]
    if not len(key_T):
        return torch.zeros(asked_XR.shape, device=device)
    at_XR = torch.searchsorted(key_T, asked_XR).clamp_max(len(key_T) - 1)
    return torch.where(key_T[at_XR] == asked_XR, value_T[order_T][at_XR], 0.0)
