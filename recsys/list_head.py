"""A small trained net that turns features of a list into what they add to the scores of its candidates.

Suffixes: M = members, F = features, H = hidden width, C = columns of one product, B = requests, K = candidates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ListHead", "ListNet", "neutral_on_new"]

_MOST = 5.0
"""Standard deviations at which a feature is cut off."""


class ListNet(nn.Module):
    """Members with a linear part and one hidden layer each, trained together and apart from each other."""

    def __init__(self, num_features: int, hidden: int, members: int) -> None:
        super().__init__()
        self.linear_MF = nn.Parameter(torch.zeros(members, num_features))
        self.inner_MFH = nn.Parameter(torch.randn(members, num_features, hidden) * num_features**-0.5)
        self.bias_MH = nn.Parameter(torch.zeros(members, hidden))
        self.outer_MH = nn.Parameter(torch.zeros(members, hidden))

    def forward(self, feature_BKF: Tensor, dropout: float = 0.0) -> Tensor:
        """[M, B, K] what each member adds to the scores."""
        members, _, hidden = self.inner_MFH.shape
        # One product for all members, the linear parts as further columns.
        columns_FC = torch.cat([self.inner_MFH.transpose(0, 1).flatten(1), self.linear_MF.T], 1)
        out_BKC = feature_BKF @ columns_FC
        inner_BKMH = out_BKC[..., : members * hidden].unflatten(-1, (members, hidden)) + self.bias_MH
        inner_BKMH = F.dropout(F.gelu(inner_BKMH), dropout, self.training)
        added_BKM = (inner_BKMH * self.outer_MH).sum(-1) + out_BKC[..., members * hidden :]
        return added_BKM.permute(2, 0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListHead:
    """A trained net with what its features are."""

    names: tuple[str, ...]
    """Of the features, in their order."""
    mean_F: Tensor
    scale_F: Tensor
    """Standard deviations."""
    net: ListNet
    weight: float
    """Of what the net says, beside the scores that the list came with; 0 = not adopted."""
    knows_new: bool = True
    """Whether what it says of items without training events is worth hearing; else they get what others get on
    average."""

    def standardised(self, feature_BKF: Tensor) -> Tensor:
        """[B, K, F] features as the net reads them."""
        return ((feature_BKF - self.mean_F) / self.scale_F).clamp(-_MOST, _MOST)

    @torch.inference_mode()
    def added(self, feature_BKF: Tensor, is_new_BK: Tensor | None = None) -> Tensor:
        """[B, K] mean of the members, with weight 1.

        Args:
            is_new_BK: [B, K] bool, items without training events; None = none. Padded places have zeros for features.
        """
        added: Tensor = self.net(self.standardised(feature_BKF)).mean(0)
        if is_new_BK is None or self.knows_new:
            return added
        return neutral_on_new(added, is_new_BK, feature_BKF.any(-1))

    def tensors(self) -> dict[str, Tensor]:
        """Everything but names and weight, for a file."""
        found = {"mean": self.mean_F, "scale": self.scale_F, **self.net.state_dict()}
        return {name: tensor.detach().contiguous() for name, tensor in found.items()}

    def to_dict(self) -> dict[str, Any]:
        """Names, weight and tensors, for a checkpoint."""
        return {
            "names": list(self.names), "weight": self.weight, "knows_new": self.knows_new, "tensors": self.tensors()
        }  # fmt: skip

    @classmethod
    def from_tensors(
        cls, names: Sequence[str], tensors: Mapping[str, Tensor], weight: float, *, knows_new: bool = True
    ) -> ListHead:
        """The head of which :meth:`tensors` spoke.

        Raises:
            ValueError, KeyError, RuntimeError: they are not those of a head with so many features.
        """
        rest = {name: tensor.float() for name, tensor in tensors.items()}
        mean_F, scale_F = rest.pop("mean"), rest.pop("scale")
        if rest["inner_MFH"].dim() != 3:
            raise ValueError("the hidden layer has no members")
        members, _, hidden = rest["inner_MFH"].shape
        with torch.device("meta"):
            net = ListNet(len(names), hidden, members)
        net.load_state_dict(rest, assign=True)
        if mean_F.shape != (len(names),) or scale_F.shape != (len(names),) or not bool((scale_F > 0).all()):
            raise ValueError("mean and scale do not fit the features")
        if not all(bool(tensor.isfinite().all()) for tensor in (mean_F, scale_F, *rest.values())):
            raise ValueError("it holds numbers that are not finite")
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"weight {weight}")
        net = net.eval().requires_grad_(False)
        return cls(names=tuple(names), mean_F=mean_F, scale_F=scale_F, net=net, weight=weight, knows_new=knows_new)


def neutral_on_new(added_BK: Tensor, is_new_BK: Tensor, known_BK: Tensor) -> Tensor:
    """[B, K] with the mean of the other candidates in the places of items without training events.

    Args:
        known_BK: [B, K] bool, places that are not padded.

    >>> neutral_on_new(torch.tensor([[1.0, 9.0, 3.0]]), torch.tensor([[False, True, False]]), torch.ones(1, 3).bool())
    tensor([[1., 2., 3.]])
    """
    others_BK = known_BK & ~is_new_BK
    mean_B1 = (added_BK * others_BK).sum(1, keepdim=True) / others_BK.sum(1, keepdim=True).clamp_min(1)
    return torch.where(is_new_BK, mean_B1, added_BK)
