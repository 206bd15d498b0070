"""Semantic IDs of a catalogue: checks, hash, leaves."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.tokenizers.semantic_ids import SemanticIds


def test_leaves_of_five_items() -> None:
    ids = SemanticIds.from_codes([[1, 0], [0, 2], [1, 0], [0, 1], [1, 0]], (2, 3))
    leaves = ids.leaves(popularity_I=[3, 0, 7, 1, 7])
    assert leaves.codes_FL.tolist() == [[0, 1], [0, 2], [1, 0]]
    assert leaves.offsets_F1.tolist() == [0, 1, 2, 5]
    assert leaves.items_I.tolist() == [3, 1, 2, 4, 0]  # 2 and 4 are equally popular: the smaller id first
    assert ids.leaves().items_I.tolist() == [3, 1, 0, 2, 4]
    assert (ids.num_items, ids.num_levels) == (5, 2)


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(2, 4), min_size=1, max_size=4).map(tuple),
    num=st.integers(1, 40),
    seed=st.integers(0, 2**16),
)
def test_leaves_are_the_groups_of_a_dictionary(sizes: tuple[int, ...], num: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(size, size=num) for size in sizes], axis=1)
    popularity = rng.integers(3, size=num)
    groups: dict[tuple[int, ...], list[int]] = {}
    for item in sorted(range(num), key=lambda item: (-popularity[item], item)):
        groups.setdefault(tuple(codes[item].tolist()), []).append(item)
    leaves = SemanticIds.from_codes(codes, sizes).leaves(popularity)
    found = [
        (tuple(code.tolist()), leaves.items_I[low:high].tolist())
        for code, low, high in zip(leaves.codes_FL, leaves.offsets_F1, leaves.offsets_F1[1:], strict=False)
    ]
    assert found == sorted(groups.items())
    assert leaves.codes_FL.dtype == np.int32 and leaves.items_I.dtype == np.int64


def test_hash_is_of_the_content_alone() -> None:
    codes = np.array([[1, 0], [0, 2]])
    ids = SemanticIds.from_codes(codes, (2, 3))
    written = b"[[2, 3], [2, 2]]" + struct.pack("<4i", 1, 0, 0, 2)  # sizes, shape, codes
    assert ids.content_hash == hashlib.sha256(written).hexdigest()
    assert SemanticIds.from_codes(np.asfortranarray(codes.astype(np.int16)), [2, 3]).content_hash == ids.content_hash
    for other, sizes in (([[1, 0], [0, 1]], (2, 3)), ([[0, 2], [1, 0]], (2, 3)), (codes, (2, 4)), ([[1], [0]], (2,))):
        assert SemanticIds.from_codes(other, sizes).content_hash != ids.content_hash
    assert SemanticIds.from_codes([[1, 0, 0, 1]], (2, 2, 2, 2)).content_hash != (
        SemanticIds.from_codes([[1, 0], [0, 1]], (2, 2)).content_hash
    )


def test_codes_are_a_copy_that_nobody_changes() -> None:
    codes = np.array([[1, 0], [0, 2]], np.int32)
    ids = SemanticIds.from_codes(codes, (2, 3))
    codes[0, 0] = 0
    assert ids.codes_IL.tolist() == [[1, 0], [0, 2]] and ids.codes_IL.dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        ids.codes_IL[0, 0] = 0


@pytest.mark.parametrize(
    ("codes", "sizes", "text"),
    [
        ([[0, 3]], (2, 3), r"SemanticIds: codes\[0, 1\] = 3 is outside \[0, 3\)"),
        ([[0, 1], [-1, 0]], (2, 3), r"codes\[1, 0\] = -1 is outside"),
        ([[0, 1]], (2, 3, 4), r"codes have shape \(1, 2\), not \[items, 3\]"),
        ([0, 1], (2, 3), r"codes have shape \(2,\)"),
        ([[0.0, 1.0]], (2, 3), "codes must be integers, got float64"),
        (np.empty((0, 2), np.int32), (2, 3), "there are 0 items"),
        ([[0]], (1,), r"must name at least 2 codes for each level, got \(1,\)"),
        ([[]], (), r"got \(\)"),
    ],
)
def test_wrong_codes_are_refused(codes: object, sizes: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SemanticIds.from_codes(codes, sizes)  # type: ignore[arg-type]


def test_wrong_popularity_is_refused() -> None:
    ids = SemanticIds.from_codes([[0], [1]], (2,))
    with pytest.raises(ValueError, match=r"each of the 2 items, got shape \(3,\) with 0 NaN"):
        ids.leaves([1, 2, 3])
    with pytest.raises(ValueError, match="with 1 NaN"):
        ids.leaves([1, np.nan])
