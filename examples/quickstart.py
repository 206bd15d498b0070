"""From two frames to recommendations, in memory: prepare, fit, ask.

python examples/quickstart.py --users 300 --epochs 3
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import polars as pl

import recsys
from recsys import Event
from recsys.pipelines.simulate.command import simulate


def main(argv: Sequence[str]) -> pl.DataFrame:
    """Train on a simulated shop and print what two users and a stranger would be shown."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--users", type=int, default=300)
    flags.add_argument("--epochs", type=int, default=3)
    given = flags.parse_args(argv)

    with tempfile.TemporaryDirectory() as folder:
        shop = Path(folder) / "shop"
        simulate(shop, users=given.users, items=300, seed=1)
        interactions, items = pl.read_parquet(shop / "interactions.parquet"), pl.read_parquet(shop / "items.parquet")

    data = recsys.prepare(interactions=interactions, items=items)
    rec = recsys.fit(data, max_epochs=given.epochs)

    table = rec.recommend_frame(users=interactions["user_id"].unique().sort().head(2), k=5)
    print(table.join(items.select("item_id", "title"), on="item_id"))

    first = items["item_id"][0]
    page = rec.recommend(history=[Event(item_id=first, actions="click", timestamp=1_700_000_000)], k=3)
    print(f"after a click on {items['title'][0]}:")
    for hit in page:
        chances = ", ".join(f"{name} {chance:.2f}" for name, chance in hit.actions.items())
        print(f"  {items.row(by_predicate=pl.col('item_id') == hit.item_id, named=True)['title']}: {chances}")
    return table


if __name__ == "__main__":
    main(sys.argv[1:])
