"""Fits tokenizers of a size that suits the catalogue.

Suffixes: I = items, V = entries of a vector, W = entries of one block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.pipelines.code_settings import CodeSettings
from recsys.tokenizers.fitted_tokenizer import FittedTokenizer
from recsys.tokenizers.fsq import default_levels
from recsys.tokenizers.item_tokenizer import FusedTokenizer, fitted_fill, fused
from recsys.tokenizers.modalities import BlockFusion, SeparateTokenizers
from recsys.tokenizers.residual_codebooks import default_sizes
from recsys.tokenizers.tokenizer_registry import fit_tokenizer
from recsys.tokenizers.vector_checks import count_distinct

__all__ = ["fit_fusion", "fit_kind"]

LARGE_CATALOGUE = 200_000
"""Items above which codes have one level more, and are not balanced unasked: on 12,000 items Sinkhorn's algorithm more
than doubles the time of k-means, on many it would take hours."""
_FUSION_SAMPLE = 1_000_000
_NEURAL = ("rq-vae", "fsq")

Floats = NDArray[np.float32]


def fit_fusion(blocks: Mapping[str, Floats], weights: Mapping[str, float], seed: int) -> BlockFusion:
    """Means and scales of blocks, measured on a million items at most."""
    num = len(next(iter(blocks.values())))
    if num > _FUSION_SAMPLE:
        row_S = np.sort(np.random.default_rng(seed).choice(num, _FUSION_SAMPLE, replace=False))
        sample = {name: rows_IW[row_S] for name, rows_IW in blocks.items()}
        if all(rows.any() for rows in sample.values()):
            return BlockFusion.fit(sample, weights)
    return BlockFusion.fit(blocks, weights)


def fit_kind(
    kind: str, blocks: Mapping[str, Floats], fusion: BlockFusion, settings: CodeSettings
) -> FusedTokenizer | SeparateTokenizers:
    """Fit the tokenizer of one kind of codes.

    Args:
        kind: one of :data:`~recsys.pipelines.code_settings.KINDS`.
        blocks: name -> [I, W]; zero rows are missing.
        fusion: of these blocks.
        settings: sizes that they state are kept, or refused.

    Raises:
        ValueError: the vectors tell no two items apart, or a stated size does not fit.
    """
    if kind == "set_codes" or (kind == "codes" and settings.fuse == "separate"):
        made = {}
        for name, rows_IW in blocks.items():
            try:
                made[name] = _fit(kind, rows_IW[rows_IW.any(axis=1)], settings, None)
            except ValueError as error:
                if len(blocks) == 1 or settings.blocks is not None:
                    raise ValueError(f"block {name}: {error}") from None
        if not made:
            raise ValueError("no block tells two items apart")
        return SeparateTokenizers(made)
    widths = tuple(fusion.widths.values())
    fill = fitted_fill(fusion, blocks) if len(widths) > 1 else None
    rows_IV = fused(fusion, blocks, fill)
    return FusedTokenizer(fusion, _fit(kind, rows_IV, settings, widths if fill else None), fill)


def _fit(kind: str, rows_IV: Floats, settings: CodeSettings, widths: tuple[int, ...] | None) -> FittedTokenizer:
    """The largest tokenizer that fits, of those at most as large as asked for."""
    method = settings.method if kind == "codes" else "opq"
    device = "cuda" if torch.cuda.is_available() and method in _NEURAL else "cpu"
    refusal: ValueError | None = None
    for options in _choices(kind, method, rows_IV, settings):
        if method in _NEURAL and widths is not None and settings.block_dropout:
            options |= {"block_widths": widths, "block_dropout": settings.block_dropout}
        if method in _NEURAL and settings.num_steps is not None:
            options["num_steps"] = settings.num_steps
        if method not in _NEURAL:
            options["balance"] = settings.balance or _balance(method, len(rows_IV))
        try:
            return fit_tokenizer(method, rows_IV, seed=settings.seed, device=device, **options)
        except ValueError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _balance(method: str, num_items: int) -> str:
    """Of codes that build on each other Sinkhorn's; long codes of whitened directions are even as they are."""
    return "sinkhorn" if method == "rq-kmeans" and num_items <= LARGE_CATALOGUE else "none"


def _choices(kind: str, method: str, rows_IV: Floats, settings: CodeSettings) -> Iterator[dict[str, Any]]:
    """Sizes to try, the largest first; one alone where the settings state it."""
    num_distinct = count_distinct(rows_IV, enough=1024)
    size = settings.codebook_size or default_sizes(num_distinct)[0]
    sizes = [size] if settings.codebook_size else [2**power for power in range(size.bit_length() - 1, 0, -1)]
    if kind == "codes":
        levels = settings.levels or (4 if len(rows_IV) > LARGE_CATALOGUE else 3)
    else:
        levels = _parts(settings.parallel_parts if kind == "parallel_codes" else settings.set_parts, rows_IV)
    fewer = (
        [levels]
        if kind == "codes" and settings.levels
        else _halved(levels)
        if method == "opq"
        else range(levels, 0, -1)
    )
    if method == "fsq":
        for parts in fewer:
            grid = default_levels(4 * settings.codebook_size) if settings.codebook_size else None
            yield {"num_parts": parts, "levels": grid}
    elif method == "opq":
        whiten = settings.whiten
        yield from ({"num_parts": parts, "codebook_size": size, "whiten": whiten} for parts in fewer for size in sizes)
    else:
        yield from ({"codebook_sizes": (size,) * levels} for size in sizes)
        yield from ({"codebook_sizes": (sizes[-1],) * least} for least in list(fewer)[1:])


def _parts(most: int, rows_IV: Floats) -> int:
    """Sub-quantisers, each of two directions or more."""
    directions = min(rows_IV.shape[1], len(rows_IV) - 1)
    while most > 1 and 2 * most > directions:
        most //= 2
    return most


def _halved(count: int) -> list[int]:
    found = [count]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return found
