"""The command evaluate on a bundle: what stands in the JSON, and that it is what slow loops find."""

from __future__ import annotations

import json
from math import log2

import numpy as np
import polars as pl
import pytest
import torch

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.events import Requests
from recsys.metrics import MISS, recall_at
from recsys.pipelines import evaluate as command
from recsys.pipelines.baselines import RANKING, RETRIEVAL
from recsys.pipelines.cli import main
from recsys.pipelines.evaluate import evaluate_bundle
from recsys.pipelines.segments import segments
from recsys.pipelines.targets import rank_targets

QUICK = "popularity,item_knn,memory"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def slate_dataset(toy_frames, tmp_path_factory):
    """The toy dataset with two slates per user after everybody's events."""
    from recsys.pipelines.prepare.build import prepare_frames

    rng = np.random.default_rng(3)
    last = toy_frames["interactions"].group_by("user_id").agg(pl.col("timestamp").max()).sort("user_id")
    slates = []
    for number in range(80):
        user, time = last.row(number % 40)
        shown = rng.choice(30, 5, replace=False)
        slates.append(
            {
                "slate_id": number,
                "user_id": user,
                "timestamp": time + 100 + number,
                "item_ids": [f"i{i}" for i in shown],
                "actions": [["click"] if rng.random() < 0.4 else [] for _ in shown],
            }
        )
    return prepare_frames(
        **toy_frames, impressions=pl.DataFrame(slates), output=tmp_path_factory.mktemp("slates") / "data"
    )


@pytest.fixture(scope="module")
def slate_bundle(slate_dataset, toy_model, tmp_path_factory):
    from recsys.pipelines.export import export_model

    path = tmp_path_factory.mktemp("slates") / "bundle"
    export_model(toy_model, slate_dataset, path)
    return path


@pytest.fixture(scope="module")
def period_dataset(toy_frames, tmp_path_factory):
    """The toy frames, split by time; most users have several positives in the period of the test."""
    from recsys.pipelines.prepare.build import prepare_frames

    time = toy_frames["interactions"]["timestamp"]
    valid_from, test_from = (int(time.quantile(share)) for share in (0.5, 0.7))
    period = {"split": "time", "valid_from": valid_from, "test_from": test_from}
    return prepare_frames(**toy_frames, output=tmp_path_factory.mktemp("period") / "data", **period)


class FixedScores:
    """The same hand-made scores for everybody."""

    name = "fixed"

    def __init__(self, score_I):
        self._score_I = np.asarray(score_I, dtype=np.float32)

    def score(self, requests: Requests):
        return np.tile(self._score_I, (len(requests), 1))


def test_json_has_the_documented_form(toy_bundle, toy_dataset, tmp_path, capsys):
    target = tmp_path / "eval.json"
    words = ["--bundle", str(toy_bundle), "--data", str(toy_dataset.path), "--json", str(target)]
    assert main(["evaluate", *words]) == 0
    result = json.loads(target.read_text())
    assert set(result) == {"protocol", "retrieval", "segments", "notes"}  # no slates, no baselines: absent, not zero
    protocol = result["protocol"]
    assert protocol["split"] == "test" and protocol["candidates"] == "full" and protocol["seed"] == 0
    assert protocol["data_hash"] == toy_dataset.manifest.data_hash
    assert protocol["num_users"] == len(toy_dataset.requests("test")) and protocol["num_items"] == 30
    assert {"history_filter", "tie_rule", "num_unreachable", "num_tied"} <= set(protocol)
    assert list(result["retrieval"]) == ["dense", "dense_learned", "memory"]
    for row in result["retrieval"].values():
        for name in ("recall@10", "ndcg@10", "recall@100", "mrr", "novelty@10", "popularity_bias@10"):
            low, high = row[f"{name}_ci"]
            assert low <= row[name] <= high
        assert 0 < row["coverage@10"] <= 1 and 0 < row["intra_list_diversity@10"] < 2
    shown = capsys.readouterr().out
    assert f"{result['retrieval']['dense']['recall@10']:.4f}" in shown and "short_histories" in shown


