"""Requests of a split as the model takes them.

Suffixes: B = requests of a batch, E = items of a history.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from recsys.dataset import Dataset
from recsys.events import History, Requests

__all__ = ["exclusions", "request_tensors"]


def request_tensors(
    dataset: Dataset, requests: Requests, device: torch.device | str = "cpu"
) -> tuple[list[History], Tensor, Tensor, Tensor]:
    """The histories that requests may see, and [B] int64 times, surfaces and targets on a device."""
    log = dataset.events
    histories = [log.history(int(user), int(end)) for user, end in zip(requests.user, requests.end, strict=True)]
    at_B, surface_B, target_B = (
        torch.from_numpy(np.ascontiguousarray(column)).to(device)
        for column in (requests.timestamp, requests.surface, requests.target)
    )
    return histories, at_B, surface_B, target_B


def exclusions(histories: Sequence[History]) -> Tensor:
    """[B, E] int64 items of whole histories, −1 padded."""
    exclude_BE = torch.full((len(histories), max((len(history) for history in histories), default=0)), -1)
    for row_E, history in zip(exclude_BE, histories, strict=True):
        row_E[: len(history)] = torch.from_numpy(np.ascontiguousarray(history.item))
    return exclude_BE
