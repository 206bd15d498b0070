"""The model as two programs of plain tensors, written so that ``torch.export`` and ONNX can hold them.

The query tower reads raw events, oldest first and padded on the right: gaps, calendar, positions, ages and the window
are made inside. It returns the query vector and a user state: keys and values of every layer, and what else candidates
read of a history; nothing in the state depends on the request. The candidate scorer reads a state and returns
calibrated probabilities of every action. Both compute what :meth:`recsys.model.UnifiedModel.query` and
:meth:`~recsys.model.UnifiedModel.rank` compute.

Suffixes: B = requests, L = events (padded), C = candidates, D = width, Y = layers, H = heads, E = width of a head,
A = actions, K = features of users, F = features of candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from recsys.calibration import Calibration
from recsys.candidate_features import feature_width
from recsys.errors import InputError
from recsys.layouts import ActionInput
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.packing import CandidateRows
from recsys.time_features import UNKNOWN_GAP, request_gap

__all__ = ["CandidateScorer", "Port", "QueryTower", "check_exportable"]

Kind = Literal["int64", "bool", "float32"]


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of a program."""

    name: str
    dtype: Kind
    dims: tuple[str | int, ...]
    """Sizes; ``requests``, ``events`` and ``candidates`` may differ from call to call."""
    meaning: str


def check_exportable(config: ModelConfig) -> None:
    """Refuse a model with parts that these programs do not compute.

    Raises:
        InputError: one line naming the part.
    """
    for wrong, what in (
        (config.layout != "mam", f"the layout {config.layout!r}; only 'mam' has one row per event with its own action"),
        (config.positives_only, "positives_only; its histories are filtered before they are read"),
    ):
        if wrong:
            raise InputError(f"programs cannot hold a model with {what}; train one without it, or serve its bundle")


