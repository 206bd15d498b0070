"""Example users of the report: what they did, what the bundle would show them, what they chose next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from recsys.dataset import Dataset
from recsys.events import Event
from recsys.pipelines.report_page import Section, note, table
from recsys.retrieval.page import Hit
from recsys.retrieval.recommender import Recommender

__all__ = ["examples_section"]

_NUM_USERS = 4
_SHOWN_EVENTS = 8
_SHOWN_HITS = 8
_DEEP = 100


def examples_section(rec: Recommender, dataset: Dataset) -> Section:
    """Some users of the test split, at even distances."""
    title = "Example users"
    requests = dataset.requests("test")
    rows = np.flatnonzero(requests.end >= 3)
    if not len(rows):
        return Section(title, absent="No user of the test split has three earlier events to show.")
    chosen = rows[np.unique(((np.arange(_NUM_USERS) + 0.5) / _NUM_USERS * len(rows)).astype(np.int64))]
    names = _Names(dataset)
    shown_on = _slate_surface(dataset)
    where = "" if shown_on is None else f" on {shown_on}, the surface of most slates"
    parts = [
        note(
            "Users at even distances through the test split, none picked by hand: their last events, newest last, what "
            "the bundle recommends at the time and on the surface of the next one, the probability of every action"
            f"{where}, and what was chosen."
        )
    ]
    for row in chosen:
        user, end = int(requests.user[row]), int(requests.end[row])
        events = names.events(user, end)
        at, surface = int(requests.timestamp[row]), dataset.manifest.surfaces[int(requests.surface[row])] or None
        page = rec.recommend(history=events, k=_DEEP, at=at, surface=surface)
        target = dataset.item_ids[int(requests.target[row])]
        place = page.item_ids.index(target) + 1 if target in page.item_ids else None
        hits = page[:_SHOWN_HITS]
        probabilities = {hit.item_id: hit.actions for hit in hits}
        if hits and shown_on not in (None, surface):
            # Where a surface records chosen items alone, such as a search, every probability on it is near 1.
            there = rec.recommend(history=events, k=len(hits), at=at, surface=shown_on, allow=list(probabilities))
            probabilities |= {hit.item_id: hit.actions for hit in there}
        parts.append(_user(names, dataset.user_ids[user], events, hits, probabilities, target, place, surface))
    return Section(title, "".join(parts))


def _slate_surface(dataset: Dataset) -> str | None:
    """The surface of most rows of slates; None where there are none, or they name no surface."""
    if dataset.slates is None or not len(dataset.slates.surface):
        return None
    count_S = np.bincount(dataset.slates.surface, minlength=len(dataset.manifest.surfaces))
    return dataset.manifest.surfaces[int(count_S.argmax())] or None


class _Names:
    """What to call items, actions and surfaces."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._titles = dataset.items["title"] if "title" in dataset.items.columns else None

    def item(self, item_id: Any) -> str:
        at = int(self._dataset.item_index([item_id])[0])
        title = None if self._titles is None or at < 0 else self._titles[at]
        return str(title).strip() or str(item_id) if title is not None else str(item_id)

    def events(self, user: int, end: int) -> list[Event]:
        """A user's first events in the caller's words."""
        history, manifest = self._dataset.events.history(user, end), self._dataset.manifest
        item_ids = self._dataset.item_ids.gather(history.item).to_list()
        return [
            Event(
                item_id=item_id,
                actions=_of(manifest.actions, int(history.yes[row])),
                unknown=_of(manifest.actions, ~int(history.known[row])),
                timestamp=int(history.timestamp[row]) if history.time_known[row] else None,
                surface=manifest.surfaces[int(history.surface[row])] or None,
            )
            for row, item_id in enumerate(item_ids)
        ]


def _of(actions: tuple[str, ...], mask: int) -> tuple[str, ...]:
    return tuple(name for bit, name in enumerate(actions) if mask >> bit & 1)


def _user(
    names: _Names,
    user_id: Any,
    events: list[Event],
    hits: Sequence[Hit],
    probabilities: Mapping[Any, Mapping[str, float]],
    target: Any,
    place: int | None,
    surface: str | None,
) -> str:
    shown = events[-_SHOWN_EVENTS:]
    steps = "".join(
        f"<li>{escape(names.item(event.item_id))} "
        f'<span class="soft">{escape("+".join(event.actions) or "shown")}</span></li>'
        for event in shown
    )
    earlier = f"{len(events) - len(shown):,} earlier events, then " if len(events) > len(shown) else ""
    found = f"place {place} of the list" if place is not None else f"not among the first {_DEEP}"
    chosen = "Chosen next" if surface is None else f"Chosen next, on {surface}"
    actions = list(hits[0].actions) if hits else []
    rows = []
    for rank, hit in enumerate(hits, start=1):
        likely = (f"{probabilities[hit.item_id][name]:.3f}" for name in actions)
        rows.append([str(rank), names.item(hit.item_id), *likely, f"{hit.score:.2f}"])
    return (
        f'<div class="user"><h3>User {escape(str(user_id))}</h3><p class="soft">{earlier}{len(shown)} events:</p>'
        f'<ol class="history">{steps}</ol>'
        + table(
            ["", "recommended", *actions, "score"],
            rows,
            ours=[hit.item_id == target for hit in hits],
            text=(1,),
        )
        + f'<p>{escape(chosen)}: <span class="{"hit" if place is not None and place <= _SHOWN_HITS else ""}">'
        f"{escape(names.item(target))}</span> "
        f'<span class="soft">({found})</span></p></div>'
    )