def test_figures_equal_a_slow_loop_over_users(toy_bundle, toy_dataset, toy_model):
    requests, log = toy_dataset.requests("test"), toy_dataset.events
    items = toy_model.item_vectors()
    gains, misses = [], 0
    for q in range(len(requests)):
        history = log.history(int(requests.user[q]), int(requests.end[q]))
        at, surface = torch.tensor([requests.timestamp[q]]), torch.tensor([requests.surface[q]])
        with torch.inference_mode():
            scores = (toy_model.query(toy_model.encode([history]), at, surface) @ items.T)[0].numpy()
        left = np.setdiff1d(np.arange(30), history.item)
        target = requests.target[q]
        misses += target not in left
        rank = (scores[left] >= scores[target]).sum() if target in left else MISS
        gains.append(1 / log2(rank + 1) if rank <= 10 else 0.0)
    result = evaluate_bundle(toy_bundle, toy_dataset, retrievers=["dense_learned"])
    assert list(result["retrieval"]) == ["dense_learned"]
    assert result["retrieval"]["dense_learned"]["ndcg@10"] == pytest.approx(np.mean(gains), abs=1e-6)
    assert result["protocol"]["num_unreachable"] == misses > 0


def test_validation_figures_are_those_of_the_training_loop(slate_bundle, slate_dataset, toy_model, monkeypatch):
    import lightning as L

    monkeypatch.setattr("recsys.pipelines.recipe._VALIDATION_USERS", 7)  # a sample is for a training alone
    from recsys.pipelines.data_module import PreparedData
    from recsys.pipelines.unified_module import UnifiedModule

    module = UnifiedModule()
    module.net = toy_model
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    data = PreparedData(str(slate_dataset.path))
    for split, stage, loop in (("validation", "val", trainer.validate), ("test", "test", trainer.test)):
        (logged,) = loop(module, data, verbose=False)
        result = evaluate_bundle(slate_bundle, slate_dataset, split=split, retrievers=["dense_learned"])
        for name in ("ndcg@10", "recall@10", "recall@100", "mrr"):
            expected = logged[f"{stage}/dense_learned/{name}"]
            assert result["retrieval"]["dense_learned"][name] == pytest.approx(expected, abs=1e-6)
        aucs = {name.split("/")[1]: value for name, value in logged.items() if name.endswith("/auc")}
        assert aucs == pytest.approx({a: row["auc"] for a, row in result.get("ranking", {}).items() if "auc" in row})
    assert aucs  # the slates come after everybody's events, so they are test slates


def test_slate_figures_are_per_action_over_known_labels(slate_bundle, slate_dataset, toy_model):
    from recsys.ranking import predict_slates

    result = evaluate_bundle(slate_bundle, slate_dataset, baselines="past_rates")
    slates, click = slate_dataset.slates, slate_dataset.manifest.actions.index("click")
    predicted = predict_slates(toy_model, slate_dataset, 2)
    known = (slates.known[predicted.row_R] >> click & 1).astype(bool)
    yes = (slates.yes[predicted.row_R] >> click & 1).astype(bool)[known]
    prob = predicted.prob_RA[known, click].astype(np.float64)
    row = result["ranking"]["click"]
    assert row["num_rows"] == len(yes) and row["num_yes"] == yes.sum()
    pairs = (prob[yes][:, None] > prob[~yes]) + (prob[yes][:, None] == prob[~yes]) / 2
    assert row["auc"] == pytest.approx(pairs.mean())
    assert row["logloss"] == pytest.approx(-np.log(np.where(yes, prob, 1 - prob)).mean())
    for name in ("auc", "gauc", "logloss", "ndcg@10"):
        low, high = row[f"{name}_ci"]
        assert low < row[name] < high
    other = result["baselines"]["past_rates"]["click"]
    assert other["auc_minus"] == pytest.approx(row["auc"] - other["auc"])
    low, high = other["auc_minus_ci"]
    assert low < other["auc_minus"] < high


