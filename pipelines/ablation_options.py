"""What an ablation changes: one setting of `fit` at a time, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.model_config import ModelConfig

__all__ = ["OPTIONS", "Option", "chosen_options"]

_Need = Literal["", "slates", "actions", "time", "content", "users"]


@dataclass(frozen=True, slots=True)
class Option:
    """Flags of `fit`, named as ``--model.FLAG``, that differ from the recipe."""

    name: str
    settings: dict[str, Any]
    needs: _Need = ""

    @property
    def flags(self) -> dict[str, str]:
        return {f"--model.{name}": str(value).lower() for name, value in self.settings.items()}


def _one(setting: str, *values: Any, needs: _Need = "") -> list[Option]:
    return [Option(f"{setting}={str(value).lower()}", {setting: value}, needs) for value in values]


OPTIONS = (
    *_one("block", "hstu", "ligr"),
    *_one("dropout", 0.2),
    Option("wider", {"dim": 96, "dropout": 0.2}),
    *_one("retrieval_loss", "sampled"),
    *_one("score", "cosine"),
    *_one("label_smoothing", 0.1),
    *_one("neighbour_targets", 0.0, needs="content"),
    *_one("crop", 0.5),
    *_one("time_encoding", "rotary", "both", "none", needs="time"),
    *_one("position_bias", True),
    *_one("positive_recency", True),
    Option("wide", {"dim": 128, "dropout": 0.5, "weight_decay": 0.2}),
    *_one("use_content", False, needs="content"),
    *_one("id_dropout", 0.0, 0.3, needs="content"),
    *_one("use_user_features", False, needs="users"),
    *_one("use_actions", False, needs="actions"),
    *_one("mask_prob", 0.1, 0.4, needs="actions"),
    *_one("layout", "interleaved", "lagged", needs="actions"),
    *_one("past_rates", False, True, needs="slates"),
    *_one("detach_candidates", False, True, needs="actions"),
    *_one("memory_features", False, True, needs="slates"),
    *_one("cross_layers", 2, needs="slates"),
    *_one("pairwise_weight", 0.5, needs="slates"),
)


def chosen_options(dataset: Dataset, recipe: ModelConfig, names: Sequence[str] | None) -> list[Option]:
    """The options that change something of a dataset's recipe.

    Args:
        dataset: to be trained on.
        recipe: of the dataset.
        names: of those wanted; None = all.

    Raises:
        InputError: an unknown name, or one that has no effect on this dataset.
    """
    has = {
        "": True,
        "slates": dataset.slates is not None and recipe.use_actions,
        "actions": recipe.use_actions,
        "time": recipe.use_time,
        "content": recipe.content_dim > 0,
        "users": recipe.user_dim > 0,
    }
    acting = {
        option.name: option
        for option in OPTIONS
        if has[option.needs] and any(getattr(recipe, name, None) != value for name, value in option.settings.items())
    }
    if names is None:
        return list(acting.values())
    known = {option.name for option in OPTIONS}
    for name in names:
        if name not in known:
            raise InputError(
                f"--options: there is no {name!r}; there are {', '.join(option.name for option in OPTIONS)}"
            )
        if name not in acting:
            raise InputError(f"--options: {name} changes nothing of what fit would choose for {dataset.path}; drop it")
    return [acting[name] for name in dict.fromkeys(names)]
