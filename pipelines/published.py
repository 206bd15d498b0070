"""From what ``recsys evaluate --json`` wrote to a table under docs/results/.

``python -P -m recsys.pipelines.published --name toys --title … --command … --evaluation eval.json``; several files, of
trainings that differ in their seed alone, become one table of means: ``--evaluation seed0.json,seed1.json``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys.files import read_json
from recsys.pipelines.command_parser import run_call
from recsys.pipelines.results import record, write

__all__ = ["mean_evaluation", "publish", "ranking_rows", "retrieval_rows", "segment_rows"]

_METRICS = {"NDCG@10": "ndcg@10", "Recall@10": "recall@10", "Recall@100": "recall@100", "MRR": "mrr"}


_DIFFERENCES = {"ndcg@10_minus": "dense − it", "ndcg@10_learned_minus": "dense_learned − it"}


def mean_evaluation(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of several trainings: every number is the mean, bounds of intervals too; the spread stands beside it.

    A figure ``x`` of models gets ``x_range`` = [least, most]. What is not a number is that of the first.
    """

    def mean(values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, Mapping):
            shared = [key for key in first if all(key in value for value in values)]
            out = {key: mean([value[key] for value in values]) for key in shared}
            spread = {f"{key}_range": [value[key] for value in values] for key in shared if f"{key}_ci" in out}
            return out | {key: [min(all_), max(all_)] for key, all_ in spread.items()}
        if isinstance(first, list):
            return [mean(parts) for parts in zip(*values, strict=True)]
        return sum(values) / len(values) if isinstance(first, float) else first

    return {
        part: mean([evaluation[part] for evaluation in evaluations])
        for part in ("protocol", "retrieval", "ranking", "baselines", "segments")
        if all(evaluation.get(part) for evaluation in evaluations)
    }


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
        low, high = figures.get("ndcg@10_range", (0.0, 0.0))
        if low < high:
            row["of seeds"] = f"{low:.4f} – {high:.4f}"
        for key, title in _DIFFERENCES.items():
            if key in figures:
                row[title], row[f"{title}_ci"] = figures[key], figures[f"{key}_ci"]
        rows.append(row)
    return rows


def ranking_rows(evaluation: Mapping[str, Any], actions: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """AUC of every action for the model and each ranking baseline; empty without slates.

    Args:
        actions: show these alone, with GAUC, and with the paired difference of ours − a baseline's.
    """
    if not evaluation.get("ranking"):
        return []
    named = {"this model": evaluation["ranking"]}
    named |= {name: row for name, row in evaluation.get("baselines", {}).items() if "ndcg@10" not in row}
    metrics = {"AUC": "auc"} if actions is None else {"AUC": "auc", "GAUC": "gauc"}
    rows = []
    for name, by_action in named.items():
        row: dict[str, Any] = {"model": name}
        for action in by_action if actions is None else actions:
            for title, key in metrics.items():
                if key in by_action.get(action, {}):
                    figures = by_action[action]
                    row[f"{title} {action}"], row[f"{title} {action}_ci"] = figures[key], figures.get(f"{key}_ci")
                    if actions is not None and f"{key}_minus" in figures:
                        row[f"ours − it, {title} {action}"] = figures[f"{key}_minus"]
                        row[f"ours − it, {title} {action}_ci"] = figures[f"{key}_minus_ci"]
        rows.append(row)
    return rows


def segment_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per segment with targets: ``dense``, and the baseline that answers the same requests."""
    rows = []
    for name, figures in evaluation.get("segments", {}).items():
        if "recall@10" not in figures:
            continue
        row = {"segment": name, "targets": figures.get("num_targets", figures["num_users"])}
        row |= {"Recall@10": figures["recall@10"], "Recall@10_ci": figures["recall@10_ci"]}
        row["NDCG@10"] = figures["ndcg@10"]
        for baseline, other in figures.get("baselines", {}).items():
            row |= {"beside": baseline, "its Recall@10": other["recall@10"]}
            row |= {"ours − it": other["recall@10_minus"], "ours − it_ci": other["recall@10_minus_ci"]}
        rows.append(row)
    return rows


def publish(
    name: str,
    title: str,
    command: str,
    evaluation: str,
    note: str = "",
    ceilings: Path | None = None,
    actions: str | None = None,
    segments: bool = False,
) -> None:
    """Record an evaluation and render the pages again.

    Args:
        name: of the result; a second file NAME-ranking is written where there are slates.
        title: heading of the tables.
        command: what made the figures.
        evaluation: the JSON of `recsys evaluate`; A,B for trainings with other seeds, whose means are shown.
        note: a sentence below the table.
        ceilings: ceilings.json of simulated data, added as rows.
        actions: A,B: show the ranking of these alone, with GAUC and differences.
        segments: a file NAME-segments for those of `dense`, or of the first retriever, new users and items among them.
    """
    files = [Path(file) for file in evaluation.split(",")]
    figures = mean_evaluation([read_json(file) for file in files])
    protocol = figures["protocol"]
    seeds = "one training" if len(files) == 1 else f"means of {len(files)} trainings with seeds 0 to {len(files) - 1}"
    said = (
        f"Split {protocol['split']}, {protocol['num_users']:,} users, full ranking of {protocol['num_items']:,} items; "
        f"history filter: {protocol['history_filter']}; {protocol['tie_rule']}; {seeds}; "
        "95 % bootstrap intervals over users."
    )
    notes = [said, *([note] if note else [])]
    retrieval, ranking = retrieval_rows(figures), ranking_rows(figures, actions.split(",") if actions else None)
    if ceilings is not None:
        best = read_json(ceilings)[protocol["split"]]
        for kind, knows in (("posterior", "ceiling: knows the world"), ("true", "ceiling: knows the hidden type too")):
            retrieval.append({"model": knows, **{t: best[kind]["retrieval"].get(key) for t, key in _METRICS.items()}})
            ranking.append({"model": knows, **{f"AUC {a}": v["auc"] for a, v in best[kind]["ranking"].items()}})
    differences = [title for title in _DIFFERENCES.values() if any(title in row for row in retrieval)]
    spread = ["of seeds"] if any("of seeds" in row for row in retrieval) else []
    columns = ["model", "NDCG@10", *spread, *[metric for metric in _METRICS if metric != "NDCG@10"], *differences]
    record(name, title, command, retrieval, columns, data_hash=protocol["data_hash"], notes=notes)
    if segments:
        rows = segment_rows(figures)
        shown = ["segment", "targets", "Recall@10", "NDCG@10", "beside", "its Recall@10", "ours − it"]
        judged = "dense" if "dense" in figures["retrieval"] else next(iter(figures["retrieval"]))
        heading = f"{title}: `{judged}` by segment"
        record(f"{name}-segments", heading, command, rows, shown, data_hash=protocol["data_hash"], notes=notes)
    if ranking:
        shown = list(dict.fromkeys(key for row in ranking for key in row if not key.endswith("_ci")))
        heading = f"{title}: ranking of slates"
        record(f"{name}-ranking", heading, command, ranking, shown, data_hash=protocol["data_hash"], notes=notes)
    write(Path())


def main(argv: Sequence[str]) -> int:
    """Publish one evaluation, in the root of the repository."""
    return run_call(publish, argv, prog="published", example="published --name toys --evaluation eval.json")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
