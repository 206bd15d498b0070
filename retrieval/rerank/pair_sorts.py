"""Sorting by comparisons that come in batches and may contradict each other.

Each sort is a generator: it yields pairs of places (i, j), i < j, is sent for each how far i is before j (1, 0, or .5
where there is no saying), and returns the places, best first. Where there is no saying, the earlier order stays.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from itertools import combinations

from recsys.retrieval.rerank.in_step import Work, in_step

__all__ = ["Pair", "all_pairs", "heap_sort", "sliding_sort", "win_shares"]

Pair = tuple[int, int]
PairWork = Work[Pair, float, list[int]]


def win_shares(count: int, preferred: dict[Pair, float]) -> list[float]:
    """Share of the other places that each place is before, ties half.

    >>> win_shares(3, {(0, 1): 0.0, (0, 2): 0.5, (1, 2): 1.0})
    [0.25, 1.0, 0.25]
    """
    shares = [0.0] * count
    for (left, right), value in preferred.items():
        shares[left] += value
        shares[right] += 1 - value
    return [share / max(count - 1, 1) for share in shares]


def all_pairs(count: int, top: int) -> PairWork:
    """Every pair once, in one batch; the order of the win shares. ``top`` changes nothing."""
    pairs = list(combinations(range(count), 2))
    shares = win_shares(count, dict(zip(pairs, (yield pairs), strict=True)))
    return sorted(range(count), key=lambda place: -shares[place])


def heap_sort(count: int, top: int) -> PairWork:
    """The best ``top`` places by a heap, O(count + top·log count) comparisons; the others in their earlier order.

    Parts of the heap that do not touch are made at the same time.
    """
    heap = list(range(count))
    start = count // 2 - 1
    while start >= 0:
        level = (start + 1).bit_length() - 1
        first = 2**level - 1
        yield from _together(heap, list(range(first, start + 1)))
        start = first - 1
    best: list[int] = []
    while heap and len(best) < top:
        best.append(heap[0])
        last = heap.pop()
        if heap:
            heap[0] = last
            yield from _sink(heap, 0)
    return best + sorted(heap)


def _together(heap: list[int], nodes: list[int]) -> Generator[list[Pair], list[float], None]:
    """Sink nodes of one level, whose subtrees are apart."""
    step = in_step([_sink(heap, node) for node in nodes])
    try:
        asked = next(step)
        while True:
            asked = step.send((yield [pair for _, pair in asked]))
    except StopIteration:
        return


def _sink(heap: list[int], node: int) -> Work[Pair, float, None]:
    while (child := 2 * node + 1) < len(heap):
        if child + 1 < len(heap):
            child += (yield from _first(heap[child], heap[child + 1])) == heap[child + 1]
        if (yield from _first(heap[node], heap[child])) == heap[node]:
            return
        heap[node], heap[child] = heap[child], heap[node]
        node = child


def _first(one: int, other: int) -> Work[Pair, float, int]:
    """The place that comes first of two."""
    left, right = min(one, other), max(one, other)
    (value,) = yield [(left, right)]
    return right if value < 0.5 else left


def sliding_sort(count: int, top: int) -> PairWork:
    """``top`` passes of neighbours changing places, from the tail; ends with a pass that changes nothing.

    A pair changes places only where the later one is clearly preferred.
    """
    order = list(range(count))
    for done in range(min(top, count - 1)):
        changed = False
        for at in range(count - 1, done, -1):
            upper, lower = order[at - 1], order[at]
            (value,) = yield [(min(upper, lower), max(upper, lower))]
            preferred = value if upper < lower else 1 - value
            if preferred < 0.5:
                order[at - 1], order[at] = lower, upper
                changed = True
        if not changed:
            break
    return order


SORTS: dict[str, Callable[[int, int], PairWork]] = {"all": all_pairs, "heap": heap_sort, "sliding": sliding_sort}
