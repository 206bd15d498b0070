"""A network for a dataset that grew, started from a checkpoint: what the caller's ids and names share is taken over.

Suffixes: I = items of the grown dataset, J = items of the checkpoint, S = items of both, D = width, C = content columns
of the grown dataset, B = those of the checkpoint, A = actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recsys.candidate_features import feature_columns
from recsys.errors import InputError
from recsys.heads import CrossLayer
from recsys.memory_features import readable_relations
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.pipelines.checkpoint import load_model, stored_names
from recsys.pipelines.data_module import PreparedData
from recsys.pipelines.item_codes import AUTO
from recsys.pipelines.model_codes import CODE_HEADS, carried_codes, set_codebooks, with_codes
from recsys.pipelines.unified_module import build_network
from recsys.tokenizers.table_columns import column_labels
from recsys.vocabulary import IdMap

__all__ = ["WarmStart", "warm_start"]

_FREE = frozenset(
    (
        "code_weight",
        "detach_codes",
        "dropout",
        "id_dropout",
        "surface_dropout",
        "user_dropout",
        "mask_prob",
        "retrieval_loss",
        "num_negatives",
        "softmax_factors",
        "label_smoothing",
        "crop",
        "neighbour_targets",
        "action_weight",
        "pairwise_weight",
        "detach_candidates",
    )
)
"""Settings of training alone: another value fits the same weights."""
_SAME_FEATURES = 0.5
"""Share of the old content's variance that the new content must explain to count as the same features."""
_RIDGE = 1e-4
"""Of a least-squares fit, relative to the mean square of its columns."""


@dataclass(frozen=True, slots=True)
class WarmStart:
    """A network with the weights of a checkpoint, and what people should know of how it came about."""

    network: UnifiedModel
    notes: tuple[str, ...]
    tokenizers: dict[str, Tensor] | None = None
    """Of the semantic IDs, as a checkpoint keeps them."""


def warm_start(data: PreparedData, changes: dict[str, Any], checkpoint: Path) -> WarmStart:
    """A network for ``data`` that scores the checkpoint's items, for the same histories, as the checkpoint does.

    New items start with what their content says, or as the mean item where there is none; new actions and surfaces
    start without an influence of their own. The optimiser starts afresh.

    Args:
        data: what will be trained on.
        changes: settings that were asked for by name.
        checkpoint: of a dataset whose items, actions and surfaces mostly occur here, under the same ids and names.

    Raises:
        InputError: the checkpoint cannot be read, holds no item ids, shares no item with the data, or has another
            setting than the one asked for.
    """
    old, meta = load_model(checkpoint)
    names, manifest = stored_names(meta, checkpoint), data.dataset.manifest
    config, notes = _config(data, changes, old.config, checkpoint)
    relations = readable_relations(data.dataset)
    if config.memory_features and config.relations != relations:
        raise InputError(
            f"{checkpoint} reads the relations {', '.join(config.relations)} of the item graph, but "
            f"{data.dataset.path} has {', '.join(relations)}; train anew without --init-from"
        )
    old_row_I = torch.from_numpy(IdMap(names.item_ids).index(data.dataset.item_ids))
    num_shared = int((old_row_I >= 0).sum())
    if not num_shared:
        raise InputError(
            f"no item id of {data.dataset.path} occurs in {checkpoint}; give a checkpoint of an earlier state of "
            "this data, or train anew"
        )
    notes.insert(
        0,
        f"starts from {checkpoint}: {num_shared:,} of its {old.config.num_items:,} items are here, "
        f"{data.dataset.num_items - num_shared:,} are new",
    )
    action_A, surface_A = _places(names.actions, manifest.actions), _places(names.surfaces, manifest.surfaces)
    notes += _said("action", names.actions, manifest.actions) + _said("surface", names.surfaces, manifest.surfaces)

    def carried_over(settings: ModelConfig) -> tuple[UnifiedModel, list[str]]:
        network, said = build_network(data, settings.to_dict()), []
        with torch.no_grad():
            _copy_shared(old, network, checkpoint)
            said += _fill_items(old, network, old_row_I)
            _fill_surfaces(old, network, surface_A)
            _fill_actions(old, network, action_A)
            _fill_features(old, network, action_A, checkpoint)
            said += _fill_users(old, network, names.user_columns, column_labels(data.dataset.user_blocks))
        return network, said

    network, said = carried_over(with_codes(config, None))
    codes = None
    if config.detach_codes:  # heads of semantic IDs go on after training
        return WarmStart(network, tuple(notes + said))
    if data.sids == AUTO:
        codes = carried_codes(old, meta.get("tokenizers"), network, data.dataset, old_row_I)
    if codes is None:
        codes = data.codes(network, like=old)
        codes = None if codes is None else codes.aligned(old, old_row_I)
    if codes is not None:
        network, said = carried_over(with_codes(config, codes))
        network.codes.fill(codes.codes)
        set_codebooks(network, codes)
        said.append(_said_of_codes(old, network, old_row_I))
    notes += said
    return WarmStart(network, tuple(notes), None if codes is None else codes.tokenizers())


