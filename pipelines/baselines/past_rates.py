"""Past rates: how often an action happened before, of an item, a user, an item or user on a surface, and overall.

Every figure for a slate uses events strictly before the slate's time. Of other people's events, a leave-one-out split
uses the training ones only; a split by time needs no such rule, since whatever lies before a slate was known then.

Suffixes: N = events, S = slates, R = slate rows, A = actions, B = rows asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recsys.errors import InputError
from recsys.event_counts import EventCounts, mask_bits
from recsys.pipelines.baselines.training_matrix import event_users, is_training

if TYPE_CHECKING:
    from recsys.dataset import Dataset
    from recsys.events import SlateLog

__all__ = ["GROUPS", "PastCounts", "PastRates", "past_counts", "fit_past_rates", "slates_of"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

GROUPS = ("all", "surface", "item", "user", "item_surface", "user_surface")
"""What the past is counted over; ``all`` is every event."""


@dataclass(frozen=True, slots=True)
class PastCounts:
    """Per group [B, A] events before the slate in which the action happened, and in which it was recorded."""

    yes: dict[str, Floats]
    known: dict[str, Floats]

    def rate(self, group: str, prior_BA: Floats, strength: float) -> Floats:
        """[B, A] share of recorded events with the action, ``strength`` further events having the prior share."""
        return (self.yes[group] + strength * prior_BA) / (self.known[group] + strength)


def slates_of(dataset: Dataset) -> SlateLog:
    """The slates of a dataset.

    Raises:
        InputError: it has none.
    """
    if dataset.slates is None:
        raise InputError(f"{dataset.path} has no slates to rank; prepare it with --impressions FILE")
    return dataset.slates


def past_counts(dataset: Dataset, rows_B: Ints) -> PastCounts:
    """Counts of each group for rows of ``dataset.slates``, from events strictly before the row's slate."""
    slates, events, num_actions = slates_of(dataset), dataset.events, len(dataset.manifest.actions)
    slate_R = np.repeat(np.arange(len(slates)), np.diff(slates.offsets))
    slate_B = slate_R[rows_B]
    time_B, user_B = slates.timestamp[slate_B], slates.user[slate_B]
    item_B, surface_B = slates.item[rows_B], slates.surface[rows_B]
    user_N = event_users(dataset)
    num_surfaces = len(dataset.manifest.surfaces)
    shared_N = is_training(dataset) if dataset.manifest.split["kind"] == "leave-one-out" else slice(None)
    keys: dict[str, tuple[Ints, Ints]] = {
        "all": (np.zeros(len(events), dtype=np.int64), np.zeros(len(rows_B), dtype=np.int64)),
        "surface": (events.surface, surface_B),
        "item": (events.item, item_B),
        "item_surface": (events.item * num_surfaces + events.surface, item_B * num_surfaces + surface_B),
        "user": (user_N, user_B),
        "user_surface": (user_N * num_surfaces + events.surface, user_B * num_surfaces + surface_B),
    }
    yes, known = {}, {}
    for group, (key_N, key_B) in keys.items():
        keep_N = slice(None) if group.startswith("user") else shared_N
        time_N, yes_N, known_N = (column[keep_N] for column in (events.timestamp, events.yes, events.known))
        counts = EventCounts(key_N[keep_N], time_N, yes_N, known_N, num_actions)
        counts_BX = counts.before(key_B, time_B).astype(np.float64)
        yes[group], known[group] = counts_BX[:, :num_actions], counts_BX[:, num_actions:]
    return PastCounts(yes, known)


STRENGTHS = (5.0, 20.0, 80.0)
USER_WEIGHTS = (0.0, 0.5, 1.0)


class PastRates:
    """The item's odds, times the user's odds against everybody's to some power; no training beyond three settings."""

    name = "past_rates"

    def __init__(self, dataset: Dataset) -> None:
        self.settings: dict[str, dict[str, float | bool]] = {}
        """Per action: ``strength`` of the smoothing, ``user_weight``, ``by_surface``."""
        rows_B = rows_of_split(dataset, 1)
        counts = past_counts(dataset, rows_B)
        yes_BA, known_BA = row_labels(dataset, rows_B)
        grid = [(m, w, s) for s in (True, False) for m in STRENGTHS for w in USER_WEIGHTS]
        losses = np.array([_losses(_combine(counts, *setting), yes_BA, known_BA) for setting in grid])
        for action, name in enumerate(dataset.manifest.actions):
            strength, weight, by_surface = grid[int(losses[:, action].argmin())] if len(rows_B) else (20.0, 1.0, True)
            self.settings[name] = {"strength": strength, "user_weight": weight, "by_surface": by_surface}

    def predict(self, dataset: Dataset, split: int) -> dict[str, NDArray[np.float32]]:
        """Probabilities over all slate rows, NaN outside ``split``."""
        rows_B = rows_of_split(dataset, split)
        counts = past_counts(dataset, rows_B)
        out = {}
        for action, name in enumerate(dataset.manifest.actions):
            setting = self.settings[name]
            prob_BA = _combine(counts, setting["strength"], setting["user_weight"], bool(setting["by_surface"]))
            out[name] = np.full(len(slates_of(dataset).item), np.nan, dtype=np.float32)
            out[name][rows_B] = prob_BA[:, action]
        return out


def fit_past_rates(dataset: Dataset) -> PastRates:
    """Settings chosen per action by log loss on the validation slates."""
    return PastRates(dataset)


def rows_of_split(dataset: Dataset, split: int) -> Ints:
    """Rows of the slates of a split."""
    slates = slates_of(dataset)
    return np.flatnonzero(np.repeat(slates.split == split, np.diff(slates.offsets)))


def row_labels(dataset: Dataset, rows_B: Ints) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """[B, A] whether each action happened, and whether that was recorded."""
    slates, num_actions = slates_of(dataset), len(dataset.manifest.actions)
    return mask_bits(slates.yes[rows_B], num_actions), mask_bits(slates.known[rows_B], num_actions)


def smoothed_rates(counts: PastCounts, strength: float) -> dict[str, Floats]:
    """[B, A] per group: each rate leans on the wider group's where it has few events."""
    overall = counts.rate("all", np.full_like(counts.yes["all"], 0.5), 1.0)
    surface = counts.rate("surface", overall, strength)
    return {
        "all": overall,
        "surface": surface,
        "item": counts.rate("item", overall, strength),
        "user": counts.rate("user", overall, strength),
        "item_surface": counts.rate("item_surface", surface, strength),
        "user_surface": counts.rate("user_surface", surface, strength),
    }


def _combine(counts: PastCounts, strength: float, user_weight: float, by_surface: bool) -> Floats:
    rates = smoothed_rates(counts, strength)
    item, user, base = ("item_surface", "user_surface", "surface") if by_surface else ("item", "user", "all")
    odds = {group: _log_odds(rates[group]) for group in (item, user, base)}
    return 1 / (1 + np.exp(-(odds[item] + user_weight * (odds[user] - odds[base]))))


def _log_odds(prob: Floats) -> Floats:
    prob = np.clip(prob, 1e-5, 1 - 1e-5)
    return np.log(prob / (1 - prob))


def _losses(prob_BA: Floats, yes_BA: NDArray[np.bool_], known_BA: NDArray[np.bool_]) -> Floats:
    """[A] log loss over the recorded rows."""
    loss_BA = -np.log(np.where(yes_BA, prob_BA, 1 - prob_BA))
    return (loss_BA * known_BA).sum(0) / np.maximum(known_BA.sum(0), 1)
