"""Shapes of stored weights, compared with a configuration before a model of that configuration is made.

A configuration is a few numbers, and memory for what they name is taken at once. Every number that makes a model large
stands in the shape of some weight, so that the file must hold about as many numbers as are then allocated.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from recsys.errors import InputError
from recsys.model_config import ModelConfig

__all__ = ["check_shapes"]

Shape = tuple[int, ...]


def _shapes(config: ModelConfig) -> dict[str, Shape]:
    """Weights whose shapes hold all sizes of a configuration."""
    dim, wide = config.dim, config.ffn_factor * config.dim
    shapes: dict[str, Shape] = {
        "start_D": (dim,),
        "items.ids.weight": (config.num_items, dim),
        "items.content_IC": (config.num_items, config.content_dim),
        "tokens.position.weight": (config.window + 1, dim),
    }
    for block in range(config.num_blocks):
        name = f"encoder.blocks.{block}"
        if config.block == "hstu":
            shapes[f"{name}.uvqk.weight"] = (4 * dim, dim)
        else:
            shapes[f"{name}.qkv.weight"] = (3 * dim, dim)
            shapes[f"{name}.down.weight"] = (dim, wide)
    if config.user_dim:
        shapes["users.weight"] = (dim, config.user_dim)
    if config.use_surfaces:
        shapes["tokens.context.surface.weight"] = (config.num_surfaces, 16)
    if config.use_actions:
        shapes["action_head.rank_bias.weight"] = (config.max_shown_rank, config.num_actions)
        for layer in range(config.cross_layers):
            shapes[f"action_head.cross.{layer}.up.bias"] = (-1,)
            shapes[f"action_head.cross.{layer}.down.weight"] = (config.cross_rank, -1)
    for head, blocks in (("code_decoder", config.code_blocks), ("set_codes", config.set_blocks)):
        if config.code_sizes if head == "code_decoder" else config.set_sizes:
            for block in range(blocks):
                shapes[f"{head}.blocks.{block}.down.weight"] = (dim, wide)
    for level, size in enumerate(config.code_sizes):
        shapes[f"code_decoder.codebook_{level}"] = (size, dim)
    for head, sizes in (("parallel_codes", config.parallel_sizes), ("set_codes", config.set_sizes)):
        if sizes:
            shapes[f"{head}.codes_JKD"] = (len(sizes), max(sizes), dim)
    return shapes


def check_shapes(config: ModelConfig, weights: Mapping[str, Tensor], where: str, remedy: str) -> None:
    """Refuse weights that are not those of a configuration, or not finite.

    Args:
        where, remedy: the beginning and the end of the message.

    Raises:
        InputError: one line naming the weight.
    """
    for name, shape in _shapes(config).items():
        found = tuple(weights[name].shape) if name in weights else None
        fits = found is not None and len(found) == len(shape)
        if not fits or any(a != b for a, b in zip(found or (), shape, strict=True) if b >= 0):
            there = "missing" if found is None else f"{list(found)} instead of {list(shape)}"
            raise InputError(f"{where} holds weights of another model ({name} is {there}); {remedy}")
    for name, weight in weights.items():
        if weight.numel() * weight.element_size() > weight.untyped_storage().nbytes():
            raise InputError(f"{where}: {name[:80]} has fewer numbers than it declares; {remedy}")
        if weight.is_floating_point() and weight.numel() and not bool(weight.sum(dtype=torch.float64).isfinite()):
            raise InputError(f"{where}: {name[:80]} holds numbers that are not finite; {remedy}")
