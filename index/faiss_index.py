"""Approximate search by FAISS, with scores and ties as exact as everywhere.

Suffixes: I = items, D = dimensions, Q = queries, K = kept, C = candidates, E = exclusions, N = allowed items.

FAISS only proposes candidates: they are scored again from the vectors, filtered and ordered by (score, smaller id).
Queries for which it proposes too few (a narrow allow list, k near the catalogue's size) are answered exactly.
"""

from __future__ import annotations

import copy
import threading
from dataclasses import asdict, dataclass
from math import isqrt
from pathlib import Path
from typing import Any, Self

import faiss as _faiss
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys.index.exact import FORMAT, FORMAT_VERSION, MANIFEST, VECTORS, ExactIndex, exact_scores
from recsys.index.hits import Hits
from recsys.index.parts import REMEDY, checked_parts, write_parts
from recsys.index.protocol import check_lists, check_queries
from recsys.kernels.topk import topk_smaller_id

__all__ = ["FaissIndex", "FaissOptions"]

faiss: Any = _faiss
"""Untyped on purpose: its annotations are those of the generated wrappers, not of the Python functions over them."""

_FAISS_PART = "faiss.index"
_FEWEST_ITEMS = 64
"""Smaller catalogues are searched exactly: there is too little to train on, and nothing to gain."""
_SPARE = 32
_MOST_ON_GPU = 2048
"""FAISS on a GPU returns at most so many."""
_QUERIES_AT_ONCE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class FaissOptions:
    """Sizes of the approximate kinds; 0 = chosen from the catalogue."""

    nlist: int = 0
    """Clusters of ivf and pq; by default the square root of the number of items."""
    nprobe: int = 0
    """Clusters searched; by default a sixteenth of them, at least 16."""
    refine: int = 4
    """pq: candidates scored again per hit wanted."""
    links: int = 32
    """hnsw: neighbours per node."""
    ef_construction: int = 100
    """hnsw: width of the search that places a node."""
    ef_search: int = 0
    """hnsw: width of a search; by default twice the candidates wanted."""

    def __post_init__(self) -> None:
        for name, least in (
            ("nlist", 0),
            ("nprobe", 0),
            ("refine", 1),
            ("links", 2),
            ("ef_construction", 1),
            ("ef_search", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"FaissOptions.{name} must be at least {least}, got {getattr(self, name)!r}")


class FaissIndex:
    """One of the kinds ``flat`` (exact), ``ivf``, ``hnsw`` and ``pq`` (inverted lists of 4-bit product codes)."""

    def __init__(self, kind: str, exact: ExactIndex, index: Any | None, options: FaissOptions) -> None:
        """Wrap a FAISS index over the vectors of ``exact``; use :meth:`build`. None = too few items for one."""
        self.kind = kind
        self.exact = exact
        self.options = options
        self._index = index
        self._gpu = _on_gpu(kind, index, exact.vector_ID.device, self._probes)
        self._beside_N = torch.zeros(0, dtype=torch.int64, device=exact.vector_ID.device)
        """Items that FAISS holds no vector or an outdated one of, rising: they are searched exactly."""
        self._stale_I: Tensor | None = None
        """[I] bool, items that FAISS must not propose."""

    @property
    def gone_I(self) -> Tensor | None:
        """See :class:`recsys.index.protocol.VectorIndex`."""
        return self.exact.gone_I

    @property
    def num_items(self) -> int:
        return self.exact.num_items

    @property
    def dim(self) -> int:
        return self.exact.dim

    @classmethod
    def build(cls, kind: str, vectors: Tensor | NDArray[Any], **options: int) -> Self:
        """Train on the vectors and add them.

        Args:
            kind: flat, ivf, hnsw or pq.
            vectors: [I, D] float32, finite; on a CUDA device the search runs there where FAISS can.
            options: of :class:`FaissOptions`.
        """
        chosen = FaissOptions(**options)
        exact = ExactIndex(vectors)
        if exact.num_items < _FEWEST_ITEMS or exact.dim == 0:
            return cls(kind, exact, None, chosen)
        item_ID = _stored(kind, exact)
        index = _empty_index(kind, item_ID.shape[1], exact.num_items, chosen)
        index.train(item_ID)
        index.add(item_ID)
        return cls(kind, exact, index, chosen)

    def without(self, gone_I: Tensor | None) -> Self:
        """See :class:`recsys.index.protocol.VectorIndex`."""
        return self._beside(self.exact.without(gone_I), self._beside_N)

    def moved(self, vector_ID: Tensor, moved_J: Tensor) -> Self:
        """See :class:`recsys.index.protocol.VectorIndex`: what FAISS holds stays, the rest is searched exactly."""
        both_N = torch.cat([self._beside_N, moved_J.to(vector_ID.device)]).unique()
        return self._beside(self.exact.moved(vector_ID, moved_J), both_N)

    def _beside(self, exact: ExactIndex, beside_N: Tensor) -> Self:
        other = copy.copy(self)
        other.exact, other._beside_N, other._stale_I = exact, beside_N, exact.gone_I
        if len(beside_N):
            stale_I = torch.zeros(exact.num_items, dtype=torch.bool, device=beside_N.device)
            stale_I[beside_N] = True
            other._stale_I = stale_I if exact.gone_I is None else stale_I | exact.gone_I
        return other

    @property
    def _probes(self) -> int:
        clusters = getattr(self._index, "nlist", 1)
        return min(clusters, self.options.nprobe or max(16, clusters // 16))

    def search(
        self, query_QD: Tensor, k: int, *, exclude_QE: Tensor | None = None, allow_N: Tensor | None = None
    ) -> Hits:
        """See :class:`recsys.index.protocol.VectorIndex`."""
        check_queries(query_QD, self.dim)
        check_lists(len(query_QD), k, exclude_QE, allow_N, self.num_items)
        most_excluded = 0
        if exclude_QE is not None and exclude_QE.numel():
            most_excluded = int((exclude_QE >= 0).sum(1).max())
        fetch = k * (self.options.refine if self.kind == "pq" else 1) + most_excluded + _SPARE
        allowed = self.num_items if allow_N is None else len(allow_N)
        # The fewer are allowed, the longer an approximate search looks for them and the cheaper it is to try them all.
        too_many = fetch * 8 > allowed or (self._gpu is not None and (fetch > _MOST_ON_GPU or allow_N is not None))
        if self._index is None or too_many or len(query_QD) == 0:
            return self.exact.search(query_QD, k, exclude_QE=exclude_QE, allow_N=allow_N)
        chunks = []
        for low in range(0, len(query_QD), _QUERIES_AT_ONCE):
            exclude_qE = None if exclude_QE is None else exclude_QE[low : low + _QUERIES_AT_ONCE]
            chunks.append(self._chunk(query_QD[low : low + _QUERIES_AT_ONCE], k, fetch, exclude_qE, allow_N))
        return Hits(torch.cat([ids for _, ids in chunks]), torch.cat([scores for scores, _ in chunks]))

    def _chunk(
        self, query_QD: Tensor, k: int, fetch: int, exclude_QE: Tensor | None, allow_N: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        home, device = query_QD.device, self.exact.vector_ID.device
        query_QD = query_QD.detach().to(device, torch.float32)
        proposed_QC, id_QC = self._propose(query_QD, fetch, allow_N)
        complete_Q = (id_QC >= 0).all(1)
        if self._stale_I is not None:
            id_QC = id_QC.masked_fill((id_QC >= 0) & self._stale_I[id_QC.clamp_min(0)], -1)
        if exclude_QE is not None and exclude_QE.shape[1]:
            id_QC = id_QC.masked_fill(_is_in(id_QC, exclude_QE.to(device)), -1)
        score_QK, id_QK = topk_smaller_id(exact_scores(self.exact.vector_ID, query_QD, id_QC), id_QC, k)
        if len(self._beside_N):
            side_N = self._beside_N
            if allow_N is not None:
                side_N = side_N[torch.isin(side_N, allow_N.to(device))]
            exclude = None if exclude_QE is None else exclude_QE.to(device)
            beside = self.exact.search(query_QD, k, exclude_QE=exclude, allow_N=side_N)
            both = torch.cat([score_QK, beside.scores_QK], 1), torch.cat([id_QK, beside.ids_QK], 1)
            score_QK, id_QK = topk_smaller_id(*both, k)
        redo_Q = id_QK[:, -1] < 0
        if self.kind == "flat":  # exact: an item beyond the candidates must not reach the k-th, rounding included
            redo_Q |= complete_Q & (score_QK[:, -1] <= proposed_QC.amin(1) + self.exact.most_slip(query_QD))
        rows = redo_Q.nonzero().squeeze(1)
        if len(rows):
            exclude = None if exclude_QE is None else exclude_QE.to(device)[rows]
            hits = self.exact.search(query_QD[rows], k, exclude_QE=exclude, allow_N=allow_N)
            score_QK[rows], id_QK[rows] = hits.scores_QK, hits.ids_QK
        return score_QK.to(home), id_QK.to(home)

    def _propose(self, query_QD: Tensor, fetch: int, allow_N: Tensor | None) -> tuple[Tensor, Tensor]:
        query = _padded(query_QD.cpu().numpy(), self._index.d)  # type: ignore[union-attr]
        if self._gpu is not None:
            gpu_index, lock, _ = self._gpu
            with lock:  # FAISS's GPU memory is not safe to share between threads
                score, ids = gpu_index.search(query, fetch)
        else:
            selector = {}
            if allow_N is not None or self._stale_I is not None:
                allowed_I = np.full(self.num_items, allow_N is None)
                if allow_N is not None:
                    allowed_I[allow_N.cpu().numpy()] = True
                if self._stale_I is not None:
                    allowed_I &= ~self._stale_I.cpu().numpy()
                selector["sel"] = faiss.IDSelectorBitmap(np.packbits(allowed_I, bitorder="little"))
            score, ids = self._index.search(query, fetch, params=self._parameters(fetch, selector))  # type: ignore[union-attr]
        device = query_QD.device
        return torch.from_numpy(score).to(device), torch.from_numpy(ids.astype(np.int64, copy=False)).to(device)

    def _parameters(self, fetch: int, selector: dict[str, Any]) -> Any:
        """Per call, so that nothing shared between threads is written."""
        if self.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=max(fetch, self.options.ef_search or 2 * fetch), **selector)
        if self.kind in ("ivf", "pq"):
            return faiss.SearchParametersIVF(nprobe=self._probes, **selector)
        return faiss.SearchParameters(**selector)

    def save(self, folder: Path) -> None:
        """See :class:`recsys.index.protocol.VectorIndex`; an index with items beside it is built anew."""
        if len(self._beside_N):
            return type(self).build(self.kind, self.exact.vector_ID, **asdict(self.options)).save(folder)
        header = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "dim": self.dim,
            "num_items": self.num_items,
            "options": asdict(self.options),
        }
        tensors = {"vectors": self.exact.vector_ID.cpu()}
        parts: dict[str, Any] = {VECTORS: lambda path: save_file(tensors, path)}
        if self._index is not None:
            parts[_FAISS_PART] = lambda path: faiss.write_index(self._index, str(path))
        write_parts(folder, MANIFEST, header, parts)

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device = "cpu") -> Self:
        """See :class:`recsys.index.protocol.VectorIndex`. FAISS reads only bytes whose hash fits."""
        header = checked_parts(folder, MANIFEST, format=FORMAT, format_version=FORMAT_VERSION, parts=(VECTORS,))
        exact = ExactIndex(load_file(folder / VECTORS, device=str(device))["vectors"])
        index = None
        if _FAISS_PART in header["parts"]:
            try:
                index = faiss.read_index(str(folder / _FAISS_PART))
            except RuntimeError as error:
                line = " ".join(str(error).split())
                raise ValueError(f"{folder / _FAISS_PART}: FAISS cannot read it ({line}); {REMEDY}") from error
        found = [(exact.num_items, exact.dim)]
        if index is not None:
            found.append((index.ntotal, exact.dim if index.d == _stored_dim(header["kind"], exact.dim) else index.d))
        for num_items, dim in found:
            if (num_items, dim) != (header["num_items"], header["dim"]):
                raise ValueError(
                    f"{folder} holds {num_items} vectors of {dim}, {MANIFEST} says {header['num_items']} of "
                    f"{header['dim']}; build and save the index again"
                )
        return cls(header["kind"], exact, index, FaissOptions(**header["options"]))


def _stored_dim(kind: str, dim: int) -> int:
    """Dimension inside FAISS: hnsw gets one more, product codes take pairs of dimensions."""
    return dim + 1 if kind == "hnsw" else dim + dim % 2 if kind == "pq" else dim


def _padded(vector_ID: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    if vector_ID.shape[1] == dim:
        return np.ascontiguousarray(vector_ID)
    out = np.zeros((len(vector_ID), dim), dtype=np.float32)
    out[:, : vector_ID.shape[1]] = vector_ID
    return out


def _stored(kind: str, exact: ExactIndex) -> NDArray[np.float32]:
    item_ID = _padded(exact.vector_ID.cpu().numpy(), _stored_dim(kind, exact.dim))
    if kind == "hnsw":
        # A graph search needs a metric: with this last coordinate all vectors have one length, and the nearest to
        # (query, 0) is the one with the largest inner product.
        norm_I = exact.norm_I.cpu().double().numpy()
        item_ID[:, -1] = np.sqrt(np.maximum(norm_I.max() ** 2 - norm_I**2, 0))
    return item_ID


def _empty_index(kind: str, dim: int, num_items: int, options: FaissOptions) -> Any:
    if kind == "flat":
        return faiss.IndexFlatIP(dim)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, options.links, faiss.METRIC_L2)
        index.hnsw.efConstruction = options.ef_construction
        return index
    # FAISS wants 39 training vectors a cluster.
    nlist = max(1, min(options.nlist or isqrt(num_items), num_items // 39))
    codes = "Flat" if kind == "ivf" else f"PQ{dim // 2}x4fsr"
    return faiss.index_factory(dim, f"IVF{nlist},{codes}", faiss.METRIC_INNER_PRODUCT)


def _on_gpu(kind: str, index: Any | None, device: torch.device, probes: int) -> tuple[Any, threading.Lock, Any] | None:
    """(GPU copy, its lock, its memory) where the vectors lie on a GPU and FAISS was built for one."""
    if (
        index is None
        or device.type != "cuda"
        or kind not in ("flat", "ivf")
        or not hasattr(faiss, "StandardGpuResources")
    ):
        return None
    resources = faiss.StandardGpuResources()
    copy = faiss.index_cpu_to_gpu(resources, device.index or 0, index)
    if kind == "ivf":
        copy.nprobe = min(probes, _MOST_ON_GPU)
    return copy, threading.Lock(), resources


def _is_in(id_QC: Tensor, exclude_QE: Tensor) -> Tensor:
    """[Q, C] whether an id is among its own row's exclusions."""
    sorted_QE = exclude_QE.sort(1).values
    place_QC = torch.searchsorted(sorted_QE, id_QC.contiguous()).clamp(max=sorted_QE.shape[1] - 1)
    return sorted_QE.gather(1, place_QC) == id_QC
