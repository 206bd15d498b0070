"""Readers while the catalogue changes and bundles take over: nothing withdrawn, nothing mixed, nothing fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from recsys.retrieval.page import Page
from recsys.retrieval.recommender import Recommender

AT = 1_702_000_000
READERS = 16


@dataclass
class Oracle:
    """What readers may see, noted before a change begins and after it has returned."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    withdrawn: dict[str, int] = field(default_factory=dict)
    """Items whose withdrawal has returned, in order; not those whose return has begun."""
    faults: list[str] = field(default_factory=list)
    num_pages: int = 0
    scores: dict[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)
    """(version, question) -> scores: one version gives one answer."""

    def gone(self) -> set[str]:
        with self.lock:
            return set(self.withdrawn)

    def note(self, question: str, page: Page, gone: set[str]) -> None:
        returned = set(page.item_ids)
        scores = tuple(hit.score for hit in page)
        with self.lock:
            self.num_pages += 1
            still = gone & set(self.withdrawn)  # those restored meanwhile may be returned again
            if returned & still:
                self.faults.append(f"{question}: {returned & still} were withdrawn ({page.version})")
            before = self.scores.setdefault((page.version, question), scores)
        if len(scores) != len(before) or any(abs(a - b) > 1e-4 for a, b in zip(scores, before, strict=True)):
            self.faults.append(f"{question}: two answers of {page.version}")


def run(rec: Recommender, bundles: list[Path], seconds: float, seed: int) -> Oracle:
    oracle, stop = Oracle(), threading.Event()
    known = rec.items["item_id"].to_list()

    def read(number: int) -> None:
        names = [name for name in rec.retrievers if number % 2 or name in ("dense", "memory", "hybrid")]
        at = number
        while not stop.is_set():
            at += 1
            name = names[at % len(names)]
            gone = oracle.gone()
            if at % 7 == 0:
                oracle.note("similar", rec.similar_items("i3", 8), gone)
            elif at % 11 == 0:
                frame = rec.recommend_frame(["u1", "u2"], k=5, at=AT)
                if set(frame["item_id"]) & gone & oracle.gone():
                    oracle.faults.append("recommend_frame returned a withdrawn item")
            else:
                user = f"u{at % 5}"
                page = rec.recommend(user, k=8, retrievers=(name,), at=AT, surface="home")
                oracle.note(f"{name} {user}", page, gone)

    def change() -> None:
        step = 0
        while not stop.is_set():
            step += 1
            item = known[(step * 7 + seed) % len(known)]
            if item == "i3":
                continue
            rec.update_items(withdraw=[item])
            with oracle.lock:
                oracle.withdrawn[item] = step
            if step % 3 == 0:
                back = next(iter(oracle.withdrawn))
                with oracle.lock:
                    del oracle.withdrawn[back]
                rec.update_items(restore=[back])
            if step % 4 == 0:
                vector = torch.randn(4, generator=torch.Generator().manual_seed(step)).tolist()
                rec.update_items([{"item_id": f"x{step}", "text": "red wood train", "vec": vector}])
            if step % 5 == 0:
                rec.update_items([{"item_id": "i6", "text": f"red {'ship' if step % 2 else 'car'} {step}"}])

    def swap() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            rec.swap(bundles[number % len(bundles)])
            time.sleep(0.05)

    with ThreadPoolExecutor(READERS + 2) as pool:
        jobs = [pool.submit(read, number) for number in range(READERS)] + [pool.submit(change), pool.submit(swap)]
        began = time.monotonic()
        while time.monotonic() - began < 90 and not any(job.done() for job in jobs):
            time.sleep(seconds if time.monotonic() - began < seconds else 0.2)
            if enough(oracle):
                break  # a busy machine takes longer to do anything at all
        stop.set()
        for job in jobs:
            job.result()
    return oracle


@pytest.fixture(scope="module")
def bundles(full_world: Any, grown_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two that answer differently: another catalogue and other weights of the hybrid."""
    new = pl.DataFrame({"item_id": ["m1"], "title": ["red"], "text": ["red"], "vec": [[1.0, 0.0, 0.0, 0.0]]})
    return [full_world.bundle, grown_bundle(tmp_path_factory.mktemp("threads") / "other", new)]


def enough(oracle: Oracle) -> bool:
    """Whether readers met several versions, of both bundles."""
    with oracle.lock:
        versions = {version for version, _ in oracle.scores}
    return oracle.num_pages >= 60 and len(versions) >= 6 and len({one.split(".")[0] for one in versions}) == 2


def check(oracle: Oracle) -> None:
    assert not oracle.faults, oracle.faults[:5]
    assert enough(oracle)


def test_readers_never_see_what_was_withdrawn_or_two_versions(bundles: list[Path]) -> None:
    check(run(Recommender.load(bundles[0]), bundles, seconds=3.0, seed=1))


@pytest.mark.slow
def test_the_same_for_a_minute(bundles: list[Path]) -> None:
    check(run(Recommender.load(bundles[0]), bundles, seconds=60.0, seed=2))


def test_changes_that_come_together_are_all_made(full_world: Any) -> None:
    rec = Recommender.load(full_world.bundle)
    start = threading.Barrier(6)

    def work(number: int) -> None:
        start.wait()
        rec.update_items([{"item_id": f"new {number}", "vec": None, "text": "red"}])
        rec.update_items(withdraw=[f"i{number}"])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(rec.withdrawn) == {f"i{number}" for number in range(6)}
    assert set(rec.items["item_id"].tail(6)) == {f"new {number}" for number in range(6)}
    assert rec._snapshot.number == 12
