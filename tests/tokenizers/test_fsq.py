"""FSQ: the grid, the mixing of digits into one number, codes of other catalogues."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.tokenizers.fsq import Fsq, FsqConfig, default_levels, digits_of, grid_bound, grid_values, mixed_codes
from recsys.tokenizers.protocol import Floats

LEVELS = st.lists(st.integers(2, 9), min_size=1, max_size=4).map(tuple)


def rows_of(num: int = 600, width: int = 11, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(num, 4)) @ rng.normal(size=(4, width))).astype(np.float32)


@settings(deadline=None, max_examples=30)
@given(levels=LEVELS)
def test_digits_and_codes_are_inverse_and_first_channel_counts_fastest(levels: tuple[int, ...]) -> None:
    codes = np.arange(math.prod(levels))
    digits = digits_of(codes, levels)
    np.testing.assert_array_equal(mixed_codes(digits, levels), codes)
    written = [place[::-1] for place in product(*(range(level) for level in reversed(levels)))]
    np.testing.assert_array_equal(digits, written)


@pytest.mark.parametrize("level", range(2, 12))
def test_every_point_of_a_channel_is_reached_and_none_beyond(level: int) -> None:
    latent = torch.linspace(-20, 20, 20001, dtype=torch.float64)[:, None]
    for dtype in (torch.float64, torch.float32):
        reached = sorted(set(grid_bound(latent.to(dtype), (level,)).round().flatten().tolist()))
        assert reached == list(range(-(level // 2), level - level // 2))
    assert grid_bound(torch.zeros(1, 1), (level,)).abs().item() < 1e-5  # 0 stays 0, also where half a step is shifted
    values = grid_values(torch.tensor(reached)[:, None], (level,))
    assert values.abs().max() == 1.0 and values.diff(dim=0).min() > 0


@settings(deadline=None, max_examples=20)
@given(levels=LEVELS, seed=st.integers(0, 2**16))
def test_latents_on_grid_points_come_back(levels: tuple[int, ...], seed: int) -> None:
    codes = np.random.default_rng(seed).integers(math.prod(levels), size=20)
    integers = torch.from_numpy(digits_of(codes, levels) - np.array(levels) // 2).double()
    level_C = torch.tensor(levels, dtype=torch.float64)
    half_C = (level_C - 1) * 1.001 / 2
    offset_C = torch.where(level_C % 2 == 0, 0.5, 0.0)
    latent = torch.atanh((integers + offset_C) / half_C) - torch.atanh(offset_C / half_C)
    digits = grid_bound(latent, levels).round().numpy().astype(np.int64) + np.array(levels) // 2
    np.testing.assert_array_equal(mixed_codes(digits, levels), codes)


def test_gradients_pass_the_rounding_and_the_bound() -> None:
    latent = torch.tensor([[0.3, -0.2]], requires_grad=True)
    bounded = grid_bound(latent, (8, 5))
    (bounded + (bounded.round() - bounded).detach()).sum().backward()
    through = torch.autograd.grad(grid_bound(latent, (8, 5)).sum(), latent)[0]
    assert latent.grad is not None and torch.equal(latent.grad, through) and (through > 0).all()


def test_training_lowers_the_error_and_codes_differ() -> None:
    rows = rows_of()
    errors = []
    for steps in (1, 200):
        tokenizer = Fsq.fit(rows, FsqConfig(num_parts=3, levels=(7, 5, 5), num_steps=steps, learning_rate=3e-3), seed=0)
        errors.append(tokenizer.health(rows, tokenizer.encode(rows)).relative_error)
    assert errors[1] < 0.3 < errors[0]
    assert tokenizer.codebook_sizes == (175, 175, 175)
    assert tokenizer.health(rows, tokenizer.encode(rows)).num_leaves > 500


def test_other_catalogues_of_the_width_and_far_rows_get_codes() -> None:
    tokenizer = Fsq.fit(rows_of(), FsqConfig(num_parts=2, num_steps=3), seed=0)
    for rows in (rows_of(seed=5), 1e6 * rows_of(), np.zeros((2, 11), np.float32)):
        codes = tokenizer.encode(rows)
        assert (codes >= 0).all() and (codes < tokenizer.codebook_sizes[0]).all()
        assert np.isfinite(tokenizer.decode(codes)).all()


def test_fewer_items_than_codes_are_fine() -> None:
    rows = rows_of(5)
    tokenizer = Fsq.fit(rows, FsqConfig(levels=(8, 8, 8, 6, 5), num_steps=2), seed=0)
    assert tokenizer.codebook_sizes == (15_360,) * 4
    assert tokenizer.encode(rows).shape == (5, 4)


def test_default_levels_grow_with_the_catalogue() -> None:
    sizes = [math.prod(default_levels(num)) for num in (1, 60, 256, 1000, 4000, 20_000, 10**6)]
    assert sizes == [9, 15, 64, 240, 1000, 4375, 15_360]
    assert Fsq.fit(rows_of(), FsqConfig(num_steps=1), seed=0).config.levels == (8, 8)


def test_what_cannot_be_split_is_refused() -> None:
    for width, parts in ((3, 4), (10, 6)):  # ten entries in sixths of two fill five
        with pytest.raises(ValueError, match=f"fsq: {width} entries do not make {parts} sub-vectors; give fewer"):
            Fsq.fit(rows_of(width=width), FsqConfig(num_parts=parts), seed=0)
    with pytest.raises(ValueError, match=r"block_widths \(4, 4\) add up to 8, the vectors have 11"):
        Fsq.fit(rows_of(), FsqConfig(num_parts=2, block_widths=(4, 4), block_dropout=0.5), seed=0)
    with pytest.raises(ValueError, match="levels must be at least 2"):
        FsqConfig(levels=(8, 1))
    with pytest.raises(ValueError, match="more codes than int32 holds"):
        FsqConfig(levels=(1000,) * 4)
