"""Figures of predicted action probabilities over the slates of a split, with their intervals.

Suffixes: R = rows with a known label, A = actions, S = rows of the split, U = users, B = resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from recsys.bootstrap import NUM_RESAMPLES, bounds, resampled
from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.ranking import SlatePredictions
from recsys.ranking_metrics import auc, gauc, grouped_auc, logloss, logloss_rows, ndcg_groups

__all__ = ["FIGURES", "ActionFigures", "SlateRows", "action_minus", "bundle_probabilities", "slate_rows", "value_row"]

FIGURES = ("auc", "gauc", "logloss", "ndcg@10")
MIN_RESAMPLES = 200
RESAMPLED_ROWS = 2 * 10**8
"""Rows times resamples of an action's intervals; larger splits get fewer resamples, at least 200."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SlateRows:
    """The rows of a split's slates, in the order of the log."""

    row_S: Ints
    """Rows of the :class:`recsys.events.SlateLog`."""
    slate_S: Ints
    user_S: Ints
    yes_S: Ints
    known_S: Ints


def slate_rows(dataset: Dataset, split: int) -> SlateRows | None:
    """The rows of a split (1 = validation, 2 = test); None where there are none."""
    slates = dataset.slates
    if slates is None:
        return None
    slate_of = np.repeat(np.arange(len(slates)), np.diff(slates.offsets))
    row_S = np.flatnonzero(slates.split[slate_of] == split)
    if not len(row_S):
        return None
    slate_S = slate_of[row_S]
    return SlateRows(row_S, slate_S, slates.user[slate_S], slates.yes[row_S], slates.known[row_S])


def value_row(dataset: Dataset, predicted: SlatePredictions) -> dict[str, Any] | None:
    """How well predicted values fit: mean absolute error of ln(1 + value) and Spearman's rank correlation.

    None where the model predicts no values or the rows hold none.
    """
    slates = dataset.slates
    if predicted.log_value_R is None or slates is None:
        return None
    value_R = slates.value[predicted.row_R]
    known_R = ~np.isnan(value_R)
    if not known_R.any():
        return None
    wanted_R = np.log1p(np.maximum(value_R[known_R], 0).astype(np.float64))
    found_R = predicted.log_value_R[known_R].astype(np.float64)
    row: dict[str, Any] = {"num_rows": int(known_R.sum()), "log_mae": float(np.abs(found_R - wanted_R).mean())}
    row["log_mae_of_median"] = float(np.abs(np.median(wanted_R) - wanted_R).mean())
    ranks = [rankdata(values) for values in (wanted_R, found_R)]
    if all(rank_R.std() > 0 for rank_R in ranks):
        row["spearman"] = float(np.corrcoef(*ranks)[0, 1])
    return row