def _config(
    data: PreparedData, changes: dict[str, Any], stored: ModelConfig, checkpoint: Path
) -> tuple[ModelConfig, list[str]]:
    """The checkpoint's settings with the sizes of the data; and what was decided on the way."""
    recipe, notes = data.recipe.model, []
    for name, value in changes.items():
        if name not in _FREE and getattr(stored, name) != value:
            switch = {"content_dim": "use_content", "user_dim": "use_user_features"}.get(name)
            flag = f"{name} = {getattr(stored, name)!r}" if switch is None else f"{switch} = true"
            asked = value if switch is None else False
            raise InputError(
                f"{checkpoint} has model.{flag}, not {asked!r}; leave the flag out or train anew without --init-from"
            )
    if stored.use_time and not recipe.use_time:
        raise InputError(
            f"{checkpoint} has model.use_time = True, but the timestamps of {data.dataset.path} are an order and no "
            "clock; prepare it with --clock real, or train anew without --init-from"
        )
    if recipe.window > stored.window:
        notes.append(f"window {stored.window}, as in the checkpoint (training anew would choose {recipe.window})")
    if recipe.retrieval_loss != stored.retrieval_loss == "full" and "retrieval_loss" not in changes:
        changes = {**changes, "retrieval_loss": recipe.retrieval_loss}
        notes.append("sampled softmax from here on: the catalogue has grown too large for the full one")
    sizes = {name: getattr(recipe, name) for name in ("num_items", "num_actions", "num_surfaces", "positive_mask")}
    content_dim = recipe.content_dim if stored.content_dim or "content_dim" not in changes else 0
    user_dim = data.dataset.user_dim if stored.user_dim else 0
    if not stored.user_dim and data.dataset.user_dim:
        notes.append("features of users are not read, as in the checkpoint")
    return replace(stored, **{**changes, **sizes, "content_dim": content_dim, "user_dim": user_dim}), notes


def _places(old: Sequence[str], new: Sequence[str]) -> list[int]:
    """Where each new name stood; -1 = nowhere.

    >>> _places(["", "feed"], ["", "banner", "feed"])
    [0, -1, 1]
    """
    return [old.index(name) if name in old else -1 for name in new]


def _said(what: str, old: Sequence[str], new: Sequence[str]) -> list[str]:
    added, gone = [name for name in new if name not in old], [name for name in old if name not in new]
    notes = [f"new {what}s: {', '.join(added)}"] if added else []
    return notes + ([f"{what}s of the checkpoint that are no more: {', '.join(gone)}"] if gone else [])


def _sized_by_data(network: UnifiedModel) -> set[str]:
    """Parameters that are filled row by row or column by column."""
    found = {
        "items.ids.weight",
        "items.project.weight",
        "users.weight",
        "tokens.mix.weight",
        "tokens.context.surface.weight",
    }
    found |= {f"action_head.{name}" for name in ("out.weight", "out.bias", "rank_bias.weight")}
    if network.action_head is not None and network.action_head.wide is not None:
        found |= {f"action_head.{name}" for name in ("wide.weight", "wide.bias", "hidden.weight")}
        for layer in range(len(network.action_head.cross)):
            found |= {f"action_head.cross.{layer}.{name}" for name in ("down.weight", "up.weight", "up.bias")}
    return found


def _copy_shared(old: UnifiedModel, network: UnifiedModel, checkpoint: Path) -> None:
    """Every other parameter as it is. Buffers say what the data is, and stay those of the new data."""
    before, filled, fresh = dict(old.named_parameters()), _sized_by_data(network), tuple(_fresh_heads(old, network))
    for name, parameter in network.named_parameters():
        if name in filled or name.startswith(fresh):
            continue
        if name not in before or before[name].shape != parameter.shape:
            had = "lacks" if name not in before else f"has the shape {tuple(before[name].shape)} for"
            raise InputError(
                f"{checkpoint} {had} the weights {name}, whose shape is {tuple(parameter.shape)} for this data; "
                "train anew without --init-from"
            )
        parameter.copy_(before[name])


