"""Training steps of the token layouts: one token per event, with its action hidden at random (``mam``), against items
and actions as tokens of their own (``interleaved``) and against an action that enters with the next event (``lagged``).

Same data, same users in a batch, same softmax and ranking losses; a batch holds as many events in all layouts, so that
an epoch has as many steps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import polars as pl
import torch

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.pipelines.bench.case import Case, interleaved_seconds
from recsys.pipelines.data_module import PreparedData
from recsys.pipelines.prepare.build import prepare_frames
from recsys.pipelines.simulate.command import simulate
from recsys.pipelines.unified_module import UnifiedModule

__all__ = ["bench_layouts"]

_STEPS = 4
_USERS, _ITEMS = 300, 600
Layout = Literal["mam", "interleaved", "lagged"]
_LAYOUTS: tuple[Layout, ...] = ("mam", "interleaved", "lagged")


def bench_layouts(*, long: bool, data: Path | None = None) -> list[Case]:
    """``mam`` against each of the others; on simulated data where none is given.

    Raises:
        InputError: the data has no actions.
    """
    if data is not None:
        return _cases(PreparedData(str(data), sids="none"), long=long)
    with tempfile.TemporaryDirectory() as folder:
        return _cases(PreparedData(str(_simulated(Path(folder)).path), sids="none"), long=long)


def _simulated(folder: Path) -> Dataset:
    simulate(folder / "raw", users=_USERS, items=_ITEMS)
    frames = {name: pl.read_parquet(folder / "raw" / f"{name}.parquet") for name in ("interactions", "impressions")}
    return prepare_frames(output=folder / "data", **frames)


def _cases(data: PreparedData, *, long: bool) -> list[Case]:
    if not data.recipe.model.use_actions:
        raise InputError(f"{data.dataset.path} has no actions that a layout could place; give data with some")
    steps: dict[str, Callable[[], object]] = {layout: _Training(data, layout) for layout in _LAYOUTS}
    seconds = interleaved_seconds(steps, repeats=40 if long else 10)
    mam = {"what": "mam", "ms_per_step": seconds["mam"] / _STEPS * 1e3}
    model = data.recipe.model
    shape = {"events": int(data.dataset.train_end.sum()), "items": model.num_items, "dim": model.dim, "steps": _STEPS}
    return [
        Case(
            name=f"mam against {layout}",
            shape=shape,
            ours=mam,
            other={"what": layout, "ms_per_step": seconds[layout] / _STEPS * 1e3},
            ratio=seconds[layout] / seconds["mam"],
            predicted_ratio=None,
        )
        for layout in _LAYOUTS[1:]
    ]


class _Training:
    """The same few training steps, as often as it is called."""

    def __init__(self, data: PreparedData, layout: Layout) -> None:
        torch.manual_seed(0)
        module = UnifiedModule(layout=layout)
        module.start(data)
        self.model, self.objective = module.model.train(), module.objective_of(data)
        examples = data.examples(module.config)
        self.batches = [examples.batch(step) for step in range(_STEPS)]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def __call__(self) -> None:
        for batch in self.batches:
            self.optimizer.zero_grad()
            self.objective(batch).total.backward()
            self.optimizer.step()
