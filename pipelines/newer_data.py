"""Events of one dataset in the numbers of a bundle made from another, earlier one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recsys.errors import InputError
from recsys.events import EventLog
from recsys.vocabulary import Vocabulary

__all__ = ["Translation"]

Ints = NDArray[np.int64]


class Translation:
    """Item, action and surface numbers of a dataset to those of a bundle, by what the caller calls them.

    What the bundle has never heard of becomes unknown: an item without a vector, the surface 0, an action left out.
    Actions that only the bundle knows are unknown in every event.
    """

    def __init__(self, theirs: Vocabulary, ours: Vocabulary) -> None:
        """Compare the names.

        Args:
            theirs: of the dataset.
            ours: of the bundle.

        Raises:
            InputError: the two do not count time alike.
        """
        if theirs.clock != ours.clock:
            raise InputError(
                f"the data has the clock {theirs.clock!r} and the bundle was made from data with {ours.clock!r}; "
                f"prepare the data with --clock {ours.clock}"
            )
        self._item_I = ours.items.index(theirs.items.ids)
        self._surface_S = np.array([ours.surface_index(name or None) for name in theirs.surfaces], dtype=np.int64)
        self._bits = [
            (bit, ours.actions.index(name)) for bit, name in enumerate(theirs.actions) if name in ours.actions
        ]

    @property
    def num_strange_items(self) -> int:
        """Items of the dataset that the bundle does not hold."""
        return int((self._item_I < 0).sum())

    def events(self, log: EventLog) -> EventLog:
        """The same events, in the bundle's numbers."""
        return EventLog(
            offsets=log.offsets,
            item=self._item_I[log.item],
            timestamp=log.timestamp,
            yes=self._actions(log.yes),
            known=self._actions(log.known),
            surface=self._surface_S[log.surface],
            value=log.value,
            time_known=log.time_known,
        )

    def _actions(self, mask_N: Ints) -> Ints:
        ours_N = np.zeros_like(mask_N)
        for theirs, ours in self._bits:
            ours_N |= ((mask_N >> theirs) & 1) << ours
        return ours_N
