"""Which items have codes alike: a graph over a catalogue of long semantic IDs, for a walk instead of a scan.

Codes are alike as their vectors are: the similarity of two items is the mean cosine of the vectors of their codes (RPG,
arXiv 2506.05781, whose graph compares every pair of items). Here each item is compared with those that fall into one
tile with it, in several orders of the catalogue: an order halves the items by a random direction again and again, as
the trees of random projections do (Dasgupta and Freund, STOC 2008). Time is I · log I for every order and memory beside
the graph that of one block. The last neighbour of an item is the next one in the first order, so that a walk can reach
every item from any other.

Suffixes: I = items, J = codes of an item, K = codes of a codebook, D = width of a code's vector, P = directions that
are kept, X = rows of a table, J · K of them, T = tiles, W = places of a tile, N = items of a block, M = neighbours,
C = candidates, E = entries.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from recsys.index.parts import checked_parts, write_parts
from recsys.index.stored_checks import check_header, check_ids, check_tensor
from recsys.index.tensor_file import write_tensors

__all__ = ["CodeNeighbours"]

_FORMAT = "recsys-code-neighbours"
_FORMAT_VERSION = 1
_MANIFEST = "neighbours.json"
_TENSORS = "neighbours.safetensors"
_DIRECTIONS = 64
_SAMPLE = 20_000
"""Items that the directions are fitted to."""
_TILE = 128
"""Items of a tile, at least; less than twice as many."""
_NUMBERS_AT_ONCE = 1 << 23
_LEAST_ENTRIES = 1024


@dataclass(frozen=True, slots=True)
class CodeNeighbours:
    """The graph, and the items at which a walk may begin."""

    neighbour_IM: Tensor
    """[I, M] int32, the nearest first, −1 = none; at the last place the next item of a ring through all."""
    entry_E: Tensor
    """[E] int64, rising: spread over the catalogue."""
    code_hash: str
    """Of the codes that it was built for."""

    @property
    def num_items(self) -> int:
        return len(self.neighbour_IM)

    @classmethod
    @torch.no_grad()
    def build(
        cls, code_IJ: Tensor, vector_JKD: Tensor, *, num_neighbours: int = 32, num_orders: int = 8, seed: int = 0
    ) -> CodeNeighbours:
        """Compare each item with its tiles.

        Args:
            code_IJ: [I, J] integers, codes of every item.
            vector_JKD: [J, K, D] float32 vectors of the codes, on the device that the graph is built on.
            num_neighbours: M, the one of the ring with them.
            num_orders: more find more of the true neighbours, at 1/num_orders of the time each.
            seed: of the directions.

        Raises:
            ValueError: no items, a code out of range, or fewer than two neighbours or one order.
        """
        if num_neighbours < 2 or num_orders < 1:
            raise ValueError(
                f"a graph needs 2 neighbours and 1 order at least, got {num_neighbours} and {num_orders}; "
                "30 and 8 are usual"
            )
        _check(code_IJ, vector_JKD)
        draw = torch.Generator().manual_seed(seed)
        features = _Features.fit(code_IJ, vector_JKD, draw)
        num_items, device = len(code_IJ), vector_JKD.device
        near_IM = torch.full((num_items, num_neighbours - 1), -1, dtype=torch.int32, device=device)
        how_IM = torch.full(near_IM.shape, -torch.inf, dtype=torch.float16, device=device)
        ring_I = entry_E = torch.zeros(0, dtype=torch.int64, device=device)
        for number in range(num_orders):
            tile_TW = features.tiles(draw)
            if not number:
                ordered_I = tile_TW[tile_TW >= 0]
                ring_I = torch.empty(num_items, dtype=torch.int64, device=device)
                ring_I[ordered_I] = ordered_I.roll(-1)
                entry_E = _spread(ordered_I)
            step = max(1, _NUMBERS_AT_ONCE // (tile_TW.shape[1] * max(tile_TW.shape[1], 4 * num_neighbours)))
            for low in range(0, len(tile_TW), step):
                _take(near_IM, how_IM, tile_TW[low : low + step], features)
        neighbour_IM = torch.cat([near_IM, ring_I[:, None].int()], 1)
        return cls(neighbour_IM, entry_E, code_hash(code_IJ))

    def fits(self, code_IJ: Tensor) -> bool:
        """Whether the graph was built for these codes."""
        return len(code_IJ) == self.num_items and code_hash(code_IJ) == self.code_hash

    def check(self, code_IJ: Tensor) -> None:
        """ValueError where the graph was built for other codes."""
        if not self.fits(code_IJ):
            raise ValueError("the graph of code neighbours is of other codes than the model's; build it again for them")

    def to(self, device: torch.device | str) -> CodeNeighbours:
        """The same graph on a device."""
        return replace(self, neighbour_IM=self.neighbour_IM.to(device), entry_E=self.entry_E.to(device))

    def save(self, folder: Path) -> None:
        """Write the tensors and ``neighbours.json`` with their hash into ``folder``."""
        header = {"format": _FORMAT, "format_version": _FORMAT_VERSION, "code_hash": self.code_hash}
        tensors = {"entry": self.entry_E, "neighbour": self.neighbour_IM}
        write_parts(folder, _MANIFEST, header, {_TENSORS: lambda path: write_tensors(tensors, path)})

    @classmethod
    def load(cls, folder: Path) -> CodeNeighbours:
        """Read what :meth:`save` wrote, hash first; the tensors are mapped, not read.

        Raises:
            ValueError: one line naming the file that is missing, truncated, changed or foreign, and what to do.
        """
        header = checked_parts(folder, _MANIFEST, format=_FORMAT, format_version=_FORMAT_VERSION, parts=(_TENSORS,))
        tensors = load_file(folder / _TENSORS)
        try:
            check_header(header, code_hash=str)
            _check_graph(tensors)
        except ValueError as error:
            raise ValueError(f"{folder / _TENSORS}: {error}; build and save the graph again") from None
        return cls(tensors["neighbour"], tensors["entry"], header["code_hash"])


def _check_graph(tensors: Mapping[str, Tensor]) -> None:
    neighbour_IM = check_tensor("neighbour", tensors.get("neighbour"), torch.int32, 2)
    entry_E = check_tensor("entry", tensors.get("entry"), torch.int64, 1)
    num_items = len(neighbour_IM)
    if not neighbour_IM.numel() or not len(entry_E):
        raise ValueError("it holds no items, or none that a walk could begin at")
    check_ids("neighbour", neighbour_IM, -1, num_items)
    check_ids("neighbour, the next item of the ring,", neighbour_IM[:, -1], 0, num_items)
    check_ids("entry", entry_E, 0, num_items)
    if bool((entry_E.diff() <= 0).any()):
        raise ValueError("entry must rise")


def code_hash(code_IJ: Tensor) -> str:
    """Equal for equal codes."""
    digest = hashlib.sha256(repr(list(code_IJ.shape)).encode())
    for part_NJ in code_IJ.split(1 << 20):
        digest.update(part_NJ.int().cpu().contiguous().numpy().astype("<i4", copy=False).data)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Features:
    """Vectors of items whose inner products are about their similarities: sums of rows of a small table."""

    code_IJ: Tensor
    table_XP: Tensor
    first_J: Tensor

    @classmethod
    def fit(cls, code_IJ: Tensor, vector_JKD: Tensor, draw: torch.Generator) -> _Features:
        """The principal directions of the codes' vectors side by side, as a sample of the items has them."""
        num_codes, size, width = vector_JKD.shape
        unit_JKD = F.normalize(vector_JKD.float(), dim=2) * num_codes**-0.5
        row_S = torch.randperm(len(code_IJ), generator=draw)[:_SAMPLE] if len(code_IJ) > _SAMPLE else slice(None)
        code_SJ = code_IJ[row_S].to(vector_JKD.device).long()
        whole_SF = unit_JKD[torch.arange(num_codes, device=unit_JKD.device), code_SJ].flatten(1)
        _, direction_FF = torch.linalg.eigh(whole_SF.T @ whole_SF)
        kept_JDP = direction_FF[:, -_DIRECTIONS:].unflatten(0, (num_codes, width))
        first_J = torch.arange(num_codes, device=vector_JKD.device) * size
        return cls(code_IJ.to(vector_JKD.device), (unit_JKD @ kept_JDP).flatten(0, 1), first_J)

    def of(self, item: Tensor, table_XP: Tensor | None = None) -> Tensor:
        """[..., P] of items [...]."""
        row_NJ = self.code_IJ[item.flatten()] + self.first_J
        table_XP = self.table_XP if table_XP is None else table_XP
        return F.embedding_bag(row_NJ, table_XP, mode="sum").view(*item.shape, -1)

    def tiles(self, draw: torch.Generator) -> Tensor:
        """[T, W] int64 items, those of a tile alike; −1 = an empty place."""
        num_items, device = len(self.code_IJ), self.table_XP.device
        depth = max(0, int(math.log2(max(1, num_items) / _TILE)))
        width = -(-num_items // 2**depth)
        place = torch.full((width * 2**depth,), -1, dtype=torch.int64, device=device)
        place[:num_items] = torch.arange(num_items, device=device)
        for level in range(depth):
            direction_P2 = torch.randn(self.table_XP.shape[1], 2, generator=draw).to(device)
            score_I1 = torch.full((num_items + 1,), torch.inf, device=device)  # empty places go last
            for item_N in torch.arange(num_items, device=device).split(1 << 18):
                score_I1[item_N] = self.of(item_N, self.table_XP @ direction_P2)[:, 0]
            group = place.view(2**level, -1)
            place = group.gather(1, score_I1[group].argsort(1)).flatten()
        return place.view(-1, width)


def _take(near_IM: Tensor, how_IM: Tensor, tile_TW: Tensor, features: _Features) -> None:
    """Let every item of some tiles see the others, and keep the nearest of those and of the ones it has."""
    feature_TWP = features.of(tile_TW.clamp_min(0))
    how_TWW = feature_TWP @ feature_TWP.transpose(1, 2)
    how_TWW.masked_fill_((tile_TW < 0)[:, None], -torch.inf)
    how_TWW.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    how_TWC, place_TWC = how_TWW.topk(min(near_IM.shape[1], tile_TW.shape[1]), dim=2)
    near_TWC = tile_TW[:, None].expand(-1, tile_TW.shape[1], -1).gather(2, place_TWC)
    there = tile_TW >= 0
    item_N, near_NC, how_NC = tile_TW[there], near_TWC[there], how_TWC[there]
    near_NC = torch.cat([near_IM[item_N].long(), near_NC.masked_fill(how_NC == -torch.inf, -1)], 1)
    how_NC = torch.cat([how_IM[item_N].float(), how_NC], 1)
    near_NC, order_NC = near_NC.sort(dim=1, stable=True)
    how_NC = how_NC.gather(1, order_NC)
    how_NC[:, 1:].masked_fill_(near_NC[:, 1:] == near_NC[:, :-1], -torch.inf)
    how_NM, place_NM = how_NC.topk(near_IM.shape[1], dim=1)
    how_IM[item_N] = how_NM.half()
    near_IM[item_N] = near_NC.gather(1, place_NM).masked_fill(how_NM == -torch.inf, -1).int()


def _spread(ordered_I: Tensor) -> Tensor:
    """[E] items at equal steps of an order, rising."""
    wanted = max(_LEAST_ENTRIES, 2 * math.isqrt(len(ordered_I)))
    step = max(1, len(ordered_I) // wanted)
    return ordered_I[::step].sort().values


def _check(code_IJ: Tensor, vector_JKD: Tensor) -> None:
    if code_IJ.dim() != 2 or vector_JKD.dim() != 3 or code_IJ.shape[1] != len(vector_JKD):
        raise ValueError(
            f"codes must be [items, {len(vector_JKD)}], one for each codebook of vectors [codebooks, codes, width], "
            f"got {list(code_IJ.shape)} and {list(vector_JKD.shape)}"
        )
    if not len(code_IJ):
        raise ValueError("there are no codes; a graph needs at least one item")
    low, high = int(code_IJ.min()), int(code_IJ.max())
    if low < 0 or high >= vector_JKD.shape[1]:
        raise ValueError(f"codes must be from 0 to {vector_JKD.shape[1] - 1}, got {low} to {high}")
