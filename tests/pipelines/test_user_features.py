"""Columns of users that were asked for, from prepare to a request: the same figures everywhere, and none unasked."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch

from recsys.bundle import Bundle
from recsys.errors import InputError
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.objective import Objective
from recsys.pipelines.ablation_options import chosen_options
from recsys.pipelines.candidates import candidates
from recsys.pipelines.checkpoint import load_model
from recsys.pipelines.data_module import PreparedData
from recsys.pipelines.evaluate import evaluate_bundle
from recsys.pipelines.export import export_model
from recsys.pipelines.fit import fit_dataset
from recsys.pipelines.prepare.build import prepare_frames
from recsys.pipelines.recipe import chosen_recipe
from recsys.pipelines.warm_start import warm_start
from recsys.ranking import predict_slates
from recsys.retrieval.recommender import Recommender
from recsys.tokenizers.table_columns import column_labels, fit_columns, table_rows
from recsys.training_batches import TrainingExamples

COLUMNS = ("age", "city", "tags:list", "taste:vector", "joined")


def user_table(num_users: int = 40) -> pl.DataFrame:
    rng = np.random.default_rng(4)
    rows = [
        (
            f"u{user}", int(rng.integers(16, 80)), ["Rome", "Oslo", None][user % 3], ["a,b", "b", ""][user % 3],
            rng.normal(size=3).tolist(), f"20{10 + user % 9}-03-01", "secret",
        )
        for user in range(num_users)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=["user_id", "age", "city", "tags", "taste", "joined", "note"], orient="row")


@pytest.fixture(scope="module")
def dataset(toy_frames, tmp_path_factory):
    """The toy data with users, two of them without a row, and a slate shortly after every second event."""
    events = toy_frames["interactions"]
    rng = np.random.default_rng(1)
    rows = []
    for number, (user, time) in enumerate(events.select("user_id", "timestamp").iter_rows()):
        if number % 2:
            items = [f"i{i}" for i in rng.choice(29, 4, replace=False)]
            rows.append((f"s{number}", user, time + 1, items, rng.choice(["click", "none", "like"], 4).tolist()))
    schema = ["slate_id", "user_id", "timestamp", "item_ids", "actions"]
    return prepare_frames(
        events,
        toy_frames["items"],
        user_table().filter(~pl.col("user_id").is_in(["u3", "u4"])),
        pl.DataFrame(rows, schema=schema, orient="row"),
        output=tmp_path_factory.mktemp("users") / "data",
        user_features=COLUMNS,
    )


def make_model(dataset, **changes) -> UnifiedModel:
    manifest, content = dataset.manifest, dataset.content
    torch.manual_seed(0)
    sizes = {
        "num_items": dataset.num_items, "num_actions": len(manifest.actions), "num_surfaces": len(manifest.surfaces),
        "positive_mask": manifest.positive_mask, "content_dim": content.shape[1], "dim": 16, "window": 12,
        "user_dim": dataset.user_dim,
    }  # fmt: skip
    model = UnifiedModel(ModelConfig(**{**sizes, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.items.set_catalogue(torch.from_numpy(content), torch.from_numpy(dataset.train_item_counts()) > 0)
    return model.eval()


@pytest.fixture(scope="module")
def model(dataset):
    return make_model(dataset)


@pytest.fixture(scope="module")
def bundle(model, dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("users") / "bundle"
    export_model(model, dataset, path, histories=True)
    return path


def test_the_recipe_reads_them_and_an_ablation_can_leave_them_out(dataset):
    recipe = chosen_recipe(dataset).model
    assert recipe.user_dim == dataset.user_dim > 0
    assert [option.name for option in chosen_options(dataset, recipe, ["use_user_features=false"])]


def test_only_columns_that_were_asked_for_are_kept(dataset):
    labels = column_labels(dataset.user_blocks)
    assert labels == [
        "age", "city = Rome", "city = Oslo", "tags = b", "tags = a", "taste [0]", "taste [1]", "taste [2]", "joined",
    ]  # fmt: skip
    assert dataset.user_dim == len(labels) and "secret" not in json.dumps(dataset.user_blocks)
    rows, table = dataset.user_content, dataset.users
    assert not rows[dataset.user_index(["u3", "u4"])].any()
    age = table["age"].cast(pl.Float64).to_numpy()
    np.testing.assert_allclose(rows[:, 0], np.nan_to_num((age - np.nanmean(age)) / np.nanstd(age)), rtol=1e-5)
    assert rows[:, 1].tolist() == [float(city == "Rome") for city in table["city"]]


def test_a_later_table_is_read_as_the_first():
    blocks = fit_columns(user_table(), user_table()["user_id"], {"age": None, "city": None})
    later = pl.DataFrame({"user_id": ["x", "y"], "city": ["Oslo", "Bern"]})
    assert table_rows(blocks, later, later["user_id"]).tolist() == [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_both_heads_read_them_and_an_unknown_user_is_a_row_of_zeros(model, dataset):
    histories = [dataset.events.history(5)] * 2
    item, at = torch.arange(6)[None].expand(2, 6), torch.full((2,), 1_700_900_000)
    surface = torch.ones(2, dtype=torch.int64)
    known = dataset.user_content[[5, 6]]
    outs = []
    for rows in (known, np.zeros_like(known), None):
        states = model.encode(histories, user_BK=rows)
        outs.append((model.query(states, at, surface), model.rank(states, item, at, surface[:, None].expand(2, 6))))
    for with_them, zero, none in zip(*outs, strict=True):
        assert torch.equal(zero, none) and torch.allclose(zero[0], zero[1], atol=1e-6)
        assert (with_them - zero).abs().max() > 1e-3 and (with_them[0] - with_them[1]).abs().max() > 1e-3


def test_appended_states_keep_the_user(model, dataset):
    history = dataset.events.history(5).prefix(8)
    rows = dataset.user_content[[5]]
    states = model.encode([history.prefix(6)], user_BK=rows)
    grown, fresh = model.append(states, [history.at(slice(6, 8))]), model.encode([history], user_BK=rows)
    at, surface = torch.tensor([1_700_900_000]), torch.tensor([1])
    assert torch.allclose(model.query(grown, at, surface), model.query(fresh, at, surface), atol=1e-5)
    assert grown.select(torch.tensor([0, 0])).user_BD.shape == (2, 16)


def training(dataset):
    return TrainingExamples(
        dataset.events, dataset.train_end, dataset.is_positive(), dataset.slates, window=64, batch_tokens=300, seed=0,
        user_UK=dataset.user_content,
    )  # fmt: skip


def test_training_rows_are_those_that_are_served(dataset):
    """Slate candidates of a packed batch, against user states."""
    model = make_model(dataset, window=64, mask_prob=0.0)
    model.action_head.rank_bias.weight.data.zero_()
    found = predict_slates(model, dataset, 0, batch_slates=7)
    served = dict(zip(found.row_R.tolist(), found.logit_RA, strict=True))
    logits = []
    handle = model.action_head.register_forward_hook(lambda module, inputs, output: logits.append(output))
    objective, examples = Objective(model, torch.from_numpy(dataset.train_item_counts())), training(dataset)
    compared = 0
    for step in range(examples.steps_per_epoch):
        batch = examples.batch(step)
        logits.clear()
        objective(batch)
        rows = batch.candidates
        for slate, shown, row in zip(rows.slate_N.tolist(), rows.shown_N.tolist(), logits[-1], strict=True):
            expected = served[int(dataset.slates.offsets[slate]) + shown]
            np.testing.assert_allclose(row.detach().numpy(), expected, atol=1e-4)
            compared += 1
    handle.remove()
    assert compared > 50


@pytest.mark.parametrize("action_weight", [0.0, 1.0])
def test_training_hides_some_and_its_losses_reach_them(dataset, action_weight):
    model = make_model(dataset, window=64, user_dropout=0.5, action_weight=action_weight).train()
    objective = Objective(model, torch.from_numpy(dataset.train_item_counts()))
    batch = training(dataset).batch(0)
    known = int(batch.user_SK.any(1).nonzero()[0])
    hidden = (objective._user_vectors(batch, torch.full((400,), known)) == 0).all(1).float().mean()
    assert 0.35 < hidden < 0.65
    objective(batch).total.backward()
    assert model.users.weight.grad.abs().max() > 0
    if action_weight:  # the ranking head's own columns for it
        assert model.action_head.hidden.weight.grad[:, -16:].abs().max() > 0


def test_candidates_recommender_and_slates_say_the_same(bundle, model, dataset, tmp_path):
    rec, at = Recommender.load(bundle), dataset.manifest.max_timestamp
    candidates(bundle, dataset.path, tmp_path / "now", k=5, rank=5, split="now", shard_users=7)
    served = pl.read_parquet(sorted((tmp_path / "now").glob("*.parquet")))
    differ = 0
    for row in served.iter_rows(named=True):
        user = int(dataset.user_index([row["user_id"]])[0])
        page = rec.recommend(row["user_id"], k=5, at=at)
        assert row["item_ids"] == page.item_ids
        np.testing.assert_allclose(row["retrieval_scores"], [hit.score for hit in page], atol=1e-5)
        states = model.encode([dataset.events.history(user)], user_BK=dataset.user_rows(np.array([user])))
        item = torch.from_numpy(dataset.item_index(page.item_ids))[None]
        logits = model.rank(states, item, torch.tensor([at]), torch.zeros_like(item))
        expected = rec.bundle.calibration.probabilities(logits)[0]
        found = np.stack([row[f"prob_{action}"] for action in rec.actions], 1)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose([list(hit.actions.values()) for hit in page], expected, atol=1e-5)
        as_stranger = rec.recommend(row["user_id"], k=5, at=at, user_features={})
        differ += [hit.score for hit in as_stranger] != [hit.score for hit in page]
    assert differ >= 36  # not for the two users without a row


def test_a_request_may_bring_the_columns_of_a_new_user(bundle, dataset):
    rec, known = Recommender.load(bundle), user_table()
    history = rec.recommend("u7", k=3, exclude_history=False)
    columns = {name.partition(":")[0]: known.filter(user_id="u7")[name.partition(":")[0]][0] for name in COLUMNS}
    given = {name: value.to_list() if isinstance(value, pl.Series) else value for name, value in columns.items()}
    again = rec.recommend("u7", k=3, exclude_history=False, user_features=given)
    for one, other in zip(history, again, strict=True):
        assert one.item_id == other.item_id and one.score == pytest.approx(other.score, abs=1e-5)
    new = [rec.recommend(k=8, at=1_700_900_000, user_features=row) for row in (None, {"age": 20}, {"age": 70})]
    scores = [[hit.score for hit in page] for page in new]
    assert scores[0] != scores[1] and scores[1] != scores[2]
    batch = rec.recommend_batch(
        [{"k": 8, "at": 1_700_900_000, "user_features": row} for row in ({"age": 20}, {"age": 70})]
    )
    np.testing.assert_allclose([[hit.score for hit in page] for page in batch], scores[1:], atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"note": "x"}, "reads no column 'note' of users; it reads age, city, tags, taste, joined"),
        ({"taste": [1.0]}, "column taste: .* 3 finite numbers"),
        ({"age": "old"}, "column age: .* no column of numbers"),
        ({"age": 10**400}, "too large"),
        ({10**5000: 1}, "reads no column an integer of 16610 bits"),
    ],
)
def test_columns_that_cannot_be_read_are_refused(bundle, given, message):
    with pytest.raises(InputError, match=message):
        Recommender.load(bundle).recommend(user_features=given)


def test_a_model_without_them_says_so(toy_bundle):
    with pytest.raises(InputError, match="it reads none; prepare with --user-features"):
        Recommender.load(toy_bundle).recommend(user_features={"age": 3})


def test_fit_reads_them_unless_told_not_to(dataset, tmp_path):
    quiet = {"max_epochs": 2, "quiet": True, "enable_progress_bar": False, "logger": False, "dim": 16, "lr": 1e-2}
    best = fit_dataset(dataset, tmp_path / "run", **quiet)
    trained, meta = load_model(best)
    assert trained.config.user_dim == dataset.user_dim
    assert meta["names"]["user_columns"] == column_labels(dataset.user_blocks)
    export_model(trained, dataset, tmp_path / "bundle")
    loaded = Bundle.open(tmp_path / "bundle")
    assert loaded.user_features_UK is None and loaded.user_blocks == dataset.user_blocks
    figures = evaluate_bundle(tmp_path / "bundle", dataset, split="validation")["retrieval"]["dense_learned"]
    from safetensors.torch import load_file

    assert (
        0 < figures["recall@100"] <= 1 and load_file(tmp_path / "bundle/model/model.safetensors")["users.weight"].any()
    )
    without, _ = load_model(fit_dataset(dataset, tmp_path / "without", **quiet, use_user_features=False))
    assert without.config.user_dim == 0 and without.users is None


def test_a_warm_start_keeps_what_shared_columns_say(toy_frames, dataset, tmp_path):
    """The same users and one city more: the checkpoint's columns keep their weights, the new one starts at zero."""
    quiet = {"max_epochs": 1, "quiet": True, "enable_progress_bar": False, "logger": False, "dim": 16, "lr": 1e-2}
    best = fit_dataset(dataset, tmp_path / "run", **quiet)
    moved = user_table().with_columns(city=pl.when(pl.col("city").is_null()).then(pl.lit("Bern")).otherwise("city"))
    grown = prepare_frames(
        **toy_frames, users=moved, output=tmp_path / "grown", user_features=("city", "age", "tags:list")
    )
    old, _ = load_model(best)
    started = warm_start(PreparedData(str(grown.path)), {}, best)
    before, after = column_labels(dataset.user_blocks), column_labels(grown.user_blocks)
    weight, former = started.network.users.weight, old.users.weight
    for place, label in enumerate(after):
        expected = former[:, before.index(label)] if label in before else torch.zeros(16)
        assert torch.equal(weight[:, place], expected)
    assert "city = Bern" in after and "new user features: city = Bern" in started.notes
    assert any("no more" in note and "taste [0]" in note for note in started.notes)
