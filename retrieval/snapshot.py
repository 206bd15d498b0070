"""One version of everything that answers requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recsys.bundle import Bundle
from recsys.retrieval.bundle_retrievers import bundle_retrievers
from recsys.retrieval.protocol import Retriever

__all__ = ["Snapshot"]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Snapshot:
    """A loaded bundle and what is made of it once. Immutable: a request that holds one is answered by one version."""

    bundle: Bundle
    retrievers: Mapping[str, Retriever]
    """By name."""
    length_I: Tensor
    """[I] float32 length of every item vector."""
    number: int = 0
    """Snapshots that stood here before: every update and every swap gives the next one."""
    state_hash: str = ""
    """Equal for snapshots whose encoder makes equal states of equal histories in internal numbers: the hash of the
    model, and of what the encoder reads of known items that changed. Items that are new or withdrawn leave it as it
    is: a history that holds a new item has other numbers than before."""

    @classmethod
    def of(cls, bundle: Bundle) -> Snapshot:
        """Prepare a bundle for requests."""
        return cls(
            bundle, bundle_retrievers(bundle), bundle.vectors.norm(dim=1), state_hash=str(bundle.manifest["model_hash"])
        )

    def next(self, bundle: Bundle, state_hash: str) -> Snapshot:
        """The snapshot after a change of the catalogue."""
        same = bundle.vectors is self.bundle.vectors
        return replace(
            self,
            bundle=bundle,
            retrievers=bundle_retrievers(bundle),
            length_I=self.length_I if same else bundle.vectors.norm(dim=1),
            number=self.number + 1,
            state_hash=state_hash,
        )

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
