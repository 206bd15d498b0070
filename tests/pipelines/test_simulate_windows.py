"""The made world as a yardstick: neither trivial nor hopeless for what is classical."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from recsys.dataset import Dataset
from recsys.pipelines.baselines import RANKING, RETRIEVAL
from recsys.pipelines.baselines.past_rates import rows_of_split
from recsys.pipelines.baselines.selection import validation_ndcg
from recsys.pipelines.prepare.build import prepare_frames
from recsys.pipelines.simulate import World, WorldConfig
from recsys.pipelines.simulate.ceilings import ceilings
from recsys.pipelines.simulate.tables import impression_table, interaction_table
from recsys.pipelines.simulate.visits import draw_visits
from recsys.pipelines.simulate.world import ACTIONS


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, dict[str, Any]]:
    """The default world, prepared, and its ceilings on test."""
    world = World.draw(WorldConfig())
    visits = draw_visits(world)
    tables = interaction_table(world, visits), None, None, impression_table(world, visits)
    dataset = prepare_frames(*tables, output=tmp_path_factory.mktemp("made") / "data")
    return dataset, ceilings(world, visits)["test"]


def test_who_sees_the_type_is_above_who_infers_it(made: tuple[Dataset, dict[str, Any]]) -> None:
    _, best = made
    true, posterior = best["true"], best["posterior"]
    for name in ("ndcg@10", "recall@10", "recall@100", "mrr"):
        assert true["retrieval"][name] > posterior["retrieval"][name] > 0
    for action in ACTIONS:
        assert true["ranking"][action]["auc"] > posterior["ranking"][action]["auc"] > 0.75
        assert true["ranking"][action]["logloss"] < posterior["ranking"][action]["logloss"]


def test_item_knn_reaches_a_part_of_the_posterior(made: tuple[Dataset, dict[str, Any]]) -> None:
    dataset, best = made
    ceiling = best["posterior"]["retrieval"]["ndcg@10"]
    requests = dataset.requests("test")
    share = {
        name: validation_ndcg(dataset, RETRIEVAL[name](dataset).score, requests) / ceiling
        for name in ("popularity", "item_knn")
    }
    assert 0.2 <= share["item_knn"] <= 0.6
    assert share["popularity"] < share["item_knn"]


@pytest.mark.parametrize("name", ["past_rates", "lightgbm_rates"])
def test_past_rates_go_a_part_of_the_way(name: str, made: tuple[Dataset, dict[str, Any]]) -> None:
    dataset, best = made
    assert dataset.slates is not None
    if name == "lightgbm_rates":
        pytest.importorskip("lightgbm")
    predicted = RANKING[name](dataset).predict(dataset, 2)
    rows = rows_of_split(dataset, 2)
    for action, prob_R in predicted.items():
        label = dataset.slates.yes[rows] >> dataset.manifest.actions.index(action) & 1
        auc = roc_auc_score(label.astype(np.bool_), prob_R[rows])
        way = (auc - 0.5) / (best["posterior"]["ranking"][action]["auc"] - 0.5)
        assert 0.2 <= way <= 0.6, (action, way)
