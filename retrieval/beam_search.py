"""Beam search over semantic IDs that can only produce items of the catalogue.

Beams are nodes of the code trie. A level takes the logits of the codes that continue each beam, and nothing else: no
mask that could miss, no dictionary, no object per beam. Beams stand in the order of their nodes, so that the place of a
candidate among all of a request is the order of its node; equal scores go to the smaller node.

Suffixes: B = requests, W = beams, K = codes of a level, T = children of all beams, E = exclusions, N = allowed items,
G = groups, R = requests or, from the second level on, their groups, X = beams of all requests, or columns of rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from recsys.index.code_trie import Children, CodeTrie
from recsys.index.hits import Hits
from recsys.index.protocol import check_lists
from recsys.index.trie_filter import TrieFilter
from recsys.kernels.topk import largest, topk_smaller_id
from recsys.retrieval.beam_config import BeamConfig

__all__ = ["BeamHits", "Decoding", "beam_search", "child_scores"]


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
    device = trie.item_P.device
    # Tensors that the search makes lie where the trie lies.
    with nullcontext() if device.type == "cpu" else device:
        return _search(trie, decoding, num_requests, k, config, exclude_BE, allow_N, clock)


def _search(
    trie: CodeTrie,
    decoding: Decoding,
    num_requests: int,
    k: int,
    config: BeamConfig,
    exclude_BE: Tensor | None,
    allow_N: Tensor | None,
    clock: Callable[[], float],
) -> BeamHits:
    if not num_requests:
        none = torch.zeros(0, dtype=torch.int64)
        return BeamHits(none.view(0, 1).expand(0, k), torch.zeros(0, k), none, none, trie.num_levels)
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
        children = level.spread(node_BW)
        if not len(children.node_T):  # no request has a beam left
            node_BW, decoded = torch.full_like(node_BW, -1), trie.num_levels
            break
        score_T = child_scores(logit_BWK, score_BW, children, config)
        children, excluded_BE = filters.cut(number, node_BW, children, excluded_BE)
        score_T.masked_fill_(children.node_T < 0, -torch.inf)
        groups = config.num_groups if number else 1
        score_RX, first_R = _by_row(score_T, children, num_requests * groups)
        score_BW, place_BW = _best(score_RX, first_R, config.width(number) // groups)
        score_BW, place_BW = score_BW.view(num_requests, -1), place_BW.view(num_requests, -1)
        if config.mass < 1.0:
            score_BW, place_BW = _heaviest(score_BW, place_BW, score_RX.view(num_requests, -1), config)
            if config.num_groups == 1:
                score_BW, place_BW = _narrowed(score_BW, place_BW)
        if number == 0 and config.num_groups > 1:
            score_BW, place_BW = _dealt(score_BW, place_BW, config.num_groups)
        at_BW = place_BW.clamp_min(0)
        owner_BW, code_BW = children.of(at_BW, trie.sizes[number])
        parent_BW = owner_BW % node_BW.shape[1]
        node_BW = children.node_T[at_BW].long().masked_fill_(place_BW < 0, -1)
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
    is_good_B = (logit_BWK.flatten(1).amax(1) < torch.inf).tolist()  # a maximum with a NaN is a NaN
    if not all(is_good_B):
        row = is_good_B.index(False)
        raise ValueError(f"logits of level {number + 1}, request {row}, hold a NaN or +inf; check the model's weights")
    return logit_BWK


def child_scores(logit_BWK: Tensor, score_BW: Tensor, children: Children, config: BeamConfig) -> Tensor:
    """[T] log-probabilities of the children of beams and all before them.

    Args:
        logit_BWK: float32 logits of the children's level. score_BW: log-probabilities of the beams.
    """
    logit_XK, score_X = logit_BWK.flatten(0, 1), score_BW.flatten()
    owner_T, code_T = children.owner_T, children.code_T
    if owner_T is None or code_T is None:
        if config.normalise == "children":
            logit_XK = logit_XK.masked_fill(children.node_T.view(logit_XK.shape) < 0, -torch.inf)
        return _log_softmax(logit_XK).add_(score_X[:, None]).flatten()
    place_T = owner_T * logit_XK.shape[1] + code_T
    if config.normalise == "all":
        logp_T = _log_softmax(logit_XK).flatten().index_select(0, place_T)
    else:
        logp_T = _log_softmax_of_beams(logit_XK.flatten().index_select(0, place_T), owner_T, len(score_X))
    return logp_T.add_(score_X.index_select(0, owner_T))


def _log_softmax(logit_XK: Tensor) -> Tensor:
    """Where every code has probability 0, so has every child."""
    logp_XK = logit_XK.log_softmax(1)
    is_nothing_X = logp_XK[:, 0].isnan()
    return logp_XK.masked_fill_(is_nothing_X[:, None], -torch.inf) if bool(is_nothing_X.any()) else logp_XK


def _log_softmax_of_beams(logit_T: Tensor, owner_T: Tensor, num_beams: int) -> Tensor:
    """The same over the children of each beam."""
    nothing_X = logit_T.new_full((num_beams,), -torch.inf)
    peak_X = nothing_X.scatter_reduce(0, owner_T, logit_T, "amax")
    peak_X = peak_X.masked_fill(peak_X == -torch.inf, 0.0)
    above_T = logit_T - peak_X.index_select(0, owner_T)
    total_X = torch.zeros_like(peak_X).index_add_(0, owner_T, above_T.exp())
    return above_T - total_X.masked_fill(total_X == 0, 1.0).log_().index_select(0, owner_T)


def _by_row(score_T: Tensor, children: Children, num_rows: int) -> tuple[Tensor, Tensor]:
    """[R, X] scores of requests, or of their groups, −inf where there is nothing, and [R] the place of their first."""
    if children.owner_T is None:
        score_RX = score_T.view(num_rows, -1)
        return score_RX, torch.arange(num_rows) * score_RX.shape[1]
    if num_rows == 1:
        return score_T[None], torch.zeros(1, dtype=torch.int64)
    first_R1 = children.first_X1[:: (len(children.first_X1) - 1) // num_rows]
    count_R = first_R1.diff()
    score_RX = score_T.new_full((num_rows, max(1, int(count_R.max()))), -torch.inf)
    row_T = torch.repeat_interleave(count_R)
    score_RX[row_T, torch.arange(len(score_T)) - first_R1[row_T]] = score_T
    return score_RX, first_R1[:-1]


def _best(score_RX: Tensor, first_R: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The best of each row in the order of their places, of equal scores the first; place −1 = none."""
    num_rows, num_all = score_RX.shape
    if num_all <= width:
        score_RW, place_RW = score_RX, torch.arange(num_all).expand(num_rows, -1)
        place_RW = place_RW + first_R[:, None]
        return score_RW, place_RW.masked_fill_(score_RW == -torch.inf, -1)
    score_RW, place_RW = largest(score_RX, width + 1)
    score_RW, order_RW = score_RW.sort(1, descending=True)
    place_RW = place_RW.gather(1, order_RW)
    is_tied_R = score_RW[:, -1] == score_RW[:, -2]
    if bool(is_tied_R.any()) and bool((is_tied_R & (score_RW[:, -1] > -torch.inf)).any()):
        # Which of equal scores were kept is not specified, and not all of them were.
        score_RW, place_RW = topk_smaller_id(score_RX, torch.arange(num_all).expand_as(score_RX), width)
    score_RW, place_RW = score_RW[:, :width], place_RW[:, :width]
    if float(score_RW[:, -1].min()) > -torch.inf:
        place_RW, order_RW = place_RW.sort(1)
        return score_RW.gather(1, order_RW), place_RW + first_R[:, None]
    place_RW, order_RW = place_RW.masked_fill(score_RW == -torch.inf, num_all).sort(1)
    is_none_RW = place_RW == num_all
    return score_RW.gather(1, order_RW), (place_RW + first_R[:, None]).masked_fill_(is_none_RW, -1)


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


