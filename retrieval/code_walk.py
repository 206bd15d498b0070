"""A walk over items with codes alike, that scores exactly what it visits and nothing else.

Graph-constrained decoding of long semantic IDs (RPG, arXiv 2506.05781): the best items so far bring their neighbours,
step by step. It begins at items spread over the catalogue, all of them scored, where the paper draws some at random; an
item brings its neighbours once; and what a user must not get is walked through but never returned.

Suffixes: B = users, J = codes of an item, K = codes of a codebook, or hits, E = exclusions, N = allowed items,
I = items, W = the beam, M = neighbours, C = candidates, P = pairs of a user and an item.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.index.code_neighbours import CodeNeighbours
from recsys.index.hits import Hits
from recsys.kernels.topk import topk_smaller_id

__all__ = ["WALK_ABOVE", "CodeWalkConfig", "WalkHits", "code_walk"]

WALK_ABOVE = 10_000_000
"""Items above which a catalogue is walked unless told otherwise; so many of 16 codes are scored in about a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeWalkConfig:
    """How far a walk goes."""

    num_beams: int = 200
    """Best items so far that bring their neighbours; raised to the hits and exclusions of a request."""
    num_steps: int = 8
    """At most; a user's walk ends where every item of the beam has brought its neighbours."""
    exact_below: int = 1_000_000
    """Allowed items up to which all of them are scored instead: a walk would hardly meet them."""

    def __post_init__(self) -> None:
        for name, least in (("num_beams", 1), ("num_steps", 0), ("exact_below", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"CodeWalkConfig.{name} must be at least {least}, got {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class WalkHits(Hits):
    """Hits of a walk."""

    visited_B: Tensor
    """[B] int64, how many items were scored."""


@torch.no_grad()
def code_walk(
    neighbours: CodeNeighbours,
    code_IJ: Tensor,
    logp_JBK: Tensor,
    k: int,
    config: CodeWalkConfig,
    *,
    exclude_BE: Tensor | None = None,
    allow_N: Tensor | None = None,
    gone_I: Tensor | None = None,
) -> WalkHits:
    """The k best of the items that a walk meets, each by the mean log-probability of its codes.

    Args:
        neighbours: of these codes.
        code_IJ: [I, J] codes of the catalogue.
        logp_JBK: [J, B, K] log-probabilities of every code.
        k: at least 1.
        config: of the walk.
        exclude_BE, allow_N: see :class:`recsys.retrieval.protocol.Retriever`.
        gone_I: [I] bool, items that no search returns; None = all may be.

    Returns:
        Best first; equal scores go to the smaller id; unfilled places are (−1, −inf).
    """
    scored = _Scored(code_IJ, logp_JBK)
    legal = _Legal(exclude_BE, allow_N, gone_I, len(code_IJ))
    num_users = logp_JBK.shape[1]
    num_excluded = 0 if exclude_BE is None else exclude_BE.shape[1]
    width = max(config.num_beams, k + num_excluded)
    item_BC = neighbours.entry_E.expand(num_users, -1)
    score_BC = scored.of(item_BC)
    score_BK, id_BK = topk_smaller_id(legal.scores(item_BC, score_BC), item_BC, k)
    met_BC = item_BC.contiguous()
    beam_BW, score_BW, fresh_BW = _best(item_BC, score_BC, torch.ones_like(item_BC, dtype=torch.bool), width)
    for _ in range(config.num_steps):
        from_BC = _packed(beam_BW, fresh_BW)
        if not from_BC.shape[1]:
            break
        near_BC = neighbours.neighbour_IM[from_BC.clamp_min(0)].long()
        near_BC = _new(met_BC, near_BC.masked_fill((from_BC < 0)[..., None], -1).flatten(1))
        met_BC = torch.cat([met_BC, near_BC], 1).sort(1).values
        score_BC = scored.of(near_BC)
        both = torch.cat([score_BK, legal.scores(near_BC, score_BC)], 1), torch.cat([id_BK, near_BC], 1)
        score_BK, id_BK = topk_smaller_id(*both, k)
        beam_BW, score_BW, fresh_BW = _best(
            torch.cat([beam_BW, near_BC], 1),
            torch.cat([score_BW, score_BC], 1),
            torch.cat([torch.zeros_like(fresh_BW), near_BC >= 0], 1),
            width,
        )
    visited_B = (met_BC >= 0).sum(1)
    return WalkHits(id_BK, score_BK, visited_B)


@dataclass(frozen=True, slots=True)
class _Scored:
    """Exact scores of single items."""

    code_IJ: Tensor
    logp_JBK: Tensor

    def of(self, item_BC: Tensor) -> Tensor:
        """[B, C] float32, −inf at places without an item."""
        user_P, place_P = (item_BC >= 0).nonzero(as_tuple=True)
        code_PJ = self.code_IJ[item_BC[user_P, place_P]]
        num_codes, _, size = self.logp_JBK.shape
        score_P = torch.zeros(len(user_P), device=item_BC.device)
        for logp_BK, code_P in zip(self.logp_JBK.float(), code_PJ.T, strict=True):
            score_P += logp_BK.flatten()[user_P * size + code_P]
        score_BC = torch.full(item_BC.shape, -torch.inf, device=item_BC.device)
        score_BC[user_P, place_P] = score_P / num_codes
        return score_BC


class _Legal:
    """What may be returned to a user."""

    def __init__(
        self, exclude_BE: Tensor | None, allow_N: Tensor | None, gone_I: Tensor | None, num_items: int
    ) -> None:
        self.exclude_BE = None if exclude_BE is None else exclude_BE.sort(1).values
        self.allowed_I: Tensor | None = None
        if allow_N is not None:
            self.allowed_I = torch.zeros(num_items, dtype=torch.bool, device=allow_N.device)
            self.allowed_I[allow_N] = True
        if gone_I is not None:
            self.allowed_I = ~gone_I if self.allowed_I is None else self.allowed_I & ~gone_I

    def scores(self, item_BC: Tensor, score_BC: Tensor) -> Tensor:
        """[B, C] the scores, −inf where the item may not be returned or there is none."""
        out_BC = item_BC < 0
        if self.allowed_I is not None:
            out_BC = out_BC | ~self.allowed_I[item_BC.clamp_min(0)]
        if self.exclude_BE is not None and self.exclude_BE.shape[1]:
            out_BC = out_BC | _among(item_BC, self.exclude_BE)
        return score_BC.masked_fill(out_BC, -torch.inf)


def _among(item_BC: Tensor, sorted_BE: Tensor) -> Tensor:
    """[B, C] bool, whether an item stands in its user's rising list."""
    place_BC = torch.searchsorted(sorted_BE, item_BC.contiguous()).clamp_max(sorted_BE.shape[1] - 1)
    return sorted_BE.gather(1, place_BC) == item_BC


def _new(met_BC: Tensor, item_BC: Tensor) -> Tensor:
    """[B, C] the items that are not among those met, each once and rising; −1 before them, no more than needed.

    Args:
        met_BC: rising. item_BC: −1 = none.
    """
    item_BC = item_BC.sort(1).values
    repeated_BC = torch.zeros_like(item_BC, dtype=torch.bool)
    repeated_BC[:, 1:] = item_BC[:, 1:] == item_BC[:, :-1]
    item_BC = item_BC.masked_fill(repeated_BC | _among(item_BC, met_BC), -1).sort(1).values
    most = int((item_BC >= 0).sum(1).max()) if len(item_BC) else 0
    return item_BC[:, item_BC.shape[1] - most :]


def _packed(item_BW: Tensor, chosen_BW: Tensor) -> Tensor:
    """[B, C] the chosen items of each user first, −1 after them; no wider than the longest list."""
    width = int(chosen_BW.sum(1).max()) if len(item_BW) else 0
    order_BC = (~chosen_BW).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    return item_BW.masked_fill(~chosen_BW, -1).gather(1, order_BC)


def _best(item_BC: Tensor, score_BC: Tensor, fresh_BC: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The beam: items, scores, and whether they have yet to bring their neighbours."""
    score_BW, place_BW = score_BC.topk(min(width, score_BC.shape[1]), dim=1)
    item_BW = item_BC.gather(1, place_BW).masked_fill(score_BW == -torch.inf, -1)
    return item_BW, score_BW, fresh_BC.gather(1, place_BW) & (item_BW >= 0)
