"""The published sequence models: what they read, and that their weights are kept and found again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.dataset import Dataset
from recsys.model import UnifiedModel
from recsys.pipelines.baselines import NETWORKS, RETRIEVAL, sequence_model
from recsys.pipelines.baselines.cache import cache_entry, code_files
from recsys.pipelines.baselines.esasrec import ESASREC_SETTINGS
from recsys.pipelines.baselines.hstu import HSTU_SETTINGS
from recsys.pipelines.baselines.sasrec import SASREC_SETTINGS
from recsys.pipelines.baselines.sequence_model import SequenceScorer, fit_sequence_model
from recsys.pipelines.evaluation_baselines import BaselineRuns
from recsys.pipelines.prepare.build import prepare_frames
from recsys.pipelines.scorer import Scorer

QUICK: dict[str, Any] = {"dim": 16, "max_epochs": 1}
SETTINGS = {"sasrec": SASREC_SETTINGS, "esasrec": ESASREC_SETTINGS, "hstu": HSTU_SETTINGS}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that were trained and not found."""
    names: list[str] = []
    train = sequence_model._trained

    def counted(name: str, settings: Any, dataset: Dataset) -> Any:
        names.append(name)
        return train(name, settings, dataset)

    monkeypatch.setattr(sequence_model, "_trained", counted)
    return names


def test_every_network_has_a_factory() -> None:
    assert tuple(SETTINGS) == NETWORKS and set(NETWORKS) <= set(RETRIEVAL)


@pytest.mark.parametrize(
    ("name", "block", "loss", "has_time", "has_distance"),
    [
        ("sasrec", "softmax", "full", False, False),
        ("esasrec", "ligr", "sampled", False, False),
        ("hstu", "hstu", "full", True, True),
    ],
)
def test_networks_read_ids_of_positives_alone(
    name: str, block: str, loss: str, has_time: bool, has_distance: bool, toy_dataset: Dataset, trainings: list[str]
) -> None:
    settings = SETTINGS[name] | QUICK
    scorer = fit_sequence_model(name, settings, toy_dataset)
    assert isinstance(scorer, Scorer) and scorer.name == name and not scorer.kept
    config = scorer.model.config
    assert (config.block, config.retrieval_loss) == (block, loss) and config.num_negatives == 256
    assert config.positives_only and config.content_dim == 0 and not config.use_actions and not config.use_surfaces
    assert (config.has_time_bias, config.position_bias) == (has_time, has_distance)
    assert config.neighbour_targets == config.label_smoothing == config.crop == 0.0
    requests = toy_dataset.requests("test")
    score_QI = scorer.score(requests)
    assert score_QI.shape == (len(requests), toy_dataset.num_items) and np.isfinite(score_QI).all()

    again = fit_sequence_model(name, settings, toy_dataset)
    assert again.kept and trainings == [name]
    np.testing.assert_array_equal(again.score(requests), score_QI)


def test_weights_go_by_settings_and_data(
    toy_frames: dict[str, Any], toy_dataset: Dataset, tmp_path: Path, trainings: list[str], cache: Path
) -> None:
    def fit(dataset: Dataset, **more: Any) -> SequenceScorer:
        return fit_sequence_model("sasrec", SASREC_SETTINGS | QUICK | more, dataset)

    fit(toy_dataset)
    assert fit(toy_dataset, dim=8).model.config.dim == 8
    assert len(trainings) == 2
    other = prepare_frames(toy_frames["interactions"][:-1], items=toy_frames["items"], output=tmp_path / "other")
    fit(other)
    assert len(trainings) == 3 and len(list((cache / "baselines").iterdir())) == 2
    for weights in cache.rglob("weights-sasrec-*/model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:100])
    fit(toy_dataset)
    assert len(trainings) == 4 and fit(toy_dataset).kept and len(trainings) == 4
    assert not list(cache.rglob("*.pkl")) and not list(cache.rglob("*.ckpt"))


def test_runs_that_finish_together_leave_whole_weights(toy_model: UnifiedModel, cache: Path) -> None:
    folder = cache / "weights"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: sequence_model._keep(toy_model, folder), range(16)))
    kept = sequence_model._kept(folder)
    assert kept is not None and kept.config == toy_model.config
    assert [path.name for path in cache.iterdir()] == ["weights"]


def test_another_split_finds_the_weights(
    toy_dataset: Dataset, trainings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        RETRIEVAL, "sasrec", lambda dataset: fit_sequence_model("sasrec", SASREC_SETTINGS | QUICK, dataset)
    )
    asked = {split: toy_dataset.requests(split) for split in ("test", "validation")}
    runs = BaselineRuns(toy_dataset)
    first = runs.ranked("sasrec", {"test": asked["test"]})["test"]
    assert runs.notes() == [] and runs.settings["sasrec"]["block"] == "softmax"
    later = BaselineRuns(toy_dataset)
    both = later.ranked("sasrec", asked)
    assert trainings == ["sasrec"] and later.reused == ["sasrec"] and later.settings == runs.settings
    np.testing.assert_array_equal(both["test"].rank_Q, first.rank_Q)
    assert len(both["validation"].rank_Q) == len(asked["validation"])


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(
    toy_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "file"))
    assert not fit_sequence_model("sasrec", SASREC_SETTINGS | QUICK, toy_dataset).kept


def test_entries_differ_by_everything_that_matters(toy_dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    import recsys

    entry = cache_entry(toy_dataset, "test", "ease", {"a": 1})
    others = [
        cache_entry(toy_dataset, "validation", "ease", {"a": 1}),
        cache_entry(toy_dataset, "test", "hstu", {"a": 1}),
        cache_entry(toy_dataset, "test", "ease", {"a": 2}),
        cache_entry(toy_dataset, "test", "ease", {"a": 1}, trains=True),
    ]
    assert cache_entry(toy_dataset, "test", "ease", {"a": 1}) == entry
    monkeypatch.setattr(recsys, "__version__", "9.9")
    others.append(cache_entry(toy_dataset, "test", "ease", {"a": 1}))
    assert len({entry, *others}) == 6
    assert toy_dataset.manifest.data_hash[:32] == entry.parent.name


def test_the_code_of_training_counts_for_networks() -> None:
    few = {file.name for file in code_files(trains=False)}
    more = {file.name for file in code_files(trains=True)} - few
    assert {"popularity.py", "targets.py", "memory.py", "transitions.py", "metrics.py"} <= few
    assert {"encoder.py", "losses.py", "recipe.py", "fit.py", "model.py"} <= more
