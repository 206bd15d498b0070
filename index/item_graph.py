"""The item graph: for every item and relation its best neighbours, in one CSR table.

Suffixes: I = items, R = relations, T = edges, B = users (items of a block where said), M = recent items of a user,
K = hits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from recsys.index.edge_table import EdgeSpool, EdgeTable, ranges
from recsys.index.graph_search import neighbour_hits, neighbour_scores
from recsys.index.graph_side import GraphSide
from recsys.index.hits import Hits
from recsys.index.parts import checked_parts, write_parts
from recsys.index.relations import GAMMA, grown_texts, grown_transitions, text_edges, transition_edges, walk_edges
from recsys.index.tensor_file import write_tensors
from recsys.index.transitions import TransitionLog
from recsys.index.walks import WALKS

__all__ = ["GAMMA", "TRANSITION", "ItemGraph"]

TRANSITION = "transition"

_FORMAT = "recsys-item-graph"
_FORMAT_VERSION = 1
_MANIFEST = "graph.json"
_EDGES = "edges.safetensors"
_ITEMS_AT_ONCE = 2**14
"""Items whose edges are laid out at once."""


@dataclass(frozen=True, slots=True)
class ItemGraph:
    """Typed, weighted edges item -> item, f > 0, none from an item to itself.

    The edges of item h in relation r are rows ``indptr[h * R + r]:indptr[h * R + r + 1]``, best first. Building and
    growing look at a block of items at a time; with a folder for scratch files the edges themselves lie there and not
    in memory, so that a catalogue of many millions needs room for its events and vectors, but not for its neighbours.
    """

    relations: tuple[str, ...]
    max_neighbours: int
    indptr: Tensor
    """[I * R + 1] int64."""
    neighbours: Tensor
    """[T] int32."""
    values: Tensor
    """[T] float32, f_r(h -> i)."""
    side: GraphSide | None = None
    """Edges that came later, of a catalogue that changed under way; None = the table says it all."""
    gone_I: Tensor | None = None
    """[I] bool, items that :meth:`search` never returns; None = all may be. They keep their edges."""

    @property
    def num_items(self) -> int:
        if self.side is not None:
            return len(self.side.kept_X) // len(self.relations)
        return (len(self.indptr) - 1) // len(self.relations) if self.relations else len(self.indptr) - 1

    @property
    def num_edges(self) -> int:
        if self.side is not None:
            return int(self.side.kept_X.sum()) + len(self.side.neighbours)
        return len(self.neighbours)

    @property
    def default_weights(self) -> dict[str, float]:
        """1 for transitions, 2 for each text relation, 1/2 for walks over the transitions."""
        return {name: 1.0 if name == TRANSITION else 0.5 if name in WALKS else 2.0 for name in self.relations}

    @classmethod
    def build(
        cls,
        num_items: int,
        *,
        transitions: scipy.sparse.spmatrix | TransitionLog | None = None,
        texts: Mapping[str, scipy.sparse.spmatrix | NDArray[Any] | Tensor] | None = None,
        walks: Sequence[str] = (),
        max_neighbours: int = 256,
        scratch: Path | None = None,
    ) -> ItemGraph:
        """Find the neighbours and lay them out.

        Args:
            num_items: the catalogue, items without any event or text included.
            transitions: [I, I] probabilities P from :func:`recsys.index.transitions.transition_matrix`, or the log to
                count them in; becomes the relation ``transition`` with f = log(1 + 100·P).
            texts: relation name to [I, V] vectors, sparse (TF-IDF) or dense; f is their cosine where positive.
            walks: ``two_step`` and ``pagerank``, relations made of the kept transitions; f = log(1 + 100·π).
            max_neighbours: most neighbours kept per item and relation; of equal ones the smaller ids.
            scratch: folder for unnamed files with the edges; None = keep them in memory.
        """
        if max_neighbours < 1:
            raise ValueError(f"max_neighbours must be at least 1, got {max_neighbours}")
        tables: dict[str, EdgeTable] = {}
        if transitions is not None:
            tables[TRANSITION] = _transitions(transitions, num_items, max_neighbours, scratch)
        _add_walks(tables, walks, max_neighbours, scratch)
        for name, vectors in (texts or {}).items():
            if name == TRANSITION or name in WALKS:
                raise ValueError(f"a text relation cannot be called {name!r}; choose another name")
            _check_rows(name, tuple(vectors.shape), num_items)
            tables[name] = text_edges(vectors, max_neighbours, scratch)
        return cls(tuple(tables), max_neighbours, *_interleaved(num_items, list(tables.values()), scratch))

    def append(
        self,
        num_items: int,
        *,
        transitions: TransitionLog | None = None,
        touched: NDArray[np.int64] | None = None,
        texts: Mapping[str, scipy.sparse.spmatrix | NDArray[Any] | Tensor] | None = None,
        scratch: Path | None = None,
    ) -> ItemGraph:
        """The graph of more events and items: what :meth:`build` would make of all of them, for less work.

        Rows of transitions that new events touch are counted again, the others kept; walks reach everywhere and are
        made anew. New items get neighbours by text and become neighbours of older ones, exactly where neighbours are
        found exactly (:func:`recsys.index.text_neighbours.nearest_by_cosine`).

        Args:
            num_items: the catalogue as it is now; older items keep their ids.
            transitions: the log of all events; None = no new ones.
            touched: the items whose transitions may differ, from :func:`recsys.index.transitions.touched_items`; None =
                all.
            texts: relation name to [I, V] vectors of all items, those of older items unchanged; needed for every text
                relation where there are new items.
            scratch: as in :meth:`build`.
        """
        if self.side is not None:
            return self.compact().append(
                num_items, transitions=transitions, touched=touched, texts=texts, scratch=scratch
            )
        if num_items < self.num_items:
            raise ValueError(f"{num_items} items are fewer than the {self.num_items} of the graph; build it again")
        tables: dict[str, EdgeTable] = {}
        if transitions is not None and TRANSITION in self.relations:
            before = self._table(TRANSITION, scratch)
            if touched is None or transitions.num_items != num_items:
                tables[TRANSITION] = _transitions(transitions, num_items, self.max_neighbours, scratch)
            else:
                tables[TRANSITION] = grown_transitions(before, transitions, touched, self.max_neighbours, scratch)
            _add_walks(tables, [name for name in self.relations if name in WALKS], self.max_neighbours, scratch)
        for name in self.relations:
            if name in tables:
                continue
            tables[name] = self._table(name, scratch)
            if name == TRANSITION or name in WALKS or num_items == self.num_items:
                continue
            if name not in (texts or {}):
                raise ValueError(
                    f"there are {num_items - self.num_items} new items and no vectors for the relation {name!r}; "
                    "give those of all items"
                )
            vectors = (texts or {})[name]
            _check_rows(name, tuple(vectors.shape), num_items)
            tables[name] = grown_texts(tables[name], vectors, self.max_neighbours, scratch)
        laid_out = _interleaved(num_items, [tables[name] for name in self.relations], scratch)
        return replace(self, indptr=laid_out[0], neighbours=laid_out[1], values=laid_out[2])

    def edges(self, row_X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The edges of some rows ``item * R + relation``.

        Args:
            row_X: [X] int64.

        Returns:
            [T] place in ``row_X`` of each edge, [T] int64 neighbours and [T] float32 values. The edges of a row are
            best first where the graph has no side.
        """
        if self.side is None:
            start_X = self.indptr[row_X]
            owner_T, edge_T = ranges(start_X, self.indptr[row_X + 1] - start_X)
            return owner_T, self.neighbours[edge_T].long(), self.values[edge_T]
        side = self.side
        owner_T, edge_T = ranges(self.indptr[row_X.clamp_max(len(self.indptr) - 2)], side.kept_X[row_X].long())
        start_X = side.indptr_X1[row_X]
        beside_T, late_T = ranges(start_X, side.indptr_X1[row_X + 1] - start_X)
        return (
            torch.cat([owner_T, beside_T]),
            torch.cat([self.neighbours[edge_T], side.neighbours[late_T]]).long(),
            torch.cat([self.values[edge_T], side.values[late_T]]),
        )

    def num_edges_of(self, item_X: Tensor) -> Tensor:
        """[X] int64 edges of some items in all relations."""
        low_X, high_X = item_X * len(self.relations), (item_X + 1) * len(self.relations)
        if self.side is None:
            return self.indptr[high_X] - self.indptr[low_X]
        kept_X = self.side.kept_X.view(-1, len(self.relations))[item_X].sum(1)
        return kept_X + self.side.indptr_X1[high_X] - self.side.indptr_X1[low_X]

    def compact(self) -> ItemGraph:
        """The same edges in one table, best first, without a side."""
        if self.side is None:
            return self
        spool = EdgeSpool()
        num_rows = len(self.side.kept_X)
        step = _ITEMS_AT_ONCE * len(self.relations)
        for low in range(0, num_rows, step):
            row_X = torch.arange(low, min(low + step, num_rows), device=self.indptr.device)
            owner_T, id_T, value_T = self.edges(row_X)
            order_T = id_T.argsort(stable=True)
            order_T = order_T[value_T[order_T].argsort(descending=True, stable=True)]
            order_T = order_T[owner_T[order_T].argsort(stable=True)]
            count_X = torch.bincount(owner_T, minlength=len(row_X))
            spool.add(count_X.cpu(), id_T[order_T].cpu(), value_T[order_T].cpu())
        table = spool.table()
        laid_out = replace(self, indptr=table.indptr_I1, neighbours=table.id_T, values=table.value_T, side=None)
        return laid_out.to(self.indptr.device)

    def _table(self, name: str, scratch: Path | None) -> EdgeTable:
        """One relation by itself."""
        at, num_relations = self.relations.index(name), len(self.relations)
        spool = EdgeSpool(scratch)
        for low in range(0, self.num_items, _ITEMS_AT_ONCE):
            high = min(low + _ITEMS_AT_ONCE, self.num_items)
            bounds_X = self.indptr[low * num_relations : high * num_relations + 1]
            count_B = bounds_X.diff()[at::num_relations]
            _, edge_T = ranges(bounds_X[:-1][at::num_relations], count_B)
            spool.add(count_B.cpu(), self.neighbours[edge_T].cpu(), self.values[edge_T].cpu())
        return spool.table()

    # -- scoring ---------------------------------------------------------------------------------------------------

    def scores(self, recent_BM: Tensor, weights: Mapping[str, float] | None = None, decay: float = 0.6) -> Tensor:
        """Score of every item: Σ_j decay^j Σ_r b_r · f_r(h_j -> i). The definition of correct for :meth:`search`.

        Args:
            recent_BM: [B, M] int64 last positive items h_0, h_1, …, newest first, padded with -1.
            weights: b per relation; one that is not named or has weight 0 is off. None = :attr:`default_weights`.
            decay: of each item further back.

        Returns:
            [B, I] float32 on the device of ``recent_BM``; 0 where no recent item has the item as a neighbour.
        """
        return neighbour_scores(self, recent_BM, weights, decay)

    def search(
        self,
        recent_BM: Tensor,
        k: int,
        *,
        weights: Mapping[str, float] | None = None,
        decay: float = 0.6,
        exclude_QE: Tensor | None = None,
        allow_N: Tensor | None = None,
    ) -> Hits:
        """The ``k`` best items of :meth:`scores` among those with a score above 0, by merging neighbours only.

        Args:
            recent_BM: as in :meth:`scores`.
            k: at least 1.
            weights: as in :meth:`scores`.
            decay: as in :meth:`scores`.
            exclude_QE: [B, E] int64 ids the user must not get, padded with -1.
            allow_N: [N] int64 strictly rising; nothing else is returned.

        Returns:
            Best first; equal scores go to the smaller id; unfilled places are (-1, -inf).
        """
        return neighbour_hits(self, recent_BM, k, weights, decay, exclude_QE, allow_N)

    # -- files -----------------------------------------------------------------------------------------------------

    def to(self, device: str | torch.device) -> ItemGraph:
        """The same graph on another device."""
        return replace(
            self,
            indptr=self.indptr.to(device),
            neighbours=self.neighbours.to(device),
            values=self.values.to(device),
            side=None if self.side is None else self.side.to(device),
            gone_I=None if self.gone_I is None else self.gone_I.to(device),
        )

    def save(self, folder: Path) -> None:
        """Write the edges and ``graph.json`` with their hash into ``folder``; which items are gone is not written."""
        if self.side is not None:
            return self.compact().save(folder)
        header = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "num_items": self.num_items,
            "num_edges": self.num_edges,
            "relations": list(self.relations),
            "max_neighbours": self.max_neighbours,
        }
        tensors = {"indptr": self.indptr, "neighbours": self.neighbours, "values": self.values}
        write_parts(folder, _MANIFEST, header, {_EDGES: lambda path: write_tensors(tensors, path)})

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device = "cpu") -> ItemGraph:
        """Read what :meth:`save` wrote, hash first; on a CPU the edges are mapped, not read.

        Raises:
            ValueError: one line naming the file that is missing, truncated, changed or foreign, and what to do.
        """
        header = checked_parts(folder, _MANIFEST, format=_FORMAT, format_version=_FORMAT_VERSION, parts=(_EDGES,))
        tensors = load_file(folder / _EDGES, device=str(device))
        parts = tensors["indptr"], tensors["neighbours"], tensors["values"]
        graph = cls(tuple(header["relations"]), header["max_neighbours"], *parts)
        if (graph.num_items, graph.num_edges) != (header["num_items"], header["num_edges"]):
            raise ValueError(
                f"{folder / _EDGES} holds {graph.num_edges} edges of {graph.num_items} items, {_MANIFEST} says "
                f"{header['num_edges']} of {header['num_items']}; build and save the graph again"
            )
        return graph


