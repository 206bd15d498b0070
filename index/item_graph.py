"""The item graph: for every item and relation its best neighbours, in one CSR table.

Suffixes: I = items, R = relations, T = edges, B = users, M = recent items of a user, K = hits, C = candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys.index.hits import Hits
from recsys.index.parts import checked_parts, write_parts
from recsys.index.protocol import check_lists, no_hits
from recsys.index.text_neighbours import nearest_by_cosine
from recsys.kernels.topk import topk_smaller_id

__all__ = ["TRANSITION", "ItemGraph"]

TRANSITION = "transition"
GAMMA = 100.0
"""f = log(1 + GAMMA · P) of the transition relation."""

_FORMAT = "recsys-item-graph"
_FORMAT_VERSION = 1
_MANIFEST = "graph.json"
_EDGES = "edges.safetensors"
_EDGES_AT_ONCE = 2**22
"""Edges gathered at once by :meth:`ItemGraph.search`."""


@dataclass(frozen=True, slots=True)
class ItemGraph:
    """Typed, weighted edges item -> item, f > 0, none from an item to itself.

    The edges of item h in relation r are rows ``indptr[h * R + r]:indptr[h * R + r + 1]``, best first.
    """

    relations: tuple[str, ...]
    max_neighbours: int
    indptr: Tensor
    """[I * R + 1] int64."""
    neighbours: Tensor
    """[T] int32."""
    values: Tensor
    """[T] float32, f_r(h -> i)."""

    @property
    def num_items(self) -> int:
        return (len(self.indptr) - 1) // len(self.relations) if self.relations else len(self.indptr) - 1

    @property
    def num_edges(self) -> int:
        return len(self.neighbours)

    @property
    def default_weights(self) -> dict[str, float]:
        """1 for transitions, 2 for each text relation."""
        return {name: 1.0 if name == TRANSITION else 2.0 for name in self.relations}

    @classmethod
    def build(
        cls,
        num_items: int,
        *,
        transitions: scipy.sparse.spmatrix | None = None,
        texts: Mapping[str, scipy.sparse.spmatrix | NDArray[Any] | Tensor] | None = None,
        max_neighbours: int = 256,
    ) -> ItemGraph:
        """Find the neighbours and lay them out.

        Args:
            num_items: the catalogue, items without any event or text included.
            transitions: [I, I] probabilities P from :func:`recsys.index.transitions.transition_matrix`; becomes the
                relation ``transition`` with f = log(1 + 100·P).
            texts: relation name to [I, V] vectors, sparse (TF-IDF) or dense; f is their cosine where positive.
            max_neighbours: most neighbours kept per item and relation; of equal ones the smaller ids.
        """
        if max_neighbours < 1:
            raise ValueError(f"max_neighbours must be at least 1, got {max_neighbours}")
        tables: dict[str, tuple[NDArray[np.int64], Tensor, Tensor]] = {}
        if transitions is not None:
            _check_rows(TRANSITION, transitions.shape, num_items, columns=num_items)
            tables[TRANSITION] = _best_transitions(scipy.sparse.csr_matrix(transitions), max_neighbours)
        for name, vectors in (texts or {}).items():
            if name == TRANSITION:
                raise ValueError(f"a text relation cannot be called {TRANSITION!r}; choose another name")
            _check_rows(name, tuple(vectors.shape), num_items)
            tables[name] = _best_texts(vectors, num_items, max_neighbours)
        return _interleaved(num_items, tables, max_neighbours)

    def with_transitions(self, transitions: scipy.sparse.spmatrix) -> ItemGraph:
        """The same text relations beside other transitions."""
        _check_rows(TRANSITION, transitions.shape, self.num_items, columns=self.num_items)
        tables = {TRANSITION: _best_transitions(scipy.sparse.csr_matrix(transitions), self.max_neighbours)}
        num_relations = len(self.relations)
        for at, name in enumerate(self.relations):
            if name != TRANSITION:
                start_I = self.indptr[:-1][at::num_relations]
                count_I = self.indptr[1:][at::num_relations] - start_I
                _, edge_T = _ranges(start_I, count_I)
                tables[name] = count_I.numpy(), self.neighbours[edge_T], self.values[edge_T]
        return _interleaved(self.num_items, tables, self.max_neighbours)

    # -- scoring ---------------------------------------------------------------------------------------------------

    def _active(self, weights: Mapping[str, float] | None) -> list[tuple[int, float]]:
        """(place, weight) of the relations that are on."""
        chosen = self.default_weights if weights is None else weights
        for name, weight in chosen.items():
            if name not in self.relations:
                raise ValueError(
                    f"the item graph has no relation {name!r}; it has {', '.join(self.relations) or 'none'}"
                )
            if not 0 <= weight < float("inf"):
                raise ValueError(f"the weight of relation {name!r} must be at least 0, got {weight}")
        return [(at, float(chosen[name])) for at, name in enumerate(self.relations) if chosen.get(name, 0.0) > 0]

    def _check_recent(self, recent_BM: Tensor, decay: float) -> None:
        if recent_BM.dim() != 2 or recent_BM.dtype != torch.int64:
            raise ValueError(f"recent_BM must be int64 [B, M], got {recent_BM.dtype} {list(recent_BM.shape)}")
        if recent_BM.numel() and int(recent_BM.max()) >= self.num_items:
            raise ValueError(f"recent item {int(recent_BM.max())} is outside the graph's {self.num_items} items")
        if not 0 < decay <= 1:
            raise ValueError(f"decay must be above 0 and at most 1, got {decay}")

    def scores(self, recent_BM: Tensor, weights: Mapping[str, float] | None = None, decay: float = 0.6) -> Tensor:
        """Score of every item: Σ_j decay^j Σ_r b_r · f_r(h_j -> i). The definition of correct for :meth:`search`.

        Args:
            recent_BM: [B, M] int64 last positive items h_0, h_1, …, newest first, padded with -1.
            weights: b per relation; one that is not named or has weight 0 is off. None = :attr:`default_weights`.
            decay: of each item further back.

        Returns:
            [B, I] float32 on the device of ``recent_BM``; 0 where no recent item has the item as a neighbour.
        """
        self._check_recent(recent_BM, decay)
        active = self._active(weights)
        device = self.indptr.device
        out_BI = torch.zeros(len(recent_BM), self.num_items, dtype=torch.float32, device=device)
        step = max(1, _EDGES_AT_ONCE // max(1, self.num_items))
        for low in range(0, len(recent_BM), step):
            recent_bM = recent_BM[low : low + step].to(device)
            sum_X = torch.zeros(len(recent_bM) * self.num_items, dtype=torch.float64, device=device)
            for user_T, id_T, term_T in self._terms(recent_bM, active, decay):
                sum_X.index_add_(0, user_T * self.num_items + id_T, term_T)
            out_BI[low : low + step] = sum_X.view(len(recent_bM), self.num_items).float()
        return out_BI.to(recent_BM.device)

    def _terms(
        self, recent_BM: Tensor, active: list[tuple[int, float]], decay: float
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per recent place and relation: user, neighbour and float64 term of every edge."""
        terms = []
        for back in range(recent_BM.shape[1]):
            user_b = (recent_BM[:, back] >= 0).nonzero().squeeze(1)
            for relation, weight in active:
                row_b = recent_BM[user_b, back] * len(self.relations) + relation
                start_b = self.indptr[row_b]
                owner_T, edge_T = _ranges(start_b, self.indptr[row_b + 1] - start_b)
                term_T = self.values[edge_T].double() * (weight * decay**back)
                terms.append((user_b[owner_T], self.neighbours[edge_T].long(), term_T))
        return terms

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
        self._check_recent(recent_BM, decay)
        check_lists(len(recent_BM), k, exclude_QE, allow_N, self.num_items)
        active = self._active(weights)
        device, home = self.indptr.device, recent_BM.device
        most = max(1, recent_BM.shape[1] * len(active) * self.max_neighbours)
        step = max(1, _EDGES_AT_ONCE // most)
        allowed_I = None
        if allow_N is not None:
            allowed_I = torch.zeros(self.num_items, dtype=torch.bool, device=device)
            allowed_I[allow_N.to(device)] = True
        chunks = []
        for low in range(0, len(recent_BM), step):
            exclude_bE = None if exclude_QE is None else exclude_QE[low : low + step].to(device)
            terms = self._terms(recent_BM[low : low + step].to(device), active, decay)
            chunks.append(self._merge(terms, len(recent_BM[low : low + step]), k, exclude_bE, allowed_I))
        if not chunks:
            return no_hits(0, k, home)
        return Hits(torch.cat([ids for _, ids in chunks]).to(home), torch.cat([best for best, _ in chunks]).to(home))

    def _merge(
        self,
        terms: list[tuple[Tensor, Tensor, Tensor]],
        num_users: int,
        k: int,
        exclude_QE: Tensor | None,
        allowed_I: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        if not terms or not sum(len(term_T) for _, _, term_T in terms):
            none = no_hits(num_users, k, self.indptr.device)
            return none.scores_QK, none.ids_QK
        key_T = torch.cat([user_T * self.num_items + id_T for user_T, id_T, _ in terms])
        # Stable, so that the terms of one item keep their order and their sum rounds as that of `scores` does.
        key_T, order_T = key_T.sort(stable=True)
        found_X, place_T = torch.unique_consecutive(key_T, return_inverse=True)
        sum_X = torch.zeros(len(found_X), dtype=torch.float64, device=key_T.device)
        sum_X.index_add_(0, place_T, torch.cat([term_T for _, _, term_T in terms])[order_T])
        user_X, id_X = found_X // self.num_items, found_X % self.num_items
        if exclude_QE is not None:
            query_P, slot_P = ((exclude_QE >= 0) & (exclude_QE < self.num_items)).nonzero(as_tuple=True)
            sum_X[torch.isin(found_X, query_P * self.num_items + exclude_QE[query_P, slot_P])] = -torch.inf
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

    # -- files -----------------------------------------------------------------------------------------------------

    def to(self, device: str | torch.device) -> ItemGraph:
        """The same graph on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("indptr", "neighbours", "values")}
        return replace(self, **moved)

    def save(self, folder: Path) -> None:
        """Write the edges and ``graph.json`` with their hash into ``folder``."""
        header = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "num_items": self.num_items,
            "num_edges": self.num_edges,
            "relations": list(self.relations),
            "max_neighbours": self.max_neighbours,
        }
        tensors = {"indptr": self.indptr.cpu(), "neighbours": self.neighbours.cpu(), "values": self.values.cpu()}
        write_parts(folder, _MANIFEST, header, {_EDGES: lambda path: save_file(tensors, path)})

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device = "cpu") -> ItemGraph:
        """Read what :meth:`save` wrote, hash first; on a CPU the edges are mapped, not read.

        Raises:
            ValueError: one line naming the file that is missing, truncated, changed or foreign, and what to do.
        """
        header = checked_parts(folder, _MANIFEST, format=_FORMAT, format_version=_FORMAT_VERSION, parts=(_EDGES,))
        tensors = load_file(folder / _EDGES, device=str(device))
        graph = cls(tuple(header["relations"]), header["max_neighbours"], **tensors)
        if (graph.num_items, graph.num_edges) != (header["num_items"], header["num_edges"]):
            raise ValueError(
                f"{folder / _EDGES} holds {graph.num_edges} edges of {graph.num_items} items, {_MANIFEST} says "
                f"{header['num_edges']} of {header['num_items']}; build and save the graph again"
            )
        return graph


Table = tuple[NDArray[np.int64], Tensor, Tensor]
"""Neighbours per item [I], then ids and values of all of them, item by item, best first."""


def _check_rows(name: str, shape: tuple[int, ...], num_items: int, columns: int | None = None) -> None:
    if len(shape) != 2 or shape[0] != num_items or (columns is not None and shape[1] != columns):
        wanted = f"[{num_items}, {'V' if columns is None else columns}]"
        raise ValueError(
            f"relation {name!r} must be {wanted}, got {list(shape)}; give one row per item of the catalogue"
        )


def _ranges(start_S: Tensor, count_S: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenate the ranges start, start + 1, …: the range each number belongs to, and the numbers."""
    owner_T = torch.repeat_interleave(torch.arange(len(count_S), device=count_S.device), count_S)
    shift_S = start_S - (count_S.cumsum(0) - count_S)
    return owner_T, torch.arange(len(owner_T), device=count_S.device) + shift_S[owner_T]


def _best_transitions(probability: scipy.sparse.csr_matrix, max_neighbours: int) -> Table:
    row_T = np.repeat(np.arange(probability.shape[0]), np.diff(probability.indptr))
    usable_T = (probability.indices != row_T) & (probability.data > 0)
    row_T, id_T = row_T[usable_T], probability.indices[usable_T].astype(np.int64)
    value_T = np.log1p(GAMMA * probability.data[usable_T]).astype(np.float32)
    order_T = np.lexsort((id_T, -value_T, row_T))
    row_T, id_T, value_T = row_T[order_T], id_T[order_T], value_T[order_T]
    count_I = np.bincount(row_T, minlength=probability.shape[0])
    keep_T = np.arange(len(row_T)) - (np.cumsum(count_I) - count_I)[row_T] < max_neighbours
    return np.minimum(count_I, max_neighbours), torch.from_numpy(id_T[keep_T]), torch.from_numpy(value_T[keep_T])


def _best_texts(vectors: Any, num_items: int, max_neighbours: int) -> Table:
    items, counts, ids, values = [], [], [], []
    for item_B, cosine_BM, id_BM in nearest_by_cosine(vectors, max_neighbours):
        real_BM = id_BM >= 0
        items.append(item_B)
        counts.append(real_BM.sum(1))
        ids.append(id_BM[real_BM].int())
        values.append(cosine_BM[real_BM])
    if not items:
        return np.zeros(num_items, dtype=np.int64), torch.empty(0, dtype=torch.int32), torch.empty(0)
    item_I, count_S = torch.from_numpy(np.concatenate(items)), torch.cat(counts)
    place_I = torch.empty_like(item_I)
    place_I[item_I] = torch.arange(len(item_I))
    start_S = count_S.cumsum(0) - count_S
    _, edge_T = _ranges(start_S[place_I], count_S[place_I])
    return count_S[place_I].numpy(), torch.cat(ids)[edge_T], torch.cat(values)[edge_T]


def _interleaved(num_items: int, tables: Mapping[str, Table], max_neighbours: int) -> ItemGraph:
    """One table whose rows are (item, relation)."""
    num_relations = len(tables)
    count_X = torch.zeros(num_items, max(1, num_relations), dtype=torch.int64)
    for at, (count_I, _, _) in enumerate(tables.values()):
        count_X[:, at] = torch.from_numpy(np.asarray(count_I, dtype=np.int64))
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), count_X.flatten().cumsum(0)])
    neighbours = torch.empty(int(indptr[-1]), dtype=torch.int32)
    values = torch.empty(int(indptr[-1]), dtype=torch.float32)
    for at, (_, id_T, value_T) in enumerate(tables.values()):
        _, edge_T = _ranges(indptr[:-1].view(num_items, num_relations)[:, at], count_X[:, at])
        neighbours[edge_T], values[edge_T] = id_T.int(), value_T
    return ItemGraph(tuple(tables), max_neighbours, indptr, neighbours, values)
