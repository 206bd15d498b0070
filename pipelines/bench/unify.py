"""What sharing one pass between retrieval and ranking saves.

Three ways to answer the same requests (the 200 or 500 best of 10,000 items by exact search, then their action logits):
(a) two encodings of the history by the same encoder, one for retrieval and one for ranking; (b) one encoding whose keys
and values ranking reads; (c) the same as (b) on an encoder of the same size whose attention is the softmax of
``scaled_dot_product_attention(is_causal=True)`` and knows no times, so that a slow encoder cannot buy the ratio.

Counted per layer with causal attention over n events and k candidates of width d: E = 10nd² + 2n²d for the history,
Δ = 10kd² + 4knd for the candidates; (a) is 2E + Δ, (b) is E + Δ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.blocks import Block
from recsys.events import History
from recsys.index.exact import ExactIndex
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.pipelines.bench.case import Case, interleaved_seconds
from recsys.retrieval.dense import DenseRetriever

__all__ = ["Pipeline", "bench_unify", "counted_ratio"]

_NUM_ITEMS = 10_000
_DIM = 64
_WINDOW = 1024
_SHAPES = ((1024, 200), (1024, 500), (256, 200), (256, 500), (64, 200), (64, 500))
"""(events, candidates); the first one is the headline."""
_EVENTS_AT_ONCE = 4096
"""Requests of a batch, for the throughput: as many as have so many events together, 16 at most."""
_START = 1_700_000_000


def bench_unify(*, long: bool) -> list[Case]:
    """One case per number of events and candidates."""
    ours, plain = Pipeline.of(plain=False), Pipeline.of(plain=True)
    return [_case(ours, plain, events, candidates, repeats=3 if long else 1) for events, candidates in _SHAPES]


def counted_ratio(events: int, candidates: int, dim: int = _DIM) -> float:
    """(2E + Δ) / (E + Δ).

    >>> round(counted_ratio(1024, 200), 2)
    1.74
    """
    history = 10 * events * dim**2 + 2 * events**2 * dim
    delta = 10 * candidates * dim**2 + 4 * candidates * events * dim
    return (2 * history + delta) / (history + delta)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Retrieval and ranking by one model.

    Suffixes: B = requests, K = candidates, A = actions.
    """

    model: UnifiedModel
    retriever: DenseRetriever

    @classmethod
    def of(cls, *, plain: bool) -> Pipeline:
        """Two HSTU blocks with a bias of time differences; ``plain``: the same projections around softmax attention."""
        torch.manual_seed(0)
        model = UnifiedModel(
            ModelConfig(
                num_items=_NUM_ITEMS,
                num_actions=3,
                num_surfaces=2,
                positive_mask=3,
                dim=_DIM,
                num_blocks=2,
                num_heads=2,
                block="hstu",
                window=_WINDOW,
                time_encoding="none" if plain else "bias",
            )
        ).eval()
        if plain:
            for block in model.encoder.blocks:
                assert isinstance(block, Block)
                block.kind = "softmax"
        vectors = model.item_vectors()
        return cls(model, DenseRetriever(model, ExactIndex(vectors), vectors, "dense_learned"))

    def shared(self, histories: Sequence[History], at_B: Tensor, candidates: int) -> Tensor:
        """[B, K, A] logits of the candidates, on the keys and values that retrieval left."""
        surface_B = torch.zeros_like(at_B)
        states = self.model.encode(histories)
        hits = self.retriever.search(states, candidates, at_B=at_B, surface_B=surface_B)
        return self.model.rank(states, hits.ids_QK, at_B, torch.zeros_like(hits.ids_QK))

    def separate(self, histories: Sequence[History], at_B: Tensor, candidates: int) -> Tensor:
        """The same, with a second encoding for ranking."""
        surface_B = torch.zeros_like(at_B)
        states = self.model.encode(histories, keep_cache=False)
        hits = self.retriever.search(states, candidates, at_B=at_B, surface_B=surface_B)
        states = self.model.encode(histories)
        return self.model.rank(states, hits.ids_QK, at_B, torch.zeros_like(hits.ids_QK))


def _case(ours: Pipeline, plain: Pipeline, events: int, candidates: int, *, repeats: int) -> Case:
    batch = min(16, _EVENTS_AT_ONCE // events)
    histories, at_B = _requests(batch, events)
    one = histories[:1], at_B[:1]
    with torch.inference_mode():
        apart = (ours.shared(histories, at_B, candidates) - ours.separate(histories, at_B, candidates)).abs().max()
        if not apart <= 1e-5:
            raise RuntimeError(f"logits of the two ways are {float(apart)} apart: they do not do the same work")
        each = {"shared": ours.shared, "separate": ours.separate, "plain": plain.shared}
        many_s = interleaved_seconds(
            {name: _call(way, histories, at_B, candidates) for name, way in each.items()}, repeats=7 * repeats
        )
        one_s = interleaved_seconds(
            {name: _call(way, *one, candidates) for name, way in each.items()}, repeats=21 * repeats
        )

    def figures(way: str) -> dict[str, float]:
        return {"requests_per_s": batch / many_s[way], "latency_ms": 1e3 * one_s[way]}

    return Case(
        name=f"{events} events, {candidates} candidates",
        shape={
            "events": events,
            "candidates": candidates,
            "items": _NUM_ITEMS,
            "dim": _DIM,
            "blocks": 2,
            "heads": 2,
            "requests_at_once": batch,
            "threads": torch.get_num_threads(),
        },
        ours={"what": "one encoding, its keys and values shared", **figures("shared")},
        other={
            "what": "one encoding for retrieval, another for ranking",
            **figures("separate"),
            **{f"sdpa_{name}": value for name, value in figures("plain").items()},
            "latency_ratio": one_s["separate"] / one_s["shared"],
            "sdpa_ratio": many_s["plain"] / many_s["shared"],
            "sdpa_latency_ratio": one_s["plain"] / one_s["shared"],
        },
        ratio=many_s["separate"] / many_s["shared"],
        predicted_ratio=counted_ratio(events, candidates),
    )


def _call(
    way: Callable[[Sequence[History], Tensor, int], Tensor],
    histories: Sequence[History],
    at_B: Tensor,
    candidates: int,
) -> Callable[[], Tensor]:
    return lambda: way(histories, at_B, candidates)


def _requests(batch: int, events: int) -> tuple[list[History], Tensor]:
    """Histories with gaps from seconds to weeks, and a request a minute after the last event."""
    rng = np.random.default_rng(0)
    histories = []
    for _ in range(batch):
        yes = rng.integers(0, 8, events)
        histories.append(
            History(
                item=rng.integers(0, _NUM_ITEMS, events),
                timestamp=_START + np.cumsum(np.exp(rng.uniform(0, 14, events)).astype(np.int64)),
                yes=yes,
                known=np.full(events, 7),
                surface=rng.integers(0, 2, events),
                time_known=np.ones(events, dtype=np.bool_),
            )
        )
    return histories, torch.tensor([int(history.timestamp[-1]) + 60 for history in histories])
