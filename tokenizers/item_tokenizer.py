"""Items as named blocks of vectors in, codes out, however the blocks are joined.

Suffixes: N = items given, I = items of the catalogue, V = entries of a fused vector, W = entries of one block,
L = levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.tokenizers.alignment import code_permutations
from recsys.tokenizers.block_fill import BlockFill
from recsys.tokenizers.fitted_tokenizer import FittedTokenizer
from recsys.tokenizers.modalities import SEPARATE_FORMAT, BlockFusion, SeparateTokenizers
from recsys.tokenizers.product_codes import ProductCodes
from recsys.tokenizers.protocol import Codes, Floats
from recsys.tokenizers.tokenizer_files import CONFIG_FILE, read_header
from recsys.tokenizers.tokenizer_registry import load_tokenizer
from recsys.tokenizers.vector_checks import blocks_of

__all__ = ["FusedTokenizer", "ItemTokenizer", "aligned_item_tokenizer", "fitted_fill", "fused", "load_item_tokenizer"]

_FUSION_FOLDER = "fusion"
_VECTORS_FOLDER = "vectors"
_FILL_FOLDER = "fill"


@runtime_checkable
class ItemTokenizer(Protocol):
    """Codes of items from their blocks; a block of zeros is missing."""

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes per level; code c of level l is 0 ≤ c < codebook_sizes[l]."""
        ...

    @property
    def widths(self) -> dict[str, int]:
        """Name -> entries of each block that must be given."""
        ...

    def encode(self, blocks: Mapping[str, ArrayLike]) -> Codes:
        """[N, L] int32 codes of items, each for itself; codebooks are frozen.

        Args:
            blocks: name -> [N, W] floats; a row of zeros or NaN says that an item has no such block.

        Raises:
            ValueError: other names or widths, or a row that is neither missing nor finite.
        """
        ...

    def assign(self, blocks: Mapping[str, ArrayLike]) -> Codes:
        """[I, L] int32 codes of a whole catalogue, under the balance of the fit where there is one."""
        ...

    def decode(self, codes_NL: ArrayLike) -> dict[str, Floats]:
        """Name -> [N, W] reconstructions of codes."""
        ...

    def save(self, folder: Path) -> None:
        """Write files into a folder of its own."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote; ValueError where a file is missing, changed or foreign."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class FusedTokenizer:
    """One tokenizer of all blocks side by side."""

    fusion: BlockFusion
    tokenizer: FittedTokenizer
    fill: BlockFill | None = None
    """Guesses the blocks that an item lacks from those that it has; None = they are the mean."""

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes per level."""
        return self.tokenizer.codebook_sizes

    @property
    def widths(self) -> dict[str, int]:
        """Name -> entries of each block."""
        return self.fusion.widths

    def encode(self, blocks: Mapping[str, ArrayLike]) -> Codes:
        """[N, L] int32 codes of items, each for itself."""
        return self.tokenizer.encode(fused(self.fusion, blocks, self.fill))

    def assign(self, blocks: Mapping[str, ArrayLike]) -> Codes:
        """[I, L] int32 codes of a whole catalogue, under the tokenizer's balance."""
        return self.tokenizer.assign(fused(self.fusion, blocks, self.fill))

    def decode(self, codes_NL: ArrayLike) -> dict[str, Floats]:
        """Name -> [N, W] reconstructions."""
        rows_NV = self.tokenizer.decode(codes_NL)
        parts, low = {}, 0
        for name, width in self.widths.items():
            parts[name] = rows_NV[:, low : low + width] / np.float32(self.fusion.scales[name])
            low += width
        return parts

    def save(self, folder: Path) -> None:
        """Write the two parts into folders of their own."""
        self.fusion.save(folder / _FUSION_FOLDER)
        self.tokenizer.save(folder / _VECTORS_FOLDER)
        if self.fill is not None:
            self.fill.save(folder / _FILL_FOLDER)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote; ValueError where a file is missing, changed or foreign."""
        fill = BlockFill.load(folder / _FILL_FOLDER) if (folder / _FILL_FOLDER).is_dir() else None
        made = cls(BlockFusion.load(folder / _FUSION_FOLDER), load_tokenizer(folder / _VECTORS_FOLDER), fill)
        if made.tokenizer.width != sum(made.widths.values()):
            raise ValueError(
                f"{folder} joins blocks of {sum(made.widths.values())} entries for a tokenizer of "
                f"{made.tokenizer.width}; copy the whole folder again, or fit and save it again"
            )
        return made


def fused(fusion: BlockFusion, blocks: Mapping[str, ArrayLike], fill: BlockFill | None = None) -> Floats:
    """[N, V] float32 rows of :meth:`BlockFusion.fuse`, some at a time, so that copies of all are not made.

    Args:
        fusion: of the blocks.
        blocks: name -> [N, W]; zero or NaN rows are missing.
        fill: guesses missing blocks; None = they are the mean.
    """
    arrays = {name: np.asarray(block) for name, block in blocks.items()}
    num = max((len(array) for array in arrays.values()), default=0)
    rows_NV = np.empty((num, sum(fusion.widths.values())), np.float32)
    for part in blocks_of(*rows_NV.shape) or [slice(0, 0)]:
        some = {name: array[part] for name, array in arrays.items()}
        rows_NV[part] = fusion.fuse(some)
        if fill is not None:
            fill.fill(rows_NV[part], _present(some))
    return rows_NV


def fitted_fill(fusion: BlockFusion, blocks: Mapping[str, ArrayLike]) -> BlockFill:
    """What missing blocks of a catalogue are guessed with."""
    return BlockFill.fit(fused(fusion, blocks), _present(blocks), fusion.widths)


def _present(blocks: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.bool_]]:
    return {name: np.nan_to_num(np.asarray(block)).any(axis=1) for name, block in blocks.items()}


def load_item_tokenizer(folder: Path) -> FusedTokenizer | SeparateTokenizers:
    """Read a tokenizer of items, fused or separate.

    Raises:
        ValueError: one line naming the file that is missing, changed or foreign, and what to do.
    """
    if (folder / CONFIG_FILE).is_file():
        try:
            form = read_header(folder / CONFIG_FILE).get("format")
        except (ValueError, AttributeError):
            form = None
        if form == SEPARATE_FORMAT:
            return SeparateTokenizers.load(folder)
    return FusedTokenizer.load(folder)


def aligned_item_tokenizer(
    tokenizer: FusedTokenizer | SeparateTokenizers, old_codes_IL: ArrayLike, new_codes_IL: ArrayLike
) -> tuple[FusedTokenizer | SeparateTokenizers, list[NDArray[np.int64]]]:
    """A refitted tokenizer of items whose code numbers agree with the old one's where possible.

    Args:
        tokenizer: the new one.
        old_codes_IL: [I, L] codes of items under the old tokenizer.
        new_codes_IL: [I, L] codes of the same items from ``tokenizer``.

    Returns:
        The tokenizer with other numbers, and per level [K] the number that each of its codes has now.

    Raises:
        ValueError: the codes are not of as many levels, or the method's numbers are digits.
    """
    if isinstance(tokenizer, FusedTokenizer):
        made, numbers = _renumbered(tokenizer.tokenizer, old_codes_IL, new_codes_IL)
        return replace(tokenizer, tokenizer=made), numbers
    old_IL, new_IL = np.asarray(old_codes_IL), np.asarray(new_codes_IL)
    if old_IL.shape != new_IL.shape:
        raise ValueError(
            f"alignment: old codes have shape {old_IL.shape}, new ones {new_IL.shape}; "
            "give the items that both have, and tokenizers of the same blocks and levels"
        )
    renamed: dict[str, FittedTokenizer] = {}
    all_numbers: list[NDArray[np.int64]] = []
    low = 0
    for name, made in tokenizer.tokenizers.items():
        part = slice(low, low + len(made.codebook_sizes))
        low = part.stop
        present_I = (new_IL[:, part] < np.asarray(made.codebook_sizes)).all(axis=1)
        renamed[name], numbers = _renumbered(made, old_IL[present_I, part], new_IL[present_I, part])
        # The last code says that an item has no such block, and keeps its number.
        all_numbers += [np.append(number_K, len(number_K)) for number_K in numbers]
    return SeparateTokenizers(renamed), all_numbers


def _renumbered(
    tokenizer: FittedTokenizer, old_codes_IL: ArrayLike, new_codes_IL: ArrayLike
) -> tuple[FittedTokenizer, list[NDArray[np.int64]]]:
    parallel = isinstance(tokenizer, ProductCodes)
    numbers = code_permutations(old_codes_IL, new_codes_IL, tokenizer.codebook_sizes, parallel=parallel)
    return tokenizer.renumbered(numbers), numbers
