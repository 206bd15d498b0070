"""What rerankers do to the lists of a trained bundle: one row a method, with intervals, costs and controls.

``python -P -m recsys.pipelines.rerank_table --bundle B --data D --lm PATH --methods first,pointwise --users 500
--minutes 30 --work DIR`` adds a row per method to ``DIR/rows.jsonl``; an ended job goes on where it stopped.
``… rerank_table compare|reference|permutations`` adds the rows that set methods side by side, and ``… publish`` writes
``docs/results/rerank-NAME.json``.

A list without its target has NDCG 0 in any order. So only lists that hold their target are reranked; figures over
``all`` users count the others with 0.

Suffixes: Q = lists.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.pipelines.command_parser import run_call
from recsys.pipelines.console import progress_bar, stdout_console
from recsys.pipelines.evaluation_rerank import fused_orders, judged_lists
from recsys.pipelines.language_model import ModelDtype, ModelOptions
from recsys.pipelines.rerank_lists import RerankLists
from recsys.pipelines.rerank_options import RerankOptions
from recsys.pipelines.rerank_runs import RerankRun, shuffled
from recsys.pipelines.rerank_table_checks import compare, permutations, reference
from recsys.pipelines.rerank_table_figures import change, lists_like, tau
from recsys.pipelines.rerank_table_publish import publish
from recsys.pipelines.rerank_table_store import append_row, file_of, read_rows, stored_run
from recsys.retrieval.rerank.fusion import choose_weight
from recsys.retrieval.rerank.request import RerankRequest

__all__ = ["rows"]

_PARTS = {"test": 0.6, "validation": 0.85, "shuffled": 1.0}
"""Shares of a row's time that are used up when a part ends."""
_MOST_SHUFFLED = 100


def rows(
    bundle: Path,
    data: Path,
    work: Path,
    methods: str,
    lm: str | None = None,
    lm_dtype: ModelDtype | None = None,
    cross_encoder: Path | None = None,
    feedback: Path | None = None,
    prompt: str | None = None,
    label: str = "",
    users: int = 500,
    validation_users: int = 200,
    minutes: float = 30.0,
    top: int = 20,
    retriever: str = "dense",
    rank_by: str | None = None,
    every: bool = False,
    seed: int = 0,
) -> None:
    """Measure rerankers on lists of the test split; the weight of a fused score comes from validation.

    Args:
        bundle: what `recsys export` wrote.
        data: the prepared dataset that it was made from.
        work: folder for results and rows.
        methods: rerankers, A,B.
        lm: their language model: a folder, or http(s)://host/v1#model, whose key is read from RECSYS_API_KEY.
        lm_dtype: numbers that it computes with, where it is a folder's; default bfloat16 on a GPU that has it, else
            float32.
        cross_encoder: folder of the model of cross-encoder.
        feedback: folder of a trained head of embedding-feedback.
        prompt: name or file of another prompt than the method's own.
        label: what tells these rows from others of the same methods, such as trained.
        users: lists that are reranked.
        validation_users: lists of validation, for the weight.
        minutes: of computing a row, all parts of it together; its counts say how far it came, and a second call with
            more of them goes on.
        top: items of a list.
        retriever: whose lists.
        rank_by: order the lists by the probability of this action first.
        every: rerank the lists of all users drawn, also of those without their target.
        seed: of the draws and intervals.
    """
    loaded, dataset = Bundle.open(bundle), Dataset.open(data)
    options = RerankOptions.of_methods(
        methods,
        lm=lm,
        model=ModelOptions(dtype=lm_dtype),
        cross_encoder=cross_encoder,
        feedback=feedback,
        prompt=prompt,
        top=top,
    )
    work.mkdir(parents=True, exist_ok=True)
    done = {row["name"]: row["after"]["num_lists"] for row in read_rows(work / "rows.jsonl") if "after" in row}
    about = {"top": top, "seed": seed, "retriever": retriever, "rank_by": rank_by, "every": every}
    tested = lists_like(loaded, dataset, "test", about, users)
    mixed = shuffled(tested.requests[:_MOST_SHUFFLED], seed)
    for one in options:
        name = f"{one.method} ({label})" if label else one.method
        if done.get(name, 0) >= len(tested):
            stdout_console().print(f"{name}: its row is there already, with all lists", markup=False)
            continue
        reranker = one.open(loaded, training_only=True)
        asked = {"test": tested.requests, "shuffled": mixed}
        validation = None
        if not one.holds_earlier_score:
            unseen = one.unseen_users(dataset)
            validation = lists_like(loaded, dataset, "validation", about, validation_users, unseen)
            asked["validation"] = validation.requests
        runs: dict[str, RerankRun] = {}
        spent = 0.0
        for part, share in _PARTS.items():
            if part not in asked:
                continue
            with progress_bar(f"{name}: {part}", len(asked[part]), "lists") as advance:
                path = work / f"{file_of(name)}.{part}.jsonl"
                left = share * 60 * minutes - spent
                runs[part] = stored_run(path, reranker, asked[part], seconds=left, advance=advance)
            spent += runs[part].seconds
        lists = tested
        if len(runs["test"]) < len(lists):  # so that it is known how many users stand behind the first ones
            lists = lists_like(loaded, dataset, "test", about, len(runs["test"]))
        row = {"name": name, **about, "data_hash": dataset.manifest.data_hash, "settings": one.identity()}
        row |= _row(lists, validation, runs, mixed, seed=seed)
        append_row(work / "rows.jsonl", row)
        stdout_console().print(_sentence(row), markup=False)


