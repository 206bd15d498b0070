"""Public data sets in the files they are published as, read into input tables.

| name | files in the folder |
| --- | --- |
| amazon-2014 | ``reviews_*.json[.gz]``, ``meta_*.json[.gz]`` of one category |
| amazon-2023 | ``CATEGORY.jsonl[.gz]``, ``meta_CATEGORY.jsonl[.gz]`` |
| movielens | ml-100k (``u.data``), ml-1m and ml-10m (``ratings.dat``), 20M and later (``ratings.csv``) |
| kuairand | ``log_standard_*.csv``, ``video_features_basic_*.csv``, ``user_features_*.csv``, at any depth |
| goodbooks | ``ratings.csv``, ``books.csv`` [, ``book_tags.csv``, ``tags.csv``] |
"""

from __future__ import annotations

import ast
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from recsys.errors import InputError
from recsys.pipelines.prepare.reading import Table, as_frame

__all__ = ["SOURCES", "read_source"]

_KUAIRAND_ACTIONS = {
    "is_click": "click",
    "is_like": "like",
    "is_follow": "follow",
    "is_comment": "comment",
    "is_forward": "forward",
    "is_hate": "hate",
    "long_view": "long_view",
    "is_profile_enter": "profile_enter",
}
_TAGS_PER_BOOK = 30


def read_source(name: str, folder: Path) -> dict[str, Table]:
    """Input tables of a published data set.

    Args:
        name: one of :data:`SOURCES`.
        folder: where its files lie, unpacked.

    Raises:
        InputError: an unknown name, or a file is missing or of another layout.
    """
    if name not in SOURCES:
        raise InputError(f"--from {name} is not known; choose {', '.join(SOURCES)}")
    if not folder.is_dir():
        raise InputError(f"--from {name} {folder}: no such folder; give the folder of the unpacked files")
    return SOURCES[name](folder)


def _find(folder: Path, *patterns: str) -> Path:
    for pattern in patterns:
        found = sorted(path for path in folder.rglob(pattern) if path.is_file())
        if len(found) > 1:
            raise InputError(f"{folder} holds both {found[0].name} and {found[1].name}; give a folder with one of them")
        if found:
            return found[0]
    raise InputError(f"{folder} holds no {' or '.join(patterns)}; give the folder of the unpacked files")


def _find_any(folder: Path, *patterns: str) -> Path | None:
    found = [path for pattern in patterns for path in sorted(folder.rglob(pattern)) if path.is_file()]
    return found[0] if found else None


def _csv(path: Path, **how: Any) -> pl.DataFrame:
    try:
        return pl.read_csv(path, glob=False, **how)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path} cannot be read ({str(error).splitlines()[0]}); is it the published file?") from None


def _json_lines(path: Path, schema: dict[str, Any]) -> pl.DataFrame:
    try:
        frame = pl.read_ndjson(path, schema=schema)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path} cannot be read ({str(error).splitlines()[0]}); is it the published file?") from None
    return frame


def _need(path: Path, frame: pl.DataFrame, *columns: str) -> pl.DataFrame:
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise InputError(f"{path}: column {missing[0]} is missing, row 1; is it the published file?")
    return frame


def _tables(folder: Path, **frames: pl.DataFrame | None) -> dict[str, Table]:
    return {name: as_frame(frame, f"{folder.name}/{name}") for name, frame in frames.items() if frame is not None}


def _rating_action(rating: pl.Expr) -> pl.Expr:
    """``rating_4``, ``rating_3.5``."""
    return pl.format("rating_{}", rating.cast(pl.Float64).cast(pl.String).str.strip_suffix(".0"))


# -- Amazon ----------------------------------------------------------------------------------------------------------


def _amazon_2014(folder: Path) -> dict[str, Table]:
    path = _find(folder, "reviews_*.json", "reviews_*.json.gz")
    schema = {"reviewerID": pl.String, "asin": pl.String, "overall": pl.Float64, "unixReviewTime": pl.Int64}
    events = _json_lines(path, schema).select(
        user_id="reviewerID", item_id="asin", timestamp="unixReviewTime", action=pl.lit("review"), value="overall"
    )
    meta = _find_any(folder, "meta_*.json", "meta_*.json.gz")
    return _tables(folder, interactions=events, items=None if meta is None else _amazon_2014_items(meta))


def _amazon_2014_items(path: Path) -> pl.DataFrame:
    rows: dict[str, list[Any]] = {
        "item_id": [],
        "title": [],
        "description": [],
        "categories": [],
        "brand": [],
        "price": [],
    }
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as stream:
        for number, line in enumerate(stream, start=1):
            entry = _loose_json(line)
            if not isinstance(entry, dict) or "asin" not in entry:
                raise InputError(f"{path}, row {number}: not the metadata of an item; is it the published file?")
            rows["item_id"].append(entry["asin"])
            rows["title"].append(entry.get("title"))
            rows["description"].append(entry.get("description"))
            rows["categories"].append("; ".join(" > ".join(trail) for trail in entry.get("categories", [])) or None)
            rows["brand"].append(entry.get("brand") or None)
            rows["price"].append(entry.get("price"))
    frame = pl.DataFrame(rows, schema={name: pl.Float64 if name == "price" else pl.String for name in rows})
    return frame.unique("item_id", keep="first", maintain_order=True).with_columns(
        text=_sentences("categories", "brand", "description")
    )


