"""Beam search over the code trie beside sorting every item by its exact log-probability."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.index import code_trie
from recsys.index.code_trie import CodeTrie
from recsys.retrieval.beam_config import BeamConfig
from recsys.retrieval.beam_search import beam_search

NUM_ROWS = 97


class TableDecoding:
    """Logits that depend on request and prefix, from tables."""

    def __init__(self, sizes, num_requests, seed, kind="normal"):
        generator = torch.Generator().manual_seed(seed)
        self.tables, self.prefix_BW, self.level = [], torch.arange(num_requests)[:, None], 0
        for size in sizes:
            table = torch.randn(NUM_ROWS, size, generator=generator)
            if kind == "ties":
                table = table.round()
            if kind == "equal":
                table = torch.zeros_like(table)
            if kind == "never":
                table = table.masked_fill(torch.rand(table.shape, generator=generator) < 0.4, -torch.inf)
            self.tables.append(table)

    def logits(self, parent_BW, code_BW):
        if parent_BW is not None:
            self.prefix_BW = self.next_prefix(self.prefix_BW.gather(1, parent_BW), code_BW)
        self.level += 1
        return self.tables[self.level - 1][self.prefix_BW]

    @staticmethod
    def next_prefix(prefix, code):
        return (prefix * 31 + code * 7 + 1) % NUM_ROWS


def by_hand(trie, sizes, num_requests, seed, kind, normalise, allowed, excluded, k):
    """Ids and scores of each request, every item scored by itself."""
    decoding = TableDecoding(sizes, num_requests, seed, kind)
    codes, places = trie.codes().tolist(), trie.place_I.tolist()
    gone = set() if trie.gone_G is None else set(trie.item_P[trie.gone_G].tolist())
    found = []
    for request in range(num_requests):
        scored = []
        for item, row in enumerate(codes):
            if item in gone or item in excluded[request] or (allowed is not None and item not in allowed):
                continue
            prefix, score = request, torch.zeros(())
            for level, code in enumerate(row):
                logits = decoding.tables[level][prefix]
                if normalise == "all":
                    total = logits.logsumexp(0)
                else:
                    alike = [other for other in codes if other[:level] == row[:level]]
                    total = logits[sorted({other[level] for other in alike})].logsumexp(0)
                score = score + (logits[code] - total if total > -math.inf else torch.tensor(-math.inf))
                prefix = TableDecoding.next_prefix(prefix, code)
            if score > -math.inf:
                scored.append((-float(score), places[item], item))
        found.append(sorted(scored)[:k])
    return found


def random_trie(rng, sizes, num_items):
    codes = np.stack([rng.integers(0, size, num_items) for size in sizes], 1)
    return CodeTrie.build(codes, sizes, rank_I=rng.integers(0, 3, num_items))


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    num_items=st.integers(1, 60),
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["normal", "ties", "equal", "never"]),
    normalise=st.sampled_from(["all", "children"]),
    k=st.integers(1, 70),
    share_gone=st.sampled_from([0.0, 0.3]),
    share_allowed=st.sampled_from([None, 0.0, 0.2, 0.8]),
    num_excluded=st.integers(0, 12),
)
def test_a_beam_as_wide_as_the_catalogue_sorts_every_item(
    sizes, num_items, seed, kind, normalise, k, share_gone, share_allowed, num_excluded
):
    rng = np.random.default_rng(seed)
    trie = random_trie(rng, sizes, num_items)
    if share_gone:
        trie = trie.without(torch.from_numpy(np.flatnonzero(rng.random(num_items) < share_gone)))
    allow_N = None if share_allowed is None else torch.from_numpy(np.flatnonzero(rng.random(num_items) < share_allowed))
    exclude_BE = torch.from_numpy(rng.integers(-1, num_items + 2, (3, num_excluded)))  # ids outside among them
    allowed = None if allow_N is None else set(allow_N.tolist())
    excluded = [set(row) for row in exclude_BE.tolist()]
    config = BeamConfig(widths=(num_items,), normalise=normalise)
    hits = beam_search(trie, TableDecoding(sizes, 3, seed, kind), 3, k, config, exclude_BE=exclude_BE, allow_N=allow_N)
    expected = by_hand(trie, sizes, 3, seed, kind, normalise, allowed, excluded, k)
    for request, rows in enumerate(expected):
        count = int(hits.num_found_Q[request])
        assert count == len(rows) and hits.ids_QK[request, count:].eq(-1).all()
        assert hits.scores_QK[request, :count].tolist() == pytest.approx([-score for score, _, _ in rows], abs=2e-5)
        if kind != "normal":  # rounding of equal sums decides the order of what should be equal
            wanted = {item: -score for score, _, item in rows}
            assert all(
                abs(wanted.get(item, s) - s) < 2e-5 for item, s in zip(*_lists(hits, request, count), strict=True)
            )
        if kind in ("normal", "equal"):
            assert hits.ids_QK[request, :count].tolist() == [item for _, _, item in rows]
    left = len([item for item in range(num_items) if _left(trie, item) and (allowed is None or item in allowed)])
    for request in range(3):
        out = [item for item in excluded[request] if 0 <= item < num_items and _left(trie, item)]
        out = [item for item in out if allowed is None or item in allowed]
        assert int(hits.reachable_Q[request]) == left - len(out)


def _lists(hits, request, count):
    return hits.ids_QK[request, :count].tolist(), hits.scores_QK[request, :count].tolist()


def _left(trie, item):
    return trie.gone_G is None or int(trie.place_I[item]) not in trie.gone_G.tolist()


def plain_beam(trie, sizes, seed, kind, normalise, widths, left, request, k):
    """Ids of one request by the rules of the search, with lists: ``left`` are the items that it may get."""
    decoding = TableDecoding(sizes, 3, seed, kind)
    codes, places = trie.codes().tolist(), trie.place_I.tolist()
    beams = [((), torch.zeros(()), request)]
    for level in range(len(sizes)):
        candidates = []
        for prefix, score, row in beams:
            logits = decoding.tables[level][row]
            children = sorted({code[level] for code in codes if tuple(code[:level]) == prefix})
            total = (logits if normalise == "all" else logits[children]).logsumexp(0)
            for code in children:
                new = score + (logits[code] - total)
                if new > -math.inf and any(tuple(codes[item][: level + 1]) == (*prefix, code) for item in left):
                    candidates.append(((*prefix, code), new, TableDecoding.next_prefix(row, code)))
        width = widths[min(level, len(widths) - 1)]
        beams = sorted(candidates, key=lambda beam: (-float(beam[1]), beam[0]))[:width]
    items = [sorted((i for i in left if tuple(codes[i]) == prefix), key=lambda i: places[i]) for prefix, _, _ in beams]
    return [item for leaf in items for item in leaf][:k]


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    num_items=st.integers(1, 60),
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["normal", "never", "equal"]),
    normalise=st.sampled_from(["all", "children"]),
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    dense=st.booleans(),
    share_allowed=st.sampled_from([None, 0.5]),
    num_excluded=st.integers(0, 6),
)
def test_a_narrow_beam_keeps_what_a_plain_one_keeps(
    sizes, num_items, seed, kind, normalise, widths, dense, share_allowed, num_excluded
):
    if kind == "equal":
        normalise = "all"  # else rounding decides the order of sums that should be equal
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_trie, "_MOST_CELLS", 2**20 if dense else 0)
        trie = random_trie(rng, sizes, num_items)
        trie = trie.without(torch.from_numpy(np.flatnonzero(rng.random(num_items) < 0.2)))
    allow_N = None if share_allowed is None else torch.from_numpy(np.flatnonzero(rng.random(num_items) < share_allowed))
    exclude_BE = torch.from_numpy(rng.integers(-1, num_items, (3, num_excluded)))
    decoding = TableDecoding(sizes, 3, seed, kind)
    config = BeamConfig(widths=tuple(widths), normalise=normalise)
    hits = beam_search(trie, decoding, 3, 7, config, exclude_BE=exclude_BE, allow_N=allow_N)
    for request in range(3):
        left = [item for item in range(num_items) if _left(trie, item) and item not in exclude_BE[request].tolist()]
        left = [item for item in left if allow_N is None or item in allow_N.tolist()]
        wanted = plain_beam(trie, sizes, seed, kind, normalise, widths, left, request, 7)
        assert hits.ids_QK[request, : len(wanted)].tolist() == wanted
        assert int(hits.num_found_Q[request]) == len(wanted)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    num_items=st.integers(1, 80),
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["normal", "ties", "equal", "never"]),
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    groups=st.integers(1, 3),
    mass=st.sampled_from([1.0, 0.9, 0.3]),
    deadline=st.sampled_from([None, 0.0]),
)
def test_nothing_illegal_is_returned_however_narrow_the_beam(
    sizes, num_items, seed, kind, widths, groups, mass, deadline
):
    rng = np.random.default_rng(seed)
    trie = random_trie(rng, sizes, num_items).without(torch.from_numpy(np.flatnonzero(rng.random(num_items) < 0.2)))
    allow_N = torch.from_numpy(np.flatnonzero(rng.random(num_items) < 0.7))
    exclude_BE = torch.from_numpy(rng.integers(-1, num_items, (4, 5)))
    config = BeamConfig(
        widths=tuple(max(width, groups) for width in widths),
        num_groups=groups,
        mass=mass,
        least=1,
        deadline_ms=deadline,
    )
    hits = beam_search(trie, TableDecoding(sizes, 4, seed, kind), 4, 10, config, exclude_BE=exclude_BE, allow_N=allow_N)
    allowed = set(allow_N.tolist())
    for request in range(4):
        ids = hits.ids_QK[request][hits.ids_QK[request] >= 0].tolist()
        assert len(ids) == len(set(ids)) == int(hits.num_found_Q[request]) <= int(hits.reachable_Q[request])
        assert all(item in allowed and _left(trie, item) for item in ids)
        assert not set(ids) & set(exclude_BE[request].tolist())
        scores = hits.scores_QK[request, : len(ids)]
        assert (scores.diff() <= 0).all() and (scores > -torch.inf).all()
    if kind != "never" and not deadline == 0.0 and mass == 1.0:
        assert ((hits.num_found_Q > 0) == (hits.reachable_Q > 0)).all()


def test_a_filtered_item_holds_no_beam():
    """Two beams, and the two most probable first codes lead to excluded items alone."""
    trie = CodeTrie.build(np.array([[0, 0], [1, 0], [2, 0], [2, 1]]), (3, 2))

    class Falling:
        def logits(self, parent_BW, code_BW):
            rows, size = (2, 3) if parent_BW is None else (parent_BW.shape[1], 2)
            return -torch.arange(size).float().expand(1, 1 if parent_BW is None else rows, size)

    config = BeamConfig(widths=(2,))
    for limits in ({"exclude_BE": torch.tensor([[0, 1]])}, {"allow_N": torch.tensor([2, 3])}):
        assert beam_search(trie, Falling(), 1, 4, config, **limits).ids_QK.tolist() == [[2, 3, -1, -1]]
    gone = trie.without(torch.tensor([0, 1]))
    assert beam_search(gone, Falling(), 1, 4, config).ids_QK.tolist() == [[2, 3, -1, -1]]


def test_groups_keep_places_for_other_first_codes():
    codes = np.array([[0, code] for code in range(6)] + [[1, code] for code in range(6)])
    trie = CodeTrie.build(codes, (2, 6))

    class Steep:
        def logits(self, parent_BW, code_BW):
            if parent_BW is None:
                return torch.tensor([[[0.0, -9.0]]])
            return torch.zeros(1, parent_BW.shape[1], 6)

    narrow = beam_search(trie, Steep(), 1, 4, BeamConfig(widths=(4,)))
    assert narrow.ids_QK.tolist() == [[0, 1, 2, 3]]
    grouped = beam_search(trie, Steep(), 1, 4, BeamConfig(widths=(4,), num_groups=2))
    assert grouped.ids_QK.tolist() == [[0, 1, 6, 7]]


def test_past_the_deadline_items_below_the_prefixes_are_returned():
    codes = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])
    trie = CodeTrie.build(codes, (2, 2, 2))
    ticks = iter([0.0, 0.001, 0.9, 1.0])
    decoding = TableDecoding((2, 2, 2), 2, 5)
    hits = beam_search(trie, decoding, 2, 3, BeamConfig(deadline_ms=50), clock=lambda: next(ticks))
    assert hits.levels_decoded == 2 and (hits.num_found_Q == 3).all()
    logp = decoding.tables[0][:2].log_softmax(1)
    assert hits.levels_decoded == decoding.level
    assert hits.scores_QK.max() <= logp.max()


def test_mass_drops_what_weighs_little():
    trie = CodeTrie.build(np.arange(20)[:, None], (20,))

    class Peaked:
        def logits(self, parent_BW, code_BW):
            return torch.log(torch.tensor([0.5, 0.3, *[0.2 / 18] * 18])).expand(1, 1, 20)

    def found(mass, least):
        return int(beam_search(trie, Peaked(), 1, 20, BeamConfig(widths=(20,), mass=mass, least=least)).num_found_Q)

    assert [found(0.4, 1), found(0.6, 1), found(0.6, 5), found(1.0, 1)] == [1, 2, 5, 20]


def test_beams_dropped_by_mass_are_not_decoded():
    trie = CodeTrie.build(np.array([[first, second] for first in range(20) for second in range(3)]), (20, 3))
    rows = []

    class Peaked:
        def logits(self, parent_BW, code_BW):
            if parent_BW is None:
                share = torch.full((2, 1, 20), 0.01)
                share[0, 0, 7], share[1, 0, 2], share[1, 0, 5] = 0.81, 0.41, 0.41
                return share.log()
            rows.append(code_BW.tolist())
            return torch.zeros(2, parent_BW.shape[1], 3)

    hits = beam_search(trie, Peaked(), 2, 6, BeamConfig(widths=(20,), mass=0.8, least=1))
    assert [len(rows[0][0]), rows[0][0][0], rows[0][1]] == [2, 7, [2, 5]]
    assert hits.ids_QK.tolist() == [[21, 22, 23, -1, -1, -1], [6, 7, 8, 15, 16, -1]]  # five of six equals hold .8


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_are_an_error(bad):
    trie = CodeTrie.build(np.array([[0], [1]]), (3,))

    class Broken:
        def logits(self, parent_BW, code_BW):
            return torch.tensor([[[0.0, 1.0, 2.0]], [[0.0, 1.0, bad]]])

    with pytest.raises(ValueError, match="level 1, request 1, hold a NaN"):
        beam_search(trie, Broken(), 2, 1, BeamConfig())


def test_logits_of_other_codes_are_an_error():
    trie = CodeTrie.build(np.array([[0], [1]]), (3,))
    with pytest.raises(ValueError, match=r"must be \[1, 1, 3\], got \[1, 1, 4\]"):
        beam_search(trie, TableDecoding((4,), 1, 0), 1, 1, BeamConfig())
    with pytest.raises(ValueError, match="k must be at least 1"):
        beam_search(trie, TableDecoding((3,), 1, 0), 1, 0, BeamConfig())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"widths": ()}, "widths"),
        ({"widths": (4, 0)}, "widths"),
        ({"widths": (4, 2), "num_groups": 3}, "num_groups"),
        ({"mass": 0.0}, "mass"),
        ({"least": 0}, "least"),
        ({"deadline_ms": -1.0}, "deadline_ms"),
        ({"normalise": "some"}, "normalise"),
    ],
)
def test_settings_that_mean_nothing_are_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        BeamConfig(**wrong)
