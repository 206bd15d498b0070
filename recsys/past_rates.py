"""Past rates: how often each action followed before, of an item, a user, a surface, either on a surface, and overall.

Every figure rests on events strictly before a time, so a label is never in its own feature. A request without a
surface reads the figures of the whole, of its item and of its user in the place of the surface's.

Suffixes: B = rows asked for, X = counts (*yes* of every action, then *recorded*), Y = counts of every surface, those
of all events first; A = actions, F = features, C = candidates of a request.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.past_counts import GROUPS, PastLog, PastSource, group_keys, user_keys
from recsys.past_lift import item_lift
from recsys.smoothed_rates import overall_odds, rate_of, smoothed_odds

__all__ = [
    "COUNTED",
    "GROUPS",
    "log_features",
    "past_columns",
    "past_features",
    "past_tensor",
    "past_width",
    "without_surface",
]

COUNTED = ("item", "user", "item_surface", "user_surface")
"""Groups whose number of events is a feature: [A] log-odds per group in the order of :data:`GROUPS`, then the [A] lifts
of the item, then ln(1 + events) of these."""
USER_STRENGTH = 5.0
"""Users differ more than items do, so that fewer events of the wider group are put beside theirs."""

Ints = NDArray[np.int64]


def past_width(num_actions: int) -> int:
    """Number of features.

    >>> past_width(2)
    18
    """
    return (len(GROUPS) + 1) * num_actions + len(COUNTED)


def past_columns(place_A: Sequence[int], num_old_actions: int) -> list[int]:
    """[F] where each feature stood when the actions were others; -1 = nowhere.

    Args:
        place_A: where each action stood among the old ones, -1 = nowhere.

    >>> past_columns([-1, 0], 1)[:4], past_columns([-1, 0], 1)[-4:]
    ([-1, 0, -1, 1], [7, 8, 9, 10])
    """
    blocks = len(GROUPS) + 1
    columns = [block * num_old_actions + place if place >= 0 else -1 for block in range(blocks) for place in place_A]
    return columns + [blocks * num_old_actions + place for place in range(len(COUNTED))]


def past_features(
    source: PastSource,
    item_B: Ints,
    surface_B: Ints,
    time_B: Ints,
    user_BX: NDArray[np.integer],
    user_surface_BX: NDArray[np.integer],
) -> NDArray[np.float32]:
    """[B, F] features of rows; see :data:`GROUPS`.

    A rate leans on a wider one where events are few: the surface's, the item's and the user's on that of all events,
    the item's on a surface on that of the surface, the user's on a surface on that of the user. (Leaning an item's on
    its own odds too says the same thing twice: a logistic regression on the features ranked KuaiRand's slates worse,
    GAUC of long_view .630 against .639.)

    Args:
        source: of the counts. item_B: an item without events, or -1, stands at the overall rate.
        surface_B: 0 = unknown. time_B: of the request.
        user_BX: the users' own counts. user_surface_BX: on the surface of the row.
    """
    keys = {g: group_keys(g, item_B, surface_B, source.num_surfaces) for g in GROUPS if not g.startswith("user")}
    counts: dict[str, NDArray[np.integer]] = {g: source.counts(g, key_B, time_B) for g, key_B in keys.items()}
    odds = {"all": overall_odds(counts["all"])}
    overall_BA = rate_of(odds["all"])
    odds["surface"] = smoothed_odds(counts["surface"], overall_BA)
    odds["item"] = smoothed_odds(counts["item"], overall_BA)
    odds["user"] = smoothed_odds(user_BX, overall_BA, USER_STRENGTH)
    odds["item_surface"] = smoothed_odds(counts["item_surface"], rate_of(odds["surface"]))
    odds["user_surface"] = smoothed_odds(user_surface_BX, rate_of(odds["user"]), USER_STRENGTH)
    counts |= {"user": user_BX, "user_surface": user_surface_BX}
    events = {group: _events(counts[group]) for group in COUNTED}
    nowhere_B = surface_B <= 0
    odds["surface"][nowhere_B] = odds["all"][nowhere_B]
    for group in ("item", "user"):
        odds[f"{group}_surface"][nowhere_B] = odds[group][nowhere_B]
        events[f"{group}_surface"][nowhere_B] = events[group][nowhere_B]
    lift_BA = item_lift(source.surprises(item_B, time_B))
    columns = [*(odds[group] for group in GROUPS), lift_BA, *(events[group][:, None] for group in COUNTED)]
    return np.concatenate(columns, axis=1).astype(np.float32)


def _events(counts_BX: NDArray[np.integer]) -> NDArray[np.float64]:
    """[B] ln(1 + events) that recorded some action."""
    events_B: NDArray[np.float64] = np.log1p(
        counts_BX[:, counts_BX.shape[1] // 2 :].max(1, initial=0).astype(np.float64)
    )
    return events_B


def without_surface(feature_BF: Tensor, hidden_B: Tensor) -> Tensor:
    """The same features as a request sees them that does not say its surface, in the rows where ``hidden_B``."""
    num_actions = (feature_BF.shape[-1] - len(COUNTED)) // (len(GROUPS) + 1)
    all_, _, item, user, _, _, lift = feature_BF[..., : -len(COUNTED)].split(num_actions, -1)
    events = feature_BF[..., -len(COUNTED) :][..., [0, 1, 0, 1]]
    blind = torch.cat([all_, all_, item, user, item, user, lift, events], -1)
    return torch.where(hidden_B[..., None], blind, feature_BF)


def past_tensor(source: PastSource, user_BY: Tensor, item_BC: Tensor, at_B: Tensor, surface_BC: Tensor) -> Tensor:
    """[B, C, F] features of the candidates of requests, on their device.

    Args:
        user_BY: the users' own counts, as a user state holds them.
    """
    shape = item_BC.shape
    item_B, surface_B = (part.reshape(-1).cpu().numpy() for part in (item_BC, surface_BC))
    time_B = at_B.cpu().numpy().repeat(shape[1])
    own_BSX = user_BY.cpu().numpy().reshape(shape[0], source.num_surfaces, -1)
    user_B = np.arange(shape[0]).repeat(shape[1])
    feature_BF = past_features(source, item_B, surface_B, time_B, own_BSX[user_B, 0], own_BSX[user_B, surface_B])
    return torch.from_numpy(feature_BF).view(*shape, -1).to(item_BC.device)


def log_features(past: PastLog, user_B: Ints, item_B: Ints, surface_B: Ints, time_B: Ints) -> NDArray[np.float32]:
    """[B, F] features of rows as of their times, the users' own counts from the log too."""
    own = (
        past.counts(group, user_keys(group, user_B, surface_B, past.num_surfaces), time_B)
        for group in ("user", "user_surface")
    )
    return past_features(past, item_B, surface_B, time_B, *own)
