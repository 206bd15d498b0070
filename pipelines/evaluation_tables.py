"""The figures of an evaluation as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from recsys.pipelines.evaluation_ranking import FIGURES

__all__ = ["show"]

RETRIEVAL_COLUMNS = ("recall@10", "ndcg@10", "recall@100", "mrr", "coverage@10", "novelty@10", "popularity_bias@10")
SEGMENT_COLUMNS = ("recall@10", "ndcg@10", "recall@100", "mrr")


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print what :func:`recsys.pipelines.evaluate.evaluate_bundle` returned."""
    protocol = result["protocol"]
    console.print(
        f"{protocol['split']}: {protocol['num_users']:,} users, {protocol['num_items']:,} items, "
        f"{protocol['num_unreachable']:,} targets in their own history, {protocol['num_tied']:,} tied; "
        "intervals are 95 % over users"
    )
    baselines = result.get("baselines", {})
    by_item = {name: row for name, row in baselines.items() if "mrr" in row}
    rows = [(name, row, "") for name, row in result["retrieval"].items()]
    rows += [(name, row, _difference(row, "ndcg@10")) for name, row in by_item.items()]
    last = ("ndcg@10 ours − it",) if by_item else ()
    _table(console, "retrieval", "", RETRIEVAL_COLUMNS, rows, last)
    if result.get("ranking") or len(by_item) < len(baselines):
        rows = [(f"{action}", row, "") for action, row in result.get("ranking", {}).items()]
        for name, actions in baselines.items():
            if name not in by_item:
                rows += [(f"{action}: {name}", row, _difference(row, "auc")) for action, row in actions.items()]
        _table(console, "ranking", "", FIGURES, sorted(rows, key=lambda row: row[0]), ("auc ours − it",))
    rows = [
        (f"{name} ({row['num_users']:,}; {row['meaning']})", row, "")
        for name, row in result["segments"].items()
        if row["num_users"]
    ]
    _table(console, f"segments, {protocol['segments_of']}", "", SEGMENT_COLUMNS, rows, ())
    for note in result.get("notes", []):
        console.print(f"note: {note}", markup=False)


def _table(
    console: Console,
    title: str,
    first: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, Mapping[str, Any], str]],
    last: Sequence[str],
) -> None:
    shown = [name for name in columns if any(name in row for _, row, _ in rows)]
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for name in (*shown, *last):
        table.add_column(name, justify="right")
    for label, row, extra in rows:
        table.add_row(label, *(_cell(row, name) for name in shown), *([extra] if last else []))
    console.print(table)


def _cell(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return ""
    if name in ("ndcg@10", "auc") and f"{name}_ci" in row:
        low, high = row[f"{name}_ci"]
        return f"{row[name]:.4f} [{low:.4f}, {high:.4f}]"
    return f"{row[name]:.2f}" if name.startswith("novelty") else f"{row[name]:.4f}"


def _difference(row: Mapping[str, Any], name: str) -> str:
    if f"{name}_minus" not in row:
        return ""
    low, high = row[f"{name}_minus_ci"]
    return f"{row[f'{name}_minus']:+.4f} [{low:+.4f}, {high:+.4f}]"
