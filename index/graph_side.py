"""Edges that came to an item graph after it was laid out: rows that items bring, and places they take in older rows.

The table of a large catalogue is not copied for a few new items: what they change lies beside it. A row is then the
best edges of the table that were kept, and the edges beside it. Since both are cut from one order (larger value first,
of equal ones the smaller id), the kept ones are always the first of the table's row.

Suffixes: X = rows of a graph (item · relations + relation), T = edges, I = items, J = items that move, B = a block of
those, N = items whose rows change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recsys.index.edge_table import ranges
from recsys.kernels.topk import largest

if TYPE_CHECKING:
    from recsys.index.item_graph import ItemGraph

__all__ = ["Cosines", "GraphSide", "moved"]

_CELLS_AT_ONCE = 2**22
"""Cosines held at once."""
_LEAST = 1e-30
"""The smallest cosine that makes an edge; what is smaller is rounding of nothing in common."""

Cosines = Callable[[Tensor], Tensor]
"""[B] int64 items to [B, I] float32 cosines with every item of the catalogue as it is now, at most 1."""


@dataclass(frozen=True, slots=True)
class GraphSide:
    """What stands beside the table of a graph."""

    kept_X: Tensor
    """[X] int32 edges of the table's row that still stand; rows beyond the table have none."""
    indptr_X1: Tensor
    """[X + 1] int64: the edges beside row x are ``indptr_X1[x]`` up to ``indptr_X1[x + 1]``, best first."""
    neighbours: Tensor
    """[T] int32."""
    values: Tensor
    """[T] float32."""

    @property
    def num_bytes(self) -> int:
        parts = (self.kept_X, self.indptr_X1, self.neighbours, self.values)
        return sum(part.numel() * part.element_size() for part in parts)

    def to(self, device: str | torch.device) -> GraphSide:
        return GraphSide(*(part.to(device) for part in (self.kept_X, self.indptr_X1, self.neighbours, self.values)))


def moved(graph: ItemGraph, num_items: int, moved_J: Tensor, cosines: dict[str, Cosines]) -> ItemGraph:
    """The graph in which some items have other vectors, or are new: what building all of it would give.

    Args:
        graph: of the catalogue before.
        num_items: of the catalogue now; older items keep their ids.
        moved_J: [J] int64 rising, every item from ``graph.num_items`` on and older ones whose vectors changed.
        cosines: for every relation of content that the vectors make. Other relations keep their edges, and new items
            have none in them.
    """
    num_relations = len(graph.relations)
    if not num_relations:
        return replace(graph, indptr=torch.zeros(num_items + 1, dtype=torch.int64, device=graph.indptr.device))
    side = _widened(graph, num_items)
    grown = replace(graph, side=side)
    for name, of in cosines.items():
        grown = replace(grown, side=_with_relation(grown, graph.relations.index(name), moved_J, of))
    return grown


def _widened(graph: ItemGraph, num_items: int) -> GraphSide:
    """The same edges, with room for more items."""
    num_rows, device = num_items * len(graph.relations), graph.indptr.device
    side = graph.side
    if side is None:
        kept_X = graph.indptr.diff().int()
        none = torch.zeros(len(kept_X) + 1, dtype=torch.int64, device=device)
        side = GraphSide(kept_X, none, graph.neighbours[:0].clone(), graph.values[:0].clone())
    missing = num_rows - len(side.kept_X)
    kept_X = torch.cat([side.kept_X, side.kept_X.new_zeros(missing)])
    indptr_X1 = torch.cat([side.indptr_X1, side.indptr_X1[-1:].expand(missing)])
    return GraphSide(kept_X, indptr_X1, side.neighbours, side.values)


