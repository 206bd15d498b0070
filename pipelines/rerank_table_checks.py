"""Rerankers beside each other on the same lists, and one on permutations of a list.

Suffixes: Q = lists.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.pipelines.console import progress_bar, stdout_console
from recsys.pipelines.rerank_lists import RerankLists
from recsys.pipelines.rerank_options import RerankOptions
from recsys.pipelines.rerank_runs import RerankRun, seconds_in_turns, shuffled
from recsys.pipelines.rerank_table_figures import change, lists_like, tau
from recsys.pipelines.rerank_table_store import append_row, file_of, read_rows, stored_run

__all__ = ["compare", "permutations", "reference"]


def compare(bundle: Path, data: Path, work: Path, ours: str, other: str, timed: int = 20) -> None:
    """NDCG@10 of one measured method less that of another, on the lists that both have ordered, and their times.

    Args:
        bundle: what `recsys export` wrote.
        data: the prepared dataset that it was made from.
        work: folder of the rows of both.
        ours: name of a row.
        other: name of the other.
        timed: lists that both order once more, by turns, for the ratio of their times. With 0 it is that of the rows,
            which were measured beside whatever else the machine did.
    """
    lists, (first, second) = _both(bundle, data, work, [ours, other])
    times, count = [first.seconds, second.seconds], max(0, min(timed, len(lists) - 1))
    if count:
        loaded = Bundle.open(bundle)
        options = [RerankOptions.of_identity(row["settings"]) for row in _measured(work, [ours, other])]
        both = [one.open(loaded, training_only=True) for one in options]
        with progress_bar(f"{ours}, {other}: time", count + 1, "lists") as advance:
            times = seconds_in_turns(both, lists.requests[: count + 1], advance=advance)
    row = {
        "name": f"{ours} against {other}",
        "kind": "compare",
        "num_lists": len(lists),
        "ndcg@10_hits": _hits(lists, first),
        "ndcg@10_hits_other": _hits(lists, second),
        **change(lists, first.orders, second.orders, seed=0),
        "ms_per_list": _ms(first),
        "ms_per_list_other": _ms(second),
        "num_timed": count,
        "time_ratio": times[0] / max(times[1], 1e-9),
    }
    append_row(work / "rows.jsonl", row)
    low, high = row.get("ndcg@10_hits_change_ci", [0.0, 0.0])
    stdout_console().print(
        f"{row['name']}: {len(lists)} lists, NDCG@10 of hits {row.get('ndcg@10_hits_change', 0.0):+.4f} "
        f"[{low:+.4f}, {high:+.4f}], {row['time_ratio']:.2f} of the time",
        markup=False,
    )


def reference(bundle: Path, data: Path, work: Path, of: str, others: str, lists: int = 30) -> None:
    """How far the orders of methods agree with those of one that looks at everything.

    Args:
        bundle: what `recsys export` wrote.
        data: the prepared dataset that it was made from.
        work: folder of the rows of all.
        of: name of the row to compare with, such as pairwise-all.
        others: names of the others, A,B.
        lists: how many of them at most.
    """
    for name in (one.strip() for one in others.split(",")):
        common, (truth, found) = _both(bundle, data, work, [of, name], most=lists)
        pairs = list(zip(truth.orders, found.orders, strict=True))
        row = {
            "name": f"{name} as {of}",
            "kind": "reference",
            "num_lists": len(common),
            "same_top10": float(np.mean([len(set(a[:10]) & set(b[:10])) / len(a[:10]) for a, b in pairs])),
            "kendall_tau": float(np.mean([tau(*pair) for pair in pairs])),
            "calls_ratio": found.usage.calls / max(truth.usage.calls, 1),
            "ndcg@10_hits": _hits(common, found),
            "ndcg@10_hits_other": _hits(common, truth),
        }
        append_row(work / "rows.jsonl", row)
        stdout_console().print(
            f"{row['name']}: {len(common)} lists, {row['same_top10']:.1%} of the first ten the same, "
            f"tau {row['kendall_tau']:.3f}, {row['calls_ratio']:.0%} of the calls",
            markup=False,
        )


def permutations(
    bundle: Path,
    data: Path,
    work: Path,
    lm: str,
    method: str = "set",
    lists: int = 10,
    count: int = 100,
    minutes: float = 30.0,
    top: int = 20,
    retriever: str = "dense",
    seed: int = 0,
) -> None:
    """Orders of permuted lists: an order-invariant reranker gives one for all permutations of a list.

    Args:
        bundle: what `recsys export` wrote.
        data: the prepared dataset that it was made from.
        work: folder for the row.
        lm: folder of the language model.
        method: the reranker.
        lists: how many of them.
        count: permutations of each.
        minutes: no further list is begun after so many.
        top: items of a list.
        retriever: whose lists.
        seed: of the draws.
    """
    loaded, dataset = Bundle.open(bundle), Dataset.open(data)
    about = {"top": top, "seed": seed, "retriever": retriever, "rank_by": None, "every": False}
    asked = lists_like(loaded, dataset, "test", about, lists)
    reranker = RerankOptions(method=method, lm=lm, top=top).open(loaded)
    work.mkdir(parents=True, exist_ok=True)
    num_orders, largest, spent = list[int](), 0.0, 0.0
    with progress_bar(f"{method}: permutations", len(asked), "lists") as advance:
        for number, request in enumerate(asked.requests):
            if spent >= 60 * minutes:
                break
            path = work / f"{file_of(method)}.permutations-{number}.jsonl"
            run = stored_run(path, reranker, shuffled([request] * count, seed), seconds=float("inf"))
            spent += run.seconds
            num_orders.append(len(set(run.orders)))
            largest = max(largest, _spread(run))
            advance(1)
    row = {
        "name": f"{method} on {count} permutations",
        "kind": "permutations",
        "num_lists": len(num_orders),
        "count": count,
        "num_identical": sum(number == 1 for number in num_orders),
        "most_orders": max(num_orders, default=0),
        "largest_score_difference": largest,
    }
    append_row(work / "rows.jsonl", row)
    stdout_console().print(
        f"{row['name']}: {row['num_identical']} of {len(num_orders)} lists have one order for all of them; "
        f"scores differ by {largest:.1e} at most",
        markup=False,
    )


def _both(
    bundle: Path, data: Path, work: Path, names: list[str], most: int | None = None
) -> tuple[RerankLists, list[RerankRun]]:
    """The lists that several rows have in common, and their results."""
    rows = _measured(work, names)
    for key in ("top", "seed", "retriever", "rank_by", "every", "data_hash"):
        if rows[0][key] != rows[1][key]:
            raise InputError(f"{names[0]} and {names[1]} were measured with another {key}; measure one again")
    loaded, dataset = Bundle.open(bundle), Dataset.open(data)
    counts = [row["after"]["num_lists"] for row in rows]
    lists = lists_like(loaded, dataset, "test", rows[0], min(*counts, *([] if most is None else [most])))
    runs = [stored_run(work / f"{file_of(name)}.test.jsonl", None, lists.requests, seconds=0.0) for name in names]
    return lists, runs


def _measured(work: Path, names: list[str]) -> list[dict[str, Any]]:
    rows = {row["name"]: row for row in read_rows(work / "rows.jsonl")}
    for name in names:
        if "after" not in rows.get(name, {}):
            raise InputError(f"{work / 'rows.jsonl'} has no row {name!r}; measure it first")
    return [rows[name] for name in names]


def _hits(lists: RerankLists, run: RerankRun) -> float:
    return float(lists.ndcg(run.orders)[lists.hit_Q].mean()) if lists.hit_Q.any() else 0.0


def _ms(run: RerankRun) -> float:
    return 1e3 * run.seconds / max(len(run), 1)


def _spread(run: RerankRun) -> float:
    """Largest difference of an item's scores among runs of one list; 0 where there are orders only."""
    scores: dict[Any, list[float]] = {}
    for result in run.results:
        for item_id, score in zip(result.candidates, result.scores or (), strict=False):
            scores.setdefault(item_id, []).append(score)
    return max((max(values) - min(values) for values in scores.values()), default=0.0)
