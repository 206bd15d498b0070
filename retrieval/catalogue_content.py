"""What a bundle knows of how items are read: from rows of the items table to content, codes and neighbours.

Read from the files of the bundle when the catalogue first changes; a bundle that is only served never loads it.

Suffixes: I = items, J = items that move, C = content columns, L = codes of an item.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from recsys.bundle import SPARSE_TEXT, Bundle, checked_manifest
from recsys.content_map import ContentMap
from recsys.errors import InputError
from recsys.files import read_json, sha256_file
from recsys.index.item_graph import TRANSITION
from recsys.index.relation_rows import RelationRows
from recsys.index.walks import WALKS
from recsys.sparse_rows import read_sparse
from recsys.tokenizers.item_content import ItemContent, ItemRows
from recsys.tokenizers.item_tokenizer import FusedTokenizer, load_item_tokenizer
from recsys.tokenizers.modalities import SeparateTokenizers
from recsys.tokenizers.new_item_blocks import CONTENT, PART, blocks_of_new_items, hash_of_content

__all__ = ["CatalogueContent"]

_AGAIN = "fit and export again with this version"
_BROKEN = (OSError, ValueError, KeyError, TypeError, SafetensorError)


@dataclass(frozen=True, slots=True)
class CatalogueContent:
    """How the items of one bundle are read."""

    bundle: Bundle
    """As it was loaded."""
    content: ItemContent
    content_map: ContentMap | None
    """None where the model reads no content."""
    tokenizers: Mapping[str, FusedTokenizer | SeparateTokenizers]
    """By kind of codes; a kind may be missing."""
    blocks: Mapping[str, Mapping[str, Any]]
    """Name -> what the codes say of the blocks they were made of."""

    @classmethod
    def load(cls, bundle: Bundle) -> CatalogueContent:
        """Read what the bundle holds for items that come later.

        Raises:
            InputError: the bundle lies no more where it was loaded from, or lacks something.
        """
        path = bundle.path
        if checked_manifest(path)["checksum"] != bundle.manifest["checksum"]:
            raise InputError(f"{path} is not the bundle any more that was loaded from there; swap to it first")
        for name in ("content_map.safetensors", SPARSE_TEXT):
            _unchanged(bundle, name)
        for name in bundle.manifest["files"]:
            if name.startswith(("text/", "tokenizers/")):
                _unchanged(bundle, name)
        try:
            content = ItemContent.load(path, device=str(bundle.vectors.device))
            content_map = None
            if bundle.model.config.content_dim:
                content_map = ContentMap.load(path / "content_map.safetensors")
            folder, tokenizers, blocks = path / "tokenizers", {}, {}
            if bundle.model.codes.sizes and folder.is_dir():
                blocks = {block["name"]: block for block in read_json(folder / "sids.json")["blocks"]}
                tokenizers = {kind: load_item_tokenizer(folder / kind) for kind in bundle.model.codes.sizes}
        except _BROKEN as error:
            line = " ".join(str(error).split())
            raise InputError(f"{path} cannot take new items ({line}); {_AGAIN}") from error
        return cls(bundle, content, content_map, tokenizers, blocks)

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the items table that anything is made of."""
        return frozenset({"title", "text", *(block["name"] for block in self.content.blocks)})

    @property
    def vector_columns(self) -> tuple[str, ...]:
        """Columns of vectors among them."""
        return tuple(block["name"] for block in self.content.blocks if block["kind"] == "vector")

    def read(self, items: pl.DataFrame) -> ItemRows:
        """Content of some rows of the items table.

        Raises:
            InputError: a value cannot be read as those of the catalogue were.
        """
        try:
            return self.content.encode(items)
        except ValueError as error:
            raise InputError(f"items: {' '.join(str(error).split())}") from error

    def model_rows(self, rows: ItemRows, num_items: int) -> Tensor:
        """[J, C] float32 what the model reads of them."""
        if self.content_map is None or rows.content_IC is None:
            return torch.zeros(num_items, self.bundle.model.config.content_dim)
        return self.content_map.apply(rows.content_IC)

    def codes(self, kind: str, rows: ItemRows, vectors_JD: Tensor) -> NDArray[np.int64]:
        """[J, L] codes of new items by the codebooks of the bundle, which stay as they are.

        Args:
            kind: one of :data:`recsys.item_codes.KINDS` that the model has a head for.
            rows: content of the items.
            vectors_JD: their item vectors.

        Raises:
            InputError: the bundle holds no codebooks, or those of another content.
        """
        path, remedy = self.bundle.path, f"give the codes of new items in the column {kind}"
        if kind not in self.tokenizers:
            raise InputError(f"{path} holds no tokenizers that could make semantic IDs of new items; {remedy}")
        here = hash_of_content(self.bundle.manifest.get("content") or [], self.bundle.manifest["files"])
        for name in self.tokenizers[kind].widths:
            block = self.blocks[name]
            if block["kind"] in (CONTENT, PART) and block["made_by"] != here:
                raise InputError(f"{path}: its {kind} were made of content of another preparation; {remedy}")
        blocks = blocks_of_new_items(self.blocks, rows.content_IC, len(vectors_JD), vectors_JD.cpu().numpy())
        tokenizer = self.tokenizers[kind]
        found: NDArray[np.int64] = tokenizer.encode({name: blocks[name] for name in tokenizer.widths}).astype(np.int64)
        return found

    def relations(self) -> dict[str, RelationRows]:
        """The vectors behind every relation of content of the item graph, of all items of the bundle."""
        names = [name for name in self.bundle.graph_now.relations if name != TRANSITION and name not in WALKS]
        found: dict[str, RelationRows] = {}
        encoded: ItemRows | None = None
        for name in names:
            rows = self._sparse_text() if name == "text" else self._directions(name)
            if rows is None:
                encoded = encoded or self.read(self.bundle.items)
                rows = relation_rows(encoded, name)
            found[name] = RelationRows.of(rows)
        return found

    def _sparse_text(self) -> scipy.sparse.csr_matrix | None:
        if SPARSE_TEXT not in self.bundle.manifest["files"]:
            return None
        rows_IV = read_sparse(self.bundle.path / SPARSE_TEXT)
        if rows_IV.shape[0] != len(self.bundle.items):
            raise InputError(f"{self.bundle.path}: {SPARSE_TEXT} is of {rows_IV.shape[0]} items; copy the bundle again")
        return rows_IV

    def _directions(self, name: str) -> NDArray[np.float32] | None:
        """A block of the content as the model holds it; None where the model reads other axes."""
        block = next((block for block in self.content.blocks if block["name"] == name), None)
        if block is None or self.content_map is None or self.content_map.turn.dim():
            return None
        part = slice(block["start"], block["stop"])
        seen_IK = self.bundle.model.items.content_IC[:, part].cpu()
        rows_IK = (seen_IK - self.content_map.to_B[part]) / self.content_map.turn + self.content_map.from_C[part]
        # Rows of items without such a vector are zero up to rounding.
        length_I1 = rows_IK.norm(dim=1, keepdim=True)
        unit_IK: NDArray[np.float32] = torch.where(length_I1 > 1e-3, rows_IK, 0.0).numpy()
        return unit_IK


def relation_rows(rows: ItemRows, name: str) -> Any:
    """The vectors of a relation among what was read of items."""
    if name != "text":
        return rows.vectors[name]
    assert rows.sparse_text_IV is not None
    return rows.sparse_text_IV


def _unchanged(bundle: Bundle, name: str) -> None:
    expected, file = bundle.manifest["files"].get(name), Path(bundle.path) / name
    if expected is not None and (not file.is_file() or sha256_file(file) != expected):
        raise InputError(f"{file} is missing or not the file this bundle was written with; copy the bundle again")
