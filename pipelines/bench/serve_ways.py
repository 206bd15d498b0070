"""The same requests answered by recommenders that differ in how the states of users come about.

Suffixes: D = width, U = users.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.blocks import Block
from recsys.bundle import Bundle, StoredHistories
from recsys.calibration import Calibration
from recsys.events import EventLog, History
from recsys.index.exact import ExactIndex
from recsys.index.item_graph import ItemGraph
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.retrieval.recommender import Recommender
from recsys.state_store import StoreCounts, UserStateStore
from recsys.user_state import UserStates
from recsys.vocabulary import IdMap, Vocabulary

__all__ = ["ACTIONS", "DIM", "NUM_ITEMS", "TwoEncodings", "bench_bundle", "recommenders"]

NUM_ITEMS = 10_000
DIM = 64
_START = 1_700_000_000
ACTIONS = ("click", "like", "buy")


def bench_bundle(window: int, num_users: int, *, plain: bool = False, num_items: int = NUM_ITEMS) -> Bundle:
    """The model and catalogue of ``bench unify`` with a window, and users whose histories are longer than it.

    Args:
        plain: the same projections around the softmax of ``scaled_dot_product_attention(is_causal=True)``, without
            times.
    """
    torch.manual_seed(0)
    model = UnifiedModel(
        ModelConfig(
            num_items=num_items,
            num_actions=3,
            num_surfaces=2,
            positive_mask=3,
            dim=DIM,
            num_blocks=2,
            num_heads=2,
            block="hstu",
            window=window,
            time_encoding="none" if plain else "bias",
        )  # fmt: skip
    ).eval()
    if plain:
        for block in model.encoder.blocks:
            assert isinstance(block, Block)
            block.kind = "softmax"
    vectors = model.item_vectors()
    events = _events(window, model.config.stride, num_users, num_items)
    nothing = torch.zeros(0)
    graph = ItemGraph((), 0, torch.zeros(num_items + 1, dtype=torch.int64), nothing.int(), nothing)
    items = pl.DataFrame({"item_id": np.arange(num_items)})
    name = "plain" if plain else "model"
    files = {f"model/model.{kind}": f"{name} {window}" for kind in ("json", "safetensors")}
    return Bundle(
        path=Path(f"bench-{name}-{window}"),
        manifest={"checksum": f"{name} {window}", "files": files, "retrievers": ["dense"], "data_hash": "bench"},
        vocabulary=Vocabulary(
            items=IdMap(items["item_id"]), actions=ACTIONS, surfaces=("", "home"), clock="real",
            max_timestamp=int(events.timestamp.max()),
        ),
        items=items,
        model=model,
        vectors=vectors,
        index=ExactIndex(vectors),
        graph_now=graph,
        graph_train=graph,
        histories=StoredHistories(IdMap(pl.Series(np.arange(num_users))), events),
        calibration=Calibration.identity(3),
        user_features_UK=None,
        past=None,
        trie=None,
    )  # fmt: skip


def _events(window: int, stride: int, num_users: int, num_items: int) -> EventLog:
    """Histories of every phase of the window, with gaps from seconds to weeks."""
    rng = np.random.default_rng(0)
    length_U = window + 1 + rng.permutation(num_users) * stride // num_users
    total = int(length_U.sum())
    offsets = np.concatenate([[0], np.cumsum(length_U)])
    gaps = np.exp(rng.uniform(0, 14, total)).astype(np.int64)
    return EventLog(
        offsets=offsets,
        item=rng.integers(0, num_items, total),
        timestamp=_START
        + np.concatenate([np.cumsum(gaps[a:b]) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]),
        yes=rng.integers(0, 8, total),
        known=np.full(total, 7),
        surface=rng.integers(0, 2, total),
        value=np.full(total, np.nan, dtype=np.float32),
        time_known=np.ones(total, dtype=np.bool_),
    )


class TwoEncodings(UserStateStore):
    """States of two models: search reads those of one, ranking those of the other; nothing is kept.

    It favours two models wherever they could be favoured: both run in one process on one reading of the history, the
    encoder of retrieval leaves keys and values out, the candidates do not travel, and there is one page.
    """

    def __init__(self, model: UnifiedModel, model_hash: str) -> None:
        super().__init__(model, model_hash=model_hash, max_bytes=0, host_bytes=0)
        self.ranker = UserStateStore(copy.deepcopy(model), model_hash=model_hash, max_bytes=0, host_bytes=0)

    @torch.no_grad()
    def states(
        self,
        keys: Sequence[Hashable | None],
        histories: Sequence[History],
        *,
        keep_cache: bool = True,
        user_BK: Tensor | NDArray[np.float32] | None = None,
        item_ID: Tensor | None = None,
    ) -> tuple[UserStates, StoreCounts]:
        searched, counts = super().states(keys, histories, keep_cache=False, user_BK=user_BK, item_ID=item_ID)
        ranked, more = self.ranker.states(keys, histories, keep_cache=keep_cache, user_BK=user_BK, item_ID=item_ID)
        return replace(ranked, last_BD=searched.last_BD), counts + more


def recommenders(bundle: Bundle, plain: Bundle, num_states: int) -> dict[str, Recommender]:
    """The ways by name: two encodings; one; one and kept states; the same of few users; one of plain attention.

    Args:
        num_states: states of full windows that the large store has room for; the small one holds an eighth of them.
    """
    model, name = bundle.model, bundle.model_hash

    def kept(most: int) -> UserStateStore:
        store = UserStateStore(model, model_hash=name, max_bytes=0, host_bytes=0)
        room = (most + 1) * store.layout.state_bytes(model.config.window)
        return UserStateStore(model, model_hash=name, max_bytes=room, host_bytes=0)

    def made(own: Bundle, states: UserStateStore) -> Recommender:
        recommender = Recommender(own, states=states)
        recommender.observe()
        return recommender

    none = UserStateStore(model, model_hash=name, max_bytes=0, host_bytes=0)
    plain_none = UserStateStore(plain.model, model_hash=plain.model_hash, max_bytes=0, host_bytes=0)
    return {
        "separate": made(bundle, TwoEncodings(model, name)),
        "shared": made(bundle, none),
        "kept": made(bundle, kept(num_states)),
        "few kept": made(bundle, kept(num_states // 8)),
        "plain": made(plain, plain_none),
    }
