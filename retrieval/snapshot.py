"""One version of everything that answers requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recsys.bundle import Bundle
from recsys.retrieval.bundle_retrievers import bundle_retrievers
from recsys.retrieval.history_sources.bundle import BundleHistories
from recsys.retrieval.history_sources.reader import HistoryReader
from recsys.retrieval.history_sources.source import HistorySource
from recsys.retrieval.protocol import Retriever
from recsys.retrieval.rules.item_table import ItemTable

__all__ = ["Snapshot", "SourceChoice"]

SourceChoice = HistorySource | Callable[[Bundle], HistorySource] | None
"""A source of histories, a function that makes one for each bundle, or None for the bundle's own histories."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A loaded bundle and what is made of it once. Immutable: a request that holds one is answered by one version."""

    bundle: Bundle
    retrievers: Mapping[str, Retriever]
    """By name."""
    length_I: Tensor
    """[I] float32 length of every item vector."""
    reader: HistoryReader | None = None
    """Of the users' histories; None where a user id says nothing."""
    item_table: ItemTable = field(init=False)
    """Columns of the items, for rules; made anew with every snapshot."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "item_table", ItemTable(self.bundle.items))

    @classmethod
    def of(cls, bundle: Bundle, history_source: SourceChoice = None) -> Snapshot:
        """Prepare a bundle for requests."""
        source: HistorySource | None
        if history_source is None:
            source = None if bundle.histories is None else BundleHistories(bundle)
        else:
            source = history_source if isinstance(history_source, HistorySource) else history_source(bundle)
        reader = None if source is None else HistoryReader(source, bundle.vocabulary)
        return cls(bundle, bundle_retrievers(bundle), bundle.vectors.norm(dim=1), reader)

    @property
    def source(self) -> HistorySource | None:
        """Where users' histories come from; None where from nowhere."""
        return None if self.reader is None else self.reader.source

    @property
    def device(self) -> torch.device:
        return self.bundle.vectors.device

    @property
    def actions(self) -> tuple[str, ...]:
        """Actions that candidates get probabilities of; none where the data had too few to learn from."""
        return self.bundle.vocabulary.actions if self.bundle.model.action_head is not None else ()
