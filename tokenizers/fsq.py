"""Finite scalar quantisation of sub-vectors, as in RecGPT (arXiv 2506.06270) after FSQ (arXiv 2309.15505).

The codes are points of a fixed grid, so there is no codebook to collapse and nothing to balance.
Suffixes: I = items, B = rows of a batch, V = entries of a vector, S = sub-vectors (the levels of a code tuple),
W = entries of a sub-vector, C = channels of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from recsys.tokenizers.block_dropout import blank_blocks, check_blocks
from recsys.tokenizers.fitted_tokenizer import FittedTokenizer
from recsys.tokenizers.mlp import frozen_double, mlp, net_arrays
from recsys.tokenizers.protocol import Codes, Floats
from recsys.tokenizers.vector_checks import checked_fit_rows, mean_and_scale

__all__ = ["Fsq", "FsqConfig", "default_levels", "digits_of", "grid_bound", "grid_values", "mixed_codes"]

_GRIDS = ((3, 3), (5, 3), (8, 8), (8, 6, 5), (8, 5, 5, 5), (7, 5, 5, 5, 5), (8, 8, 8, 6, 5))
_SLACK = 1e-3  # the bound reaches a little beyond the outer points, so that they are rounded to


def default_levels(num_items: int) -> tuple[int, ...]:
    """Levels per channel for a catalogue: the largest of the FSQ paper's grids with at most a quarter as many points
    as there are items.

    >>> default_levels(12_101), default_levels(100_000), default_levels(30)
    ((8, 5, 5, 5), (8, 8, 8, 6, 5), (3, 3))
    """
    fitting = [levels for levels in _GRIDS if 4 * math.prod(levels) <= num_items]
    return fitting[-1] if fitting else _GRIDS[0]


def grid_bound(latent: Tensor, levels: tuple[int, ...]) -> Tensor:
    """[…, C] latents squeezed so that rounding gives integers from −⌊n/2⌋ to ⌈n/2⌉ − 1 in a channel of n levels.

    An even n has no middle: its range is shifted by half a step, and the latent by as much that 0 stays in place.
    """
    level_C = torch.tensor(levels, dtype=latent.dtype, device=latent.device)
    half_C = (level_C - 1) * (1 + _SLACK) / 2
    offset_C = torch.where(level_C % 2 == 0, 0.5, 0.0).to(latent.dtype)
    shift_C = torch.atanh(offset_C / half_C)
    return torch.tanh(latent + shift_C) * half_C - offset_C


def mixed_codes(digits: NDArray[np.int64], levels: tuple[int, ...]) -> NDArray[np.int64]:
    """Code of […, C] digits, 0 ≤ digit < levels: a number in mixed radix, the first channel counting fastest.

    >>> mixed_codes(np.array([[1, 0, 0], [0, 1, 0], [7, 5, 4]]), (8, 6, 5)).tolist()
    [1, 8, 239]
    """
    return digits @ np.cumprod([1, *levels[:-1]])


def digits_of(codes: NDArray[Any], levels: tuple[int, ...]) -> NDArray[np.int64]:
    """[…, C] digits of codes: the inverse of :func:`mixed_codes`."""
    return np.asarray(codes, dtype=np.int64)[..., None] // np.cumprod([1, *levels[:-1]]) % np.asarray(levels)


def grid_values(integers: Tensor, levels: tuple[int, ...]) -> Tensor:
    """[…, C] integers around 0 as numbers from −1 to 1, which the decoder reads."""
    return integers / torch.tensor([level // 2 for level in levels], dtype=integers.dtype, device=integers.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class FsqConfig:
    """Grid, network and training of :class:`Fsq`."""

    num_parts: int = 4
    """Sub-vectors of equal width, one code each; a width that does not divide is filled with zeros."""
    levels: tuple[int, ...] | None = None
    """Levels per channel; RecGPT's are (8, 8, 8, 6, 5) = 15,360 codes. None = :func:`default_levels` of the items."""
    hidden_dim: int = 256
    """Of the decoder."""
    num_steps: int = 2000
    batch_size: int = 256
    learning_rate: float = 1e-3
    block_widths: tuple[int, ...] | None = None
    """Widths of the blocks that the vectors were concatenated from; needed for ``block_dropout`` alone."""
    block_dropout: float = 0.0
    """Share of training rows whose encoder misses one block; the decoder must give the whole row all the same."""

    def __post_init__(self) -> None:
        check_blocks(self.block_widths, self.block_dropout, type(self).__name__)
        if self.levels is not None and (not self.levels or any(level < 2 for level in self.levels)):
            raise ValueError(f"FsqConfig.levels must be at least 2 for each channel, got {self.levels!r}")
        if self.levels is not None and math.prod(self.levels) >= 2**31:
            raise ValueError(f"FsqConfig.levels {self.levels!r} make more codes than int32 holds; use fewer channels")
        for name in ("num_parts", "hidden_dim", "num_steps", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"FsqConfig.{name} must be positive, got {getattr(self, name)!r}")


