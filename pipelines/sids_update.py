"""Semantic IDs of a catalogue that changed: new items under frozen codebooks, or new codebooks under old numbers.

Suffixes: I = items of the new dataset, B = items that both know, J = new items, W = entries of a block, L = levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.pipelines.code_blocks import code_blocks
from recsys.pipelines.code_fitting import fit_fusion
from recsys.pipelines.code_settings import CodeSettings
from recsys.pipelines.made_codes import MadeCodes, item_health, subset
from recsys.tokenizers.alignment import renamed_codes
from recsys.tokenizers.item_tokenizer import FusedTokenizer, aligned_item_tokenizer
from recsys.tokenizers.modalities import SeparateTokenizers
from recsys.tokenizers.semantic_ids import SemanticIds
from recsys.vocabulary import IdMap

__all__ = ["aligned_to", "appended_to", "settings_like"]

_RIDGE = 1e-3
"""Of the maps between block spaces, relative to the mean square of the columns."""
_LEAST_COMMON = 2

Floats = NDArray[np.float32]


def settings_like(settings: CodeSettings, old: MadeCodes) -> CodeSettings:
    """Settings with the kinds and levels of earlier codes, which numbers can be aligned with.

    Raises:
        InputError: they state another method, number of levels or way to join blocks.
    """
    changes: dict[str, Any] = {"kinds": tuple(old.kinds)}
    for kind, made in old.kinds.items():
        tokenizer = made.tokenizer
        separate = isinstance(tokenizer, SeparateTokenizers)
        parts = [made.ids.num_levels]
        if isinstance(tokenizer, SeparateTokenizers):
            parts = [len(one.codebook_sizes) for one in tokenizer.tokenizers.values()]
        if kind == "codes":
            fuse = "separate" if separate else "fused"
            said = (settings.method, settings.fuse, settings.levels or max(parts))
            if said != (made.method, fuse, max(parts)):
                raise InputError(
                    f"--align-to: the old codes are {made.method}, {fuse}, of {max(parts)} levels, those asked for "
                    f"{said[0]}, {said[1]}, of {said[2]}; ask for the same"
                )
        changes[{"codes": "levels", "parallel_codes": "parallel_parts", "set_codes": "set_parts"}[kind]] = max(parts)
    return replace(settings, **changes)


def aligned_to(made: MadeCodes, old: MadeCodes) -> MadeCodes:
    """New codes under the numbers of old ones, by Hungarian matching on the items that both know.

    Args:
        made: of the present catalogue, under :func:`settings_like`.
        old: of an earlier one.

    Raises:
        InputError: no item in common, other levels, or a method whose numbers are digits.
    """
    row_I = IdMap(old.item_ids).index(made.item_ids)
    both_B = np.flatnonzero(row_I >= 0)
    if not len(both_B):
        raise InputError("--align-to: the two catalogues have no item in common; leave the flag out")
    kinds = {}
    for kind, new in made.kinds.items():
        if kind not in old.kinds:
            kinds[kind] = new
            continue
        before_BL = old.kinds[kind].ids.codes_IL[row_I[both_B]]
        try:
            tokenizer, numbers = aligned_item_tokenizer(new.tokenizer, before_BL, new.ids.codes_IL[both_B])
        except ValueError as error:
            raise InputError(f"--align-to: {kind}: {error}") from error
        ids = SemanticIds.from_codes(renamed_codes(new.ids.codes_IL, numbers), new.ids.codebook_sizes)
        kinds[kind] = replace(new, ids=ids, tokenizer=tokenizer)
    return replace(made, kinds=kinds)


def appended_to(
    old: MadeCodes,
    dataset: Dataset,
    *,
    checkpoint: Path | None = None,
    text_encoder: str | None = None,
    advance: Callable[[int], None] = lambda steps: None,
) -> MadeCodes:
    """Codes of a dataset's items where most are known: those keep theirs, new ones get theirs from the old codebooks.

    A block that was made otherwise than the old one (the text transform of data prepared anew, other transitions) is
    mapped to it by ridge regression on the items that both know, whose old vectors are read off their codes.

    Args:
        old: of an earlier catalogue. Items that the dataset does not know are left out.
        dataset: the present one.
        checkpoint, text_encoder: as in :func:`~recsys.pipelines.made_codes.make_codes`, where the old codes had them.
        advance: called with 1 after the blocks and after every kind.

    Raises:
        InputError: a block is missing in the dataset, or nearly no item is known.
    """
    about = {block["name"]: block for block in old.about["blocks"]}
    blocks = code_blocks(dataset, list(about), checkpoint=checkpoint, text_encoder=text_encoder, seed=old.about["seed"])
    row_I = IdMap(old.item_ids).index(dataset.item_ids)
    both_I = row_I >= 0
    for name, rows_IW in blocks.vectors.items():
        if blocks.about[name]["made_by"] != about[name]["made_by"]:
            known_I = both_I & rows_IW.any(axis=1)
            if known_I.sum() < _LEAST_COMMON:
                raise InputError(
                    f"--append-to: {dataset.path} has {int(known_I.sum())} items with the block {name} that "
                    "the old codes know, too few to see how it turned; make the codes anew"
                )
            blocks.vectors[name] = _turned(rows_IW, known_I, _old_rows(old, name, row_I[known_I]))
    advance(1)
    kinds = {}
    fusion = next(
        (one.tokenizer.fusion for one in old.kinds.values() if isinstance(one.tokenizer, FusedTokenizer)), None
    )
    fusion = fusion or fit_fusion(blocks.vectors, {}, old.about["seed"])
    for kind, made in old.kinds.items():
        codes_IL = np.empty((dataset.num_items, made.ids.num_levels), np.int32)
        codes_IL[both_I] = made.ids.codes_IL[row_I[both_I]]
        if not both_I.all():
            new = {name: rows[~both_I] for name, rows in subset(blocks.vectors, made.tokenizer).items()}
            codes_IL[~both_I] = made.tokenizer.encode(new)
        ids = SemanticIds.from_codes(codes_IL, made.ids.codebook_sizes)
        kinds[kind] = replace(made, ids=ids, health=item_health(blocks.vectors, made.tokenizer, codes_IL, fusion))
        advance(1)
    # What the codebooks were made of stays on record: the next items are appended to the same spaces.
    return MadeCodes(dataset.item_ids, kinds, {**old.about, "data_hash": dataset.manifest.data_hash})


def _old_rows(old: MadeCodes, name: str, row_B: NDArray[np.int64]) -> Floats:
    """[B, W] the block of known items as their codes of the most exact kind say it."""
    kinds = [made for made in old.kinds.values() if name in made.tokenizer.widths]
    best = min(kinds, key=lambda made: made.health.relative_error)
    return best.tokenizer.decode(best.ids.codes_IL[row_B])[name]


def _turned(rows_IW: Floats, known_I: NDArray[np.bool_], old_BW: Floats) -> Floats:
    """[I, W] rows in the space of the old ones; rows of zeros stay."""
    given_BW = rows_IW[known_I].astype(np.float64)
    from_W, to_W = given_BW.mean(0), old_BW.mean(0, dtype=np.float64)
    centred_BW = given_BW - from_W
    gram_WW = centred_BW.T @ centred_BW
    gram_WW[np.diag_indices_from(gram_WW)] += _RIDGE * max(float(np.trace(gram_WW)) / len(gram_WW), 1e-12)
    turn_WW = np.linalg.solve(gram_WW, centred_BW.T @ (old_BW - to_W))
    turned_IW = ((rows_IW - from_W) @ turn_WW + to_W).astype(np.float32)
    turned_IW[~rows_IW.any(axis=1)] = 0.0
    return turned_IW
