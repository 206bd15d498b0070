"""Beam search beside a plain one over tuples of codes, exact to the bit.

Logits are multiples of 128 with one largest per row: exp(−128) is 0 in float32, so that every log-probability is a
whole number, sums are exact and ties are ties, whatever the order of the arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.index.code_trie import CodeTrie
from recsys.retrieval.beam_config import BeamConfig
from recsys.retrieval.beam_search import beam_search

NUM_ROWS = 61
STEP = 128.0


class Tables:
    """Logits from tables, by request and the codes that were asked for."""

    def __init__(self, tables, num_requests):
        self.tables, self.prefix_BW, self.level = tables, torch.arange(num_requests)[:, None], 0

    def logits(self, parent_BW, code_BW):
        if parent_BW is not None:
            self.prefix_BW = next_row(self.prefix_BW.gather(1, parent_BW), code_BW)
        self.level += 1
        return self.tables[self.level - 1][self.prefix_BW]


def next_row(row, code):
    return (row * 31 + code * 7 + 1) % NUM_ROWS


def whole_tables(rng, sizes, kind):
    tables = []
    for size in sizes:
        if kind == "equal":
            tables.append(torch.full((NUM_ROWS, size), 3.5))
            continue
        steps = np.stack([rng.permutation(size) for _ in range(NUM_ROWS)]).astype(np.float32)
        if kind == "coarse":  # the largest alone, all others on two steps
            steps = np.where(steps == size - 1, 4, steps % 2)
        table = torch.from_numpy(steps * np.float32(STEP) + np.float32(STEP) * rng.integers(-999, 999, (NUM_ROWS, 1)))
        table = table.float()
        if kind == "never":
            table[torch.from_numpy(rng.random(table.shape) < 0.3)] = -torch.inf
            table[rng.integers(0, NUM_ROWS, 6)] = -torch.inf
        tables.append(table)
    return tables


@dataclass
class Catalogue:
    """What a trie should hold, as plain lists."""

    codes: list[tuple[int, ...]]
    order: list[int]
    """Items by codes; those of one leaf by the batch they came in, then rank, then id."""
    gone: set[int]


def drawn_codes(rng, sizes, num_items, skewed):
    if skewed:
        columns = [np.minimum(rng.zipf(1.6, num_items) - 1, size - 1) for size in sizes]
    else:
        columns = [rng.integers(0, size, num_items) for size in sizes]
    return np.stack(columns, 1)


def grown_trie(rng, sizes, counts, skewed, share_gone, dense):
    """A trie that was built, thinned out and grown in turns, and what it should hold."""
    codes = drawn_codes(rng, sizes, counts[0], skewed)
    rank_I = rng.integers(0, 3, counts[0])
    trie = CodeTrie.build(codes, sizes, rank_I=rank_I)
    key, gone = [(0, int(rank)) for rank in rank_I], set()
    for batch, count in enumerate([*counts[1:], 0], 1):
        if share_gone:
            out = np.flatnonzero(rng.random(len(codes)) < share_gone)
            trie, gone = trie.without(torch.from_numpy(out)), gone | set(out.tolist())
        if count:
            new = drawn_codes(rng, sizes, count, skewed)
            trie, codes = trie.append(new), np.concatenate([codes, new])
            key += [(batch, 0)] * count
    rows = [tuple(row) for row in codes.tolist()]
    order = sorted(range(len(rows)), key=lambda item: (rows[item], key[item], item))
    return stored(trie, dense), Catalogue(rows, order, gone)


def stored(trie, dense):
    """The trie with every level as a dense table, or as runs, or each as it comes (None)."""
    levels, above = [], 1
    for number, level in enumerate(trie.levels):
        table = None
        if dense == "all" or (dense == "first" and number == 0):
            table = torch.full((above, trie.sizes[number]), -1, dtype=torch.int32)
            parent_N = torch.repeat_interleave(level.child_M1.diff().long())
            table[parent_N, level.code_N.long()] = torch.arange(level.num_nodes, dtype=torch.int32)
        levels.append(level if dense == "as it comes" else replace(level, table_MK=table))
        above = level.num_nodes
    return replace(trie, levels=tuple(levels))


def heaviest(beams, candidates, config):
    if config.mass == 1.0 or not beams:
        return beams
    beams = sorted(beams, key=lambda beam: (-beam[0], beam[3], beam[1]))
    total = sum(math.exp(beam[0] - beams[0][0]) for beam in candidates)
    shares = [math.exp(beam[0] - beams[0][0]) / total for beam in beams]
    return [beam for at, beam in enumerate(beams) if at < config.least or sum(shares[:at]) < config.mass]


def by_hand(catalogue, tables, request, config, k, reachable, num_levels):
    """Beam search with tuples, lists and sorting alone: [(score, item)] of one request."""
    beams = [(0.0, (), request, 0)]
    live = {catalogue.codes[item][: depth + 1] for item in reachable for depth in range(num_levels)}
    for level in range(num_levels):
        candidates = []
        for score, prefix, row, group in beams:
            logits = tables[level][row].tolist()
            children = {codes[level] for codes in catalogue.codes if codes[:level] == prefix}
            among = range(len(logits)) if config.normalise == "all" else children
            total = max(logits[code] for code in among)
            for code in children:
                if (*prefix, code) in live and logits[code] > -np.inf:
                    found = (score + logits[code] - total, (*prefix, code), next_row(row, code), group)
                    candidates.append(found)
        candidates.sort(key=lambda beam: (-beam[0], beam[1]))
        share = config.width(level) // (config.num_groups if level else 1)
        groups = [[beam for beam in candidates if beam[3] == group] for group in range(config.num_groups)]
        beams = heaviest([beam for group in groups for beam in group[:share]], candidates, config)
        if level == 0:
            beams = [(*beam[:3], place % config.num_groups) for place, beam in enumerate(beams)]
    beams.sort(key=lambda beam: (-beam[0], beam[1]))
    below = [[item for item in catalogue.order if catalogue.codes[item][:num_levels] == beam[1]] for beam in beams]
    return [(beam[0], item) for beam, items in zip(beams, below, strict=True) for item in items if item in reachable][
        :k
    ]


@settings(max_examples=120, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=5),
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    seed=st.integers(0, 10**6),
    skewed=st.booleans(),
    dense=st.sampled_from(["all", "first", "none", "as it comes"]),
    kind=st.sampled_from(["distinct", "never", "coarse", "equal"]),
    normalise=st.sampled_from(["all", "children"]),
    widths=st.one_of(st.none(), st.lists(st.integers(1, 12), min_size=1, max_size=5)),
    groups=st.integers(1, 4),
    mass=st.sampled_from([1.0, 1.0, 0.7654321]),
    k=st.integers(1, 60),
    share_gone=st.sampled_from([0.0, 0.3, 1.0]),
    share_allowed=st.sampled_from([None, 0.1, 0.7]),
    num_excluded=st.sampled_from([0, 3, 30]),
    stop=st.sampled_from([None, 1, 2]),
)
def test_every_search_equals_the_plain_one(
    sizes,
    counts,
    seed,
    skewed,
    dense,
    kind,
    normalise,
    widths,
    groups,
    mass,
    k,
    share_gone,
    share_allowed,
    num_excluded,
    stop,
):
    if kind in ("coarse", "equal"):
        normalise = "all"  # among children two could be the largest, which has no exact logarithm
    rng = np.random.default_rng(seed)
    trie, catalogue = grown_trie(rng, sizes, counts, skewed, share_gone, dense)
    num_items = len(catalogue.codes)
    assert trie.item_P.tolist() == catalogue.order and trie.num_left == num_items - len(catalogue.gone)
    tables = whole_tables(rng, sizes, kind)
    allow_N = None if share_allowed is None else torch.from_numpy(np.flatnonzero(rng.random(num_items) < share_allowed))
    exclude_BE = torch.from_numpy(rng.integers(-1, num_items + 3, (3, num_excluded)))  # some twice, some unknown
    config = BeamConfig(
        widths=(num_items,) if widths is None else tuple(max(width, groups) for width in widths),
        num_groups=1 if widths is None else groups,
        mass=1.0 if widths is None else mass,
        least=2,
        normalise=normalise,
        deadline_ms=None if stop is None else 1.0,
    )
    asked = iter(range(1000))
    hits = beam_search(
        trie,
        Tables(tables, 3),
        3,
        k,
        config,
        exclude_BE=exclude_BE,
        allow_N=allow_N,
        clock=lambda: 0.0 if next(asked) < (stop or 0) else 1.0,
    )
    num_levels = min(stop or len(sizes), len(sizes))
    if hits.num_found_Q.any():
        assert hits.levels_decoded == num_levels
    never = -sum(np.log(size) for size in sizes[:num_levels])
    allowed = set(range(num_items) if allow_N is None else allow_N.tolist())
    for request in range(3):
        reachable = allowed - catalogue.gone - set(exclude_BE[request].tolist())
        wanted = by_hand(catalogue, tables, request, config, k, reachable, num_levels)
        count = len(wanted)
        assert hits.ids_QK[request].tolist() == [item for _, item in wanted] + [-1] * (k - count)
        scores = hits.scores_QK[request, :count].tolist()
        assert scores == (pytest.approx([never] * count) if kind == "equal" else [score for score, _ in wanted])
        assert hits.scores_QK[request, count:].eq(-torch.inf).all()
        assert (int(hits.num_found_Q[request]), int(hits.reachable_Q[request])) == (count, len(reachable))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 9), min_size=1, max_size=4),
    num_items=st.integers(2, 80),
    seed=st.integers(0, 10**6),
    normalise=st.sampled_from(["all", "children"]),
)
def test_a_shorter_list_is_the_head_of_the_whole_one_and_ties_stand_in_the_order_of_the_trie(
    sizes, num_items, seed, normalise
):
    rng = np.random.default_rng(seed)
    trie = CodeTrie.build(drawn_codes(rng, sizes, num_items, skewed=True), sizes)
    tables = [torch.from_numpy(rng.integers(-2, 3, (NUM_ROWS, size))).float() for size in sizes]
    config = BeamConfig(widths=(num_items,), normalise=normalise)
    whole = beam_search(trie, Tables(tables, 2), 2, num_items, config)
    for ids, scores in zip(whole.ids_QK, whole.scores_QK, strict=True):
        pairs = list(zip((-scores).tolist(), trie.place_I[ids].tolist(), strict=True))
        assert pairs == sorted(pairs) and sorted(ids.tolist()) == list(range(num_items))
    head = beam_search(trie, Tables(tables, 2), 2, 1 + seed % num_items, config)
    assert torch.equal(head.ids_QK, whole.ids_QK[:, : head.ids_QK.shape[1]])
    assert torch.equal(head.scores_QK, whole.scores_QK[:, : head.ids_QK.shape[1]])
