"""Semantic IDs of the catalogue, kept with the weights that were trained on them.

They are buffers of the model: a checkpoint or bundle can then not hold the codes of one training and the heads of
another. Suffixes: I = items, L = codes of an item.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recsys.model_config import ModelConfig

__all__ = ["KINDS", "ItemCodes", "code_sizes"]

KINDS = ("codes", "parallel_codes", "set_codes")
"""Generated one after the other; predicted all at once from one query; predicted all at once by a query each."""


def code_sizes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Sizes of the codebooks of every kind that a model has a head for."""
    sizes = {"codes": config.code_sizes, "parallel_codes": config.parallel_sizes, "set_codes": config.set_sizes}
    return {kind: found for kind, found in sizes.items() if found}


class ItemCodes(nn.Module):
    """[I, L] int32 codes of every item, one buffer per kind that the model has a head for."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.sizes = code_sizes(config)
        for kind, sizes in self.sizes.items():
            self.register_buffer(kind, torch.zeros(config.num_items, len(sizes), dtype=torch.int32))

    def __contains__(self, kind: str) -> bool:
        return kind in self.sizes

    def of(self, kind: str) -> Tensor:
        """[I, L] int32 codes of a kind; KeyError where the model has no head for it."""
        return dict(self.named_buffers())[kind]

    def fill(self, codes: Mapping[str, Tensor]) -> None:
        """Take over the codes of the catalogue.

        Args:
            codes: by kind, [I, L] integers.

        Raises:
            ValueError: other kinds than the model has heads for, another shape, or a code out of range.
        """
        if set(codes) != set(self.sizes):
            raise ValueError(f"codes are needed of {sorted(self.sizes)}, got {sorted(codes)}")
        for kind, code_IL in codes.items():
            self.check(kind, code_IL)
        for kind, code_IL in codes.items():
            self.of(kind).copy_(code_IL)

    def check(self, kind: str, code_IL: Tensor) -> None:
        """ValueError where codes have another shape, or one is out of range."""
        shape, sizes = self.of(kind).shape, self.sizes[kind]
        if code_IL.shape != shape:
            raise ValueError(f"{kind} must be {list(shape)}, got {list(code_IL.shape)}")
        if bool((code_IL < 0).any()) or bool((code_IL >= torch.tensor(sizes, device=code_IL.device)).any()):
            raise ValueError(f"{kind} must be at least 0 and below {list(sizes)}")
