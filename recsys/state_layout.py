"""What a kept user state takes: sizes in bytes, known before anything is encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recsys.errors import InputError
from recsys.model_config import ModelConfig

__all__ = ["PAGE_ROWS", "StateLayout", "Storage"]

Storage = Literal["float32", "int8"]

PAGE_ROWS = 16
"""Cached rows of a page: a state wastes half a page on average, and an append copies at most one."""


@dataclass(frozen=True, slots=True)
class StateLayout:
    """Sizes of the states of one kind of model; models of equal layouts can share memory."""

    num_layers: int
    num_heads: int
    head_dim: int
    rows_per_event: int
    dim: int
    num_recent: int
    num_past: int
    """Columns of ``past_BX``."""
    window: int
    page_rows: int = PAGE_ROWS
    storage: Storage = "float32"

    def __post_init__(self) -> None:
        if self.storage not in ("float32", "int8"):
            raise InputError(f"storage of user states must be float32 or int8, got {self.storage!r}")
        if self.page_rows < 1:
            raise InputError(f"page_rows must be positive, got {self.page_rows}")

    @classmethod
    def of(cls, config: ModelConfig, page_rows: int = PAGE_ROWS, storage: Storage = "float32") -> StateLayout:
        """The layout of a model's states.

        Raises:
            InputError: a storage or page size that cannot be meant.
        """
        return cls(
            num_layers=config.num_blocks,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            rows_per_event=2 if config.layout == "interleaved" else 1,
            dim=config.dim,
            num_recent=config.kept,
            num_past=2 * config.num_actions * config.num_surfaces if config.past_rates else 0,
            window=config.window,
            page_rows=page_rows,
            storage=storage,
        )

    @property
    def row_bytes(self) -> int:
        """Of one cached row: keys and values of all layers, and its time."""
        head = self.head_dim + 4 if self.storage == "int8" else 4 * self.head_dim
        return 2 * self.num_layers * self.num_heads * head + 8 + 1

    @property
    def num_integers(self) -> int:
        """Integers of a state that are not per row."""
        return NUM_FIXED + self.num_recent + self.num_past

    @property
    def page_bytes(self) -> int:
        """Of one page: its rows, and room for what a state holds once (used in the last page of a state)."""
        return self.page_rows * self.row_bytes + 8 * self.num_integers + 4 * self.dim

    def num_pages(self, num_rows: int) -> int:
        """Pages of a state of so many cached rows."""
        return -(-num_rows // self.page_rows)

    def state_bytes(self, num_events: int) -> int:
        """Bytes that the state of a user with so many visible events takes.

        >>> small = StateLayout(num_layers=2, num_heads=2, head_dim=32, rows_per_event=1, dim=64, num_recent=4,
        ...                     num_past=0, window=1024)
        >>> small.row_bytes, small.state_bytes(1024)
        (1033, 1080320)
        """
        return self.num_pages(min(num_events, self.window) * self.rows_per_event) * self.page_bytes


NUM_FIXED = 8
"""Rows, events, first visible event, last time, last actions (yes, known, hidden), age of the last positive."""
