"""Batch candidates against a loop of ``Recommender.recommend`` at batch 1: same bundle, threads and process.

The batch time holds everything the command does, loading and writing included; the loop's holds the calls alone.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch.profiler import ProfilerActivity, profile

from recsys.dataset import Dataset
from recsys.index.memory_terms import MemoryWeights
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.pipelines.bench.case import Case
from recsys.pipelines.candidates import candidates
from recsys.pipelines.export import export_model
from recsys.pipelines.prepare.build import prepare_frames
from recsys.retrieval.recommender import Recommender

__all__ = ["bench_candidates"]

_NUM_ITEMS = 12_000
_ACTIONS = ("click", "like", "")
_MATRIX_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_scaled_dot_product_flash_attention_for_cpu")
_PEAK = """
import resource, sys
from recsys.pipelines.cli import main
code = main(sys.argv[1:])
sys.stdout.write(f"peak_kib={resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}")
sys.exit(code)
"""


def bench_candidates(*, long: bool) -> list[Case]:
    """Retrieval alone (the headline), with ranking, and peak memory at two numbers of users."""
    num_users = 40_000 if long else 8_000
    with tempfile.TemporaryDirectory(prefix="recsys-bench-") as name:
        folder = Path(name)
        dataset = _dataset(folder / "data", num_users)
        weights = MemoryWeights.decaying(0.5, {"transition": 1.0, "text": 2.0}, recent=4, decay=0.6)
        export_model(_model(dataset), dataset, folder / "bundle", histories=True, memory_weights=weights)
        retrieval = _case("retrieval", folder, dataset, k=100, rank=0, loop_users=num_users // 20)
        # Ranking costs more a user in both ways: a part of the users says as much.
        ranked = _case("ranking of 500", folder, dataset, k=500, rank=500, loop_users=num_users // 100, share=8)
        return [retrieval, ranked, _memory(folder, dataset)]


def _dataset(folder: Path, num_users: int) -> Dataset:
    """Random events with skewed lengths, a clock, two surfaces and item text."""
    rng = np.random.default_rng(0)
    length_U = np.clip(np.exp(rng.normal(2.7, 0.8, num_users)), 4, 64).astype(np.int64)
    total = int(length_U.sum())
    popularity_I = 1.0 / np.arange(1, _NUM_ITEMS + 1) ** 0.8
    interactions = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(num_users), length_U),
            "item_id": rng.choice(_NUM_ITEMS, total, p=popularity_I / popularity_I.sum()),
            "timestamp": 1_700_000_000 + np.arange(total) * 60,
            "action": np.array(_ACTIONS)[rng.integers(0, len(_ACTIONS), total)],
            "surface": np.array(["home", "mail"])[rng.integers(0, 2, total)],
        }
    )
    words = np.array([f"word{i}" for i in range(800)])
    text = [" ".join(row) for row in words[rng.integers(0, 800, (_NUM_ITEMS, 8))]]
    items = pl.DataFrame({"item_id": np.arange(_NUM_ITEMS), "title": text})
    return prepare_frames(interactions, items, output=folder)


def _model(dataset: Dataset) -> UnifiedModel:
    manifest, content = dataset.manifest, dataset.content
    torch.manual_seed(0)
    model = UnifiedModel(
        ModelConfig(
            num_items=dataset.num_items,
            num_actions=len(manifest.actions),
            num_surfaces=len(manifest.surfaces),
            positive_mask=manifest.positive_mask,
            content_dim=0 if content is None else content.shape[1],
            window=64,
        )
    )
    counts_I = torch.from_numpy(dataset.train_item_counts())
    model.items.set_catalogue(None if content is None else torch.from_numpy(content), counts_I > 0)
    return model.eval()


def _case(name: str, folder: Path, dataset: Dataset, *, k: int, rank: int, loop_users: int, share: int = 1) -> Case:
    num_users = dataset.num_users // share
    users = folder / f"users-{num_users}.txt"
    users.write_text("\n".join(map(str, dataset.user_ids.head(num_users))), encoding="utf-8")

    def batch(output: str) -> float:
        start = time.perf_counter()
        candidates(folder / "bundle", dataset.path, folder / f"{output}-{k}-{rank}", k=k, rank=rank, users=users)
        return time.perf_counter() - start

    batch("warm")
    recommender = Recommender.load(folder / "bundle")
    asked = dataset.user_ids.head(num_users).sample(loop_users, seed=0).to_list()
    at = dataset.manifest.max_timestamp
    batch_s, loop_s = [], []
    rounds = 3
    for number in range(rounds):  # the ways take turns, so that a busy machine slows both
        batch_s.append(batch(f"out-{number}"))
        start = time.perf_counter()
        for user in asked[number::rounds]:
            recommender.recommend(user_id=user, k=k, at=at, rank=bool(rank), candidates=k)
        loop_s.append((time.perf_counter() - start) / len(asked[number::rounds]))
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        traced_s = batch("traced")
    products_s = sum(e.self_cpu_time_total for e in trace.key_averages() if e.key in _MATRIX_PRODUCTS) / 1e6
    batch_rate, loop_rate = num_users / float(np.median(batch_s)), 1.0 / float(np.median(loop_s))
    return Case(
        name=name,
        shape={"users": num_users, "items": dataset.num_items, "k": k, "rank": rank, "dim": 64, "window": 64},
        ours={
            "what": "recsys candidates, loading and writing included",
            "users_per_s": batch_rate,
            "share_in_matrix_products": products_s / traced_s,
        },
        other={"what": "Recommender.recommend, one user at a time", "users_per_s": loop_rate, "users": len(asked)},
        ratio=batch_rate / loop_rate,
        predicted_ratio=None,
    )


def _memory(folder: Path, dataset: Dataset) -> Case:
    """Peak memory of the whole process for an eighth of the users and for all, of one dataset."""
    peaks = []
    for num_users in (dataset.num_users // 8, dataset.num_users):
        users = folder / f"memory-{num_users}.txt"
        users.write_text("\n".join(map(str, dataset.user_ids.head(num_users))), encoding="utf-8")
        flags = {
            "--bundle": folder / "bundle", "--data": dataset.path, "--output": folder / f"memory-{num_users}",
            "--users": users, "--k": 100, "--shard-users": 64,
        }  # fmt: skip
        words = [str(word) for pair in flags.items() for word in pair]
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, "candidates", *words], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout.rsplit("peak_kib=", 1)[1]) / 1024)
    small, large = peaks
    return Case(
        name="peak memory",
        shape={"users": dataset.num_users, "other_users": dataset.num_users // 8, "shard_users": 64},
        ours={"what": "all users", "peak_mib": large},
        other={"what": "an eighth of the users", "peak_mib": small},
        ratio=small / large,
        predicted_ratio=1.0,
    )
