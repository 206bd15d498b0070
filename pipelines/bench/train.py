"""Training steps on packed batches against padded ones: the same sequences, model, losses and optimiser.

A padded batch is the packed one with every sequence filled up to the longest of its batch with events that nothing
predicts; softmax and targets are the same in all ways, so that only what padding costs is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.events import EventLog
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig, RetrievalLoss
from recsys.objective import Objective
from recsys.packing import pack_windows
from recsys.pipelines.bench.case import Case, interleaved_seconds
from recsys.training_batches import TrainingBatch, chunk_sorted_batches

__all__ = ["bench_train"]

Ints = NDArray[np.int64]
_NUM_ITEMS = 12_000
_BATCH_TOKENS = {"toys": 256, "skewed": 4096}
"""What `recsys fit` chooses for the log itself and for one of two million events."""
_SOFTMAX: dict[str, RetrievalLoss] = {"toys": "full", "skewed": "sampled"}
"""The full softmax costs the same in all ways and hides the encoder; long skewed histories are those of large
catalogues, which train with the sampled one."""
_CLOCK = {"skewed"}
"""Cases whose log has a clock, so that attention carries the bias of time differences."""
_STEPS = {"toys": 48, "skewed": 6}

# Events per user of a log with a few very active users, at 64 equidistant quantiles: log-normal, median 12, sigma 1.3.
# Users are drawn between the quantiles, so that all lengths occur.
SKEWED_LENGTHS = (
    2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 5, 5, 5, 5, 6, 6, 7, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 14,
    14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 25, 26, 28, 30, 32, 34, 37, 40, 43, 47, 51, 56, 63, 71, 81, 96, 119, 159,
    278,
)  # fmt: skip
# Training events of users of Amazon Toys at 64 equidistant quantiles.
TOYS_LENGTHS = (
    3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5,
    5, 5, 5, 6, 6, 6, 6, 6, 7, 7, 7, 7, 8, 8, 8, 9, 9, 10, 10, 11, 12, 13, 15, 18, 23, 41,
)  # fmt: skip


def bench_train(*, long: bool) -> list[Case]:
    """One case per list of lengths; the headline is the skewed one."""
    repeats = {"toys": 21, "skewed": 7}
    return [
        _case(name, lengths, repeats[name] * (3 if long else 1))
        for name, lengths in (("skewed", SKEWED_LENGTHS), ("toys", TOYS_LENGTHS))
    ]


def _case(name: str, lengths: Sequence[int], repeats: int) -> Case:
    budget = _BATCH_TOKENS[name]
    rng = np.random.default_rng(0)
    users = _STEPS[name] * budget // int(np.mean(lengths))
    length_U = np.rint(np.interp(rng.random(users), np.linspace(0, 1, len(lengths)), lengths)).astype(np.int64)
    log = _log(length_U, rng)
    cuts = {
        "packed": chunk_sorted_batches(length_U, length_U, budget, rng),
        "length-bucketed": _bucketed(length_U, budget, rng),
        "pad to longest": _cut(rng.permutation(users), length_U, budget),
    }
    batches = {way: [_batch(log, length_U, part, pad=way != "packed") for part in parts] for way, parts in cuts.items()}
    torch.manual_seed(0)
    model = UnifiedModel(_config(int(max(lengths)), _SOFTMAX[name], name in _CLOCK)).train()
    objective = Objective(model, torch.ones(_NUM_ITEMS, dtype=torch.int64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def epoch(parts: list[TrainingBatch]) -> None:
        for part in parts:
            optimizer.zero_grad()
            objective(part).total.backward()
            optimizer.step()

    def once(way: str) -> Callable[[], None]:
        return lambda: epoch(batches[way])

    seconds = interleaved_seconds({way: once(way) for way in batches}, repeats=repeats)
    events = int(length_U.sum())
    rows = {way: sum(len(part.events.item_T) for part in parts) / events for way, parts in batches.items()}

    def figures(way: str, what: str) -> dict[str, object]:
        return {
            "what": what,
            "events_per_s": events / seconds[way],
            "rows_per_event": rows[way],
            "steps": len(batches[way]),
        }

    longest = figures("pad to longest", "")
    bucketed = figures("length-bucketed", "buckets of powers of two, padded to the longest of the batch")
    return Case(
        name=name,
        shape={
            "users": users,
            "events": events,
            "items": _NUM_ITEMS,
            "batch_tokens": budget,
            "softmax": _SOFTMAX[name],
        },
        ours=figures("packed", "packed, no padding"),
        other={
            **bucketed,
            **{f"pad_to_longest_{key}": value for key, value in longest.items() if key != "what"},
            "pad_to_longest_ratio": seconds["pad to longest"] / seconds["packed"],
        },
        ratio=seconds["length-bucketed"] / seconds["packed"],
        predicted_ratio=None,
    )


def _config(longest: int, softmax: RetrievalLoss, clock: bool) -> ModelConfig:
    return ModelConfig(
        num_items=_NUM_ITEMS,
        num_actions=1,
        num_surfaces=1,
        positive_mask=1,
        window=4 * -(-longest // 4),
        use_actions=False,
        use_surfaces=False,
        use_time=clock,
        retrieval_loss=softmax,
    )


def _log(length_U: Ints, rng: np.random.Generator) -> EventLog:
    total = int(length_U.sum())
    ones, zeros = np.ones(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
    return EventLog(
        offsets=np.concatenate([[0], np.cumsum(length_U)]),
        item=rng.integers(0, _NUM_ITEMS, total),
        timestamp=np.arange(total),
        yes=ones,
        known=ones,
        surface=zeros,
        value=zeros.astype(np.float32),
        time_known=np.ones(total, dtype=bool),
    )


def _cut(order: Ints, length_U: Ints, budget: int) -> list[Ints]:
    """Users in order, in parts of about ``budget`` events."""
    part_of = (np.cumsum(length_U[order]) - 1) // budget
    return np.split(order, np.flatnonzero(np.diff(part_of)) + 1)


def _bucketed(length_U: Ints, budget: int, rng: np.random.Generator) -> list[Ints]:
    """The usual length buckets: upper edges at powers of two, batches drawn at random inside a bucket."""
    bucket_U = np.ceil(np.log2(length_U)).astype(np.int64)
    order = rng.permutation(len(length_U))
    parts: list[Ints] = []
    for bucket in np.unique(bucket_U):
        parts += _cut(order[bucket_U[order] == bucket], length_U, budget)
    return parts


def _batch(log: EventLog, length_U: Ints, user: Ints, *, pad: bool) -> TrainingBatch:
    """One batch; padded, its sequences are filled up with events of an unknown item that nothing predicts."""
    length = length_U[user]
    events = pack_windows(log, user, np.zeros_like(user), length)
    target = events.item_T.roll(-1)
    target[events.offsets_S1[1:] - 1] = -1
    if pad:
        longest = int(length.max())
        real = torch.from_numpy(np.repeat(np.arange(len(user)) * longest, length)) + events.position_T
        whole = pack_windows(
            _log(np.full(len(user), longest), np.random.default_rng(0)),
            np.arange(len(user)),
            np.zeros_like(user),
            np.full(len(user), longest),
        )
        filled = torch.full_like(whole.item_T, -1).index_copy(0, real, events.item_T)
        target = torch.full_like(whole.item_T, -1).index_copy(0, real, target)
        events = replace(whole, item_T=filled)
    zeros = torch.zeros_like(events.item_T)
    none = torch.zeros(0, dtype=torch.int64)
    return TrainingBatch(
        events=events,
        target_T=target,
        request_time_T=zeros,
        request_surface_T=zeros,
        request_known_T=zeros.bool(),
        value_T=zeros.float(),
        start_S=none,
        start_target_F=none,
        start_time_F=none,
        start_surface_F=none,
        start_known_F=none.bool(),
        candidates=None,
    )
