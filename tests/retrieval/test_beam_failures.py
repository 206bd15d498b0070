"""The ways in which constrained generation goes wrong: none of them is possible here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from recsys.index.code_trie import CodeTrie
from recsys.retrieval.beam_config import BeamConfig
from recsys.retrieval.beam_search import beam_search


class Steady:
    """The same logits after every prefix of a level."""

    def __init__(self, levels, num_requests):
        self.levels, self.num_requests, self.asked = levels, num_requests, []

    def logits(self, parent_BW, code_BW):
        self.asked.append((parent_BW, code_BW))
        beams = 1 if parent_BW is None else parent_BW.shape[1]
        return self.levels[len(self.asked) - 1].repeat(self.num_requests, beams, 1)


def flat(sizes):
    return [torch.zeros(size) for size in sizes]


def as_runs(trie):
    return replace(trie, levels=tuple(replace(level, table_MK=None) for level in trie.levels))


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("limit", ["allow", "exclude", "remove", "remove and exclude", "allow and exclude"])
def test_one_beam_finds_the_only_item_left_at_every_depth(depth, dense, limit):
    """The branch that leads away from the item is likelier by far, and all items below it are out."""
    sizes = (3, 3, 3, 3)
    wanted = [0] * depth + [2] + [1] * (3 - depth)
    others = [[0] * depth + [first] + [code] * (3 - depth) for first in (0, 1) for code in range(3)]
    trie = CodeTrie.build(np.array([*others, wanted]), sizes)
    trie = trie if dense else as_runs(trie)
    # Every third of the items in the way is out for one reason, the others for another.
    one, other = torch.arange(0, 6, 3), torch.tensor([[1, 2, 4, 5]])
    limits = {
        "allow": {"allow_N": torch.tensor([6])},
        "exclude": {"exclude_BE": torch.arange(6)[None]},
        "remove and exclude": {"exclude_BE": other},
        "allow and exclude": {"allow_N": torch.tensor([1, 2, 4, 5, 6]), "exclude_BE": other},
    }
    gone = {"remove": torch.arange(6), "remove and exclude": one}
    trie = trie.without(gone[limit]) if limit in gone else trie
    levels = [torch.tensor([0.0, -5.0, -50.0])] * 4
    hits = beam_search(trie, Steady(levels, 1), 1, 5, BeamConfig(widths=(1,)), **limits.get(limit, {}))
    assert hits.ids_QK.tolist() == [[6, -1, -1, -1, -1]]
    assert (int(hits.num_found_Q), int(hits.reachable_Q)) == (1, 1)


def test_a_prefix_without_continuation_gives_nothing_rather_than_anything():
    """Every code that continues the prefixes in the catalogue has probability 0, all others are likely."""
    trie = CodeTrie.build(np.array([[0, 1], [1, 1], [2, 0]]), (3, 4))
    levels = [torch.zeros(3), torch.tensor([-torch.inf, -torch.inf, 0.0, 0.0])]
    for normalise in ("all", "children"):
        for form in (trie, as_runs(trie)):
            hits = beam_search(form, Steady(levels, 2), 2, 3, BeamConfig(normalise=normalise))
            assert hits.ids_QK.eq(-1).all() and hits.scores_QK.eq(-torch.inf).all()
            assert hits.num_found_Q.tolist() == [0, 0] and hits.reachable_Q.tolist() == [3, 3]


def test_every_item_of_a_shared_leaf_is_returned_once_in_its_order():
    codes = np.array([[1, 1], [0, 0], [1, 1], [1, 1], [0, 1], [1, 1]])
    trie = CodeTrie.build(codes, (2, 2), rank_I=np.array([3, 0, 0, 2, 0, 1])).append(np.array([[1, 1], [0, 0]]))
    levels = [torch.tensor([-1.0, 0.0])] * 2
    hits = beam_search(trie, Steady(levels, 1), 1, 9, BeamConfig(widths=(9,)))
    assert hits.ids_QK.tolist() == [[2, 5, 3, 0, 6, 4, 1, 7, -1]]
    assert hits.scores_QK[0, :5].unique().numel() == 1
    cut = {"exclude_BE": torch.tensor([[5, 0, 5]])}
    assert beam_search(trie, Steady(levels, 1), 1, 4, BeamConfig(), **cut).ids_QK.tolist() == [[2, 3, 6, 4]]
    thin = trie.without(torch.tensor([2, 6]))
    assert beam_search(thin, Steady(levels, 1), 1, 4, BeamConfig(), **cut).ids_QK.tolist() == [[3, 4, 1, 7]]
    few = {"allow_N": torch.tensor([0, 3, 6])}
    assert beam_search(trie, Steady(levels, 1), 1, 4, BeamConfig(), **few).ids_QK.tolist() == [[3, 0, 6, -1]]


def test_a_catalogue_of_one_code_is_listed_whole():
    trie = CodeTrie.build(np.zeros((200, 3)), (4, 4, 4))
    hits = beam_search(trie, Steady(flat((4, 4, 4)), 2), 2, 200, BeamConfig(widths=(1,)))
    assert hits.ids_QK.tolist() == [list(range(200))] * 2


@pytest.mark.parametrize("normalise", ["all", "children"])
def test_beams_of_a_request_are_distinct_prefixes(normalise):
    """With equal logits nothing but the trie keeps beams apart."""
    sizes = (3, 4, 5)
    codes = np.stack(np.meshgrid(*[np.arange(size) for size in sizes], indexing="ij"), -1).reshape(-1, 3)
    decoding = Steady(flat(sizes), 2)
    beam_search(CodeTrie.build(codes, sizes), decoding, 2, 5, BeamConfig(widths=(12,), normalise=normalise))
    prefixes = [[()], [()]]
    for (parent_BW, code_BW), wanted in zip(decoding.asked[1:], (3, 12), strict=True):
        for request in range(2):
            steps = zip(parent_BW[request].tolist(), code_BW[request].tolist(), strict=True)
            prefixes[request] = [(*prefixes[request][parent], code) for parent, code in steps]
            assert len(prefixes[request]) == len(set(prefixes[request])) == wanted


def test_of_equal_scores_a_group_keeps_the_smaller_node_too():
    """Of the first group's beams the likelier has the larger node; a child of each stands second with equal scores."""
    trie = CodeTrie.build(np.array([[0, 0], [1, 0], [2, 0], [3, 0], [3, 1]]), (4, 2))
    levels = [torch.tensor([-384.0, -256.0, -128.0, 0.0]), torch.tensor([0.0, -256.0])]
    for form in (trie, as_runs(trie)):
        hits = beam_search(form, Steady(levels, 1), 1, 5, BeamConfig(widths=(4,), num_groups=2))
        assert hits.ids_QK.tolist() == [[3, 2, 1, 0, -1]]
        assert hits.scores_QK[0, :4].tolist() == [0.0, -128.0, -256.0, -384.0]


