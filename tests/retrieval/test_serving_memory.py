"""A recommender that answers for long takes no more memory than one that has just begun.

What is measured is the memory that the process holds: not what the allocator has back and may give again, which is
given to the system first, and not the pages of libraries, which are read when they are first needed. Measured so, it
grows by .5 MB from request 800 to request 20,000, and by .2 MB in the 80,000 after that.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import random
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from recsys.events import Event
from recsys.model import UnifiedModel
from recsys.pipelines.export import export_model
from recsys.retrieval.recommender import Recommender

AT = 1_702_000_000
SHORT_BYTES, LONG_BYTES = 1 << 20, 4 << 20
"""What 2,000 requests may add, and 100,000: a leak of 525 bytes a request is more, or of 42."""


@pytest.fixture(autouse=True)
def no_kept_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without oneDNN, which torch asks for GELU: it compiles a kernel for every number of rows and keeps the last 1,024
    of them, 28 KB each. That is no leak, but 29 MB in the course of 100,000 requests, which would hide one."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)


def held_bytes() -> int:
    """Anonymous memory of the process."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * resource.getpagesize()


def grown_by(rec: Recommender, num_requests: int) -> int:
    """Bytes that the process grew by while so many people with about 64 events each came, again and again."""
    draw, visits, before = random.Random(1), [0] * 60, 0
    warm = min(num_requests // 4, 3200)
    for begin in range(0, warm + num_requests, 32):
        if begin >= warm and not before:
            before = held_bytes()
        batch = []
        for _ in range(32):
            user = draw.randrange(60)
            visits[user] += 1
            length = 56 + visits[user] % 9  # sometimes it is cut, and encoded anew
            events = [Event(item_id=f"i{(user + n) % 30}", actions="like", timestamp=AT + n) for n in range(length)]
            batch.append({"history": events, "cache_key": f"u{user}", "at": AT + 99, "rank": user % 4 == 0})
        rec.recommend_batch(batch)
    return held_bytes() - before


@pytest.fixture(scope="module")
def long_bundle(toy_model: Any, toy_dataset: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that sees 64 events."""
    path = tmp_path_factory.mktemp("long") / "bundle"
    model = UnifiedModel(replace(toy_model.config, window=64)).eval()
    known_I = torch.from_numpy(toy_dataset.train_item_counts()) > 0
    model.items.set_catalogue(torch.from_numpy(toy_dataset.content), known_I)
    export_model(model, toy_dataset, path)
    return path


def test_a_leak_of_a_few_hundred_bytes_is_seen() -> None:
    before = held_bytes()
    kept = [bytes(250) for _ in range(100_000)]
    assert held_bytes() - before > LONG_BYTES
    assert len(kept) == 100_000


def test_memory_does_not_grow_over_two_thousand_requests(long_bundle: Path) -> None:
    rec = Recommender.load(long_bundle, state_bytes=10**6)
    assert grown_by(rec, 2_000) < SHORT_BYTES
    assert min(rec.state_counts.appended, rec.state_counts.encoded, rec.state_counts.evicted) > 0


@pytest.mark.slow
def test_memory_does_not_grow_over_a_hundred_thousand_requests(
    long_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # On a busy machine every batch is slow, and pytest keeps what is said of each: 16 MiB in the end.
    caplog.set_level(logging.ERROR, logger="recsys.requests")
    rec = Recommender.load(long_bundle, state_bytes=10**6)
    assert grown_by(rec, 100_000) < LONG_BYTES
    assert min(rec.state_counts.appended, rec.state_counts.encoded, rec.state_counts.evicted) > 0
