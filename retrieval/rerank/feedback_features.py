"""Features of a list and a history, from one bundle; the history is encoded for them.

Suffixes: B = requests, K = candidates, L = history items, I = items, V = width of text vectors, U = features of a user.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.bundle import Bundle
from recsys.events import History
from recsys.retrieval.bundle_retrievers import bundle_retrievers
from recsys.retrieval.dense import DenseRetriever
from recsys.retrieval.list_features import ListFeatures, ListRows

__all__ = ["FeedbackFeatures"]

_HISTORY = 64
"""Newest items of a history that candidates are compared with."""


class FeedbackFeatures:
    """Features of the candidates of lists.

    Args:
        bundle: whose vectors, item graph and dense score are read.
        training_only: transitions of training events alone, as validation and test must.
        text_IV: [I', V] vectors of item texts; see :class:`recsys.retrieval.list_features.ListFeatures`.
    """

    def __init__(self, bundle: Bundle, *, training_only: bool = False, text_IV: Tensor | None = None) -> None:
        self.bundle = bundle
        dense = bundle_retrievers(bundle, ["dense"], training_only=training_only)["dense"]
        assert isinstance(dense, DenseRetriever)
        self.dense = dense
        graph = bundle.graph_train if training_only else bundle.graph_now
        self._lists = ListFeatures(dense, graph, text_IV=text_IV)
        self.names = self._lists.names
        """What stands in each column."""
        with torch.inference_mode():
            has_content = bundle.model.items.project is not None
            self._item_ID = bundle.model.items.table() if has_content else None

    @torch.inference_mode()
    def __call__(
        self,
        histories: Sequence[History],
        item_BK: Tensor,
        at_B: Tensor,
        surface_B: Tensor | None = None,
        user_BU: Tensor | NDArray[np.float32] | None = None,
    ) -> ListRows:
        """Features of lists.

        Args:
            histories: of B users.
            item_BK: [B, K] int64 candidates, -1 at padded places; no item twice in a row.
            at_B: [B] int64 times of the requests. surface_B: [B] int64; None = unknown.
            user_BU: [B, U] features of the users, rows of zeros where unknown; None = all unknown.
        """
        device = self.bundle.vectors.device
        item_BK, at_B = item_BK.to(device), at_B.to(device)
        surface_B = torch.zeros_like(at_B) if surface_B is None else surface_B.to(device)
        states = self.bundle.model.encode(histories, keep_cache=False, user_BK=user_BU, item_ID=self._item_ID)
        return self._lists(states, item_BK, _newest(histories).to(device), at_B, surface_B)


def _newest(histories: Sequence[History]) -> Tensor:
    """[B, L] known items, newest first, -1 padded."""
    rows: list[NDArray[np.int64]] = [history.item[history.item >= 0][::-1][:_HISTORY] for history in histories]
    out = np.full((len(rows), max(map(len, rows), default=0)), -1, dtype=np.int64)
    for row, items in zip(out, rows, strict=True):
        row[: len(items)] = items
    return torch.from_numpy(out)
