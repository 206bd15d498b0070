"""Figures of a reranker on lists, beside those of the lists as they are."""

from __future__ import annotations

from typing import Any

from recsys.bootstrap import paired_difference
from recsys.pipelines.console import progress_bar, stdout_console
from recsys.pipelines.rerank_lists import RerankLists
from recsys.retrieval.rerank.fusion import fused_places, rerank_scores
from recsys.retrieval.rerank.reranker import Reranker

__all__ = ["measured", "say_figures"]

_AT_ONCE = 16
"""Lists that are measured together."""


def measured(
    reranker: Reranker, lists: RerankLists, seed: int, label: str, *, weight: float | None = None
) -> dict[str, Any]:
    """Figures of a reranker beside those of the lists as they are.

    Args:
        reranker: any.
        lists: with what was chosen.
        seed: of the intervals.
        label: for the progress bar.
        weight: of the reranker's score beside that of the list, both standardised; None = its order alone.
    """
    orders: list[tuple[Any, ...]] = []
    tokens, seconds = 0, 0.0
    with progress_bar(f"measuring {label}", len(lists), unit="lists") as advance:
        for low in range(0, len(lists), _AT_ONCE):
            requests = lists.requests[low : low + _AT_ONCE]
            results = reranker.rerank(requests)
            for request, result in zip(requests, results, strict=True):
                if weight is None:
                    orders.append(result.ids)
                    continue
                places = fused_places([item.score for item in request.candidates], rerank_scores(result), weight)
                orders.append(tuple(request.ids[place] for place in places.tolist()))
            tokens += sum(result.usage.prompt_tokens + result.usage.generated_tokens for result in results)
            seconds += sum(result.usage.seconds for result in results)
            advance(len(results))
    ours, given = lists.ndcg(orders), lists.ndcg()
    difference, interval = paired_difference(lists.user_Q, ours, given, seed=seed)
    return {
        **lists.figures(orders, seed=seed),
        "given_ndcg@10_hits": float(given.mean()),
        "minus_given": difference,
        "minus_given_ci": list(interval),
        "tokens_per_list": tokens / len(lists),
        "ms_per_list": 1000 * seconds / len(lists),
    }


def say_figures(after: dict[str, Any], before: dict[str, Any] | None = None) -> None:
    """One line on the console."""
    low, high = after["minus_given_ci"]
    untrained = "" if before is None else f"{before['ndcg@10_hits']:.4f} before training, "
    stdout_console().print(
        f"NDCG@10 of {after['num_lists']} test lists that hold their target: {after['given_ndcg@10_hits']:.4f} as "
        f"retrieved, {untrained}{after['ndcg@10_hits']:.4f} after ({after['minus_given']:+.4f} beside retrieval, "
        f"{low:+.4f} to {high:+.4f}; {after['changed']:.0%} of the lists changed)"
    )
