"""The one reference to what answers requests, and everything that may put another in its place."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import polars as pl

from recsys.bundle import Bundle
from recsys.errors import InputError
from recsys.events import Event
from recsys.retrieval.answer import answer
from recsys.retrieval.catalogue_change import CatalogueChange, GivenRows, given_rows
from recsys.retrieval.catalogue_save import save_state
from recsys.retrieval.catalogue_update import CatalogueState, changed_state
from recsys.retrieval.question import Question, questions_of
from recsys.retrieval.request import Request
from recsys.retrieval.snapshot import Snapshot

__all__ = ["LiveCatalogue", "UpdateJournal"]

_FRAMES_AT_MOST = 64


@dataclass(slots=True)
class UpdateJournal:
    """Changes in the caller's words, so that they can be made to another bundle: the last one of every item."""

    rows: list[pl.DataFrame] = field(default_factory=list)
    added: set[str] = field(default_factory=set)
    """Items that came with a change, by the text of their ids; the others were known when they changed."""
    withdrawn: dict[str, Any] = field(default_factory=dict)
    """Ids by their text, which is how ids are compared."""
    restored: dict[str, Any] = field(default_factory=dict)
    codebooks: dict[tuple[str, str], str] = field(default_factory=dict)
    """By item and kind of codes, the codebooks that codes given with the item belong to."""

    def add(self, before: Bundle, rows: GivenRows, withdraw: Iterable[Any], restore: Iterable[Any]) -> None:
        """Note a change that was made to this bundle."""
        self.rows += rows
        for frame in rows:
            is_new = before.vocabulary.items.index(frame["item_id"]) < 0
            self.added |= {str(name) for name in frame["item_id"].filter(is_new)}
            for kind in before.model.codes.sizes:
                if kind in frame.columns:
                    books = _codebooks(before, kind)
                    self.codebooks |= {(str(name), kind): books for name in frame["item_id"]}
        for ids, into, out_of in ((withdraw, self.withdrawn, self.restored), (restore, self.restored, self.withdrawn)):
            for name in ids:
                out_of.pop(str(name), None)
                into[str(name)] = name
        if len(self.rows) > _FRAMES_AT_MOST:
            self.rows = list(self.net())

    def net(self) -> GivenRows:
        """The rows of all changes, one per item, items in the order in which they first came; every value is of the
        type in which it was given."""
        merged: dict[str, dict[str, Any]] = {}
        types: dict[str, dict[str, pl.DataType]] = {}
        for frame in self.rows:
            for row in frame.iter_rows(named=True):
                name = str(row["item_id"])
                merged.setdefault(name, {}).update(row)
                types.setdefault(name, {}).update(frame.schema)
        groups: dict[tuple[tuple[str, pl.DataType], ...], list[dict[str, Any]]] = {}
        for name, row in merged.items():
            groups.setdefault(tuple(sorted(types[name].items(), key=itemgetter(0))), []).append(row)
        return tuple(pl.DataFrame(rows, schema=dict(schema)) for schema, rows in groups.items())

    def rows_for(self, bundle: Bundle) -> GivenRows:
        """The rows for another bundle. What was a change of a known item stays away from one without it: a bundle that
        leaves an item out means it. Codes that were given for other codebooks than its own mean nothing there."""
        found = []
        for frame in self.net():
            for kind in bundle.model.codes.sizes:
                if kind in frame.columns:
                    books = _codebooks(bundle, kind)
                    ours = [self.codebooks[str(name), kind] == books for name in frame["item_id"]]
                    frame = frame.with_columns(pl.when(pl.Series(ours, dtype=pl.Boolean)).then(kind).alias(kind))
            known = pl.Series(bundle.vocabulary.items.index(frame["item_id"]) >= 0)
            found.append(frame.filter(known | frame["item_id"].cast(pl.String).is_in(list(self.added))))
        return tuple(frame for frame in found if frame.height)


def _codebooks(bundle: Bundle, kind: str) -> str:
    """Names the codebooks that make a bundle's codes of one kind; the same word for all bundles without any."""
    files = sorted(item for item in bundle.manifest["files"].items() if item[0].startswith(f"tokenizers/{kind}/"))
    return hashlib.sha256(repr(files).encode()).hexdigest()


