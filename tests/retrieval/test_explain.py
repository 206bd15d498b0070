"""Explanations beside requests that really leave an event out, and memory terms beside the score that holds them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.bundle import Bundle
from recsys.errors import InputError
from recsys.events import Event
from recsys.retrieval.recommender import Recommender

AT = 1_702_000_000
WEIGHTS = {
    "learned": 0.7,
    "relations": {"transition": [1.0, 0.5, 0.3, 0.1], "text": [2.0, 1.0]},
    "start_items": [4, 9],
    "start_values": [1.5, 0.5],
}


@pytest.fixture(scope="module")
def rec(toy_bundle: Path) -> Recommender:
    """With memory terms in the dense score."""
    bundle = Bundle.open(toy_bundle)
    return Recommender(replace(bundle, manifest={**bundle.manifest, "memory_weights": WEIGHTS}))


def events(num: int, seed: int = 0) -> list[Event]:
    rng = np.random.default_rng(seed)
    actions = ["click", "like", "hide", ""]
    return [
        Event(
            item_id=f"i{rng.integers(0, 30)}", actions=actions[int(rng.integers(4))],
            timestamp=AT - 90_000 + 700 * step, surface=["home", "mail"][step % 2],
        )
        for step in range(num)
    ]  # fmt: skip


def hit_of(rec: Recommender, history: list[Event], item: str, retriever: str):
    page = rec.recommend(history=history, k=30, retrievers=(retriever,), exclude_history=False, at=AT, surface="home")
    found = [hit for hit in page if hit.item_id == item]
    return found[0] if found else None


def same_as_requests(rec: Recommender, retriever: str, num_events: int) -> None:
    history = events(num_events)
    item = "i7"
    said = rec.explain(item_id=item, history=history, retriever=retriever, at=AT, surface="home")
    whole = hit_of(rec, history, item, retriever)
    assert said.score == pytest.approx(0.0 if whole is None else whole.score, abs=1e-5)
    if whole is not None:
        assert said.actions == pytest.approx(whole.actions, abs=1e-5)
    first = rec.bundle.model.config.first_visible(num_events)
    assert [effect.place for effect in said.by_time] == list(range(first, num_events))[::-1]
    for effect in said.effects:
        without = hit_of(rec, history[: effect.place] + history[effect.place + 1 :], item, retriever)
        assert said.score - effect.score_change == pytest.approx(0.0 if without is None else without.score, abs=1e-5)
        if without is not None:
            for name, change in effect.action_changes.items():
                assert said.actions[name] - change == pytest.approx(without.actions[name], abs=1e-5)
        event = history[effect.place]
        assert (effect.item_id, effect.timestamp) == (event.item_id, event.timestamp)
        assert "+".join(effect.actions) == event.actions
    sizes = [abs(effect.score_change) for effect in said.effects]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1e-3


def test_changes_are_those_of_requests_without_the_event(rec: Recommender):
    same_as_requests(rec, "dense", 9)


@pytest.mark.parametrize("retriever", ["generative", "parallel", "set", "hybrid"])
def test_so_they_are_for_retrievers_by_codes_without_scoring_the_catalogue(
    full_world: Any, retriever: str, monkeypatch: pytest.MonkeyPatch
):
    rec = Recommender.load(full_world.bundle)
    one = rec._snapshot.retrievers[retriever]
    monkeypatch.setattr(type(one), "scores", None)
    history = events(3)
    request = {"at": AT, "surface": "home"}
    if retriever == "hybrid":  # what a head of lists adds is no part of an explanation: it depends on the list
        monkeypatch.setattr(one, "head", None)
    hit = rec.recommend(history=history, k=1, retrievers=(retriever,), **request)[0]
    said = rec.explain(item_id=hit.item_id, history=history, retriever=retriever, **request)
    assert said.score == pytest.approx(hit.score, abs=1e-5)
    for effect in said.effects:
        rest = history[: effect.place] + history[effect.place + 1 :]
        page = rec.recommend(history=rest, k=32, retrievers=(retriever,), exclude_history=False, **request)
        without = next(other.score for other in page if other.item_id == hit.item_id)
        assert said.score - effect.score_change == pytest.approx(without, abs=1e-5)


@pytest.mark.parametrize(("retriever", "num_events"), [("dense_learned", 9), ("memory", 9), ("dense", 15)])
def test_so_they_are_for_other_retrievers_and_beyond_the_window(rec: Recommender, retriever: str, num_events: int):
    same_as_requests(rec, retriever, num_events)


def test_memory_terms_of_events_add_up_to_the_memory_part_of_the_score(rec: Recommender):
    found = 0
    for seed in range(6):
        history = events(8, seed)
        for item in ("i3", "i7", "i20"):
            said = rec.explain(item_id=item, history=history, at=AT, max_events=8)
            learned = rec.explain(item_id=item, history=history, at=AT, retriever="dense_learned", max_events=1)
            terms = sum(reason.value for effect in said.effects for reason in effect.memory)
            assert said.memory == pytest.approx(terms, abs=1e-6)
            assert said.score == pytest.approx(WEIGHTS["learned"] * learned.score + terms, abs=1e-5)
            assert learned.memory is None
            rule = rec.explain(item_id=item, history=history, at=AT, retriever="memory", max_events=8)
            assert rule.score == pytest.approx(rule.memory, abs=1e-5)
            found += len({reason.relation for effect in said.effects for reason in effect.memory}) == 2
    assert found  # transitions and text both have a say somewhere


def test_somebody_new_has_the_terms_of_new_users(rec: Recommender):
    started = rec.bundle.vocabulary.items.take([4])[0]
    said = rec.explain(item_id=started, history=[], at=AT)
    assert (said.effects, said.num_events, said.memory, said.memory_start) == ((), 0, 1.5, 1.5)
    page = rec.recommend(history=[], k=30, at=AT)
    assert said.score == pytest.approx({hit.item_id: hit.score for hit in page}[started], abs=1e-5)
    assert rec.explain(item_id=started, history=[], at=AT, attention=True).attention.shape[2] == 0


def test_stored_users_the_cap_and_the_picture(rec: Recommender):
    said = rec.explain("u7", "i3", at=AT, max_events=2, attention=True)
    assert len(said.effects) == 2 < said.num_events
    assert [effect.place for effect in said.by_time] == [said.num_events - 1, said.num_events - 2]
    model = rec.bundle.model
    visible = said.num_events - model.config.first_visible(said.num_events)
    assert said.attention.shape == (model.config.num_blocks, model.config.num_heads, visible)
    # Softmax weights, of which the item's own row takes the rest.
    assert (said.attention >= 0).all() and (said.attention.sum(2) < 1).all() and said.attention.sum() > 0.1


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"item_id": "nowhere"}, "item 'nowhere' is not in the catalogue"),
        ({"item_id": "x" * 9999}, "^item 'x{80}'… is not in the catalogue"),
        ({"item_id": 10**5000}, "item an integer of 16610 bits is not in the catalogue"),
        ({"item_id": "i3", "max_events": 0}, "max_events must be a positive integer, got 0"),
        ({"item_id": "i3", "retriever": "psychic"}, "there is no retriever 'psychic'"),
    ],
)
def test_questions_that_cannot_be_meant(rec: Recommender, fields: dict, line: str):
    with pytest.raises(InputError, match=line):
        rec.explain("u7", **fields)


def test_the_name_of_a_part_is_explained_as_the_retriever_it_belongs_to(rec: Recommender) -> None:
    whole = rec.explain(item_id="i3", history=events(5), at=AT)
    assert rec.explain(item_id="i3", history=events(5), at=AT, retriever="dense/memory").score == whole.score
    with pytest.raises(InputError, match="nobody"):
        rec.explain(item_id="i3", history=events(5), at=AT, retriever="nobody/dense")
