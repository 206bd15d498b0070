"""A recommender behind HTTP, with a page to look at it. From the root of the repository:

recsys demo --output demo
python -m examples.service --bundle demo/bundle
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import uvicorn
from jsonargparse import auto_cli

from examples.service.app import create_app
from examples.service.service import Settings
from recsys import Recommender
from recsys.errors import InputError, SourceUnavailable
from recsys.retrieval.history_sources import SqliteHistories, over_bundle


def serve(
    bundle: Path,
    events: Path = Path("events.sqlite"),
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "cpu",
    settings: Settings = Settings(),  # noqa: B008 - frozen
) -> None:
    """Serve a bundle until SIGTERM or Ctrl-C; requests that are under way then get their answers.

    Args:
        bundle: folder written by `recsys export --histories` (or by `recsys demo`).
        events: SQLite file that keeps new events; made if it is missing.
        host: address to listen on.
        port: port to listen on.
        device: cpu or cuda.
        settings: limits.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for ending in (signal.SIGTERM, signal.SIGINT):  # the server sends itself the signal again when it has drained
        signal.signal(ending, lambda *_: sys.exit(0))
    token = settings.admin_token or os.environ.get("RECSYS_ADMIN_TOKEN") or None
    with SqliteHistories(events) as store:
        recommender = Recommender.load(bundle, device, history_source=over_bundle(store))
        app = create_app(recommender, replace(settings, admin_token=token))
        uvicorn.run(app, host=host, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=30)


if __name__ == "__main__":
    if sys.path[0] == os.getcwd():
        del sys.path[0]  # `python -m` put the root there, where kernels/ and tokenizers/ hide installed packages
    try:
        auto_cli(serve, as_positional=False)
    except (InputError, SourceUnavailable) as error:
        sys.exit(f"service: {error}")