class LiveCatalogue:
    """Holds the present snapshot. Reading it takes no lock; changes wait for each other."""

    def __init__(self, first: Snapshot) -> None:
        """Begin with a snapshot; those that are swapped in share its source of histories and its memory for states."""
        self._lock = threading.Lock()
        self._state = CatalogueState(first)
        self._journal = UpdateJournal()
        self._num_swaps = 0
        self._items_came = False
        """Whether a number beyond a bundle's items was ever given out, or a known item changed."""

    @property
    def snapshot(self) -> Snapshot:
        """What answers requests now: read it once per call."""
        return self._state.snapshot

    def update_items(self, items: Any, withdraw: Iterable[Any], restore: Iterable[Any]) -> None:
        """See :meth:`recsys.retrieval.recommender.Recommender.update_items`."""
        rows = given_rows(items)
        gone, back = (_read_once(ids) for ids in (withdraw, restore))
        with self._lock:
            before = self.snapshot.bundle
            after = _changed(self._state, rows, gone, back)
            self._state = after
            self._journal.add(before, rows, gone, back)
            self._items_came |= bool(rows)

    def swap(self, bundle: Path | str | Bundle, keep_updates: bool) -> None:
        """See :meth:`recsys.retrieval.recommender.Recommender.swap`."""
        with self._lock:
            before = self.snapshot
            loaded = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, before.device)
            snapshot, journal = Snapshot.of(loaded, before.history_source, before.states), UpdateJournal()
            mark = snapshot.state_hash
            if self._items_came:
                # Numbers beyond a bundle's items may now stand for others: no user state of before may be taken.
                mark = hashlib.sha256(f"{mark} swap {self._num_swaps + 1}".encode()).hexdigest()
            state = CatalogueState(snapshot.apart(mark, before.number + 1))
            if keep_updates:
                journal = replace(
                    self._journal, rows=list(self._journal.net()), withdrawn=dict(self._journal.withdrawn)
                )
                gone = before.bundle.vocabulary.items.take(before.bundle.withdrawn_G)
                journal.withdrawn |= {str(name): name for name in gone}
                withdrawn, restored = list(journal.withdrawn.values()), list(journal.restored.values())
                rows = journal.rows_for(loaded)
                state = _changed(state, rows, (), (), lenient=True)  # first, so that all ids are known
                state = _changed(state, (), withdrawn, restored, lenient=True)
            _check_answers(state.snapshot)
            self._state, self._journal = state, journal
            self._num_swaps += 1

    def save(self, path: Path | str) -> None:
        """Write a bundle that loads as what answers now."""
        save_state(self._state, Path(path))


def _read_once(ids: Any) -> Any:
    """A collection that may be read again; what is none is refused where it is checked."""
    return ids if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable) else list(ids)


def _changed(
    state: CatalogueState, rows: GivenRows, withdraw: Iterable[Any], restore: Iterable[Any], *, lenient: bool = False
) -> CatalogueState:
    if rows:
        state = state.with_content()
    content = state.content
    change = CatalogueChange.of(
        state.snapshot.bundle,
        rows,
        withdraw,
        restore,
        read=frozenset() if content is None else content.columns,
        vector_columns=() if content is None else content.vector_columns,
        lenient=lenient,
    )
    return changed_state(state, change)


def _check_answers(snapshot: Snapshot) -> None:
    """Ask every retriever something, which also loads what is loaded late.

    Raises:
        InputError: the bundle cannot answer.
    """
    bundle = snapshot.bundle
    events = [
        Event(item_id=name, actions=bundle.vocabulary.actions[:1]) for name in bundle.vocabulary.items.ids.head(3)
    ]
    names = tuple(snapshot.retrievers)
    try:
        requests = [Request(history=events, k=5, retrievers=names), Request(k=5, retrievers=names)]
        questions = questions_of(snapshot, requests, 0.0, keep_states=False)
        pages = answer(snapshot, [question for question in questions if isinstance(question, Question)])
    except (ValueError, RuntimeError, KeyError, IndexError) as error:
        line = " ".join(str(error).split())
        raise InputError(f"{bundle.path} cannot answer ({line}); nothing was swapped") from error
    for hit in (hit for page in pages for hit in page):
        if not all(map(math.isfinite, (hit.score, *hit.actions.values()))):
            raise InputError(f"{bundle.path} scores item {hit.item_id!r} as {hit.score}; nothing was swapped")