class _Net(nn.Module):
    """A linear map per sub-vector to the grid's channels; a decoder of all channels at once."""

    def __init__(self, width: int, config: FsqConfig) -> None:
        super().__init__()
        assert config.levels is not None
        self.levels = config.levels
        self.parts = config.num_parts
        self.part_width = -(-width // self.parts)
        self.down_SWC = nn.Parameter(torch.zeros(self.parts, self.part_width, len(self.levels)))
        self.shift_SC = nn.Parameter(torch.zeros(self.parts, len(self.levels)))
        self.decoder = mlp((self.parts * len(self.levels), config.hidden_dim, width))

    def split(self, rows_BV: Tensor) -> Tensor:
        """[B, S, W] sub-vectors, zeros at the end."""
        missing = self.parts * self.part_width - rows_BV.shape[1]
        return F.pad(rows_BV, (0, missing)).unflatten(1, (self.parts, self.part_width))

    def bounded(self, rows_BV: Tensor) -> Tensor:
        """[B, S, C] places on the grid before rounding."""
        latent = torch.einsum("bsw,swc->bsc", self.split(rows_BV), self.down_SWC) + self.shift_SC
        return grid_bound(latent, self.levels)

    def decoded(self, integers_BSC: Tensor) -> Tensor:
        """[B, V] rows of grid points."""
        rows: Tensor = self.decoder(grid_values(integers_BSC, self.levels).flatten(1))
        return rows

    def start(self, rows_BV: Tensor) -> None:
        """Begin with each sub-vector's principal directions, scaled to latents of deviation 1."""
        with torch.no_grad():
            for part, rows_BW in enumerate(self.split(rows_BV).unbind(1)):
                _, value_R, direction_RW = torch.linalg.svd(rows_BW - rows_BW.mean(0), full_matrices=False)
                rank = min(len(self.levels), int((value_R > 1e-5 * value_R[0].clamp(min=1e-5)).sum()))
                deviation_R = value_R[:rank] / max(len(rows_BW) - 1, 1) ** 0.5
                self.down_SWC[part, :, :rank] = direction_RW[:rank].T / deviation_R


class Fsq(FittedTokenizer):
    """A code per sub-vector. A fitted one applies to any vectors of its width, also of other catalogues.

    Args:
        config: with ``levels`` given.
        mean_V, scale: rows are centred and scaled by these before the encoder.
        weights: of the network, by name.
    """

    name = "fsq"
    config_class = FsqConfig
    can_renumber = False

    def __init__(self, config: FsqConfig, mean_V: Floats, scale: float, weights: Mapping[str, NDArray[Any]]) -> None:
        assert config.levels is not None
        self.config = config
        self.levels = config.levels
        self.codebook_sizes = (math.prod(config.levels),) * config.num_parts
        self.mean_V = np.asarray(mean_V, dtype=np.float32)
        self.scale = np.float32(scale)
        self.width = len(self.mean_V)
        self._net = frozen_double(lambda: _Net(self.width, config), weights)

    @classmethod
    def fit(cls, vectors_IV: ArrayLike, config: FsqConfig | None = None, *, seed: int, device: str = "cpu") -> Self:
        """Train encoder and decoder for a fixed number of steps, with rounding passed straight through (L1 loss).

        Args:
            vectors_IV: [I, V] finite floats. There may be fewer distinct ones than codes: the grid is not fitted.
            config: None = the defaults.
            seed: of weights and draws; on a CPU the same seed and number of threads give the same bytes.
            device: where the network trains.

        Raises:
            ValueError: NaN or infinity, equal rows, or vectors narrower than there are parts.
        """
        config = config or FsqConfig()
        rows_IV = checked_fit_rows(vectors_IV, name=cls.name)
        width = rows_IV.shape[1]
        if width <= config.num_parts - 1 or -(-width // config.num_parts) * (config.num_parts - 1) >= width:
            raise ValueError(
                f"{cls.name}: {width} entries do not make {config.num_parts} sub-vectors; give fewer num_parts"
            )
        if config.block_widths is not None and sum(config.block_widths) != width:
            raise ValueError(
                f"{cls.name}: block_widths {config.block_widths} add up to {sum(config.block_widths)}, the vectors "
                f"have {width} entries; give the widths of the blocks that were concatenated"
            )
        config = replace(config, levels=config.levels or default_levels(len(rows_IV)))
        mean_V, scale = mean_and_scale(rows_IV)

        def batch(rows: NDArray[np.int64]) -> Tensor:
            return torch.from_numpy((rows_IV[rows] - mean_V) * np.float32(scale))

        rng = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = _Net(width, config)
        net.start(batch(np.sort(rng.permutation(len(rows_IV))[: 16 * config.batch_size])))
        net.to(device)
        optimiser = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
        for _ in range(config.num_steps):
            row_BV = batch(rng.integers(len(rows_IV), size=config.batch_size)).to(device)
            seen_BV = row_BV
            if config.block_dropout > 0 and config.block_widths is not None:
                seen_BV = blank_blocks(row_BV, config.block_widths, config.block_dropout, generator)
            bounded_BSC = net.bounded(seen_BV)
            rounded_BSC = bounded_BSC + (bounded_BSC.round() - bounded_BSC).detach()
            loss = F.l1_loss(net.decoded(rounded_BSC), row_BV)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        return cls(config, mean_V, scale, net_arrays(net))

    def renumbered(self, permutations: Sequence[NDArray[np.int64]]) -> Self:
        """Refused: a number says where on the grid its code lies."""
        raise ValueError(f"{self.name}: code numbers are made of digits and cannot be renamed; keep the old tokenizer")

    def _encode_block(self, rows_BV: Floats) -> Codes:
        centred = torch.from_numpy((rows_BV - self.mean_V) * self.scale).double()
        # Rounded to float32 first: then the digit does not show the last bits of a sum.
        digits = self._net.bounded(centred).float().round().numpy().astype(np.int64) + np.array(self.levels) // 2
        return mixed_codes(digits, self.levels).astype(np.int32)

    def _decode_block(self, codes_BL: Codes) -> Floats:
        integers = torch.from_numpy(digits_of(codes_BL, self.levels) - np.array(self.levels) // 2).double()
        return (self._net.decoded(integers).numpy() / self.scale + self.mean_V).astype(np.float32)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {"mean": self.mean_V, "scale": np.array([self.scale], np.float32), **net_arrays(self._net)}

    @classmethod
    def _from_arrays(cls, config: FsqConfig, arrays: Mapping[str, NDArray[Any]]) -> Self:
        weights = {name: array for name, array in arrays.items() if name not in ("mean", "scale")}
        return cls(config, arrays["mean"], float(arrays["scale"][0]), weights)