def _fresh_heads(old: UnifiedModel, network: UnifiedModel) -> list[str]:
    """Heads of semantic IDs that the old model lacks, or has for codebooks of other sizes: prefixes of parameters."""

    def shapes(model: UnifiedModel, prefix: str) -> dict[str, torch.Size]:
        return {name: one.shape for name, one in model.named_parameters() if name.startswith(prefix)}

    return [prefix for prefix in CODE_HEADS if shapes(old, prefix) != shapes(network, prefix)]


def _said_of_codes(old: UnifiedModel, network: UnifiedModel, old_row_I: Tensor) -> str:
    here_I = old_row_I >= 0
    kept = []
    for kind, sizes in network.codes.sizes.items():
        if old.codes.sizes.get(kind) == sizes:
            same_S = (network.codes.of(kind)[here_I] == old.codes.of(kind)[old_row_I[here_I]]).all(1)
            kept.append(f"{kind} {float(same_S.double().mean()):.0%}")
    if not kept:
        return "the heads of semantic IDs start anew"
    return f"items of the checkpoint that keep their semantic IDs: {', '.join(kept)}"


# -- items -------------------------------------------------------------------------------------------------------------


def _fill_items(old: UnifiedModel, network: UnifiedModel, old_row_I: Tensor) -> list[str]:
    here_I = old_row_I >= 0
    row_S = old_row_I[here_I]
    items, before = network.items, old.items
    had_id_S = before.has_id_I[row_S]
    start_D = torch.zeros(network.config.dim)
    if not old.config.content_dim and before.has_id_I.any():
        # Where nothing but the id speaks for an item, a zero vector would score above every negative score.
        start_D = before.ids.weight[before.has_id_I].mean(0)
    id_SD = torch.where(had_id_S[:, None], before.ids.weight[row_S], start_D)
    items.ids.weight.copy_(start_D.expand_as(items.ids.weight))
    items.ids.weight[here_I] = id_SD
    items.has_id_I[here_I] |= had_id_S  # learned once, an id part stays, even if its events are no longer here
    return _fill_content(old, network, here_I, row_S)


def _fill_content(old: UnifiedModel, network: UnifiedModel, here_I: Tensor, row_S: Tensor) -> list[str]:
    items, before = network.items, old.items
    new_width, old_width = network.config.content_dim, old.config.content_dim
    if items.project is None:
        if before.project is None:
            return []
        items.ids.weight[here_I] = before.table()[row_S]
        items.has_id_I[here_I] = True
        return ["the data has no content any more: what it said of the checkpoint's items joins their ids"]
    if before.project is None:
        items.project.weight.zero_()
        return [f"{new_width} content features, which the checkpoint had none of: their projection starts at zero"]
    new_SC, old_SB = items.content_IC[here_I].double(), before.content_IC[row_S].double()
    if new_width == old_width:
        # The transform of the text was fitted anew with the catalogue, so the same words stand on other axes: items of
        # the checkpoint keep their features, and those of new items are turned to the old axes.
        centre_C, centre_B = new_SC.mean(0), old_SB.mean(0)
        turn_CB = _least_squares(new_SC - centre_C, old_SB - centre_B)
        left = ((new_SC - centre_C) @ turn_CB + centre_B - old_SB).square().sum()
        explained = 1.0 - float(left / (old_SB - centre_B).square().sum().clamp_min(1e-12))
        if explained >= _SAME_FEATURES:
            turned_IB = (items.content_IC.double() - centre_C) @ turn_CB + centre_B
            items.content_IC.copy_(turned_IB)
            items.content_IC[here_I] = before.content_IC[row_S]
            items.project.weight.copy_(before.project.weight)
            return [
                f"content features of new items turned to the checkpoint's ({explained:.1%} of the variance agrees)"
            ]
        what = f"the content features are others ({explained:.0%} of the variance agrees)"
    else:
        what = f"{new_width} content features instead of {old_width}"
    items.project.weight.copy_(_least_squares(new_SC, old_SB @ before.project.weight.T.double()).T)
    return [f"{what}: their projection starts anew, from the least-squares fit to the checkpoint's item vectors"]


def _least_squares(x_SC: Tensor, y_SB: Tensor) -> Tensor:
    """[C, B] such that ``x_SC`` times it is near ``y_SB``, by ridge regression in float64."""
    gram_CC = x_SC.T @ x_SC
    ridge = _RIDGE * gram_CC.diagonal().mean().clamp_min(1e-12)
    return torch.linalg.solve(gram_CC + ridge * torch.eye(len(gram_CC), dtype=gram_CC.dtype), x_SC.T @ y_SB)


# -- surfaces and actions ----------------------------------------------------------------------------------------------


