"""What a sweep tries: the settings that matter, each with its range and the value that `fit` would take."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from recsys.model_config import LayoutKind, ModelConfig
from recsys.pipelines.data_module import PreparedData
from recsys.pipelines.recipe import changed_model
from recsys.pipelines.unified_module import UnifiedModule

if TYPE_CHECKING:
    from optuna.trial import Trial

__all__ = ["Setting", "search_space"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One flag of `fit` and the values it may take: some by name, or a range of numbers."""

    flag: str
    default: Any
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    """None = on a logarithmic scale."""

    def draw(self, trial: Trial) -> Any:
        """A value for a trial; numbers of three digits, so that a printed command holds what was tried."""
        name = self.flag.rpartition(".")[2]
        if self.choices:
            return trial.suggest_categorical(name, self.choices)
        if isinstance(self.default, int):
            assert self.step is not None
            return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step))
        drawn = trial.suggest_float(name, self.low, self.high, step=self.step, log=self.step is None)
        return float(f"{drawn:.3g}")


def search_space(data: PreparedData, fixed: Mapping[str, str]) -> list[Setting]:
    """The settings to tune for a dataset.

    Args:
        data: the dataset with its recipe.
        fixed: flags that the caller gave, with their values: they are not tuned, nor is what they leave without effect.
    """
    model = _model(data.recipe.model, fixed)
    schedule = inspect.signature(UnifiedModule).parameters
    batch = data.examples(model).batch_tokens
    settings = [
        Setting(flag="--model.lr", default=schedule["lr"].default, low=2e-4, high=5e-3),
        Setting(flag="--model.weight_decay", default=schedule["weight_decay"].default, low=1e-3, high=1.0),
        Setting(flag="--data.batch_tokens", default=batch, choices=(max(1, batch // 2), batch, batch * 2)),
        Setting(flag="--model.dropout", default=model.dropout, low=0.0, high=0.6, step=0.05),
        Setting(flag="--model.dim", default=model.dim, low=32, high=128, step=32),
        Setting(flag="--model.num_blocks", default=model.num_blocks, low=1, high=4, step=1),
        Setting(flag="--model.num_heads", default=model.num_heads, choices=_heads(model, fixed)),
        _named("block", model),
    ]
    if model.content_dim:
        settings.append(Setting(flag="--model.id_dropout", default=model.id_dropout, low=0.0, high=0.5, step=0.05))
    if model.use_actions:
        settings.append(Setting(flag="--model.action_weight", default=model.action_weight, low=0.03, high=3.0))
        if model.layout == "mam":
            settings.append(Setting(flag="--model.mask_prob", default=model.mask_prob, low=0.05, high=0.5, step=0.05))
    settings.append(_named("score", model))
    settings.append(
        Setting(flag="--model.label_smoothing", default=model.label_smoothing, low=0.0, high=0.2, step=0.02)
    )
    return [setting for setting in settings if setting.flag not in fixed]


def _model(recipe: ModelConfig, fixed: Mapping[str, str]) -> ModelConfig:
    """The recipe's model with what was fixed. Values that do not fit are left to the first trial, which names them."""
    given: dict[str, Any] = {}
    for name in ("use_actions", "positives_only"):
        word = fixed.get(f"--model.{name}", "").lower()
        if word in ("true", "false"):
            given[name] = word == "true"
    if fixed.get("--model.use_content", "").lower() == "false":
        given["content_dim"] = 0
    if fixed.get("--model.layout") in get_args(LayoutKind):
        given["layout"] = fixed["--model.layout"]
    for name in ("dim", "num_heads"):
        word = fixed.get(f"--model.{name}", "")
        if word.isdecimal():
            given[name] = int(word)
    return changed_model(recipe, given)


def _heads(model: ModelConfig, fixed: Mapping[str, str]) -> tuple[int, ...]:
    """Numbers of heads that divide every width that may occur."""
    known = sorted({1, 2, 4, model.num_heads})
    return tuple(heads for heads in known if "--model.dim" not in fixed or model.dim % heads == 0)


def _named(name: str, model: ModelConfig) -> Setting:
    return Setting(
        flag=f"--model.{name}", default=getattr(model, name), choices=get_args(get_type_hints(ModelConfig)[name])
    )
