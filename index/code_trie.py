"""The code trie: which code may follow which prefix of a semantic ID, and which items a prefix leads to.

Items are sorted by their codes, so that the items below a node are a run of places, the children of a node a run of
nodes, and nothing needs a pointer (as in STATIC's decoding for accelerators, methods of constrained generation). A node
of depth d is known by its number among the nodes of that depth, in the order of their prefixes.

Suffixes: I = items, P = places (items in the order of the trie), L = levels, N = nodes of a level, M = nodes of the
level above, B = requests, W = beams of a request, C = children of a beam, X = B · W beams of all requests, T = their
children, K = codes of a level, G = removed items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from recsys.index.parts import checked_parts, write_parts
from recsys.index.stored_checks import check_header, check_ids, check_offsets, check_tensor
from recsys.index.tensor_file import write_tensors

__all__ = ["Children", "CodeTrie", "TrieLevel"]

_FORMAT = "recsys-code-trie"
_FORMAT_VERSION = 1
_MANIFEST = "trie.json"
_TENSORS = "trie.safetensors"
_MOST_CELLS = 1 << 20
"""Of a dense table."""
_MOST_KEY = 2**62

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Children:
    """The children of the beams of all requests, one after the other: no more than there are."""

    node_T: Tensor
    """[T] integers rising within a beam; −1 = none."""
    first_X1: Tensor
    """[X + 1] int64: the children of beam x stand at ``first_X1[x]`` up to ``first_X1[x + 1]``."""
    owner_T: Tensor | None
    """[T] int64 beam of each; None = every beam has one place per code, in order."""
    code_T: Tensor | None
    """[T] int64 code of each; None likewise."""

    def of(self, place: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
        """Beams and codes at some places."""
        if self.owner_T is None or self.code_T is None:
            owner = torch.div(place, num_codes, rounding_mode="floor")
            return owner, place - owner * num_codes
        return self.owner_T[place], self.code_T[place]


@dataclass(frozen=True, slots=True)
class TrieLevel:
    """The nodes of one depth."""

    code_N: Tensor
    """[N] int32, the last code of each prefix."""
    child_M1: Tensor
    """[M + 1] int32: the children of node m above are ``child_M1[m]`` up to ``child_M1[m + 1]``, codes rising."""
    start_N1: Tensor
    """[N + 1] int32: the items of node n stand at the places ``start_N1[n]`` up to ``start_N1[n + 1]``."""
    most_children: int
    """Of a node above."""
    table_MK: Tensor | None
    """[M, K] int32 child by code, −1 = none; where it is small and well filled, else None."""
    alive_N: Tensor | None = None
    """[N] bool, nodes that still lead to an item; None = all of them."""

    @property
    def num_nodes(self) -> int:
        return len(self.code_N)

    def spread(self, node_BW: Tensor) -> Children:
        """What :meth:`children` returns, without the places that no child takes.

        A level without a table has nodes of very different width, the more so where codes are not uniform: at fixed
        width every beam would pay for the widest node of the level.

        Args:
            node_BW: [B, W] int64; −1 has no children in a level without a table, and those of node 0 in one with it.
        """
        node_X = node_BW.flatten()
        if self.table_MK is not None:
            size = self.table_MK.shape[1]
            child_T = self.table_MK.index_select(0, node_X.clamp_min(0)).flatten()
            return Children(child_T, torch.arange(0, len(child_T) + 1, size, device=node_X.device), None, None)
        above_X = node_X.clamp_min(0)
        low_X = self.child_M1.index_select(0, above_X).long()
        count_X = (self.child_M1.index_select(0, above_X + 1) - low_X).masked_fill_(node_X < 0, 0)
        first_X1 = F.pad(count_X.cumsum(0), (1, 0))
        owner_T = torch.repeat_interleave(count_X)
        child_T = (low_X - first_X1[:-1]).index_select(0, owner_T) + torch.arange(len(owner_T), device=node_X.device)
        return Children(child_T, first_X1, owner_T, self.code_N.index_select(0, child_T).long())

    def children(self, node_BW: Tensor) -> tuple[Tensor, Tensor]:
        """The children of nodes of the level above, at fixed width.

        Args:
            node_BW: [B, W] int64; −1 has none.

        Returns:
            [B, W, C] int64 nodes rising with C, −1 = none, and [B, W, C] int64 codes. Nodes without an item left are
            among them.
        """
        above_BW = node_BW.clamp_min(0)
        if self.table_MK is not None:
            child_BWC = self.table_MK[above_BW].long()
            code_BWC = torch.arange(self.table_MK.shape[1], device=node_BW.device).expand(child_BWC.shape)
            missing_BWC = child_BWC < 0
        else:
            first_BW = self.child_M1[above_BW].long()
            child_BWC = first_BW[..., None] + torch.arange(self.most_children, device=node_BW.device)
            missing_BWC = child_BWC >= self.child_M1[above_BW + 1].long()[..., None]
            code_BWC = self.code_N[child_BWC.clamp_max(self.num_nodes - 1)].long()
        return child_BWC.masked_fill(missing_BWC | (node_BW < 0)[..., None], -1), code_BWC

    def to(self, device: torch.device | str) -> TrieLevel:
        """The same nodes on a device."""
        table_MK = None if self.table_MK is None else self.table_MK.to(device)
        alive_N = None if self.alive_N is None else self.alive_N.to(device)
        return replace(
            self,
            code_N=self.code_N.to(device),
            child_M1=self.child_M1.to(device),
            start_N1=self.start_N1.to(device),
            table_MK=table_MK,
            alive_N=alive_N,
        )

    def node_at(self, place: Tensor) -> Tensor:
        """int64 nodes of this depth that lead to the items at some places, in the shape of ``place``."""
        return torch.searchsorted(self.start_N1, place.to(self.start_N1.dtype).contiguous(), right=True) - 1


@dataclass(frozen=True, slots=True)
class CodeTrie:
    """All semantic IDs of a catalogue. Immutable: growing and removing return another trie."""

    sizes: tuple[int, ...]
    """Codes of each level."""
    item_P: Tensor
    """[P] int32, the item at each place; items of one leaf stand in the order they were given in."""
    place_I: Tensor
    """[I] int32, the place of each item."""
    levels: tuple[TrieLevel, ...]
    gone_G: Tensor | None = None
    """[G] int64 places of removed items, rising; None = none is removed."""

    @property
    def num_items(self) -> int:
        return len(self.item_P)

    @property
    def num_levels(self) -> int:
        return len(self.sizes)

    @property
    def num_left(self) -> int:
        """Items that are not removed."""
        return self.num_items - (0 if self.gone_G is None else len(self.gone_G))

    @classmethod
    def build(cls, codes_IL: Tensor | Ints, sizes: Sequence[int], *, rank_I: Tensor | Ints | None = None) -> CodeTrie:
        """Sort the codes and lay out their prefixes.

        Args:
            codes_IL: [I, L] integers, the codes of every item of the catalogue; items may share all of them.
            sizes: codes of each level; codes are from 0 to size − 1.
            rank_I: [I] order of items within a leaf, smallest first; equal ranks and None: by item.

        Raises:
            ValueError: no items, another number of levels than sizes, or a code out of range.
        """
        codes = np.asarray(codes_IL, dtype=np.int64)
        sizes = tuple(int(size) for size in sizes)
        _check(codes, sizes)
        order_P = np.arange(len(codes)) if rank_I is None else np.argsort(np.asarray(rank_I), kind="stable")
        order_P = order_P[_sorted(codes[order_P], sizes)]
        return cls._laid_out(codes[order_P], sizes, order_P)

    @classmethod
    def _laid_out(cls, codes_PL: Ints, sizes: tuple[int, ...], order_P: Ints) -> CodeTrie:
        num_items = len(order_P)
        place_I = np.empty(num_items, dtype=np.int32)
        place_I[order_P] = np.arange(num_items, dtype=np.int32)
        new_P = np.zeros(num_items, dtype=np.bool_)
        new_P[0] = True
        above_M = np.zeros(1, dtype=np.int64)  # first places of the nodes above: of the root
        levels = []
        for level, size in enumerate(sizes):
            new_P[1:] |= codes_PL[1:, level] != codes_PL[:-1, level]
            start_N = np.flatnonzero(new_P)
            child_M1 = np.append(np.searchsorted(start_N, above_M), len(start_N))
            code_N = codes_PL[start_N, level]
            most = int(np.diff(child_M1).max())
            table_MK = None
            if len(above_M) * size <= _MOST_CELLS and 2 * most >= size:
                table_MK = torch.full((len(above_M), size), -1, dtype=torch.int32)
                above_N = np.repeat(np.arange(len(above_M)), np.diff(child_M1))
                table_MK[above_N, code_N] = torch.arange(len(start_N), dtype=torch.int32)
            levels.append(
                TrieLevel(_int32(code_N), _int32(child_M1), _int32(np.append(start_N, num_items)), most, table_MK)
            )
            above_M = start_N
        return cls(sizes, _int32(order_P), torch.from_numpy(place_I), tuple(levels))

    def codes(self) -> Tensor:
        """[I, L] int64 codes of every item, removed ones included."""
        codes_PL = torch.empty(self.num_items, self.num_levels, dtype=torch.int64)
        for number, level in enumerate(self.levels):
            codes_PL[:, number] = torch.repeat_interleave(level.code_N.long(), level.start_N1.diff().long())
        return codes_PL[self.place_I.long()]

    def append(self, codes_NL: Tensor | Ints) -> CodeTrie:
        """The trie with more items, whose ids follow those of the present ones; in a leaf they stand last.

        Args:
            codes_NL: [N, L] codes of the new items.
        """
        new_codes = np.asarray(codes_NL, dtype=np.int64)
        _check(new_codes, self.sizes)
        codes_IL = np.concatenate([self.codes().numpy(), new_codes])
        rank_I = np.concatenate([self.place_I.numpy(), np.full(len(new_codes), self.num_items)])
        grown = CodeTrie.build(codes_IL, self.sizes, rank_I=rank_I)
        return grown if self.gone_G is None else grown.without(self.item_P[self.gone_G].long())

    def without(self, items: Tensor) -> CodeTrie:
        """The trie in which some items are removed: nothing leads to them, their places stay.

        Args:
            items: [N] int64 ids.

        Raises:
            ValueError: an id that is no item.
        """
        if len(items) and not (0 <= int(items.min()) and int(items.max()) < self.num_items):
            raise ValueError(
                f"items must have ids from 0 to {self.num_items - 1}, got {int(items.min())} to {int(items.max())}"
            )
        gone_G = self.place_I[items].long()
        gone_G = (gone_G if self.gone_G is None else torch.cat([self.gone_G, gone_G])).unique()
        levels = []
        for level in self.levels:
            start_N1 = level.start_N1.long()
            left_N = start_N1.diff() - torch.searchsorted(gone_G, start_N1).diff()
            levels.append(replace(level, alive_N=left_N > 0))
        return replace(self, levels=tuple(levels), gone_G=gone_G)

    def whole(self) -> CodeTrie:
        """The trie in which no item is removed."""
        levels = tuple(replace(level, alive_N=None) for level in self.levels)
        return replace(self, levels=levels, gone_G=None)

    def to(self, device: torch.device | str) -> CodeTrie:
        """The same trie on a device."""
        gone_G = None if self.gone_G is None else self.gone_G.to(device)
        levels = tuple(level.to(device) for level in self.levels)
        return replace(
            self, item_P=self.item_P.to(device), place_I=self.place_I.to(device), levels=levels, gone_G=gone_G
        )

    # -- files -----------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the tensors and ``trie.json`` with their hash into ``folder``."""
        header = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "num_items": self.num_items,
            "sizes": list(self.sizes),
            "most_children": [level.most_children for level in self.levels],
        }
        tensors = {"item": self.item_P, "place": self.place_I}
        for number, level in enumerate(self.levels):
            parts = {"code": level.code_N, "child": level.child_M1, "start": level.start_N1, "table": level.table_MK}
            tensors |= {f"{name}.{number}": tensor for name, tensor in parts.items() if tensor is not None}
        if self.gone_G is not None:
            tensors["gone"] = self.item_P[self.gone_G]
        write_parts(folder, _MANIFEST, header, {_TENSORS: lambda path: write_tensors(tensors, path)})

    @classmethod
    def load(cls, folder: Path) -> CodeTrie:
        """Read what :meth:`save` wrote, hash first; the tensors are mapped, not read.

        Raises:
            ValueError: one line naming the file that is missing, truncated, changed or foreign, and what to do.
        """
        header = checked_parts(folder, _MANIFEST, format=_FORMAT, format_version=_FORMAT_VERSION, parts=(_TENSORS,))
        check_header(header, num_items=int, sizes=list, most_children=list)
        tensors = load_file(folder / _TENSORS)
        try:
            _check_nodes(header, tensors)
        except ValueError as error:
            raise ValueError(f"{folder / _TENSORS}: {error}; build and save the trie again") from None
        levels = tuple(
            TrieLevel(
                tensors[f"code.{number}"],
                tensors[f"child.{number}"],
                tensors[f"start.{number}"],
                most,
                tensors.get(f"table.{number}"),
            )
            for number, most in enumerate(header["most_children"])
        )
        trie = cls(tuple(header["sizes"]), tensors["item"], tensors["place"], levels)
        return trie.without(tensors["gone"].long()) if "gone" in tensors else trie


