"""The made world: its parameters, its log, the tables, and the exact posterior against brute force."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.errors import InputError
from recsys.pipelines.prepare.build import prepare_frames
from recsys.pipelines.simulate import World, WorldConfig
from recsys.pipelines.simulate.ceilings import request_states, slate_probabilities
from recsys.pipelines.simulate.command import simulate
from recsys.pipelines.simulate.posterior import forward_beliefs
from recsys.pipelines.simulate.tables import impression_table, interaction_table, item_table
from recsys.pipelines.simulate.visits import PROBE, SEARCH, SLATE, Visits, draw_visits
from recsys.pipelines.simulate.world import ACTIONS

SMALL = WorldConfig(num_users=60, num_items=260, seed=3)
TINY = WorldConfig(
    num_users=5,
    num_items=40,
    seed=2,
    num_types=3,
    num_clusters=4,
    favourites=2,
    min_steps=3,
    max_steps=4,
    slate_size=3,
    slate_share=0.4,
    held_out_probes=1,
    drift_days=2.0,
    successor_share=0.2,
)


@pytest.fixture(scope="module")
def small() -> tuple[World, Visits]:
    world = World.draw(SMALL)
    return world, draw_visits(world)


def test_parameters_are_fixed() -> None:
    # Figures on made data are comparable only while this hash stays: change it only together with all of them.
    assert WorldConfig().digest() == "b9af8b79de54549130f0308a9460e2096fc9a2a192d6228bcea7eee74545bb2c"
    assert WorldConfig(seed=1).digest() != WorldConfig().digest()


def test_same_seed_same_files(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        simulate(tmp_path / name, users=40, items=260, seed=seed)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert [str(file) for file in files] == [
        "impressions.parquet",
        "interactions.parquet",
        "items.parquet",
        "truth/ceilings.json",
        "truth/visits.safetensors",
        "truth/world.json",
        "truth/world.safetensors",
        "users.parquet",
    ]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    other = (tmp_path / "c" / "interactions.parquet").read_bytes()
    assert (tmp_path / "a" / "interactions.parquet").read_bytes() != other
    truth = json.loads((tmp_path / "a" / "truth" / "world.json").read_text())
    assert truth["digest"] == WorldConfig(num_users=40, num_items=260, seed=5).digest()


def test_impossible_worlds_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="num_items must be at least 222.*--items"):
        simulate(tmp_path / "a", users=10, items=50)
    with pytest.raises(InputError, match="num_users must be at least 1"):
        simulate(tmp_path / "a", users=0)
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not empty"):
        simulate(tmp_path / "mine", users=10)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_slates_and_interactions_agree(small: tuple[World, Visits]) -> None:
    world, visits = small
    events, slates = interaction_table(world, visits), impression_table(world, visits)
    assert events["timestamp"].is_sorted()
    assert not events.select("user_id", "item_id").is_duplicated().any()
    rows = slates.explode("item_ids", "actions", "surfaces", "times")
    joined = rows.join(
        events, left_on=["user_id", "item_ids", "times"], right_on=["user_id", "item_id", "timestamp"], how="inner"
    )
    assert (joined["actions"] == joined["action"]).all()
    assert (joined["surfaces"] == joined["surface"]).all()
    assert joined.height == SMALL.slate_size * int((visits.kind == SLATE).sum())
    # What is no row of a slate is a search, always clicked; a probe leaves nothing.
    searches = events.filter(pl.col("surface") == "search")
    assert searches.height == events.height - joined.height == int((visits.kind == SEARCH).sum())
    assert searches["action"].str.contains("click").all()
    assert (events["action"] == "").sum() > 0


def test_targets_and_held_out_slates_survive_preparation(small: tuple[World, Visits], tmp_path: Path) -> None:
    world, visits = small
    data = prepare_frames(
        interaction_table(world, visits),
        items=item_table(world),
        impressions=impression_table(world, visits),
        output=tmp_path / "data",
    )
    assert data.manifest.clock == "real"
    assert set(data.manifest.actions) == set(ACTIONS)
    assert data.manifest.negatives == ("hide",)
    user_names, item_names = data.user_ids.to_list(), data.item_ids.to_list()
    for split, target_at_U in (("validation", visits.valid_at_U), ("test", visits.test_at_U)):
        requests = data.requests(split)
        assert len(requests) == SMALL.num_users
        for user, target in zip(requests.user, requests.target, strict=True):
            number = int(user_names[user][1:])
            assert item_names[target] == f"i{visits.item_VK[target_at_U[number], 0]:05d}"
    assert data.slates is not None
    for split in (1, 2):
        held_out = np.flatnonzero(data.slates.split == split)
        assert len(np.unique(data.slates.user[held_out])) == SMALL.num_users
        rows = np.flatnonzero(np.repeat(data.slates.split == split, np.diff(data.slates.offsets)))
        assert 0.1 < (data.slates.yes[rows] & data.manifest.positive_mask != 0).mean() < 0.6


def test_clicks_fall_with_the_place() -> None:
    world = World.draw(replace(SMALL, num_users=1500))
    visits = draw_visits(world)
    probes = visits.kind == PROBE  # in random order, so that the place alone makes the difference
    rate_K = visits.yes_VKA[probes, :, 0].mean(0)
    assert rate_K[0] > rate_K[1] > rate_K[5]
    assert rate_K[0] > 1.4 * rate_K[5]
    # Logged slates show what is popular first: there, the place and the item go together.
    shown = np.log(world.popularity_I)[visits.item_VK]
    assert shown[visits.kind == SLATE, 0].mean() > shown[visits.kind == SLATE, 5].mean() + 0.5
    assert abs(shown[probes, 0].mean() - shown[probes, 5].mean()) < 0.1


def test_texts_and_categories_tell_the_cluster(small: tuple[World, Visits]) -> None:
    world, _ = small
    items = item_table(world)
    pairs = {(category, cluster) for category, cluster in zip(items["category"], world.cluster_I, strict=True)}
    assert len(pairs) == SMALL.num_clusters
    words = [set(text.split()) for text in items["text"]]
    same, other = [], []
    for a, b in itertools.combinations(range(80), 2):
        (same if world.cluster_I[a] == world.cluster_I[b] else other).append(len(words[a] & words[b]))
    assert np.mean(same) > 2 * np.mean(other)


def test_types_drift_in_continuous_time(small: tuple[World, Visits]) -> None:
    world, visits = small
    day = 86400
    one, two, both = world.drift(np.array([day, 5 * day, 6 * day]))
    np.testing.assert_allclose(one @ two, both, atol=1e-12)
    np.testing.assert_allclose(both.sum(1), 1.0, atol=1e-12)
    np.testing.assert_allclose(world.drift(np.array([0]))[0], np.eye(SMALL.num_types), atol=1e-12)
    assert both.diagonal().max() < one.diagonal().min() < 1
    same_user = visits.user[1:] == visits.user[:-1]
    assert (visits.type[1:] != visits.type[:-1])[same_user].any()


def test_search_weights_are_the_likelihoods_of_every_item(small: tuple[World, Visits]) -> None:
    world, _ = small
    rng = np.random.default_rng(0)
    last = np.array([-1, 0, 7])
    seen_QI = rng.random((3, SMALL.num_items)) < 0.3
    belief_QZ = rng.dirichlet(np.ones(SMALL.num_types), 3)
    weight_QI = world.search_weights(last, belief_QZ, seen_QI)
    np.testing.assert_allclose(weight_QI.sum(1), 1.0, atol=1e-12)
    assert (weight_QI[seen_QI] == 0).all()
    for item in np.flatnonzero(~seen_QI.any(0))[:20]:
        each_QZ = world.search_likelihood(np.full(3, item), last, seen_QI)
        np.testing.assert_allclose((each_QZ * belief_QZ).sum(1), weight_QI[:, item], atol=1e-12)


def test_forward_algorithm_is_brute_force() -> None:
    world = World.draw(TINY)
    visits = draw_visits(world)
    belief_VZ = forward_beliefs(world, visits)
    compared = 0
    for user in range(TINY.num_users):
        rows = np.flatnonzero(visits.user == user)
        for upto in rows[1:]:
            before = [int(row) for row in rows if row < upto and visits.kind[row] != PROBE]
            np.testing.assert_allclose(belief_VZ[upto], _brute_belief(world, visits, before, int(upto)), atol=1e-9)
            compared += 1
    assert compared > 20
    assert belief_VZ.max() > 0.9  # the history does tell something about the type


def _brute_belief(world: World, visits: Visits, before: list[int], upto: int) -> np.ndarray:
    """Sum over every sequence of types, with each probability written out."""
    kinds = range(TINY.num_types)
    chance_Z = np.zeros(TINY.num_types)
    moments = [*before, upto]
    emission = _brute_emissions(world, visits, before)
    for types in itertools.product(kinds, repeat=len(moments)):
        chance = 1 / TINY.num_types
        for place, row in enumerate(moments):
            if place > 0:
                gap = int(visits.time[row] - visits.time[moments[place - 1]])
                chance *= world.drift(np.array([gap]))[0][types[place - 1], types[place]]
            if row != upto:
                chance *= emission[place][types[place]]
        chance_Z[types[-1]] += chance
    return chance_Z / chance_Z.sum()


def _brute_emissions(world: World, visits: Visits, before: list[int]) -> list[list[float]]:
    config, out = world.config, []
    seen: set[int] = set()
    last = -1
    for row in before:
        items = [int(item) for item in visits.item_VK[row] if item >= 0]
        chances = []
        for kind in range(config.num_types):
            chance = 1.0
            if visits.kind[row] == SEARCH:
                weights = [_brute_search(world, kind, last, item) for item in range(config.num_items)]
                free = sum(weight for item, weight in enumerate(weights) if item not in seen)
                chance *= weights[items[0]] / free
            for place, item in enumerate(items):
                for action in range(len(ACTIONS)):
                    if visits.kind[row] == SEARCH and action == 0:
                        continue
                    prob = _brute_action(world, kind, item, int(visits.surface[row]), place, action)
                    chance *= prob if visits.yes_VKA[row, place, action] else 1 - prob
            chances.append(chance)
        out.append(chances)
        for place, item in enumerate(items):
            seen.add(item)
            if visits.yes_VKA[row, place, :3].any():
                last = item
    return out


def _brute_search(world: World, kind: int, last: int, item: int) -> float:
    config, cluster = world.config, world.cluster_I[item]
    led = 1 - config.successor_share - config.popular_share
    if last < 0:
        common = (config.popular_share + config.successor_share) * world.popularity_I[item]
        return float(led * world.taste_ZC[kind, cluster] * world.within_I[item] + common)
    common = config.popular_share * world.popularity_I[item]
    common += config.successor_share * np.mean(world.successor_IM[last] == item)
    return float(world.move_ZCC[kind, world.cluster_I[last], cluster] * world.within_I[item] + common)


def _brute_action(world: World, kind: int, item: int, surface: int, place: int, action: int) -> float:
    config = world.config
    odds = config.action_bias[action] + config.action_quality[action] * world.quality_I[item]
    odds += config.action_affinity[action] * world.affinity_AZC[action, kind, world.cluster_I[item]]
    odds += (config.search_bias, (0.0,) * 4, config.related_bias)[surface][action]
    if surface != 0:
        odds -= config.place_bias * np.log2(1 + place)
    return float(1 / (1 + np.exp(-odds)))


def test_slate_probabilities_average_over_places(small: tuple[World, Visits]) -> None:
    world, visits = small
    at = np.flatnonzero(visits.kind == PROBE)[:5]
    belief_QZ = np.random.default_rng(1).dirichlet(np.ones(SMALL.num_types), 5)
    prob_QKA = slate_probabilities(world, visits, at, belief_QZ)
    item, surface = int(visits.item_VK[at[2], 4]), int(visits.surface[at[2]])
    for action in range(len(ACTIONS)):
        parts = [
            belief_QZ[2, kind] * _brute_action(world, kind, item, surface, place, action) / SMALL.slate_size
            for kind in range(SMALL.num_types)
            for place in range(SMALL.slate_size)
        ]
        assert prob_QKA[2, 4, action] == pytest.approx(sum(parts), abs=1e-12)


def test_request_states_are_those_before_the_target(small: tuple[World, Visits]) -> None:
    world, visits = small
    last, seen_QI = request_states(world, visits, visits.test_at_U)
    for user in (0, 17, 59):
        rows = np.flatnonzero((visits.user == user) & (visits.kind != PROBE))
        rows = rows[rows < visits.test_at_U[user]]
        items = visits.item_VK[rows]
        assert set(np.flatnonzero(seen_QI[user])) == set(items[items >= 0])
        liked = items[visits.yes_VKA[rows][:, :, :3].any(-1)]
        assert last[user] == liked[-1]
