"""Some users of a prepared dataset, read without the others.

Suffixes: U = users of the shard, N = their events.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.dataset import Dataset, offsets_of
from recsys.events import EventLog

__all__ = ["UserShard"]

Ints = NDArray[np.int64]

_INTEGERS = ("item", "timestamp", "yes", "known", "surface")


class UserShard(Dataset):
    """The dataset as if it held only some users, numbered from 0; items keep their numbers.

    Only row groups of ``events.parquet`` that may hold these users are read, so that memory does not grow with the
    number of users of the dataset.
    """

    def __init__(self, dataset: Dataset, user_U: Ints) -> None:
        """Take some users.

        Args:
            dataset: already opened and checked; its own events are not touched.
            user_U: internal users, strictly rising.
        """
        super().__init__(dataset.path, dataset.manifest)
        self.user_U = user_U

    @property
    def num_users(self) -> int:
        return len(self.user_U)

    @property
    def num_events(self) -> int:
        return len(self.events)

    def _own(self, name: str, *columns: str) -> pl.DataFrame:
        """The shard's rows of a table whose row u is user u."""
        low, high = self._bounds
        rows = pl.scan_parquet(self.path / name).select(*(columns or ("*",))).slice(low, high - low).collect()
        return rows if len(rows) == self.num_users else rows[self.user_U - low]

    @property
    def _bounds(self) -> tuple[int, int]:
        return (int(self.user_U[0]), int(self.user_U[-1]) + 1) if len(self.user_U) else (0, 0)

    @cached_property
    def events(self) -> EventLog:
        """Events of these users, packed by user."""
        low, high = self._bounds
        mine: Any = (pl.col("user") >= low) & (pl.col("user") < high)
        if high - low != self.num_users:
            mine &= pl.col("user").is_in(pl.Series(self.user_U.astype(np.uint32)).implode())
        frame = (
            pl.scan_parquet(self.path / "events.parquet")
            .select("user", *_INTEGERS, "time_known")
            .filter(mine)
            .collect(engine="streaming")
        )
        local_N = np.searchsorted(self.user_U, frame["user"].to_numpy().astype(np.int64))
        return EventLog(
            offsets=offsets_of(local_N, self.num_users),
            **{name: frame[name].to_numpy().astype(np.int64) for name in _INTEGERS},
            value=np.full(len(frame), np.nan, dtype=np.float32),
            time_known=frame["time_known"].to_numpy(),
        )

    @cached_property
    def _splits(self) -> pl.DataFrame:
        return self._own("splits.parquet")

    @property
    def users(self) -> pl.DataFrame:
        """Every column of these users."""
        return self._own("users.parquet")

    @property
    def user_ids(self) -> pl.Series:
        """Callers' ids of these users."""
        return self._own("users.parquet", "user_id")["user_id"]
