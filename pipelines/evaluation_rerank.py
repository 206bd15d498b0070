"""Rows of reranked lists in an evaluation: the same users before and after.

Suffixes: Q = users, one list each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.bootstrap import mean_intervals, paired_difference
from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.metrics import MISS, ndcg_at, reciprocal_rank
from recsys.pipelines.rerank_lists import RerankLists, lists_of
from recsys.pipelines.rerank_options import RerankOptions
from recsys.pipelines.rerank_runs import RerankRun, run_lists
from recsys.pipelines.targets import RankedTargets
from recsys.retrieval.rerank.fusion import ChosenWeight, JudgedList, choose_weight, fused_places, rerank_scores

__all__ = ["fused_orders", "judged_lists", "rerank_rows", "weight_on_validation"]

_RULE = (
    "the first {top} items of {retriever} put in another order, all others below them in their old one; "
    "rows are of the same {users} users, drawn with the seed"
)
_SEEN = "; the head of embedding-feedback learned from targets of this split, and looks better than it is"

Ints = NDArray[np.int64]


def rerank_rows(
    bundle: Bundle,
    dataset: Dataset,
    split: str,
    ranked: RankedTargets,
    options: Sequence[RerankOptions],
    *,
    num_users: int,
    seed: int,
    progress: Callable[[str, int], Any],
) -> dict[str, Any]:
    """Figures of some users' lists before and after every reranker.

    Where the split is ``test``, the weight of a fused score is chosen on as many users of validation, and its row
    follows; a weight of 0 is said as "not adopted". Of a model that was trained on validation targets these are users
    whose targets it has not seen, and so are the users of all rows where the split is ``validation``.

    Args:
        bundle: made from the dataset.
        ranked: of the retriever whose lists are reranked, on all users of the split.
        num_users: users whose lists are reranked.
        seed: of the draw of users and of the intervals.
        progress: gives a context for a label and a number of lists, whose function is told of lists done.

    Raises:
        InputError: as opening the rerankers does, or the number of users is below 1.
    """
    if num_users < 1:
        raise InputError(f"--rerank-users must be at least 1, got {num_users}")
    top, retriever = options[0].top, ranked.name
    users = _unseen(options, dataset) if split == "validation" else None
    lists = lists_of(bundle, dataset, split, top, num_users, seed, retriever, users=users)
    before_Q = _full_ranks(lists, ranked, None)
    rows: dict[str, Any] = {retriever: _row(lists, before_Q, before_Q, seed=seed)}
    for one in options:
        reranker = one.open(bundle, training_only=True)
        name = f"{one.method}({retriever})"
        with progress(f"reranking: {one.method}", len(lists)) as advance:
            run = run_lists(reranker, lists.requests, advance=advance)
        after_Q = _full_ranks(lists, ranked, run.orders)
        rows[name] = _row(lists, after_Q, before_Q, seed=seed) | _moved(lists, run.orders)
        rows[name] |= run.costs() | {"settings": one.identity()} | one.model.priced()
        weight = one.weight
        if weight is None and split == "test" and not one.holds_earlier_score:
            with progress(f"validation: {one.method}", len(lists)) as advance:
                chosen, spent = weight_on_validation(
                    bundle,
                    dataset,
                    lambda requests, advance=advance, reranker=reranker: run_lists(  # type: ignore[misc]
                        reranker, requests, advance=advance
                    ),
                    top=top,
                    num_users=num_users,
                    seed=seed,
                    retriever=retriever,
                    users=one.unseen_users(dataset),
                )
            weight = chosen.weight
            rows[name]["validation"] = {
                "num_users": chosen.num_lists, "ndcg@10": chosen.ndcg, "ndcg@10_before": chosen.before,
                "cost": spent.usage.cost,
            }  # fmt: skip
        if weight is not None:
            orders = fused_orders(lists, run, weight)
            fused_Q = _full_ranks(lists, ranked, orders)
            said = {"weight": weight, "adopted": weight > 0}
            rows[f"{retriever} + {one.method}"] = (
                said | _row(lists, fused_Q, before_Q, seed=seed) | _moved(lists, orders)
            )
    protocol = {
        "split": split,
        "retriever": retriever,
        "top": top,
        "num_users": len(lists),
        "num_hits": int(lists.hit_Q.sum()),
        "seed": seed,
        "rule": _RULE.format(top=top, retriever=retriever, users=len(lists))
        + (_SEEN if split == "validation" and any(one.feedback is not None for one in options) else ""),
    }
    return {"protocol": protocol, "rows": rows}


def _unseen(options: Sequence[RerankOptions], dataset: Dataset) -> Ints | None:
    """Internal users whose validation targets none of the models was trained on; None = all."""
    found = [users for one in options if (users := one.unseen_users(dataset)) is not None]
    return functools.reduce(np.intersect1d, found) if found else None


def weight_on_validation(
    bundle: Bundle,
    dataset: Dataset,
    run: Callable[[Sequence[Any]], RerankRun],
    *,
    top: int,
    num_users: int,
    seed: int,
    retriever: str,
    users: Ints | None = None,
) -> tuple[ChosenWeight, RerankRun]:
    """The weight of a reranker's score beside the retriever's, chosen on lists of validation users, and their run.

    Args:
        run: orders lists, the first ones where time is short.
        top: candidates of a list.
        users: internal users to draw from, where the reranker was trained on the others; None = all.
    """
    lists = lists_of(bundle, dataset, "validation", top, num_users, seed, retriever, users=users)
    found = run(lists.requests)
    return choose_weight(judged_lists(lists, found)), found


def judged_lists(lists: RerankLists, run: RerankRun) -> list[JudgedList]:
    """The lists of a run, which may be fewer, with their targets."""
    return [
        JudgedList.of(result, [item.score for item in request.candidates], target)
        for result, request, target in zip(run.results, lists.requests, lists.target_ids, strict=False)
    ]


def fused_orders(lists: RerankLists, run: RerankRun, weight: float) -> list[list[Any]]:
    """Ids of each list by the fused score."""
    orders = []
    for result, request in zip(run.results, lists.requests, strict=False):
        places = fused_places([item.score for item in request.candidates], rerank_scores(result), weight)
        orders.append([request.ids[at] for at in places])
    return orders


def _full_ranks(lists: RerankLists, ranked: RankedTargets, orders: Sequence[Sequence[Any]] | None) -> Ints:
    """[Q] places of the targets in the whole catalogue."""
    row_of = {int(user): row for row, user in enumerate(ranked.requests.user)}
    whole_Q = ranked.rank_Q[[row_of[int(user)] for user in lists.user_Q]]
    inside_Q = lists.ranks(orders)
    return np.where(inside_Q < MISS, inside_Q, whole_Q)


def _row(lists: RerankLists, rank_Q: Ints, before_Q: Ints, *, seed: int) -> dict[str, Any]:
    """NDCG@10 and MRR, with intervals and the change, over all users and over those whose list holds the target."""
    row: dict[str, Any] = {}
    for suffix, at in (("", np.arange(len(rank_Q))), ("_hits", np.flatnonzero(lists.hit_Q))):
        if not len(at):
            continue
        user_Q = lists.user_Q[at]
        for name, figure in (("ndcg@10", lambda rank: ndcg_at(rank, 10)), ("mrr", reciprocal_rank)):
            value_Q = figure(rank_Q[at])
            (interval,) = mean_intervals(user_Q, value_Q[:, None], seed=seed)
            row |= {f"{name}{suffix}": float(value_Q.mean()), f"{name}{suffix}_ci": list(interval)}
        if rank_Q is not before_Q:
            more, interval = paired_difference(user_Q, ndcg_at(rank_Q[at], 10), ndcg_at(before_Q[at], 10), seed=seed)
            row |= {f"ndcg@10{suffix}_change": more, f"ndcg@10{suffix}_change_ci": list(interval)}
    return row


def _moved(lists: RerankLists, orders: Sequence[Sequence[Any]]) -> dict[str, float]:
    changed = [tuple(order[:10]) != one.ids[:10] for order, one in zip(orders, lists.requests, strict=True)]
    return {"changed": sum(changed) / max(len(changed), 1)}
