"""Item content: text, the columns that were asked for, and nothing unasked."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.pipelines.prepare.build import prepare_frames
from recsys.tokenizers.item_columns import MAX_CATEGORIES
from recsys.tokenizers.item_content import item_texts
from recsys.tokenizers.text_encoder import TextEncoder
from recsys.tokenizers.text_svd import TextSvd

ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c", "d"],
        "title": ["red train", "blue train", None, "blue red train"],
        "text": ["red train. made of wood", "steel", "", None],
        "price": [10.0, 20.0, None, 30.0],
        "likes_ever": [5, 6, 7, 8],
    }
)
EVENTS = pl.DataFrame(
    {"user_id": [1, 1, 2, 2], "item_id": ["a", "b", "d", "new"], "timestamp": [1, 2, 3, 4], "action": "click"}
)


def made(tmp_path: Path, items: pl.DataFrame | None = ITEMS, **flags: Any) -> Dataset:
    return prepare_frames(EVENTS, items, output=tmp_path / "data", **flags)


def block(data: Dataset, name: str) -> np.ndarray:
    (found,) = [part for part in data.manifest.raw["content"] if part["name"] == name]
    assert data.content is not None
    return data.content[:, found["start"] : found["stop"]]


def test_title_and_text_become_one_text() -> None:
    assert item_texts(ITEMS) == ["red train. made of wood", "blue train\nsteel", "", "blue red train"]
    assert item_texts(ITEMS.drop("title")) == ["red train. made of wood", "steel", "", None]
    assert item_texts(ITEMS.drop("text")) == ["red train", "blue train", None, "blue red train"]
    assert item_texts(ITEMS.select("item_id")) == [None] * 4


def test_text_is_content_by_default_and_other_columns_are_not(tmp_path: Path) -> None:
    data = made(tmp_path)
    assert [part["name"] for part in data.manifest.raw["content"]] == ["text"]
    assert data.content is not None and data.content.dtype == np.float32
    assert data.manifest.text is not None and data.content.shape == (5, data.manifest.text["dim"])
    assert data.content.shape[1] == 3
    assert not data.content[[2, 4]].any()  # no text, and no row in the items table
    # Entries of about 1: rows of length sqrt(dim).
    np.testing.assert_allclose(
        np.linalg.norm(data.content[[0, 1, 3]], axis=1), math.sqrt(data.content.shape[1]), rtol=1e-4
    )
    assert data.items["likes_ever"].to_list() == [5, 6, 7, 8, None]  # kept all the same


def test_stored_transform_makes_the_stored_rows(tmp_path: Path) -> None:
    data = made(tmp_path)
    assert data.text_transform is not None and data.sparse_text is not None and data.content is not None
    transform = TextSvd.load(data.text_transform)
    texts = item_texts(data.items)
    assert (transform.sparse(texts) != data.sparse_text).nnz == 0
    np.testing.assert_allclose(transform.dense(texts) * math.sqrt(transform.dim), data.content, atol=1e-5)
    length = np.sqrt(data.sparse_text.multiply(data.sparse_text).sum(axis=1)).A1
    np.testing.assert_allclose(length, [1, 1, 0, 1, 0], atol=1e-6)


@pytest.mark.parametrize(
    "items", [None, ITEMS.select("item_id"), ITEMS.with_columns(title=pl.lit(None, pl.String), text=pl.lit("  "))]
)
def test_no_text_is_no_content(items: pl.DataFrame | None, tmp_path: Path) -> None:
    data = made(tmp_path, items)
    assert data.content is None and data.sparse_text is None and data.text_transform is None
    assert data.manifest.text is None
    said = any("No item has a word of text" in note for note in data.manifest.notes)
    assert said == (items is not None and "text" in items.columns)


def test_numbers_are_standardised_and_missing_ones_are_the_mean(tmp_path: Path) -> None:
    data = made(
        tmp_path, ITEMS.with_columns(same=pl.lit(3), day=pl.lit(date(2024, 1, 1))), item_features=("price", "same")
    )
    spread = math.sqrt(200 / 3)
    np.testing.assert_allclose(block(data, "price")[:, 0], [-10 / spread, 0, 0, 10 / spread, 0], rtol=1e-5)
    assert not block(data, "same").any()
    assert any("item feature same says nothing" in note for note in data.manifest.notes)
    assert data.manifest.item_features == ("price", "same")


def test_categories_are_the_most_frequent_values(tmp_path: Path) -> None:
    items = pl.DataFrame(
        {
            "item_id": [f"i{at}" for at in range(6)],
            "shelf": ["x", "x", "y", "y", "x", "once"],
            "tags": [["p", "q"], ["q", "q"], None, [], ["p", None], ["once"]],
            "codes": [[1, 2], [2], [2], [3], None, [1]],
        }
    )
    data = made(tmp_path, items, item_features=("shelf", "tags", "codes"))
    assert block(data, "shelf")[:6].tolist() == [[1, 0], [1, 0], [0, 1], [0, 1], [1, 0], [0, 0]]
    assert block(data, "tags")[:6].tolist() == [[1, 1], [0, 1], [0, 0], [0, 0], [1, 0], [0, 0]]
    assert [part.get("categories") for part in data.manifest.raw["content"]] == [["x", "y"], ["p", "q"], ["2", "1"]]
    many = pl.DataFrame({"item_id": [f"i{at}" for at in range(400)], "shelf": [str(at % 100) for at in range(400)]})
    assert block(made(tmp_path, many, item_features=("shelf",)), "shelf").shape[1] == MAX_CATEGORIES


def test_vector_columns_are_centred_directions(tmp_path: Path) -> None:
    vectors = [[1.0, 0.0], [0.0, 1.0], None, [1.0, 1.0]]
    data = made(tmp_path, ITEMS.with_columns(vec=pl.Series(vectors)), item_features=("vec",))
    rows = block(data, "vec")
    np.testing.assert_allclose(np.linalg.norm(rows[[0, 1, 3]], axis=1), math.sqrt(2), rtol=1e-5)
    assert not rows[[2, 4]].any()
    centred = np.array([[1, 0], [0, 1], [1, 1]]) - np.array([2 / 3, 2 / 3])
    np.testing.assert_allclose(
        (rows[[0, 1, 3]] * centred).sum(1), math.sqrt(2) * np.linalg.norm(centred, axis=1), rtol=1e-5
    )
    for broken in ([1.0], [math.nan, 0.0], [1.0, None], [math.inf, 1.0]):
        with pytest.raises(InputError, match="items, column vec: id 'b': a vector must hold 2 finite numbers"):
            made(tmp_path, ITEMS.with_columns(vec=pl.Series([[1.0, 0.0], broken, None, None])), item_features=("vec",))


def test_feature_of_a_type_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="items, column odd: a feature of type Struct"):
        made(tmp_path, ITEMS.with_columns(odd=pl.struct("price")), item_features=("odd",))


class StandIn:
    """In the place of a model of sentence-transformers, which the tests do not install."""

    loaded: list[str] = []

    def __init__(self, folder: str, device: str, local_files_only: bool) -> None:
        assert (Path(folder) / "model.safetensors").is_file() and device == "cpu" and local_files_only
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        self.loaded.append(folder)

    def float(self) -> StandIn:
        return self

    def eval(self) -> StandIn:
        return self

    def encode(self, texts: list[str], **_: Any) -> np.ndarray:
        return np.array([[len(text), text.count("e"), 1.0] for text in texts], dtype=np.float32)


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an encoder that gives length, number of e, and 1."""
    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(StandIn, "loaded", [])
    folder = tmp_path / "Small-Encoder v1"
    (folder / "1_Pooling").mkdir(parents=True)
    kinds = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
    (folder / "modules.json").write_text(json.dumps([{"path": "", "type": kind} for kind in kinds]))
    for name in ("model.safetensors", "vocab.txt", "1_Pooling/config.json", "README.md", "run.py", "training_args.bin"):
        (folder / name).write_text(name)
    return folder


