"""From what ``recsys evaluate --json`` wrote to a table under docs/results/.

``python -P -m recsys.pipelines.published --name toys --title … --command … --evaluation eval.json``
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys.errors import InputError
from recsys.files import read_json
from recsys.pipelines.command_parser import parse_call
from recsys.pipelines.results import record, write

__all__ = ["publish", "ranking_rows", "retrieval_rows"]

_METRICS = {"NDCG@10": "ndcg@10", "Recall@10": "recall@10", "Recall@100": "recall@100", "MRR": "mrr"}


_DIFFERENCES = {"ndcg@10_minus": "dense − it", "ndcg@10_learned_minus": "dense_learned − it"}


def retrieval_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per retriever and retrieval baseline, the best NDCG@10 first, with paired differences.

    ``dense`` is left out where it is ``dense_learned``.
    """
    retrieval = evaluation["retrieval"]
    both = [retrieval.get(name, {}) for name in ("dense", "dense_learned")]
    alone = all(both[0].get(key) == both[1].get(key) for key in _METRICS.values())
    named = {name: row for name, row in retrieval.items() if not (alone and name == "dense")}
    named |= {name: row for name, row in evaluation.get("baselines", {}).items() if "ndcg@10" in row}
    rows = []
    for name, figures in sorted(named.items(), key=lambda pair: -pair[1]["ndcg@10"]):
        row: dict[str, Any] = {"model": name} | {title: figures[key] for title, key in _METRICS.items()}
        row["NDCG@10_ci"] = figures["ndcg@10_ci"]
        for key, title in _DIFFERENCES.items():
            if key in figures:
                row[title], row[f"{title}_ci"] = figures[key], figures[f"{key}_ci"]
        rows.append(row)
    return rows


def ranking_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """AUC of every action for the model and each ranking baseline; empty without slates."""
    if not evaluation.get("ranking"):
        return []
    named = {"this model": evaluation["ranking"]}
    named |= {name: row for name, row in evaluation.get("baselines", {}).items() if "ndcg@10" not in row}
    rows = []
    for name, actions in named.items():
        row: dict[str, Any] = {"model": name}
        for action, figures in actions.items():
            row[f"AUC {action}"], row[f"AUC {action}_ci"] = figures["auc"], figures["auc_ci"]
        rows.append(row)
    return rows


def publish(
    name: str, title: str, command: str, evaluation: Path, note: str = "", ceilings: Path | None = None
) -> None:
    """Record an evaluation and render the pages again.

    Args:
        name: of the result; a second file NAME-ranking is written where there are slates.
        title: heading of the tables.
        command: what made the figures.
        evaluation: the JSON of `recsys evaluate`.
        note: a sentence below the table.
        ceilings: ceilings.json of simulated data, added as rows.
    """
    figures = read_json(evaluation)
    protocol = figures["protocol"]
    said = (
        f"Split {protocol['split']}, {protocol['num_users']:,} users, full ranking of {protocol['num_items']:,} items; "
        f"history filter: {protocol['history_filter']}; {protocol['tie_rule']}; seed {protocol['seed']}; "
        "95 % bootstrap intervals over users."
    )
    notes = [said, *([note] if note else [])]
    retrieval, ranking = retrieval_rows(figures), ranking_rows(figures)
    if ceilings is not None:
        best = read_json(ceilings)[protocol["split"]]
        for kind, knows in (("posterior", "ceiling: knows the world"), ("true", "ceiling: knows the hidden type too")):
            retrieval.append({"model": knows, **{t: best[kind]["retrieval"].get(key) for t, key in _METRICS.items()}})
            ranking.append({"model": knows, **{f"AUC {a}": v["auc"] for a, v in best[kind]["ranking"].items()}})
    differences = [title for title in _DIFFERENCES.values() if any(title in row for row in retrieval)]
    columns = ["model", *_METRICS, *differences]
    record(name, title, command, retrieval, columns, data_hash=protocol["data_hash"], notes=notes)
    if ranking:
        actions = [key for key in ranking[0] if not key.endswith("_ci")]
        heading = f"{title}: ranking of slates"
        record(f"{name}-ranking", heading, command, ranking, actions, data_hash=protocol["data_hash"], notes=notes)
    write(Path())


def main(argv: Sequence[str]) -> int:
    """Publish one evaluation, in the root of the repository."""
    try:
        publish(**parse_call(publish, argv, prog="published", example="published --name toys --evaluation eval.json"))
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
