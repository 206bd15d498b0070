"""The networks of the neural tokenizers: layers with ReLU between, and their weights as arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import nn

__all__ = ["frozen_double", "mlp", "net_arrays"]

Net = TypeVar("Net", bound=nn.Module)


def mlp(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers from each width to the next, ReLU between them, weights as He et al. (arXiv 1502.01852)."""
    layers: list[nn.Module] = []
    for place, (wide, narrow) in enumerate(pairwise(widths), start=2):
        linear = nn.Linear(wide, narrow)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu" if place < len(widths) else "linear")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def net_arrays(net: nn.Module) -> dict[str, NDArray[Any]]:
    """The float32 weights by name."""
    return {name: tensor.float().cpu().numpy() for name, tensor in net.state_dict().items()}


def frozen_double(make: Callable[[], Net], arrays: Mapping[str, NDArray[Any]]) -> Net:
    """A network with given weights, in float64 and without gradients.

    In float64, rounded once to float32 at the end, a row's result does not show how many rows shared the product.

    Args:
        make: builds the network; on the meta device, so that no random number is drawn.
        arrays: the weights by name.

    Raises:
        ValueError: a weight is missing, or of another shape than the network's.
    """
    with torch.device("meta"):
        net = make()
    try:
        net.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()}, assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise ValueError(f"the weights do not fit the network ({first}); fit and save the tokenizer again") from None
    return net.double().eval().requires_grad_(False)
