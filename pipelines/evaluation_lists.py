"""Anyone's lists: where the targets of a split stand in them.

Suffixes: Q = requests, K = places of a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.metrics import MISS
from recsys.pipelines.targets import LIST_LENGTH, RankedTargets, histories_of, targets_of

__all__ = ["ListedTargets", "ranked_lists", "read_lists"]


@dataclass(frozen=True, slots=True)
class ListedTargets:
    """Ranks of the targets inside lists, and what there was to say about the lists."""

    ranked: RankedTargets
    """A target that a list lacks is a miss."""
    depth: int
    """Places of the longest list."""
    notes: list[str]


def ranked_lists(path: Path, dataset: Dataset, split: str) -> ListedTargets:
    """Ranks of the targets inside the lists of a Parquet file, or of a folder of such files.

    Items of the user's history and repeats are taken out first, as the protocol wants; an item that the catalogue does
    not hold keeps its place. A user without a list has an empty one.

    Args:
        path: columns user_id and item_ids (lists, best first), one row per user, ids as in the data.
        dataset: the prepared data.
        split: ``validation`` or ``test``.

    Raises:
        InputError: the file cannot be read, lacks a column, or a row of it is at fault.
    """
    frame = read_lists(path)
    requests = targets_of(dataset, split)
    user_L = dataset.user_index(frame["user_id"])
    _check_rows(path, frame, user_L)
    items = frame["item_ids"]
    length_L = items.list.len().to_numpy().astype(np.int64)
    item_N = dataset.item_index(items.filter(pl.Series(length_L > 0)).explode())
    start_L = np.cumsum(length_L) - length_L
    row_of_user = np.full(dataset.num_users, -1, dtype=np.int64)
    row_of_user[user_L[user_L >= 0]] = np.flatnonzero(user_L >= 0)
    rank_Q = np.full(len(requests), MISS, dtype=np.int64)
    reachable_Q = np.ones(len(requests), dtype=np.bool_)
    list_QK = np.full((len(requests), LIST_LENGTH), -1, dtype=np.int64)
    num_filtered = 0
    for q, history in enumerate(histories_of(dataset, requests)):
        target = requests.target[q]
        reachable_Q[q] = not (history.item == target).any()
        row = row_of_user[requests.user[q]]
        if row < 0:
            continue
        listed = item_N[start_L[row] : start_L[row] + length_L[row]]
        kept = listed[_wanted(listed, history.item)]
        num_filtered += len(listed) - len(kept)
        at = np.flatnonzero(kept == target)
        if len(at):
            rank_Q[q] = at[0] + 1
        known = kept[:LIST_LENGTH]
        list_QK[q, : len(known)] = known
    notes = []
    num_unlisted = int((row_of_user[requests.user] < 0).sum())
    if num_unlisted == len(requests):
        raise InputError(
            f"{path} has a list for none of the {len(requests)} {split} users; ids must be those of the data"
        )
    if num_unlisted:
        notes.append(f"{num_unlisted} of {len(requests)} users have no list and count as misses")
    num_others = len(frame) - (len(requests) - num_unlisted)
    if num_others:
        notes.append(f"{num_others} lists are of users without a {split} target and were not read")
    if num_filtered:
        notes.append(f"{num_filtered} places with items of the user's history, or repeats, were taken out")
    num_strange = int((item_N < 0).sum())
    if num_strange:
        notes.append(f"{num_strange} places hold ids outside the catalogue")
    ranked = RankedTargets("lists", requests, rank_Q, reachable_Q, np.zeros(len(requests), dtype=np.bool_), list_QK)
    return ListedTargets(ranked, int(length_L.max(initial=0)), notes)


def _wanted(listed: NDArray[np.int64], seen: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which places stay: not of the history, and the first of their item."""
    first = np.zeros(len(listed), dtype=np.bool_)
    first[np.unique(listed, return_index=True)[1]] = True
    return (listed < 0) | (first & ~np.isin(listed, seen))


def read_lists(path: Path) -> pl.DataFrame:
    """The columns user_id and item_ids of a Parquet file, or of a folder of such files.

    Raises:
        InputError: it cannot be read, lacks a column, or a row lacks one of both.
    """
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise InputError(f"{path} holds no .parquet file; give a Parquet file with user_id and item_ids")
    elif path.is_file():
        files = [path]
    else:
        raise InputError(f"{path} does not exist; give a Parquet file with user_id and item_ids")
    frames = []
    for file in files:
        try:
            frame = pl.read_parquet(file, glob=False)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            raise InputError(f"{file} is not a readable Parquet file ({' '.join(str(error).split())[:120]})") from None
        for column in ("user_id", "item_ids"):
            if column not in frame.columns:
                raise InputError(f"{file} has no column {column}; it has {', '.join(frame.columns) or 'none'}")
        if isinstance(frame["item_ids"].dtype, pl.Array):
            frame = frame.with_columns(pl.col("item_ids").arr.to_list())
        kind = frame["item_ids"].dtype
        if not isinstance(kind, pl.List) or kind.inner.is_nested():
            raise InputError(f"{file}: column item_ids must hold lists of ids, it is {kind}")
        for column in ("user_id", "item_ids"):
            empty = frame[column].is_null().to_numpy()
            if empty.any():
                row = int(np.flatnonzero(empty)[0])
                raise InputError(f"{file}: row {row} has no {column}; give every row both")
        frames.append(frame.select("user_id", "item_ids"))
    try:
        return pl.concat(frames)
    except pl.exceptions.PolarsError:
        raise InputError(f"the files of {path} differ in the types of user_id or item_ids; write them alike") from None


def _check_rows(path: Path, frame: pl.DataFrame, user_L: NDArray[np.int64]) -> None:
    order = np.argsort(user_L, kind="stable")
    again = np.flatnonzero((user_L[order][1:] == user_L[order][:-1]) & (user_L[order][1:] >= 0))
    if len(again):
        row = int(order[again + 1].min())
        raise InputError(f"{path}: row {row} is a second list of user {frame['user_id'][row]!r}; give one row per user")
