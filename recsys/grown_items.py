"""A trained model whose catalogue changed: new items known by their content alone, known ones with other content.

The tables of the model are shared and not copied: what changed lies beside them. Everything else of the model is shared
as well.

Suffixes: I = items, S = items beside the tables, J = items that move, C = content features, D = model width, L = codes
of an item.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from recsys.item_codes import ItemCodes
from recsys.item_vectors import ItemVectors
from recsys.model import UnifiedModel

__all__ = ["GrownItemVectors", "moved_items", "whole_model"]


class GrownItemVectors(ItemVectors):
    """Vectors of a catalogue that changed: rows of the tables it was trained with, and rows beside them."""

    side_I: Tensor
    """[I] int32 row beside the tables; -1 = the item stands in them as it is."""
    side_SD: Tensor
    side_SC: Tensor

    def __init__(self, base: ItemVectors, side_I: Tensor, side_SC: Tensor, has_id_I: Tensor) -> None:
        """Put rows beside tables.

        Args:
            base: the tables.
            side_I: [I] int32.
            side_SC: [S, C] content as the model reads it.
            has_id_I: [I] bool; items beyond the tables have none.
        """
        nn.Module.__init__(self)
        self.base, self.num_base = base, len(base.has_id_I)
        self.id_dropout = base.id_dropout
        self.register_buffer("has_id_I", has_id_I)
        self.register_buffer("side_I", side_I)
        self.register_buffer("side_SC", side_SC)
        item_S = torch.zeros(len(side_SC), dtype=torch.int64, device=side_I.device)
        beside_N = (side_I >= 0).nonzero().flatten()
        item_S[side_I[beside_N].long()] = beside_N
        with torch.no_grad():
            is_old_S = item_S < self.num_base
            old_S = torch.where(is_old_S, item_S, 0)
            side_SD = base.ids(old_S) * (base.has_id_I[old_S] & is_old_S)[:, None]
            if base.project is not None:
                side_SD = side_SD + base.project(side_SC)
        self.register_buffer("side_SD", side_SD)

    def rows(self, items: Tensor) -> Tensor:
        """Vectors of some items, ids of any shape; unknown items (negative ids) are the zero vector."""
        vectors = self.base.rows(torch.where(items < self.num_base, items, -1))
        side = self.side_I[items.clamp_min(0)].long().masked_fill(items < 0, -1)
        beside = side >= 0
        return (
            torch.where(beside[..., None], self.side_SD[side.clamp_min(0)], vectors) if len(self.side_SD) else vectors
        )

    def table(self) -> Tensor:
        """[I + 1, D]: every item's vector, and a last row of zeros for the unknown item."""
        every = torch.arange(-1, len(self.has_id_I), device=self.has_id_I.device).roll(-1)
        return self.rows(every)

    def content_of(self, items: Tensor) -> Tensor:
        """Content of some items as the model reads it, [C] each; ids of any shape, from 0 on."""
        content = self.base.content_IC[torch.where(items < self.num_base, items, 0)]
        side = self.side_I[items].long()
        return (
            torch.where(side[..., None] >= 0, self.side_SC[side.clamp_min(0)], content)
            if len(self.side_SC)
            else content
        )

    def content_part(self) -> Tensor:
        """[I, D]: what content alone says of every item; zeros in a model of ids only."""
        if self.base.project is None:
            return self.side_SD.new_zeros(len(self.has_id_I), self.side_SD.shape[1])
        part: Tensor = self.base.project(self.all_content())
        return part

    def all_content(self) -> Tensor:
        """[I, C] content as the model reads it."""
        num_new = len(self.has_id_I) - self.num_base
        content_IC = torch.cat([self.base.content_IC, self.base.content_IC.new_zeros(num_new, self.side_SC.shape[1])])
        beside_N = (self.side_I >= 0).nonzero().flatten()
        content_IC[beside_N] = self.side_SC[self.side_I[beside_N].long()]
        return content_IC


def moved_items(
    model: UnifiedModel, num_items: int, moved_J: Tensor, content_JC: Tensor, codes: Mapping[str, Tensor]
) -> UnifiedModel:
    """The model of a catalogue that changed.

    Args:
        model: in eval mode.
        num_items: of the catalogue now; older items keep their numbers.
        moved_J: [J] int64 rising: known items with other content, and all new ones.
        content_JC: [J, C] their content as the model reads it.
        codes: by kind, [I, L] codes of the whole catalogue; none for a model without heads of semantic IDs.

    Raises:
        ValueError: codes of other kinds or out of range.
    """
    items, device = model.items, model.device
    base = items.base if isinstance(items, GrownItemVectors) else items
    num_before = len(items.has_id_I)
    if isinstance(items, GrownItemVectors):
        side_I, side_SC = items.side_I, items.side_SC
    else:
        side_I = torch.full((num_before,), -1, dtype=torch.int32, device=device)
        side_SC = base.content_IC[:0].clone()
    side_I = torch.cat([side_I, side_I.new_full((num_items - num_before,), -1)])
    moved_J, content_JC = moved_J.to(device), content_JC.to(device, torch.float32)
    # Rows of items that moved before are taken again, so that the side never holds more rows than items.
    row_J = side_I[moved_J].long()
    fresh_J = row_J < 0
    row_J = torch.where(fresh_J, len(side_SC) + fresh_J.long().cumsum(0) - 1, row_J)
    whole_SC = torch.cat([side_SC, side_SC.new_zeros(int(fresh_J.sum()), side_SC.shape[1])])
    whole_SC[row_J] = content_JC
    side_I[moved_J] = row_J.int()
    has_id_I = torch.cat([items.has_id_I, items.has_id_I.new_zeros(num_items - num_before)])
    return _with(model, num_items, GrownItemVectors(base, side_I, whole_SC, has_id_I), codes)


def whole_model(model: UnifiedModel) -> UnifiedModel:
    """The same model with tables of the whole catalogue, as files hold it."""
    grown = model.items
    if not isinstance(grown, GrownItemVectors):
        return model
    config, base = replace(model.config, num_items=len(grown.has_id_I)), grown.base
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        items = ItemVectors(config).to(model.device)
        weight_ID = items.ids.weight
        weight_ID.zero_()
        weight_ID[: grown.num_base] = base.ids.all_rows()
        items.has_id_I.copy_(grown.has_id_I)
        items.content_IC.copy_(grown.all_content())
    items.project = base.project
    codes = {kind: model.codes.of(kind) for kind in model.codes.sizes}
    return _with(model, config.num_items, items, codes)


def _with(model: UnifiedModel, num_items: int, items: ItemVectors, codes: Mapping[str, Tensor]) -> UnifiedModel:
    """A model that shares everything else."""
    other = copy.copy(model)
    other._modules = dict(model._modules)
    other.config = replace(model.config, num_items=num_items)
    table = ItemCodes(other.config).to(model.device)
    table.fill(codes)
    other.items, other.codes = items.eval(), table.eval()
    return other
