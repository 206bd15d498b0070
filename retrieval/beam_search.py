"""Beam search over semantic IDs that can only produce items of the catalogue.

Beams are nodes of the code trie. A level takes the logits of the codes that continue each beam, and nothing else: no
mask that could miss, no dictionary, no object per beam. Beams stand in the order of their nodes, so that the place of a
candidate among all of a request is the order of its node; equal scores go to the smaller node.

Suffixes: B = requests, W = beams, C = children of a beam, K = codes of a level, E = exclusions, N = allowed items,
G = groups, X = candidates of a request.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from recsys.index.code_trie import CodeTrie
from recsys.index.hits import Hits
from recsys.index.protocol import check_lists
from recsys.index.trie_filter import TrieFilter
from recsys.kernels.topk import topk_smaller_id
from recsys.retrieval.beam_config import BeamConfig

__all__ = ["BeamHits", "Decoding", "beam_search"]


class Decoding(Protocol):
    """One decoding of a batch of requests, level after level; it keeps what it needs of its earlier levels."""

    def logits(self, parent_BW: Tensor | None, code_BW: Tensor | None) -> Tensor:
        """[B, W, K] logits of the next level's codes.

        Args:
            parent_BW: [B, W] int64, which beam of the level before each beam continues; None at the first level, where
                W is 1.
            code_BW: [B, W] int64, the code that it continues with.
        """
        ...


@dataclass(frozen=True, slots=True)
class BeamHits(Hits):
    """Best first; equal scores in the order of the trie; unfilled places are (−1, −inf).

    The score of an item is the log-probability of its codes in nats; items of one leaf stand in the order of the leaf.
    """

    num_found_Q: Tensor
    """[Q] int64 filled places."""
    reachable_Q: Tensor
    """[Q] int64 items that the filters leave to each request: with fewer than k no search can fill all places."""
    levels_decoded: int
    """Fewer than the trie has where the deadline came first: the scores are then those of prefixes."""


@torch.no_grad()
def beam_search(
    trie: CodeTrie,
    decoding: Decoding,
    num_requests: int,
    k: int,
    config: BeamConfig,
    *,
    exclude_BE: Tensor | None = None,
    allow_N: Tensor | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> BeamHits:
    """The k most probable items of each request, as far as the beams reach.

    With widths as large as the catalogue these are the k most probable items of all. Whatever the widths, an item that
    is removed, not allowed or excluded is never returned, nor is one twice, nor one of probability 0.

    Args:
        trie: of the catalogue.
        decoding: begun for the requests.
        num_requests: B.
        k: at least 1.
        config: widths and limits.
        exclude_BE: [B, E] int64 ids that the request must not get, padded with −1.
        allow_N: [N] int64 ids, strictly rising: nothing else is returned to any request.
        clock: seconds, for the deadline.

    Raises:
        ValueError: logits hold a NaN or +inf, or have another shape than the trie's sizes; k, exclusions or the allow
            list break the above.
    """
    check_lists(num_requests, k, exclude_BE, allow_N, trie.num_items)
    ends = None if config.deadline_ms is None else clock() + config.deadline_ms / 1000
    filters = TrieFilter(trie, num_requests, allow_N=allow_N, exclude_BE=exclude_BE)
    node_BW = torch.zeros(num_requests, 1, dtype=torch.int64)
    score_BW = torch.zeros(num_requests, 1)
    parent_BW: Tensor | None = None
    code_BW: Tensor | None = None
    excluded_BE: Tensor | None = None
    decoded = 0
    for number, level in enumerate(trie.levels):
        if ends is not None and decoded and clock() >= ends:
            break
        logit_BWK = _checked(decoding.logits(parent_BW, code_BW), (*node_BW.shape, trie.sizes[number]), number)
        child_BWC, code_BWC = level.children(node_BW)
        logp_BWC = _log_probabilities(logit_BWK, child_BWC, code_BWC, whole=level.table_MK is not None, config=config)
        child_BWC, excluded_BE = filters.cut(number, node_BW, child_BWC, excluded_BE)
        candidate_BWC = (score_BW[..., None] + logp_BWC).masked_fill(child_BWC < 0, -torch.inf)
        groups = config.num_groups if number else 1
        score_BW, place_BW = _best(candidate_BWC, config.width(number), groups)
        if config.mass < 1.0:
            score_BW, place_BW = _heaviest(score_BW, place_BW, candidate_BWC, config)
        if number == 0 and config.num_groups > 1:
            score_BW, place_BW = _dealt(score_BW, place_BW, config.num_groups)
        parent_BW = torch.div(place_BW, child_BWC.shape[2], rounding_mode="floor").clamp_min(0)
        at_BW = place_BW.clamp_min(0)
        node_BW = child_BWC.flatten(1).gather(1, at_BW).masked_fill(place_BW < 0, -1)
        code_BW = code_BWC.flatten(1).gather(1, at_BW)
        decoded += 1
    best_BW, order_BW = score_BW.masked_fill(node_BW < 0, -torch.inf).sort(dim=1, descending=True, stable=True)
    # Groups stand one after the other: among equal scores the smaller node must still come first.
    if config.num_groups > 1:
        order_BW = _by_score_and_node(score_BW, node_BW)
        best_BW = score_BW.gather(1, order_BW)
    ids_BK, scores_BK = filters.items(decoded - 1, node_BW.gather(1, order_BW), best_BW, k)
    return BeamHits(ids_BK, scores_BK, (ids_BK >= 0).sum(1), filters.reachable(), decoded)


def _checked(logit_BWK: Tensor, shape: tuple[int, ...], number: int) -> Tensor:
    if tuple(logit_BWK.shape) != shape:
        raise ValueError(
            f"logits of level {number + 1} must be {list(shape)}, got {list(logit_BWK.shape)}; "
            "the decoder and the trie belong to different codes"
        )
    logit_BWK = logit_BWK.float()  # before the check: a float64 may be too large for it
    bad_BWK = ~(logit_BWK < torch.inf)
    if bool(bad_BWK.any()):
        row = int(bad_BWK.flatten(1).any(1).nonzero()[0])
        raise ValueError(f"logits of level {number + 1}, request {row}, hold a NaN or +inf; check the model's weights")
    return logit_BWK


def _log_probabilities(
    logit_BWK: Tensor, child_BWC: Tensor, code_BWC: Tensor, *, whole: bool, config: BeamConfig
) -> Tensor:
    """[B, W, C] of the children of each beam."""
    logit_BWC = logit_BWK if whole else logit_BWK.gather(2, code_BWC)
    among = logit_BWK if config.normalise == "all" else logit_BWC.masked_fill(child_BWC < 0, -torch.inf)
    # Less the largest first: beside logits of a large size their sum's logarithm would be rounded away.
    peak_BW1 = among.amax(2, keepdim=True)
    total_BW1 = (among - peak_BW1).exp_().sum(2, keepdim=True).log_()
    # Where every code has probability 0, so has every child.
    return (logit_BWC - peak_BW1 - total_BW1).masked_fill(peak_BW1 == -torch.inf, -torch.inf)


def _best(candidate_BWC: Tensor, width: int, groups: int) -> tuple[Tensor, Tensor]:
    """The best candidates of each request, or of each of its groups, in the order of their places; −1 = none."""
    num_requests, num_beams, num_children = candidate_BWC.shape
    share = num_beams // groups
    candidate_RX = candidate_BWC.reshape(num_requests * groups, share * num_children)
    kept = min(width // groups, candidate_RX.shape[1])
    place_X = torch.arange(candidate_RX.shape[1]).expand_as(candidate_RX)
    score_RW, place_RW = topk_smaller_id(candidate_RX, place_X, kept)
    last = candidate_RX.shape[1]
    order_RW = torch.where(place_RW < 0, last, place_RW).argsort(1)
    score_RW, place_RW = score_RW.gather(1, order_RW), place_RW.gather(1, order_RW)
    first_R1 = (torch.arange(num_requests * groups) % groups * last)[:, None]
    place_RW = torch.where(place_RW < 0, place_RW, place_RW + first_R1)
    return score_RW.reshape(num_requests, groups * kept), place_RW.reshape(num_requests, groups * kept)


def _dealt(score_BW: Tensor, place_BW: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The beams group by group: the r-th best goes to group r mod groups; unfilled places even the groups out."""
    missing = -score_BW.shape[1] % groups
    score_BW = torch.nn.functional.pad(score_BW, (0, missing), value=-torch.inf)
    place_BW = torch.nn.functional.pad(place_BW, (0, missing), value=-1)
    order_BW = score_BW.sort(dim=1, descending=True, stable=True).indices
    order_BW = order_BW.unflatten(1, (-1, groups)).transpose(1, 2)
    key_BGS = place_BW.gather(1, order_BW.flatten(1)).view(order_BW.shape)
    inside = torch.where(key_BGS < 0, torch.iinfo(torch.int64).max, key_BGS).argsort(2)
    order_BW = order_BW.gather(2, inside).flatten(1)
    return score_BW.gather(1, order_BW), place_BW.gather(1, order_BW)


