"""Groups of requests whose figures are looked at apart: by length of history, and by how well known the target is.

Suffixes: Q = requests, I = items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.dataset import Dataset
from recsys.events import Requests

__all__ = ["Segment", "segments"]

HEAD_SHARE = 0.2
"""Share of the trained catalogue that counts as head: its most frequent items."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A group of requests."""

    name: str
    meaning: str
    inside_Q: NDArray[np.bool_]


def segments(dataset: Dataset, requests: Requests) -> list[Segment]:
    """The groups of a split's requests; one may be empty, and a request is in several.

    Targets without a training event are ``cold_items``; where items were held out to be the targets of that name, the
    others are ``untrained_items``.
    Histories are cut at the terciles of their lengths, those of equal length together.
    """
    count_I = dataset.train_item_counts()
    head_I = _head(count_I)
    cold_I = count_I == 0
    length_Q, target_Q = requests.end, requests.target
    low, high = (int(bound) for bound in np.quantile(length_Q, [1 / 3, 2 / 3], method="lower"))
    cold_name = "untrained_items" if dataset.has_cold_targets else "cold_items"
    return [
        Segment("short_histories", f"at most {low} events", length_Q <= low),
        Segment("medium_histories", f"{low + 1} to {high} events", (length_Q > low) & (length_Q <= high)),
        Segment("long_histories", f"more than {high} events", length_Q > max(low, high)),
        Segment("cold_users", "no training event", dataset.train_end[requests.user] == 0),
        Segment("head_items", f"target among the {HEAD_SHARE:.0%} most frequent in training", head_I[target_Q]),
        Segment("tail_items", "target in training, but no head item", ~head_I[target_Q] & ~cold_I[target_Q]),
        Segment(cold_name, "target without a training event", cold_I[target_Q]),
    ]


def _head(count_I: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[I] the most frequent share of the items that have training events, equal counts by smaller id."""
    num_head = int(np.ceil(HEAD_SHARE * np.count_nonzero(count_I)))
    head_I = np.zeros(len(count_I), dtype=np.bool_)
    head_I[np.argsort(-count_I, kind="stable")[:num_head]] = True
    return head_I
