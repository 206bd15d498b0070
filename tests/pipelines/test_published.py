"""Tables made from an evaluation say what it says."""

from __future__ import annotations

import pytest

from recsys.pipelines.published import mean_evaluation, ranking_rows, retrieval_rows, segment_rows

ROW = {"recall@10": 0.2, "recall@100": 0.4, "mrr": 0.05}


def test_rows_are_sorted_and_keep_paired_differences():
    model = {**ROW, "ndcg@10": 0.10, "ndcg@10_ci": [0.09, 0.11]}
    better = {
        **ROW,
        "ndcg@10": 0.12,
        "ndcg@10_ci": [0.11, 0.13],
        "ndcg@10_minus": -0.02,
        "ndcg@10_minus_ci": [-0.03, -0.01],
        "ndcg@10_learned_minus": -0.04,
        "ndcg@10_learned_minus_ci": [-0.05, -0.03],
    }
    slates = {"click": {"auc": 0.7, "auc_ci": [0.6, 0.8]}}
    evaluation = {
        "retrieval": {"dense": model, "dense_learned": model},
        "ranking": {"click": {"auc": 0.9, "auc_ci": [0.8, 1.0]}},
        "baselines": {"rule": better, "rates": slates},
    }
    rows = retrieval_rows(evaluation)
    assert [row["model"] for row in rows] == ["rule", "dense_learned"]
    assert rows[0]["dense − it"] == -0.02 and "dense − it" not in rows[1]
    assert rows[0]["dense_learned − it"] == -0.04
    summed = {**model, "ndcg@10": 0.11}
    named = [
        row["model"] for row in retrieval_rows({**evaluation, "retrieval": {"dense": summed, "dense_learned": model}})
    ]
    assert named == ["rule", "dense", "dense_learned"]
    assert rows[1]["NDCG@10"] == 0.10 and rows[1]["NDCG@10_ci"] == [0.09, 0.11]
    assert [(row["model"], row["AUC click"]) for row in ranking_rows(evaluation)] == [
        ("this model", 0.9),
        ("rates", 0.7),
    ]


def test_data_without_slates_has_no_ranking_table():
    assert ranking_rows({"retrieval": {}}) == []


def test_trainings_with_other_seeds_are_averaged():
    def evaluation(ndcg: float, auc: float) -> dict:
        row = {**ROW, "ndcg@10": ndcg, "ndcg@10_ci": [ndcg - 0.01, ndcg + 0.03], "num_users": 7}
        slates = {"auc": auc, "auc_ci": [auc, auc], "gauc": auc / 2, "gauc_ci": [0.0, auc]}
        return {
            "protocol": {"split": "test", "num_users": 7},
            "retrieval": {"dense": row, "dense_learned": {**row, "ndcg@10": 0.05, "ndcg@10_ci": [0.0, 0.1]}},
            "ranking": {"click": slates, "like": slates},
            "baselines": {"rates": {"click": {**slates, "auc_minus": ndcg, "auc_minus_ci": [0.0, ndcg]}}},
        }

    mean = mean_evaluation([evaluation(0.1, 0.6), evaluation(0.2, 0.8)])
    assert mean["protocol"] == {"split": "test", "num_users": 7}
    rows = retrieval_rows(mean)
    assert [row["model"] for row in rows] == ["dense", "dense_learned"]
    assert rows[0]["NDCG@10"] == pytest.approx(0.15) and rows[0]["NDCG@10_ci"] == pytest.approx([0.14, 0.18])
    assert rows[0]["of seeds"] == "0.1000 – 0.2000" and "of seeds" not in rows[1]
    ours, rates = ranking_rows(mean, ["click"])
    assert ours["AUC click"] == pytest.approx(0.7) and ours["GAUC click"] == pytest.approx(0.35)
    assert not any("like" in key for key in ours)
    assert rates["ours − it, AUC click"] == pytest.approx(0.15)
    assert rates["ours − it, AUC click_ci"] == pytest.approx([0.0, 0.15])


def test_segments_stand_beside_the_baseline_that_answers_them():
    row = {**ROW, "ndcg@10": 0.1, "recall@10_ci": [0.1, 0.3], "num_users": 5}
    text = {"recall@10": 0.15, "recall@10_minus": 0.05, "recall@10_minus_ci": [0.0, 0.1]}
    segments = {"empty": {"num_users": 0}, "cold_items": {**row, "num_targets": 6, "baselines": {"text_knn": text}}}
    (cold,) = segment_rows({"segments": segments})
    assert cold["segment"] == "cold_items" and cold["targets"] == 6 and cold["beside"] == "text_knn"
    assert cold["ours − it"] == 0.05 and cold["ours − it_ci"] == [0.0, 0.1] and cold["Recall@10"] == 0.2