def test_rows_of_which_the_log_says_nothing_do_not_count():
    from recsys.pipelines.evaluation_ranking import ActionFigures, SlateRows

    ints = np.array
    rows = SlateRows(
        row_S=np.arange(6),
        slate_S=ints([0, 0, 0, 1, 1, 1]),
        user_S=ints([4, 4, 4, 9, 9, 9]),
        yes_S=ints([2, 1, 2, 0, 2, 0]),
        known_S=ints([2, 1, 3, 3, 3, 1]),
    )
    prob = ints([0.5, 0.9, 0.25, 0.5, 0.125, 0.9], dtype=np.float32)
    row = ActionFigures(rows, 1, prob, seed=0).row()  # rows 0, 2, 3, 4 are known, and all but 3 are yes
    assert (row["num_rows"], row["num_yes"]) == (4, 3)
    assert row["auc"] == (0.5 + 0 + 0) / 3
    assert row["gauc"] == 0.0  # user 4 has one label only
    assert row["logloss"] == pytest.approx(-(np.log(0.5) + np.log(0.25) + np.log(0.5) + np.log(0.125)) / 4)
    assert row["ndcg@10"] == pytest.approx((1 + 1 / log2(3)) / 2)
    other = ActionFigures(rows, 0, prob, seed=0).row()
    assert other["num_rows"] == 5 and other["num_yes"] == 1


def test_resampled_figures_at_even_weights_are_the_figures(slate_dataset):
    from recsys.pipelines.evaluation_ranking import ActionFigures, slate_rows

    rows = slate_rows(slate_dataset, 2)
    prob = (np.random.default_rng(0).integers(0, 6, len(rows.row_S)) / 6 + 0.01).astype(np.float32)  # with ties
    figures = ActionFigures(rows, slate_dataset.manifest.actions.index("click"), prob, seed=0)
    even = figures._weighted()(np.ones(len(figures._users)))
    np.testing.assert_allclose(even, figures.values(), rtol=1e-12)


def test_baselines_stand_beside_with_paired_differences(toy_bundle, toy_dataset):
    result = evaluate_bundle(toy_bundle, toy_dataset, baselines=QUICK)
    assert list(result["baselines"]) == QUICK.split(",")
    ours = result["retrieval"]["dense_learned"]["ndcg@10"]
    for row in result["baselines"].values():
        assert row["ndcg@10_minus"] == pytest.approx(ours - row["ndcg@10"])
        low, high = row["ndcg@10_minus_ci"]
        assert low <= row["ndcg@10_minus"] <= high
        assert row["ndcg@10_learned_minus"] == row["ndcg@10_minus"]  # this bundle has no memory terms in `dense`
    memory = result["retrieval"]["memory"]
    assert memory["ndcg@10_minus"] == pytest.approx(ours - memory["ndcg@10"])
    same = ("recall@10", "ndcg@10", "mrr", "coverage@10")
    memory, retriever = result["baselines"]["memory"], result["retrieval"]["memory"]
    assert [memory[name] for name in same] == [retriever[name] for name in same]


def test_baselines_come_from_the_cache_and_a_broken_one_is_made_again(toy_bundle, toy_dataset, cache, monkeypatch):
    fitted = []

    def counted(dataset):
        fitted.append(dataset.manifest.data_hash)
        return FixedScores(np.arange(dataset.num_items))

    monkeypatch.setitem(RETRIEVAL, "popularity", counted)
    first = evaluate_bundle(toy_bundle, toy_dataset, baselines="popularity")
    again = evaluate_bundle(toy_bundle, toy_dataset, baselines="popularity")
    (note,) = again.pop("notes")
    assert note.startswith(f"kept in {cache} by an earlier run") and note.endswith(": popularity")
    assert len(fitted) == 1 and first.pop("notes") == []
    assert first == again
    evaluate_bundle(toy_bundle, toy_dataset, split="validation", baselines="popularity")
    assert len(fitted) == 2  # another split is another entry
    (kept,) = cache.rglob("test-popularity-*.npz")
    assert toy_dataset.manifest.data_hash[:32] in str(kept)
    kept.write_bytes(kept.read_bytes()[:40])
    mended = evaluate_bundle(toy_bundle, toy_dataset, baselines="popularity")
    assert mended.pop("notes") == [] and mended == first
    assert len(fitted) == 3


def test_slate_baselines_come_from_the_cache(slate_bundle, slate_dataset, monkeypatch):
    class Halves:
        name = "past_rates"

        def predict(self, dataset, split):
            runs.append(split)
            return {name: np.full(len(dataset.slates.item), 0.5, np.float32) for name in dataset.manifest.actions}

    runs: list[int] = []
    monkeypatch.setitem(RANKING, "past_rates", lambda dataset: Halves())
    first = evaluate_bundle(slate_bundle, slate_dataset, baselines="past_rates")
    again = evaluate_bundle(slate_bundle, slate_dataset, baselines="past_rates")
    assert first.pop("notes") == [] and len(again.pop("notes")) == 1 and again == first
    assert runs == [2]
    assert first["baselines"]["past_rates"]["click"]["auc"] == 0.5


