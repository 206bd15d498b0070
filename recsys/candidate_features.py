"""What the ranking head reads of a candidate beside its encoded row: past rates, memory terms, or both.

Suffixes: B = requests, C = candidates of a request, F = features: those of past rates, then those of memory terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.index.item_graph import ItemGraph
from recsys.memory_features import memory_features, memory_width
from recsys.model_config import ModelConfig
from recsys.past_counts import PastSource
from recsys.past_rates import past_columns, past_tensor, past_width, without_surface
from recsys.user_state import UserStates

__all__ = ["CandidateFeatures", "feature_columns", "feature_width", "features_without_surface"]


def feature_width(config: ModelConfig) -> int:
    """Number of features that a model reads."""
    width = past_width(config.num_actions) if config.past_rates else 0
    return width + (memory_width(len(config.relations)) if config.memory_features else 0)


def feature_columns(config: ModelConfig, place_A: Sequence[int], num_old_actions: int) -> list[int]:
    """[F] where each feature of a model stood when the actions were others; -1 = nowhere. The rest of its
    configuration is the same.

    Args:
        place_A: where each action stood among the old ones, -1 = nowhere.
    """
    columns = past_columns(place_A, num_old_actions) if config.past_rates else []
    stood = past_width(num_old_actions) if config.past_rates else 0
    return columns + [stood + place for place in range(feature_width(config) - len(columns))]


def features_without_surface(config: ModelConfig, feature_BF: Tensor, hidden_B: Tensor) -> Tensor:
    """The same features as a request sees them that does not say its surface, in the rows where ``hidden_B``."""
    if not config.past_rates:
        return feature_BF
    width = past_width(config.num_actions)
    return torch.cat([without_surface(feature_BF[..., :width], hidden_B), feature_BF[..., width:]], -1)


@dataclass(frozen=True, slots=True)
class CandidateFeatures:
    """Where the features of requests come from."""

    config: ModelConfig
    past: PastSource | None
    """Needed by a model with past rates."""
    graph: ItemGraph | None
    """Needed by a model with memory features."""

    def of(self, states: UserStates, item_BC: Tensor, at_B: Tensor, surface_BC: Tensor) -> Tensor | None:
        """[B, C, F] on the device of the items; None for a model that reads none.

        Raises:
            ValueError: the counts or the graph are missing.
        """
        parts = []
        if self.config.past_rates:
            if self.past is None:
                raise ValueError("this model ranks with past rates; give the counts that they are made of")
            parts.append(past_tensor(self.past, states.past_BX, item_BC, at_B, surface_BC))
        if self.config.memory_features:
            if self.graph is None:
                raise ValueError("this model ranks with memory terms; give the item graph that they are read from")
            recent_BM = states.recent_BM[:, : self.config.recent]
            parts.append(memory_features(self.graph, self.config.relations, recent_BM, item_BC))
        return torch.cat(parts, -1) if parts else None
