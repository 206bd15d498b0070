"""Product codes: whitening, rotation, and codes that stand side by side."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.tokenizers.product_codes import ProductCodes, ProductCodesConfig
from recsys.tokenizers.protocol import Floats


def correlated(num: int = 1200, width: int = 12, seed: int = 0) -> Floats:
    """Rows whose variance lies in few directions, across all entries."""
    rng = np.random.default_rng(seed)
    mix, _ = np.linalg.qr(rng.normal(size=(width, width)))
    return (3 + (rng.normal(size=(num, width)) * 0.7 ** np.arange(width)) @ mix).astype(np.float32)


ROWS = correlated()


def fitted(rows: Floats = ROWS, **options: object) -> ProductCodes:
    config = ProductCodesConfig(**{"num_parts": 4, "codebook_size": 16, **options})  # type: ignore[arg-type]
    return ProductCodes.fit(rows, config, seed=0)


def test_whitened_entries_are_uncorrelated_and_come_back() -> None:
    tokenizer = fitted()
    plain = (ROWS - tokenizer.mean_V) @ tokenizer.project_VD
    np.testing.assert_allclose(np.cov(plain.T, bias=True), np.eye(12), atol=1e-3)
    np.testing.assert_allclose(plain @ tokenizer.back_DV + tokenizer.mean_V, ROWS, atol=1e-4)


@pytest.mark.parametrize("width", [12, 10])
def test_rotation_alone_keeps_distances(width: int) -> None:
    rows = correlated(width=width)
    tokenizer = fitted(rows, whiten=False)
    assert tokenizer.project_VD.shape == (width, 12)  # ten entries are filled up to three per part
    np.testing.assert_allclose(tokenizer.project_VD @ tokenizer.back_DV, np.eye(width), atol=1e-5)
    np.testing.assert_allclose(tokenizer.project_VD @ tokenizer.project_VD.T, np.eye(width), atol=1e-5)


def test_codes_and_reconstructions_are_those_of_a_naive_loop() -> None:
    tokenizer = fitted()
    rows = ROWS[:50]
    rotated = ((rows.astype(np.float64) - tokenizer.mean_V) @ tokenizer.project_VD).astype(np.float32)
    codes = tokenizer.encode(rows)
    for part in range(4):
        piece = rotated[:, 3 * part : 3 * part + 3].astype(np.float64)
        squared = np.square(piece[:, None] - tokenizer.codebooks_SKW[part][None]).sum(2)
        np.testing.assert_array_equal(codes[:, part], squared.argmin(1))
    chosen = np.concatenate([tokenizer.codebooks_SKW[part][codes[:, part]] for part in range(4)], axis=1)
    np.testing.assert_allclose(tokenizer.decode(codes), chosen @ tokenizer.back_DV + tokenizer.mean_V, atol=1e-5)


def test_a_learned_rotation_loses_less_than_none() -> None:
    lost = {}
    for rotations in (0, 10):
        tokenizer = fitted(whiten=False, num_rotations=rotations)
        lost[rotations] = tokenizer.health(ROWS, tokenizer.encode(ROWS)).relative_error
    assert lost[10] < 0.5 * lost[0]  # a rotation that goes the wrong way stays above .8


@pytest.mark.parametrize("balance", ["capacity", "sinkhorn"])
def test_balance_over_the_catalogue(balance: str) -> None:
    rows = (ROWS - 3) ** 3
    tokenizer, plain = fitted(rows, balance=balance), fitted(rows)
    bits = tokenizer.health(rows, tokenizer.assign(rows)).entropy_bits
    assert min(bits) > max(plain.health(rows, plain.encode(rows)).entropy_bits)
    if balance == "capacity":
        count = [np.bincount(column, minlength=16) for column in tokenizer.assign(rows).T]
        assert np.min(count) == np.max(count) == 75
        with pytest.raises(ValueError, match="5 items cannot share 16 codes"):
            tokenizer.assign(rows[:5])


def test_long_codes_tell_items_apart() -> None:
    rows = np.random.default_rng(0).normal(size=(800, 64))
    tokenizer = fitted(rows, num_parts=32, codebook_size=8, num_rotations=2)
    health = tokenizer.health(rows, tokenizer.encode(rows))
    assert tokenizer.codebook_sizes == (8,) * 32
    assert health.num_collisions == 0 and health.dead_codes == (0,) * 32


def test_directions_without_variance_are_left_out() -> None:
    rows = np.concatenate([ROWS, ROWS[:, :5], np.ones((len(ROWS), 3), np.float32)], axis=1)  # rank 12 of 20
    tokenizer = fitted(rows)
    assert tokenizer.project_VD.shape == (20, 12)
    assert tokenizer.health(rows, tokenizer.encode(rows)).relative_error < 0.5
    few = fitted(whitened_dim=9)
    assert few.project_VD.shape == (12, 8)  # a multiple of the parts


def test_too_many_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="opq: the vectors have 12 independent directions for 13 sub-quantisers"):
        fitted(num_parts=13)
    with pytest.raises(ValueError, match="opq: vectors of 12 entries cannot make 13 sub-vectors; give fewer"):
        fitted(num_parts=13, whiten=False)
    grid = np.array(np.meshgrid(*[[0.0, 1.0]] * 4)).reshape(4, -1).T
    with pytest.raises(ValueError, match="opq: sub-quantiser 1 has 2 distinct vectors for 3 codes"):
        fitted(grid, codebook_size=3, whiten=False, num_rotations=0)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"num_parts": 0}, "num_parts must be at least 1, got 0"),
        ({"codebook_size": 1}, "codebook_size must be at least 2, got 1"),
        ({"balance": "x"}, "balance must be one of capacity, sinkhorn, none, got 'x'"),
        ({"num_rotations": -1}, "num_rotations must be at least 0, got -1"),
    ],
)
def test_config_is_checked(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        fitted(**wrong)
