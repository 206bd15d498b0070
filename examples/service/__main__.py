"""A recommender behind HTTP, with a page to look at it.

recsys demo --output demo
python -m examples.service --bundle demo/bundle
"""

from __future__ import annotations

import logging
from pathlib import Path

import uvicorn
from jsonargparse import auto_cli

from examples.service.app import Settings, create_app
from recsys import Recommender
from recsys.errors import InputError
from recsys.retrieval.history_sources.layered import over_bundle
from recsys.retrieval.history_sources.sqlite import SqliteHistories


def serve(
    bundle: Path,
    events: Path = Path("events.sqlite"),
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "cpu",
    settings: Settings = Settings(),  # noqa: B008 - frozen
) -> None:
    """Serve a bundle until interrupted.

    Args:
        bundle: folder written by `recsys export --histories` (or by `recsys demo`).
        events: SQLite file that keeps new events; made if it is missing.
        host: address to listen on.
        port: port to listen on.
        device: cpu or cuda.
        settings: limits.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with SqliteHistories(events) as store:
        recommender = Recommender.load(bundle, device, history_source=over_bundle(store))
        uvicorn.run(create_app(recommender, settings), host=host, port=port, log_level="info")


if __name__ == "__main__":
    try:
        auto_cli(serve, as_positional=False)
    except InputError as error:
        raise SystemExit(f"service: {error}") from None
