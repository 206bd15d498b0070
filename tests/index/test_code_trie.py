"""The code trie: runs of sorted codes, grown, thinned out, saved and mapped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.index import code_trie
from recsys.index.code_trie import CodeTrie

shapes = st.lists(st.integers(1, 7), min_size=1, max_size=4)


def drawn(seed, sizes, num_items):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, size, num_items) for size in sizes], 1)


@settings(max_examples=80, deadline=None)
@given(sizes=shapes, num_items=st.integers(1, 50), seed=st.integers(0, 10**6), dense=st.booleans())
def test_children_are_the_codes_that_continue_a_prefix(sizes, num_items, seed, dense):
    codes = drawn(seed, sizes, num_items)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_trie, "_MOST_CELLS", 2**20 if dense else 0)
        trie = CodeTrie.build(codes, sizes)
    assert all((level.table_MK is None) or dense for level in trie.levels)
    assert torch.equal(trie.codes(), torch.from_numpy(codes))
    prefixes = {(): 0}
    for depth, level in enumerate(trie.levels):
        found = {}
        for prefix, node in prefixes.items():
            child, code = (x[0, 0].tolist() for x in level.children(torch.tensor([[node]])))
            pairs = [(c, n) for n, c in zip(child, code, strict=True) if n >= 0]
            inside = codes[(codes[:, :depth] == prefix).all(1)] if depth else codes
            assert [c for c, _ in pairs] == sorted(set(inside[:, depth].tolist()))
            found |= {(*prefix, c): n for c, n in pairs}
        assert sorted(found.values()) == list(range(level.num_nodes))
        for prefix, node in found.items():
            low, high = level.start_N1[node], level.start_N1[node + 1]
            below = set(trie.item_P[low:high].tolist())
            assert below == set(np.flatnonzero((codes[:, : depth + 1] == prefix).all(1)).tolist())
        prefixes = found
    assert (level.children(torch.tensor([[-1]]))[0] == -1).all()


@settings(max_examples=80, deadline=None)
@given(sizes=shapes, num_items=st.integers(1, 50), seed=st.integers(0, 10**6), dense=st.booleans())
def test_spread_children_are_those_of_fixed_width(sizes, num_items, seed, dense):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_trie, "_MOST_CELLS", 2**20 if dense else 0)
        trie = CodeTrie.build(drawn(seed, sizes, num_items), sizes)
    generator = torch.Generator().manual_seed(seed)
    num_above = 1
    for size, level in zip(sizes, trie.levels, strict=True):
        node_BW = torch.randint(-1, num_above, (3, 4), generator=generator)
        child_BWC, code_BWC = level.children(node_BW)
        children = level.spread(node_BW)
        for beam, node in enumerate(node_BW.flatten().tolist()):
            place = torch.arange(children.first_X1[beam], children.first_X1[beam + 1])
            place = place[children.node_T[place] >= 0]
            owner, code = children.of(place, size)
            assert (owner == beam).all()
            if node < 0:  # a level with a table gives what its reader leaves out
                assert not len(place) or level.table_MK is not None
                continue
            row = child_BWC.flatten(0, 1)[beam]
            assert children.node_T[place].tolist() == row[row >= 0].tolist()
            assert code.tolist() == code_BWC.flatten(0, 1)[beam][row >= 0].tolist()
        assert level.table_MK is not None or len(children.node_T) == int((child_BWC >= 0).sum())
        if children.owner_T is not None:  # times the codes of a level they leave the range of int32
            assert children.owner_T.dtype == children.code_T.dtype == torch.int64
        num_above = level.num_nodes


@settings(max_examples=40, deadline=None)
@given(sizes=shapes, num_items=st.integers(2, 50), seed=st.integers(0, 10**6))
def test_growing_equals_building_and_removed_items_stay_removed(sizes, num_items, seed):
    codes = drawn(seed, sizes, num_items)
    cut = 1 + seed % (num_items - 1)
    gone = torch.arange(0, cut, 3)
    grown = CodeTrie.build(codes[:cut], sizes).without(gone).append(codes[cut:])
    whole = CodeTrie.build(codes, sizes).without(gone)
    assert _tensors(grown) == _tensors(whole) and grown.num_left == num_items - len(gone)
    for level in whole.levels:
        for node in range(level.num_nodes):
            below = whole.item_P[level.start_N1[node] : level.start_N1[node + 1]]
            assert bool(level.alive_N[node]) == (not set(below.tolist()) <= set(gone.tolist()))


def _tensors(trie):
    found = [trie.item_P.tolist(), trie.place_I.tolist(), None if trie.gone_G is None else trie.gone_G.tolist()]
    for level in trie.levels:
        found += [level.code_N.tolist(), level.child_M1.tolist(), level.start_N1.tolist(), level.most_children]
        found += [None if part is None else part.tolist() for part in (level.table_MK, level.alive_N)]
    return found


def test_items_of_a_leaf_stand_in_the_order_of_their_ranks():
    trie = CodeTrie.build(np.array([[1], [0], [1], [1]]), (2,), rank_I=np.array([2, 0, 1, 1]))
    assert trie.item_P.tolist() == [1, 2, 3, 0]
    assert trie.append(np.array([[1], [0]])).item_P.tolist() == [1, 5, 2, 3, 0, 4]


def test_keys_that_do_not_fit_an_integer_are_sorted_all_the_same():
    codes = drawn(3, [256] * 9, 200)
    assert torch.equal(CodeTrie.build(codes, [256] * 9).codes(), torch.from_numpy(codes))


@pytest.mark.parametrize("removed", [False, True])
def test_what_is_saved_is_loaded(tmp_path, removed):
    trie = CodeTrie.build(drawn(1, (5, 40, 3), 300), (5, 40, 3))
    assert [level.table_MK is not None for level in trie.levels] == [True, True, True]
    trie = trie.without(torch.tensor([4, 250])) if removed else trie
    trie.save(tmp_path / "trie")
    loaded = CodeTrie.load(tmp_path / "trie")
    assert _tensors(loaded) == _tensors(trie) and loaded.sizes == trie.sizes
    file = tmp_path / "trie" / "trie.safetensors"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"trie\.safetensors does not have the SHA-256"):
        CodeTrie.load(tmp_path / "trie")


@pytest.mark.parametrize(
    ("codes", "sizes", "message"),
    [
        (np.zeros((3, 2)), (4,), r"must be \[items, 1\]"),
        (np.zeros((0, 1)), (4,), "at least one item"),
        (np.array([[0, 5]]), (4, 5), "level 2 must be from 0 to 4, got 5 to 5"),
        (np.array([[-1]]), (4,), "level 1 must be from 0 to 3"),
    ],
)
def test_codes_that_make_no_trie_are_errors(codes, sizes, message):
    with pytest.raises(ValueError, match=message):
        CodeTrie.build(codes, sizes)


def test_an_unknown_item_cannot_be_removed():
    trie = CodeTrie.build(np.array([[0], [1]]), (2,))
    with pytest.raises(ValueError, match="ids from 0 to 1, got 2 to 2"):
        trie.without(torch.tensor([2]))
