"""Exact inner-product search: the reference that every other index is compared with.

Suffixes: I = items, D = dimensions, Q = queries, K = kept, C = candidates, B = items of one block, P = excluded pairs.

A matrix product in float32 finds candidates; their scores are then computed again in float64 and rounded once. So a
score does not depend on the block, the batch or the device, equal vectors have equal scores, and an item that rounding
could have hidden is looked for again: the answer is the sorted list of all scores, cut at k.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys.index.hits import Hits
from recsys.index.parts import checked_parts, write_parts
from recsys.index.protocol import check_lists, check_queries, no_hits
from recsys.index.stored_checks import check_header, check_tensor
from recsys.kernels.topk import largest, topk_smaller_id

__all__ = ["FORMAT", "FORMAT_VERSION", "MANIFEST", "VECTORS", "ExactIndex", "exact_scores"]

FORMAT = "recsys-index"
FORMAT_VERSION = 1
MANIFEST = "index.json"
VECTORS = "vectors.safetensors"

_SCORES_AT_ONCE = 2**24
"""Floats of one block of scores: 64 MiB."""
_QUERIES_AT_ONCE = 256
_SPARE = 32
"""Candidates beyond k, so that rounding at the k-th place is nearly always settled in the first pass."""


def exact_scores(vector_ID: Tensor, query_QD: Tensor, id_QC: Tensor) -> Tensor:
    """[Q, C] float32 inner products, computed in float64 and rounded once; -inf where the id is negative."""
    score_QC = torch.full(id_QC.shape, -torch.inf, dtype=torch.float32, device=id_QC.device)
    step = max(1, _SCORES_AT_ONCE // 4 // max(1, id_QC.shape[1] * query_QD.shape[1]))
    for low in range(0, len(id_QC), step):
        id_qC = id_QC[low : low + step]
        picked_qCD = vector_ID[id_qC.clamp(min=0)].double()
        score_qC = picked_qCD.mul_(query_QD[low : low + step].double().unsqueeze(1)).sum(-1).float()
        score_QC[low : low + step] = score_qC.masked_fill_(id_qC < 0, -torch.inf)
    return score_QC


def _rounding() -> float:
    """Relative error of one product in a float32 matrix product."""
    return {"highest": 2.0**-24, "high": 2.0**-10, "medium": 2.0**-8}[torch.get_float32_matmul_precision()]


class ExactIndex:
    """Exact search over vectors in memory, or mapped from a file: blocks of items times chunks of queries."""

    kind = "exact"

    def __init__(self, vectors: Tensor | NDArray[Any], *, block_items: int | None = None) -> None:
        """Keep the vectors.

        Args:
            vectors: [I, D] float32, finite. Not copied.
            block_items: items scored at once; None = as many as keep a block of scores at 64 MiB.
        """
        vector_ID = torch.as_tensor(vectors)
        if vector_ID.dim() != 2 or vector_ID.dtype != torch.float32:
            raise ValueError(f"vectors must be float32 [I, D], got {vector_ID.dtype} {list(vector_ID.shape)}")
        if block_items is not None and block_items < 1:
            raise ValueError(f"block_items must be at least 1, got {block_items}")
        self.vector_ID = vector_ID.detach().contiguous()
        self.block_items = block_items
        self.gone_I: Tensor | None = None
        self.norm_I = torch.linalg.vector_norm(self.vector_ID, dim=1)
        if not bool(torch.isfinite(self.norm_I).all()):
            row = int((~torch.isfinite(self.norm_I)).nonzero()[0])
            raise ValueError(
                f"vector {row} holds a NaN, an infinity or numbers too large to square; check the model's output"
            )
        self._largest_norm = float(self.norm_I.max()) if len(self.norm_I) else 0.0

    @property
    def num_items(self) -> int:
        return self.vector_ID.shape[0]

    @property
    def dim(self) -> int:
        return self.vector_ID.shape[1]

    def without(self, gone_I: Tensor | None) -> Self:
        """See :class:`recsys.index.protocol.VectorIndex`."""
        other = copy.copy(self)
        other.gone_I = gone_I
        return other

    def moved(self, vector_ID: Tensor, moved_J: Tensor) -> Self:
        """See :class:`recsys.index.protocol.VectorIndex`."""
        return type(self)(vector_ID, block_items=self.block_items)

    def search(
        self, query_QD: Tensor, k: int, *, exclude_QE: Tensor | None = None, allow_N: Tensor | None = None
    ) -> Hits:
        """See :class:`recsys.index.protocol.VectorIndex`."""
        check_queries(query_QD, self.dim)
        check_lists(len(query_QD), k, exclude_QE, allow_N, self.num_items)
        home = query_QD.device
        reachable = self.num_items if allow_N is None else len(allow_N)
        if len(query_QD) == 0 or reachable == 0:
            return no_hits(len(query_QD), k, home)
        device = self.vector_ID.device
        allow_N = None if allow_N is None else allow_N.to(device)
        ids, scores = [], []
        with torch.no_grad():
            for low in range(0, len(query_QD), _QUERIES_AT_ONCE):
                query_qD = query_QD[low : low + _QUERIES_AT_ONCE].to(device, torch.float32)
                exclude_qE = None if exclude_QE is None else exclude_QE[low : low + _QUERIES_AT_ONCE].to(device)
                score_qK, id_qK = self._chunk(query_qD, k, exclude_qE, allow_N, reachable)
                ids.append(id_qK.to(home))
                scores.append(score_qK.to(home))
        return Hits(torch.cat(ids), torch.cat(scores))

    def _chunk(
        self, query_QD: Tensor, k: int, exclude_QE: Tensor | None, allow_N: Tensor | None, reachable: int
    ) -> tuple[Tensor, Tensor]:
        precise = torch.get_float32_matmul_precision() == "highest"
        wanted = min(k + (_SPARE if precise else k + _SPARE), reachable)
        found_QC, id_QC = None, None
        for _, id_B, score_QB in self._blocks(query_QD, exclude_QE, allow_N, reachable):
            new_QC, column_QC = largest(score_QB, min(wanted, score_QB.shape[1]))
            new_id_QC = id_B[column_QC]
            if found_QC is None or id_QC is None:
                found_QC, id_QC = new_QC, new_id_QC
            else:
                both_QC = torch.cat([found_QC, new_QC], dim=1)
                found_QC, place_QC = largest(both_QC, min(wanted, both_QC.shape[1]))
                id_QC = torch.cat([id_QC, new_id_QC], dim=1).gather(1, place_QC)
        assert found_QC is not None and id_QC is not None
        id_QC = id_QC.masked_fill(found_QC == -torch.inf, -1)
        score_QK, id_QK = topk_smaller_id(exact_scores(self.vector_ID, query_QD, id_QC), id_QC, k)
        if wanted == reachable:
            return score_QK, id_QK
        # An item outside the candidates scores at most the weakest of them plus what rounding can hide. Where places
        # stayed empty there is none outside.
        weakest_Q = found_QC.amin(1)
        reach_Q = weakest_Q + self.most_slip(query_QD)
        unsure_Q = ((weakest_Q > -torch.inf) & (score_QK[:, -1] <= reach_Q)).nonzero().squeeze(1)
        if len(unsure_Q):
            exclude = None if exclude_QE is None else exclude_QE[unsure_Q]
            score_QK[unsure_Q], id_QK[unsure_Q] = self._settle(
                query_QD[unsure_Q], k, score_QK[unsure_Q, -1], exclude, allow_N, reachable
            )
        return score_QK, id_QK

    def _slip(self, query_QD: Tensor) -> Tensor:
        """[Q] bound of |float32 score - exact score| per unit of item norm (Cauchy-Schwarz), twice over."""
        return 2 * (2 * _rounding() + (self.dim + 2) * 2.0**-24) * torch.linalg.vector_norm(query_QD, dim=1)

    def most_slip(self, query_QD: Tensor) -> Tensor:
        """[Q] bound of |float32 score - exact score| of any item; ``query_QD`` on the index's device."""
        return self._slip(query_QD) * self._largest_norm

    def _settle(
        self,
        query_QD: Tensor,
        k: int,
        floor_Q: Tensor,
        exclude_QE: Tensor | None,
        allow_N: Tensor | None,
        reachable: int,
    ) -> tuple[Tensor, Tensor]:
        """Score every item again that could belong to the first k; ``floor_Q`` is a lower bound of the k-th score."""
        device = query_QD.device
        slip_Q = self._slip(query_QD)
        best = [
            (torch.empty(1, 0, device=device), torch.empty(1, 0, dtype=torch.int64, device=device)) for _ in query_QD
        ]
        full_Q = torch.zeros(len(query_QD), dtype=torch.bool, device=device)
        for norm_B, id_B, score_QB in self._blocks(query_QD, exclude_QE, allow_N, reachable):
            reach_QB = score_QB + slip_Q.unsqueeze(1) * norm_B
            # Ids rise from block to block: once k are found, a later item has to score above the k-th.
            hopeful_QB = torch.where(
                full_Q.unsqueeze(1), reach_QB > floor_Q.unsqueeze(1), reach_QB >= floor_Q.unsqueeze(1)
            )
            hopeful_QB &= score_QB != -torch.inf
            for q in hopeful_QB.any(1).nonzero().squeeze(1).tolist():
                id_1C = id_B[hopeful_QB[q].nonzero().squeeze(1)].unsqueeze(0)
                score_1C = exact_scores(self.vector_ID, query_QD[q : q + 1], id_1C)
                score_1K, id_1K = topk_smaller_id(
                    torch.cat([best[q][0], score_1C], 1), torch.cat([best[q][1], id_1C], 1), k
                )
                best[q] = score_1K, id_1K
                if int(id_1K[0, -1]) >= 0:
                    full_Q[q], floor_Q[q] = True, score_1K[0, -1]
        return torch.cat([score for score, _ in best]), torch.cat([ids for _, ids in best])

    def _blocks(
        self, query_QD: Tensor, exclude_QE: Tensor | None, allow_N: Tensor | None, reachable: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield norms [B], ids [B] and float32 scores [Q, B] (-inf where excluded) in rising order of ids.

        The scores lie in a buffer that the next block overwrites.
        """
        device = query_QD.device
        num_queries = len(query_QD)
        step = min(self.block_items or max(1, _SCORES_AT_ONCE // num_queries), reachable)
        buffer = torch.empty(num_queries * step, device=device)
        place_P, query_P = _excluded_pairs(exclude_QE, allow_N, self.num_items, device)
        lows = list(range(0, reachable, step))
        edges = torch.searchsorted(place_P, torch.tensor([*lows, reachable], device=device)).tolist()
        for block, low in enumerate(lows):
            high = min(low + step, reachable)
            if allow_N is None:
                vector_BD, norm_B = self.vector_ID[low:high], self.norm_I[low:high]
                id_B = torch.arange(low, high, device=device)
            else:
                id_B = allow_N[low:high]
                vector_BD, norm_B = self.vector_ID[id_B], self.norm_I[id_B]
            score_QB = buffer[: num_queries * (high - low)].view(num_queries, high - low)
            torch.mm(query_QD, vector_BD.T, out=score_QB)
            pairs = slice(edges[block], edges[block + 1])
            score_QB[query_P[pairs], place_P[pairs] - low] = -torch.inf
            if self.gone_I is not None:
                score_QB.masked_fill_(self.gone_I[id_B], -torch.inf)
            yield norm_B, id_B, score_QB

    def to(self, device: str | torch.device) -> ExactIndex:
        """The same index with its vectors on another device."""
        moved = ExactIndex(self.vector_ID.to(device), block_items=self.block_items)
        return moved.without(None if self.gone_I is None else self.gone_I.to(device))

    def save(self, folder: Path) -> None:
        """See :class:`recsys.index.protocol.VectorIndex`."""
        header = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "dim": self.dim,
            "num_items": self.num_items,
            "options": {},
        }
        write_parts(
            folder, MANIFEST, header, {VECTORS: lambda path: save_file({"vectors": self.vector_ID.cpu()}, path)}
        )

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device = "cpu") -> Self:
        """See :class:`recsys.index.protocol.VectorIndex`; on a CPU the vectors are mapped, not read."""
        header = checked_parts(folder, MANIFEST, format=FORMAT, format_version=FORMAT_VERSION, parts=(VECTORS,))
        check_header(header, num_items=int, dim=int)
        vectors = load_file(folder / VECTORS, device=str(device)).get("vectors")
        index = cls(check_tensor(f"{folder / VECTORS}: vectors", vectors, torch.float32, 2))
        if (index.num_items, index.dim) != (header["num_items"], header["dim"]):
            raise ValueError(
                f"{folder / VECTORS} holds {index.num_items} x {index.dim} numbers, {MANIFEST} says "
                f"{header['num_items']} x {header['dim']}; build and save the index again"
            )
        return index


def _excluded_pairs(
    exclude_QE: Tensor | None, allow_N: Tensor | None, num_items: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Excluded (place in the searched order, query) pairs, sorted by place."""
    if exclude_QE is None:
        none = torch.empty(0, dtype=torch.int64, device=device)
        return none, none
    query_P, slot_P = ((exclude_QE >= 0) & (exclude_QE < num_items)).nonzero(as_tuple=True)
    place_P = exclude_QE[query_P, slot_P]
    if allow_N is not None:
        id_P = place_P
        place_P = torch.searchsorted(allow_N, id_P).clamp(max=len(allow_N) - 1)
        listed_P = allow_N[place_P] == id_P
        place_P, query_P = place_P[listed_P], query_P[listed_P]
    place_P, order_P = place_P.sort()
    return place_P, query_P[order_P]
