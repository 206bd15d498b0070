"""The positive events of several datasets as one, for a model that knows items by what is said of them alone.

Suffixes: N = events, I = items of all catalogues one after the other, K = dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.pipelines.baselines.training_matrix import event_users
from recsys.pipelines.prepare.build import prepare_frames

__all__ = ["VECTORS", "united_data"]

VECTORS = "item_vectors"
"""Name of the one item feature of a united dataset."""


def united_data(datasets: Sequence[Dataset], vectors_IK: NDArray[np.float32], folder: Path) -> Dataset:
    """Users and items of all datasets in one, split leave-one-out.

    Ids count through the datasets in their order: item i of the second has the id ``datasets[0].num_items + i``.
    Nothing but the order of a user's positives is kept: actions, surfaces and clocks differ between domains.

    Args:
        datasets: prepared ones; their own splits are left aside, so that theirs may be of any kind.
        vectors_IK: of all their items, one after the other.
        folder: that appears.

    Raises:
        InputError: no dataset has a positive event.
    """
    parts, first_user, first_item = [], 0, 0
    for dataset in datasets:
        taken_N = dataset.is_positive()
        parts.append(
            pl.DataFrame(
                {
                    "user_id": event_users(dataset)[taken_N] + first_user,
                    "item_id": dataset.events.item[taken_N] + first_item,
                    "action": pl.repeat("took", int(taken_N.sum()), eager=True),
                }
            )
        )
        first_user, first_item = first_user + dataset.num_users, first_item + dataset.num_items
    events = pl.concat(parts)
    if not events.height:
        raise InputError(f"{', '.join(str(dataset.path) for dataset in datasets)}: no positive event to train on")
    # The rows are in order within each user, and that order is all that they keep of time.
    events = events.with_columns(timestamp=pl.int_range(pl.len()).over("user_id"))
    items = pl.DataFrame({"item_id": np.arange(first_item), VECTORS: vectors_IK})
    return prepare_frames(
        events, items, output=folder, item_features=(f"{VECTORS}:vector",), clock="order", split="leave-one-out"
    )
