"""Text-kNN against plain loops over the texts and vectors of items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.pipelines.baselines import skip_reason
from recsys.pipelines.baselines import text_knn as module
from recsys.pipelines.baselines.item_knn import DECAYS
from recsys.pipelines.baselines.selection import validation_ndcg
from recsys.pipelines.baselines.text_knn import fit_text_knn, sum_of_cosines, text_sources
from recsys.pipelines.prepare.build import prepare_frames


@pytest.fixture(scope="module")
def with_vectors(toy_frames: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The toy items with two columns of vectors; the last three items lack the second."""
    rng = np.random.default_rng(2)
    columns = {
        "picture": rng.normal(size=(30, 6)).tolist(),
        "sound": [row if place < 27 else None for place, row in enumerate(rng.normal(size=(30, 4)).tolist())],
    }
    items = toy_frames["items"].with_columns(pl.Series(name, rows) for name, rows in columns.items())
    output = tmp_path_factory.mktemp("vectors") / "data"
    return prepare_frames(toy_frames["interactions"], items=items, output=output, item_features="picture,sound")


def test_the_score_is_the_decayed_sum_of_cosines(toy_dataset: Dataset) -> None:
    scorer = fit_text_knn(toy_dataset)
    decay = scorer.settings["decay"]
    assert scorer.settings["source"] == "tf-idf" and decay in DECAYS
    assert toy_dataset.sparse_text is not None
    text = toy_dataset.sparse_text.toarray().astype(np.float64)
    requests = toy_dataset.requests("test")
    score_QI = scorer.score(requests)
    for row in (0, 7, len(requests) - 1):
        history = toy_dataset.events.history(int(requests.user[row]), int(requests.end[row]))
        liked = history.positives(toy_dataset.manifest.positive_mask).item
        expected = sum(decay**distance * text @ text[item] for distance, item in enumerate(liked[::-1]))
        np.testing.assert_allclose(score_QI[row], expected, atol=1e-5)


def test_the_decay_is_the_best_on_validation(toy_dataset: Dataset) -> None:
    scorer = fit_text_knn(toy_dataset)
    best = validation_ndcg(toy_dataset, scorer.score)
    for decay in DECAYS:
        scorer.settings = scorer.settings | {"decay": decay}
        assert validation_ndcg(toy_dataset, scorer.score) <= best


def test_vectors_add_their_mean_cosine(with_vectors: Dataset) -> None:
    assert text_sources(with_vectors) == [("tf-idf",), ("vectors",), ("tf-idf", "vectors")]
    rows = [vectors.astype(np.float64) for vectors in with_vectors.relation_vectors.values()]
    assert len(rows) == 2
    mean = sum(row @ row.T for row in rows) / 2
    np.testing.assert_allclose(sum_of_cosines(with_vectors, ("vectors",)), mean, atol=1e-5)
    assert with_vectors.sparse_text is not None
    text = with_vectors.sparse_text.toarray()
    np.testing.assert_allclose(sum_of_cosines(with_vectors, ("tf-idf", "vectors")), text @ text.T + mean, atol=1e-5)


def test_the_source_is_the_best_on_validation(with_vectors: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for source in text_sources(with_vectors):
        found["+".join(source)] = validation_ndcg(with_vectors, module._scorer(with_vectors, source).score)
    assert len(set(found.values())) > 1
    assert fit_text_knn(with_vectors).settings["source"] == max(found, key=lambda name: found[name])


def test_a_large_catalogue_keeps_the_nearest(with_vectors: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FULL_ITEMS", 10)
    monkeypatch.setattr(module, "MAX_NEIGHBOURS", 4)
    few = sum_of_cosines(with_vectors, ("vectors",))
    expected = np.zeros((30, 30))
    for rows in with_vectors.relation_vectors.values():
        cosine = rows @ rows.T
        np.fill_diagonal(cosine, -1)
        for item in range(30):
            nearest = np.argsort(-cosine[item])[:4]
            expected[item, nearest] += np.maximum(cosine[item, nearest], 0) / 2
    np.testing.assert_allclose(few.toarray(), expected, atol=1e-5)
    scorer = fit_text_knn(with_vectors)
    assert np.isfinite(scorer.score(with_vectors.requests("test"))).all()


def test_without_texts_it_is_left_out(toy_frames: dict[str, Any], tmp_path: Path) -> None:
    bare = prepare_frames(toy_frames["interactions"], output=tmp_path / "data")
    reason = skip_reason("text_knn", bare)
    assert reason is not None and "has none" in reason
    with pytest.raises(InputError, match="needs item texts or vectors"):
        fit_text_knn(bare)