def _fill_surfaces(old: UnifiedModel, network: UnifiedModel, place_A: list[int]) -> None:
    """A new surface starts as the unknown one."""
    after, before = network.tokens.context.surface, old.tokens.context.surface
    if after is not None and before is not None:
        after.weight.copy_(before.weight[[max(place, 0) for place in place_A]])


def _fill_users(old: UnifiedModel, network: UnifiedModel, before: Sequence[str], after: Sequence[str]) -> list[str]:
    """A new column of the users' features has no influence yet."""
    if network.users is None or old.users is None:
        return []
    place_K = _places(before, after)
    network.users.weight.zero_()
    for new, place in enumerate(place_K):
        if place >= 0:
            network.users.weight[:, new] = old.users.weight[:, place]
    return _said("user feature", before, after)


def _fill_actions(old: UnifiedModel, network: UnifiedModel, place_A: list[int]) -> None:
    """Tokens do not see a new action yet; its output starts at its base rate."""
    kept = [(new, place) for new, place in enumerate(place_A) if place >= 0]
    after, before = network.tokens.mix, old.tokens.mix
    if after is not None and before is not None:
        dim, new_count, old_count = network.config.dim, network.tokens.num_actions, old.tokens.num_actions
        after.weight[:, :dim] = before.weight[:, :dim]
        after.weight[:, dim + 2 * new_count :] = before.weight[:, dim + 2 * old_count :]
        after.weight[:, dim : dim + 2 * new_count] = 0.0
        for new, place in kept if network.config.use_actions else ():
            for half in (0, 1):  # columns of "yes", then of "unknown"
                column = before.weight[:, dim + half * old_count + place]
                after.weight[:, dim + half * new_count + new] = column
        if after.bias is not None and before.bias is not None:
            after.bias.copy_(before.bias)
    if network.action_head is None or old.action_head is None:
        return
    head, former = network.action_head, old.action_head
    for new, place in kept:
        head.out.weight[new], head.out.bias[new] = former.out.weight[place], former.out.bias[place]
        head.rank_bias.weight[:, new] = former.rank_bias.weight[:, place]
    if network.config.regress_value:
        head.out.weight[-1], head.out.bias[-1] = former.out.weight[-1], former.out.bias[-1]


def _fill_features(old: UnifiedModel, network: UnifiedModel, place_A: list[int], checkpoint: Path) -> None:
    """Features keep their weights and the scales these were learned on. A new action keeps the forecast that its
    features make by themselves; elsewhere its rates have no influence yet."""
    head, former = network.action_head, old.action_head
    if head is None or former is None or head.wide is None or former.wide is None:
        return
    column_F = torch.tensor(feature_columns(network.config, place_A, old.config.num_actions))
    here_F = column_F >= 0
    mean_F, scale_F = head.past_mean_F.clone(), head.past_scale_F.clone()
    head.past_mean_F[here_F] = former.past_mean_F[column_F[here_F]]
    head.past_scale_F[here_F] = former.past_scale_F[column_F[here_F]]
    head.wide.bias.add_(head.wide.weight @ ((head.past_mean_F - mean_F) / scale_F))
    head.wide.weight.mul_(head.past_scale_F / scale_F)
    outputs = [(new, place) for new, place in enumerate(place_A) if place >= 0]
    for new, place in outputs + ([(-1, -1)] if network.config.regress_value else []):
        head.wide.bias[new] = former.wide.bias[place]
        _fill_columns(head.wide.weight[new], former.wide.weight[place], column_F)
    if bool(network.config.user_dim) != bool(old.config.user_dim):
        raise InputError(f"{checkpoint} reads features of users, and the data has none; train anew without --init-from")
    fixed, after_features = 3 * network.config.dim, 3 * old.config.dim + len(former.past_mean_F)
    rest = torch.arange(after_features, former.hidden.in_features)
    column_W = torch.cat([torch.arange(fixed), torch.where(here_F, column_F + fixed, -1), rest])
    _fill_columns(head.hidden.weight, former.hidden.weight, column_W)
    for layer, layer_before in zip(head.cross, former.cross, strict=True):
        assert isinstance(layer, CrossLayer) and isinstance(layer_before, CrossLayer)
        _fill_columns(layer.down.weight, layer_before.down.weight, column_W)
        _fill_columns(layer.up.weight.T, layer_before.up.weight.T, column_W)
        _fill_columns(layer.up.bias, layer_before.up.bias, column_W)


def _fill_columns(after: Tensor, before: Tensor, column_W: Tensor) -> None:
    """Columns from where they stood; zeros where they stood nowhere."""
    after.zero_()
    after[..., column_W >= 0] = before[..., column_W[column_W >= 0]]
