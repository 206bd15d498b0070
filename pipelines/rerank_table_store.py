"""Results of a reranker on lists, kept line by line, so that a job that was ended goes on where it stopped.

Suffixes: Q = lists.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recsys.errors import InputError
from recsys.pipelines.rerank_runs import AT_ONCE, RerankRun
from recsys.retrieval.rerank.lm.usage import Usage
from recsys.retrieval.rerank.request import RerankRequest
from recsys.retrieval.rerank.reranker import Reranker
from recsys.retrieval.rerank.result import Faults, RerankResult

__all__ = ["append_row", "file_of", "read_rows", "stored_run"]


def file_of(name: str) -> str:
    """Beginning of the names of a row's files.

    >>> file_of("first (trained)")
    'first-trained'
    """
    return re.sub(r"[^\w.]+", "-", name).strip("-")


def stored_run(
    path: Path,
    reranker: Reranker | None,
    requests: Sequence[RerankRequest],
    *,
    seconds: float,
    at_once: int = AT_ONCE,
    advance: Callable[[int], None] | None = None,
) -> RerankRun:
    """The results of the first lists, those of the file first; what is computed now is added to it.

    Args:
        path: JSON lines, one a list, in the order of ``requests``.
        reranker: None = what is stored and no more.
        seconds: of computing, stored ones included, after which no further lists are begun.
        at_once: lists of one call.
        advance: told how many more are done.

    Raises:
        InputError: the file holds results of other lists.
    """
    results: list[RerankResult] = []
    spent = 0.0
    for number, line in enumerate(_whole_lines(path)):
        if number >= len(requests):
            break
        result = _result(line, requests[number], path)
        results.append(result)
        spent += float(line["seconds"])
    if advance is not None:
        advance(len(results))
    while reranker is not None and len(results) < len(requests) and (spent < seconds or not results):
        part = requests[len(results) : len(results) + at_once]
        began = time.perf_counter()
        found = reranker.rerank(part)
        took = time.perf_counter() - began
        with path.open("a", encoding="utf-8") as file:
            file.writelines(_line(result, took / len(found)) for result in found)
        results += found
        spent += took
        if advance is not None:
            advance(len(found))
    return RerankRun(results=tuple(results), seconds=spent)


def _line(result: RerankResult, seconds: float) -> str:
    place = {item_id: at for at, item_id in enumerate(result.candidates)}
    return (
        json.dumps(
            {
                "candidates": [str(item_id) for item_id in result.candidates],
                "places": [place[item_id] for item_id in result.ids],
                "scores": result.scores,
                "complete": result.complete,
                "usage": asdict(result.usage),
                "faults": asdict(result.faults),
                "notes": result.notes,
                "seconds": seconds,
            }
        )
        + "\n"
    )


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Lines that were written to their end; what an ended job left half written is taken away."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def _result(line: dict[str, Any], request: RerankRequest, path: Path) -> RerankResult:
    if line["candidates"] != [str(item_id) for item_id in request.ids]:
        raise InputError(f"{path} holds results of other lists; remove it, or give another --work folder")
    return RerankResult(
        ids=tuple(request.ids[at] for at in line["places"]),
        candidates=request.ids,
        scores=None if line["scores"] is None else tuple(line["scores"]),
        complete=line["complete"],
        usage=Usage(**line["usage"]),
        faults=Faults(**line["faults"]),
        notes=tuple(line["notes"]),
    )


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row of the table."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows so far, the last one of each name."""
    rows = {row["name"]: row for row in _whole_lines(path)}
    return list(rows.values())
