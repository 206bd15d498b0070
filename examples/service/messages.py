"""What goes over the wire: every field with a type and a limit."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

__all__ = [
    "MAX_CANDIDATES",
    "MAX_K",
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
    "Reason",
    "RecommendMessage",
    "Status",
    "StoredEvent",
    "StoredEvents",
    "WhyReply",
]

MAX_IDS, MAX_EVENTS, MAX_K, MAX_ITEMS, MAX_RULES = 10_000, 10_000, 500, 1_000, 16
MAX_CANDIDATES = 5 * MAX_K
"""Items to choose a page from, also where rules leave none: a stranger's rule must not search a whole catalogue."""
_EXACT = 2**53 - 1

_integral = BeforeValidator(lambda given: int(given) if isinstance(given, float) and given.is_integer() else given)
"""JSON knows no integers apart from numbers: 7.0 is 7."""
Number = Annotated[StrictInt, Field(ge=-_EXACT, le=_EXACT), _integral]
"""What every reader of JSON reads as it was written; larger ids go as text."""
Id = Annotated[StrictStr, Field(min_length=1, max_length=256)] | Number
"""A user or an item. "42" and 42 are the same one: ids are brought to the type of the data."""
Name = Annotated[StrictStr, Field(min_length=1, max_length=100)]
Ids = Annotated[list[Id], Field(max_length=MAX_IDS)]
Seconds = Annotated[
    StrictInt, Field(ge=0, le=4_102_444_800, description="seconds since 1970, up to the year 2100"), _integral
]
Weight = Annotated[StrictFloat, Field(ge=-1e6, le=1e6)]
Plain = StrictBool | StrictInt | StrictFloat | Annotated[StrictStr, Field(max_length=20_000)] | None
"""A value of a column."""
Values = Plain | Annotated[list[Plain], Field(max_length=4_096)]
RuleField = Plain | Annotated[list[Plain], Field(max_length=100)]


class _Message(BaseModel):
    """Nothing is taken that is not named."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class EventMessage(_Message):
    """One thing that a user did, or an item they were shown and left alone (no action)."""

    item_id: Id
    actions: Annotated[list[Name], Field(max_length=32)] = []
    timestamp: Seconds | None = None
    surface: Name | None = None


class EventsMessage(_Message):
    """Events to keep. An event without a time happened now; with one, the message may be repeated without harm."""

    user_id: Id
    events: Annotated[list[EventMessage], Field(min_length=1, max_length=MAX_EVENTS)]


class Accepted(BaseModel):
    """So many events are on the disk."""

    accepted: int


class RecommendMessage(_Message):
    """Who asks, and for what; a user, or a history, or somebody new. See `recsys.retrieval.request.Request`."""

    user_id: Id | None = None
    history: Annotated[list[EventMessage], Field(max_length=MAX_EVENTS)] | None = None
    new_events: Annotated[list[EventMessage], Field(max_length=MAX_EVENTS)] = []
    user_features: Annotated[dict[Name, Plain], Field(max_length=1_000)] | None = None
    k: Annotated[StrictInt, Field(ge=1, le=MAX_K), _integral] = 10
    candidates: Annotated[StrictInt, Field(ge=1, le=MAX_CANDIDATES), _integral] = 100
    retrievers: Annotated[list[Name], Field(min_length=1, max_length=8)] = ["dense"]
    exclude: Ids = []
    allow: Ids | None = None
    exclude_history: StrictBool = True
    rank_by: Annotated[dict[Name, Weight], Field(max_length=32)] | None = None
    rules: Annotated[
        list[Annotated[dict[Name, RuleField], Field(max_length=16)]],
        Field(max_length=MAX_RULES, description='such as {"rule": "cap", "column": "brand", "n": 2}'),
    ] = []
    surface: Name | None = None
    at: Seconds | None = None


class HitMessage(BaseModel):
    """One item; `actions` holds a probability for each."""

    item_id: str | int
    title: str | None
    score: float
    retriever: str
    actions: dict[str, float]
    propensity: float


class PageReply(BaseModel):
    """Best first; fewer than asked for where fewer are left, and the notes say why."""

    items: list[HitMessage]
    notes: list[str]
    version: str
    milliseconds: float


class ItemsMessage(_Message):
    """Changes of the catalogue, in force for every request from the reply on. Each item holds its `item_id` and the
    columns that are to change; an id that is not known is a new item."""

    items: Annotated[list[Annotated[dict[Name, Values], Field(max_length=256)]], Field(max_length=MAX_ITEMS)] = []
    withdraw: Ids = []
    restore: Ids = []


class ItemsReply(BaseModel):
    """The catalogue as it is now."""

    version: str
    num_items: int
    num_withdrawn: int


class ExplainMessage(_Message):
    """Whose score of which item; the newest events are left out in turn, each at the cost of one encoding."""

    user_id: Id
    item_id: Id
    retriever: Name = "dense"
    max_events: Annotated[StrictInt, Field(ge=1, le=64), _integral] = 32


class Reason(BaseModel):
    """One event, and how much higher the score and the probabilities are because of it."""

    item_id: str | int | None
    title: str | None
    actions: list[str]
    timestamp: int | None
    change: float
    action_changes: dict[str, float]
    memory: list[str]
    """Relations by which the item follows from this one, such as transition or text."""


class WhyReply(BaseModel):
    """The largest change of the score first."""

    item_id: str | int
    score: float
    actions: dict[str, float]
    reasons: list[Reason]


class StoredEvent(BaseModel):
    """An event as it is kept."""

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
    columns: list[str]
    num_items: int
    user_ids: list[str | int]
    """Some of them."""
    version: str


class Status(BaseModel):
    """All is well."""

    status: Literal["ok"] = "ok"


class ErrorReply(BaseModel):
    """Every answer that is not 2xx: what kind of thing is wrong, and one line for people."""

    type: Literal[
        "bad_request",
        "unauthorized",
        "not_found",
        "not_allowed",
        "length_required",
        "too_large",
        "invalid",
        "internal",
        "overloaded",
        "unavailable",
        "timeout",
    ]
    message: str
