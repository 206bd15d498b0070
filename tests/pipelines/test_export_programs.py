"""Programs for other runtimes: what they compute is what the model computes."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.events import Event
from recsys.isotonic_curve import IsotonicCurve
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.pipelines.cli import main
from recsys.pipelines.export import export_model
from recsys.pipelines.export_programs import Run, _write, history_tensors, largest_difference, load_program
from recsys.programs import CandidateScorer, QueryTower, check_exportable
from recsys.retrieval.recommender import Recommender

HAS_ONNX = all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs onnx, onnxscript and onnxruntime")
KINDS: dict[str, dict[str, Any]] = {
    "hstu": {"block": "hstu", "time_encoding": "both", "position_bias": True, "positive_recency": True},
    "softmax": {"block": "softmax", "past_rates": True, "cross_layers": 1, "score": "cosine"},
    "ligr": {"block": "ligr", "time_encoding": "rotary", "memory_features": True, "relations": ("transition",)},
    "no clock": {"use_time": False, "use_surfaces": False, "regress_value": True},
    "items only": {"use_time": False, "use_surfaces": False, "use_actions": False},
}


def bundle_of(kind: str, toy_model: UnifiedModel, toy_dataset: Dataset, folder: Path) -> Path:
    """A bundle of one encoder block with random weights."""
    config = replace(toy_model.config, num_blocks=1, **KINDS[kind])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = UnifiedModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    model.items.set_catalogue(torch.from_numpy(toy_dataset.content), torch.arange(30) > 2)
    export_model(model.eval(), toy_dataset, folder / "bundle", histories=True)
    return folder / "bundle"


@pytest.fixture(scope="module")
def workplace(toy_model: UnifiedModel, toy_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle and its programs, written by the command."""
    folder = tmp_path_factory.mktemp("programs")
    bundle = bundle_of("hstu", toy_model, toy_dataset, folder)
    assert main(["export-programs", "--bundle", str(bundle), "--output", str(folder / "programs")]) == 0
    return folder


@pytest.fixture(scope="module")
def tower(workplace: Path) -> Run:
    return load_program(workplace / "programs" / "query_tower.pt2")


@pytest.fixture(scope="module")
def onnx_workplace(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with ONNX files."""
    folder = tmp_path_factory.mktemp("onnx")
    bundle = Path(shutil.copytree(workplace / "bundle", folder / "bundle"))
    assert main(["export-programs", "--bundle", str(bundle), "--output", str(folder / "programs"), "--onnx"]) == 0
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_wrappers_compute_what_the_model_computes(
    kind: str, toy_model: UnifiedModel, toy_dataset: Dataset, tmp_path: Path
):
    bundle = Bundle.open(bundle_of(kind, toy_model, toy_dataset, tmp_path))
    tower = QueryTower(bundle.model)
    scorer = None if kind == "items only" else CandidateScorer(bundle.model, bundle.calibration)
    run = None if scorer is None else lambda inputs: scorer(**inputs)
    assert largest_difference(bundle, lambda inputs: tower(**inputs), run) <= 1e-5


@pytest.mark.parametrize("suffix", ["pt2", pytest.param("onnx", marks=[needs_onnx, pytest.mark.slow])])
def test_probabilities_are_calibrated_by_curves_too(suffix: str, workplace: Path, tower: Run, tmp_path: Path):
    bundle = Bundle.open(workplace / "bundle")
    points = [(np.linspace(-3, 3, 7), np.array([0, 0.1, 0.1, 0.4, 0.4, 0.8, 1])), (np.zeros(1), np.array([0.3]))]
    curves = {action: IsotonicCurve(*curve) for action, curve in enumerate(points)}
    bundle = replace(bundle, calibration=replace(bundle.calibration, curves=curves))
    _write(CandidateScorer(bundle.model, bundle.calibration).eval(), tmp_path / "scorer", suffix == "onnx")
    assert largest_difference(bundle, tower, load_program(tmp_path / f"scorer.{suffix}")) <= 1e-5


def test_a_fresh_process_reads_the_files_and_answers_as_the_bundle(workplace: Path):
    program = f"""
import sys
from pathlib import Path
from recsys.bundle import Bundle
from recsys.pipelines.export_programs import largest_difference, load_program
folder = Path({str(workplace)!r})
runs = [load_program(folder / "programs" / f"{{name}}.pt2") for name in ("query_tower", "candidate_scorer")]
sys.stdout.write(str(largest_difference(Bundle.open(folder / "bundle"), *runs, seed=3)))
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) <= 1e-5


