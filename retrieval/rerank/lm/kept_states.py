"""Keys and values of a run of tokens, and the caches that hand them to a model of transformers.

Suffixes: B = rows of a batch, H = heads of keys, N = new tokens of the longest row, W = slots of the longest row, past
and new, D = dimensions of a head. Rows end at the last slot: the earlier slots of shorter rows are empty and masked, so
that tokens that follow each other stand in slots that follow each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["GrowingLayer", "KeptStates", "PastLayer", "model_cache"]

_GROW_SLOTS = 64


class KeptStates:
    """Keys and values of some tokens that follow each other, in every layer."""

    __slots__ = ("keys", "values")

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """
        Args:
            keys, values: of each layer, [H, tokens, D].
        """
        self.keys, self.values = tuple(keys), tuple(values)

    def __len__(self) -> int:
        return int(self.keys[0].shape[1])

    @property
    def num_bytes(self) -> int:
        """Of memory."""
        return sum(part.numel() * part.element_size() for part in (*self.keys, *self.values))

    def cut(self, start: int, stop: int) -> KeptStates:
        """A part of the tokens, sharing this one's memory."""
        return KeptStates([part[:, start:stop] for part in self.keys], [part[:, start:stop] for part in self.values])

    @staticmethod
    def joined(parts: Sequence[KeptStates]) -> KeptStates:
        """Parts that follow each other as one, in memory of its own; at least one part."""
        layers = range(len(parts[0].keys))
        return KeptStates(
            [torch.cat([part.keys[at] for part in parts], 1) for at in layers],
            [torch.cat([part.values[at] for part in parts], 1) for at in layers],
        )

    def copy(self) -> KeptStates:
        """In memory of its own."""
        return KeptStates([part.clone() for part in self.keys], [part.clone() for part in self.values])


class _Layer:
    """What the masks of transformers ask a layer of a cache."""

    is_compileable = False
    is_croppable = False
    is_initialized = True
    is_sliding = False

    def __init__(self, width: int) -> None:
        self.width = width

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Slots of the keys of the next pass, and the first of them."""
        return self.width + query_length, 0

    def get_seq_length(self) -> int:
        """Slots before the new tokens."""
        return self.width

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class PastLayer(_Layer):
    """One layer for one pass over new tokens; each row has a past of its own, put together only while it is needed."""

    def __init__(self, rows: Sequence[Sequence[Tensor]], lengths: Sequence[int], check: Callable[[], None]) -> None:
        """
        Args:
            rows: of each row, its past as keys and values in turn, [H, tokens, D] each.
            lengths: new tokens of each row.
            check: called before the layer's work; raises to give up.
        """
        past = [sum(part.shape[1] for part in row[::2]) for row in rows]
        longest = max(a + b for a, b in zip(past, lengths, strict=True))
        super().__init__(longest - max(lengths))
        self._rows, self._lengths, self._check = rows, lengths, check
        self._any_past = any(past)
        self.new: tuple[Tensor, Tensor] | None = None
        """Keys and values of the new tokens, [B, H, N, D]; a row's are the last ones."""

    def update(self, key_BHND: Tensor, value_BHND: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of all slots, [B, H, W, D] each."""
        self._check()
        self.new = key_BHND, value_BHND
        if not self._any_past:
            return self.new
        return self._joined(key_BHND, 0), self._joined(value_BHND, 1)

    def _joined(self, new_BHND: Tensor, kind: int) -> Tensor:
        num_rows, heads, num_new, dim = new_BHND.shape
        slots = self.width + num_new
        out_BHWD = new_BHND.new_zeros((num_rows, heads, slots, dim))
        for row, parts in enumerate(self._rows):
            at = slots - self._lengths[row]
            out_BHWD[row, :, at:] = new_BHND[row, :, num_new - self._lengths[row] :]
            for part in reversed(parts[kind::2]):
                out_BHWD[row, :, at - part.shape[1] : at] = part
                at -= part.shape[1]
        return out_BHWD


class GrowingLayer(_Layer):
    """One layer for decoding: every step adds one slot to all rows, in place."""

    def __init__(self, key_BHWD: Tensor, value_BHWD: Tensor) -> None:
        super().__init__(key_BHWD.shape[2])
        self._key, self._value = key_BHWD, value_BHWD

    def update(self, key_BHND: Tensor, value_BHND: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of all slots, [B, H, W, D] each."""
        start, stop = self.width, self.width + key_BHND.shape[2]
        if stop > self._key.shape[2]:
            self._key, self._value = (
                torch.cat([old, old.new_zeros((*old.shape[:2], _GROW_SLOTS, old.shape[3]))], 2)
                for old in (self._key[:, :, :start], self._value[:, :, :start])
            )
        self._key[:, :, start:stop], self._value[:, :, start:stop] = key_BHND, value_BHND
        self.width = stop
        return self._key[:, :, :stop], self._value[:, :, :stop]

    def keep(self, rows: Tensor, slots: int) -> None:
        """Only some rows, and of them the last slots."""
        start = self.width - slots
        self._key = self._key[rows, :, start : self.width]
        self._value = self._value[rows, :, start : self.width]
        self.width = slots

    def states(self) -> tuple[Tensor, Tensor]:
        """Keys and values so far, [B, H, W, D] each."""
        return self._key[:, :, : self.width], self._value[:, :, : self.width]


def model_cache(layers: Sequence[PastLayer] | Sequence[GrowingLayer]) -> Any:
    """A cache as models of transformers take it."""
    from transformers.cache_utils import Cache, CacheLayerMixin

    CacheLayerMixin.register(_Layer)  # by name only: this module is read without transformers as well
    mixed: Any = list(layers)
    return Cache(layers=mixed)
