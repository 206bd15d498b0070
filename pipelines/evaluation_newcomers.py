"""How new users and new items fare: questions beside those of a split, each with a baseline that can answer it.

Suffixes: Q = requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recsys.dataset import Dataset
from recsys.events import Requests
from recsys.pipelines.evaluation_retrieval import figures_minus, mean_figures
from recsys.pipelines.scorer import Scorer
from recsys.pipelines.targets import RankedTargets, rank_all

__all__ = ["Question", "newcomer_segments", "questions", "rank_questions"]


@dataclass(frozen=True, slots=True)
class Question:
    """Requests that are a segment of their own."""

    name: str
    meaning: str
    requests: Requests
    beside: str
    """The baseline that answers the same requests, where it is asked for."""
    kept_as: str
    """The baseline's answers in the cache."""


def questions(dataset: Dataset, split: str) -> list[Question]:
    """What a split asks of the states of new users and, at the test, of items that were held out of training."""
    requests = dataset.requests(split)
    found = [
        Question(
            "new_users",
            "every user with a target, answered without any history",
            replace(requests, end=np.zeros_like(requests.end)),
            "popularity",
            f"{split}-new-users",
        )
    ]
    if split == "test" and dataset.has_cold_targets:
        share = dataset.manifest.settings.get("cold_items")
        found.append(
            Question(
                "cold_items",
                f"target among the {share:.0%} of the items that were held out of training",
                dataset.requests("cold"),
                "text_knn",
                "cold-items",
            )
        )
    return found


def rank_questions(
    asked: Sequence[Question], scorer: Scorer, dataset: Dataset, advance: Callable[[int], None] | None = None
) -> dict[str, RankedTargets]:
    """Ranks of every question that has requests, by its name."""
    return {
        question.name: rank_all([scorer], dataset, "test", requests=question.requests, advance=advance)[0]
        for question in asked
        if len(question.requests)
    }


def newcomer_segments(
    asked: Sequence[Question],
    ours: Mapping[str, RankedTargets],
    others: Mapping[str, RankedTargets],
    *,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """A row per question; under ``baselines`` that of the baseline, with how far ours is ahead of it.

    Args:
        asked: the questions.
        ours: our ranks, by question.
        others: ranks of the baselines, by question, where they ran.
        seed: of the intervals.
    """
    rows = {}
    for question in asked:
        user_Q = question.requests.user
        row: dict[str, Any] = {
            "num_users": len(np.unique(user_Q)),
            "num_targets": len(user_Q),
            "meaning": question.meaning,
        }
        if question.name in ours:
            row |= mean_figures(ours[question.name], seed=seed)
        if question.name in others:
            other = others[question.name]
            beside = mean_figures(other, seed=seed) | figures_minus(ours[question.name], other, seed=seed)
            row["baselines"] = {question.beside: beside}
        rows[question.name] = row
    return rows
