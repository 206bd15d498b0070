"""Heads on the shared encoder: the query of dense retrieval, and one probability per action of a candidate.

Suffixes: R = rows, D = width, A = actions, P = shown ranks, F = features of a candidate, W = width of a cross layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.candidate_features import feature_width
from recsys.dropout import Dropout
from recsys.embedding_table import EmbeddingTable
from recsys.model_config import ModelConfig
from recsys.wide_start import WideStart

__all__ = ["ActionHead", "CrossLayer", "QueryHead"]


_START_TEMPERATURE, _MAX_SCALE = 0.05, 100.0


class QueryHead(nn.Module):
    """Query vector of a user state at a request: z + MLP(z, surface and time of the request, features of the user).

    With cosine scores query and item vectors have length 1 and the query carries the inverse temperature, which starts
    at 20 and stays in [1, 100], so that a score is an inner product all the same.
    """

    def __init__(self, config: ModelConfig, context_dim: int) -> None:
        super().__init__()
        self.cosine = config.score == "cosine"
        self.log_scale = nn.Parameter(torch.zeros(()) - (math.log(_START_TEMPERATURE) if self.cosine else 0.0))
        """ln of the inverse temperature of retrieval scores."""
        self.hidden = nn.Linear(config.dim + context_dim, config.dim) if context_dim else None
        self.out = nn.Linear(config.dim, config.dim) if context_dim else None
        if self.out is not None:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, z_RD: Tensor, context: Tensor | None) -> Tensor:
        """[R, D]; its inner product with an item vector is the item's learned score."""
        if self.hidden is not None and self.out is not None:
            assert context is not None
            z_RD = z_RD + self.out(F.gelu(self.hidden(torch.cat([z_RD, context], -1))))
        if self.cosine:
            return F.normalize(z_RD, dim=-1) * self.log_scale.clamp(0.0, math.log(_MAX_SCALE)).exp()
        return z_RD * self.log_scale.exp()

    def item_side(self, vectors: Tensor) -> Tensor:
        """[..., D] item vectors as the score reads them."""
        return F.normalize(vectors, dim=-1) if self.cosine else vectors


class CrossLayer(nn.Module):
    """x ← x + x0 ⊙ U V x, which starts as the identity (DCN V2, arXiv 2008.13535)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x0_RW: Tensor, x_RW: Tensor) -> Tensor:
        out: Tensor = x_RW + x0_RW * self.up(self.down(x_RW))
        return out


class ActionHead(nn.Module):
    """Logits of every action from an encoded row and its item.

    Features of the candidate (:mod:`recsys.candidate_features`), where the model reads some, enter twice: beside the
    encoded row, and by a linear (wide) term of their own that starts as a logistic regression (Wide & Deep,
    arXiv 1606.07792).

    The shown rank adds a bias of its own in training only, against position bias; elsewhere its mean over the places
    seen in training stands in, so that probabilities stay calibrated.
    """

    rank_share_P: Tensor
    past_mean_F: Tensor
    past_scale_F: Tensor
    """Of all features; the names are those of checkpoints from when past rates were the only ones."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_actions = config.num_actions
        width = config.num_actions + (1 if config.regress_value else 0)
        num_features = feature_width(config)
        mixed = 3 * config.dim + num_features + (config.dim if config.user_dim else 0)
        self.item = nn.Linear(config.dim, config.dim)
        self.cross = nn.ModuleList(CrossLayer(mixed, config.cross_rank) for _ in range(config.cross_layers))
        self.hidden = nn.Linear(mixed, 2 * config.dim)
        self.dropout = Dropout(config.dropout)
        self.out = nn.Linear(2 * config.dim, width)
        self.rank_bias = EmbeddingTable(config.max_shown_rank, config.num_actions, std=0.0)
        self.register_buffer("rank_share_P", torch.full((config.max_shown_rank,), 1.0 / config.max_shown_rank))
        self.wide = nn.Linear(num_features, width) if num_features else None
        if num_features:
            self.register_buffer("past_mean_F", torch.zeros(num_features))
            self.register_buffer("past_scale_F", torch.ones(num_features))

    @torch.no_grad()
    def set_priors(self, action_rate_A: Tensor, rank_share_P: Tensor | None) -> None:
        """Start at the base rates: [A] shares of *yes* among known, [P] shares of rows at each shown rank."""
        rate = action_rate_A.clamp(1e-4, 1 - 1e-4)
        self.out.bias.zero_()
        self.out.bias[: self.num_actions] = torch.log(rate / (1 - rate))
        if rank_share_P is not None:
            self.rank_share_P.copy_(rank_share_P)

    @torch.no_grad()
    def set_features(self, start: WideStart) -> None:
        """Begin with the forecast that the features make by themselves; after :meth:`set_priors`."""
        assert self.wide is not None
        self.past_mean_F.copy_(start.mean_F)
        self.past_scale_F.copy_(start.scale_F)
        self.wide.weight.zero_()
        self.wide.bias.zero_()
        self.wide.weight[: self.num_actions] = start.weight_AF
        self.wide.bias[: self.num_actions] = start.bias_A
        self.out.bias[: self.num_actions] = 0.0
        self.out.weight[: self.num_actions] = 0.0

    def feature_logits(self, feature_RF: Tensor) -> Tensor:
        """[R, A] the part of the logits at any place that does not read the encoder, of a model that reads features."""
        assert self.wide is not None
        logits = self.wide((feature_RF - self.past_mean_F) / self.past_scale_F)[..., : self.num_actions]
        found: Tensor = logits + self.rank_share_P @ self.rank_bias.all_rows()
        return found

    def forward(
        self,
        z_RD: Tensor,
        vector_RD: Tensor,
        shown_R: Tensor | None = None,
        feature_RF: Tensor | None = None,
        user_RD: Tensor | None = None,
    ) -> Tensor:
        """[R, A] logits (and a last column ln(1 + value) where a value is regressed).

        Args:
            z_RD: encoded rows. vector_RD: their item vectors. shown_R: shown rank from 0, or None = any place.
            feature_RF: [R, F] features of the candidates, for a model that reads some.
            user_RD: [R, D] what the model makes of the users' features, where it reads some.
        """
        item_RD = self.item(vector_RD * vector_RD.shape[-1] ** 0.5)
        parts = [z_RD, item_RD, z_RD * item_RD]
        if self.wide is not None:
            assert feature_RF is not None, "a model that reads features needs those of every row"
            feature_RF = (feature_RF - self.past_mean_F) / self.past_scale_F
            parts.append(feature_RF)
        if user_RD is not None and user_RD.shape[-1]:
            parts.append(user_RD)
        first = mixed = torch.cat(parts, -1)
        for cross in self.cross:
            mixed = cross(first, mixed)
        logits: Tensor = self.out(self.dropout(F.gelu(self.hidden(mixed))))
        if self.wide is not None:
            logits = logits + self.wide(feature_RF)
        if shown_R is None:
            bias = self.rank_share_P @ self.rank_bias.all_rows()
        else:
            bias = self.rank_bias(shown_R.clamp_max(self.rank_bias.num_rows - 1))
        return torch.cat([logits[..., : self.num_actions] + bias, logits[..., self.num_actions :]], -1)
