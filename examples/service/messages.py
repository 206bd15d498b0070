"""What goes over the wire: every field with a type and a limit."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

__all__ = [
    "About",
    "Accepted",
    "ErrorReply",
    "EventMessage",
    "EventsMessage",
    "ExplainMessage",
    "HitMessage",
    "ItemsMessage",
    "ItemsReply",
    "PageReply",
    "RecommendMessage",
    "Status",
    "StoredEvents",
    "WhyReply",
]

MAX_IDS, MAX_EVENTS, MAX_K, MAX_ITEMS = 10_000, 10_000, 500, 1_000
_INT64 = 2**63 - 1

Id = Annotated[StrictStr, Field(min_length=1, max_length=256)] | Annotated[StrictInt, Field(ge=-_INT64, le=_INT64)]
"""A user or an item, in the type of the data: "42" is not 42."""
Name = Annotated[str, Field(min_length=1, max_length=100)]
Ids = Annotated[list[Id], Field(max_length=MAX_IDS)]
Seconds = Annotated[StrictInt, Field(ge=0, le=4_102_444_800, description="seconds since 1970, up to the year 2100")]


class _Message(BaseModel):
    """Nothing is taken that is not named."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class EventMessage(_Message):
    """One thing that a user did, or an item they were shown."""

    item_id: Id
    actions: Annotated[list[Name], Field(max_length=32)] = []
    timestamp: Seconds | None = None
    surface: Name | None = None


class EventsMessage(_Message):
    """Events to keep. A reply says that they are on the disk."""

    user_id: Id
    events: Annotated[list[EventMessage], Field(min_length=1, max_length=MAX_EVENTS)]


class Accepted(BaseModel):
    accepted: int


class RecommendMessage(_Message):
    """Who asks, and for what; see `recsys.retrieval.request.Request`."""

    user_id: Id | None = None
    history: Annotated[list[EventMessage], Field(max_length=MAX_EVENTS)] | None = None
    new_events: Annotated[list[EventMessage], Field(max_length=MAX_EVENTS)] = []
    k: Annotated[StrictInt, Field(ge=1, le=MAX_K)] = 10
    candidates: Annotated[StrictInt, Field(ge=1, le=5 * MAX_K)] = 100
    retrievers: Annotated[list[Name], Field(min_length=1, max_length=8)] = ["dense"]
    exclude: Ids = []
    allow: Ids | None = None
    exclude_history: bool = True
    rank_by: Annotated[dict[Name, Annotated[float, Field(ge=-1e6, le=1e6)]], Field(max_length=32)] | None = None
    surface: Name | None = None
    at: Seconds | None = None


class HitMessage(BaseModel):
    item_id: str | int
    title: str | None
    score: float
    retriever: str
    actions: dict[str, float]


class PageReply(BaseModel):
    """Best first; fewer than asked for where fewer are left, and the notes say why."""

    items: list[HitMessage]
    notes: list[str]
    version: str | None
    milliseconds: float


class ItemsMessage(_Message):
    """Changes of the catalogue, in force for every request from the reply on."""

    items: Annotated[list[dict[Name, Any]], Field(max_length=MAX_ITEMS)] = []
    withdraw: Ids = []
    restore: Ids = []


class ItemsReply(BaseModel):
    version: str
    num_items: int


class ExplainMessage(_Message):
    user_id: Id
    item_id: Id


class WhyReply(BaseModel):
    """How much the score would fall without each event, largest first."""

    item_id: str | int
    reasons: list[Reason]


class Reason(BaseModel):
    item_id: str | int | None
    title: str | None
    timestamp: int | None
    change: float


class StoredEvent(BaseModel):
    item_id: str | int
    title: str | None
    actions: list[str]
    timestamp: int | None


class StoredEvents(BaseModel):
    """Newest first."""

    user_id: str | int
    events: list[StoredEvent]
    total: int


class About(BaseModel):
    """What the page needs to know of the bundle."""

    actions: list[str]
    retrievers: list[str]
    num_items: int
    user_ids: list[str | int]
    version: str | None


class Status(BaseModel):
    status: Literal["ok", "loading"]


class ErrorReply(BaseModel):
    """Every answer that is not 2xx."""

    type: Literal[
        "bad_request", "not_found", "unauthorized", "too_large", "overloaded", "unavailable", "timeout", "internal"
    ]
    message: str


WhyReply.model_rebuild()
