"""A Llama-like model run for some tokens of a prompt, the keys and values of the others being there already.

The modules are those of the transformers model; only the order in which they are called is written here, and it is
compared with the model's own forward pass before it is used.

Suffixes: V = layers, H = key heads, G = query heads of a key head, R = computed rows, T = tokens of the prompt and
its answer, D = width of a head, E = width of the model, S = segments, W = vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.errors import InputError

__all__ = ["ChunkForward", "KeysValues", "Watched", "weights_hash"]

_BLOCK = 256
"""Rows whose attention is computed at once."""
_ROPE_OF_LENGTH = ("dynamic", "longrope")
"""Their angles depend on the length of the prompt, so that kept keys do not fit another one."""


def weights_hash(model: Any) -> str:
    """SHA-256 over the weights of a transformers model, their types, and its configuration."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_THE_MODEL}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


_NOT_THE_MODEL = ("_name_or_path", "transformers_version", "_attn_implementation")


@dataclass(frozen=True, slots=True)
class KeysValues:
    """Of one prompt; rows that no one computed yet hold zeros."""

    keys_VHTD: Tensor
    """After rotary, at their positions."""
    values_VHTD: Tensor


@dataclass(frozen=True, slots=True)
class Watched:
    """What was seen of the rows to be kept."""

    keys_VHRD: Tensor
    """Before rotary."""
    mass_RS: Tensor
    """float32: attention of a row to the tokens of each segment, mean of layers and heads."""


