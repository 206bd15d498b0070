"""Pages of many users as one table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from recsys.retrieval.history_sources.bundle import no_histories
from recsys.retrieval.page import Page
from recsys.retrieval.question import own_user_id
from recsys.retrieval.snapshot import Snapshot

__all__ = ["page_frame", "wanted_users"]


def wanted_users(snapshot: Snapshot, users: Iterable[Any] | pl.DataFrame | None) -> list[Any]:
    """Ids of the users to answer, in order.

    Args:
        users: ids, or a frame (polars or pandas) with a column ``user_id``; None = all of the bundle's histories.

    Raises:
        InputError: there is nothing that knows users.
    """
    histories = snapshot.bundle.histories
    if snapshot.source is None or (users is None and histories is None):
        raise no_histories(snapshot.bundle)
    if users is None:
        assert histories is not None
        return list(histories.users.ids.to_list())
    given: Any = users
    column = given["user_id"] if hasattr(given, "columns") else given
    return list(column.to_list() if hasattr(column, "to_list") else column)


def page_frame(
    snapshot: Snapshot, users: Sequence[Any], pages: Iterable[Page], *, ranked: bool, explores: bool
) -> pl.DataFrame:
    """One row for every hit.

    Args:
        users: whose the pages are.
        ranked: whether hits have probabilities.
        explores: whether a rule chose by chance, so that propensities are told.

    Returns:
        See :meth:`recsys.retrieval.recommender.Recommender.recommend_frame`.
    """
    rows: list[tuple[Any, ...]] = []
    for user, page in zip(users, pages, strict=True):
        shown = own_user_id(snapshot, user)
        for place, hit in enumerate(page, start=1):
            chance = (hit.propensity,) if explores else ()
            rows.append((shown, place, hit.item_id, hit.score, hit.retriever, *hit.actions.values(), *chance))
    histories = snapshot.bundle.histories
    schema: dict[str, Any] = {
        "user_id": pl.Series(users).dtype if histories is None else histories.users.dtype,
        "rank": pl.UInt32,
        "item_id": snapshot.bundle.vocabulary.items.dtype,
        "score": pl.Float32,
        "retriever": pl.String,
    }
    schema |= {f"prob_{action}": pl.Float32 for action in (snapshot.actions if ranked else ())}
    schema |= {"propensity": pl.Float64} if explores else {}
    return pl.DataFrame(rows, schema=schema, orient="row", strict=False)
