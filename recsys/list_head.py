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

__all__ = ["ListHead", "ListNet", "keep_places"]

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
    """Whether what it says of items without training events is worth hearing; else they keep their places."""

    def standardised(self, feature_BKF: Tensor) -> Tensor:
        """[B, K, F] features as the net reads them."""
        return ((feature_BKF - self.mean_F) / self.scale_F).clamp(-_MOST, _MOST)

    @torch.inference_mode()
    def added(self, feature_BKF: Tensor) -> Tensor:
        """[B, K] mean of the members, with weight 1."""
        added: Tensor = self.net(self.standardised(feature_BKF)).mean(0)
        return added

    def refined(self, score_BK: Tensor, feature_BKF: Tensor, is_new_BK: Tensor) -> Tensor:
        """[B, K] scores with what the net adds.

        Args:
            score_BK: by which the list stands in its order; -inf at padded places.
            is_new_BK: [B, K] bool, items without training events.
        """
        refined_BK = score_BK + self.weight * self.added(feature_BKF)
        return refined_BK if self.knows_new else keep_places(score_BK, refined_BK, is_new_BK)

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


def keep_places(given_BK: Tensor, score_BK: Tensor, is_new_BK: Tensor) -> Tensor:
    """[B, K] scores in whose order some items stand at the places that they have by other scores, and the rest, in the
    order of their own, at the places that are left.

    The rest keep their scores; the score of an item that keeps its place lies between those of its neighbours, or as
    far beyond the first or last of them as by the other scores.

    Args:
        given_BK: scores that say the places; -inf at padded ones. Equal ones stand in the order given, as below.
        score_BK: of the rest; -inf at the same places.
        is_new_BK: [B, K] bool, items that keep their places.

    >>> given, score = torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.tensor([[1.0, 9.0, 8.0, 6.0]])
    >>> keep_places(given, score, torch.tensor([[False, True, False, False]]))
    tensor([[1., 7., 8., 6.]])
    """
    size = score_BK.shape[1]
    if not size:
        return score_BK
    place_K = torch.arange(size, device=score_BK.device)
    given_BP, order_BP = given_BK.sort(dim=1, descending=True, stable=True)
    new_BP = is_new_BK.gather(1, order_BP)
    left_BP = new_BP.to(torch.uint8).argsort(dim=1, stable=True)
    rest_BP = score_BK.argsort(dim=1, descending=True, stable=True)
    rest_BP = rest_BP.gather(1, is_new_BK.gather(1, rest_BP).to(torch.uint8).argsort(dim=1, stable=True))
    is_rest_BP = place_K < (~is_new_BK).sum(1, keepdim=True)
    at_BP = order_BP.scatter(1, left_BP, torch.where(is_rest_BP, rest_BP, order_BP.gather(1, left_BP)))
    value_BP = score_BK.gather(1, at_BP)
    stands_BP = ~new_BP & (value_BP > -torch.inf)
    before_BP = torch.where(stands_BP, place_K, -1).cummax(1).values
    after_BP = torch.where(stands_BP, place_K, size).flip(1).cummin(1).values.flip(1)
    low_BP, high_BP = before_BP.clamp_min(0), after_BP.clamp_max(size - 1)
    above_BP, below_BP = value_BP.gather(1, low_BP), value_BP.gather(1, high_BP)
    between_BP = above_BP + (below_BP - above_BP) * (place_K - before_BP) / (after_BP - before_BP)
    first_BP = below_BP + (given_BP - given_BP.gather(1, high_BP))
    last_BP = above_BP - (given_BP.gather(1, low_BP) - given_BP)
    filled_BP = torch.where(before_BP < 0, torch.where(after_BP == size, given_BP, first_BP), between_BP)
    filled_BP = torch.where((before_BP >= 0) & (after_BP == size), last_BP, filled_BP)
    return score_BK.scatter(1, at_BP, torch.where(new_BP & (given_BP > -torch.inf), filled_BP, value_BP))
