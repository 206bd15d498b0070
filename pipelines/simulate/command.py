"""``recsys simulate``: made data with known truth."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from recsys.errors import InputError
from recsys.files import atomic_folder, write_json
from recsys.pipelines.simulate.ceilings import ceilings
from recsys.pipelines.simulate.tables import (
    impression_table,
    interaction_table,
    item_table,
    user_table,
    write_truth,
)
from recsys.pipelines.simulate.visits import draw_visits
from recsys.pipelines.simulate.world import World, WorldConfig

__all__ = ["simulate"]


def simulate(output: Path, users: int = 2000, items: int = 600, seed: int = 0) -> None:
    """Write made data whose truth is known: input tables, the world behind them and the best possible figures.

    DIR then holds interactions.parquet, impressions.parquet, items.parquet and users.parquet in the format that
    ``recsys prepare`` reads, and truth/: the world's parameters, every visit with the user's hidden type, and
    ceilings.json with the figures of who sees the hidden type (``true``) and of who knows the world but only the
    user's events (``posterior``).

    Args:
        output: folder to write; an earlier simulation there is replaced.
        users: number of users, each with some 50 events.
        items: size of the catalogue.
        seed: draws the world, its users and its log; the same seed writes the same tables.

    Raises:
        InputError: sizes that make no world, or an output folder that holds something else.
    """
    try:
        config = WorldConfig(num_users=users, num_items=items, seed=seed)
    except ValueError as error:
        raise InputError(f"no such world: {error}; change --users or --items") from None
    world = World.draw(config)
    visits = draw_visits(world)
    with atomic_folder(Path(output), marker="truth/world.json") as folder:
        truth = folder / "truth"
        truth.mkdir()
        interaction_table(world, visits).write_parquet(folder / "interactions.parquet")
        impression_table(world, visits).write_parquet(folder / "impressions.parquet")
        item_table(world).write_parquet(folder / "items.parquet")
        user_table(world).write_parquet(folder / "users.parquet")
        write_truth(truth, world, visits)
        write_json(truth / "world.json", {"config": asdict(config), "digest": config.digest()})
        write_json(truth / "ceilings.json", ceilings(world, visits))