class QueryTower(nn.Module):
    """Events of a user and a request, to a query vector and a user state."""

    def __init__(self, model: UnifiedModel) -> None:
        super().__init__()
        check_exportable(model.config)
        self.model, self.config = model, model.config

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Keywords of :meth:`forward`, in order."""
        config, rows = self.config, ("requests", "events")
        bits = "bit a is action a of bundle.json"
        user = (
            (Port("user", "float32", ("requests", config.user_dim), "features of the user; zeros where unknown"),)
            if config.user_dim
            else ()
        )
        return (
            Port("item", "int64", rows, f"row of the item in items.parquet, 0 to {config.num_items - 1}; -1 = unknown"),
            Port("yes", "int64", rows, f"actions that happened; {bits}"),
            Port("known", "int64", rows, f"actions that the log would have recorded, those that happened too; {bits}"),
            Port("time", "int64", rows, "seconds since 1970, never falling along a row (an order index without clock)"),
            Port("time_known", "bool", rows, "whether the time is to be trusted"),
            Port("surface", "int64", rows, "place of the surface in bundle.json; 0 = unknown"),
            Port("length", "int64", ("requests",), "events of the row that are real; the rest is padding; 0 = nothing"),
            Port("at", "int64", ("requests",), "time of the request"),
            Port("at_surface", "int64", ("requests",), "surface of the request; 0 = unknown"),
            *user,
        )

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The query of this request, then the state of the user, which no part of the request enters."""
        said = "the score of item i is the inner product with row i of vectors.safetensors"
        return (Port("query", "float32", ("requests", self.config.dim), said), *state_ports(self.config))

    def forward(
        self,
        item: Tensor,
        yes: Tensor,
        known: Tensor,
        time: Tensor,
        time_known: Tensor,
        surface: Tensor,
        length: Tensor,
        at: Tensor,
        at_surface: Tensor,
        user: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """:attr:`inputs` to :attr:`outputs`; the window rule of the model picks the events that are seen."""
        model, config = self.model, self.config
        num_requests, num_events = item.shape
        over_B = (length - config.window).clamp_min(0)
        first_B = (over_B + config.stride - 1) // config.stride * config.stride
        num_rows_B = length - first_B
        place_L = torch.arange(num_events, device=item.device)
        from_BL = (place_L + first_B[:, None]).clamp_max(num_events - 1)
        real_BL = place_L < num_rows_B[:, None]

        def seen(values_BL: Tensor, padding: int) -> Tensor:
            return torch.where(real_BL, values_BL.gather(1, from_BL), padding)

        item_BL = _inside(seen(item, -1), config.num_items, -1)
        yes_BL, known_BL, time_BL = seen(yes, 0), seen(known, 0), seen(time, 0)
        surface_BL = _inside(seen(surface, 0), config.num_surfaces, 0)
        time_known_BL = time_known.gather(1, from_BL) & real_BL
        before_L = (place_L - 1).clamp_min(0)
        both_BL = time_known_BL & time_known_BL.index_select(1, before_L) & (place_L > 0)
        gap_BL = torch.where(both_BL, (time_BL - time_BL.index_select(1, before_L)).clamp_min(0), UNKNOWN_GAP)
        position_BL = place_L.clamp_max(config.window).expand(num_requests, num_events)
        positive_BL = (yes_BL & config.positive_mask != 0) & real_BL
        context = model.tokens.context(surface_BL, time_BL, time_known_BL, gap_BL)
        actions = ActionInput(yes_BL, known_BL, torch.zeros_like(real_BL))
        x_BLD = model.tokens(model.items.rows(item_BL), actions, context, position_BL, _ages(positive_BL))
        z_BLD, cache = model.encoder.padded(x_BLD, time_BL, time_known_BL)

        end_B1 = (num_rows_B - 1).clamp_min(0)[:, None]
        has_any_B = num_rows_B > 0
        last_BD = z_BLD.gather(1, end_B1[..., None].expand(-1, 1, config.dim))[:, 0]
        last_BD = torch.where(has_any_B[:, None], last_BD, model.start_D)
        knows_last_B = has_any_B & time_known_BL.gather(1, end_B1)[:, 0]
        last_time_B = torch.where(knows_last_B, time_BL.gather(1, end_B1)[:, 0], -1)
        newest_B = torch.where(positive_BL, place_L, -1).amax(1)
        user_BD = model.user_vectors(num_requests, user)
        query_BD = model.query_packed(
            last_BD, _inside(at_surface, config.num_surfaces, 0), at, torch.ones_like(at, dtype=torch.bool),
            request_gap(at, last_time_B), user_BD,
        )  # fmt: skip
        age_B = torch.where(newest_B >= 0, num_rows_B - newest_B, 0)
        keys, values = (torch.stack([layer[part] for layer in cache]) for part in (0, 1))
        found = (query_BD, keys, values, time_BL, time_known_BL, num_rows_B, last_time_B, age_B)
        return {port.name: value for port, value in zip(self.outputs, found, strict=True)}


class CandidateScorer(nn.Module):
    """A user state and items, to the calibrated probability of every action of each item."""

    def __init__(self, model: UnifiedModel, calibration: Calibration) -> None:
        super().__init__()
        check_exportable(model.config)
        if model.action_head is None:
            raise InputError("this model has no ranking head, so there is no candidate scorer to export")
        self.model, self.config, self.calibration = model, model.config, calibration

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Keywords of :meth:`forward`, in order."""
        config, pairs = self.config, ("requests", "candidates")
        more = []
        if config.user_dim:
            more.append(Port("user", "float32", ("requests", config.user_dim), "as the query tower reads them"))
        if feature_width(config):
            said = "past rates, then memory terms, as recsys.candidate_features.CandidateFeatures.of() makes them"
            more.append(Port("features", "float32", (*pairs, feature_width(config)), said))
        return (
            *state_ports(config),
            Port("item", "int64", pairs, "rows of items.parquet; -1 = padding, whose probabilities mean nothing"),
            Port("at", "int64", ("requests",), "time of the request"),
            Port("at_surface", "int64", pairs, "surface of each candidate; 0 = unknown"),
            *more,
        )

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The probabilities."""
        dims = ("requests", "candidates", self.config.num_actions)
        return (Port("probability", "float32", dims, "of each action of bundle.json, calibrated"),)

    def forward(
        self,
        keys: Tensor,
        values: Tensor,
        seen_time: Tensor,
        seen_time_known: Tensor,
        num_rows: Tensor,
        last_time: Tensor,
        positive_age: Tensor,
        item: Tensor,
        at: Tensor,
        at_surface: Tensor,
        user: Tensor | None = None,
        features: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """:attr:`inputs` to :attr:`outputs`."""
        model, config = self.model, self.config
        num_requests, columns = item.shape

        def each(values_B: Tensor) -> Tensor:
            return values_B[:, None].expand(num_requests, columns).reshape(num_requests * columns)

        item_N = _inside(item, config.num_items, -1).reshape(num_requests * columns)
        surface_N = _inside(at_surface, config.num_surfaces, 0).reshape(num_requests * columns)
        rows = CandidateRows(
            sequence_Q=torch.arange(num_requests, device=item.device), place_N=None, columns=columns,
            item_N=item_N, time_N=each(at), surface_N=surface_N, visible_N=each(num_rows),
        )  # fmt: skip
        vector_ND = model.items.rows(item_N)
        hidden = ActionInput(torch.zeros_like(item_N), torch.zeros_like(item_N), torch.ones_like(item_N).bool())
        x_ND = model.candidate_tokens(
            vector_ND, hidden, surface_N, rows.time_N, each(request_gap(at, last_time)), rows.visible_N,
            each(positive_age),
        )  # fmt: skip
        z_ND, _ = model.encoder.delta(
            x_ND, rows, list(zip(keys.unbind(0), values.unbind(0), strict=True)), num_rows[:, None], own="self",
            time_BN=at[:, None], time_known_BN=torch.ones_like(at, dtype=torch.bool)[:, None],
            time_BL=seen_time, time_known_BL=seen_time_known,
        )  # fmt: skip
        assert model.action_head is not None
        feature_NF = None if features is None else features.flatten(0, 1)
        user_BD = model.user_vectors(num_requests, user)
        user_ND = user_BD[:, None].expand(-1, columns, -1).reshape(num_requests * columns, user_BD.shape[1])
        logit_NA = model.action_head(z_ND, vector_ND, feature_RF=feature_NF, user_RD=user_ND)[:, : config.num_actions]
        prob_NA = self.calibration.probabilities(logit_NA)
        return {"probability": prob_NA.view(num_requests, columns, config.num_actions)}


def state_ports(config: ModelConfig) -> tuple[Port, ...]:
    """The user state that the tower returns and the scorer reads."""
    cache = (config.num_blocks, "requests", "events", config.num_heads, config.head_dim)
    return (
        Port("keys", "float32", cache, "keys of every layer"),
        Port("values", "float32", cache, "values of every layer"),
        Port("seen_time", "int64", ("requests", "events"), "times of the events that the window shows, 0 = padding"),
        Port("seen_time_known", "bool", ("requests", "events"), "whether each of them is known"),
        Port("num_rows", "int64", ("requests",), "events that the window shows"),
        Port("last_time", "int64", ("requests",), "time of the last one; -1 where there is none or it is not known"),
        Port("positive_age", "int64", ("requests",), "events since the last positive one; 0 where none is visible"),
    )


def _inside(index: Tensor, size: int, other: int) -> Tensor:
    """Indices below a size; others stand for what is not known."""
    return torch.where((index >= 0) & (index < size), index, other)


def _ages(positive_BL: Tensor) -> Tensor:
    """[B, L] as :func:`recsys.positive_age.positive_ages`, of rows that start their sequences."""
    place_L = torch.arange(positive_BL.shape[1], device=positive_BL.device)
    before_LL = place_L < place_L[:, None]
    newest_BL = torch.where(positive_BL[:, None] & before_LL, place_L, -1).amax(-1)
    return torch.where(newest_BL >= 0, place_L - newest_BL, 0)
