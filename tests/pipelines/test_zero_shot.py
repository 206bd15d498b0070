"""Text only: what a model learned on one catalogue holds on another, and nothing of the other is in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.files import read_json
from recsys.metrics import recall_at
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.pipelines import text_codes
from recsys.pipelines.checkpoint import load_model
from recsys.pipelines.item_text_vectors import encoded_texts, stored_vectors
from recsys.pipelines.prepare.build import prepare_frames
from recsys.pipelines.targets import rank_targets
from recsys.pipelines.text_codes import TextCodes
from recsys.pipelines.text_only_model import _know_by_content, _start_projection, moved_model
from recsys.pipelines.united_data import united_data
from recsys.pipelines.zero_shot import main
from recsys.pipelines.zero_shot_run import Catalogue, TextNeighbours, TextOnly

TOPICS, PER_TOPIC, WIDTH = 6, 10, 12
CENTRE_TK = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, WIDTH)))[0][:TOPICS]


def catalogue(folder: Path, *, seed: int, users: int, events_seed: int | None = None, names: str = "i") -> Dataset:
    """Items of six topics; whoever took one of a topic takes one of the topic after it next."""
    rng = np.random.default_rng(seed)
    topic_I = np.repeat(np.arange(TOPICS), PER_TOPIC)
    vectors_IK = CENTRE_TK[topic_I] + 0.15 * rng.normal(size=(len(topic_I), WIDTH))
    items = pl.DataFrame({"item_id": [f"{names}{item}" for item in range(len(topic_I))], "words": vectors_IK})
    rng = np.random.default_rng(seed + 100 if events_seed is None else events_seed)
    rows = []
    for user in range(users):
        start = int(rng.integers(TOPICS))
        for step in range(int(rng.integers(3, 8))):
            item = (start + step) % TOPICS * PER_TOPIC + int(rng.integers(PER_TOPIC))
            rows.append((f"u{user}", f"{names}{item}", step, "view"))
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "action"], orient="row")
    return prepare_frames(events, items, output=folder, item_features="words:vector")


def read(data: Dataset) -> Catalogue:
    return Catalogue(data, stored_vectors(data, "words"))


@pytest.fixture(scope="module", autouse=True)
def few_steps() -> Iterator[None]:
    """Small vectors need fewer steps of the tokenizer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_codes, "NUM_STEPS", 150)
        yield


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return read(catalogue(tmp_path_factory.mktemp("unseen") / "data", seed=2, users=100, names="other"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TextOnly:
    """A small model trained on another catalogue of the same six topics."""
    folder = tmp_path_factory.mktemp("trained")
    home = read(catalogue(folder / "raw", seed=1, users=200))
    codes = TextCodes.fit(home.vectors_IK, num_parts=4, seed=0)
    return TextOnly((home,), codes, folder, dim=32, epochs=18, seed=0)


def recall(training: TextOnly, on: Catalogue) -> list[float]:
    """Recall@10 of dense and of parallel."""
    return [float(recall_at(rank_targets(one, on.data, "test").rank_Q, 10).mean()) for one in training.scorers(on)]


def test_a_rule_of_texts_carries_over_to_an_unseen_catalogue_and_rests_on_its_texts(
    trained: TextOnly, unseen: Catalogue
) -> None:
    known = recall(trained, unseen)
    order_I = np.random.default_rng(3).permutation(len(unseen.vectors_IK))
    shuffled = recall(trained, Catalogue(unseen.data, unseen.vectors_IK[order_I]))
    nearest = rank_targets(TextNeighbours(unseen, 0.5), unseen.data, "test")
    assert known[0] > 0.75  # chance: 10 of 60
    assert known[1] > 0.45  # 60 items teach few of the codes that others have
    assert max(shuffled) < 0.3
    assert recall_at(nearest.rank_Q, 10).mean() < 0.1  # who reads alike is not who comes next


def test_other_ids_and_another_order_of_the_items_change_no_score(
    trained: TextOnly, unseen: Catalogue, tmp_path: Path
) -> None:
    events = unseen.data.events
    order_I = np.random.default_rng(4).permutation(unseen.data.num_items)
    user_N = np.repeat(np.arange(unseen.data.num_users), np.diff(events.offsets))
    renamed = prepare_frames(
        pl.DataFrame(
            {"user_id": user_N, "item_id": order_I[events.item] + 7000, "timestamp": events.timestamp, "action": "view"}
        ),
        pl.DataFrame({"item_id": np.arange(len(order_I)) + 7000}),
        output=tmp_path / "data",
    )
    inner_I = renamed.item_index(order_I + 7000)  # where each item of before is now
    vectors_IK = np.empty_like(unseen.vectors_IK)
    vectors_IK[inner_I] = unseen.vectors_IK
    assert (inner_I != np.arange(len(inner_I))).any()
    requests = renamed.requests("test")
    assert np.array_equal(inner_I[unseen.data.requests("test").target], requests.target)
    for before, after in zip(trained.scorers(unseen), trained.scorers(Catalogue(renamed, vectors_IK)), strict=True):
        scores_QI = before.score(unseen.data.requests("test"))
        assert scores_QI.std() > 0.01
        np.testing.assert_allclose(after.score(requests)[:, inner_I], scores_QI, atol=1e-5)


def test_ids_have_no_part_in_the_model(trained: TextOnly) -> None:
    items = trained.model.items
    assert not items.has_id_I.any() and not items.ids.weight.any()
    assert items.table()[:-1].std(0).min() > 0  # and yet items differ


def test_what_reads_alike_is_near_before_any_training(unseen: Catalogue) -> None:
    config = ModelConfig(
        num_items=60, num_actions=1, num_surfaces=1, positive_mask=1, content_dim=WIDTH, dim=16, score="cosine"
    )
    model = UnifiedModel(config).eval()
    _know_by_content(model, unseen.vectors_IK)
    _start_projection(model)
    content_IC = torch.nn.functional.normalize(model.items.content_IC, dim=1)
    vectors_ID = model.item_vectors()
    torch.testing.assert_close(vectors_ID @ vectors_ID.T, content_IC @ content_IC.T, atol=1e-5, rtol=0)


def test_content_of_another_width_is_refused(trained: TextOnly, unseen: Catalogue) -> None:
    with pytest.raises(ValueError, match=r"content must be \[60, 12\], got \[60, 5\]"):
        moved_model(trained.model, unseen.data, unseen.vectors_IK[:, :5], np.zeros((60, 1), np.int64))


def test_no_event_of_the_unseen_catalogue_enters_training(unseen: Catalogue, tmp_path: Path) -> None:
    home = read(catalogue(tmp_path / "home", seed=1, users=40))
    words = ["--train", str(home.data.path), "--test", str(unseen.data.path), "--vectors", "words", "--epochs", "1"]
    words += ["--parts", "2", "--dim", "8", "--output", str(tmp_path / "out"), "--json", str(tmp_path / "figures.json")]
    assert main(words) == 0
    weights = load_model(tmp_path / "out" / "checkpoints" / "best.ckpt")[0].state_dict()
    codes = TextCodes.fit(home.vectors_IK, num_parts=2, seed=0)
    alone = TextOnly((home,), codes, tmp_path / "alone", dim=8, epochs=1, seed=0).model.state_dict()
    assert weights.keys() == alone.keys()
    assert all(torch.equal(value, alone[name]) for name, value in weights.items())
    figures = read_json(tmp_path / "figures.json")
    assert figures["protocol"]["num_users"] == 100 and figures["protocol"]["num_items"] == 60
    rows = figures["rows"]
    models = ["text_knn", "text_knn", "popularity", "dense", "parallel", "dense + text_knn"]
    assert [row["model"] for row in rows] == models
    assert [row["reads"] for row in rows] == ["vectors", "codes", "events", "codes", "codes", "codes, vectors"]
    assert all(0 <= row["unfiltered NDCG@10"] <= 1 and "it − text_knn" in row for row in rows[1:])


def test_the_history_stays_in_unfiltered_ranks_alone(trained: TextOnly, unseen: Catalogue) -> None:
    from recsys.pipelines.zero_shot_run import _ranked

    scorer = TextNeighbours(unseen, 0.5)
    ((filtered, whole),) = _ranked([scorer], unseen.data)
    # An item is nearest to itself: those of the history stand ahead of all others.
    assert (whole.rank_Q[filtered.reachable_Q] >= filtered.rank_Q[filtered.reachable_Q]).all()
    assert (whole.rank_Q > filtered.rank_Q).mean() > 0.5
    assert np.array_equal(np.sort(filtered.rank_Q), np.sort(rank_targets(scorer, unseen.data, "test").rank_Q))


def test_united_data_keeps_the_order_of_positives_and_offsets_the_ids(tmp_path: Path) -> None:
    parts = [catalogue(tmp_path / name, seed=seed, users=12, names=name) for seed, name in ((1, "a"), (2, "b"))]
    vectors_IK = np.concatenate([read(part).vectors_IK for part in parts])
    united = united_data(parts, vectors_IK, tmp_path / "both")
    assert (united.num_users, united.num_items) == (24, 120)
    for number, part in enumerate(parts):
        for user in range(part.num_users):
            place = int(united.user_index([12 * number + user])[0])
            items = united.item_ids.to_numpy()[united.events.history(place).item]
            assert np.array_equal(items, part.events.history(user).item + 60 * number)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--vectors", "nothing"], "has no item vectors called 'nothing' (there are: words)"),
        (["--vectors", "words", "--parts", "0"], "--parts must be positive"),
        ([], "give either --text-encoder or --vectors"),
        (["--vectors", "words", "--parts", "7"], "no codes can be fitted"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    words: list[str],
    said: str,
    trained: TextOnly,
    unseen: Catalogue,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home = trained.catalogues[0].data.path
    argv = ["--train", str(home), "--test", str(unseen.data.path), "--output", str(tmp_path / "out"), *words]
    assert main(argv) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1


def test_the_test_catalogue_may_not_train(
    trained: TextOnly, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = str(trained.catalogues[0].data.path)
    assert main(["--train", home, "--test", home, "--vectors", "words", "--output", str(tmp_path / "out")]) == 2
    assert "nothing there would be unseen" in capsys.readouterr().err


class StandIn:
    """In the place of a model of sentence-transformers."""

    encoded: list[str] = []

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def float(self) -> StandIn:
        return self

    def eval(self) -> StandIn:
        return self

    def encode(self, texts: list[str], **_: Any) -> np.ndarray:
        self.encoded.extend(texts)
        return np.array([[len(text), text.count("e"), 1.0] for text in texts], dtype=np.float32)


def test_texts_are_encoded_unless_the_dataset_has_vectors_of_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "modules.json").write_text('[{"path": "", "type": "sentence_transformers.models.Transformer"}]')
    (folder / "model.safetensors").write_text("weights")
    events = pl.DataFrame({"user_id": [1, 1, 2], "item_id": [1, 2, 3], "timestamp": [1, 2, 3], "action": "view"})
    items = pl.DataFrame({"item_id": [1, 2, 3], "title": ["red three", "seven green trees", None]})
    plain = prepare_frames(events, items, output=tmp_path / "plain")
    holding = prepare_frames(events, items, output=tmp_path / "holding", text_encoder=str(folder))

    monkeypatch.setattr(StandIn, "encoded", [])
    kept_IK = encoded_texts(holding, folder)
    assert "red three" not in StandIn.encoded
    made_IK = encoded_texts(plain, folder)
    assert "red three" in StandIn.encoded
    np.testing.assert_allclose(made_IK, kept_IK, atol=1e-6)
    assert not made_IK[2].any() and np.allclose(np.linalg.norm(made_IK[:2], axis=1), 1)

    monkeypatch.setattr(StandIn, "encoded", [])
    (folder / "model.safetensors").write_text("other weights")
    encoded_texts(holding, folder)
    assert "red three" in StandIn.encoded


def test_a_catalogue_without_text_cannot_be_read(unseen: Catalogue, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="have no text"):
        encoded_texts(unseen.data, tmp_path)