def test_text_encoder_adds_its_vectors(encoder: Path, tmp_path: Path) -> None:
    setting = os.environ.get("HF_HUB_OFFLINE")
    data = made(tmp_path, text_encoder=f"{encoder}/")
    rows = block(data, "small_encoder_v1")
    np.testing.assert_allclose(np.linalg.norm(rows[[0, 1, 3]], axis=1), math.sqrt(3), rtol=1e-5)
    assert not rows[[2, 4]].any()  # no text: not the vector of an empty one
    texts = ["red train. made of wood", "blue train\nsteel", "blue red train"]
    raw = np.array([[len(text), text.count("e"), 1.0] for text in texts])
    centred = raw - raw.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(data.text_vectors["small_encoder_v1"][[0, 1, 3]], unit, atol=1e-6)
    assert data.manifest.text is not None
    assert data.manifest.text["encoders"] == [{"name": "small_encoder_v1", "dim": 3}]
    assert data.manifest.settings["text_encoder"] == ["Small-Encoder v1"]  # no path of this machine
    kept = {name for name in data.manifest.files if name.startswith("text/encoders/")}
    names = ("modules.json", "model.safetensors", "vocab.txt", "1_Pooling/config.json")
    assert kept == {f"text/encoders/small_encoder_v1/{name}" for name in names}
    assert os.environ.get("HF_HUB_OFFLINE") == setting


