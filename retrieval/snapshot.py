"""One version of everything that answers requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recsys.bundle import Bundle
from recsys.retrieval.bundle_retrievers import bundle_retrievers
from recsys.retrieval.protocol import Retriever
from recsys.retrieval.rules.item_table import ItemTable

__all__ = ["Snapshot"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A loaded bundle and what is made of it once. Immutable: a request that holds one is answered by one version."""

    bundle: Bundle
    retrievers: Mapping[str, Retriever]
    """By name."""
    length_I: Tensor
    """[I] float32 length of every item vector."""
    item_table: ItemTable = field(init=False)
    """Columns of the items, for rules; made anew with every snapshot."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "item_table", ItemTable(self.bundle.items))

    @classmethod
    def of(cls, bundle: Bundle) -> Snapshot:
        """Prepare a bundle for requests."""
        return cls(bundle, bundle_retrievers(bundle), bundle.vectors.norm(dim=1))

    @property
    def device(self) -> torch.device:
        return self.bundle.vectors.device

    @property
    def actions(self) -> tuple[str, ...]:
        """Actions that candidates get probabilities of; none where the data had too few to learn from."""
        return self.bundle.vocabulary.actions if self.bundle.model.action_head is not None else ()
