"""What the tokenizers share: checks, blocks of rows, health, files.

Suffixes: N = vectors given, I = items of the catalogue, V = entries of a vector, L = levels, B = rows of one block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.tokenizers.health import code_health
from recsys.tokenizers.protocol import Codes, Floats, Health
from recsys.tokenizers.tokenizer_files import CONFIG_FILE, read_tokenizer, write_tokenizer
from recsys.tokenizers.vector_checks import checked_codes, checked_rows

__all__ = ["FORMAT", "FORMAT_VERSION", "FittedTokenizer", "config_from"]

FORMAT = "recsys-tokenizer"
FORMAT_VERSION = 1
_ROWS_AT_ONCE = 8192


def config_from(config_class: type[Any], values: Mapping[str, Any], *, where: str) -> Any:
    """A config of plain JSON values or keyword arguments: lists become tuples, an unknown name is a ValueError."""
    known = {field.name for field in fields(config_class)}
    for name in values:
        if name not in known:
            raise ValueError(
                f"{where}: {config_class.__name__} has no {name!r}; choose from {', '.join(sorted(known))}"
            )
    return config_class(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


class FittedTokenizer(ABC):
    """Base of the methods; the contract is that of :class:`~recsys.tokenizers.protocol.SemanticTokenizer`."""

    name: ClassVar[str]
    config_class: ClassVar[type[Any]]
    can_renumber: ClassVar[bool] = True
    """Whether code numbers are free to be permuted."""
    config: Any
    """As fitted: what the caller left open is filled in."""
    width: int
    codebook_sizes: tuple[int, ...]

    @abstractmethod
    def _encode_block(self, rows_BV: Floats) -> Codes:
        """[B, L] codes of checked rows, each row for itself."""

    @abstractmethod
    def _decode_block(self, codes_BL: Codes) -> Floats:
        """[B, V] reconstructions of checked codes."""

    @abstractmethod
    def _arrays(self) -> dict[str, NDArray[Any]]:
        """Everything fitted, for the file."""

    @classmethod
    @abstractmethod
    def _from_arrays(cls, config: Any, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The tokenizer of a config and :meth:`_arrays`."""

    def encode(self, vectors_NV: ArrayLike) -> Codes:
        """[N, L] int32 codes of [N, V] vectors, each for itself; see the protocol."""
        rows_NV = checked_rows(vectors_NV, name=self.name, width=self.width)
        codes_NL = np.empty((len(rows_NV), len(self.codebook_sizes)), np.int32)
        for low in range(0, len(rows_NV), _ROWS_AT_ONCE):
            codes_NL[low : low + _ROWS_AT_ONCE] = self._encode_block(rows_NV[low : low + _ROWS_AT_ONCE])
        return codes_NL

    def assign(self, vectors_IV: ArrayLike) -> Codes:
        """[I, L] int32 codes of a whole catalogue; without a balance those of :meth:`encode`."""
        return self.encode(vectors_IV)

    def append(self, vectors_NV: ArrayLike) -> Codes:
        """[N, L] int32 codes of new items: :meth:`encode`. A balance is not applied."""
        return self.encode(vectors_NV)

    def decode(self, codes_NL: ArrayLike) -> Floats:
        """[N, V] float32 reconstructions of [N, L] codes."""
        codes = checked_codes(codes_NL, self.codebook_sizes, name=self.name)
        vectors_NV = np.empty((len(codes), self.width), np.float32)
        for low in range(0, len(codes), _ROWS_AT_ONCE):
            vectors_NV[low : low + _ROWS_AT_ONCE] = self._decode_block(codes[low : low + _ROWS_AT_ONCE])
        return vectors_NV

    def health(self, vectors_IV: ArrayLike, codes_IL: ArrayLike) -> Health:
        """Figures of [I, V] vectors and their [I, L] codes, from :meth:`assign` or :meth:`encode`."""
        rows_IV = checked_rows(vectors_IV, name=self.name, width=self.width)
        codes = checked_codes(codes_IL, self.codebook_sizes, name=self.name)
        if len(rows_IV) != len(codes) or len(codes) == 0:
            raise ValueError(
                f"{self.name}: {len(rows_IV)} vectors and {len(codes)} codes; give the same items, at least one"
            )
        return code_health(rows_IV, codes, self.decode(codes), self.codebook_sizes)

    @abstractmethod
    def renumbered(self, permutations: Sequence[NDArray[np.int64]]) -> Self:
        """The same tokenizer under other code numbers.

        Args:
            permutations: per level, [K] the new number of each code.

        Raises:
            ValueError: the numbers have a meaning of their own (``can_renumber`` is false).
        """

    def save(self, folder: Path) -> None:
        """Write the tokenizer's two files."""
        header = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "method": self.name,
            "config": asdict(self.config),
            "codebook_sizes": self.codebook_sizes,
            "width": self.width,
        }
        write_tokenizer(folder, header, self._arrays())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: a file is missing, changed or foreign, or holds another method.
        """
        header, arrays = read_tokenizer(folder, format=FORMAT, format_version=FORMAT_VERSION)
        if header["method"] != cls.name:
            raise ValueError(
                f"{folder / CONFIG_FILE} holds a tokenizer {header['method']}, not {cls.name}; use load_tokenizer()"
            )
        return cls._from_arrays(
            config_from(cls.config_class, header["config"], where=str(folder / CONFIG_FILE)), arrays
        )
