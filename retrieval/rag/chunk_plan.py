"""What is done with each chunk of a prompt: taken as it is kept, computed again in part, or computed as a whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.retrieval.rag.chunk_impact import prefix_overlap, recompute_share
from recsys.retrieval.rag.chunk_store import ChunkStore, ChunkVariant, Tokens

__all__ = ["ChunkPart", "ReuseCounts", "count_tokens", "plan_parts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseCounts:
    """Tokens of one prompt; ``computed`` and ``reused`` add up to ``prompt``."""

    prompt: int
    computed: int
    """Run through the model, those computed again included."""
    recomputed: int
    """Of kept chunks, computed again."""
    reused: int
    """Keys and values of these were there and were not computed."""
    reused_exact: int
    """Of these, behind the same tokens as when they were computed."""


@dataclass(frozen=True, slots=True)
class ChunkPart:
    """A chunk (or the prefix) at its place, and what is done with it."""

    tokens: Tokens
    first: int
    prefix: Tokens
    before: tuple[Tokens, ...]
    labels: tuple[Tokens, ...]
    variant: ChunkVariant | None
    """None: compute all of it."""
    same: bool
    """The variant is exact and stands behind what it stood behind before."""
    again: Tensor
    """int64: tokens of the variant to be computed again."""
    behind_exact: bool
    """All keys and values before it are as the model computes them."""


_NONE = torch.empty(0, dtype=torch.int64)


def plan_parts(
    store: ChunkStore, prefix: Tokens, pairs: Sequence[tuple[Tokens, Tokens]], *, alpha: float, whole_from: float
) -> list[ChunkPart]:
    """What is done with each part. The prefix is a chunk that stands behind nothing.

    Args:
        store: where variants are looked for.
        prefix: may be empty.
        pairs: label and tokens of each chunk, no chunk empty.
        alpha, whole_from: see :class:`recsys.retrieval.rag.chunk_reuse.ChunkReuse`.
    """
    labels, chunks = (tuple(pair[side] for pair in pairs) for side in (0, 1))
    parts: list[ChunkPart] = []
    if prefix:
        kept = next((one for one in store.variants((), prefix) if _same(one, (), ())), None)
        parts.append(ChunkPart(prefix, 0, (), (), (), kept, kept is not None, _NONE, True))
    first, exact = len(prefix), True
    for at, (label, tokens) in enumerate(pairs):
        first += len(label)
        before, between = chunks[:at], labels[: at + 1]
        variant, share = _best(store.variants(prefix, tokens), before, between, alpha)
        same = variant is not None and _same(variant, before, between)
        if share >= whole_from and not same:
            variant = None
        again = _NONE
        if variant is not None and not same:
            # A stable order: where no token leaned on anything, the chunk's first ones miss most in a new place.
            order = variant.inter_N.argsort(descending=True, stable=True)
            again = order[: math.ceil(share * len(tokens))].sort().values
        parts.append(ChunkPart(tokens, first, prefix, before, between, variant, same, again, exact))
        exact = exact and (variant is None or same)
        first += len(tokens)
    return parts


def _best(
    variants: Sequence[ChunkVariant], before: tuple[Tokens, ...], labels: tuple[Tokens, ...], alpha: float
) -> tuple[ChunkVariant | None, float]:
    """The variant of which least is computed again, and its share; the exact one if it is there."""
    best, least = None, math.inf
    for variant in variants:
        if _same(variant, before, labels):
            return variant, 0.0
        overlap = prefix_overlap(variant.inter_before, variant.before, before)
        share = recompute_share(alpha, variant.impact, overlap)
        if share < least:
            best, least = variant, share
    return best, least


def _same(variant: ChunkVariant, before: tuple[Tokens, ...], labels: tuple[Tokens, ...]) -> bool:
    """It is exactly what would be computed here."""
    return variant.exact and variant.before == before and variant.labels == labels


def count_tokens(parts: Sequence[ChunkPart], num_tokens: int, num_computed: int) -> ReuseCounts:
    """What a plan comes to."""
    return ReuseCounts(
        prompt=num_tokens,
        computed=num_computed,
        recomputed=sum(len(part.again) for part in parts),
        reused=num_tokens - num_computed,
        reused_exact=sum(len(part.tokens) for part in parts if part.same),
    )
