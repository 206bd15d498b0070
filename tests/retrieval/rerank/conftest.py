"""A small model, and lists to put in order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from recsys.retrieval.rerank import RerankItem, RerankRequest

if TYPE_CHECKING:
    from recsys.retrieval.rerank.lm.local import LocalLanguageModel

WORDS = ["red", "green", "blue", "train", "ship", "car", "wood", "steel", "small", "large", "kite"]


@pytest.fixture(scope="session")
def small_lm(small_lm_folder: Path) -> LocalLanguageModel:
    """The untrained small model."""
    from recsys.retrieval.rerank.lm.local import LocalLanguageModel

    return LocalLanguageModel.load(small_lm_folder, device="cpu", dtype="float32")


def made_request(count: int, seed: int = 0, history: int = 3) -> RerankRequest:
    """A list of made items; ids are numbers that have nothing to do with places or labels."""
    items = [
        RerankItem(item_id=1000 + 7 * at, text=f"{WORDS[(at * 5 + seed) % 11]} {WORDS[(at + seed) % 11]} {at}")
        for at in range(count + history)
    ]
    return RerankRequest(candidates=items[:count], history=items[count:])


@pytest.fixture(scope="session")
def requests_of_many_lengths() -> list[RerankRequest]:
    """From nothing to more than a window."""
    return [made_request(count, seed) for seed, count in enumerate([0, 1, 2, 7, 20, 21, 45])]


@pytest.fixture(scope="session")
def few_requests() -> list[RerankRequest]:
    """Two short lists, an empty one, and one of one candidate."""
    return [made_request(5), made_request(0), made_request(1), made_request(4, seed=3, history=0)]