def _heaviest(score_BW: Tensor, place_BW: Tensor, candidate_BWC: Tensor, config: BeamConfig) -> tuple[Tensor, Tensor]:
    """The best beams that hold the wanted share of the candidates' probability; the others become unfilled places."""
    total_B1 = candidate_BWC.flatten(1).logsumexp(1, keepdim=True)
    sorted_BW, order_BW = score_BW.sort(dim=1, descending=True, stable=True)
    share_BW = (sorted_BW - total_B1).exp().nan_to_num(0.0)
    before_BW = share_BW.double().cumsum(1) - share_BW
    drop_BW = (before_BW >= config.mass) & (torch.arange(score_BW.shape[1]) >= config.least)
    drop_BW = torch.zeros_like(drop_BW).scatter(1, order_BW, drop_BW)
    return score_BW.masked_fill(drop_BW, -torch.inf), place_BW.masked_fill(drop_BW, -1)


def _by_score_and_node(score_BW: Tensor, node_BW: Tensor) -> Tensor:
    by_node_BW = torch.where(node_BW < 0, torch.iinfo(torch.int64).max, node_BW).argsort(1)
    by_score_BW = score_BW.gather(1, by_node_BW).sort(dim=1, descending=True, stable=True).indices
    return by_node_BW.gather(1, by_score_BW)
