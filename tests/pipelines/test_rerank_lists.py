"""Lists for rerankers: the bundle's own order, the targets of the split, nothing from later."""

import numpy as np
import polars as pl
import pytest

from recsys.bundle import Bundle
from recsys.errors import InputError
from recsys.metrics import MISS
from recsys.pipelines.rerank_lists import lists_of, slate_lists
from recsys.pipelines.targets import BatchStates, RetrieverScorer, rank_all
from recsys.ranking_metrics import ndcg_groups
from recsys.retrieval.bundle_retrievers import bundle_retrievers
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.rerank.item_text import item_texts


@pytest.fixture(scope="module")
def bundle(toy_bundle):
    return Bundle.open(toy_bundle)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_ranks_and_ndcg_are_those_of_evaluate(bundle, toy_dataset, split):
    lists = lists_of(bundle, toy_dataset, split, k=8)
    scorers = [RetrieverScorer(bundle_retrievers(bundle, ["dense"], training_only=True)["dense"],
                               BatchStates(bundle.model, toy_dataset))]  # fmt: skip
    (ranked,) = rank_all(scorers, toy_dataset, split)
    expected = dict(zip(ranked.requests.user.tolist(), ranked.rank_Q.tolist(), strict=True))
    found = dict(zip(lists.user_Q.tolist(), lists.ranks().tolist(), strict=True))
    assert found == {user: rank if rank <= 8 else MISS for user, rank in expected.items()}
    assert 0 < lists.hit_Q.sum() < len(lists)


def test_history_ends_before_the_target_and_is_told_in_the_callers_words(bundle, toy_dataset):
    lists = lists_of(bundle, toy_dataset, "test", k=5, history=3)
    log, words = toy_dataset.events, toy_dataset.vocabulary
    for request, user, target in zip(lists.requests, lists.user_Q, lists.target_ids, strict=True):
        end = int(toy_dataset.test_at[user])
        assert len(request.events) == end
        assert len(request.history) == min(3, end)
        past = words.items.take(log.history(int(user), end).item)
        assert [event.item_id for event in request.events] == past
        assert [item.item_id for item in request.history] == past[-3:]
        assert not set(past) & set(request.ids)
        assert words.items.take(log.history(int(user)).item[[end]]) == [target]
        back, stored = words.history(request.events), log.history(int(user), end)
        for name in ("item", "timestamp", "yes", "known", "surface"):
            np.testing.assert_array_equal(getattr(back, name), getattr(stored, name))


def test_training_lists_hold_no_event_that_is_held_out(bundle, toy_dataset):
    lists = lists_of(bundle, toy_dataset, "train", k=5)
    for request, user in zip(lists.requests, lists.user_Q, strict=True):
        assert 0 < len(request.events) < toy_dataset.train_end[user]


def test_a_smaller_draw_is_the_beginning_of_a_larger_one_and_hits_only_counts_what_it_looked_at(bundle, toy_dataset):
    large = lists_of(bundle, toy_dataset, "test", k=8, num_users=25, seed=3)
    small = lists_of(bundle, toy_dataset, "test", k=8, num_users=6, seed=3)
    assert small.user_ids == large.user_ids[:6]
    hits = lists_of(bundle, toy_dataset, "test", k=8, num_users=3, seed=3, hits_only=True)
    kept = np.flatnonzero(large.hit_Q)[:3]
    assert hits.user_ids == tuple(large.user_ids[row] for row in kept)
    assert hits.num_asked == kept[-1] + 1
    assert hits.hit_Q.all()
    before = large.take(range(hits.num_asked)).figures(seed=0)
    assert hits.figures(seed=0)["ndcg@10"] == pytest.approx(before["ndcg@10"])
    assert hits.figures(seed=0)["ndcg@10_hits"] == pytest.approx(before["ndcg@10_hits"])


def test_a_missing_target_takes_the_last_place_and_a_found_one_stays(bundle, toy_dataset):
    plain = lists_of(bundle, toy_dataset, "validation", k=6, seed=1)
    added = lists_of(bundle, toy_dataset, "validation", k=6, seed=1, add_missing=True)
    assert added.hit_Q.all()
    for row, hit in enumerate(plain.hit_Q):
        before, after = plain.requests[row].ids, added.requests[row].ids
        assert after == (before if hit else (*before[:-1], plain.target_ids[row]))


def test_rank_by_orders_as_the_recommender_does(bundle, toy_dataset, toy_bundle):
    lists = lists_of(bundle, toy_dataset, "test", k=30, num_users=5, rank_by="like")
    rec = Recommender.load(toy_bundle)
    for request in lists.requests:
        scores = [item.score for item in request.candidates]
        assert scores == sorted(scores, reverse=True)
        page = rec.recommend(history=request.events, k=30, rank_by="like", at=request.at, surface="home")
        assert set(page.item_ids) == set(request.ids)


def test_orders_change_the_figures_as_worked_by_hand(bundle, toy_dataset):
    lists = lists_of(bundle, toy_dataset, "test", k=8, hits_only=True)
    first = [sorted(one.ids, key=lambda item, t=t: item != t) for one, t in
             zip(lists.requests, lists.target_ids, strict=True)]  # fmt: skip
    last = [list(reversed(order)) for order in first]
    assert lists.figures(first, seed=0)["ndcg@10_hits"] == 1.0
    assert lists.figures(last, seed=0)["ndcg@10_hits"] == pytest.approx(1 / np.log2(len(last[0]) + 1))
    assert lists.figures([one.ids for one in lists.requests], seed=0)["changed"] == 0.0
    with pytest.raises(ValueError, match="no permutation"):
        lists.ranks([order[:-1] for order in first])


def test_slates_are_lists_with_their_positives(small_world):
    lists = slate_lists(small_world, "validation", 12, seed=2)
    assert len(lists) == 12 == len(set(lists.user_ids))
    for request, gain in zip(lists.requests, lists.gains, strict=True):
        assert 0 < sum(gain) < len(gain) == len(request.candidates)
        assert request.at is not None
        assert all(event.timestamp < request.at for event in request.events)
    chosen = np.concatenate([np.array(gain) > 0 for gain in lists.gains])
    scores = np.concatenate([-np.arange(len(gain), dtype=float) for gain in lists.gains])
    group = np.repeat(np.arange(12), [len(gain) for gain in lists.gains])
    np.testing.assert_allclose(lists.ndcg(), ndcg_groups(chosen, scores, group, 10)[1])
    best = [[item for _, item in sorted(zip(gain, one.ids, strict=True), key=lambda pair: -pair[0])] for gain, one in
            zip(lists.gains, lists.requests, strict=True)]  # fmt: skip
    assert lists.figures(best, seed=0)["ndcg@10"] == 1.0


def test_bad_input_is_told_in_a_line(bundle, toy_dataset, small_world):
    with pytest.raises(InputError, match="no split 'now'"):
        lists_of(bundle, toy_dataset, "now")
    with pytest.raises(InputError, match="not of 'buy'"):
        lists_of(bundle, toy_dataset, "test", rank_by="buy")
    with pytest.raises(InputError, match="is not the dataset of bundle"):
        lists_of(bundle, small_world, "test")
    with pytest.raises(InputError, match="has no slates"):
        slate_lists(toy_dataset, "test")


def test_item_texts_join_what_is_there():
    items = pl.DataFrame({"title": ["A", None, "B", None], "text": ["A one", "two", "three", None]})
    assert item_texts(items, [3, 2, 1, 0]) == ["", "B. three", "two", "A one"]
    assert item_texts(items.select(pl.lit(1)), [0, 0]) == ["", ""]
    assert item_texts(items, []) == []
