"""What a benchmark returns, and how it times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Case", "interleaved_seconds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One comparison. ``ratio`` says how many times better ours is than the other way, in the same run."""

    name: str
    shape: dict[str, Any]
    ours: dict[str, Any]
    other: dict[str, Any]
    ratio: float
    predicted_ratio: float | None
    """What counting work alone would say; None where nothing was predicted."""


def interleaved_seconds(ways: dict[str, Callable[[], object]], *, repeats: int) -> dict[str, float]:
    """Median seconds of each way. The ways take turns, so that a busy machine slows all of them alike; one warm-up
    round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(repeats + 1):
        for name, way in ways.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
