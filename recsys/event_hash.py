"""A hash of events that goes on: that of a history's first n events costs nothing beside that of all of them."""

from __future__ import annotations

import hashlib
import secrets

import numpy as np
from numpy.typing import NDArray

from recsys.events import History

__all__ = ["EventHash", "history_hashes"]

_KEY = secrets.token_bytes(32)
"""Of this process alone, so that nobody outside can look for two histories of one hash."""
_FIELDS = ("item", "timestamp", "yes", "known", "surface", "time_known")
"""Everything a history says of an event: whatever a state was made from is in its hash."""
_ROWS = 1 << 16
"""Events hashed at once; bounds the memory of a history of millions."""


class EventHash:
    """BLAKE2b over the events so far, 56 bytes each, keyed with a secret of the process.

    >>> from recsys.vocabulary import empty_history
    >>> EventHash().extend(empty_history()).digest() == EventHash().digest()
    True

    Args:
        item_version_I: a number of each item that changes when its vector does; None = vectors never change.
    """

    def __init__(self, item_version_I: NDArray[np.int64] | None = None) -> None:
        self._hash = hashlib.blake2b(digest_size=32, key=_KEY)
        self._version_I = item_version_I

    def extend(self, events: History) -> EventHash:
        """Take in later events; returns itself."""
        for low in range(0, len(events), _ROWS):
            part = events.at(slice(low, low + _ROWS))
            row_NF = np.zeros((len(part), len(_FIELDS) + 1), dtype=np.int64)
            for column, name in enumerate(_FIELDS):
                row_NF[:, column] = getattr(part, name)
            if self._version_I is not None:
                known_N = part.item >= 0
                row_NF[known_N, -1] = self._version_I[part.item[known_N]]
            self._hash.update(row_NF.data)
        return self

    def digest(self) -> bytes:
        """32 bytes; the hash may go on after it."""
        return self._hash.digest()


def history_hashes(
    history: History, num_first: int, item_version_I: NDArray[np.int64] | None = None
) -> tuple[bytes, bytes]:
    """Hashes of the first ``num_first`` events and of all, in one pass."""
    rolling = EventHash(item_version_I).extend(history.prefix(num_first))
    first = rolling.digest()
    return first, rolling.extend(history.at(slice(num_first, None))).digest()