def test_without_baselines_nothing_is_trained(toy_bundle, toy_dataset, cache, monkeypatch):
    for name in RETRIEVAL:
        monkeypatch.setitem(RETRIEVAL, name, None)
    assert "baselines" not in evaluate_bundle(toy_bundle, toy_dataset)
    assert not cache.exists()


def test_all_leaves_out_what_cannot_run_and_says_so(toy_bundle, toy_dataset, monkeypatch):
    for name in [*RETRIEVAL][1:]:
        monkeypatch.delitem(RETRIEVAL, name)
    result = evaluate_bundle(toy_bundle, toy_dataset, baselines="all")
    assert set(result["baselines"]) == {"popularity", "memory"}
    assert any(note.startswith("past_rates ranks slates") for note in result["notes"])
    result = evaluate_bundle(toy_bundle, toy_dataset, baselines="all,-memory")
    assert set(result["baselines"]) == {"popularity"}


def test_rank_targets_equals_counting(toy_dataset):
    score = np.random.default_rng(0).integers(0, 6, toy_dataset.num_items)
    for batch in (1, 7, 1024):
        ranked = rank_targets(FixedScores(score), toy_dataset, "test", batch=batch)
        requests = toy_dataset.requests("test")
        for q in range(len(requests)):
            seen = toy_dataset.events.history(int(requests.user[q]), int(requests.end[q])).item
            left = np.setdiff1d(np.arange(toy_dataset.num_items), seen)
            target = requests.target[q]
            expected = (score[left] >= score[target]).sum() if target in left else MISS
            assert ranked.rank_Q[q] == expected
            best = left[np.lexsort((left, -score[left]))][:10]  # equal scores by smaller id
            assert ranked.list_QK[q].tolist() == [*best, *([-1] * (10 - len(best)))]


def test_every_positive_of_a_period_stands_beside_the_first_ones(period_dataset, toy_model, tmp_path):
    from recsys.pipelines.export import export_model

    export_model(toy_model, period_dataset, tmp_path / "bundle")
    plain = evaluate_bundle(tmp_path / "bundle", period_dataset)
    result = evaluate_bundle(tmp_path / "bundle", period_dataset, all_positives=True)
    assert list(result["all_positives"]) == list(result["retrieval"])
    row = result.pop("all_positives")["dense"]
    assert result == plain  # absent unasked, and nothing else moves
    log, test_from = period_dataset.events, period_dataset.manifest.split["test_from"]
    items, gains, misses = toy_model.item_vectors(), [], 0
    for user in range(period_dataset.num_users):
        events = log.history(user)
        for end in range(len(events.item)):
            if events.timestamp[end] < test_from or not events.yes[end] & period_dataset.manifest.positive_mask:
                continue
            at, surface = torch.tensor([events.timestamp[end]]), torch.tensor([events.surface[end]])
            with torch.inference_mode():
                query = toy_model.query(toy_model.encode([log.history(user, end)]), at, surface)
                scores = (query @ items.T)[0].numpy()
            left, target = np.setdiff1d(np.arange(30), events.item[:end]), events.item[end]
            misses += target not in left
            rank = (scores[left] >= scores[target]).sum() if target in left else MISS
            gains.append(1 / log2(rank + 1) if rank <= 10 else 0.0)
    assert row["num_targets"] == len(gains) > result["protocol"]["num_users"]
    assert row["num_unreachable"] == misses > 0
    assert row["ndcg@10"] == pytest.approx(np.mean(gains), abs=1e-6)
    low, high = row["ndcg@10_ci"]
    assert low < row["ndcg@10"] < high


