"""The classical retrieval baselines against plain loops."""

from __future__ import annotations

from collections import Counter
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.events import Requests
from recsys.pipelines.baselines import NETWORKS, RANKING, RETRIEVAL, skip_reason
from recsys.pipelines.baselines import ease as ease_module
from recsys.pipelines.baselines import item_knn as knn_module
from recsys.pipelines.baselines.ease import ease_weights, fit_ease
from recsys.pipelines.baselines.item_knn import LinearScorer, fit_item_knn
from recsys.pipelines.baselines.popularity import fit_popularity, fit_recent_popularity
from recsys.pipelines.baselines.selection import seen_items, validation_ndcg
from recsys.pipelines.baselines.training_matrix import history_matrix, training_matrix
from recsys.pipelines.prepare.build import prepare_frames
from recsys.pipelines.scorer import Scorer

CLASSICAL = {name: factory for name, factory in RETRIEVAL.items() if name not in NETWORKS}


def _liked(dataset: Dataset, user: int, end: int) -> list[int]:
    """Items of the positives among the user's first ``end`` events, oldest first."""
    history = dataset.events.history(user, end)
    mask = dataset.manifest.positive_mask
    return [int(item) for item, yes in zip(history.item, history.yes, strict=True) if yes & mask]


def _training_sets(dataset: Dataset) -> list[set[int]]:
    return [set(_liked(dataset, user, int(dataset.train_end[user]))) for user in range(dataset.num_users)]


def test_training_matrix_holds_training_positives_only(toy_dataset: Dataset) -> None:
    matrix = training_matrix(toy_dataset).toarray()
    for user, items in enumerate(_training_sets(toy_dataset)):
        assert set(np.flatnonzero(matrix[user])) == items
    assert set(np.unique(matrix)) == {0.0, 1.0}


def test_history_matrix_weighs_by_distance_from_the_end(toy_dataset: Dataset) -> None:
    requests = toy_dataset.requests("test")
    matrix = history_matrix(toy_dataset, requests, 0.5).toarray()
    for row, (user, end) in enumerate(zip(requests.user, requests.end, strict=True)):
        expected = np.zeros(toy_dataset.num_items)
        for distance, item in enumerate(reversed(_liked(toy_dataset, user, end))):
            expected[item] += 0.5**distance
        np.testing.assert_allclose(matrix[row], expected, atol=1e-5)


def test_popularity_counts_training_positives(toy_dataset: Dataset) -> None:
    counts = Counter(
        item
        for user in range(toy_dataset.num_users)
        for item in _liked(toy_dataset, user, int(toy_dataset.train_end[user]))
    )
    score_QI = fit_popularity(toy_dataset).score(toy_dataset.requests("test"))
    assert score_QI.dtype == np.float32
    expected = [counts[item] for item in range(toy_dataset.num_items)]
    np.testing.assert_array_equal(score_QI, np.tile(expected, (len(score_QI), 1)))


def test_recent_popularity_halves_with_each_half_life(toy_dataset: Dataset) -> None:
    scorer = fit_recent_popularity(toy_dataset)
    rows = [
        (int(item), int(time))
        for user in range(toy_dataset.num_users)
        for history in [toy_dataset.events.history(user, int(toy_dataset.train_end[user]))]
        for item, time, yes in zip(history.item, history.timestamp, history.yes, strict=True)
        if yes & toy_dataset.manifest.positive_mask
    ]
    newest = max(time for _, time in rows)
    expected = np.zeros(toy_dataset.num_items)
    for item, time in rows:
        expected[item] += 0.5 ** ((newest - time) / scorer.settings["half_life"])
    np.testing.assert_allclose(scorer.score(toy_dataset.requests("test").rows(slice(1)))[0], expected, rtol=1e-4)


def _plain_knn(dataset: Dataset, user: int, end: int, shrink: float, decay: float) -> np.ndarray:
    sets = _training_sets(dataset)
    users_of = [{user for user, items in enumerate(sets) if item in items} for item in range(dataset.num_items)]
    score = np.zeros(dataset.num_items)
    for distance, own in enumerate(reversed(_liked(dataset, user, end))):
        for item in range(dataset.num_items):
            both = len(users_of[own] & users_of[item])
            if item != own and both:
                norm = (len(users_of[own]) * len(users_of[item])) ** 0.5 + shrink
                score[item] += decay**distance * both / norm
    return score


def test_item_knn_is_the_plain_sum_of_cosines(toy_dataset: Dataset) -> None:
    scorer = fit_item_knn(toy_dataset)
    requests = toy_dataset.requests("test")
    score_QI = scorer.score(requests)
    assert score_QI.shape == (len(requests), toy_dataset.num_items)
    for row in (0, 5, len(requests) - 1):
        user, end = int(requests.user[row]), int(requests.end[row])
        expected = _plain_knn(toy_dataset, user, end, scorer.settings["shrink"], scorer.settings["decay"])
        np.testing.assert_allclose(score_QI[row], expected, rtol=1e-4, atol=1e-5)


