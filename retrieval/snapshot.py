"""One version of everything that answers requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.bundle import Bundle
from recsys.retrieval.bundle_retrievers import bundle_retrievers
from recsys.retrieval.history_sources.bundle import BundleHistories
from recsys.retrieval.history_sources.reader import HistoryReader
from recsys.retrieval.history_sources.source import HistorySource
from recsys.retrieval.protocol import Retriever
from recsys.retrieval.rules.item_table import ItemTable
from recsys.state_store import UserStateStore

__all__ = ["Snapshot", "SourceChoice"]

SourceChoice = HistorySource | Callable[[Bundle], HistorySource] | None
"""A source of histories, a function that makes one for each bundle, or None for the bundle's own histories."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Snapshot:
    """A loaded bundle and what is made of it once. Immutable: a request that holds one is answered by one version."""

    bundle: Bundle
    retrievers: Mapping[str, Retriever]
    """By name."""
    length_I: Tensor
    """[I] float32 length of every item vector."""
    states: UserStateStore
    """Of the bundle's model; what it keeps may change, what it returns for a history never does."""
    reader: HistoryReader | None = None
    """Of the users' histories; None where a user id says nothing."""
    item_ID: Tensor | None = None
    """[I + 1, D] what the encoder and the ranking head read of every item, a last row of zeros for the unknown one;
    not what retrieval scores, which may be of length 1. None where it is a plain lookup: a model of ids only."""
    number: int = 0
    """Snapshots that stood here before: every update that changes something and every swap gives the next one."""
    state_hash: str = ""
    """Equal for snapshots whose encoder makes equal states of equal histories in internal numbers: the hash of the
    model, and of what the encoder reads of known items that changed. Items that are new or withdrawn leave it as it
    is: a history that holds a new item has other numbers than before."""
    history_source: SourceChoice = None
    """As it was chosen for :meth:`of`."""
    item_table: ItemTable = field(init=False)
    """Columns of the items, for rules; made anew with every snapshot."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "item_table", ItemTable(self.bundle.items, self.bundle.withdrawn_G))

    @classmethod
    def of(cls, bundle: Bundle, history_source: SourceChoice = None, states: UserStateStore | None = None) -> Snapshot:
        """Prepare a bundle for requests.

        Args:
            history_source: where users' histories come from.
            states: its memory holds the states of returning users; None = no state is kept.
        """
        state_hash = bundle.model_hash
        if states is None:
            states = UserStateStore(bundle.model, model_hash=state_hash, max_bytes=0, host_bytes=0)
        return cls(
            bundle=bundle,
            retrievers=bundle_retrievers(bundle),
            length_I=bundle.vectors.norm(dim=1),
            states=states.for_model(bundle.model, state_hash),
            reader=_reader(bundle, history_source),
            item_ID=_item_table(bundle),
            state_hash=state_hash,
            history_source=history_source,
        )

    def next(self, bundle: Bundle, state_hash: str, changed_C: NDArray[np.int64] | None = None) -> Snapshot:
        """The snapshot after a change of the catalogue.

        Args:
            bundle: of the same users and, but for what it reads of items, the same model.
            state_hash: see the attribute.
            changed_C: known items whose vectors changed; states of histories without them stay good.
        """
        before, states = self.bundle, self.states
        if bundle.model is not before.model:
            version_I = np.zeros(len(bundle.vocabulary.items), dtype=np.int64)
            if states.item_version_I is not None:
                version_I[: len(states.item_version_I)] = states.item_version_I
            if changed_C is not None:
                version_I[changed_C] = self.number + 1
            states = states.for_model(bundle.model, states.model_hash, version_I)
        same_words = bundle.vocabulary is before.vocabulary
        return replace(
            self,
            bundle=bundle,
            retrievers=bundle_retrievers(bundle),
            length_I=self.length_I if bundle.vectors is before.vectors else bundle.vectors.norm(dim=1),
            states=states,
            reader=self.reader if same_words else _reader(bundle, self.history_source),
            item_ID=self.item_ID if bundle.model is before.model else _item_table(bundle),
            number=self.number + 1,
            state_hash=state_hash,
        )

    def apart(self, state_hash: str, number: int) -> Snapshot:
        """The same under another hash, so that no state of another snapshot is taken for one of its own."""
        states = self.states.for_model(self.bundle.model, state_hash, self.states.item_version_I)
        return replace(self, states=states, state_hash=state_hash, number=number)

    @property
    def source(self) -> HistorySource | None:
        """Where users' histories come from; None where from nowhere."""
        return None if self.reader is None else self.reader.source

    @property
    def version(self) -> str:
        """What :attr:`recsys.retrieval.page.Page.version` says: hash of the bundle and number of the update."""
        return f"{self.bundle.manifest['checksum'][:16]}.{self.number}"

    @property
    def device(self) -> torch.device:
        return self.bundle.vectors.device

    @property
    def actions(self) -> tuple[str, ...]:
        """Actions that candidates get probabilities of; none where the data had too few to learn from."""
        return self.bundle.vocabulary.actions if self.bundle.model.action_head is not None else ()


def _reader(bundle: Bundle, history_source: SourceChoice) -> HistoryReader | None:
    source: HistorySource | None
    if history_source is None:
        source = None if bundle.histories is None else BundleHistories(bundle)
    else:
        source = history_source if isinstance(history_source, HistorySource) else history_source(bundle)
    return None if source is None else HistoryReader(source, bundle.vocabulary)


def _item_table(bundle: Bundle) -> Tensor | None:
    if not bundle.model.config.content_dim:
        return None
    with torch.inference_mode(False), torch.no_grad():
        table_ID: Tensor = bundle.model.items.table()
        return table_ID
