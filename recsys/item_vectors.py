"""Item vectors: a learned id part plus a projection of content features.

Suffixes: I = items, C = content features, D = model width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from recsys.embedding_table import EmbeddingTable
from recsys.model_config import ModelConfig

__all__ = ["ItemVectors"]

_PRIME = 2**31 - 1
"""Items have smaller numbers, and products of two numbers below it fit into int64."""


class ItemVectors(nn.Module):
    """Vectors of the whole catalogue.

    Items without a training event have a zero id part: only their content speaks. Unknown items (negative ids) are
    the zero vector.
    """

    content_IC: Tensor
    has_id_I: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.id_dropout = config.id_dropout if config.content_dim else 0.0
        self.ids = EmbeddingTable(config.num_items, config.dim)
        self.register_buffer("has_id_I", torch.ones(config.num_items, dtype=torch.bool))
        self.register_buffer("content_IC", torch.zeros(config.num_items, config.content_dim))
        self.project = nn.Linear(config.content_dim, config.dim, bias=False) if config.content_dim else None

    @torch.no_grad()
    def set_catalogue(self, content_IC: Tensor | None, has_events_I: Tensor) -> None:
        """Fix what the data says of the items; content is centred and scaled to a mean row length of 1.

        Args:
            content_IC: [I, C] floats, or None for a model of ids only.
            has_events_I: [I] bool, whether the item occurs in a training event.
        """
        self.has_id_I.copy_(has_events_I)
        if content_IC is not None:
            centred = content_IC.float() - content_IC.float().mean(0, keepdim=True)
            self.content_IC.copy_(centred / centred.norm(dim=1).mean().clamp_min(1e-12))

    def table(self) -> Tensor:
        """[I + 1, D]: every item's vector, and a last row of zeros for the unknown item."""
        keep_I1 = self.has_id_I[:, None].to(self.ids.weight.dtype)
        if self.training and self.id_dropout:
            keep_I1 = keep_I1 * (torch.rand_like(keep_I1) >= self.id_dropout)
        vectors_ID = self.ids.all_rows() * keep_I1
        if self.project is not None:
            vectors_ID = vectors_ID + self.content_part()
        return torch.cat([vectors_ID, vectors_ID.new_zeros(1, vectors_ID.shape[1])])

    def content_of(self, items: Tensor) -> Tensor:
        """Content of some items as the model reads it, [C] each; ids of any shape, from 0 on."""
        return self.content_IC[items]

    def content_part(self) -> Tensor:
        """[I, D]: what content alone says of every item; zeros in a model of ids only."""
        return torch.zeros_like(self.ids.all_rows()) if self.project is None else self.project(self.content_IC)

    def rows(self, items: Tensor) -> Tensor:
        """Vectors of some items, ids of any shape; the same numbers as ``table()[items]`` without dropout."""
        return self._rows(items, None)

    def rows_of_step(self) -> Callable[[Tensor], Tensor]:
        """:meth:`rows` for one training step: as in :meth:`table`, an item loses its id wherever it occurs or nowhere.

        Which ones do is a hash of their numbers with two that are drawn here (Carter and Wegman, 1979), so that a step
        draws nothing for items that it does not read.
        """
        if not (self.training and self.id_dropout):
            return self.rows
        factor, shift = torch.randint(1, _PRIME, (2,), device=self.has_id_I.device).unbind()

        def rows(items: Tensor) -> Tensor:
            keeps = (items.clamp_min(0) * factor + shift) % _PRIME >= self.id_dropout * _PRIME
            return self._rows(items, keeps)

        return rows

    def _rows(self, items: Tensor, keeps_id: Tensor | None) -> Tensor:
        known = items >= 0
        at = items.clamp_min(0)
        has_id = self.has_id_I[at] & known
        vectors = self.ids(at) * (has_id if keeps_id is None else has_id & keeps_id)[..., None]
        if self.project is not None:
            vectors = vectors + self.project(self.content_IC[at]) * known[..., None]
        return vectors
