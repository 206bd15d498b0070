"""Orders of a teacher: JSON lines with the ids of each user's list, best first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recsys.errors import InputError, shown
from recsys.pipelines.rerank_lists import RerankLists
from recsys.vocabulary import id_text

__all__ = ["taught", "teacher_ranks"]


def taught(path: Path | None, lists: RerankLists) -> tuple[RerankLists, list[tuple[int, ...] | None] | None]:
    """The lists that a teacher's file knows, and the places it gives; all of them and None where there is no file.

    Raises:
        InputError: as :func:`teacher_ranks`.
    """
    if path is None:
        return lists, None
    ranks = teacher_ranks(path, lists)
    rows = [row for row, one in enumerate(ranks) if one is not None]
    return lists.take(rows), [ranks[row] for row in rows]


def teacher_ranks(path: Path, lists: RerankLists) -> list[tuple[int, ...] | None]:
    """Places from 1 that a teacher gives each candidate; None for a list whose user the file leaves out.

    Args:
        path: one object a line, with ``user_id`` and ``item_ids`` (best first). Ids are compared as text. Items
            that are no candidates are passed over; every candidate has to be there.
        lists: whose orders are wanted.

    Raises:
        InputError: the file is missing, a line is no such object, an order leaves a candidate out, or no user is there.
    """
    orders = _orders(path)
    found: list[tuple[int, ...] | None] = []
    for user, request in zip(lists.user_ids, lists.requests, strict=True):
        order = orders.get(id_text(user))
        if order is None:
            found.append(None)
            continue
        place = {item: at for at, item in reversed(list(enumerate(order)))}  # of an item named twice, the better one
        missing = next((item for item in request.ids if id_text(item) not in place), None)
        if missing is not None:
            raise InputError(
                f"--teacher {path}: the order of user {shown(user)} leaves out candidate {shown(missing)}; make it "
                "from the same lists"
            )
        by_place = sorted(range(len(request.ids)), key=lambda at: place[id_text(request.ids[at])])
        ranks = [0] * len(by_place)
        for rank, at in enumerate(by_place, start=1):
            ranks[at] = rank
        found.append(tuple(ranks))
    if not any(found):
        raise InputError(
            f"--teacher {path}: holds none of the users whose lists are to train; make it from these lists"
        )
    return found


def _orders(path: Path) -> dict[str | None, list[str | None]]:
    if not path.is_file():
        raise InputError(f"--teacher {path} is no file; give JSON lines with user_id and item_ids")
    orders: dict[str | None, list[str | None]] = {}
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row: Any = json.loads(line)
            except (ValueError, RecursionError):  # bytes that are no text among them
                row = None
            if not isinstance(row, dict) or "user_id" not in row or not isinstance(row.get("item_ids"), list):
                raise InputError(f"--teacher {path}, line {number}: expected an object with user_id and item_ids")
            orders[id_text(row["user_id"])] = [id_text(item) for item in row["item_ids"]]
    return orders
