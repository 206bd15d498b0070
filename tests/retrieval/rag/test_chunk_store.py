import pytest
import torch

from recsys.errors import InputError
from recsys.retrieval.rag.chunk_store import ChunkStore, ChunkVariant

PREFIX = (7, 8)
BYTES = 2 * (2 * 1 * 3 * 4) * 4 + 3 * 4
"""Of a made variant: keys and values of 2 layers, 1 head, 3 tokens, width 4, and one number a token."""


def variant(tokens, before=(), *, prefix=PREFIX, exact=True):
    return ChunkVariant(
        prefix=prefix,
        tokens=tokens,
        before=before,
        labels=((),) * (len(before) + 1),
        keys_VHND=torch.zeros(2, 1, 3, 4),
        values_VHND=torch.zeros(2, 1, 3, 4),
        inter_N=torch.zeros(3),
        inter_before=(0.5,) * len(before),
        impact=0.6,
        exact=exact,
    )


def test_the_longest_unused_variant_goes_first():
    store = ChunkStore("m", max_bytes=2 * BYTES)
    first, second, third = variant((1, 2, 3)), variant((4, 5, 6)), variant((9, 9, 9))
    store.put(first)
    store.put(second)
    store.used([first])
    store.put(third)
    assert store.num_bytes == 2 * BYTES and len(store) == 2
    assert store.variants(PREFIX, (4, 5, 6)) == []
    assert store.variants(PREFIX, (1, 2, 3)) == [first] and store.variants(PREFIX, (9, 9, 9)) == [third]


def test_of_one_prompt_the_later_chunk_goes_first():
    store = ChunkStore("m", max_bytes=2 * BYTES)
    early, late = variant((1, 2, 3)), variant((4, 5, 6), ((1, 2, 3),))
    store.put(early)
    store.put(late)
    store.used([early, late])
    store.put(variant((9, 9, 9)))
    assert store.variants(PREFIX, (1, 2, 3)) == [early] and store.variants(PREFIX, (4, 5, 6)) == []


def test_equal_hashes_are_no_match():
    left, right = (-1, 5, 6), (-2, 5, 6)
    assert hash(left) == hash(right)
    store = ChunkStore("m", max_bytes=10 * BYTES)
    store.put(variant(left))
    assert store.variants(PREFIX, right) == []
    store.put(variant(right))
    assert [kept.tokens for kept in store.variants(PREFIX, left)] == [left] and len(store) == 2


def test_a_chunk_has_a_few_variants_and_each_prefix_its_own():
    store = ChunkStore("m", max_bytes=100 * BYTES, max_variants=2)
    made = [variant((1, 2, 3), before) for before in ((), ((4,),), ((5,),))]
    for one in made:
        store.put(one)
    assert store.variants(PREFIX, (1, 2, 3)) == [made[2], made[1]]
    other = variant((1, 2, 3), prefix=(1,))
    store.put(other)
    assert store.variants((1,), (1, 2, 3)) == [other] and len(store) == 3
    store.clear()
    assert len(store) == store.num_bytes == 0 and store.variants(PREFIX, (1, 2, 3)) == []


def test_an_exact_variant_replaces_another_but_is_not_replaced_by_it():
    store = ChunkStore("m", max_bytes=10 * BYTES)
    rough, exact = variant((1, 2, 3), exact=False), variant((1, 2, 3))
    for one in (rough, exact, rough):
        store.put(one)
    assert store.variants(PREFIX, (1, 2, 3)) == [exact] and store.num_bytes == BYTES


def test_what_does_not_fit_is_not_kept():
    store = ChunkStore("m", max_bytes=BYTES - 1)
    store.put(variant((1, 2, 3)))
    assert len(store) == store.num_bytes == 0


@pytest.mark.parametrize("setting", [{"max_bytes": -1}, {"max_bytes": 1, "max_variants": 0}])
def test_limits_that_make_no_sense(setting):
    with pytest.raises(InputError, match="must"):
        ChunkStore("m", **setting)
