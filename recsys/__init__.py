"""Generative recommendation and retrieval: one model, one pass over a user's actions."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys.events import Event
    from recsys.pipelines.frames import evaluate, fit, prepare
    from recsys.retrieval.recommender import Recommender
    from recsys.retrieval.rules import MMR, Boost, Cap, Explore, Floor, Freshness, Pin, Where

__all__ = [
    "MMR",
    "Boost",
    "Cap",
    "Event",
    "Explore",
    "Floor",
    "Freshness",
    "Pin",
    "Recommender",
    "Where",
    "evaluate",
    "fit",
    "prepare",
]
__version__ = "0.1.0"

_RULES = ("MMR", "Boost", "Cap", "Explore", "Floor", "Freshness", "Pin", "Where")
_HOMES = {
    "Event": "recsys.events",
    "Recommender": "recsys.retrieval.recommender",
    "evaluate": "recsys.pipelines.frames",
    "fit": "recsys.pipelines.frames",
    "prepare": "recsys.pipelines.frames",
    **dict.fromkeys(_RULES, "recsys.retrieval.rules"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'recsys' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
