"""Scoring and searching the neighbours of a user's last items.

Suffixes: B = users, M = recent items of a user, R = relations, T = edges, X = distinct (user, item) pairs, K = hits,
C = candidates, E = exclusions, N = allowed items, I = items.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recsys.index.hits import Hits
from recsys.index.protocol import check_lists, no_hits
from recsys.kernels.topk import topk_smaller_id

if TYPE_CHECKING:
    from recsys.index.item_graph import ItemGraph

__all__ = ["neighbour_hits", "neighbour_scores"]

_EDGES_AT_ONCE = 2**22
"""Edges gathered at once by :func:`neighbour_hits`."""


def neighbour_scores(graph: ItemGraph, recent_BM: Tensor, weights: Mapping[str, float] | None, decay: float) -> Tensor:
    """See :meth:`ItemGraph.scores`."""
    _check_recent(graph, recent_BM, decay)
    active = _active(graph, weights)
    device = graph.indptr.device
    out_BI = torch.zeros(len(recent_BM), graph.num_items, dtype=torch.float32, device=device)
    step = max(1, _EDGES_AT_ONCE // max(1, graph.num_items))
    for low in range(0, len(recent_BM), step):
        recent_bM = recent_BM[low : low + step].to(device)
        sum_X = torch.zeros(len(recent_bM) * graph.num_items, dtype=torch.float64, device=device)
        for user_T, id_T, term_T in _terms(graph, recent_bM, active, decay):
            sum_X.index_add_(0, user_T * graph.num_items + id_T, term_T)
        out_BI[low : low + step] = sum_X.view(len(recent_bM), graph.num_items).float()
    return out_BI.to(recent_BM.device)


def neighbour_hits(
    graph: ItemGraph,
    recent_BM: Tensor,
    k: int,
    weights: Mapping[str, float] | None,
    decay: float,
    exclude_QE: Tensor | None,
    allow_N: Tensor | None,
) -> Hits:
    """See :meth:`ItemGraph.search`."""
    _check_recent(graph, recent_BM, decay)
    check_lists(len(recent_BM), k, exclude_QE, allow_N, graph.num_items)
    active = _active(graph, weights)
    device, home = graph.indptr.device, recent_BM.device
    most = max(1, recent_BM.shape[1] * len(active) * graph.max_neighbours)
    step = max(1, _EDGES_AT_ONCE // most)
    allowed_I = None
    if allow_N is not None:
        allowed_I = torch.zeros(graph.num_items, dtype=torch.bool, device=device)
        allowed_I[allow_N.to(device)] = True
    if graph.gone_I is not None:
        allowed_I = ~graph.gone_I if allowed_I is None else allowed_I & ~graph.gone_I
    chunks = []
    for low in range(0, len(recent_BM), step):
        exclude_bE = None if exclude_QE is None else exclude_QE[low : low + step].to(device)
        terms = _terms(graph, recent_BM[low : low + step].to(device), active, decay)
        chunks.append(_merge(graph, terms, len(recent_BM[low : low + step]), k, exclude_bE, allowed_I))
    if not chunks:
        return no_hits(0, k, home)
    return Hits(torch.cat([ids for _, ids in chunks]).to(home), torch.cat([best for best, _ in chunks]).to(home))


def _active(graph: ItemGraph, weights: Mapping[str, float] | None) -> list[tuple[int, float]]:
    """(place, weight) of the relations that are on."""
    chosen = graph.default_weights if weights is None else weights
    for name, weight in chosen.items():
        if name not in graph.relations:
            raise ValueError(f"the item graph has no relation {name!r}; it has {', '.join(graph.relations) or 'none'}")
        if not 0 <= weight < float("inf"):
            raise ValueError(f"the weight of relation {name!r} must be at least 0, got {weight}")
    return [(at, float(chosen[name])) for at, name in enumerate(graph.relations) if chosen.get(name, 0.0) > 0]


def _check_recent(graph: ItemGraph, recent_BM: Tensor, decay: float) -> None:
    if recent_BM.dim() != 2 or recent_BM.dtype != torch.int64:
        raise ValueError(f"recent_BM must be int64 [B, M], got {recent_BM.dtype} {list(recent_BM.shape)}")
    if recent_BM.numel() and int(recent_BM.max()) >= graph.num_items:
        raise ValueError(f"recent item {int(recent_BM.max())} is outside the graph's {graph.num_items} items")
    if not 0 < decay <= 1:
        raise ValueError(f"decay must be above 0 and at most 1, got {decay}")


def _terms(
    graph: ItemGraph, recent_BM: Tensor, active: list[tuple[int, float]], decay: float
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per recent place and relation: user, neighbour and float64 term of every edge."""
    terms = []
    for back in range(recent_BM.shape[1]):
        user_b = (recent_BM[:, back] >= 0).nonzero().squeeze(1)
        for relation, weight in active:
            row_b = recent_BM[user_b, back] * len(graph.relations) + relation
            owner_T, id_T, value_T = graph.edges(row_b)
            terms.append((user_b[owner_T], id_T, value_T.double() * (weight * decay**back)))
    return terms


def _merge(
    graph: ItemGraph,
    terms: list[tuple[Tensor, Tensor, Tensor]],
    num_users: int,
    k: int,
    exclude_QE: Tensor | None,
    allowed_I: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if not terms or not sum(len(term_T) for _, _, term_T in terms):
        none = no_hits(num_users, k, graph.indptr.device)
        return none.scores_QK, none.ids_QK
    key_T = torch.cat([user_T * graph.num_items + id_T for user_T, id_T, _ in terms])
    # Stable, so that the terms of one item keep their order and their sum rounds as that of `scores` does.
    key_T, order_T = key_T.sort(stable=True)
    found_X, place_T = torch.unique_consecutive(key_T, return_inverse=True)
    sum_X = torch.zeros(len(found_X), dtype=torch.float64, device=key_T.device)
    sum_X.index_add_(0, place_T, torch.cat([term_T for _, _, term_T in terms])[order_T])
    user_X, id_X = found_X // graph.num_items, found_X % graph.num_items
    if exclude_QE is not None:
        query_P, slot_P = ((exclude_QE >= 0) & (exclude_QE < graph.num_items)).nonzero(as_tuple=True)
        sum_X[torch.isin(found_X, query_P * graph.num_items + exclude_QE[query_P, slot_P])] = -torch.inf
    if allowed_I is not None:
        sum_X[~allowed_I[id_X]] = -torch.inf
    count_B = torch.bincount(user_X, minlength=num_users)
    first_B = count_B.cumsum(0) - count_B
    column_X = torch.arange(len(found_X), device=key_T.device) - first_B[user_X]
    width = int(count_B.max())
    score_BC = torch.full((num_users, width), -torch.inf, dtype=torch.float32, device=key_T.device)
    id_BC = torch.full((num_users, width), -1, dtype=torch.int64, device=key_T.device)
    score_BC[user_X, column_X] = sum_X.float()
    id_BC[user_X, column_X] = id_X
    return topk_smaller_id(score_BC, id_BC, k)