def _heaviest(score_BW: Tensor, place_BW: Tensor, all_BX: Tensor, config: BeamConfig) -> tuple[Tensor, Tensor]:
    """The best beams that hold the wanted share of the candidates' probability; the others become unfilled places."""
    total_B1 = all_BX.logsumexp(1, keepdim=True)
    sorted_BW, order_BW = score_BW.sort(dim=1, descending=True, stable=True)
    share_BW = (sorted_BW - total_B1).exp().nan_to_num(0.0)
    before_BW = share_BW.double().cumsum(1) - share_BW
    drop_BW = (before_BW >= config.mass) & (torch.arange(score_BW.shape[1]) >= config.least)
    drop_BW = torch.zeros_like(drop_BW).scatter(1, order_BW, drop_BW)
    return score_BW.masked_fill(drop_BW, -torch.inf), place_BW.masked_fill(drop_BW, -1)


def _narrowed(score_BW: Tensor, place_BW: Tensor) -> tuple[Tensor, Tensor]:
    """As wide as the request with the most beams needs, so that the decoder has fewer rows."""
    is_none_BW = place_BW < 0
    width = max(1, int((~is_none_BW).sum(1).max()))
    order_BW = is_none_BW.byte().sort(dim=1, stable=True).indices[:, :width]
    return score_BW.gather(1, order_BW), place_BW.gather(1, order_BW)


def _by_score_and_node(score_BW: Tensor, node_BW: Tensor) -> Tensor:
    by_node_BW = torch.where(node_BW < 0, torch.iinfo(torch.int64).max, node_BW).argsort(1)
    by_score_BW = score_BW.gather(1, by_node_BW).sort(dim=1, descending=True, stable=True).indices
    return by_node_BW.gather(1, by_score_BW)
