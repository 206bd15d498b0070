"""Damaged bundles and odd requests: an answer, or one clear line; no crash, no hang."""

from __future__ import annotations

import importlib.util
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.dataset import Dataset
from recsys.index.memory_terms import MemoryWeights
from recsys.model import UnifiedModel
from recsys.pipelines.export import export_model
from recsys.retrieval.recommender import Recommender

FUZZ = Path(__file__).parent
SLOWEST_S = 60.0
"""For one damaged bundle or one request, on a machine that does much else at the same time."""
ONE_BY_ONE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)


@pytest.fixture(scope="module")
def damage() -> ModuleType:
    """The module of helpers beside this file."""
    spec = importlib.util.spec_from_file_location("damage", FUZZ / "damage.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def full_bundle(toy_model: UnifiedModel, toy_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with every part that a toy dataset has: codes, trie, past rates, memory features."""
    config = replace(
        toy_model.config, block="hstu", num_blocks=1, past_rates=True, memory_features=True, relations=("transition",),
        code_sizes=(5, 4, 3), parallel_sizes=(4, 3, 4, 2), set_sizes=(3, 5, 2), cross_layers=1, time_encoding="both",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = UnifiedModel(config)
        model.items.set_catalogue(torch.from_numpy(toy_dataset.content), torch.arange(30) > 2)
        sizes = model.codes.sizes.items()
        model.codes.fill({kind: torch.stack([torch.randint(n, (30,)) for n in size], 1) for kind, size in sizes})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    path = tmp_path_factory.mktemp("full") / "bundle"
    weights = MemoryWeights(1.0, {"transition": (1.0, 0.5, 0.2, 0.1), "text": (0.5, 0.2, 0.1, 0.1)})
    export_model(model.eval(), toy_dataset, path, histories=True, memory_weights=weights)
    return path


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder on a memory file system where there is one."""
    there = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="recsys-fuzz-", dir=there if there.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


class Drawn:
    """Choices that hypothesis draws and shrinks."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data

    def integer(self, low: int, high: int) -> int:
        return int(self.data.draw(st.integers(low, high)))


class Seeded:
    """Choices of a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self.random.randint(low, high)


def damaged(damage: ModuleType, place: Any, choices: Any) -> bool:
    """Damage a bundle, open it and ask every retriever; whether it opened."""
    began = time.monotonic()
    try:
        place.damage(choices)
        rec = place.open()
        for name in rec.retrievers if rec is not None else ():
            fields = {"user_id": "u7", "k": 5, "retrievers": (name,), "at": 1_702_000_000}
            damage.ask(rec, fields)
    finally:
        place.restore()
    assert time.monotonic() - began < SLOWEST_S
    return rec is not None


@ONE_BY_ONE
@given(data=st.data())
def test_a_damaged_bundle_opens_or_says_why_not(
    damage: ModuleType, toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    place = damage.Workplace(toy_bundle, tmp_path_factory.mktemp("damaged") / "bundle")
    damaged(damage, place, Drawn(data))


@pytest.fixture(scope="module")
def rec(toy_bundle: Path) -> Recommender:
    return Recommender.load(toy_bundle)


@settings(ONE_BY_ONE, max_examples=300)
@given(data=st.data())
def test_an_odd_request_is_answered_or_refused(damage: ModuleType, rec: Recommender, data: st.DataObject):
    damage.ask(rec, damage.odd_request(Drawn(data)))


def test_a_whole_bundle_stays_whole_after_damage(damage: ModuleType, toy_bundle: Path, tmp_path: Path):
    place = damage.Workplace(toy_bundle, tmp_path / "bundle")
    outcomes = [damaged(damage, place, Seeded(seed)) for seed in range(25)]
    assert not all(outcomes)
    assert place.open() is not None  # restored: the damages come one at a time


def guided(bundle: Path, folder: Path, runs: int, seed: int, timeout_s: int) -> None:
    """Run the coverage-guided fuzzer in a process of its own."""
    flags = [f"-runs={runs}", f"-seed={seed}", f"-timeout={int(SLOWEST_S)}", "-rss_limit_mb=8192", "-max_len=96"]
    command = [
        sys.executable,
        "-P",
        str(FUZZ / "coverage_guided.py"),
        str(bundle),
        str(folder),
        *flags,
        "-len_control=0",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=timeout_s)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"Done {runs} runs" in done.stderr


needs_atheris = pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris")


@needs_atheris
@pytest.mark.slow
def test_coverage_guided(toy_bundle: Path, memory: Path):
    (memory / "guided").mkdir()
    guided(toy_bundle, memory / "guided", 20_000, 1, 3_600)


@needs_atheris
@pytest.mark.slow
def test_coverage_guided_with_every_part(full_bundle: Path, memory: Path):
    (memory / "guided_full").mkdir()
    guided(full_bundle, memory / "guided_full", 5_000, 2, 3_600)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_many_damaged_bundles(damage: ModuleType, toy_bundle: Path, full_bundle: Path, memory: Path, part: int):
    place = damage.Workplace((toy_bundle, full_bundle)[part % 2], memory / f"many{part}")
    outcomes = [damaged(damage, place, Seeded(10**6 * (part + 1) + seed)) for seed in range(2_500)]
    assert 0 < sum(outcomes) < len(outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_many_odd_requests(damage: ModuleType, toy_bundle: Path, full_bundle: Path, part: int):
    rec = Recommender.load((toy_bundle, full_bundle)[part])
    answered = 0
    for seed in range(35_000):
        began = time.monotonic()
        answered += damage.ask(rec, damage.odd_request(Seeded(10**6 * part + seed))) is not None
        assert time.monotonic() - began < SLOWEST_S
    assert 0 < answered < 35_000
