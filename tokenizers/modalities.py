"""Items with several blocks of vectors (text, other columns, collaborative): one fused vector, or codes per block.

A block is missing for an item where its row is all NaN or all zeros; a row that is partly NaN is an error.
Suffixes: N = items given, V = entries of a fused vector, W = entries of one block, L = levels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.tokenizers.fitted_tokenizer import FittedTokenizer
from recsys.tokenizers.protocol import Codes, Floats
from recsys.tokenizers.tokenizer_files import read_tokenizer, write_tokenizer
from recsys.tokenizers.tokenizer_registry import fit_tokenizer, load_tokenizer
from recsys.tokenizers.vector_checks import checked_codes

__all__ = ["BlockFusion", "SeparateTokenizers", "checked_blocks"]

FUSION_FORMAT = "recsys-block-fusion"
SEPARATE_FORMAT = "recsys-separate-tokenizers"
FORMAT_VERSION = 1

Present = NDArray[np.bool_]


def _checked_block(name: str, block_NW: ArrayLike) -> tuple[Floats, Present]:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is named below
        rows_NW = np.array(block_NW, dtype=np.float32)
    if rows_NW.ndim != 2 or rows_NW.shape[1] == 0:
        raise ValueError(f"block {name!r} must be [items, entries], got shape {rows_NW.shape}; give one row per item")
    unknown_N = np.isnan(rows_NW).all(axis=1)
    rows_NW[unknown_N] = 0.0
    finite_N = np.isfinite(rows_NW).all(axis=1)
    if not finite_N.all():
        raise ValueError(
            f"block {name!r}, row {int(np.argmin(finite_N))} holds NaN or infinity beside numbers; "
            "a missing row is NaN or 0 throughout"
        )
    return rows_NW, np.asarray(rows_NW.any(axis=1))


def checked_blocks(
    blocks: Mapping[str, ArrayLike], widths: Mapping[str, int] | None = None
) -> dict[str, tuple[Floats, Present]]:
    """Name -> [N, W] float32 copy with zeros where missing, and [N] whether it is there.

    Args:
        blocks: name -> [N, W].
        widths: names and widths the blocks must have, in the order of the result; None = as given.

    Raises:
        ValueError: other names, widths or lengths, or a row that is neither missing nor finite.
    """
    if widths is not None and set(blocks) != set(widths):
        raise ValueError(
            f"blocks {', '.join(sorted(blocks))} were given, those fitted are {', '.join(sorted(widths))}; "
            "give every block, with zero rows where an item has none"
        )
    if not blocks:
        raise ValueError("there are 0 blocks; give at least one")
    checked = {name: _checked_block(name, blocks[name]) for name in widths or blocks}
    lengths = {name: len(rows) for name, (rows, _) in checked.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"blocks have different numbers of rows ({lengths}); give one row per item in each")
    for name, (rows, _) in checked.items():
        if widths is not None and rows.shape[1] != widths[name]:
            raise ValueError(f"block {name!r} has {rows.shape[1]} entries, the fitted one {widths[name]}; fit again")
    return checked


@dataclass(frozen=True, slots=True, eq=False)
class BlockFusion:
    """Several blocks as one vector: each of mean row norm 1 times its weight, side by side.

    A missing block is the mean of those that are there, so that it says nothing about its item.
    """

    means: dict[str, Floats]
    """Name -> [W] mean of the block's present rows, before scaling."""
    scales: dict[str, float]
    """Name -> factor of the block: weight over mean row norm."""

    @classmethod
    def fit(cls, blocks: Mapping[str, ArrayLike], weights: Mapping[str, float] | None = None) -> Self:
        """Measure the blocks of a catalogue.

        Args:
            blocks: name -> [I, W]; their order is that of the fused vector.
            weights: name -> positive weight; 1 for those not named.

        Raises:
            ValueError: an unknown name, a weight that is not positive, or a block that no item has.
        """
        weights = weights or {}
        for name, weight in weights.items():
            if name not in blocks or not weight > 0:
                raise ValueError(f"weight {name}={weight}: a weight is positive and of a block ({', '.join(blocks)})")
        means, scales = {}, {}
        for name, (rows_IW, present_I) in checked_blocks(blocks).items():
            if not present_I.any():
                raise ValueError(f"block {name!r} is missing for all {len(rows_IW)} items; leave it out")
            rows = rows_IW[present_I].astype(np.float64)
            means[name] = rows.mean(axis=0).astype(np.float32)
            scales[name] = float(weights.get(name, 1.0) / np.linalg.norm(rows, axis=1).mean())
        return cls(means, scales)

    @property
    def widths(self) -> dict[str, int]:
        """Name -> entries of each block: ``tuple(widths.values())`` are ``block_widths`` of the neural methods."""
        return {name: len(mean) for name, mean in self.means.items()}

    def fuse(self, blocks: Mapping[str, ArrayLike]) -> Floats:
        """[N, V] float32 vectors of items, for any tokenizer."""
        parts = []
        for name, (rows_NW, present_N) in checked_blocks(blocks, self.widths).items():
            filled_NW = np.where(present_N[:, None], rows_NW, self.means[name])
            parts.append((filled_NW * np.float64(self.scales[name])).astype(np.float32))
        return np.concatenate(parts, axis=1)

    def save(self, folder: Path) -> None:
        """Write two files into a folder of its own."""
        header = {"format": FUSION_FORMAT, "format_version": FORMAT_VERSION, "scales": list(self.scales.items())}
        write_tokenizer(folder, header, dict(self.means))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote; ValueError where a file is missing, changed or foreign."""
        header, arrays = read_tokenizer(folder, format=FUSION_FORMAT, format_version=FORMAT_VERSION)
        return cls({name: arrays[name] for name, _ in header["scales"]}, dict(header["scales"]))


class SeparateTokenizers:
    """A tokenizer per block: an item's codes are those of the first block, then those of the second, and so on.

    Every level has one more code than its codebook, the last one: "this item has no such block".

    Args:
        tokenizers: name -> fitted tokenizer, in the order of the levels.
    """

    def __init__(self, tokenizers: Mapping[str, FittedTokenizer]) -> None:
        self.tokenizers = dict(tokenizers)
        self.codebook_sizes = tuple(size + 1 for made in self.tokenizers.values() for size in made.codebook_sizes)

    @property
    def widths(self) -> dict[str, int]:
        """Name -> entries of each block."""
        return {name: made.width for name, made in self.tokenizers.items()}

    @classmethod
    def fit(
        cls,
        blocks: Mapping[str, ArrayLike],
        methods: Mapping[str, str] | str = "rq-kmeans",
        configs: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        device: str = "cpu",
    ) -> Self:
        """Fit every block on the items that have it.

        Args:
            blocks: name -> [I, W].
            methods: name -> method, or one for all.
            configs: name -> config; defaults for those not named.
            seed: of everything that is drawn.
            device: where networks train.

        Raises:
            ValueError: a block that cannot work; names it.
        """
        configs = configs or {}
        for name in [*configs, *({} if isinstance(methods, str) else methods)]:
            if name not in blocks:
                raise ValueError(f"there is no block {name!r}; choose from {', '.join(blocks)}")
        tokenizers = {}
        for name, (rows_IW, present_I) in checked_blocks(blocks).items():
            method = methods if isinstance(methods, str) else methods.get(name, "rq-kmeans")
            try:
                made = fit_tokenizer(method, rows_IW[present_I], configs.get(name), seed=seed, device=device)
            except ValueError as error:
                raise ValueError(f"block {name!r}: {error}") from None
            tokenizers[name] = made
        return cls(tokenizers)

    def _codes(self, blocks: Mapping[str, ArrayLike], *, whole: bool) -> Codes:
        parts = []
        for name, (rows_NW, present_N) in checked_blocks(blocks, self.widths).items():
            made = self.tokenizers[name]
            codes_NL = np.tile(np.asarray(made.codebook_sizes, dtype=np.int32), (len(rows_NW), 1))
            if present_N.any():
                codes_NL[present_N] = (made.assign if whole else made.encode)(rows_NW[present_N])
            parts.append(codes_NL)
        return np.concatenate(parts, axis=1)

    def encode(self, blocks: Mapping[str, ArrayLike]) -> Codes:
        """[N, L] int32 codes of items, each for itself."""
        return self._codes(blocks, whole=False)

    def append(self, blocks: Mapping[str, ArrayLike]) -> Codes:
        """[N, L] int32 codes of new items: :meth:`encode`; balances are not applied."""
        return self.encode(blocks)

    def assign(self, blocks: Mapping[str, ArrayLike]) -> Codes:
        """[N, L] int32 codes of a whole catalogue, under the balance of each block's tokenizer."""
        return self._codes(blocks, whole=True)

    def decode(self, codes_NL: ArrayLike) -> dict[str, Floats]:
        """Name -> [N, W] reconstructions; zero rows where a level of the block says "missing"."""
        codes = checked_codes(codes_NL, self.codebook_sizes, name="separate tokenizers")
        decoded, low = {}, 0
        for name, made in self.tokenizers.items():
            part = codes[:, low : low + len(made.codebook_sizes)]
            low += len(made.codebook_sizes)
            present_N = (part < np.asarray(made.codebook_sizes)).all(axis=1)
            decoded[name] = np.zeros((len(codes), made.width), np.float32)
            if present_N.any():
                decoded[name][present_N] = made.decode(part[present_N])
        return decoded

    def save(self, folder: Path) -> None:
        """Write each tokenizer into a folder ``block_<n>``, then the two files that name them."""
        hashes = []
        for at, made in enumerate(self.tokenizers.values()):
            made.save(folder / f"block_{at}")
            hashes.append(_checksum_of(folder / f"block_{at}"))
        header = {
            "format": SEPARATE_FORMAT,
            "format_version": FORMAT_VERSION,
            "blocks": list(self.tokenizers),
            "checksums": hashes,
        }
        write_tokenizer(folder, header, {"codebook_sizes": np.asarray(self.codebook_sizes, dtype=np.int64)})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote; ValueError where a file is missing, changed or foreign."""
        header, _ = read_tokenizer(folder, format=SEPARATE_FORMAT, format_version=FORMAT_VERSION)
        tokenizers = {}
        for at, (name, checksum) in enumerate(zip(header["blocks"], header["checksums"], strict=True)):
            tokenizers[name] = load_tokenizer(folder / f"block_{at}")
            if _checksum_of(folder / f"block_{at}") != checksum:
                raise ValueError(
                    f"{folder / f'block_{at}'} is another tokenizer than was saved as block {name!r}; "
                    "copy the whole folder again, or fit and save it again"
                )
        return cls(tokenizers)


def _checksum_of(folder: Path) -> str:
    """The checksum that a saved tokenizer's JSON bears; it covers the hash of the arrays."""
    return str(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["checksum"])