def test_what_a_scorer_never_returns_is_not_listed(toy_dataset):
    score = np.full(toy_dataset.num_items, -np.inf)
    score[[3, 5]] = 1.0
    ranked = rank_targets(FixedScores(score), toy_dataset, "test")
    assert set(np.unique(ranked.list_QK)) == {-1, 3, 5}
    # The catalogue is smaller than the longest list, and yet such a target is in none.
    never_Q = ranked.reachable_Q & ~np.isin(ranked.requests.target, [3, 5])
    assert toy_dataset.num_items <= 100 and never_Q.any()
    assert not recall_at(ranked.rank_Q[never_Q], 100).any()


def test_segments_split_the_requests(toy_dataset):
    requests = toy_dataset.requests("test")
    by_name = {segment.name: segment for segment in segments(toy_dataset, requests)}
    histories = [by_name[f"{name}_histories"].inside_Q for name in ("short", "medium", "long")]
    assert (np.sum(histories, axis=0) == 1).all()
    assert requests.end[histories[0]].max() < requests.end[histories[2]].min()
    targets = [by_name[f"{name}_items"].inside_Q for name in ("head", "tail", "cold")]
    assert (np.sum(targets, axis=0) == 1).all()
    counts = toy_dataset.train_item_counts()[requests.target]
    assert counts[targets[0]].min() >= counts[targets[1]].max()
    assert (counts[targets[2]] == 0).all()
    assert (toy_dataset.train_end[requests.user] == 0).tolist() == by_name["cold_users"].inside_Q.tolist()


def test_segment_rows_hold_the_default_retrievers_figures(toy_bundle, toy_dataset):
    result = evaluate_bundle(toy_bundle, toy_dataset)
    rows = result["segments"]
    parts = [rows[f"{name}_histories"] for name in ("short", "medium", "long")]
    parts = [row for row in parts if row["num_users"]]
    total = sum(row["num_users"] for row in parts)
    assert total == result["protocol"]["num_users"]
    weighed = sum(row["num_users"] * row["ndcg@10"] for row in parts) / total
    assert weighed == pytest.approx(result["retrieval"]["dense"]["ndcg@10"])
    for row in rows.values():
        assert ("ndcg@10" in row) == (row["num_users"] > 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bundle", "BUNDLE", "--split", "now"], "choose test or validation"),
        (["--bundle", "BUNDLE", "--retrievers", "dense,beam"], "no retriever 'beam'"),
        (["--bundle", "BUNDLE", "--retrievers", ","], "--retrievers names none"),
        (["--bundle", "BUNDLE", "--baselines", "popular"], "there is no 'popular'"),
        (["--bundle", "BUNDLE", "--baselines", "all,-popular"], "there is no '-popular'"),
        (["--bundle", "BUNDLE", "--baselines", "past_rates"], "ranks slates and the data has none"),
        (["--bundle", "BUNDLE", "--lists", "x.parquet"], "either --bundle or --lists"),
        ([], "either --bundle or --lists"),
        (["--lists", "x.parquet", "--retrievers", "dense"], "leave it out with --lists"),
        (["--lists", "x.parquet", "--all-positives"], "leave it out with --lists"),
        (["--bundle", "BUNDLE", "--all-positives"], "has one target per user"),
        (["--bundle", "BUNDLE", "--seed", "-1"], "--seed must be at least 0"),
    ],
)
def test_bad_input_is_one_line(words, message, toy_bundle, toy_dataset, capsys):
    words = [str(toy_bundle) if word == "BUNDLE" else word for word in words]
    assert main(["evaluate", "--data", str(toy_dataset.path), *words]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in line


def test_a_split_without_targets_is_refused_before_any_bar_is_drawn(toy_bundle, toy_dataset, capsys):
    nobody = Dataset.open(toy_dataset.path)
    vars(nobody)["test_at"] = np.full_like(toy_dataset.test_at, -1)
    with pytest.raises(InputError, match="has no test targets"):
        evaluate_bundle(toy_bundle, nobody)
    assert capsys.readouterr().err == ""


def test_another_dataset_is_refused(toy_bundle, slate_dataset):
    with pytest.raises(InputError, match="is not the dataset of bundle"):
        evaluate_bundle(toy_bundle, slate_dataset)


def test_the_command_prints_nothing_but_its_tables(toy_bundle, toy_dataset, capsys):
    command.evaluate(toy_dataset.path, bundle=toy_bundle, retrievers="memory", baselines="popularity")
    out = capsys.readouterr().out
    assert "· popularity" in out and "dense" not in out.split("segments")[0]
