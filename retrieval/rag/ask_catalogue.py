"""What answering questions needs of an item table, made once per version of it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.retrieval.rag.ask_filter import FilterColumns
from recsys.retrieval.rag.ask_reply import CatalogueTitles
from recsys.retrieval.rag.sql.column_values import ColumnValues, Encoder
from recsys.retrieval.rag.sql.tables import ItemDatabase
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.user_features import encoded_user, stored_user

__all__ = ["AskCatalogue"]


class AskCatalogue:
    """Columns, values and titles of a recommender's items, and their database once somebody asks for facts."""

    def __init__(self, recommender: Recommender, encoder: Encoder | None = None) -> None:
        """Read the item table as it is now."""
        self.version = recommender.version
        bundle = recommender.bundle
        self.items, self._ids, self._withdrawn = bundle.items, bundle.vocabulary.items, bundle.withdrawn_G
        self._bundle, self.real_clock = bundle, bundle.vocabulary.clock == "real"
        self.columns = FilterColumns(self.items, ColumnValues.of(self.items, encoder=encoder))
        self.titles = CatalogueTitles(self.items["title"].to_list() if "title" in self.items.columns else [])
        self.actions = bundle.vocabulary.actions
        self._lock = threading.Lock()
        self._database: ItemDatabase | None = None

    @property
    def database(self) -> ItemDatabase:
        """Of the items that are not withdrawn, written at the first call.

        Raises:
            InputError: DuckDB is not installed.
        """
        with self._lock:
            if self._database is None:
                withdrawn = self._ids.take(self._withdrawn)
                self._database = ItemDatabase(self.items, withdrawn=withdrawn, real_clock=self.real_clock)
            return self._database

    def close(self) -> None:
        """Remove the database, if one was written."""
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    def user_features(self, user_id: Any, given: Mapping[str, Any] | None) -> NDArray[np.float32] | None:
        """[K] what the model reads of a user: as given, else as stored; None for nobody known."""
        if given is not None:
            return encoded_user(self._bundle, given)
        return None if user_id is None else stored_user(self._bundle, user_id)

    def titles_of(self, item_ids: Sequence[Any]) -> list[str]:
        """As they are in the table; the id of an item that has none."""
        return [str(row.get("title") or item_id) for item_id, row in zip(item_ids, self._rows(item_ids), strict=True)]

    def texts_of(self, item_ids: Sequence[Any]) -> list[str]:
        """Title and text of each; the text alone where it begins with the title."""
        texts = []
        for item_id, row in zip(item_ids, self._rows(item_ids), strict=True):
            title, text = str(row.get("title") or ""), str(row.get("text") or "")
            if text and not text.startswith(title):
                text = f"{title}. {text}"
            texts.append(text or title or str(item_id))
        return texts

    def _rows(self, item_ids: Sequence[Any]) -> list[dict[str, Any]]:
        names = [name for name in ("title", "text") if name in self.items.columns]
        places = [int(place) for place in self._ids.index(item_ids)]
        known = [place for place in places if place >= 0]
        rows = dict(zip(known, self.items.select(names)[known].to_dicts(), strict=True)) if names and known else {}
        return [rows.get(place, {}) for place in places]
