"""The tables of a made world, in the format of the input tables, and its truth.

Suffixes: V = visits, K = places, A = actions, E = interaction rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.numpy import save

from recsys.pipelines.simulate.topics import item_texts
from recsys.pipelines.simulate.visits import PROBE, ROW_SECONDS, SEARCH, Visits
from recsys.pipelines.simulate.world import ACTIONS, SURFACES, World

__all__ = ["impression_table", "interaction_table", "item_ids", "item_table", "user_ids", "user_table", "write_truth"]

_COUNTRIES = ("AT", "BR", "CA", "DE", "FR", "IN", "JP", "KE", "MX", "NO")


def user_ids(world: World) -> NDArray[np.str_]:
    """Callers' ids; users come in no particular order."""
    return np.array([f"u{user:05d}" for user in range(world.config.num_users)])


def item_ids(world: World) -> NDArray[np.str_]:
    """Callers' ids; the number of an item says nothing about its cluster."""
    return np.array([f"i{item:05d}" for item in range(world.config.num_items)])


def item_table(world: World) -> pl.DataFrame:
    """item_id, title, text, category."""
    rng = np.random.default_rng([world.config.seed, 3])
    titles, texts, categories = item_texts(world.cluster_I, rng)
    return pl.DataFrame({"item_id": item_ids(world), "title": titles, "text": texts, "category": categories})


def user_table(world: World) -> pl.DataFrame:
    """user_id and a country, which says nothing about anything."""
    rng = np.random.default_rng([world.config.seed, 4])
    return pl.DataFrame({"user_id": user_ids(world), "country": rng.choice(_COUNTRIES, world.config.num_users)})


def interaction_table(world: World, visits: Visits) -> pl.DataFrame:
    """One row per search and per row of a logged slate, in order of time; probes leave none."""
    logged = np.flatnonzero(visits.kind != PROBE)
    visit, place = np.nonzero(visits.item_VK[logged] >= 0)
    visit = logged[visit]
    return pl.DataFrame(
        {
            "user_id": user_ids(world)[visits.user[visit]],
            "item_id": item_ids(world)[visits.item_VK[visit, place]],
            "timestamp": visits.time[visit] + ROW_SECONDS * place,
            "action": _action_names(visits.yes_VKA[visit, place]),
            "surface": np.array(SURFACES)[visits.surface[visit]],
        }
    ).sort("timestamp", maintain_order=True)


def impression_table(world: World, visits: Visits) -> pl.DataFrame:
    """One row per slate, logged or probe, in order of time, its items in the order shown."""
    at = np.flatnonzero(visits.kind != SEARCH)
    size = world.config.slate_size
    lists = {
        "item_ids": item_ids(world)[visits.item_VK[at]],
        "actions": _action_names(visits.yes_VKA[at].reshape(-1, len(ACTIONS))).reshape(len(at), size),
        "surfaces": np.repeat(np.array(SURFACES)[visits.surface[at]][:, None], size, axis=1),
        "times": visits.time[at][:, None] + ROW_SECONDS * np.arange(size),
    }
    return pl.DataFrame(
        {
            "slate_id": [f"s{visit:07d}" for visit in at.tolist()],
            "user_id": user_ids(world)[visits.user[at]],
            "timestamp": visits.time[at],
            **{name: pl.Series(values.tolist(), dtype=_list_type(values)) for name, values in lists.items()},
        }
    ).sort("timestamp", maintain_order=True)


def _list_type(values: NDArray[np.generic]) -> pl.List:
    return pl.List(pl.Int64 if values.dtype == np.int64 else pl.String)


def _action_names(yes_EA: NDArray[np.bool_]) -> NDArray[np.str_]:
    """[E] names of the actions that happened, joined by ``+``; empty for a bare exposure."""
    code_E = yes_EA @ (1 << np.arange(len(ACTIONS)))
    names = ["+".join(name for bit, name in enumerate(ACTIONS) if code >> bit & 1) for code in range(1 << len(ACTIONS))]
    return np.array(names)[code_E]


def write_truth(folder: Path, world: World, visits: Visits) -> None:
    """``world.safetensors`` (parameters) and ``visits.safetensors`` (every visit with its hidden type)."""
    (folder / "world.safetensors").write_bytes(save(world.arrays()))
    (folder / "visits.safetensors").write_bytes(save(visits.arrays()))