def test_long_encoding_shows_how_far_it_is(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path, text_encoder=encoder)
    assert "encode texts" not in capsys.readouterr().err
    monkeypatch.setattr("recsys.pipelines.prepare.content._LONG_WORK", 3)
    made(tmp_path, text_encoder=encoder)
    shown = capsys.readouterr().err
    assert "encode texts: small_encoder_v1" in shown and "3/3" in shown


def test_several_encoders_and_vector_columns_are_relations(encoder: Path, tmp_path: Path) -> None:
    items = ITEMS.with_columns(vec=pl.Series([[1.0, 0.0], [0.0, 1.0], None, [1.0, 1.0]]))
    data = made(tmp_path, items, text_encoder=f"one={encoder},two={encoder}", item_features="vec")
    assert list(data.text_vectors) == ["one", "two"] and list(data.relation_vectors) == ["one", "two", "vec"]
    for name, vectors in data.relation_vectors.items():
        has_none = [2, 4]
        assert vectors.dtype == np.float32 and not vectors[has_none].any(), name
        np.testing.assert_allclose(np.linalg.norm(vectors[[0, 1, 3]], axis=1), 1.0, atol=1e-6)
    assert len(StandIn.loaded) == 2  # once each
    with pytest.raises(InputError, match="the name 'small_encoder_v1' stands twice; choose one, as in my_encoder="):
        made(tmp_path, text_encoder=[encoder, encoder])
    with pytest.raises(InputError, match="both make something called vec; name the encoder otherwise"):
        made(tmp_path, items, text_encoder=f"vec={encoder}", item_features="vec")
    with pytest.raises(InputError, match="the name 'text' cannot be used"):
        made(tmp_path, items, text_encoder=f"text={encoder}")


def test_no_encoder_is_loaded_from_a_pickle(encoder: Path) -> None:
    assert TextEncoder.load(encoder).dim == 3
    StandIn.loaded.clear()
    (encoder / "model.safetensors").rename(encoder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin holds weights as a pickle"):
        TextEncoder.load(encoder)
    assert not StandIn.loaded


def test_encoder_that_cannot_be_used(encoder: Path, tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message) as error:
            made(tmp_path, text_encoder=str(encoder))
        assert "\n" not in str(error.value) and not StandIn.loaded
        assert {path.name for path in tmp_path.iterdir()} <= {encoder.name}

    (encoder / "model.safetensors").rename(encoder / "pytorch_model.bin")
    refused("pytorch_model.bin holds weights as a pickle, which can run code when it is read; save the model as safe")
    (encoder / "pytorch_model.bin").unlink()
    refused("holds no .safetensors weights")
    (encoder / "modules.json").write_text('[{"path": "", "type": "run.Transformer"}]')
    refused("asks for the class run.Transformer, code from outside sentence-transformers")
    (encoder / "modules.json").write_text("{")
    refused("modules.json cannot be read")
    (encoder / "modules.json").unlink()
    refused("holds no modules.json; give the folder of a sentence-transformers model")
    shutil.rmtree(encoder)
    refused("is no folder; give the folder of a sentence-transformers model")
