"""Residual k-means: the arithmetic, the balance, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.tokenizers.protocol import Floats
from recsys.tokenizers.residual_codebooks import default_sizes, residual_codes, residual_sum
from recsys.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig


def rows_of(num: int = 500, width: int = 6, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(12, width))[rng.integers(12, size=num)] + 0.4 * rng.normal(size=(num, width))).astype(
        np.float32
    )


ROWS = rows_of()


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(2, 6), min_size=1, max_size=4), seed=st.integers(0, 2**16))
def test_codes_and_sums_are_those_of_a_naive_loop(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    books = [rng.normal(size=(size, 5)).astype(np.float32) for size in sizes]
    rows = rng.normal(size=(20, 5)).astype(np.float32)
    codes = residual_codes(rows, books)
    decoded = residual_sum(codes, books)
    for row, found, back in zip(rows, codes, decoded, strict=True):
        rest, total = row.copy(), np.zeros(5, np.float32)
        for code, book in zip(found, books, strict=True):
            assert code == np.square(rest.astype(np.float64) - book).sum(1).argmin()
            rest, total = rest - book[code], total + book[code]
        np.testing.assert_array_equal(back, total)


def test_codes_are_the_nearest_however_far_from_zero_the_vectors_lie() -> None:
    """Where a product in float32 rounds by more than the distances differ, they are compared again."""
    rng = np.random.default_rng(0)
    rows_ND, codebook_KD = ((1000 + 0.05 * rng.normal(size=(n, 8))).astype(np.float32) for n in (60, 16))
    squared_NK = np.square(rows_ND[:, None].astype(np.float64) - codebook_KD).sum(2)
    codes_NL = residual_codes(rows_ND, [codebook_KD, codebook_KD])
    assert np.array_equal(codes_NL[:, 0], squared_NK.argmin(1)) and len(np.unique(codes_NL[:, 0])) > 4
    alone = [residual_codes(rows_ND[at : at + 1], [codebook_KD, codebook_KD]) for at in range(60)]
    assert np.array_equal(np.concatenate(alone), codes_NL)


def test_each_level_lowers_the_error_and_decode_is_the_sum() -> None:
    tokenizer = ResidualKMeans.fit(ROWS, ResidualKMeansConfig(codebook_sizes=(8, 8, 8), balance="none"), seed=0)
    codes = tokenizer.encode(ROWS)
    np.testing.assert_array_equal(tokenizer.decode(codes), residual_sum(codes, tokenizer.codebooks))
    errors = [np.square(ROWS - residual_sum(codes, tokenizer.codebooks[:levels])).sum() for levels in (1, 2, 3)]
    assert errors[0] > 1.3 * errors[1] > 1.3 * errors[2]


@pytest.mark.parametrize("sizes", [(8, 8), (7, 13, 4)])
def test_capacity_gives_every_code_of_every_level_equal_shares(sizes: tuple[int, ...]) -> None:
    tokenizer = ResidualKMeans.fit(ROWS, ResidualKMeansConfig(codebook_sizes=sizes), seed=3)
    codes = tokenizer.assign(ROWS)
    for level, size in enumerate(sizes):
        count = np.bincount(codes[:, level], minlength=size)
        assert set(count.tolist()) <= {500 // size, -(-500 // size)}
    # Centroids are means of balanced groups: most items stay with their nearest.
    assert (codes[:, 0] == tokenizer.encode(ROWS)[:, 0]).mean() > 0.6
    assert tokenizer.health(ROWS, codes).relative_error < 0.6


def test_sinkhorn_is_between_none_and_capacity() -> None:
    bits = {}
    for balance in ("none", "sinkhorn", "capacity"):
        config = ResidualKMeansConfig(codebook_sizes=(16, 16), balance=balance)
        tokenizer = ResidualKMeans.fit(ROWS**3, config, seed=0)
        bits[balance] = tokenizer.health(ROWS**3, tokenizer.assign(ROWS**3)).entropy_bits[0]
    assert bits["none"] < bits["sinkhorn"] <= bits["capacity"] <= 4.0
    assert bits["capacity"] > 3.99


def test_balanced_means_and_plain_kmeans_on_a_part_of_the_items() -> None:
    config = ResidualKMeansConfig(codebook_sizes=(8, 8), max_training_items=60)
    tokenizer = ResidualKMeans.fit(ROWS, config, seed=0)
    assert np.bincount(tokenizer.assign(ROWS)[:, 0]).max() == 63  # ⌈500 / 8⌉, over all items


def test_default_sizes_follow_the_distinct_vectors() -> None:
    assert [default_sizes(num)[0] for num in (1, 8, 15, 16, 1023, 1024, 10**7)] == [2, 2, 2, 4, 128, 256, 256]
    assert default_sizes(10**6, num_levels=4, max_size=1024) == (1024,) * 4
    rows = np.concatenate([np.zeros((5000, 6), np.float32), ROWS[:40]])  # 41 different ones
    tokenizer = ResidualKMeans.fit(rows, ResidualKMeansConfig(balance="none"), seed=0)
    assert tokenizer.codebook_sizes == tokenizer.config.codebook_sizes == (8, 8, 8)


def test_a_level_without_enough_residuals_is_refused() -> None:
    rows = np.repeat(np.eye(8, dtype=np.float32), 10, axis=0)
    with pytest.raises(ValueError, match="rq-kmeans: level 2 has .* distinct vectors for 8 codes; .* fewer levels"):
        ResidualKMeans.fit(rows, ResidualKMeansConfig(codebook_sizes=(8, 8), balance="none"), seed=0)
    signed = np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0], [1.0, -0.0]])
    with pytest.raises(ValueError, match="level 1 has 2 distinct vectors for 3 codes"):
        ResidualKMeans.fit(signed, ResidualKMeansConfig(codebook_sizes=(3,)), seed=0)


def test_assign_wants_a_catalogue_append_does_not() -> None:
    tokenizer = ResidualKMeans.fit(ROWS, ResidualKMeansConfig(codebook_sizes=(16, 4)), seed=0)
    with pytest.raises(ValueError, match="5 items cannot share 16 codes equally; .* use append"):
        tokenizer.assign(ROWS[:5])
    np.testing.assert_array_equal(tokenizer.append(ROWS[:5]), tokenizer.encode(ROWS)[:5])


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"codebook_sizes": ()}, "codebook_sizes must name at least 2 codes for each level"),
        ({"codebook_sizes": (8, 1)}, r"got \(8, 1\)"),
        ({"balance": "even"}, "balance must be one of capacity, sinkhorn, none, got 'even'"),
        ({"balanced_steps": -1}, "balanced_steps must be at least 0, got -1"),
    ],
)
def test_config_is_checked(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ResidualKMeansConfig(**wrong)  # type: ignore[arg-type]
