"""One order out of several, by reciprocal ranks: scores of different units need not be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["K", "fused_ranks"]

K = 60
"""Of Cormack, Clarke and Büttcher, "Reciprocal rank fusion outperforms Condorcet" (2009)."""


def fused_ranks(
    lists: Mapping[str, Sequence[int]], *, k: float = K, weights: Mapping[str, float] | None = None
) -> list[tuple[int, float]]:
    """Every number of any list with its sum of w / (k + rank), best first.

    Equal sums go to the one with the better best rank, then to the smaller number.

    Args:
        lists: name to numbers, best first; where one repeats, its first place counts.
        k: above 0; the larger, the less the first places stand out.
        weights: of each list, at least 0; 1 where it is not named. A list of weight 0 adds nothing, not even its
            numbers.

    >>> [number for number, _ in fused_ranks({"bm25": [7, 3, 9], "dense": [3, 7]})]
    [3, 7, 9]
    """
    if not k > 0:
        raise ValueError(f"k must be above 0, got {k!r}")
    score: dict[int, float] = {}
    best: dict[int, int] = {}
    for name in sorted(lists):  # sums do not depend on the order in which lists are named
        weight = 1.0 if weights is None else weights.get(name, 1.0)
        if not weight >= 0:
            raise ValueError(f"the weight of {name} must be at least 0, got {weight!r}")
        if weight == 0:
            continue
        for rank, number in enumerate(dict.fromkeys(lists[name]), start=1):
            score[number] = score.get(number, 0.0) + weight / (k + rank)
            best[number] = min(best.get(number, rank), rank)
    return sorted(score.items(), key=lambda pair: (-pair[1], best[pair[0]], pair[0]))
