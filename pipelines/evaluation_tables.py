"""The figures of an evaluation as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from recsys.pipelines.evaluation_ranking import FIGURES
from recsys.pipelines.language_model import cost_text
from recsys.pipelines.targets import LIST_LENGTH

__all__ = ["show"]

TARGET_COLUMNS = ("recall@10", "ndcg@10", "recall@100", "mrr")
_LISTS = ("coverage", "novelty", "intra_list_diversity", "popularity_bias")
LIST_COLUMNS = tuple(f"{name}@{LIST_LENGTH}" for name in _LISTS)
RERANK_COLUMNS = ("ndcg@10", "ndcg@10_change", "ndcg@10_hits", "ndcg@10_hits_change", "mrr", "changed", "ms_per_list")
WITH_INTERVAL = ("ndcg@10", "auc", "ndcg@10_change", "ndcg@10_hits", "ndcg@10_hits_change")

Rows = Sequence[tuple[str, Mapping[str, Any]]]


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print what :func:`recsys.pipelines.evaluate.evaluate_bundle` returned."""
    protocol = result["protocol"]
    console.print(
        f"{protocol['split']}: {protocol['num_users']:,} users, {protocol['num_items']:,} items; "
        f"{protocol['num_unreachable']:,} targets in their own history, {protocol['num_tied']:,} tied; "
        "± is half a 95 % interval over users",
        markup=False,
    )
    baselines = result.get("baselines", {})
    of_items = [(name, row) for name, row in baselines.items() if "mrr" in row]
    retrieval = [*result["retrieval"].items(), *((f"· {name}", row) for name, row in of_items)]
    _table(console, "retrieval (· = baseline)", TARGET_COLUMNS, retrieval, minus="ndcg@10")
    _table(console, "lists", LIST_COLUMNS, retrieval)
    if result.get("reranked"):
        reranked = result["reranked"]
        _table(console, "reranked", RERANK_COLUMNS, list(reranked["rows"].items()))
        console.print(f"reranked: {reranked['protocol']['rule']}", markup=False)
        for name, row in reranked["rows"].items():
            if "weight" in row:
                said = f"weight {row['weight']:g}" if row["adopted"] else "weight 0: not adopted"
                console.print(f"{name}: {said}", markup=False)
            if "prices_per_million_tokens" in row:
                more = f", and {cost_text(row['validation']['cost'])} on validation" if "validation" in row else ""
                console.print(f"{name}: {cost_text(row['cost'])}{more}", markup=False)
    if result.get("all_positives"):
        every = list(result["all_positives"].items())
        title = f"every positive of the period, {every[0][1]['num_targets']:,} targets"
        _table(console, title, TARGET_COLUMNS, every)
    ranking = []
    for action in dict.fromkeys(name for row in (result.get("ranking", {}), *_slates(baselines)) for name in row):
        if action in result.get("ranking", {}):
            ranking.append((action, result["ranking"][action]))
        ranking += [
            (f"{action} · {name}", row[action]) for name, row in baselines.items() if "mrr" not in row and action in row
        ]
    if ranking:
        _table(console, "ranking (· = baseline)", FIGURES, ranking, minus="auc")
    if "value" in result:
        row = result["value"]
        console.print(
            f"value: ln(1 + value) off by {row['log_mae']:.3f} on average (median: {row['log_mae_of_median']:.3f}), "
            f"rank correlation {row.get('spearman', float('nan')):.3f}, {row['num_rows']:,} rows"
        )
    segments: list[tuple[str, Mapping[str, Any]]] = []
    for name, row in result["segments"].items():
        if row["num_users"]:
            segments.append((f"{name}: {row['num_users']:,}", row))
            segments += [(f"{name} · {other}", beside) for other, beside in row.get("baselines", {}).items()]
    _table(console, f"segments and their users, {protocol['segments_of']}", TARGET_COLUMNS, segments, "recall@10")
    for note in result.get("notes", []):
        console.print(f"note: {note}", markup=False)


def _slates(baselines: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in baselines.values() if "mrr" not in row]


def _table(console: Console, title: str, columns: Sequence[str], rows: Rows, minus: str | None = None) -> None:
    """One table; ``minus`` adds the difference of that figure to a baseline's where there is one."""
    shown = [name for name in columns if any(name in row for _, row in rows)]
    differs = any(f"{minus}_minus" in row for _, row in rows)
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in (*shown, *([f"ours − it, {minus}"] if differs else [])):
        table.add_column(name.replace("_", " "), justify="right")
    for label, row in rows:
        cells = [_cell(row, name) for name in shown]
        table.add_row(label, *cells, *([_cell(row, f"{minus}_minus", sign="+")] if differs else []))
    console.print(table)


def _cell(row: Mapping[str, Any], name: str, sign: str = "") -> str:
    if name not in row:
        return ""
    text = f"{row[name]:{sign}.4f}"
    if name in WITH_INTERVAL or sign:
        low, high = row[f"{name}_ci"]
        text += f" ±{(high - low) / 2:.4f}".replace("±0.", "±.")
    return text
