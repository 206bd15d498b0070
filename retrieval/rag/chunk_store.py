"""Keys and values of chunks, as computed behind other chunks, kept up to a number of bytes.

Suffixes: V = layers, H = key heads, N = tokens of a chunk, D = width of a head.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from recsys.errors import InputError

__all__ = ["ChunkStore", "ChunkVariant", "Tokens"]

Tokens = tuple[int, ...]
_Key = tuple[Tokens, Tokens, tuple[Tokens, ...]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkVariant:
    """A chunk as it was computed once."""

    prefix: Tokens
    """Tokens before the first chunk. A variant serves prompts that begin with the same ones."""
    tokens: Tokens
    before: tuple[Tokens, ...]
    """The chunks before it, first to last."""
    labels: tuple[Tokens, ...]
    """What stood between them: the tokens in front of each, and in front of itself."""
    keys_VHND: Tensor
    """As they were before rotary, so that they fit every position."""
    values_VHND: Tensor
    inter_N: Tensor
    """float32 on the CPU: attention of each token to all chunks before, mean of layers and heads."""
    inter_before: tuple[float, ...]
    """Attention of all tokens to each chunk before."""
    impact: float
    """:func:`recsys.retrieval.rag.chunk_impact.context_impact` of it."""
    exact: bool
    """Everything before it was as the model computes it, so that behind the same chunks this is too."""

    @property
    def num_bytes(self) -> int:
        tensors = (self.keys_VHND, self.values_VHND, self.inter_N)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def key(self) -> _Key:
        return self.prefix, self.tokens, self.before


class ChunkStore:
    """Variants of chunks of one model; the one that was not used for longest goes first. Safe to share by threads.

    Chunks are told apart by their tokens; equal hashes of different tokens are no match.

    Args:
        model_hash: of the weights that computed what is in here, see
            :func:`recsys.retrieval.rag.chunk_forward.weights_hash`.
        max_bytes: of keys and values; a token of a model with 8 key heads of width 128 in 32 layers takes 128 KiB in
            bfloat16.
        max_variants: of one chunk behind one prefix; None = as many as fit.
    """

    def __init__(self, model_hash: str, *, max_bytes: int, max_variants: int | None = 8) -> None:
        if max_bytes < 0:
            raise InputError(f"max_bytes must not be negative, got {max_bytes}")
        if max_variants is not None and max_variants < 1:
            raise InputError(f"max_variants must be at least 1, or None for no limit, got {max_variants}")
        self.model_hash = model_hash
        self.max_bytes = max_bytes
        self.max_variants = max_variants
        self._num_bytes = 0
        self._kept: OrderedDict[_Key, ChunkVariant] = OrderedDict()
        self._of_chunk: dict[tuple[Tokens, Tokens], OrderedDict[_Key, ChunkVariant]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Variants."""
        return len(self._kept)

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def variants(self, prefix: Tokens, tokens: Tokens) -> list[ChunkVariant]:
        """All variants of a chunk behind a prefix, the last used one first."""
        with self._lock:
            return list(reversed(self._of_chunk.get((prefix, tokens), {}).values()))

    def used(self, variants: Iterable[ChunkVariant]) -> None:
        """The variants of a prompt were used: they go last. Of one prompt, later ones go before earlier ones, which
        more prompts share."""
        with self._lock:
            for variant in reversed(list(variants)):
                if variant.key in self._kept:
                    self._kept.move_to_end(variant.key)
                    self._of_chunk[variant.prefix, variant.tokens].move_to_end(variant.key)

    def put(self, variant: ChunkVariant) -> None:
        """Keep a variant in place of one behind the same chunks, unless that one is exact and this one is not.

        One that is larger than the whole store is not kept.
        """
        with self._lock:
            there = self._kept.get(variant.key)
            if variant.num_bytes > self.max_bytes or (there is not None and there.exact and not variant.exact):
                return
            if there is not None:
                self._drop(variant.key)
            self._kept[variant.key] = variant
            siblings = self._of_chunk.setdefault((variant.prefix, variant.tokens), OrderedDict())
            siblings[variant.key] = variant
            self._num_bytes += variant.num_bytes
            if self.max_variants is not None and len(siblings) > self.max_variants:
                self._drop(next(iter(siblings)))
            while self._num_bytes > self.max_bytes:
                self._drop(next(iter(self._kept)))

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self._of_chunk.clear()
            self._num_bytes = 0

    def _drop(self, key: _Key) -> None:
        variant = self._kept.pop(key)
        siblings = self._of_chunk[variant.prefix, variant.tokens]
        del siblings[key]
        if not siblings:
            del self._of_chunk[variant.prefix, variant.tokens]
        self._num_bytes -= variant.num_bytes