def _check(codes: Ints, sizes: tuple[int, ...]) -> None:
    if codes.ndim != 2 or codes.shape[1] != len(sizes) or not sizes:
        raise ValueError(f"codes must be [items, {len(sizes)}], one per level, got {list(codes.shape)}")
    if not len(codes):
        raise ValueError("there are no codes; a trie needs at least one item")
    for level, size in enumerate(sizes):
        low, high = int(codes[:, level].min()), int(codes[:, level].max())
        if low < 0 or high >= size:
            raise ValueError(f"codes of level {level + 1} must be from 0 to {size - 1}, got {low} to {high}")


def _check_nodes(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    sizes, num_items = header["sizes"], header["num_items"]
    if not 1 <= len(sizes) <= 64 or not all(type(size) is int and 0 < size < 2**31 for size in sizes):
        raise ValueError("sizes must be positive numbers, one per level")
    item_P = check_tensor("item", tensors.get("item"), torch.int32, 1)
    place_I = check_tensor("place", tensors.get("place"), torch.int32, 1)
    if len(item_P) != num_items or len(place_I) != num_items or not num_items:
        raise ValueError(f"item and place must be of {num_items} items")
    check_ids("item", item_P, 0, num_items)
    if not torch.equal(place_I[item_P.long()], torch.arange(num_items, dtype=torch.int32)):
        raise ValueError("place does not say where the items stand")
    num_above, most = 1, []
    for level, size in enumerate(sizes):
        code_N = check_tensor(f"code.{level}", tensors.get(f"code.{level}"), torch.int32, 1)
        child_M1 = check_tensor(f"child.{level}", tensors.get(f"child.{level}"), torch.int32, 1)
        start_N1 = check_tensor(f"start.{level}", tensors.get(f"start.{level}"), torch.int32, 1)
        if len(child_M1) != num_above + 1 or len(start_N1) != len(code_N) + 1:
            raise ValueError(f"level {level + 1} does not fit the one above")
        check_ids(f"code.{level}", code_N, 0, size)
        check_offsets(f"child.{level}", child_M1, len(code_N))
        check_offsets(f"start.{level}", start_N1, num_items)
        if f"table.{level}" in tensors:
            table_MK = check_tensor(f"table.{level}", tensors[f"table.{level}"], torch.int32, 2)
            if table_MK.shape != (num_above, size):
                raise ValueError(f"table.{level} must be {[num_above, size]}, got {list(table_MK.shape)}")
            check_ids(f"table.{level}", table_MK, -1, len(code_N))
        most.append(int(child_M1.diff().max()))
        num_above = len(code_N)
    if header["most_children"] != most:
        raise ValueError(f"most_children must be {most}")
    if "gone" in tensors:
        check_ids("gone", check_tensor("gone", tensors["gone"], torch.int32, 1), 0, num_items)


def _sorted(codes: Ints, sizes: tuple[int, ...]) -> Ints:
    """The stable order of the rows."""
    if np.prod([float(size) for size in sizes]) >= _MOST_KEY:
        found: Ints = np.lexsort(codes.T[::-1])
        return found
    key = np.zeros(len(codes), dtype=np.int64)
    for level, size in enumerate(sizes):
        key = key * size + codes[:, level]
    return np.argsort(key, kind="stable")


def _int32(numbers: Ints) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.int32))
