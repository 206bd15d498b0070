"""What one encoding for retrieval and ranking, and kept states, save a service.

The same requests (the 200 or 500 best of 10,000 items by exact search, without those of the history, then ranked; a
page of 20) are answered by a :class:`~recsys.retrieval.recommender.Recommender` each:

(a) two models, each of which encodes the history: one for retrieval, one for ranking. It is as cheap as two models can
be made: :class:`recsys.pipelines.bench.serve_ways.TwoEncodings` says how;
(b) one encoding, whose keys and values ranking reads;
(c) the same with kept states: four in five users return, with one to three new events each.

Histories are longer than the window W and stand at any phase of its sliding by W/4, so that all ways see between 3/4
and all of it, and windows slide at their natural rate. W is 8/7 of the events that a case names: so many are seen on
average. One worker thread computes batches of the requests that wait, through
:class:`~recsys.retrieval.async_recommender.AsyncRecommender`. *Closed loop*: a fixed number of clients, each of which
sends its next request when it has its page. *Open loop*: all ways get the same requests at the same random times, at a
rate that keeps (a) busy for .7 of the time; a latency counts from when the request was due. Ways take turns every few
requests, a ratio is the median over the rounds.

Counted per layer: see :func:`recsys.pipelines.bench.serve_visits.counted_ratio`. ``counted_as_seen`` is the same of the
requests as they were: windows that are not full, and those that slid.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from recsys.pipelines.bench.case import Case
from recsys.pipelines.bench.serve_memory import growth_case, memory_case
from recsys.pipelines.bench.serve_visits import Visit, Visits, counted_ratio, seen_ratio
from recsys.pipelines.bench.serve_ways import DIM, NUM_ITEMS, bench_bundle, recommenders
from recsys.retrieval.async_recommender import AsyncRecommender
from recsys.retrieval.recommender import Recommender

__all__ = ["bench_serve", "shape_cases", "window_of"]

_SHAPES = ((1024, 200), (1024, 500), (256, 200), (256, 500), (64, 200), (64, 500))
"""(events, candidates); the first one is the headline."""
_CLIENTS = 16
"""Of the closed loop."""
_RETURNING = 96
_USERS = 160
_LOAD = 0.7
_LONG_REQUESTS = 100_000


def bench_serve(*, long: bool) -> list[Case]:
    """Cases of every shape; ``long``: three times the rounds, and memory over 10^5 requests."""
    cases = [
        case
        for events, candidates in _SHAPES
        for case in shape_cases(events, candidates, rounds=21 if long else 7, open_s=12.0 if long else 4.0)
    ]
    cases += [memory_case(events) for events in (1024, 256, 64)]
    return [*cases, growth_case(_LONG_REQUESTS)] if long else cases


@dataclass(slots=True)
class _Times:
    """Of one way: seconds of each slice of the closed loop, and latencies."""

    slice_s: list[float] = field(default_factory=list)
    closed_s: list[float] = field(default_factory=list)
    alone_s: list[float] = field(default_factory=list)
    open_s: list[float] = field(default_factory=list)


def window_of(events: int) -> int:
    """The window that shows about so many events on average; a multiple of four.

    >>> [window_of(events) for events in (1024, 256, 64)]
    [1172, 292, 72]
    """
    return 4 * round(2 * events / 7)


def shape_cases(
    events: int, candidates: int, *, rounds: int, open_s: float, num_users: int = _USERS, returning: int = _RETURNING
) -> list[Case]:
    """Everything that is measured with one number of events and candidates.

    Args:
        events: that the model sees on average. candidates: that are ranked.
        rounds: turns of the ways; 20 or more requests in each.
        open_s: seconds of random arrivals, for each way.
    """
    window = window_of(events)
    bundle, plain = bench_bundle(window, num_users), bench_bundle(window, num_users, plain=True)
    ways = recommenders(bundle, plain, 2 * returning + 64)
    visits = Visits(bundle, candidates, returning)
    for recommender in (ways["kept"], ways["few kept"]):
        for visit in visits.first():
            recommender.recommend_batch([visit.request])
    _check(ways, visits.take(10))
    times, seen = asyncio.run(_measured(ways, visits, _CLIENTS, rounds, open_s))
    shape = {
        "events": events,
        "window": window,
        "candidates": candidates,
        "items": NUM_ITEMS,
        "dim": DIM,
        "blocks": 2,
        "heads": 2,
        "clients": _CLIENTS,
        "threads": torch.get_num_threads(),
    }
    return _cases(f"{events} events, {candidates} candidates", shape, times, seen)


def _check(ways: dict[str, Recommender], visits: Sequence[Visit]) -> None:
    """All ways but the plain one answer alike, or they do not do the same work."""
    pages = {name: way.recommend_batch([visit.request for visit in visits]) for name, way in ways.items()}
    for name in ("shared", "kept", "few kept"):
        for ours, theirs in zip(pages[name], pages["separate"], strict=True):
            ours_of = {hit.item_id: hit.actions for hit in ours}
            theirs_of = {hit.item_id: hit.actions for hit in theirs}
            both = ours_of.keys() & theirs_of.keys()
            far = max((abs(ours_of[item][name] - p) for item in both for name, p in theirs_of[item].items()), default=1)
            if len(both) < len(ours) - 1 or far > 1e-5:  # equal probabilities may round to another order at the end
                raise RuntimeError(f"pages of {name} and separate differ ({len(both)} items, {far}): not the same work")


async def _measured(
    ways: dict[str, Recommender], visits: Visits, clients: int, rounds: int, open_s: float
) -> tuple[dict[str, _Times], list[Visit]]:
    times = {name: _Times() for name in ways}
    seen: list[Visit] = []
    size = max(20, 5 * clients)
    fronts = {name: AsyncRecommender(way, max_batch=clients, max_queue=1 << 20) for name, way in ways.items()}
    for front in fronts.values():
        await front.__aenter__()
    for number in range(rounds + 1):
        some, alone = visits.take(size), visits.take(5)
        for name in _turn(list(ways), number):
            took = await _closed(fronts[name], some, clients, times[name].closed_s if number else [])
            single = await _closed_alone(ways[name], alone)
            if number:  # the first round warms up
                times[name].slice_s.append(took)
                times[name].alone_s += single
        seen += some if number else []
    rate = _LOAD * size / statistics.median(times["separate"].slice_s)
    parts = 4
    for number in range(parts):
        some = visits.take(max(5, round(rate * open_s / parts)))
        due_s = np.cumsum(np.random.default_rng(number).exponential(1 / rate, len(some)))
        for name in _turn(list(ways), number):
            times[name].open_s += await _open(fronts[name], some, due_s.tolist())
    for front in fronts.values():
        await front.close()
    return times, seen


def _turn(names: list[str], number: int) -> list[str]:
    return names[number % len(names) :] + names[: number % len(names)]


async def _closed(front: AsyncRecommender, visits: Sequence[Visit], clients: int, latency_s: list[float]) -> float:
    """Seconds that some clients take for all visits."""
    waiting = iter(visits)

    async def client() -> None:
        for visit in waiting:
            start = time.perf_counter()
            await front.recommend_request(visit.request)
            latency_s.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - start


async def _closed_alone(recommender: Recommender, visits: Sequence[Visit]) -> list[float]:
    """Seconds of each visit without a front, one by one."""
    seconds = []
    for visit in visits:
        start = time.perf_counter()
        recommender.recommend_batch([visit.request])
        seconds.append(time.perf_counter() - start)
    return seconds


async def _open(front: AsyncRecommender, visits: Sequence[Visit], due_s: Sequence[float]) -> list[float]:
    """Seconds from when each visit was due to its page."""
    begin = time.perf_counter()

    async def one(visit: Visit, due: float) -> float:
        await front.recommend_request(visit.request)
        return time.perf_counter() - begin - due

    under_way = []
    for visit, due in zip(visits, due_s, strict=True):
        await asyncio.sleep(max(0.0, due - (time.perf_counter() - begin)))
        under_way.append(asyncio.create_task(one(visit, due)))
    return list(await asyncio.gather(*under_way))


def _cases(name: str, shape: dict[str, int], times: dict[str, _Times], seen: Sequence[Visit]) -> list[Case]:
    events, candidates, clients = shape["events"], shape["candidates"], shape["clients"]
    size = len(seen) // len(times["kept"].slice_s)
    shape = {**shape, "requests": len(seen), "slid": _num_slid(seen)}
    two, one, kept, few = "two models, two encodings", "one encoding", "kept states", "kept states of few users"
    shared_counted, kept_counted = counted_ratio(events, candidates, kept=False), counted_ratio(events, candidates)

    def closed(way: str) -> dict[str, float]:
        rate = size / statistics.median(times[way].slice_s)
        return {"requests_per_s": rate, **_percentiles(times[way].closed_s)}

    def faster(way: str, than: str = "separate") -> float:
        pairs = zip(times[than].slice_s, times[way].slice_s, strict=True)
        return statistics.median(slow / fast for slow, fast in pairs)

    def case(
        what: str, ours: dict[str, object], other: dict[str, object], ratio: float, predicted: float | None
    ) -> Case:
        return Case(name=f"{name}: {what}", shape=shape, ours=ours, other=other, ratio=ratio, predicted_ratio=predicted)

    def figures(way: str, label: str, **more: float) -> dict[str, object]:
        return {"what": label, **closed(way), **more}

    def opened(way: str) -> dict[str, float]:
        return _percentiles(times[way].open_s)

    def alone(way: str) -> dict[str, float]:
        return {"mean_ms": 1e3 * statistics.fmean(times[way].alone_s), **_percentiles(times[way].alone_s)}

    seen_counted = seen_ratio(seen, candidates)
    ratio = faster("kept")
    return [
        case(
            kept,
            figures("kept", kept, share_of_counted=ratio / kept_counted, counted_as_seen=seen_counted),
            figures("separate", two),
            ratio,
            kept_counted,
        ),
        case(one, figures("shared", one), figures("separate", two), faster("shared"), shared_counted),
        case(few, figures("few kept", few), figures("separate", two), faster("few kept"), None),
        case(
            f"open loop, {_LOAD * closed('separate')['requests_per_s']:.3g} requests a second",
            {"what": kept, **opened("kept"), **{f"one_encoding_{key}": ms for key, ms in opened("shared").items()}},
            {"what": two, **opened("separate")},
            opened("separate")["p50_ms"] / opened("kept")["p50_ms"],
            None,
        ),
        case(
            "one request at a time",
            {"what": kept, **alone("kept"), **{f"one_encoding_{key}": ms for key, ms in alone("shared").items()}},
            {"what": two, **alone("separate")},
            alone("separate")["mean_ms"] / alone("kept")["mean_ms"],
            kept_counted,
        ),
        case(
            f"{clients} clients against plain attention",
            {"what": one, **closed("shared"), "kept_states_ratio": faster("kept", "plain")},
            {
                "what": "one encoding by scaled_dot_product_attention(is_causal=True) without times",
                **closed("plain"),
                **{f"alone_{key}": ms for key, ms in alone("plain").items()},
            },
            faster("shared", "plain"),
            None,
        ),
    ]


def _num_slid(seen: Sequence[Visit]) -> int:
    """Visits of returning users whose window moved."""
    return sum(visit.num_new is None and not str(visit.request.cache_key).startswith("new") for visit in seen)


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(np.array(seconds) * 1e3, [50, 99]).tolist()
    return {"p50_ms": p50, "p99_ms": p99}
