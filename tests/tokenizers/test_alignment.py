"""Codes of a refit under the old numbers."""

from __future__ import annotations

from itertools import permutations as all_orders

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.tokenizers.alignment import aligned_codes, aligned_tokenizer, code_permutations
from recsys.tokenizers.fitted_tokenizer import FittedTokenizer
from recsys.tokenizers.tokenizer_registry import fit_tokenizer

ROWS = (np.random.default_rng(0).normal(size=(400, 8)) ** 3).astype(np.float32)
OPTIONS = {
    "rq-kmeans": {"codebook_sizes": (8, 16, 4), "balance": "none"},
    "rq-vae": {"codebook_sizes": (8, 16, 4), "hidden_dims": (16,), "latent_dim": 6, "num_steps": 30, "batch_size": 64},
    "opq": {"num_parts": 4, "codebook_size": 8, "num_rotations": 1},
}


def fitted(method: str, seed: int = 0) -> FittedTokenizer:
    return fit_tokenizer(method, ROWS, seed=seed, **OPTIONS[method])


def shuffled(sizes: tuple[int, ...], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(size) for size in sizes]


@pytest.mark.parametrize("method", OPTIONS)
def test_a_random_renumbering_is_undone_exactly(method: str) -> None:
    old = fitted(method)
    codes = old.encode(ROWS)
    new = old.renumbered(shuffled(old.codebook_sizes, seed=5))
    new_codes = new.encode(ROWS)
    assert (new_codes != codes).any(axis=0).all()
    np.testing.assert_array_equal(new.decode(new_codes), old.decode(codes))
    back, back_codes = aligned_tokenizer(new, codes, new_codes)
    np.testing.assert_array_equal(back_codes, codes)
    np.testing.assert_array_equal(back.encode(ROWS), codes)
    np.testing.assert_array_equal(back.decode(codes), old.decode(codes))
    assert type(back) is type(old) and back.config == old.config


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**16), parallel=st.booleans())
def test_one_level_is_matched_as_well_as_any_order_can(seed: int, parallel: bool) -> None:
    rng = np.random.default_rng(seed)
    old, new = rng.integers(5, size=(2, 60, 1)).astype(np.int32)
    kept = (aligned_codes(old, new, (5,), parallel=parallel) == old).sum()
    assert kept == max((np.array(order)[new] == old).sum() for order in all_orders(range(5)))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**16), sizes=st.lists(st.integers(2, 6), min_size=1, max_size=3).map(tuple))
def test_numbers_are_a_permutation_and_leaves_stay_together(seed: int, sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    old, new = (np.stack([rng.integers(size, size=30) for size in sizes], axis=1) for _ in range(2))
    for number, size in zip(code_permutations(old, new, sizes), sizes, strict=True):
        assert sorted(number.tolist()) == list(range(size))
    aligned = aligned_codes(old, new, sizes)
    same_before = (new[:, None] == new[None]).all(2)
    np.testing.assert_array_equal((aligned[:, None] == aligned[None]).all(2), same_before)


def test_later_levels_count_items_that_kept_their_earlier_codes() -> None:
    # (level 1, level 2) of old and new codes, and how many items: 20 keep level 1, eight do not.
    table = [
        ((0, 1), (0, 0), 6),
        ((0, 0), (0, 1), 6),
        ((1, 0), (1, 0), 4),
        ((1, 1), (1, 1), 4),
        ((1, 0), (0, 0), 8),
    ]
    old = np.repeat([row[0] for row in table], [row[2] for row in table], axis=0)
    new = np.repeat([row[1] for row in table], [row[2] for row in table], axis=0)
    # At level 2, exchanging keeps 12 and not exchanging 8 of the twenty; of all items not exchanging keeps 16.
    assert [number.tolist() for number in code_permutations(old, new, (2, 2))] == [[0, 1], [1, 0]]
    assert [number.tolist() for number in code_permutations(old, new, (2, 2), parallel=True)] == [[0, 1], [0, 1]]


def test_another_number_of_codes_keeps_what_it_can() -> None:
    old = np.array([[0], [1], [2], [3]] * 10)
    new = np.array([[2], [0], [1], [1]] * 10)  # three codes now; 2 and 3 fell together
    assert code_permutations(old, new, (3,))[0].tolist() == [1, 2, 0]
    grown = np.array([[4], [0], [2], [1]] * 10)
    assert code_permutations(old, grown, (5,))[0].tolist() == [1, 3, 2, 4, 0]


def test_a_refit_on_grown_data_keeps_most_numbers() -> None:
    rng = np.random.default_rng(1)
    centres = 4 * rng.normal(size=(8, 6))
    rows = (centres[rng.integers(8, size=600)] + 0.3 * rng.normal(size=(600, 6))).astype(np.float32)
    old = fit_tokenizer("rq-kmeans", rows[:500], seed=0, codebook_sizes=(8, 4))
    new = fit_tokenizer("rq-kmeans", rows, seed=9, codebook_sizes=(8, 4))
    before, after = old.encode(rows[:500]), new.encode(rows[:500])
    _, aligned = aligned_tokenizer(new, before, after)
    assert (aligned[:, 0] == before[:, 0]).mean() > 0.8 > 0.5 > (after[:, 0] == before[:, 0]).mean()
    assert (aligned == before).all(1).mean() > (after == before).all(1).mean()


def test_what_cannot_be_aligned_is_refused() -> None:
    old = fitted("rq-kmeans")
    codes = old.encode(ROWS)
    with pytest.raises(ValueError, match=r"old codes are int32 of shape \(399, 3\), new ones int32 of \(400, 3\)"):
        aligned_tokenizer(old, codes[:-1], codes)
    with pytest.raises(ValueError, match=r"alignment: new codes: codes\[0, 0\] = 8 is outside \[0, 8\)"):
        aligned_tokenizer(old, codes, codes + np.int32(8))
    fsq = fit_tokenizer("fsq", ROWS, num_steps=1)
    with pytest.raises(ValueError, match="code numbers of fsq are made of digits.* keep the old tokenizer"):
        aligned_tokenizer(fsq, fsq.encode(ROWS), fsq.encode(ROWS))
    with pytest.raises(ValueError, match="fsq: code numbers are made of digits"):
        fsq.renumbered(shuffled(fsq.codebook_sizes, 0))