def _with_relation(graph: ItemGraph, at: int, moved_J: Tensor, cosines: Cosines) -> GraphSide:
    """The side after the vectors of one relation moved."""
    assert graph.side is not None
    side, num_relations, most = graph.side, len(graph.relations), graph.max_neighbours
    num_items, device = graph.num_items, graph.indptr.device
    moved_J = moved_J.to(device)
    is_moved_I = torch.zeros(num_items, dtype=torch.bool, device=device)
    is_moved_I[moved_J] = True
    # Rows that hold an item that moved may have lost a neighbour that only a search finds a successor for.
    again_I = is_moved_I.clone()
    again_I[_holders(graph, at, is_moved_I)] = True
    again_N = again_I.nonzero().flatten()
    row_I = torch.arange(num_items, device=device) * num_relations + at
    kept_X = side.kept_X.clone()
    kept_X[row_I[again_N]] = 0
    low_I = side.indptr_X1[row_I]
    side_count_I = (side.indptr_X1[row_I + 1] - low_I).masked_fill(again_I, 0)
    tail_I = _tail(graph, at, side_count_I).clamp_min(_LEAST).masked_fill(again_I, torch.inf)
    rows, ids, values = [], [], []
    step = max(1, _CELLS_AT_ONCE // max(1, num_items))
    for low in range(0, len(again_N), step):
        item_B = again_N[low : low + step]
        cosine_BI = cosines(item_B)
        cosine_BI[torch.arange(len(item_B), device=device), item_B] = -torch.inf
        # Of equal ones at the end of a row too many are taken here; the order below cuts them.
        weakest_B = largest(cosine_BI, min(most, num_items))[0].amin(1).clamp_min(_LEAST)
        from_X, to_X = (cosine_BI >= weakest_B[:, None]).nonzero(as_tuple=True)
        rows.append(item_B[from_X])
        ids.append(to_X)
        values.append(cosine_BI[from_X, to_X])
        # As neighbours of the others: those that would not come last of a full row.
        bring_B = is_moved_I[item_B].nonzero().flatten()
        from_X, to_X = (cosine_BI[bring_B] >= tail_I).nonzero(as_tuple=True)
        rows.append(to_X)
        ids.append(item_B[bring_B][from_X])
        values.append(cosine_BI[bring_B[from_X], to_X])
    touched_I = again_I.clone()
    touched_I[torch.cat([again_N[:0], *rows])] = True
    touched_N = touched_I.nonzero().flatten()
    owner_T, edge_T = ranges(low_I[touched_N], side_count_I[touched_N])
    item_T = torch.cat([touched_N[owner_T], *rows])
    id_T = torch.cat([side.neighbours[edge_T].long(), *ids])
    value_T = torch.cat([side.values[edge_T], *values])
    order_T = _in_order(item_T, id_T, value_T)
    item_T, id_T, value_T = item_T[order_T], id_T[order_T], value_T[order_T]
    count_I = torch.bincount(item_T, minlength=num_items)
    place_T = torch.arange(len(item_T), device=device) - (count_I.cumsum(0) - count_I)[item_T]
    # Only where table and side are more than a row holds does it matter where they meet.
    stays_T = place_T < most
    kept_I = kept_X[row_I].long()
    crowded_T = ((kept_I > 0) & (kept_I + count_I > most))[item_T].nonzero().flatten()
    rank_T = _better(graph, kept_X, row_I[item_T[crowded_T]], id_T[crowded_T], value_T[crowded_T])
    stays_T[crowded_T] = place_T[crowded_T] + rank_T < most
    item_T, id_T, value_T = item_T[stays_T], id_T[stays_T], value_T[stays_T]
    count_N = torch.bincount(item_T, minlength=num_items)[touched_N]
    row_N = row_I[touched_N]
    kept_X[row_N] = torch.minimum(kept_X[row_N], (most - count_N).int())
    return _laid_out(side, kept_X, row_N, count_N, id_T.int(), value_T)


def _in_order(item_T: Tensor, id_T: Tensor, value_T: Tensor) -> Tensor:
    """The order of edges by item, value (larger first) and id."""
    order_T = id_T.argsort(stable=True)
    # Positive floats sort like their bits.
    key_T = (item_T << 32) - value_T.contiguous().view(torch.int32).long()
    return order_T[key_T[order_T].argsort(stable=True)]


def _holders(graph: ItemGraph, at: int, is_moved_I: Tensor) -> Tensor:
    """Items with a neighbour in a relation that moved and is not new to the graph; an item may come twice."""
    assert graph.side is not None
    side, num_relations = graph.side, len(graph.relations)
    found = []
    tables = ((graph.indptr, graph.neighbours, side.kept_X), (side.indptr_X1, side.neighbours, None))
    for indptr_X1, neighbours, kept_X in tables:
        if not len(neighbours) or not bool(is_moved_I[: len(indptr_X1) // num_relations].any()):
            continue
        edge_T = is_moved_I[neighbours.long()].nonzero().flatten()
        row_T = torch.searchsorted(indptr_X1, edge_T, right=True) - 1
        if kept_X is not None:
            stands_T = edge_T - indptr_X1[row_T] < kept_X[row_T]
            row_T = row_T[stands_T]
        found.append(row_T[row_T % num_relations == at] // num_relations)
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64, device=graph.indptr.device)


def _tail(graph: ItemGraph, at: int, side_count_I: Tensor) -> Tensor:
    """[I] value of the weakest edge of every full row; 0 of the others."""
    assert graph.side is not None
    side, num_items = graph.side, graph.num_items
    row_I = torch.arange(num_items, device=graph.indptr.device) * len(graph.relations) + at
    kept_I = side.kept_X[row_I].long()
    first_I = graph.indptr[row_I.clamp_max(len(graph.indptr) - 2)]
    infinite = torch.full((num_items,), torch.inf, device=graph.indptr.device)
    last_I = infinite.clone()
    has_I = (kept_I > 0).nonzero().flatten()
    last_I[has_I] = graph.values[(first_I + kept_I - 1)[has_I]]
    beside_I = (side_count_I > 0).nonzero().flatten()
    end_I = side.indptr_X1[row_I + 1]
    last_I[beside_I] = torch.minimum(last_I[beside_I], side.values[end_I[beside_I] - 1])
    return last_I.masked_fill(kept_I + side_count_I < graph.max_neighbours, 0.0)


def _better(graph: ItemGraph, kept_X: Tensor, row_T: Tensor, id_T: Tensor, value_T: Tensor) -> Tensor:
    """[T] how many kept edges of the table's row stand before an edge: larger values, of equal ones smaller ids."""
    low_T = torch.zeros_like(row_T)
    high_T = kept_X[row_T].long()
    if not len(graph.values):
        return low_T
    first_T = graph.indptr[row_T.clamp_max(len(graph.indptr) - 2)]
    for _ in range(graph.max_neighbours.bit_length()):
        middle_T = (low_T + high_T) // 2
        edge_T = (first_T + middle_T).clamp_max(len(graph.values) - 1)
        value, ids = graph.values[edge_T], graph.neighbours[edge_T].long()
        before_T = ((value > value_T) | ((value == value_T) & (ids < id_T))) & (low_T < high_T)
        low_T = torch.where(before_T, middle_T + 1, low_T)
        high_T = torch.where(before_T | (low_T >= high_T), high_T, middle_T)
    return low_T


def _laid_out(
    side: GraphSide, kept_X: Tensor, row_N: Tensor, count_N: Tensor, id_T: Tensor, value_T: Tensor
) -> GraphSide:
    """The side with some rows, rising, replaced."""
    count_X = side.indptr_X1.diff()
    rest_X = count_X.clone()
    rest_X[row_N] = 0
    count_X = rest_X.clone()
    count_X[row_N] = count_N
    indptr_X1 = torch.nn.functional.pad(count_X.cumsum(0), (1, 0))
    neighbours = torch.empty(int(indptr_X1[-1]), dtype=torch.int32, device=id_T.device)
    values = torch.empty(len(neighbours), device=id_T.device)
    _, from_T = ranges(side.indptr_X1[:-1], rest_X)
    _, to_T = ranges(indptr_X1[:-1], rest_X)
    neighbours[to_T], values[to_T] = side.neighbours[from_T], side.values[from_T]
    _, to_T = ranges(indptr_X1[row_N], count_N)
    neighbours[to_T], values[to_T] = id_T, value_T
    return GraphSide(kept_X, indptr_X1, neighbours, values)