def _row(
    lists: RerankLists,
    validation: RerankLists | None,
    runs: Mapping[str, RerankRun],
    mixed: Sequence[RerankRequest],
    *,
    seed: int,
) -> dict[str, Any]:
    """Everything of one method.

    Args:
        lists: those that were reranked.
        validation: lists whose first ones were, for the weight; None = the score holds the earlier one.
        runs: by part.
        mixed: the lists in random order, in the order of ``lists``.
    """
    run = runs["test"]
    row: dict[str, Any] = {
        "before": lists.figures(seed=seed),
        "after": lists.figures(run.orders, seed=seed) | change(lists, run.orders, None, seed=seed),
        **run.costs(),
    }
    if validation is not None:
        chosen = choose_weight(judged_lists(validation, runs["validation"]))
        orders = fused_orders(lists, run, chosen.weight)
        row["fused"] = {
            "weight": chosen.weight,
            "adopted": chosen.weight > 0,
            "num_validation": chosen.num_lists,
            "validation_ndcg@10": chosen.ndcg,
            "validation_ndcg@10_before": chosen.before,
            **lists.figures(orders, seed=seed),
            **change(lists, orders, None, seed=seed),
        }
    count = min(len(run), len(runs["shuffled"]))
    few, control = lists.take(range(count)), runs["shuffled"].orders[:count]
    row["shuffled"] = {"num_lists": count}
    if few.hit_Q.any():
        row["shuffled"] |= {
            "ndcg@10_hits_random": float(few.ndcg([one.ids for one in mixed[:count]])[few.hit_Q].mean()),
            "ndcg@10_hits": float(few.ndcg(control)[few.hit_Q].mean()),
            "ndcg@10_hits_unshuffled": float(few.ndcg(run.orders[:count])[few.hit_Q].mean()),
            "kendall_tau": float(np.mean([tau(*pair) for pair in zip(run.orders, control, strict=False)])),
        }
    return row


def _sentence(row: dict[str, Any]) -> str:
    after, fused = row["after"], row.get("fused")
    more, (low, high) = after.get("ndcg@10_hits_change", 0.0), after.get("ndcg@10_hits_change_ci", (0.0, 0.0))
    beside = ""
    if fused is not None:
        adopted = f"weight {fused['weight']:g}" if fused["adopted"] else "not adopted"
        beside = f"fused {fused.get('ndcg@10_hits', 0.0):.4f} ({adopted}), "
    return (
        f"{row['name']}: {after['num_lists']} lists, NDCG@10 of hits {row['before'].get('ndcg@10_hits', 0.0):.4f} -> "
        f"{after.get('ndcg@10_hits', 0.0):.4f} ({more:+.4f} [{low:+.4f}, {high:+.4f}]), "
        f"{beside}{after['changed']:.0%} changed, "
        f"{row['ms_per_list']:.0f} ms, {row['prompt_tokens_per_list']:.0f} tokens a list"
    )


_JOBS: dict[str, Callable[..., None]] = {
    "rows": rows,
    "compare": compare,
    "reference": reference,
    "permutations": permutations,
    "publish": publish,
}


def main(argv: Sequence[str]) -> int:
    """Run one of the jobs; ``rows`` where none is named."""
    words = list(argv)
    job = words.pop(0) if words and not words[0].startswith("-") else "rows"
    if job not in _JOBS:
        sys.stderr.write(f"there is no job {job!r}; there are {', '.join(_JOBS)}\n")
        return 2
    example = "rerank_table --bundle bundle --data data --lm models/small --methods first --work table"
    return run_call(_JOBS[job], words, prog=f"rerank_table {job}", example=example)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
