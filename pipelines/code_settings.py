"""How semantic IDs of a catalogue are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from recsys.errors import InputError
from recsys.tokenizers.balanced import BALANCES
from recsys.tokenizers.tokenizer_registry import TOKENIZER_METHODS

__all__ = ["KINDS", "CodeSettings"]

KINDS = ("codes", "parallel_codes", "set_codes")
"""Generated one after the other; predicted all at once; a set, with codes of its own for every block of vectors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeSettings:
    """Of :func:`~recsys.pipelines.made_codes.make_codes`. What is None is chosen for the catalogue."""

    seed: int = 0
    kinds: tuple[str, ...] = KINDS
    method: str = "rq-kmeans"
    """Of ``codes``."""
    levels: int | None = None
    """Of ``codes``: 3, above 200,000 items 4."""
    codebook_size: int | None = None
    """Of every kind: 256, or the largest power of two that is at most a quarter of the items. Stated sizes are not made
    smaller where they do not fit."""
    balance: str | None = None
    """Of rq-kmeans and opq: none, capacity or sinkhorn. None = sinkhorn for rq-kmeans of at most 200,000 items, else
    none. With sinkhorn no level is wasted (goodbooks with MiniLM: entropy 8.0 8.0 8.0 bits; without 7.6 6.0 3.9) for
    .1 bits more per held-out next item, counted by the codes of the item before it; capacity costs .3 (Amazon Toys)."""
    blocks: Mapping[str, float | None] | None = None
    """Name -> weight; None = content and transition. A weight of None is the default of the block."""
    fuse: str = "fused"
    """``codes`` of all blocks side by side (fused), or codes of each block after the other (separate)."""
    block_dropout: float = 0.1
    """Of rq-vae and fsq on several fused blocks: share of training rows that miss one."""
    num_steps: int | None = None
    """Of the networks of rq-vae and fsq; None = the method's."""
    parallel_parts: int = 16
    """Levels of ``parallel_codes``, at most: each needs two directions of the vectors."""
    whiten: bool = True
    """Of opq: whether all directions of the vectors count alike. Where vectors are those of a model, an error in a long
    direction costs more than one in a short one: of validation targets of Amazon Toys 16 codes of 256, summed up, find
    .130 among ten items without it and .122 with it (dense retrieval .137)."""
    set_parts: int = 4
    """Levels of each block of ``set_codes``, at most."""

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("--method", self.method, TOKENIZER_METHODS),
            ("--fuse", self.fuse, ("fused", "separate")),
            ("--balance", self.balance, (None, *BALANCES)),
            *(("kinds", kind, KINDS) for kind in self.kinds),
        ):
            if value not in choices:
                raise InputError(f"{name} {value}: choose one of {', '.join(str(one) for one in choices if one)}")
        if not self.kinds:
            raise InputError(f"kinds names none; choose some of {', '.join(KINDS)}")
        if self.balance not in (None, "none") and self.method not in ("rq-kmeans", "opq"):
            raise InputError(f"--balance {self.balance}: {self.method} has no balance; use rq-kmeans or opq")
        if self.levels is not None and not 1 <= self.levels <= 64:
            raise InputError(f"--levels {self.levels}: give 1 to 64 levels")
        if self.codebook_size is not None and not 2 <= self.codebook_size <= 2**16:
            raise InputError(f"--codebook-size {self.codebook_size}: give 2 to 65536 codes")
        for name in ("num_steps", "parallel_parts", "set_parts"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} {value}: give at least 1")
        if not 0 <= self.block_dropout < 1:
            raise InputError(f"--block-dropout {self.block_dropout}: give a share from 0 to below 1")
        for name, weight in (self.blocks or {}).items():
            if weight is not None and not 0 < weight < float("inf"):
                raise InputError(f"--blocks {name}:{weight}: a weight is a positive number")
