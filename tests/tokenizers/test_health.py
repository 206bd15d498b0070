"""Health figures against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.tokenizers import health as health_module
from recsys.tokenizers.health import code_health


def test_figures_of_six_items() -> None:
    vectors = np.array([[1, 0], [2, 0], [3, 0], [0, 1], [0, 2], [0, 3]], np.float32)
    codes = np.array([[0, 0], [0, 0], [0, 1], [1, 0], [1, 0], [1, 0]], np.int32)
    decoded = np.array([[2, 0], [2, 0], [3, 0], [0, 2], [0, 2], [0, 2]], np.float32)
    health = code_health(vectors, codes, decoded, (2, 4))
    assert (health.num_items, health.num_leaves) == (6, 3)
    assert (health.num_collisions, health.largest_leaf) == (2 + 3, 3)
    assert health.dead_codes == (0, 2)
    # Level 1: halves. Level 2: shares 5/6 and 1/6 of four codes.
    expected = -(5 / 6 * np.log2(5 / 6) + 1 / 6 * np.log2(1 / 6))
    assert health.entropy_bits == pytest.approx((1.0, expected))
    assert health.max_bits == (1.0, 2.0)
    # Lost: 1 + 0 + 0 + 1 + 0 + 1. The mean is (1, 1): 0 + 1, 1 + 1, 4 + 1, and the same again.
    assert health.relative_error == pytest.approx((1 + 1 + 1) / (2 * (1 + 2 + 5)))
    assert health.neighbours_kept == 1.0  # five neighbours of six items are all the others


def test_neighbours_by_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "NUM_NEIGHBOURS", 1)
    angles = np.array([0.0, 0.1, 1.0, 1.2, 2.5])
    vectors = (np.stack([np.cos(angles), np.sin(angles)], 1) * [[1], [9], [1], [5], [2]]).astype(np.float32)
    codes = np.arange(5, dtype=np.int32)[:, None]
    moved = angles.copy()
    moved[1] = 0.95  # nearest: 0↔1, 2↔3, 4→3 before; 1↔2 now, 0→1 and 3→2 and 4→3 stay
    decoded = np.stack([np.cos(moved), np.sin(moved)], 1).astype(np.float32)
    health = code_health(vectors, codes, decoded, (5,))
    assert health.neighbours_kept == pytest.approx(3 / 5)


def test_perfect_codes_and_one_item() -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    codes = np.arange(40, dtype=np.int32)[:, None]
    health = code_health(vectors, codes, vectors, (40,))
    assert (health.num_collisions, health.largest_leaf, health.dead_codes) == (0, 1, (0,))
    assert (health.relative_error, health.neighbours_kept) == (0.0, 1.0)
    assert health.entropy_bits == pytest.approx(health.max_bits)
    alone = code_health(vectors[:1], codes[:1], vectors[:1], (40,))
    assert (alone.relative_error, alone.neighbours_kept, alone.entropy_bits) == (0.0, 1.0, (0.0,))


def test_sample_is_bounded_and_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 4)).astype(np.float32)
    decoded = vectors + rng.normal(size=(300, 4)).astype(np.float32)
    codes = np.zeros((300, 1), np.int32)
    seen = []
    whole = health_module._neighbours
    monkeypatch.setattr(health_module, "MAX_SAMPLE", 50)
    monkeypatch.setattr(health_module, "_neighbours", lambda rows, count: seen.append(len(rows)) or whole(rows, count))
    kept = {code_health(vectors, codes, decoded, (2,)).neighbours_kept for _ in range(2)}
    assert seen == [50] * 4 and len(kept) == 1
