"""Questions in words to a small shop: filters, a conversation, and facts from one's own events.

python examples/ask.py
python examples/ask.py --lm path/to/a/language/model
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import polars as pl

import recsys
from recsys.pipelines.simulate.command import simulate
from recsys.retrieval.rag.ask import Asker, Conversation


def main(argv: Sequence[str]) -> list[str]:
    """Train on a simulated shop with prices and colours, and talk to it."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--users", type=int, default=200)
    flags.add_argument("--epochs", type=int, default=2)
    flags.add_argument("--lm", help="folder of a language model, or http(s)://host/v1#model; none is needed")
    given = flags.parse_args(argv)

    with tempfile.TemporaryDirectory() as folder:
        shop = Path(folder) / "shop"
        simulate(shop, users=given.users, items=300, seed=1)
        interactions, items = pl.read_parquet(shop / "interactions.parquet"), pl.read_parquet(shop / "items.parquet")
    row = pl.int_range(pl.len())
    colour = pl.Series("colour", ["red", "blue", "green"])
    items = items.with_columns(price=5.0 + row % 40, colour=pl.lit(colour.implode()).list.get(row % 3))
    rec = recsys.fit(recsys.prepare(interactions=interactions, items=items), max_epochs=given.epochs)

    lm = None
    if given.lm:
        from recsys.retrieval.rerank.lm.open import open_language_model

        lm = open_language_model(given.lm)
    asker = Asker(rec, lm)
    talk = Conversation(asker, interactions["user_id"][0])
    texts = []
    for question in (
        "something red under 20 dollars",
        "rather a blue one",
        "something else",
        "How many events did I have?",
    ):
        answer = talk.ask(question, k=3)
        print(f"> {question}\n{answer.text}\n")
        texts.append(answer.text)
    asker.close()
    return texts


if __name__ == "__main__":
    main(sys.argv[1:])
