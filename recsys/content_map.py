"""From content rows as a dataset keeps them to the rows that a trained model reads, for items that come later.

Suffixes: I = items of the catalogue, J = any items, C = content columns of the dataset, B = those of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["ContentMap"]

_RIDGE = 1e-6
"""Of a least-squares fit, relative to the mean square of its columns."""


@dataclass(frozen=True, slots=True)
class ContentMap:
    """x -> (x - from_C) · turn + to_B, where turn is one number or a matrix."""

    from_C: Tensor
    turn: Tensor
    """[] or [C, B] float32."""
    to_B: Tensor

    @classmethod
    def fit(cls, content_IC: NDArray[np.float32], seen_IB: Tensor) -> ContentMap:
        """Find the map between the two.

        Args:
            content_IC: rows of the dataset.
            seen_IB: the same items as the model has them.

        Raises:
            ValueError: they are of different catalogues.
        """
        given_IC, seen_IB = torch.from_numpy(content_IC).float(), seen_IB.detach().cpu().float()
        if len(given_IC) != len(seen_IB):
            raise ValueError(f"{len(given_IC)} rows of content and {len(seen_IB)} of the model; give one catalogue")
        from_C, to_B = given_IC.mean(0), seen_IB.mean(0)
        centred_IC = given_IC - from_C
        if given_IC.shape == seen_IB.shape:
            # What a model does that was trained anew: centred, and a mean row length of 1.
            turn = 1.0 / centred_IC.norm(dim=1).mean().clamp_min(1e-12)
            if torch.allclose(centred_IC * turn, seen_IB, atol=1e-5):
                return cls(from_C, turn, torch.zeros_like(to_B))
        # A model that was started from an earlier one reads the axes of that one's content.
        gram_CC = (centred_IC.T @ centred_IC).double()
        gram_CC.diagonal().add_(_RIDGE * gram_CC.diagonal().mean().clamp_min(1e-12))
        turn_CB = torch.linalg.solve(gram_CC, (centred_IC.T @ (seen_IB - to_B)).double())
        return cls(from_C, turn_CB.float(), to_B)

    def apply(self, content_JC: NDArray[np.float32]) -> Tensor:
        """[J, B] float32 rows for the model."""
        away_JC = torch.from_numpy(content_JC).float() - self.from_C
        return (away_JC * self.turn if self.turn.dim() == 0 else away_JC @ self.turn) + self.to_B

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        parts = {"from": self.from_C, "turn": self.turn, "to": self.to_B}
        save_file({name: part.contiguous() for name, part in parts.items()}, path)

    @classmethod
    def load(cls, path: Path) -> ContentMap:
        """Read what :meth:`save` wrote."""
        parts = load_file(path)
        return cls(parts["from"], parts["turn"], parts["to"])