def _check_rows(name: str, shape: tuple[int, ...], num_items: int, columns: int | None = None) -> None:
    if len(shape) != 2 or shape[0] != num_items or (columns is not None and shape[1] != columns):
        wanted = f"[{num_items}, {'V' if columns is None else columns}]"
        raise ValueError(
            f"relation {name!r} must be {wanted}, got {list(shape)}; give one row per item of the catalogue"
        )


def _transitions(
    transitions: scipy.sparse.spmatrix | TransitionLog, num_items: int, most: int, scratch: Path | None
) -> EdgeTable:
    if isinstance(transitions, TransitionLog):
        shape: tuple[int, ...] = (transitions.num_items, transitions.num_items)
    else:
        shape = tuple(transitions.shape)
    _check_rows(TRANSITION, shape, num_items, columns=num_items)
    return transition_edges(transitions, most, scratch)


def _add_walks(tables: dict[str, EdgeTable], walks: Sequence[str], most: int, scratch: Path | None) -> None:
    for name in walks:
        if TRANSITION not in tables:
            raise ValueError(f"the relation {name!r} is made of transitions; give them too")
        tables[name] = walk_edges(name, tables[TRANSITION], most, scratch)


def _interleaved(num_items: int, tables: list[EdgeTable], scratch: Path | None) -> tuple[Tensor, Tensor, Tensor]:
    """One table whose rows are (item, relation)."""
    spool = EdgeSpool(scratch)
    for low in range(0, num_items, _ITEMS_AT_ONCE):
        high = min(low + _ITEMS_AT_ONCE, num_items)
        blocks = [table.block(low, high) for table in tables]
        count_BR = torch.zeros(high - low, max(1, len(tables)), dtype=torch.int64)
        for at, (count_B, _, _) in enumerate(blocks):
            count_BR[:, at] = count_B
        start_BR = (count_BR.flatten().cumsum(0) - count_BR.flatten()).view_as(count_BR)
        id_T = torch.empty(int(count_BR.sum()), dtype=torch.int32)
        value_T = torch.empty(len(id_T))
        for at, (count_B, ids, values) in enumerate(blocks):
            _, edge_T = ranges(start_BR[:, at], count_B)
            id_T[edge_T], value_T[edge_T] = ids, values
        spool.add(count_BR.flatten(), id_T, value_T)
    table = spool.table()
    return table.indptr_I1, table.id_T, table.value_T