def bundle_probabilities(
    bundle: Bundle, rows: SlateRows, predicted: SlatePredictions
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """[S, A] what a bundle serves for the rows of a split, and the same before calibration."""
    place = np.searchsorted(rows.row_S, predicted.row_R)

    def in_order(prob_RA: NDArray[np.float32]) -> NDArray[np.float32]:
        prob_SA = np.full((len(rows.row_S), prob_RA.shape[1]), np.nan, dtype=np.float32)
        prob_SA[place] = prob_RA
        return prob_SA

    return in_order(predicted.calibrated_RA(bundle.calibration)), in_order(predicted.prob_RA)


class ActionFigures:
    """AUC, GAUC, log loss and slate NDCG@10 of one action over the rows whose label is known.

    Args:
        rows: of the split.
        action: bit of the action.
        prob_S: [S] probabilities of the rows.
        seed: of the intervals; the same for figures that are to be compared.
        raw_S: [S] the same probabilities before calibration, for their log loss.
    """

    def __init__(
        self,
        rows: SlateRows,
        action: int,
        prob_S: NDArray[np.float32],
        *,
        seed: int,
        raw_S: NDArray[np.float32] | None = None,
    ) -> None:
        known_S = (rows.known_S >> action & 1).astype(bool)
        self._yes_R = (rows.yes_S[known_S] >> action & 1).astype(bool)
        self._prob_R = prob_S[known_S].astype(np.float64)
        self._raw_R = None if raw_S is None else raw_S[known_S].astype(np.float64)
        self._slate_R = rows.slate_S[known_S]
        self._users, self._user_R = np.unique(rows.user_S[known_S], return_inverse=True)
        self._seed = seed
        self._figures_BM: Floats | None = None

    @property
    def num_rows(self) -> int:
        return len(self._yes_R)

    def values(self) -> Floats:
        """The four of :data:`FIGURES`; NaN where the labels do not define one."""
        _, ndcg_G = ndcg_groups(self._yes_R, self._prob_R, self._slate_R)
        figures = (
            auc(self._yes_R, self._prob_R),
            gauc(self._yes_R, self._prob_R, self._user_R),
            logloss(self._yes_R, self._prob_R),
            ndcg_G.mean() if len(ndcg_G) else np.nan,
        )
        return np.array(figures, dtype=np.float64)

    def resamples(self) -> Floats:
        """[B, 4] the same over resampled users."""
        if self._figures_BM is None:
            count = int(np.clip(RESAMPLED_ROWS // max(1, self.num_rows), MIN_RESAMPLES, NUM_RESAMPLES))
            self._figures_BM = resampled(self._weighted(), len(self._users), seed=self._seed, resamples=count)
        return self._figures_BM

    def row(self) -> dict[str, Any]:
        """Figures and intervals as the JSON holds them; an undefined one is absent."""
        out: dict[str, Any] = {"num_rows": self.num_rows, "num_yes": int(self._yes_R.sum())}
        for name, value, interval in zip(FIGURES, self.values(), bounds(self.resamples()), strict=True):
            if not np.isnan(value):
                out[name] = float(value)
                out[f"{name}_ci"] = list(interval)
        if self._raw_R is not None and self.num_rows:
            out["logloss_uncalibrated"] = float(logloss(self._yes_R, self._raw_R))
        return out

    def _weighted(self) -> Any:
        """A function from the weights of users to the four figures."""
        yes_R, prob_R, user_R, num_users = self._yes_R, self._prob_R, self._user_R, len(self._users)
        order_R = np.argsort(prob_R, kind="stable")
        sorted_yes, sorted_user = yes_R[order_R], user_R[order_R]
        tie_low = np.searchsorted(prob_R[order_R], prob_R[order_R][sorted_yes], side="left")
        tie_high = np.searchsorted(prob_R[order_R], prob_R[order_R][sorted_yes], side="right")
        per_user = grouped_auc(yes_R, prob_R, user_R)
        gauc_rows_U = np.where(np.isnan(per_user.auc_G), 0, per_user.num_rows_G).astype(np.float64)
        gauc_sum_U = np.nan_to_num(per_user.auc_G) * gauc_rows_U
        loss_U = np.bincount(user_R, logloss_rows(yes_R, prob_R), minlength=num_users)
        rows_U = np.bincount(user_R, minlength=num_users)
        slate_G, ndcg_G = ndcg_groups(yes_R, prob_R, self._slate_R)
        slates, first_R = np.unique(self._slate_R, return_index=True)
        user_G = user_R[first_R[np.searchsorted(slates, slate_G)]]
        ndcg_U = np.bincount(user_G, ndcg_G, minlength=num_users)
        slates_U = np.bincount(user_G, minlength=num_users)

        def figures(weight_U: Floats) -> Floats:
            weight_R = weight_U[sorted_user]
            no_R1 = np.concatenate([[0.0], np.cumsum(np.where(sorted_yes, 0.0, weight_R))])
            yes_weight = weight_R[sorted_yes]
            wins = (yes_weight * (no_R1[tie_low] + no_R1[tie_high])).sum() / 2.0
            return np.array(
                [
                    _ratio(wins, yes_weight.sum() * no_R1[-1]),
                    _ratio(weight_U @ gauc_sum_U, weight_U @ gauc_rows_U),
                    _ratio(weight_U @ loss_U, weight_U @ rows_U),
                    _ratio(weight_U @ ndcg_U, weight_U @ slates_U),
                ]
            )

        return figures


def action_minus(ours: ActionFigures, other: ActionFigures) -> dict[str, Any]:
    """Ours less the other's figures of one action over the same rows, with paired intervals."""
    out: dict[str, Any] = {}
    difference, intervals = ours.values() - other.values(), bounds(ours.resamples() - other.resamples())
    for name, value, interval in zip(FIGURES, difference, intervals, strict=True):
        if not np.isnan(value):
            out[f"{name}_minus"] = float(value)
            out[f"{name}_minus_ci"] = list(interval)
    return out


def _ratio(top: Any, bottom: Any) -> float:
    return float(top / bottom) if bottom > 0 else float("nan")