def test_operations_grow_neither_with_beams_nor_with_requests():
    sizes = (16, 16, 16)
    trie = CodeTrie.build(np.random.default_rng(0).integers(0, 16, (3000, 3)), sizes)

    class Counting(TorchFunctionMode):
        count = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.count += 1
            return func(*args, **(kwargs or {}))

    def operations(num_requests, width):
        exclude_BE = torch.arange(num_requests)[:, None]
        with Counting() as counting:
            decoding, config = Steady(flat(sizes), num_requests), BeamConfig(widths=(width,))
            hits = beam_search(trie, decoding, num_requests, 4, config, exclude_BE=exclude_BE)
        assert (hits.num_found_Q == 4).all()
        return counting.count

    counts = [operations(1, 4), operations(50, 4), operations(1, 1000), operations(10, 200)]
    assert max(counts) < 1.5 * min(counts) < 2000  # a few more where lists are padded or scores tie


def test_memory_does_not_grow_with_beams_times_exclusions(largest_tensor):
    """Four hundred beams and eight thousand exclusions: a table of both would hold three million places."""
    sizes = (10, 20, 20)
    codes = np.stack(np.meshgrid(*[np.arange(size) for size in sizes], indexing="ij"), -1).reshape(-1, 3)
    trie = CodeTrie.build(codes, sizes)
    exclude_BE = torch.arange(8000)[None] % 3999
    with largest_tensor() as watch:
        hits = beam_search(trie, Steady(flat(sizes), 1), 1, 5, BeamConfig(widths=(400,)), exclude_BE=exclude_BE)
    assert hits.ids_QK.tolist() == [[3999, -1, -1, -1, -1]]
    assert watch.num_bytes < 1_000_000


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
        beam_search(trie, Steady(flat((2,)), 2), 2, 3, BeamConfig(), **limits)


def test_logits_too_large_for_float32_are_an_error():
    trie = CodeTrie.build(np.array([[0], [1]]), (2,))
    levels = [torch.full((2,), 1e300, dtype=torch.float64)]
    with pytest.raises(ValueError, match="level 1, request 0, hold a NaN or \\+inf"):
        beam_search(trie, Steady(levels, 2), 2, 1, BeamConfig())


def test_no_requests_give_no_hits():
    trie = CodeTrie.build(np.array([[0, 0], [1, 1]]), (2, 2))
    for config in (BeamConfig(), BeamConfig(num_groups=2, mass=0.9)):
        hits = beam_search(trie, Steady(flat((2, 2)), 0), 0, 4, config)
        assert hits.ids_QK.shape == hits.scores_QK.shape == (0, 4)
        assert len(hits.num_found_Q) == len(hits.reachable_Q) == 0
