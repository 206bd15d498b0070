"""The lists of one training: those that are learned from, those that choose the epoch, those that are held out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.pipelines.rerank_lists import TRAIN, RerankLists, lists_of, slate_lists

__all__ = ["FitLists", "validation_users"]

_TRAIN_SHARE = 0.8
"""Of the users with a validation target, where their lists train; the others choose the epoch."""


def validation_users(dataset: Dataset, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Internal users whose validation targets are learned from, and the others."""
    user_U = np.random.default_rng([seed, 1]).permutation(dataset.requests("validation").user)
    cut = int(_TRAIN_SHARE * len(user_U))
    return user_U[:cut], user_U[cut:]


class FitLists:
    """The three sets of lists, no user's target in two of them."""

    def __init__(
        self, bundle: Bundle, dataset: Dataset, k: int, retriever: str, rank_by: str | None, seed: int
    ) -> None:
        self._bundle, self._dataset, self._seed = bundle, dataset, seed
        self._of: dict[str, Any] = {"k": k, "seed": seed, "retriever": retriever, "rank_by": rank_by}
        self._train_U, self._other_U = validation_users(dataset, seed)

    def learned(self, kind: str, count: int, *, add_missing: bool) -> RerankLists:
        """Lists to learn from."""
        if kind == "slates":
            return slate_lists(self._dataset, TRAIN, count, self._seed, k=self._of["k"])
        return self._hits(kind, count, self._train_U if kind == "validation" else None, add_missing=add_missing)

    def judged(self, kind: str, count: int) -> RerankLists:
        """Lists that choose the epoch."""
        if kind == "slates":
            return slate_lists(self._dataset, "validation", count, self._seed, k=self._of["k"])
        return self._hits("validation", count, self._other_U)

    def held_out(self, kind: str, count: int) -> RerankLists:
        """Lists of the test split."""
        if kind == "slates":
            return slate_lists(self._dataset, "test", count, self._seed, k=self._of["k"])
        return self._hits("test", count, None)

    def _hits(self, split: str, count: int, users: Any, *, add_missing: bool = False) -> RerankLists:
        found = lists_of(
            self._bundle, self._dataset, split, num_users=count, users=users, hits_only=True,
            add_missing=add_missing, **self._of,
        )  # fmt: skip
        if not len(found):
            raise InputError(
                f"no {split} target of {self._dataset.path} is among the first {self._of['k']} of "
                f"{self._of['retriever']}; ask for a larger --k, or learn with --add-missing"
            )
        return found
