"""From the rows of a rerank table to a file under docs/results/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys.errors import InputError
from recsys.pipelines.rerank_table_store import read_rows
from recsys.pipelines.results import record, write

__all__ = ["method_rows", "publish", "side_rows"]

_METHOD_COLUMNS = (
    "method", "lists", "of users", "NDCG@10, hits: before", "after", "change", "change, all users", "fused",
    "fused change", "weight", "top 10 changed", "ms a list", "tokens a list", "reused", "generated", "shuffled input",
)  # fmt: skip
_SIDE_COLUMNS = (
    "compared",
    "lists",
    "NDCG@10, hits",
    "of the other",
    "difference",
    "time ratio",
    "same top 10",
    "tau",
    "calls",
)


def publish(work: Path, name: str, title: str, command: str, note: str = "", device: str | None = None) -> None:
    """Record the rows of a table and render the pages again; run it in the root of the repository.

    Args:
        work: folder of the rows.
        name: of the result: rerank-NAME.json, and rerank-NAME-checks.json for rows that set methods side by side.
        title: heading of the table.
        command: what made the figures.
        note: a sentence below the table.
        device: what it ran on; this machine's where it is left out.
    """
    rows = read_rows(work / "rows.jsonl")
    measured = [row for row in rows if "after" in row]
    if not measured:
        raise InputError(f"{work / 'rows.jsonl'} holds no measured method")
    data_hash = measured[0]["data_hash"]
    said = (
        f"Split test, the first {measured[0]['top']} items of {measured[0]['retriever']}; only lists that hold their "
        "target are reranked, since no order changes the others' 0, which count in figures over all users. Paired 95 % "
        "bootstrap intervals over users. Fused: both scores standardised in their list, weight chosen on lists of "
        "validation, 0 where the gain there is within two standard errors. Shuffled input: NDCG@10 of the order made "
        "from randomly ordered candidates, beside that of the random order itself."
    )
    notes = [said, *([note] if note else [])]
    shared: dict[str, Any] = {"data_hash": data_hash, "notes": notes, "device": device}
    record(f"rerank-{name}", title, command, method_rows(measured), _METHOD_COLUMNS, **shared)
    side = side_rows([row for row in rows if "kind" in row])
    if side:
        record(f"rerank-{name}-checks", f"{title}: side by side", command, side, _SIDE_COLUMNS, data_hash=data_hash,
               device=device)  # fmt: skip
    write(Path())


def method_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per method, the largest NDCG@10 after it first."""
    made = []
    for row in sorted(rows, key=lambda row: -row["after"].get("ndcg@10_hits", 0.0)):
        after, fused, shuffled = row["after"], row.get("fused"), row["shuffled"]
        weight = "in its score" if fused is None else f"{fused['weight']:g}" if fused["adopted"] else "not adopted"
        one = {
            "method": row["name"],
            "lists": after["num_lists"],
            "of users": after["num_asked"],
            "NDCG@10, hits: before": row["before"].get("ndcg@10_hits"),
            "after": after.get("ndcg@10_hits"),
            "after_ci": after.get("ndcg@10_hits_ci"),
            "change": after.get("ndcg@10_hits_change"),
            "change_ci": after.get("ndcg@10_hits_change_ci"),
            "change, all users": after["ndcg@10_change"],
            "change, all users_ci": after["ndcg@10_change_ci"],
            "weight": weight,
            "top 10 changed": f"{after['changed']:.0%}",
            "ms a list": round(row["ms_per_list"]),
            "tokens a list": round(row["prompt_tokens_per_list"]),
            "reused": round(row["reused_tokens_per_list"]),
            "generated": round(row["generated_tokens_per_list"]),
        }
        if fused is not None and fused["adopted"]:
            one |= {
                "fused": fused.get("ndcg@10_hits"),
                "fused change": fused.get("ndcg@10_hits_change"),
                "fused change_ci": fused.get("ndcg@10_hits_change_ci"),
            }
        if "ndcg@10_hits" in shuffled:
            one["shuffled input"] = f"{shuffled['ndcg@10_hits']:.4f} (random {shuffled['ndcg@10_hits_random']:.4f})"
        made.append(one)
    return made


def side_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for every comparison."""
    made = []
    for row in rows:
        one: dict[str, Any] = {"compared": row["name"], "lists": row["num_lists"]}
        if row["kind"] == "permutations":
            one["same top 10"] = f"{row['num_identical']} of {row['num_lists']} lists: one order for all"
            one["difference"] = f"scores {row['largest_score_difference']:.1e}"
        else:
            one |= {"NDCG@10, hits": row["ndcg@10_hits"], "of the other": row["ndcg@10_hits_other"]}
        if row["kind"] == "compare":
            one |= {
                "difference": row.get("ndcg@10_hits_change"),
                "difference_ci": row.get("ndcg@10_hits_change_ci"),
                "time ratio": row["time_ratio"],
            }
        if row["kind"] == "reference":
            one |= {"same top 10": f"{row['same_top10']:.1%}", "tau": row["kendall_tau"],
                    "calls": f"{row['calls_ratio']:.0%}"}  # fmt: skip
        made.append(one)
    return made