def _loose_json(line: str) -> Any:
    """A line of JSON, or of a Python literal, as which the metadata of 2014 were written."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        pass
    try:
        return ast.literal_eval(line.strip())
    except (ValueError, SyntaxError):
        return None


def _amazon_2023(folder: Path) -> dict[str, Table]:
    meta = _find_any(folder, "meta_*.jsonl", "meta_*.jsonl.gz")
    reviews = sorted(
        path for kind in ("*.jsonl", "*.jsonl.gz") for path in folder.rglob(kind) if not path.name.startswith("meta_")
    )
    if len(reviews) != 1:
        raise InputError(f"{folder} holds {len(reviews)} review files (*.jsonl[.gz]); give a folder with one category")
    schema = {"user_id": pl.String, "parent_asin": pl.String, "rating": pl.Float64, "timestamp": pl.Int64}
    events = _json_lines(reviews[0], schema).select(
        "user_id",
        item_id="parent_asin",
        timestamp=pl.col("timestamp").cast(pl.Datetime("ms")),
        action=pl.lit("review"),
        value="rating",
    )
    if meta is None:
        return _tables(folder, interactions=events)
    lists = dict.fromkeys(("features", "description", "categories"), pl.List(pl.String))
    texts = dict.fromkeys(("parent_asin", "title", "main_category", "store"), pl.String)
    items = _json_lines(meta, {**texts, **lists})
    items = items.with_columns(pl.col("categories").list.join(" > "), pl.col("features", "description").list.join(" "))
    items = items.rename({"parent_asin": "item_id"}).unique("item_id", keep="first", maintain_order=True)
    return _tables(
        folder,
        interactions=events,
        items=items.with_columns(text=_sentences("categories", "store", "features", "description")),
    )


def _sentences(*columns: str) -> pl.Expr:
    filled = [pl.when(pl.col(name).str.len_chars() > 0).then(pl.col(name)) for name in columns]
    return pl.concat_str(filled, separator=". ", ignore_nulls=True)


# -- MovieLens -------------------------------------------------------------------------------------------------------


def _movielens(folder: Path) -> dict[str, Table]:
    path = _find(folder, "ratings.csv", "ratings.dat", "u.data")
    if path.name == "ratings.csv":
        ratings = _need(path, _csv(path), "userId", "movieId", "rating", "timestamp")
        movies_path = _find(path.parent, "movies.csv")
        movies = _need(movies_path, _csv(movies_path, infer_schema_length=None), "movieId", "title", "genres")
        users = None
    elif path.name == "ratings.dat":
        ratings = _dat(path, {"userId": pl.Int64, "movieId": pl.Int64, "rating": pl.Float64, "timestamp": pl.Int64})
        movies = _dat(_find(path.parent, "movies.dat"), {"movieId": pl.Int64, "title": pl.String, "genres": pl.String})
        people = _find_any(path.parent, "users.dat")
        columns = ("userId", "gender", "age", "occupation", "zip")
        users = (
            None
            if people is None
            else _dat(people, {name: pl.Int64 if name == "userId" else pl.String for name in columns})
        )
    else:
        names = ("userId", "movieId", "rating", "timestamp")
        ratings = _csv(path, separator="\t", has_header=False, new_columns=names)
        movies = _u_item(_find(path.parent, "u.item"))
        users = None
    events = _need(path, ratings, "userId", "movieId", "rating", "timestamp").select(
        user_id="userId",
        item_id="movieId",
        timestamp="timestamp",
        action=_rating_action(pl.col("rating")),
        value="rating",
    )
    genres = pl.when(pl.col("genres") != "(no genres listed)").then(pl.col("genres").str.split("|"))
    items = movies.rename({"movieId": "item_id"}).with_columns(
        genres=genres, text=pl.concat_str([pl.col("title"), genres.list.join(", ")], separator=". ", ignore_nulls=True)
    )
    return _tables(
        folder, interactions=events, items=items, users=None if users is None else users.rename({"userId": "user_id"})
    )


def _dat(path: Path, schema: dict[str, Any]) -> pl.DataFrame:
    """``::``-separated lines in Latin-1."""
    lines = pl.DataFrame({"line": path.read_text(encoding="latin-1").splitlines()})
    parts = lines.select(pl.col("line").str.split("::"))
    broken = (parts["line"].list.len() != len(schema)).arg_true()
    if len(broken):
        raise InputError(
            f"{path}, row {int(broken[0]) + 1}: not {len(schema)} values between ::; is it the published file?"
        )
    fields = parts.select(pl.col("line").list.to_struct(fields=list(schema))).unnest("line")
    try:
        return fields.select(pl.col(name).cast(kind) for name, kind in schema.items())
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path} cannot be read ({str(error).splitlines()[0]}); is it the published file?") from None


_U_ITEM_GENRES = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical "
    "Mystery Romance Sci-Fi Thriller War Western"
).split()


def _u_item(path: Path) -> pl.DataFrame:
    """ml-100k's movies: ``id|title|date|video date|url|19 flags`` in Latin-1."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="latin-1").splitlines(), start=1):
        parts = line.split("|")
        if len(parts) != 5 + len(_U_ITEM_GENRES) or not parts[0].isdigit():
            raise InputError(f"{path}, row {number}: not a movie of ml-100k; is it the published file?")
        genres = [name for name, flag in zip(_U_ITEM_GENRES, parts[5:], strict=True) if flag == "1"]
        rows.append((int(parts[0]), parts[1], "|".join(genres)))
    return pl.DataFrame(rows, schema={"movieId": pl.Int64, "title": pl.String, "genres": pl.String}, orient="row")