@needs_onnx
@pytest.mark.slow
def test_onnxruntime_computes_the_same(onnx_workplace: Path):
    runs = [load_program(onnx_workplace / "programs" / f"{name}.onnx") for name in ("query_tower", "candidate_scorer")]
    assert largest_difference(Bundle.open(onnx_workplace / "bundle"), *runs, seed=4) <= 1e-5


def test_the_programs_answer_as_the_recommender_does(workplace: Path, tower: Run):
    rec = Recommender.load(workplace / "bundle")
    events = [
        Event(item_id=f"i{i}", actions=["click", "like", ""][i % 3], timestamp=10**9 + i * 5000) for i in range(20)
    ]
    page = rec.recommend(
        history=events, k=5, retrievers=("dense_learned",), at=10**9 + 200_000, surface="home", exclude_history=False
    )
    words = rec.bundle.vocabulary
    state = tower(
        {
            **history_tensors([words.history(events)]),
            "at": torch.tensor([10**9 + 200_000]),
            "at_surface": torch.tensor([words.surface_index("home")]),
        }
    )
    score, item = (rec.bundle.vectors @ state.pop("query")[0]).topk(5)
    assert words.items.take(item.tolist()) == page.item_ids
    assert score.tolist() == pytest.approx([hit.score for hit in page], abs=1e-5)
    inputs = {"item": item[None], "at": torch.tensor([10**9 + 200_000]), "at_surface": torch.full((1, 5), 1)}
    found = load_program(workplace / "programs" / "candidate_scorer.pt2")({**state, **inputs})["probability"][0]
    assert found.flatten().tolist() == pytest.approx([p for hit in page for p in hit.actions.values()], abs=1e-5)


def test_numbers_outside_the_vocabularies_count_as_unknown(tower: Run):
    one = torch.tensor([[10**9]])
    request = {"length": torch.tensor([1]), "at": torch.tensor([10**9]), "at_surface": torch.tensor([0])}

    def query(item: int, surface: int) -> list[float]:
        event = {"item": torch.tensor([[item]]), "surface": torch.tensor([[surface]]), "yes": one % 2, "known": one % 2}
        return tower({**event, "time": one, "time_known": one > 0, **request})["query"][0].tolist()

    assert query(10**12, 99) == query(-1, 0)
    assert query(-7, -3) == query(-1, 0) != query(1, 0)


def test_the_description_says_how_to_call_them(workplace: Path):
    said = json.loads((workplace / "programs" / "programs.json").read_text())
    manifest = json.loads((workplace / "bundle" / "bundle.json").read_text())
    assert said["model_hash"] == manifest["model_hash"]
    assert (said["num_items"], said["window"], said["actions"]) == (30, 12, ["click", "hide", "like"])
    tower, scorer = said["programs"]["query_tower"], said["programs"]["candidate_scorer"]
    assert {"name": "item", "dtype": "int64", "shape": ["requests", "events"]}.items() <= tower["inputs"][0].items()
    state = [port["name"] for port in tower["outputs"]][1:]
    assert [port["name"] for port in scorer["inputs"]] == [*state, "item", "at", "at_surface"]
    for program in (tower, scorer):
        assert program["files"] and all((workplace / "programs" / name).is_file() for name in program["files"])


@needs_onnx
@pytest.mark.slow
def test_the_example_of_the_page_runs(onnx_workplace: Path, root: Path):
    example = re.search(r"```python\n(import json.*?)```", (root / "docs" / "export.md").read_text(), re.DOTALL)
    assert example is not None
    done = subprocess.run(
        [sys.executable, "-P", "-c", example[1]], cwd=onnx_workplace, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["click", "hide", "like"] * 5


@pytest.mark.parametrize("setting", [{"layout": "interleaved"}, {"layout": "lagged"}, {"positives_only": True}])
def test_a_model_that_cannot_be_a_program_is_one_line(setting: dict[str, Any]):
    more = {"use_actions": False} if "positives_only" in setting else {}
    config = ModelConfig(num_items=3, num_actions=1, num_surfaces=1, positive_mask=1, **setting, **more)
    with pytest.raises(InputError, match="programs cannot hold a model with") as error:
        check_exportable(config)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "hstu"])
def test_every_kind_becomes_programs(kind: str, toy_model: UnifiedModel, toy_dataset: Dataset, tmp_path: Path):
    bundle = bundle_of(kind, toy_model, toy_dataset, tmp_path)
    words = ["export-programs", "--bundle", str(bundle), "--output", str(tmp_path / "programs")]
    assert main([*words, "--onnx"] if HAS_ONNX else words) == 0  # which compares every file with the model
    files = {path.name for path in (tmp_path / "programs").iterdir()}
    assert ("candidate_scorer.pt2" in files) == (kind != "items only")
