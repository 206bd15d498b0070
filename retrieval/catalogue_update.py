"""Catalogue life: items that come, change and go while requests are answered, and bundles that take over from others.

A change makes a snapshot beside the present one, sharing all that stays, and puts it in its place by one assignment.
Requests under way keep the snapshot that they began with; it goes when the last of them ends. Changes wait for each
other, requests for nothing.

Suffixes: I = items, J = items that move (new, or known with other content), L = codes of an item.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.bundle import Bundle
from recsys.errors import InputError
from recsys.grown_items import moved_items
from recsys.index.code_trie import CodeTrie
from recsys.index.graph_side import Cosines, moved
from recsys.index.relation_rows import RelationRows
from recsys.model import UnifiedModel
from recsys.retrieval.catalogue_change import CatalogueChange
from recsys.retrieval.catalogue_content import CatalogueContent, relation_rows
from recsys.retrieval.snapshot import Snapshot
from recsys.tokenizers.item_content import ItemRows

__all__ = ["CatalogueState", "changed_state"]


@dataclass(frozen=True, slots=True, eq=False)
class CatalogueState:
    """A snapshot, and what its next change needs beside it."""

    snapshot: Snapshot
    as_loaded: bool = True
    """Whether nothing of the bundle changed since it was loaded."""
    content: CatalogueContent | None = None
    """None until an item comes or changes."""
    relations: Mapping[str, RelationRows] | None = None
    """Vectors behind the relations of content, by name; None until they are needed."""

    def with_content(self) -> CatalogueState:
        """The same with what the bundle holds for new items."""
        if self.content is not None:
            return self
        return replace(self, content=CatalogueContent.load(self.snapshot.bundle))


def changed_state(state: CatalogueState, change: CatalogueChange) -> CatalogueState:
    """What stands after a change; the given state stays as it is.

    Raises:
        InputError: the rows of items cannot be read.
    """
    snapshot = state.snapshot
    if not change.touches_items:
        if np.array_equal(change.withdrawn, snapshot.bundle.withdrawn_G):
            return state
        bundle = snapshot.bundle.without(change.withdrawn)
        return replace(state, snapshot=snapshot.next(bundle, snapshot.state_hash), as_loaded=False)
    with torch.inference_mode(False), torch.no_grad():
        return _with_items(state, change)


def _with_items(state: CatalogueState, change: CatalogueChange) -> CatalogueState:
    state = state.with_content()
    snapshot, content = state.snapshot, state.content
    assert content is not None
    bundle = snapshot.bundle
    num_before, num_new = len(bundle.vocabulary.items), change.new.height
    num_items = num_before + num_new
    new_numbers = np.arange(num_before, num_items, dtype=np.int64)
    moved_numbers = np.concatenate([change.changed_C[change.read_C], new_numbers])
    frame = pl.concat([change.changed.filter(pl.Series(change.read_C)), change.new])
    words = bundle.vocabulary
    if num_new:
        words = replace(words, items=words.items.grown(change.new["item_id"]))
    grown = replace(bundle, vocabulary=words, items=_table(bundle.items, change))
    relations, state_hash = state.relations, snapshot.state_hash
    if len(moved_numbers):
        rows = content.read(frame)
        content_JC = content.model_rows(rows, len(frame))
        moved_J = torch.from_numpy(moved_numbers)
        grown = _moved(grown, content, change, rows, content_JC, moved_J)
        relations = relations if relations is not None else content.relations()
        relations = {
            name: one.moved(num_items, moved_numbers, relation_rows(rows, name)) for name, one in relations.items()
        }
        cosines: dict[str, Cosines] = {name: one.cosines for name, one in relations.items()}
        # Which items are gone is said anew below, for a catalogue of another size.
        now, train = (replace(graph, gone_I=None) for graph in (bundle.graph_now, bundle.graph_train))
        grown = replace(
            grown,
            graph_now=moved(now, num_items, moved_J, cosines),
            graph_train=moved(train, num_items, moved_J, cosines),
        )
        num_changed = len(moved_numbers) - num_new
        if num_changed:
            state_hash = _hash(state_hash, moved_numbers[:num_changed], content_JC[:num_changed])
    after = snapshot.next(grown.without(change.withdrawn), state_hash, change.changed_C[change.read_C])
    return CatalogueState(after, False, content, relations)


def _table(items: pl.DataFrame, change: CatalogueChange) -> pl.DataFrame:
    """The items table with changed rows in their places and new ones at its end."""
    if len(change.changed_C):
        place_I = np.arange(items.height)
        place_I[change.changed_C] = items.height + np.arange(len(change.changed_C))
        items = pl.concat([items, change.changed])[place_I]
    return pl.concat([items, change.new]) if change.new.height else items


def _moved(
    bundle: Bundle,
    content: CatalogueContent,
    change: CatalogueChange,
    rows: ItemRows,
    content_JC: Tensor,
    moved_J: Tensor,
) -> Bundle:
    """Model, vectors, index and trie of the changed catalogue."""
    model, num_new = bundle.model, change.new.height
    num_items = len(bundle.vocabulary.items)
    num_before = num_items - num_new
    # Codes of item vectors need the vectors, which need the model: its codes come in a second step.
    blank = {kind: _padded(model.codes.of(kind), num_new) for kind in model.codes.sizes}
    grown = moved_items(model, num_items, moved_J, content_JC, blank)
    vectors, moved_J = _vectors(bundle.vectors, grown, moved_J.to(bundle.vectors.device))
    trie = bundle.trie
    if model.codes.sizes and num_new:
        fresh = _last(rows, num_new)
        codes = {}
        for kind in model.codes.sizes:
            new_NL = _codes(kind, content, change, fresh, vectors[num_before:])
            codes[kind] = torch.cat([model.codes.of(kind), new_NL.to(model.device, torch.int32)])
            if kind == "codes" and trie is not None:
                trie = _appended(trie, new_NL)
        try:
            grown.codes.fill(codes)
        except ValueError as error:
            raise InputError(f"items: {error}") from error
    return replace(
        bundle, model=grown, vectors=vectors, index=bundle.index.without(None).moved(vectors, moved_J), trie=trie
    )


def _padded(code_IL: Tensor, num_new: int) -> Tensor:
    return torch.cat([code_IL, code_IL.new_zeros(num_new, code_IL.shape[1])])


def _vectors(before_ID: Tensor, model: UnifiedModel, moved_J: Tensor) -> tuple[Tensor, Tensor]:
    """Item vectors of the changed catalogue, and the numbers of all that changed; as
    :meth:`UnifiedModel.item_vectors` makes them of all items."""
    has_id_I = model.items.has_id_I
    num_items = len(has_id_I)
    vectors = before_ID.new_zeros(num_items, before_ID.shape[1])
    vectors[: len(before_ID)] = before_ID
    vectors[moved_J] = model.query_head.item_side(model.items.rows(moved_J).float())
    # An item that nothing is known of stands at the mean of the trained ones.
    maybe_J = moved_J
    if bool(has_id_I[moved_J].any()):  # the mean moves, and all that stand there with it
        maybe_J = torch.cat([moved_J, (~has_id_I).nonzero().flatten()]).unique()
    cold_N = maybe_J[~has_id_I[maybe_J]]
    blank_N = cold_N[~model.items.rows(cold_N).any(1)]
    if not len(blank_N) or not bool(has_id_I.any()):
        return vectors, moved_J
    vectors[blank_N] = vectors[has_id_I].mean(0)
    return vectors, torch.cat([moved_J, blank_N]).unique()


def _last(rows: ItemRows, count: int) -> ItemRows:
    """The rows of the new items, which come last."""
    if rows.content_IC is None:
        return rows
    return ItemRows(rows.content_IC[len(rows.content_IC) - count :])


def _codes(kind: str, content: CatalogueContent, change: CatalogueChange, rows: ItemRows, vectors_ND: Tensor) -> Tensor:
    """[N, L] int64 codes of new items: those that were given, the others by the codebooks of the bundle."""
    given = change.codes.get(kind) or [None] * change.new.height
    missing = [row for row, codes in enumerate(given) if codes is None]
    sizes = content.bundle.model.codes.sizes[kind]
    code_NL = torch.zeros(len(given), len(sizes), dtype=torch.int64)
    if missing:
        some = ItemRows(None if rows.content_IC is None else rows.content_IC[missing])
        code_NL[missing] = torch.from_numpy(content.codes(kind, some, vectors_ND[missing]))
    for row, codes in enumerate(given):
        if codes is None:
            continue
        name = change.new["item_id"][row]
        if not isinstance(codes, list) or len(codes) != len(sizes) or not all(type(code) is int for code in codes):
            raise InputError(f"items, column {kind}: item {name!r} needs {len(sizes)} integers, got {codes!r}")
        for level, (code, size) in enumerate(zip(codes, sizes, strict=True), 1):  # before 32 bits wrap them
            if not 0 <= code < size:
                needed = f"codes of level {level} must be from 0 to {size - 1}"
                raise InputError(f"items, column {kind}: {needed}, item {name!r} has {code}")
        code_NL[row] = torch.tensor(codes)
    return code_NL


def _appended(trie: CodeTrie, new_NL: Tensor) -> CodeTrie:
    device = trie.item_P.device
    try:
        return trie.whole().to("cpu").append(new_NL).to(device)
    except ValueError as error:
        raise InputError(f"items, column codes: {error}") from error


def _hash(before: str, numbers: NDArray[np.int64], content_JC: Tensor) -> str:
    digest = hashlib.sha256(before.encode())
    digest.update(numbers.astype("<i8").tobytes())
    digest.update(content_JC.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