class ChunkForward:
    """Runs rows of a prompt through a causal language model of transformers.

    Args:
        model: with the modules of Llama, Mistral, Qwen2 or Qwen3, in any floating type, on any device.

    Raises:
        InputError: the modules are other ones, or the model's own forward pass gives something else.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config
        try:
            self._base = model.model
            self._layers = list(self._base.layers)[: config.num_hidden_layers]
            attention = self._layers[0].self_attn
            self._head_width: int = attention.head_dim
            self._query_heads = attention.q_proj.out_features // self._head_width
            self._key_heads = attention.k_proj.out_features // self._head_width
            weight = self._base.embed_tokens.weight
        except (AttributeError, IndexError, TypeError) as error:
            raise InputError(f"{_unlike(model)}: {error}") from error
        self.device: torch.device = weight.device
        self.dtype: torch.dtype = weight.dtype
        self.num_words = weight.shape[0]
        rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        if rope in _ROPE_OF_LENGTH:
            raise InputError(f"rotary embedding of type {rope!r} depends on the prompt's length; {_OTHER}")
        # Inside one window, attention over a sliding window is attention over everything.
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        self.context_tokens: int = min(config.max_position_embeddings, window or config.max_position_embeddings)
        self._check()

    def empty(self, num_tokens: int) -> KeysValues:
        """Room for the keys and values of so many tokens."""
        shape = (len(self._layers), self._key_heads, num_tokens, self._head_width)
        keys, values = (torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        return KeysValues(keys, values)

    @torch.no_grad()
    def place(self, kv: KeysValues, first: int, keys_VHND: Tensor, values_VHND: Tensor) -> None:
        """Put kept keys (before rotary) and values of adjacent tokens at positions from ``first`` on."""
        at = slice(first, first + keys_VHND.shape[2])
        cos_1ND, sin_1ND = self._angles(torch.arange(at.start, at.stop, device=self.device))
        kv.keys_VHTD[:, :, at] = _rotate(keys_VHND.to(self.device), cos_1ND, sin_1ND)
        kv.values_VHTD[:, :, at] = values_VHND.to(self.device)

    @torch.no_grad()
    def rows(
        self,
        kv: KeysValues,
        tokens_R: Tensor,
        places_R: Tensor,
        *,
        watch_R: Tensor | None = None,
        segments_TS: Tensor | None = None,
    ) -> tuple[Tensor, Watched | None]:
        """Compute rows and put their keys and values into ``kv``; every row sees all tokens up to its own place.

        Args:
            kv: complete up to the last place but for these rows.
            tokens_R, places_R: int64 on this device, places increasing.
            watch_R: bool, rows to be kept; None = none.
            segments_TS: float32, 1 where a token belongs to a segment; None = attention is not looked at.
        Returns:
            [R, E] rows after the last norm, and what was seen of the watched ones.
        """
        hidden_1RE = self._base.embed_tokens(tokens_R)[None]
        cos_1RD, sin_1RD = self._angles(places_R)
        blocks = _blocks(places_R, watch_R if segments_TS is not None else None)
        some = watch_R is not None and bool(watch_R.any())
        keys: list[Tensor] = []
        mass_RS = torch.zeros(len(tokens_R), segments_TS.shape[1] if segments_TS is not None else 0, device=self.device)
        for at, layer in enumerate(self._layers):
            attention = layer.self_attn
            inner_1RE = layer.input_layernorm(hidden_1RE)
            q_HRD = self._heads(attention, "q", inner_1RE)
            k_HRD = self._heads(attention, "k", inner_1RE)
            if some:
                keys.append(k_HRD[:, watch_R])
            q_HRD, k_HRD = _rotate(q_HRD, cos_1RD, sin_1RD), _rotate(k_HRD, cos_1RD, sin_1RD)
            kv.keys_VHTD[at].index_copy_(1, places_R, k_HRD)
            kv.values_VHTD[at].index_copy_(1, places_R, self._heads(attention, "v", inner_1RE))
            out_RX = torch.cat(
                [
                    self._attend(
                        q_HRD[:, low:high],
                        kv.keys_VHTD[at, :, :width],
                        kv.values_VHTD[at, :, :width],
                        places_R[low:high],
                        attention.scaling,
                        mass_RS[low:high] if seen else None,
                        segments_TS,
                    )
                    for low, high, width, seen in blocks
                ]
            )
            hidden_1RE = hidden_1RE + attention.o_proj(out_RX[None])
            hidden_1RE = hidden_1RE + layer.mlp(layer.post_attention_layernorm(hidden_1RE))
        out_RE = self._base.norm(hidden_1RE)[0]
        if not some:
            return out_RE, None
        return out_RE, Watched(torch.stack(keys), mass_RS[watch_R] / len(self._layers))

    @torch.no_grad()
    def logits(self, out_RE: Tensor) -> Tensor:
        """[R, W] float32 logits of the token behind each row."""
        logits_RW: Tensor = self.model.lm_head(out_RE).float()
        return logits_RW

    def _angles(self, places_R: Tensor) -> tuple[Tensor, Tensor]:
        """[1, R, D] cosines and sines of the places."""
        cos, sin = self._base.rotary_emb(self._base.embed_tokens.weight[:1, None], places_R[None])
        return cos, sin

    def _heads(self, attention: Any, which: str, inner_1RE: Tensor) -> Tensor:
        """[heads, R, D] queries, keys or values."""
        out_RHD = getattr(attention, f"{which}_proj")(inner_1RE)[0].unflatten(-1, (-1, self._head_width))
        norm = getattr(attention, f"{which}_norm", None)
        return (out_RHD if norm is None else norm(out_RHD)).transpose(0, 1)

    def _attend(
        self,
        q_ARD: Tensor,
        k_HTD: Tensor,
        v_HTD: Tensor,
        places_R: Tensor,
        scale: float,
        mass_RS: Tensor | None,
        segments_TS: Tensor | None,
    ) -> Tensor:
        """[R, query heads · D]. Attention to segments is added to ``mass_RS`` where one is given."""
        seen_RT = torch.arange(k_HTD.shape[1], device=self.device) <= places_R[:, None]
        if mass_RS is None or segments_TS is None:
            out_ARD = F.scaled_dot_product_attention(
                q_ARD[None], k_HTD[None], v_HTD[None], attn_mask=seen_RT, scale=scale, enable_gqa=True
            )[0]
            return out_ARD.transpose(0, 1).flatten(1)
        q_HGRD = q_ARD.unflatten(0, (self._key_heads, -1))
        score_HGRT = (q_HGRD @ k_HTD[:, None].transpose(2, 3)).float() * scale
        weight_HGRT = score_HGRT.masked_fill_(~seen_RT, float("-inf")).softmax(-1)
        mass_RS += weight_HGRT.mean((0, 1)) @ segments_TS[: k_HTD.shape[1]]
        out_HGRD = weight_HGRT.to(v_HTD.dtype) @ v_HTD[:, None]
        return out_HGRD.flatten(0, 1).transpose(0, 1).flatten(1)

    def _check(self) -> None:
        """Compare with the model itself on a few tokens.

        Raises:
            InputError: they differ.
        """
        tokens = torch.arange(24, device=self.device) * 7 % self.num_words
        try:
            out_RE, _ = self.rows(self.empty(len(tokens)), tokens, torch.arange(len(tokens), device=self.device))
            ours_W = self.logits(out_RE)[-1]
        except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{_unlike(self.model)}: {error}") from error
        training = self.model.training
        with torch.no_grad():
            theirs_W = self.model.eval()(input_ids=tokens[None]).logits[0, -1].float()
        self.model.train(training)
        limit = torch.finfo(self.dtype).eps ** 0.5 * theirs_W.abs().max()
        if not (ours_W - theirs_W).abs().max() <= limit:
            raise InputError(f"{_unlike(self.model)}: it computes something else")


_OTHER = "reuse chunks with a model whose rotary embedding is fixed, or answer without reuse"


def _unlike(model: Any) -> str:
    return (
        f"chunks are reused with models built like Llama, Mistral and Qwen; {type(model).__name__} is not, answer "
        "without reuse"
    )


def _rotate(x_HRD: Tensor, cos_1RD: Tensor, sin_1RD: Tensor) -> Tensor:
    left, right = x_HRD.chunk(2, dim=-1)
    return x_HRD * cos_1RD + torch.cat((-right, left), dim=-1) * sin_1RD


def _blocks(places_R: Tensor, watch_R: Tensor | None) -> list[tuple[int, int, int, bool]]:
    """First row, end row, tokens that the last of them sees, and whether the block is watched: all or none of it."""
    places = places_R.tolist()
    watched = [False] * len(places) if watch_R is None else watch_R.tolist()
    starts = [row for row in range(len(places)) if row == 0 or watched[row] != watched[row - 1]]
    cuts = [cut for low, high in pairwise([*starts, len(places)]) for cut in range(low, high, _BLOCK)]
    return [(low, high, places[high - 1] + 1, watched[low]) for low, high in pairwise([*cuts, len(places)])]
