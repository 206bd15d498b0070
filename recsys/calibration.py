"""Probabilities that mean what they say: per action a temperature and an offset of the logits (Platt scaling).

Where it says more, an action has a rising curve beside them (isotonic regression, Zadrozny & Elkan, KDD 2002).

Suffixes: R = slate rows, A = actions, P = points of a curve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor

from recsys.isotonic_curve import IsotonicCurve
from recsys.logistic import fit_logistic

__all__ = ["Calibration"]

_PRIOR_ROWS = 10.0
"""How many rows' worth of curvature pull towards leaving the logits alone: rare actions change little."""
_SCALES = (0.1, 10.0)
_PLATT_SHARE = 0.02
"""What Platt scaling keeps beside a curve: flat steps of the curve rise too, so that the order of rows stays, and no
probability is 0 or 1 because a few rows agreed."""

_PARTS = ("logit", "probability")

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Probability = sigmoid(scale · logit + offset). Scales are positive, so that the order of rows stays.

    With a curve it is .98 · curve(logit) + .02 · that, which rises as well.
    """

    scale_A: Floats
    """1 / temperature."""
    offset_A: Floats
    curves: Mapping[int, IsotonicCurve] = field(default_factory=dict)
    """By action; none for those that Platt scaling serves as well."""

    @classmethod
    def identity(cls, num_actions: int) -> Calibration:
        """Logits as they are."""
        return cls(np.ones(num_actions), np.zeros(num_actions))

    @classmethod
    def fit(cls, logit_RA: NDArray[np.float32], yes_RA: NDArray[np.bool_], known_RA: NDArray[np.bool_]) -> Calibration:
        """The least log loss on rows that training did not see; an action without both outcomes stays as it is."""
        fitted = cls.identity(logit_RA.shape[1])
        for action in range(logit_RA.shape[1]):
            known_R = known_RA[:, action]
            yes_R = yes_RA[known_R, action]
            if yes_R.any() and not yes_R.all():
                pair = _scale_and_offset(logit_RA[known_R, action].astype(np.float64), yes_R)
                fitted.scale_A[action], fitted.offset_A[action] = pair
        return fitted

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing."""
        return bool((self.scale_A == 1).all() and (self.offset_A == 0).all()) and not self.curves

    def probabilities(self, logits: Tensor) -> Tensor:
        """[..., A] float32 probabilities of the logits of every action."""
        scale_A, offset_A = (
            torch.from_numpy(values).to(logits.device, torch.float32) for values in (self.scale_A, self.offset_A)
        )
        probability = torch.sigmoid(logits.float() * scale_A + offset_A)
        for action, curve in self.curves.items():
            platt = probability[..., action].double()
            mixed = (1 - _PLATT_SHARE) * curve(logits[..., action]) + _PLATT_SHARE * platt
            probability[..., action] = mixed.float()
        return probability

    def save(self, path: Path) -> None:
        """Write one file of plain arrays."""
        arrays = {"scale": self.scale_A, "offset": self.offset_A}
        for action, curve in self.curves.items():
            arrays |= {f"curve_logit_{action}": curve.logit_P, f"curve_probability_{action}": curve.probability_P}
        save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, path)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what :meth:`save` wrote; files from before there were curves hold none.

        Raises:
            ValueError: curves that do not rise, or of actions that there are not.
        """
        arrays = load_file(path)
        actions = [name.removeprefix("curve_logit_") for name in arrays if name.startswith("curve_logit_")]
        curves = {int(name): IsotonicCurve(*(arrays[f"curve_{part}_{name}"] for part in _PARTS)) for name in actions}
        if curves and not 0 <= min(curves) <= max(curves) < len(arrays["scale"]):
            raise ValueError(f"curves are of actions {sorted(curves)} and there are {len(arrays['scale'])} actions")
        return cls(arrays["scale"], arrays["offset"], curves)


def _scale_and_offset(logit_R: Floats, yes_R: NDArray[np.bool_]) -> tuple[float, float]:
    """Scale and offset of least penalised log loss."""
    mean, spread = float(logit_R.mean()), max(float(logit_R.std()), 1e-3)
    penalty_22 = 0.25 * _PRIOR_ROWS * np.array([[mean**2 + spread**2, mean], [mean, 1.0]])
    found = fit_logistic(np.stack([logit_R, np.ones_like(logit_R)], 1), yes_R, np.array([1.0, 0.0]), penalty_22)
    scale = float(np.clip(found[0], *_SCALES))
    # A clipped scale keeps the mean logit where it was.
    return scale, float(found[1] + (found[0] - scale) * mean)
