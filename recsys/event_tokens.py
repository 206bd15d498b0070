"""Tokens: item vector, actions, surface and time of a row, mixed by one linear map.

Suffixes: R = rows of any leading shape, D = model width, A = actions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.dropout import Dropout
from recsys.embedding_table import EmbeddingTable
from recsys.layouts import ActionInput
from recsys.model_config import ModelConfig
from recsys.positive_age import PositiveAge
from recsys.time_features import ContextFeatures

__all__ = ["EventTokens", "action_bits"]


def action_bits(mask: Tensor, num_actions: int) -> Tensor:
    """[..., A] float of the bits of integers of any shape.

    >>> action_bits(torch.tensor([5]), 3).tolist()
    [[1.0, 0.0, 1.0]]
    """
    bit_A = torch.arange(num_actions, device=mask.device)
    return (torch.bitwise_right_shift(mask[..., None], bit_A) & 1).float()


class EventTokens(nn.Module):
    """x = W · concat(item vector, actions yes / unknown / MASK, surface and time features) + position.

    The item block of W starts as the identity times √D, so that a model whose rows hold nothing but an item starts as
    a SASRec (arXiv 1808.09781); where the data has neither actions, surfaces nor a clock, W is left out.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dim, self.num_actions = config.dim, config.num_actions if config.use_actions else 0
        self.context = ContextFeatures(config)
        self.position = EmbeddingTable(config.window + 1, config.dim)
        self.positive_age = PositiveAge(config.dim) if config.positive_recency else None
        extra = self.context.dim + (2 * self.num_actions + 1 if config.use_actions else 0)
        self.use_actions = config.use_actions
        self.mix = nn.Linear(config.dim + extra, config.dim) if extra else None
        self.dropout = Dropout(config.dropout)

    def reset(self) -> None:
        """Initial values of the mixing map."""
        if self.mix is not None:
            with torch.no_grad():
                self.mix.weight.normal_(0.0, 0.1)
                self.mix.weight[:, : self.dim] = torch.eye(self.dim) * self.dim**0.5
                self.mix.bias.zero_()

    def forward(
        self,
        vector_RD: Tensor,
        actions: ActionInput,
        context: Tensor | None,
        position: Tensor,
        positive_age: Tensor | None = None,
    ) -> Tensor:
        """[..., D] tokens; ``context`` from :class:`ContextFeatures`, ``positive_age`` where the model reads it."""
        if self.mix is None:
            x = vector_RD * self.dim**0.5
        else:
            parts = [vector_RD]
            if self.use_actions:
                shown = (~actions.hidden)[..., None].to(vector_RD.dtype)
                yes = action_bits(actions.yes, self.num_actions) * shown
                unknown = (1.0 - action_bits(actions.known, self.num_actions)) * shown
                parts += [yes, unknown, 1.0 - shown]
            if context is not None:
                parts.append(context)
            x = self.mix(torch.cat(parts, -1))
        x = x + self.position(position)
        if self.positive_age is not None:
            assert positive_age is not None
            x = x + self.positive_age(positive_age)
        tokens: Tensor = self.dropout(x)
        return tokens
