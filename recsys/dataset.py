"""A prepared dataset: packed events, slates, catalogue and split, read from the folder that ``recsys prepare`` writes.

Suffixes: N = events, U = users, I = items, S = slates, Q = requests, C = content columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse
from numpy.typing import NDArray
from safetensors.numpy import load_file

from recsys.errors import InputError
from recsys.events import EventLog, Requests, SlateLog
from recsys.manifest import Manifest
from recsys.sparse_rows import read_sparse
from recsys.vocabulary import IdMap, Vocabulary

__all__ = ["Dataset", "offsets_of"]

TEXT_ENCODER = "text-encoder"
VECTOR = "vector"

Ints = NDArray[np.int64]

USER_CONTENT = "user_content.safetensors"

_COLD_FILE = "cold_targets.parquet"
_EVENT_COLUMNS = ("item", "timestamp", "yes", "known", "surface")
_SLATE_LISTS = {"items": "item", "yes": "yes", "known": "known", "surfaces": "surface", "times": "time"}


def offsets_of(group_N: NDArray[Any], num_groups: int) -> Ints:
    """[num_groups + 1] where the rows of each group begin, for rows sorted by group."""
    offsets = np.zeros(num_groups + 1, dtype=np.int64)
    np.cumsum(np.bincount(group_N, minlength=num_groups), out=offsets[1:])
    return offsets


def _ints(series: pl.Series) -> Ints:
    return series.to_numpy().astype(np.int64, copy=False)


def _floats(series: pl.Series) -> NDArray[np.float32]:
    values: NDArray[np.float32] = series.cast(pl.Float32).fill_null(float("nan")).to_numpy()
    return values


class Dataset:
    """One prepared dataset. Open it with :meth:`open`; big parts are read when first asked for."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path | str) -> Dataset:
        """Open a folder that ``recsys prepare`` made, every file checked against its hash.

        Raises:
            InputError: a part is missing, truncated, changed or of another format version.
        """
        folder = Path(path)
        manifest = Manifest.read(folder)
        manifest.check_files(folder)
        return cls(folder, manifest)

    def __repr__(self) -> str:
        return f"Dataset({str(self.path)!r}, users={self.num_users}, items={self.num_items}, events={self.num_events})"

    @property
    def num_users(self) -> int:
        return self.manifest.num_users

    @property
    def num_items(self) -> int:
        return self.manifest.num_items

    @property
    def num_events(self) -> int:
        return self.manifest.num_events

    # -- events and slates -----------------------------------------------------------------------------------------

    @cached_property
    def events(self) -> EventLog:
        """All events, packed by user."""
        frame = pl.read_parquet(self.path / "events.parquet", columns=["user", *_EVENT_COLUMNS, "value", "time_known"])
        return EventLog(
            offsets=offsets_of(frame["user"].to_numpy(), self.num_users),
            **{name: _ints(frame[name]) for name in _EVENT_COLUMNS},
            value=_floats(frame["value"]),
            time_known=frame["time_known"].to_numpy(),
        )

    @cached_property
    def slates(self) -> SlateLog | None:
        """All slates, packed by user; None where the data has none."""
        if "slates.parquet" not in self.manifest.files:
            return None
        frame = pl.read_parquet(
            self.path / "slates.parquet", columns=["user", "timestamp", "split", *_SLATE_LISTS, "values"]
        )
        lengths = _ints(frame["items"].list.len())
        rows = frame.select(*_SLATE_LISTS, "values").explode(*_SLATE_LISTS, "values")
        return SlateLog(
            user_offsets=offsets_of(frame["user"].to_numpy(), self.num_users),
            offsets=np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)]),
            user=_ints(frame["user"]),
            timestamp=_ints(frame["timestamp"]),
            split=_ints(frame["split"]),
            **{ours: _ints(rows[stored]) for stored, ours in _SLATE_LISTS.items()},
            value=_floats(rows["values"]),
        )

    def is_positive(self) -> NDArray[np.bool_]:
        """[N] whether each event is a positive."""
        return (self.events.yes & self.manifest.positive_mask) != 0

    # -- split -----------------------------------------------------------------------------------------------------

    @cached_property
    def _splits(self) -> pl.DataFrame:
        return pl.read_parquet(self.path / "splits.parquet")

    @cached_property
    def train_end(self) -> Ints:
        """[U] how many of each user's events, from the first on, may train."""
        return _ints(self._splits["train_end"])

    @cached_property
    def valid_at(self) -> Ints:
        """[U] place of the validation target among the user's events; -1 = none."""
        return _ints(self._splits["valid_at"])

    @cached_property
    def test_at(self) -> Ints:
        """[U] place of the test target among the user's events; -1 = none."""
        return _ints(self._splits["test_at"])

    def requests(self, split: str, *, at: int | None = None, all_positives: bool = False) -> Requests:
        """The questions of a split.

        Args:
            split: ``validation`` or ``test``: the users with a target there. ``now``: every user, nothing held out.
                ``cold``: the users with a target among the items that were held out of training.
            at: time of the requests of ``now``; default the largest timestamp in the data.
            all_positives: of a time split, every positive of the period as a target of its own, each after all events
                before it, instead of the first one of each user.

        Raises:
            InputError: an unknown split, or ``cold`` where no items were held out.
        """
        if split == "cold":
            return self._cold_requests()
        if split == "now":
            count_U = np.diff(self.events.offsets)
            time = self.manifest.max_timestamp if at is None else int(at)
            return Requests(
                user=np.arange(self.num_users, dtype=np.int64),
                end=count_U,
                target=np.full(self.num_users, -1, dtype=np.int64),
                timestamp=np.full(self.num_users, time, dtype=np.int64),
                surface=np.zeros(self.num_users, dtype=np.int64),
            )
        if split not in ("validation", "test"):
            raise InputError(f"there is no split {split!r}; choose validation, test, cold or now")
        if all_positives and self.manifest.split["kind"] == "time":
            user_Q, end_Q = self._period_positives(split)
        else:
            at_U = self.valid_at if split == "validation" else self.test_at
            user_Q = np.flatnonzero(at_U >= 0)
            end_Q = at_U[user_Q]
        row_Q = self.events.offsets[user_Q] + end_Q
        return Requests(
            user=user_Q,
            end=end_Q,
            target=self.events.item[row_Q],
            timestamp=self.events.timestamp[row_Q],
            surface=self.events.surface[row_Q],
        )

    @property
    def has_cold_targets(self) -> bool:
        """Whether items were held out, so that ``requests("cold")`` has an answer."""
        return _COLD_FILE in self.manifest.files

    def _cold_requests(self) -> Requests:
        if not self.has_cold_targets:
            raise InputError(f"{self.path} holds no items out; prepare it with --cold-items 0.1")
        frame = pl.read_parquet(self.path / _COLD_FILE)
        return Requests(
            **{name: _ints(frame[name]) for name in ("user", "end", "timestamp", "surface")},
            target=_ints(frame["item"]),
        )

    def _period_positives(self, split: str) -> tuple[Ints, Ints]:
        low, high = self.manifest.split["valid_from"], self.manifest.split["test_from"]
        time_N = self.events.timestamp
        inside_N = (time_N >= low) & (time_N < high) if split == "validation" else time_N >= high
        row_Q = np.flatnonzero(inside_N & self.is_positive())
        user_Q = np.searchsorted(self.events.offsets, row_Q, side="right") - 1
        return user_Q, row_Q - self.events.offsets[user_Q]

    def train_item_counts(self) -> Ints:
        """[I] training events of each item."""
        place_N = np.arange(len(self.events)) - np.repeat(self.events.offsets[:-1], np.diff(self.events.offsets))
        train_N = place_N < np.repeat(self.train_end, np.diff(self.events.offsets))
        return np.bincount(self.events.item[train_N], minlength=self.num_items).astype(np.int64)

    # -- catalogue and users ---------------------------------------------------------------------------------------

    @cached_property
    def items(self) -> pl.DataFrame:
        """Row i is item i: item_id and every column of the items table."""
        return pl.read_parquet(self.path / "items.parquet")

    @cached_property
    def users(self) -> pl.DataFrame:
        """Row u is user u: user_id and every column of the users table."""
        return pl.read_parquet(self.path / "users.parquet")

    @cached_property
    def _item_map(self) -> IdMap:
        return IdMap(pl.read_parquet(self.path / "items.parquet", columns=["item_id"])["item_id"])

    @cached_property
    def _user_map(self) -> IdMap:
        return IdMap(pl.read_parquet(self.path / "users.parquet", columns=["user_id"])["user_id"])

    @property
    def item_ids(self) -> pl.Series:
        """Callers' item ids in internal order."""
        return self._item_map.ids

    @property
    def user_ids(self) -> pl.Series:
        """Callers' user ids in internal order."""
        return self._user_map.ids

    def item_index(self, ids: Iterable[Any] | pl.Series) -> Ints:
        """Internal numbers of callers' item ids, compared as text where types differ; -1 = unknown."""
        return self._item_map.index(ids)

    def user_index(self, ids: Iterable[Any] | pl.Series) -> Ints:
        """Internal numbers of callers' user ids, compared as text where types differ; -1 = unknown."""
        return self._user_map.index(ids)

    @property
    def vocabulary(self) -> Vocabulary:
        """Items, actions and surfaces as the caller calls them."""
        manifest = self.manifest
        return Vocabulary(self._item_map, manifest.actions, manifest.surfaces, manifest.clock, manifest.max_timestamp)

    # -- content ---------------------------------------------------------------------------------------------------

    @cached_property
    def content(self) -> NDArray[np.float32] | None:
        """[I, C] item features as the model reads them; None where there is nothing to read."""
        if "content.safetensors" not in self.manifest.files:
            return None
        content: NDArray[np.float32] = load_file(self.path / "content.safetensors")["content"]
        return content

    @cached_property
    def sparse_text(self) -> scipy.sparse.csr_matrix | None:
        """[I, V] TF-IDF rows of unit length (zero rows for items without text); None where there is no text."""
        if "sparse_text.safetensors" not in self.manifest.files:
            return None
        return read_sparse(self.path / "sparse_text.safetensors")

    @property
    def content_blocks(self) -> list[dict[str, Any]]:
        """Name, kind and column range of each block of :attr:`content`, with the numbers that made it."""
        blocks: list[dict[str, Any]] = self.manifest.raw.get("content") or []
        return blocks

    @property
    def user_blocks(self) -> list[dict[str, Any]]:
        """Name, kind and column range of each block of :attr:`user_content`, with the numbers that made it."""
        blocks: list[dict[str, Any]] = self.manifest.raw.get("user_content") or []
        return blocks

    @cached_property
    def user_content(self) -> NDArray[np.float32] | None:
        """[U, K] what the model may read of users; None where no column of theirs was asked for."""
        if USER_CONTENT not in self.manifest.files:
            return None
        content: NDArray[np.float32] = load_file(self.path / USER_CONTENT)["content"]
        return content

    @property
    def user_dim(self) -> int:
        """Columns of :attr:`user_content`; 0 where there is none."""
        return int(self.user_blocks[-1]["stop"]) if self.user_blocks else 0

    def user_rows(self, user_Q: Ints) -> NDArray[np.float32] | None:
        """[Q, K] rows of :attr:`user_content`."""
        return None if self.user_content is None else self.user_content[user_Q]

    @property
    def text_vectors(self) -> dict[str, NDArray[np.float32]]:
        """Encoder name -> [I, K] vectors of the item texts: centred, unit rows, zero rows for items without text."""
        return self._directions(TEXT_ENCODER)

    @cached_property
    def relation_vectors(self) -> dict[str, NDArray[np.float32]]:
        """Name -> [I, K] unit rows, zero where unknown, of all that gives a cosine between items.

        The text encoders in the order in which they were named, then the vector columns among the item features.
        """
        return self._directions(TEXT_ENCODER) | self._directions(VECTOR)

    def _directions(self, kind: str) -> dict[str, NDArray[np.float32]]:
        found: dict[str, NDArray[np.float32]] = {}
        for block in self.content_blocks:
            if block["kind"] == kind and block["start"] < block["stop"]:
                assert self.content is not None
                rows_IK = self.content[:, block["start"] : block["stop"]]
                length_I1 = np.linalg.norm(rows_IK, axis=1, keepdims=True)
                found[block["name"]] = rows_IK / np.maximum(length_I1, np.float32(1e-12))
        return found

    @property
    def text_transform(self) -> Path | None:
        """Folder of the fitted text transform; None where there is no text."""
        return self.path / "text" if self.manifest.text is not None else None
