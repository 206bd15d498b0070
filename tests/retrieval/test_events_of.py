"""What a recommender says of the events it holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys.errors import InputError
from recsys.events import Event
from recsys.retrieval.history_sources import SqliteHistories, over_bundle
from recsys.retrieval.recommender import Recommender


def test_the_events_of_a_user_are_those_of_the_bundle_and_what_came_since(toy_bundle: Path, tmp_path: Path) -> None:
    stored = Recommender.load(toy_bundle).events_of("u3")
    assert stored and [event.timestamp for event in stored] == sorted(event.timestamp or 0 for event in stored)
    with SqliteHistories(tmp_path / "events.sqlite") as store:
        rec = Recommender.load(toy_bundle, history_source=over_bundle(store))
        assert rec.events_of("u3") == stored and rec.events_of("stranger") is None
        for user in ("u3", "stranger"):
            rec.append_events(user, [Event(item_id="i4", actions=("like",), timestamp=1_800_000_000)])
        new = Event(item_id="i4", actions=("like",), timestamp=1_800_000_000)
        assert rec.events_of("u3") == [*stored, new] and rec.events_of("stranger") == [new]
        with pytest.raises(InputError, match="user_id"):
            rec.events_of(None)


def test_the_version_is_that_of_the_next_page(toy_bundle: Path) -> None:
    rec = Recommender.load(toy_bundle)
    first = rec.version
    assert rec.recommend("u3").version == first
    rec.update_items(withdraw=["i4"])
    assert rec.recommend("u3").version == rec.version != first
