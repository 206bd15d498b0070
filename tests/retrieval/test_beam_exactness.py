"""Beam search beside a plain one over tuples of codes, exact to the bit, and the ways in which a search goes wrong.

Logits are multiples of 128 with one largest per row: exp(−128) is 0 in float32, so that every log-probability is a
whole number, sums are exact and ties are ties, whatever the order of the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from recsys.index.code_trie import CodeTrie
from recsys.retrieval.beam_config import BeamConfig
from recsys.retrieval.beam_search import beam_search

NUM_ROWS = 61
STEP = 128.0


class Tables:
    """Logits from tables, by request and the codes that were asked for."""

    def __init__(self, tables, num_requests):
        self.tables, self.prefix_BW, self.asked = tables, torch.arange(num_requests)[:, None], []

    def logits(self, parent_BW, code_BW):
        if parent_BW is not None:
            self.prefix_BW = next_row(self.prefix_BW.gather(1, parent_BW), code_BW)
        self.asked.append((parent_BW, code_BW))
        return self.tables[len(self.asked) - 1][self.prefix_BW]


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
        if level == 0:
            best = candidates[: config.width(0)]
            beams = [(*beam[:3], place % config.num_groups) for place, beam in enumerate(best)]
        else:
            share = config.width(level) // config.num_groups
            groups = [[beam for beam in candidates if beam[3] == group] for group in range(config.num_groups)]
            beams = [beam for group in groups for beam in group[:share]]
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


def flat_tables(sizes):
    return [torch.zeros(NUM_ROWS, size) for size in sizes]


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("dense", ["all", "none"])
@pytest.mark.parametrize("limit", ["allow", "exclude", "remove"])
def test_one_beam_finds_the_only_item_left_at_every_depth(depth, dense, limit):
    """The branch that leads away from the item is likelier by far, and all items below it are out."""
    sizes = (3, 3, 3, 3)
    wanted = [0] * depth + [2] + [1] * (3 - depth)
    others = [[0] * depth + [first] + [code] * (3 - depth) for first in (0, 1) for code in range(3)]
    trie = stored(CodeTrie.build(np.array([*others, wanted]), sizes), dense)
    limits = {"allow": {"allow_N": torch.tensor([6])}, "exclude": {"exclude_BE": torch.arange(6)[None]}}
    trie = trie.without(torch.arange(6)) if limit == "remove" else trie
    tables = [torch.tensor([0.0, -5.0, -50.0]).expand(NUM_ROWS, 3)] * 4
    hits = beam_search(trie, Tables(tables, 1), 1, 5, BeamConfig(widths=(1,)), **limits.get(limit, {}))
    assert hits.ids_QK.tolist() == [[6, -1, -1, -1, -1]]
    assert (int(hits.num_found_Q), int(hits.reachable_Q)) == (1, 1)


def test_a_prefix_without_continuation_gives_nothing_rather_than_anything():
    """Every code that continues the prefixes in the catalogue has probability 0, all others are likely."""
    trie = CodeTrie.build(np.array([[0, 1], [1, 1], [2, 0]]), (3, 4))
    never = torch.zeros(NUM_ROWS, 4)
    never[:, :2] = -torch.inf
    for normalise in ("all", "children"):
        for form in ("all", "none"):
            config = BeamConfig(normalise=normalise)
            hits = beam_search(stored(trie, form), Tables([torch.zeros(NUM_ROWS, 3), never], 2), 2, 3, config)
            assert hits.ids_QK.eq(-1).all() and hits.scores_QK.eq(-torch.inf).all()
            assert hits.num_found_Q.tolist() == [0, 0] and hits.reachable_Q.tolist() == [3, 3]


def test_every_item_of_a_shared_leaf_is_returned_once_in_its_order():
    codes = np.array([[1, 1], [0, 0], [1, 1], [1, 1], [0, 1], [1, 1]])
    trie = CodeTrie.build(codes, (2, 2), rank_I=np.array([3, 0, 0, 2, 0, 1])).append(np.array([[1, 1], [0, 0]]))
    tables = [torch.tensor([-1.0, 0.0]).expand(NUM_ROWS, 2)] * 2
    hits = beam_search(trie, Tables(tables, 1), 1, 9, BeamConfig(widths=(9,)))
    assert hits.ids_QK.tolist() == [[2, 5, 3, 0, 6, 4, 1, 7, -1]]
    assert hits.scores_QK[0, :5].unique().numel() == 1
    cut = {"exclude_BE": torch.tensor([[5, 0, 5]])}
    assert beam_search(trie, Tables(tables, 1), 1, 4, BeamConfig(), **cut).ids_QK.tolist() == [[2, 3, 6, 4]]
    thin = trie.without(torch.tensor([2, 6]))
    assert beam_search(thin, Tables(tables, 1), 1, 4, BeamConfig(), **cut).ids_QK.tolist() == [[3, 4, 1, 7]]
    few = {"allow_N": torch.tensor([0, 3, 6])}
    assert beam_search(trie, Tables(tables, 1), 1, 4, BeamConfig(), **few).ids_QK.tolist() == [[3, 0, 6, -1]]


def test_a_catalogue_of_one_code_is_listed_whole():
    trie = CodeTrie.build(np.zeros((200, 3)), (4, 4, 4))
    hits = beam_search(trie, Tables(flat_tables((4, 4, 4)), 2), 2, 200, BeamConfig(widths=(1,)))
    assert hits.ids_QK.tolist() == [list(range(200))] * 2


@pytest.mark.parametrize("normalise", ["all", "children"])
def test_beams_of_a_request_are_distinct_prefixes(normalise):
    """With equal logits nothing but the trie keeps beams apart."""
    sizes = (3, 4, 5)
    codes = np.stack(np.meshgrid(*[np.arange(size) for size in sizes], indexing="ij"), -1).reshape(-1, 3)
    decoding = Tables(flat_tables(sizes), 2)
    beam_search(CodeTrie.build(codes, sizes), decoding, 2, 5, BeamConfig(widths=(12,), normalise=normalise))
    prefixes = [[()], [()]]
    for (parent_BW, code_BW), wanted in zip(decoding.asked[1:], (3, 12), strict=True):
        for request in range(2):
            steps = zip(parent_BW[request].tolist(), code_BW[request].tolist(), strict=True)
            prefixes[request] = [(*prefixes[request][parent], code) for parent, code in steps]
            assert len(prefixes[request]) == len(set(prefixes[request])) == wanted


def test_operations_grow_neither_with_beams_nor_with_requests():
    sizes = (16, 16, 16)
    codes = drawn_codes(np.random.default_rng(0), sizes, 3000, skewed=False)
    trie, tables = CodeTrie.build(codes, sizes), flat_tables(sizes)

    class Counting(TorchFunctionMode):
        count = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.count += 1
            return func(*args, **(kwargs or {}))

    def operations(num_requests, width):
        exclude_BE = torch.arange(num_requests)[:, None]
        with Counting() as counting:
            hits = beam_search(
                trie, Tables(tables, num_requests), num_requests, 4, BeamConfig(widths=(width,)), exclude_BE=exclude_BE
            )
        assert (hits.num_found_Q == 4).all()
        return counting.count

    counts = [operations(1, 4), operations(50, 4), operations(1, 1000), operations(10, 200)]
    assert max(counts) < min(counts) + 20 < 1500  # one more where a list is padded


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"allow_N": torch.tensor([1, 1])}, "rise strictly"),
        ({"allow_N": torch.tensor([2, 1])}, "rise strictly"),
        ({"allow_N": torch.tensor([-1, 1])}, "from 0 to 2, got -1"),
        ({"allow_N": torch.tensor([1, 3])}, "from 0 to 2, got 1 to 3"),
        ({"exclude_BE": torch.tensor([[0]])}, r"int64 \[2, E\]"),
        ({"exclude_BE": torch.tensor([[0.0], [1.0]])}, r"int64 \[2, E\]"),
    ],
)
def test_lists_that_would_give_an_item_twice_or_to_another_request_are_errors(limits, message):
    trie = CodeTrie.build(np.array([[0], [1], [1]]), (2,))
    with pytest.raises(ValueError, match=message):
        beam_search(trie, Tables(flat_tables((2,)), 2), 2, 3, BeamConfig(), **limits)


def test_logits_too_large_for_float32_are_an_error():
    trie = CodeTrie.build(np.array([[0], [1]]), (2,))
    tables = [torch.full((NUM_ROWS, 2), 1e300, dtype=torch.float64)]
    with pytest.raises(ValueError, match="level 1, request 0, hold a NaN or \\+inf"):
        beam_search(trie, Tables(tables, 2), 2, 1, BeamConfig())


def test_no_requests_give_no_hits():
    trie = CodeTrie.build(np.array([[0, 0], [1, 1]]), (2, 2))
    for config in (BeamConfig(), BeamConfig(num_groups=2, mass=0.9)):
        hits = beam_search(trie, Tables(flat_tables((2, 2)), 0), 0, 4, config)
        assert hits.ids_QK.shape == hits.scores_QK.shape == (0, 4)
        assert len(hits.num_found_Q) == len(hits.reachable_Q) == 0
