"""Memory of kept states: of one user beside what the layout says, and of the process over very many requests."""

from __future__ import annotations

import gc
import resource
from pathlib import Path

from recsys.pipelines.bench.case import Case
from recsys.pipelines.bench.serve_visits import Visits
from recsys.pipelines.bench.serve_ways import bench_bundle, recommenders
from recsys.state_store import UserStateStore

__all__ = ["growth_case", "memory_case"]

_MEASURED_BYTES = 96 << 20
"""Of the states that are kept to measure their memory."""
_USERS, _RETURNING = 160, 96


def memory_case(events: int, num_bytes: int = _MEASURED_BYTES) -> Case:
    """Memory of the process that kept states took, beside what their layout says."""
    bundle = bench_bundle(events, 32)
    assert bundle.histories is not None
    model, log = bundle.model, bundle.histories.events
    histories = [log.history(user) for user in range(16)]
    warm, store = (
        UserStateStore(model, model_hash=bundle.model_hash, max_bytes=size, host_bytes=0)
        for size in (num_bytes // 8, 2 * num_bytes)
    )
    shown = [len(history) - model.config.first_visible(len(history)) for history in histories]
    predicted = sum(map(store.layout.state_bytes, shown)) / len(shown)
    turns = max(1, int(num_bytes / predicted) // 16)
    for _ in range(3):
        warm.states([f"warm {user}" for user in range(16)], histories)
    before = _resident()
    for turn in range(turns):
        store.states([f"{turn} {user}" for user in range(16)], histories)
    users = store.num_states
    measured, kept = (_resident() - before) / users, store.used_bytes / users
    return Case(
        name=f"{events} events: memory of a user",
        shape={"window": events, "users": users, "page_rows": store.layout.page_rows},
        ours={"what": "resident memory", "bytes": measured, "bytes_in_use": kept},
        other={"what": "predicted from the layout", "bytes": predicted},
        ratio=predicted / max(1.0, measured),
        predicted_ratio=1.0,
    )


def growth_case(num_requests: int, *, events: int = 64, candidates: int = 200) -> Case:
    """Resident memory over very many requests with kept states, whose store is soon full."""
    bundle = bench_bundle(events, _USERS)
    way = recommenders(bundle, bundle, 2 * _RETURNING + 64)["kept"]
    visits = Visits(bundle, candidates, _RETURNING)
    curve: dict[int, float] = {}
    step = max(1, num_requests // 10)
    for begin in range(0, num_requests, step):
        for _ in range(0, step, 16):
            way.recommend_batch([visit.request for visit in visits.take(16)])
        gc.collect()
        curve[begin + step] = _resident() / 2**20
    points = list(curve.values())
    return Case(
        name=f"{events} events: memory over {num_requests:,} requests",
        shape={"window": events, "candidates": candidates, "requests": num_requests},
        ours={"what": "resident MiB", **{f"after_{at}": mib for at, mib in curve.items()}},
        other={"what": "after the first tenth", "mib": points[0]},
        ratio=points[0] / points[-1],
        predicted_ratio=1.0,
    )


def _resident() -> int:
    """Bytes of this process in memory; needs Linux."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()