# -- KuaiRand and goodbooks ------------------------------------------------------------------------------------------


def _kuairand(folder: Path) -> dict[str, Table]:
    logs = sorted(folder.rglob("log_standard_*.csv"))
    if not logs:
        raise InputError(f"{folder} holds no log_standard_*.csv; give the folder of the unpacked files")
    columns = ["user_id", "video_id", "time_ms", "play_time_ms", "tab", *_KUAIRAND_ACTIONS]
    log = pl.concat([_need(path, _csv(path), *columns).select(columns) for path in logs], how="vertical_relaxed")
    happened = [pl.when(pl.col(flag) == 1).then(pl.lit(name)) for flag, name in _KUAIRAND_ACTIONS.items()]
    events = log.select(
        "user_id",
        item_id="video_id",
        timestamp=pl.col("time_ms").cast(pl.Int64).cast(pl.Datetime("ms")),
        action=pl.concat_str(happened, separator="+", ignore_nulls=True),
        surface=pl.format("tab_{}", "tab"),
        value=pl.col("play_time_ms") / 1000,
    )
    videos = _find_any(folder, "video_features_basic_*.csv")
    people = _find_any(folder, "user_features_*.csv")
    items = None
    if videos is not None:
        items = _need(videos, _csv(videos, infer_schema_length=None), "video_id", "author_id", "tag")
        tags = pl.col("tag").cast(pl.String).str.replace_all(r"(\d+)", "tag_${1}").str.replace_all(",", " ")
        items = items.rename({"video_id": "item_id"}).with_columns(
            text=pl.concat_str([tags, pl.format("author_{}", "author_id")], separator=" ", ignore_nulls=True)
        )
    users = None if people is None else _need(people, _csv(people, infer_schema_length=None), "user_id")
    return _tables(folder, interactions=events, items=items, users=users)


def _goodbooks(folder: Path) -> dict[str, Table]:
    path, books_path = _find(folder, "ratings.csv"), _find(folder, "books.csv")
    ratings = _need(path, _csv(path), "user_id", "book_id", "rating")
    # The file is sorted by time and says no times.
    events = ratings.select(
        "user_id",
        item_id="book_id",
        timestamp=pl.int_range(pl.len()),
        action=_rating_action(pl.col("rating")),
        value="rating",
    )
    books = _need(
        books_path, _csv(books_path, infer_schema_length=None), "book_id", "goodreads_book_id", "title", "authors"
    )
    links, names = _find_any(folder, "book_tags.csv"), _find_any(folder, "tags.csv")
    if links is not None and names is not None:
        tagged = _need(links, _csv(links), "goodreads_book_id", "tag_id", "count")
        named = _need(names, _csv(names), "tag_id", "tag_name")
        shelves = (
            tagged.join(named, on="tag_id")
            .sort(["goodreads_book_id", "count", "tag_name"], descending=[False, True, False])
            .group_by("goodreads_book_id", maintain_order=True)
            .agg(shelves=pl.col("tag_name").head(_TAGS_PER_BOOK))
        )
        books = books.join(shelves, on="goodreads_book_id", how="left", maintain_order="left")
    else:
        books = books.with_columns(shelves=pl.lit(None, dtype=pl.List(pl.String)))
    text = [pl.col("title"), pl.format("By {}", "authors"), pl.format("Shelves: {}", pl.col("shelves").list.join(", "))]
    items = books.rename({"book_id": "item_id"}).with_columns(
        text=pl.concat_str(text, separator=". ", ignore_nulls=True)
    )
    return _tables(folder, interactions=events, items=items)


SOURCES: dict[str, Callable[[Path], dict[str, Table]]] = {
    "amazon-2014": _amazon_2014,
    "amazon-2023": _amazon_2023,
    "movielens": _movielens,
    "kuairand": _kuairand,
    "goodbooks": _goodbooks,
}
"""Names of ``--from``."""
