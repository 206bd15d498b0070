"""The code trie of ten million items: size on disk, time to build, and what a loaded one holds in memory."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.index.code_trie import CodeTrie

NUM_ITEMS, SIZES = 10_000_000, (256,) * 4


def _anonymous_bytes():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("the system does not tell mapped from anonymous memory")
    return int(re.search(r"RssAnon:\s+(\d+) kB", status.read_text()).group(1)) * 1024


@pytest.mark.slow
@pytest.mark.parametrize("zipf", [False, True])
def test_ten_million_items_take_less_than_a_gigabyte_and_are_mapped(tmp_path, zipf):
    rng = np.random.default_rng(0)
    weight = 1 / np.arange(1, 257)
    codes = [
        rng.choice(256, NUM_ITEMS, p=weight / weight.sum()) if zipf else rng.integers(0, 256, NUM_ITEMS)
        for _ in range(len(SIZES))
    ]
    start = time.perf_counter()
    trie = CodeTrie.build(np.stack(codes, 1), SIZES)
    assert time.perf_counter() - start < 180
    del codes
    trie.save(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 1e9
    parts = [part for level in trie.levels for part in (level.code_N, level.child_M1, level.start_N1)]
    held = sum(part.numel() * part.element_size() for part in parts)
    before = _anonymous_bytes()
    loaded = CodeTrie.load(tmp_path)
    assert _anonymous_bytes() - before < held / 4
    for level, other in zip(loaded.levels, trie.levels, strict=True):
        assert torch.equal(level.code_N, other.code_N) and torch.equal(level.start_N1, other.start_N1)
