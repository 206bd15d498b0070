"""A catalogue scored by codes that are predicted all at once: in blocks, against code after code; and the walk.

Items are made: clusters on a sphere, coded by the nearest of 256 directions in each of 16 codebooks. Users stand near
items.

Suffixes: I = items, J = codes of an item, K = codes of a codebook, D = width, B = users.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.index.code_neighbours import CodeNeighbours
from recsys.index.hits import Hits
from recsys.kernels.topk import topk_smaller_id
from recsys.parallel_codes import code_scores
from recsys.pipelines.bench.case import Case, interleaved_seconds
from recsys.retrieval.code_catalogue import CodeCatalogue
from recsys.retrieval.code_walk import CodeWalkConfig, code_walk

__all__ = ["against_gather", "bench_codes", "made_catalogue", "walked"]

_PARTS, _CODES, _WIDTH, _HITS = 16, 256, 32, 100
_CLUSTER = 50
"""Items of a cluster on average."""
_AT_ONCE = 1 << 15


def bench_codes(*, long: bool) -> list[Case]:
    """Blocks of a million items and of 200,000 first, then the walk; ``long`` walks 200,000 items too."""
    cases = [against_gather(items, users, repeats=3) for items in (1_000_000, 200_000) for users in (16, 1)]
    sizes = (60_000, 200_000) if long else (60_000,)
    return cases + [case for items in sizes for case in walked(items, num_users=16, repeats=3)]


def made_catalogue(num_items: int, num_users: int) -> tuple[Tensor, Tensor, Tensor]:
    """[I, J] int32 codes, [J, K, D] vectors of the codes, and [J, B, K] log-probabilities of every code."""
    draw = torch.Generator().manual_seed(0)
    centre = torch.randn(max(10, num_items // _CLUSTER), _WIDTH, generator=draw)
    item_ID = centre[torch.randint(len(centre), (num_items,), generator=draw)]
    item_ID = F.normalize(item_ID + 0.6 * torch.randn(num_items, _WIDTH, generator=draw), dim=1)
    vector_JKD = F.normalize(torch.randn(_PARTS, _CODES, _WIDTH, generator=draw), dim=2)
    parts = [
        torch.stack([(item_ID[low : low + _AT_ONCE] @ book_KD.T).argmax(1) for book_KD in vector_JKD], 1).int()
        for low in range(0, num_items, _AT_ONCE)
    ]
    user_BD = item_ID[torch.randint(num_items, (num_users,), generator=draw)]
    user_BD = F.normalize(user_BD + 0.5 * F.normalize(torch.randn(num_users, _WIDTH, generator=draw), dim=1), dim=1)
    logp_JBK = (torch.einsum("bd,jkd->jbk", user_BD, vector_JKD) * 12).log_softmax(-1)
    return torch.cat(parts), vector_JKD, logp_JBK


def against_gather(num_items: int, num_users: int, *, repeats: int) -> Case:
    """The search of a catalogue, and one that gathers code after code for every item and sorts the scores.

    Codes are drawn at random: which they are changes nothing here.
    """
    draw = torch.Generator().manual_seed(0)
    code_IJ = torch.randint(0, _CODES, (num_items, _PARTS), generator=draw, dtype=torch.int32)
    logp_JBK = torch.randn(_PARTS, num_users, _CODES, generator=draw).log_softmax(-1)
    catalogue = CodeCatalogue(code_IJ)

    def plain() -> Hits:
        score_BI = code_scores(logp_JBK, code_IJ)
        score_BK, id_BK = topk_smaller_id(score_BI, torch.arange(num_items).expand_as(score_BI), _HITS)
        return Hits(id_BK, score_BK)

    ours, theirs = catalogue.search(logp_JBK, _HITS, None, None), plain()
    assert torch.equal(ours.ids_QK, theirs.ids_QK) and torch.equal(ours.scores_QK, theirs.scores_QK)
    seconds = interleaved_seconds(
        {"ours": lambda: catalogue.search(logp_JBK, _HITS, None, None), "plain": plain}, repeats=repeats
    )
    return Case(
        name=f"{num_items:,} items, {num_users} request{'s' if num_users > 1 else ''}",
        shape={"items": num_items, "requests": num_users, "codes": _PARTS, "codebook": _CODES, "hits": _HITS},
        ours={"what": "rows of a table added up in blocks", "ms": seconds["ours"] * 1e3},
        other={"what": "gathered code by code, then sorted", "ms": seconds["plain"] * 1e3},
        ratio=seconds["plain"] / seconds["ours"],
        predicted_ratio=None,
    )


def walked(num_items: int, num_users: int, *, repeats: int) -> list[Case]:
    """The walk at some widths, and the search of everything; the graph is built once."""
    code_IJ, vector_JKD, logp_JBK = made_catalogue(num_items, num_users)
    began = time.perf_counter()
    graph = CodeNeighbours.build(code_IJ, vector_JKD)
    built, catalogue = time.perf_counter() - began, CodeCatalogue(code_IJ)
    exact = catalogue.search(logp_JBK, _HITS, None, None).ids_QK
    cases = []
    for num_beams, num_steps in ((100, 4), (200, 8), (400, 8)):
        config = CodeWalkConfig(num_beams=num_beams, num_steps=num_steps)
        hits = code_walk(graph, code_IJ, logp_JBK, _HITS, config)
        found = {k: (hits.ids_QK[:, :k, None] == exact[:, None, :k]).any(2).float().mean() for k in (10, _HITS)}
        seconds = interleaved_seconds(
            {
                "walk": lambda config=config: code_walk(graph, code_IJ, logp_JBK, _HITS, config),  # type: ignore[misc]
                "exact": lambda: catalogue.search(logp_JBK, _HITS, None, None),
            },
            repeats=repeats,
        )
        cases.append(
            Case(
                name=f"walk over {num_items:,} items, {num_beams} beams, {num_steps} steps",
                shape={"items": num_items, "requests": num_users, "codes": _PARTS, "codebook": _CODES, "hits": _HITS},
                ours={"what": "walk", "ms": seconds["walk"] * 1e3, "share_visited": _share(hits.visited_B, num_items)}
                | {f"recall@{k}": float(share) for k, share in found.items()}
                | {"build_seconds": built},
                other={"what": "every item", "ms": seconds["exact"] * 1e3},
                ratio=seconds["exact"] / seconds["walk"],
                predicted_ratio=num_items / float(hits.visited_B.float().mean()),
            )
        )
    return cases


def _share(visited_B: Tensor, num_items: int) -> float:
    return float(visited_B.float().mean()) / num_items
