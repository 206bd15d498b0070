"""Past rates and LightGBM on them: point in time, against a plain loop."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.pipelines.baselines import RANKING, skip_reason
from recsys.pipelines.baselines.lightgbm_rates import LightGBMRates, fit_lightgbm_rates, rate_features
from recsys.pipelines.baselines.logistic_rates import LogisticRates, log_odds_features
from recsys.pipelines.baselines.past_rates import GROUPS, past_counts, rows_of_split
from recsys.pipelines.prepare.build import prepare_frames
from recsys.pipelines.scorer import RankingScorer
from recsys.pipelines.simulate import World, WorldConfig
from recsys.pipelines.simulate.tables import impression_table, interaction_table
from recsys.pipelines.simulate.visits import draw_visits
from recsys.ranking_metrics import auc

pytest.importorskip("lightgbm")


@pytest.fixture(scope="module")
def by_user(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A small made log, split leave-one-out."""
    return _prepared(tmp_path_factory.mktemp("rates"))


@pytest.fixture(scope="module")
def by_time(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The same log, split by time."""
    start = WorldConfig().start
    valid_from, test_from = start + 25 * 86400, start + 35 * 86400
    folder = tmp_path_factory.mktemp("rates")
    return _prepared(folder, split="time", valid_from=valid_from, test_from=test_from)


def _prepared(folder: Path, **settings: str | int) -> Dataset:
    world = World.draw(WorldConfig(num_users=80, num_items=240, seed=4))
    visits = draw_visits(world)
    tables = interaction_table(world, visits), None, None, impression_table(world, visits)
    return prepare_frames(*tables, output=folder / "data", **settings)


@pytest.mark.parametrize("kind", ["by_user", "by_time"])
def test_counts_are_those_of_a_plain_loop(kind: str, request: pytest.FixtureRequest) -> None:
    dataset: Dataset = request.getfixturevalue(kind)
    slates, events = dataset.slates, dataset.events
    assert slates is not None
    rng = np.random.default_rng(0)
    some = [rng.choice(rows_of_split(dataset, split), 12, replace=False) for split in (0, 1, 2)]
    rows = np.sort(np.concatenate(some))
    counts = past_counts(dataset, rows)
    for place, row in enumerate(rows.tolist()):
        slate = int(np.searchsorted(slates.offsets, row, side="right") - 1)
        user, time, surface = int(slates.user[slate]), int(slates.timestamp[slate]), int(slates.surface[row])
        past: dict[str, list[int]] = {group: [] for group in GROUPS}
        for other in range(dataset.num_users):
            low, high = int(events.offsets[other]), int(events.offsets[other + 1])
            for event in range(low, high):
                if events.timestamp[event] >= time:
                    continue
                if other == user:
                    past["user"].append(event)
                    if events.surface[event] == surface:
                        past["user_surface"].append(event)
                if kind == "by_user" and event - low >= dataset.train_end[other]:
                    continue
                past["all"].append(event)
                if events.surface[event] == surface:
                    past["surface"].append(event)
                if events.item[event] == slates.item[row]:
                    past["item"].append(event)
                    if events.surface[event] == surface:
                        past["item_surface"].append(event)
        for group, members in past.items():
            for action in range(len(dataset.manifest.actions)):
                yes = sum(int(events.yes[event]) >> action & 1 for event in members)
                known = sum(int(events.known[event]) >> action & 1 for event in members)
                assert counts.yes[group][place, action] == yes, (group, row, action)
                assert counts.known[group][place, action] == known, (group, row, action)


def test_nothing_at_or_after_the_slate_matters(by_time: Dataset) -> None:
    slates, events = by_time.slates, by_time.events
    assert slates is not None
    rows = rows_of_split(by_time, 2)
    slate = int(np.searchsorted(slates.offsets, rows[len(rows) // 2], side="right") - 1)
    own = np.arange(slates.offsets[slate], slates.offsets[slate + 1])
    before = rate_features(by_time, own)
    time = slates.timestamp[slate]
    assert (events.timestamp >= time).any() and (events.timestamp < time).any()
    changed = Dataset(by_time.path, by_time.manifest)
    late_yes = np.where(events.timestamp >= time, 15 - events.yes, events.yes)
    changed.__dict__["events"] = replace(events, yes=late_yes)
    np.testing.assert_array_equal(rate_features(changed, own), before)
    early_yes = np.where(events.timestamp < time, 15 - events.yes, events.yes)
    changed.__dict__["events"] = replace(events, yes=early_yes)
    assert (rate_features(changed, own) != before).any()


def test_unknown_actions_count_as_nothing(by_user: Dataset) -> None:
    rows = rows_of_split(by_user, 2)
    changed = Dataset(by_user.path, by_user.manifest)
    zero = np.zeros_like(by_user.events.yes)
    changed.__dict__["events"] = replace(by_user.events, yes=zero, known=zero + 1)
    counts = past_counts(changed, rows)
    assert counts.known["item"][:, 0].max() > 0
    assert counts.known["item"][:, 1:].max() == 0


@pytest.mark.parametrize("name", list(RANKING))
def test_predictions_cover_the_split_and_nothing_else(name: str, by_user: Dataset) -> None:
    assert skip_reason(name, by_user) is None
    scorer = RANKING[name](by_user)
    assert isinstance(scorer, RankingScorer)
    assert scorer.name == name
    slates = by_user.slates
    assert slates is not None
    for split in (1, 2):
        predicted = scorer.predict(by_user, split)
        assert list(predicted) == list(by_user.manifest.actions)
        inside = np.zeros(len(slates.item), dtype=bool)
        inside[rows_of_split(by_user, split)] = True
        for prob_R in predicted.values():
            assert prob_R.dtype == np.float32
            assert np.isnan(prob_R[~inside]).all()
            assert ((prob_R[inside] > 0) & (prob_R[inside] < 1)).all()
    click = by_user.manifest.actions.index("click")
    label = slates.yes[inside] >> click & 1
    prob = predicted["click"][inside]
    assert prob[label == 1].mean() > prob[label == 0].mean()
    assert abs(prob.mean() - label.mean()) < 0.1


def test_the_place_in_the_slate_is_not_used(by_user: Dataset) -> None:
    """The rows of every slate in the opposite order get the same predictions, in the opposite order."""
    slates = by_user.slates
    assert slates is not None
    scorer = fit_lightgbm_rates(by_user)
    turned = Dataset(by_user.path, by_user.manifest)
    order = np.concatenate(
        [np.arange(high - 1, low - 1, -1) for low, high in zip(slates.offsets[:-1], slates.offsets[1:], strict=True)]
    )
    names = ("item", "yes", "known", "surface", "time", "value")
    turned.__dict__["slates"] = replace(slates, **{name: getattr(slates, name)[order] for name in names})
    for action, prob_R in scorer.predict(by_user, 2).items():
        np.testing.assert_array_equal(scorer.predict(turned, 2)[action], prob_R[order])


def test_an_action_that_never_happens_gets_its_share(by_user: Dataset) -> None:
    slates = by_user.slates
    assert slates is not None
    hide = by_user.manifest.actions.index("hide")
    changed = Dataset(by_user.path, by_user.manifest)
    changed.__dict__["slates"] = replace(slates, yes=slates.yes & ~(1 << hide))
    scorer = LightGBMRates(changed)
    assert scorer.settings["hide"] == {"constant": 0.0}
    prob_R = scorer.predict(changed, 2)["hide"]
    assert np.nanmax(prob_R) == 0.0


def test_without_lightgbm_the_error_says_how_to_get_it(by_user: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(InputError, match=r"pip install 'recsys\[baselines\]'"):
        fit_lightgbm_rates(by_user)


def test_without_slates_the_error_names_the_flag(toy_dataset: Dataset) -> None:
    for factory in RANKING.values():
        with pytest.raises(InputError, match="--impressions"):
            factory(toy_dataset)


def test_logistic_features_are_the_log_odds_of_the_same_rates(by_user: Dataset) -> None:
    rows = rows_of_split(by_user, 1)[::7]
    boosted, linear = rate_features(by_user, rows), log_odds_features(by_user, rows)
    width = len(GROUPS) * len(by_user.manifest.actions)
    expected = np.clip(boosted[:, :width].astype(np.float64), 1e-5, 1 - 1e-5)
    np.testing.assert_allclose(1 / (1 + np.exp(-linear[:, :width])), expected, rtol=1e-4)
    np.testing.assert_allclose(linear[:, width : width + 4], boosted[:, width:-1], rtol=1e-5)
    surface = boosted[:, -1]
    assert len(np.unique(surface)) > 1
    np.testing.assert_array_equal(
        linear[:, width + 4 :], surface[:, None] == np.arange(1, len(by_user.manifest.surfaces))
    )


def test_logistic_regression_reads_no_test_label_and_ranks(by_time: Dataset) -> None:
    slates = by_time.slates
    assert slates is not None
    changed = Dataset(by_time.path, by_time.manifest)
    in_test = np.isin(np.arange(len(slates.item)), rows_of_split(by_time, 2))
    changed.__dict__["slates"] = replace(slates, yes=np.where(in_test, 0, slates.yes))
    scorer = LogisticRates(by_time)
    assert set(scorer.settings["click"]) == {"inverse_penalty"}
    predicted = scorer.predict(by_time, 2)
    for action, prob_R in LogisticRates(changed).predict(by_time, 2).items():
        np.testing.assert_array_equal(predicted[action], prob_R)
    click = by_time.manifest.actions.index("click")
    label = (slates.yes[in_test] >> click & 1).astype(bool)
    prob = predicted["click"][in_test].astype(np.float64)
    assert auc(label, prob) > 0.55


def test_logistic_regression_of_an_action_that_never_happens(by_user: Dataset) -> None:
    slates = by_user.slates
    assert slates is not None
    hide = by_user.manifest.actions.index("hide")
    changed = Dataset(by_user.path, by_user.manifest)
    changed.__dict__["slates"] = replace(slates, yes=slates.yes & ~(1 << hide))
    scorer = LogisticRates(changed)
    assert scorer.settings["hide"] == {"constant": 0.0}
    assert np.nanmax(scorer.predict(changed, 2)["hide"]) == 0.0
