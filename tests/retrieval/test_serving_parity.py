"""Every way to a page gives the same one: each starts from files in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

USERS = ["u1", "u27", "u5", "u30"]
"""With 4 to 23 events, so that windows are full, half empty, and on the move."""
K, RANKED = 9, 9
MIXED = "dense,generative,memory"

SERVE = """
import asyncio, json, sys
from recsys.bundle import Bundle
from recsys.retrieval.async_recommender import AsyncRecommender
from recsys.retrieval.history_sources import BundleHistories
from recsys.retrieval.recommender import Recommender

path, output, users, names, k, at = json.loads(sys.argv[1])

async def concurrently(rec, requests):
    async with AsyncRecommender(rec, max_batch=5, num_threads=2) as front:
        return list(await asyncio.gather(*(front.recommend(**fields) for fields in requests)))

def given(requests, cut=0):
    events = BundleHistories(Bundle.open(path)).events(users)
    rows = zip(requests, events, users, strict=True)
    return [
        {**fields, "user_id": None, "history": own[: len(own) - cut], "user_features": CITY[user], "cache_key": user}
        for fields, own, user in rows
    ]

CITY = {user: {"city": ["Rome", "Oslo"][int(user[1:]) % 2]} for user in users}
plain, keeps = Recommender.load(path, state_bytes=0), Recommender.load(path, state_bytes=10**7)
grows = Recommender.load(path, state_bytes=10**7)
found = {}
for name in names:
    asked = [{"user_id": user, "k": k, "at": at, "retrievers": tuple(name.split(","))} for user in users]
    grows.recommend_batch(given(asked, cut=2))
    found[name] = pages = {
        "one, not kept": [plain.recommend(**fields) for fields in asked],
        "batch, not kept": plain.recommend_batch(asked),
        "async, not kept": asyncio.run(concurrently(plain, asked)),
        "one, kept": [keeps.recommend(**fields) for fields in asked],
        "batch, kept": keeps.recommend_batch(asked),
        "async, kept": asyncio.run(concurrently(keeps, asked)),
        "given, kept": keeps.recommend_batch(given(asked)),
        "continued": [grows.recommend(**fields) for fields in given(asked)],
    }
    for way, rows in pages.items():
        pages[way] = [
            [[hit.item_id, hit.retriever, hit.score, list(hit.actions.values())] for hit in page] for page in rows
        ]
    table = plain.recommend_frame(users, k=k, at=at, retrievers=tuple(name.split(",")))
    probabilities = [f"prob_{action}" for action in plain.actions]
    pages["table"] = [
        [[*row[:3], list(row[3:])] for row in own.select("item_id", "retriever", "score", *probabilities).rows()]
        for own in (table.filter(table["user_id"] == user) for user in users)
    ]
    grows.states.clear()
counts = keeps.state_counts
assert counts.hits > counts.encoded > 0 and grows.state_counts.appended > 0, (counts, grows.state_counts)
json.dump(found, open(output, "w"))
"""

CANDIDATES = """
import json, sys
from recsys.pipelines.cli import main
for words in json.loads(sys.argv[1]):
    assert main(words) == 0
"""


def fresh(code: str, what: Any) -> None:
    command = [sys.executable, "-P", "-c", code, json.dumps(what)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_all_ways_to_a_page_give_the_same(serving_worlds: Any, tmp_path: Path) -> None:
    world = serving_worlds[1]
    (tmp_path / "users.txt").write_text("\n".join(USERS))
    names = ["dense", "dense_learned", "memory", "generative", "parallel", "set", "hybrid", MIXED]
    at = world.dataset.manifest.max_timestamp + 3600
    fresh(SERVE, [str(world.bundle), str(tmp_path / "pages.json"), USERS, names, K, at])
    flags: dict[str, Any] = {
        "bundle": world.bundle, "data": world.dataset.path, "k": K, "rank": RANKED, "at": at, "batch-users": 3,
        "users": tmp_path / "users.txt",
    }  # fmt: skip
    calls = []
    for number, name in enumerate(names):
        mine = {**flags, "output": tmp_path / f"lists {number}", "retrievers": name}
        calls.append(["candidates", *(word for flag, value in mine.items() for word in (f"--{flag}", str(value)))])
    fresh(CANDIDATES, calls)
    found = json.loads((tmp_path / "pages.json").read_text())
    for number, name in enumerate(names):
        lists = pl.read_parquet(tmp_path / f"lists {number}" / "*.parquet")
        probabilities = [column for column in lists.columns if column.startswith("prob_")]
        rows = {row["user_id"]: row for row in lists.iter_rows(named=True)}
        expected = found[name].pop("one, not kept")
        assert len(found[name]) == 8 and all(len(page) == K for page in expected)
        found[name]["candidates"] = [
            [list(hit) for hit in zip(
                rows[user]["item_ids"], rows[user]["retriever"], rows[user]["retrieval_scores"],
                zip(*(rows[user][column] for column in probabilities), strict=True), strict=True,
            )]
            for user in USERS
        ]  # fmt: skip
        for way, pages in found[name].items():
            for user, ours, theirs in zip(USERS, pages, expected, strict=True):
                where = f"{name}, {way}, {user}"
                assert [hit[:2] for hit in ours] == [hit[:2] for hit in theirs], where
                assert [hit[2] for hit in ours] == pytest.approx([hit[2] for hit in theirs], abs=1e-5), where
                np.testing.assert_allclose([h[3] for h in ours], [h[3] for h in theirs], atol=1e-5, err_msg=where)