def test_item_knn_of_a_large_catalogue_keeps_the_nearest(toy_dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = training_matrix(toy_dataset)
    count = np.asarray(matrix.sum(0)).ravel()
    full = knn_module._co_occurrences(matrix, count).toarray()
    monkeypatch.setattr(knn_module, "MAX_FULL_ITEMS", 10)
    monkeypatch.setattr(knn_module, "MAX_NEIGHBOURS", 4)
    monkeypatch.setattr(knn_module, "_BLOCK", 7)
    few = knn_module._co_occurrences(matrix, count).toarray()
    for item in range(toy_dataset.num_items):
        cosine = full[item] / np.sqrt(np.maximum(count[item] * count, 1))
        nearest = np.lexsort((np.arange(len(cosine)), -cosine))[:4]
        expected = np.zeros(len(cosine))
        expected[nearest] = full[item][nearest]
        np.testing.assert_array_equal(few[item], expected)


def test_ease_is_the_closed_form(toy_dataset: Dataset) -> None:
    matrix = training_matrix(toy_dataset).toarray().astype(np.float64)
    inverse = np.linalg.inv(matrix.T @ matrix + 7.0 * np.eye(toy_dataset.num_items))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0.0)
    gram = np.asfortranarray((matrix.T @ matrix).astype(np.float32))
    np.testing.assert_allclose(ease_weights(gram, 7.0), expected, atol=1e-5)
    assert fit_ease(toy_dataset).settings["lambda"] in ease_module.LAMBDAS


def test_ease_refuses_a_catalogue_it_cannot_invert(toy_dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    assert skip_reason("ease", toy_dataset) is None
    monkeypatch.setattr(ease_module, "MAX_ITEMS", 5)
    with pytest.raises(InputError, match="at most 5.*leave it out of --baselines"):
        fit_ease(toy_dataset)


def test_every_classical_baseline_is_a_scorer(toy_dataset: Dataset) -> None:
    requests = toy_dataset.requests("now")
    for name, factory in CLASSICAL.items():
        scorer = factory(toy_dataset)
        assert isinstance(scorer, Scorer)
        assert scorer.name == name
        score_QI = scorer.score(requests)
        assert score_QI.shape == (toy_dataset.num_users, toy_dataset.num_items)
        assert score_QI.dtype == np.float32 and np.isfinite(score_QI).all()
        parts = [scorer.score(requests.rows(slice(start, start + 7))) for start in range(0, len(requests), 7)]
        np.testing.assert_allclose(np.concatenate(parts), score_QI, rtol=1e-5, atol=1e-6)
    assert all(skip_reason(name, toy_dataset) for name in RANKING)  # it has no slates


def test_held_out_events_change_nothing(toy_frames: dict[str, Any], toy_dataset: Dataset, tmp_path: Path) -> None:
    """Other test targets: the same weights, so the same scores for the validation requests."""
    rows = toy_dataset.events.offsets[:-1] + toy_dataset.test_at
    user = toy_dataset.user_ids.gather(np.flatnonzero(toy_dataset.test_at >= 0))
    time = toy_dataset.events.timestamp[rows[toy_dataset.test_at >= 0]]
    held_out = pl.DataFrame({"user_id": user, "timestamp": time, "other": "i3"})
    frame = toy_frames["interactions"].join(held_out, on=["user_id", "timestamp"], how="left", maintain_order="left")
    frame = frame.with_columns(pl.coalesce("other", "item_id").alias("item_id")).drop("other")
    assert (frame["item_id"] != toy_frames["interactions"]["item_id"]).sum() > 20
    other = prepare_frames(frame, items=toy_frames["items"], output=tmp_path / "other")
    requests = toy_dataset.requests("validation")
    np.testing.assert_array_equal(requests.target, other.requests("validation").target)
    for name, factory in CLASSICAL.items():
        np.testing.assert_array_equal(
            factory(toy_dataset).score(requests), factory(other).score(other.requests("validation")), err_msg=name
        )


def test_validation_ndcg_by_hand(toy_dataset: Dataset) -> None:
    """Ties count against the target; a target in its own history is a miss; seen items take no place."""
    requests = toy_dataset.requests("validation")
    rng = np.random.default_rng(0)
    table = rng.integers(0, 6, (toy_dataset.num_users, toy_dataset.num_items)).astype(np.float32)

    def score(part: Requests) -> np.ndarray:
        return table[part.user].copy()

    expected, unreachable = [], 0
    for user, end, target in zip(requests.user, requests.end, requests.target, strict=True):
        seen = set(toy_dataset.events.history(user, end).item.tolist())
        unreachable += target in seen
        left = [item for item in range(toy_dataset.num_items) if item not in seen]
        rank = sum(table[user, item] >= table[user, target] for item in left)
        expected.append(1 / log2(1 + rank) if target not in seen and rank <= 10 else 0.0)
    assert unreachable > 0
    assert validation_ndcg(toy_dataset, score) == pytest.approx(np.mean(expected))


def test_seen_items_are_those_of_all_events(toy_dataset: Dataset) -> None:
    requests = toy_dataset.requests("test")
    row_N, item_N = seen_items(toy_dataset, requests)
    for row in (0, 3, len(requests) - 1):
        history = toy_dataset.events.history(int(requests.user[row]), int(requests.end[row]))
        np.testing.assert_array_equal(item_N[row_N == row], history.item)


def test_empty_history_scores_zero(toy_dataset: Dataset) -> None:
    nobody = np.zeros(1, dtype=np.int64)
    requests = Requests(user=nobody, end=nobody, target=nobody, timestamp=nobody, surface=nobody)
    scorer = fit_item_knn(toy_dataset)
    assert isinstance(scorer, LinearScorer)
    np.testing.assert_array_equal(scorer.score(requests), np.zeros((1, toy_dataset.num_items)))
