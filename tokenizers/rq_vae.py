"""RQ-VAE: a residual quantiser inside an autoencoder, as in TIGER (arXiv 2305.05065).

Suffixes: I = items, B = rows of a batch, V = entries of a vector, D = entries of a latent, L = levels, K = codes.
"""

from __future__ import annotations

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
from recsys.tokenizers.kmeans import kmeans, nearest
from recsys.tokenizers.mlp import frozen_double, mlp, net_arrays
from recsys.tokenizers.protocol import Codes, Floats
from recsys.tokenizers.residual_codebooks import default_sizes, renumbered_codebook, residual_codes, residual_sum
from recsys.tokenizers.vector_checks import (
    check_sizes,
    checked_fit_rows,
    count_distinct,
    mean_and_scale,
    require_distinct,
)

__all__ = ["RqVae", "RqVaeConfig"]

_START_ROWS_PER_CODE = 16
_DEAD_SHARE = 0.05  # of an equal share: codes used less move to a row's residual
_CALM_SHARE = 0.2  # of the steps, at the end: nothing moves any more


@dataclass(frozen=True, slots=True, kw_only=True)
class RqVaeConfig:
    """Network and training of :class:`RqVae`."""

    codebook_sizes: tuple[int, ...] | None = None
    """Codes per level; None = :func:`~recsys.tokenizers.residual_codebooks.default_sizes` of the distinct vectors."""
    hidden_dims: tuple[int, ...] = (512, 256, 128)
    """Of the encoder; the decoder has them the other way round."""
    latent_dim: int = 32
    commitment: float = 0.25
    """Weight of the term that pulls latents to their codes."""
    num_steps: int = 3000
    """TIGER's figures want far more on a large catalogue."""
    batch_size: int = 1024
    learning_rate: float = 1e-3
    restart_every: int = 50
    """Steps after which codes that were hardly used move to residuals of the batch; none in the last fifth."""
    block_widths: tuple[int, ...] | None = None
    """Widths of the blocks that the vectors were concatenated from; needed for ``block_dropout`` alone."""
    block_dropout: float = 0.0
    """Share of training rows whose encoder misses one block; the decoder must give the whole row all the same."""

    def __post_init__(self) -> None:
        check_sizes(self.codebook_sizes, type(self).__name__)
        check_blocks(self.block_widths, self.block_dropout, type(self).__name__)
        for name in ("latent_dim", "commitment", "num_steps", "batch_size", "learning_rate", "restart_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"RqVaeConfig.{name} must be positive, got {getattr(self, name)!r}")
        if any(width < 1 for width in self.hidden_dims):
            raise ValueError(f"RqVaeConfig.hidden_dims must be positive, got {self.hidden_dims!r}")


class _Coder(nn.Module):
    """Encoder and decoder; the codebooks live outside, as k-means makes them."""

    def __init__(self, width: int, config: RqVaeConfig) -> None:
        super().__init__()
        widths = (width, *config.hidden_dims, config.latent_dim)
        self.encoder = mlp(widths)
        self.decoder = mlp(widths[::-1])


def _start_codebooks(net: _Coder, rows_BV: Tensor, sizes: Sequence[int], rng: np.random.Generator) -> list[Floats]:
    """k-means codebooks of first latents, which are scaled to entries of about 1 before."""
    last = net.encoder[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight /= net.encoder(rows_BV).std().clamp(min=1e-6)
        rest_BD = net.encoder(rows_BV).numpy()
    codebooks = []
    for size in sizes:
        codebook_KD = kmeans(rest_BD, size, rng, num_steps=10)
        codebooks.append(codebook_KD)
        rest_BD = rest_BD - codebook_KD[nearest(rest_BD, codebook_KD, settle=False)[0]]
    return codebooks


class _Quantiser:
    """One pass through the codebooks in training: codes, straight-through latents, loss, and who is used."""

    def __init__(self, codebooks: list[Tensor], commitment: float) -> None:
        self.codebooks = codebooks
        self.commitment = commitment
        self.used = [torch.zeros(len(book), device=book.device) for book in codebooks]

    def __call__(self, latent_BD: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Straight-through latents, ‖sg[r] − e‖² + β‖r − sg[e]‖² per entry summed over levels, residuals per level."""
        rest_BD = latent_BD
        loss = latent_BD.new_zeros(())
        residuals = []
        for used_K, book_KD in zip(self.used, self.codebooks, strict=True):
            residuals.append(rest_BD.detach())
            with torch.no_grad():
                code_B = torch.addmm(book_KD.square().sum(1), rest_BD, book_KD.T, alpha=-2).argmin(1)
                used_K += torch.bincount(code_B, minlength=len(used_K))
            chosen_BD = F.embedding(code_B, book_KD)
            loss = loss + F.mse_loss(chosen_BD, rest_BD.detach())
            loss = loss + self.commitment * F.mse_loss(rest_BD, chosen_BD.detach())
            rest_BD = rest_BD - chosen_BD.detach()
        return latent_BD - rest_BD.detach(), loss, residuals

    def restart(self, residuals: list[Tensor], generator: torch.Generator) -> None:
        """Move hardly used codes to residuals of the last batch, and count anew."""
        with torch.no_grad():
            for used_K, book_KD, rest_BD in zip(self.used, self.codebooks, residuals, strict=True):
                dead_E = (used_K < _DEAD_SHARE * used_K.mean()).nonzero().flatten()
                row_E = torch.randint(len(rest_BD), (len(dead_E),), generator=generator).to(rest_BD.device)
                book_KD[dead_E] = rest_BD[row_E]
                used_K.zero_()


class RqVae(FittedTokenizer):
    """Codes of an autoencoder's latents.

    Args:
        config: with ``codebook_sizes`` given.
        mean_V, scale: rows are centred and scaled by these before the encoder.
        weights: of encoder and decoder, by name.
        codebooks: per level [K, D] float32.
    """

    name = "rq-vae"
    config_class = RqVaeConfig

    def __init__(
        self,
        config: RqVaeConfig,
        mean_V: Floats,
        scale: float,
        weights: Mapping[str, NDArray[Any]],
        codebooks: Sequence[Floats],
    ) -> None:
        self.config = config
        self.mean_V = np.asarray(mean_V, dtype=np.float32)
        self.scale = np.float32(scale)
        self.codebooks = tuple(np.ascontiguousarray(codebook, dtype=np.float32) for codebook in codebooks)
        self.codebook_sizes = tuple(len(codebook) for codebook in self.codebooks)
        self.width = len(self.mean_V)
        self._net = frozen_double(lambda: _Coder(self.width, config), weights)

    @classmethod
    def fit(cls, vectors_IV: ArrayLike, config: RqVaeConfig | None = None, *, seed: int, device: str = "cpu") -> Self:
        """Train on a catalogue, for a fixed number of steps.

        Args:
            vectors_IV: [I, V] finite floats.
            config: None = the defaults.
            seed: of weights and draws; on a CPU the same seed and number of threads give the same bytes.
            device: where the network trains.

        Raises:
            ValueError: NaN or infinity, equal rows, or fewer distinct vectors than a level has codes.
        """
        config = config or RqVaeConfig()
        rows_IV = checked_fit_rows(vectors_IV, name=cls.name)
        if config.block_widths is not None and sum(config.block_widths) != rows_IV.shape[1]:
            raise ValueError(
                f"{cls.name}: block_widths {config.block_widths} add up to {sum(config.block_widths)}, the vectors "
                f"have {rows_IV.shape[1]} entries; give the widths of the blocks that were concatenated"
            )
        sizes = config.codebook_sizes or default_sizes(count_distinct(rows_IV, enough=1024))
        require_distinct(rows_IV, max(sizes), name=cls.name, where="the catalogue")
        config = replace(config, codebook_sizes=sizes)
        mean_V, scale = mean_and_scale(rows_IV)

        def batch(rows: NDArray[np.int64]) -> Tensor:
            return torch.from_numpy((rows_IV[rows] - mean_V) * np.float32(scale))

        rng = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = _Coder(rows_IV.shape[1], config)
        first = min(len(rows_IV), max(config.batch_size, _START_ROWS_PER_CODE * max(sizes)))
        start = _start_codebooks(net, batch(np.sort(rng.permutation(len(rows_IV))[:first])), sizes, rng)
        net.to(device)
        books = [torch.from_numpy(book).to(device).requires_grad_() for book in start]
        quantiser = _Quantiser(books, config.commitment)
        optimiser = torch.optim.Adam([*net.parameters(), *books], lr=config.learning_rate)
        for step in range(1, config.num_steps + 1):
            row_BV = batch(rng.integers(len(rows_IV), size=config.batch_size)).to(device)
            seen_BV = row_BV
            if config.block_dropout > 0 and config.block_widths is not None:
                seen_BV = blank_blocks(row_BV, config.block_widths, config.block_dropout, generator)
            latent_BD, code_loss, residuals = quantiser(net.encoder(seen_BV))
            loss = F.mse_loss(net.decoder(latent_BD), row_BV) + code_loss
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            if step % config.restart_every == 0 and step <= (1 - _CALM_SHARE) * config.num_steps:
                quantiser.restart(residuals, generator)
        return cls(config, mean_V, scale, net_arrays(net), [book.detach().cpu().numpy() for book in books])

    def renumbered(self, permutations: Sequence[NDArray[np.int64]]) -> Self:
        """The same networks; the rows of the codebooks in another order."""
        books = zip(self.codebooks, permutations, strict=True)
        moved = [renumbered_codebook(book, number_K) for book, number_K in books]
        return type(self)(self.config, self.mean_V, float(self.scale), net_arrays(self._net), moved)

    def _encode_block(self, rows_BV: Floats) -> Codes:
        centred = torch.from_numpy((rows_BV - self.mean_V) * self.scale).double()
        return residual_codes(self._net.encoder(centred).float().numpy(), self.codebooks)

    def _decode_block(self, codes_BL: Codes) -> Floats:
        latent = torch.from_numpy(residual_sum(codes_BL, self.codebooks)).double()
        rows = self._net.decoder(latent).numpy()
        return (rows / self.scale + self.mean_V).astype(np.float32)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        books = {f"codebook_{level}": codebook for level, codebook in enumerate(self.codebooks)}
        return {"mean": self.mean_V, "scale": np.array([self.scale], np.float32), **books, **net_arrays(self._net)}

    @classmethod
    def _from_arrays(cls, config: RqVaeConfig, arrays: Mapping[str, NDArray[Any]]) -> Self:
        books = [arrays[f"codebook_{level}"] for level in range(len(config.codebook_sizes or ()))]
        weights = {name: array for name, array in arrays.items() if name.startswith(("encoder.", "decoder."))}
        return cls(config, arrays["mean"], float(arrays["scale"][0]), weights, books)
