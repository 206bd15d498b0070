"""The recommender: the same answers however they are asked for, and plain answers to odd questions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.events import Event
from recsys.retrieval.page import Page
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.request import Request

AT = 1_702_000_000


@pytest.fixture(scope="module")
def rec(toy_bundle: Path) -> Recommender:
    return Recommender.load(toy_bundle)


@pytest.fixture(scope="module")
def without_histories(toy_model: Any, toy_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    from recsys.pipelines.export import export_model

    path = tmp_path_factory.mktemp("bare") / "bundle"
    export_model(toy_model, toy_dataset, path)
    return Recommender.load(path)


def as_events(dataset: Dataset, user: str) -> list[Event]:
    """A stored user's events in the caller's words."""
    history = dataset.events.history(int(dataset.user_index([user])[0]))
    actions = dataset.manifest.actions
    return [
        Event(
            item_id=dataset.item_ids[int(history.item[row])],
            actions=[name for bit, name in enumerate(actions) if int(history.yes[row]) >> bit & 1],
            unknown=[name for bit, name in enumerate(actions) if not int(history.known[row]) >> bit & 1],
            timestamp=int(history.timestamp[row]),
            surface=dataset.manifest.surfaces[int(history.surface[row])] or None,
        )
        for row in range(len(history))
    ]


def assert_same(left: Page, right: Page) -> None:
    assert left.item_ids == right.item_ids
    assert [hit.retriever for hit in left] == [hit.retriever for hit in right]
    assert (left.num_reachable, left.notes) == (right.num_reachable, right.notes)
    assert [hit.score for hit in left] == pytest.approx([hit.score for hit in right], abs=1e-5)
    for one, other in zip(left, right, strict=True):
        assert list(one.actions) == list(other.actions)
        assert list(one.actions.values()) == pytest.approx(list(other.actions.values()), abs=1e-5)


# -- what a page is ------------------------------------------------------------------------------------------------


def test_page_is_the_sorted_catalogue_with_probabilities(rec: Recommender, toy_dataset: Dataset):
    page = rec.recommend("u7", k=5, at=AT, surface="mail")
    history = toy_dataset.events.history(int(toy_dataset.user_index(["u7"])[0]))
    model = rec.bundle.model
    with torch.inference_mode():
        states = model.encode([history])
        at, surface = torch.tensor([AT]), torch.tensor([toy_dataset.manifest.surfaces.index("mail")])
        score = (model.query(states, at, surface) @ model.item_vectors().T)[0].numpy()
        score[history.item] = -np.inf
        best = np.argsort(-score, kind="stable")[:5]
        logits = model.rank(states, torch.from_numpy(best)[None], at, surface[:, None].expand(1, 5))
    assert page.item_ids == [toy_dataset.item_ids[int(item)] for item in best]
    assert [hit.score for hit in page] == pytest.approx(score[best].tolist(), abs=1e-5)
    got = np.array([list(hit.actions.values()) for hit in page])
    assert got == pytest.approx(torch.sigmoid(logits)[0].numpy(), abs=1e-5)
    assert list(page[0].actions) == list(toy_dataset.manifest.actions)
    assert {hit.retriever for hit in page} == {"dense"}
    assert page.num_reachable == toy_dataset.num_items - len(set(history.item.tolist()))
    assert len(page[1:3]) == 2


def test_all_earlier_items_are_left_out_unless_asked_for(rec: Recommender, toy_dataset: Dataset):
    seen = {event.item_id for event in as_events(toy_dataset, "u3")}
    page = rec.recommend("u3", k=30, at=AT)
    assert set(page.item_ids) == set(toy_dataset.item_ids) - seen
    assert set(rec.recommend("u3", k=30, at=AT, exclude_history=False).item_ids) == set(toy_dataset.item_ids)


def test_stored_explicit_and_continued_histories_agree(rec: Recommender, toy_dataset: Dataset):
    for user in ("u1", "u8", "u20"):
        events = as_events(toy_dataset, user)
        stored = rec.recommend(user, at=AT)
        assert_same(stored, rec.recommend(history=events, at=AT))
        assert_same(stored, rec.recommend(history=events[::-1], at=AT))  # times order them
        assert_same(stored, rec.recommend(history=events[:-3], new_events=events[-3:], at=AT))
        more = [Event(item_id="i29", actions="like", timestamp=AT - 5), Event(item_id="i28", timestamp=AT - 2)]
        continued = rec.recommend(user, new_events=more, at=AT)
        assert_same(continued, rec.recommend(history=[*events, *more], at=AT))
        assert continued.item_ids != stored.item_ids


def test_batch_answers_as_one_by_one(rec: Recommender, toy_dataset: Dataset):
    requests = [Request(user_id=user, k=3 + row % 7, at=AT + row) for row, user in enumerate(toy_dataset.user_ids)]
    requests += [
        Request(at=AT),
        Request(user_id="stranger", at=AT, rank=False),
        Request(history=[Event(item_id="i3", actions="click")], exclude=["i4", "i5"], at=AT, surface="home"),
        Request(user_id="u4", allow=["i1", "i2", "i3"], at=AT),
        Request(user_id="u5", allow=["i3", "i2", "i1"], at=AT),
        Request(user_id="u6", retrievers=("memory", "dense"), at=AT),
        Request(user_id="u6", allow=[], at=AT),
        Request(user_id="u9", rank_by={"like": 2.0, "hide": -1.0}, at=AT),
    ]
    pages = rec.recommend_batch(requests)
    for request, page in zip(requests, pages, strict=True):
        fields = {name: getattr(request, name) for name in Request.__dataclass_fields__}
        assert_same(page, rec.recommend(**fields))
    assert_same(rec.recommend_batch([{"user_id": "u2", "at": AT}])[0], rec.recommend("u2", at=AT))
    assert rec.recommend_batch([]) == []


def test_batches_larger_than_one_pass_keep_their_order(rec: Recommender, monkeypatch: pytest.MonkeyPatch):
    requests = [Request(user_id=f"u{row}", at=AT) for row in range(11)]
    whole = rec.recommend_batch(requests)
    monkeypatch.setattr("recsys.retrieval.recommender.BATCH", 4)
    for left, right in zip(whole, rec.recommend_batch(requests), strict=True):
        assert_same(left, right)


def test_rank_by_reorders_what_was_retrieved(rec: Recommender):
    retrieved = rec.recommend("u9", k=12, at=AT)
    by_like = rec.recommend("u9", k=4, candidates=12, rank_by="like", at=AT)
    expected = sorted(retrieved, key=lambda hit: -hit.actions["like"])[:4]
    assert by_like.item_ids == [hit.item_id for hit in expected]
    mixed = rec.recommend("u9", k=4, candidates=12, rank_by={"like": 1.0, "hide": -2.0}, at=AT)
    expected = sorted(retrieved, key=lambda hit: 2 * hit.actions["hide"] - hit.actions["like"])[:4]
    assert mixed.item_ids == [hit.item_id for hit in expected]


def test_several_retrievers_take_turns(rec: Recommender):
    dense = rec.recommend("u6", k=6, at=AT).item_ids
    memory = rec.recommend("u6", k=6, retrievers=("memory",), at=AT).item_ids
    both = rec.recommend("u6", k=6, retrievers=("memory", "dense"), at=AT)
    assert both.item_ids[:1] == memory[:1]
    assert both.item_ids[1] == next(item for item in dense if item != memory[0])
    assert len(set(both.item_ids)) == 6
    for hit in both:
        assert hit.item_id in (memory if hit.retriever == "memory" else dense)


def test_memory_scores_are_those_of_all_known_events(rec: Recommender):
    bundle = rec.bundle
    assert bundle.histories is not None
    state = bundle.model.encode([bundle.histories.events.history(6)], keep_cache=False)
    recent_BM = state.recent_BM[:, : bundle.model.config.recent]
    scores = bundle.graph_now.scores(recent_BM)[0]
    assert not torch.equal(scores, bundle.graph_train.scores(recent_BM)[0])
    page = rec.recommend("u6", k=5, retrievers=("memory",), at=AT)
    place = bundle.vocabulary.items.index(page.item_ids)
    assert [hit.score for hit in page] == pytest.approx(scores[torch.from_numpy(place)].tolist(), abs=1e-5)
    assert page[0].score > 0


def test_time_and_surface_of_the_request_count(rec: Recommender):
    base = rec.recommend("u7", at=AT)
    later = rec.recommend("u7", at=AT + 40_000)
    elsewhere = rec.recommend("u7", at=AT, surface="home")
    assert base[0].actions != later[0].actions
    assert base[0].actions != elsewhere[0].actions
    assert_same(base, rec.recommend("u7", at=AT, surface="a surface the data never had"))


def test_wall_clock_is_the_default_time(toy_bundle: Path, rec: Recommender):
    fixed = Recommender(rec.bundle, clock=lambda: AT + 0.7)
    assert_same(fixed.recommend("u7"), rec.recommend("u7", at=AT))


# -- odd questions -------------------------------------------------------------------------------------------------


def test_new_users_get_the_answer_to_an_empty_history(rec: Recommender, without_histories: Recommender):
    nobody = rec.recommend(at=AT)
    assert len(nobody) == 10
    assert nobody.notes == ()
    assert_same(nobody, rec.recommend(history=[], at=AT))
    assert_same(nobody, without_histories.recommend(at=AT))
    stranger = rec.recommend("stranger", at=AT)
    assert stranger.item_ids == nobody.item_ids
    assert stranger.notes == ("user 'stranger' is not in this bundle; answered as for a new user",)
    event = [Event(item_id="i3", actions="click", timestamp=AT - 9)]
    assert rec.recommend("stranger", new_events=event, at=AT).item_ids == rec.recommend(history=event, at=AT).item_ids


def test_items_outside_the_catalogue_are_events_too(rec: Recommender):
    known = [Event(item_id="i3", actions="click", timestamp=AT - 9)]
    strange = [*known, Event(item_id="not yet prepared", actions="click", timestamp=AT - 3)]
    page = rec.recommend(history=strange, k=30, at=AT)
    assert "1 events are of items outside the catalogue" in page.notes
    assert len(page) == 29
    assert page[0].score != rec.recommend(history=known, at=AT)[0].score
    assert len(rec.recommend(history=strange[1:], k=30, at=AT)) == 30


def test_everything_excluded_is_an_empty_page(rec: Recommender, toy_dataset: Dataset):
    page = rec.recommend("u1", exclude=toy_dataset.item_ids, at=AT)
    assert (list(page), page.num_reachable) == ([], 0)
    assert page.notes == ("10 items were asked for and 0 were left to choose from",)
    assert list(rec.recommend("u1", allow=[], at=AT)) == []
    assert list(rec.recommend("u1", rank_by="like", exclude=list(toy_dataset.item_ids), at=AT)) == []


def test_fewer_hits_where_less_is_left(rec: Recommender, toy_dataset: Dataset):
    seen = {event.item_id for event in as_events(toy_dataset, "u1")}
    allowed = [item for item in toy_dataset.item_ids if item not in seen][:3]
    page = rec.recommend("u1", k=1000, allow=[*allowed, *seen, "who knows"], exclude=["never heard of"], at=AT)
    assert set(page.item_ids) == set(allowed)
    assert page.num_reachable == 3
    assert page.notes == (
        "1 allowed ids are not in the catalogue",
        "1000 items were asked for and 3 were left to choose from",
    )


def test_memory_without_a_positive_has_nothing_to_say(rec: Recommender):
    page = rec.recommend(retrievers=("memory",), at=AT)
    assert list(page) == []
    assert "the retrievers found 0 of the 10 items asked for" in page.notes[0]
    assert len(rec.recommend(retrievers=("memory", "dense"), at=AT)) == 10


def test_an_iterator_of_exclusions_lasts_for_the_whole_request(rec: Recommender):
    request = Request(user_id="u1", k=30, exclude=iter(["i1", "i2"]), allow=iter(["i1", "i2", "i9"]), at=AT)
    assert_same(rec.recommend_batch([request])[0], rec.recommend_batch([request])[0])
    assert set(rec.recommend_batch([request])[0].item_ids) <= {"i9"}


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"k": 0}, "k must be a positive integer, got 0"),
        ({"k": True}, "k must be a positive integer, got True"),
        ({"user_id": "u1", "history": []}, "give user_id or history, not both"),
        ({"retrievers": ("dense", "psychic")}, "there is no retriever 'psychic' in this bundle; it has dense"),
        ({"retrievers": "dense"}, "retrievers must be a sequence of names"),
        ({"rank_by": "buys"}, "ranks by .*click.*, not by 'buys'"),
        ({"rank_by": "like", "rank": False}, "it needs rank=True"),
        ({"allow": "i1"}, "allow must be a collection of item ids"),
        ({"history": [Event(item_id="i1", actions="buys")]}, "'buys' is no action of this data"),
    ],
)
def test_requests_that_cannot_be_meant_are_named(rec: Recommender, fields: dict[str, Any], match: str):
    with pytest.raises(InputError, match=match):
        rec.recommend(**fields)


def test_user_ids_need_stored_histories(without_histories: Recommender):
    with pytest.raises(InputError, match="holds no histories.*export with --histories"):
        without_histories.recommend("u1")
    with pytest.raises(InputError, match="a request has no field 'user'; its fields are"):
        without_histories.recommend_batch([{"user": "u1"}])


# -- similar items and frames --------------------------------------------------------------------------------------


def test_similar_items_are_the_nearest_by_cosine(rec: Recommender, toy_dataset: Dataset):
    vectors = torch.nn.functional.normalize(rec.bundle.vectors.double(), dim=1)
    item = int(toy_dataset.item_index(["i4"])[0])
    cosine = vectors @ vectors[item]
    cosine[item] = -2
    best = cosine.argsort(descending=True)[:6]
    page = rec.similar_items("i4", k=6)
    assert page.item_ids == [toy_dataset.item_ids[int(place)] for place in best]
    assert [hit.score for hit in page] == pytest.approx(cosine[best].tolist(), abs=1e-5)
    everything = rec.similar_items("i4", k=500)
    assert len(everything) == 29
    assert everything.notes == ("500 items were asked for and 29 were left to choose from",)
    with pytest.raises(InputError, match="item 'i99' is not in the catalogue"):
        rec.similar_items("i99")


def test_frame_holds_the_pages(rec: Recommender):
    frame = rec.recommend_frame(users=["u9", "u2"], k=3, at=AT)
    assert frame.columns == ["user_id", "rank", "item_id", "score", "retriever", "prob_click", "prob_hide", "prob_like"]
    pages = [rec.recommend(user, k=3, at=AT) for user in ("u9", "u2")]
    assert frame["user_id"].to_list() == ["u9"] * 3 + ["u2"] * 3
    assert frame["rank"].to_list() == [1, 2, 3] * 2
    assert frame["item_id"].to_list() == pages[0].item_ids + pages[1].item_ids
    likes = [hit.actions["like"] for page in pages for hit in page]
    assert frame["prob_like"].to_list() == pytest.approx(likes, abs=1e-5)
    given = pl.DataFrame({"user_id": ["u9", "u2"], "group": [1, 2]})
    assert rec.recommend_frame(given, k=3, at=AT).equals(frame)
    assert rec.recommend_frame(given.to_pandas(), k=3, at=AT).equals(frame)
    assert rec.recommend_frame(k=2, at=AT)["user_id"].n_unique() == 40
    assert "prob_like" not in rec.recommend_frame(["u1"], rank=False).columns
    assert rec.recommend_frame(["u1"], allow=[]).height == 0


# -- files, processes, threads -------------------------------------------------------------------------------------

SERVE = """
import json, sys
from recsys import Event, Recommender
rec = Recommender.load(sys.argv[1])
pages = [rec.recommend("u7", k=5, at=1_702_000_000),
         rec.recommend(history=[Event(item_id="i3", actions="click", timestamp=1_701_999_000)], k=5, at=1_702_000_000,
                       retrievers=("dense", "memory"))]
rec.similar_items("i3")
extras = ("lightning", "sklearn", "faiss", "triton", "transformers", "pandas")
rows = [[(hit.item_id, hit.score, hit.actions, hit.retriever) for hit in page] for page in pages]
print(json.dumps({"loaded": [name for name in extras if name in sys.modules], "pages": rows}))
"""


def test_a_fresh_process_answers_alike_and_needs_no_extra(toy_bundle: Path, rec: Recommender, tmp_path: Path):
    moved = tmp_path / "moved"
    shutil.copytree(toy_bundle, moved)
    done = subprocess.run(
        [sys.executable, "-P", "-c", SERVE, str(moved)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    answer = json.loads(done.stdout)
    assert answer["loaded"] == []
    event = Event(item_id="i3", actions="click", timestamp=AT - 1000)
    expected = [
        rec.recommend("u7", k=5, at=AT),
        rec.recommend(history=[event], k=5, at=AT, retrievers=("dense", "memory")),
    ]
    for page, rows in zip(expected, answer["pages"], strict=True):
        assert page.item_ids == [row[0] for row in rows]
        assert [hit.score for hit in page] == pytest.approx([row[1] for row in rows], abs=1e-5)
        for hit, row in zip(page, rows, strict=True):
            assert hit.actions == pytest.approx(row[2], abs=1e-5)
            assert hit.retriever == row[3]


@pytest.mark.gpu
def test_a_gpu_answers_as_the_cpu_does(toy_bundle: Path, rec: Recommender):
    there = Recommender.load(toy_bundle, device="cuda")
    assert there.bundle.vectors.is_cuda
    requests = [
        Request(user_id=f"u{row}", at=AT, retrievers=("dense", "memory"), exclude=["i1"], allow=None)
        for row in range(12)
    ]
    for page, expected in zip(there.recommend_batch(requests), rec.recommend_batch(requests), strict=True):
        wanted = {hit.item_id: hit for hit in expected}
        assert len(set(page.item_ids) & set(wanted)) >= 9  # scores that are equal to rounding may change places
        for hit in page:
            if hit.item_id in wanted:
                assert hit.score == pytest.approx(wanted[hit.item_id].score, abs=1e-3)
                assert hit.actions == pytest.approx(wanted[hit.item_id].actions, abs=1e-3)
    assert there.similar_items("i3", 3).item_ids == rec.similar_items("i3", 3).item_ids


def _hammer(rec: Recommender, seconds: float) -> int:
    """16 threads ask in different orders; returns how many answers were compared."""
    requests = [
        Request(
            user_id=f"u{row}", at=AT, retrievers=("dense", "memory") if row % 3 else ("dense",),
            exclude=[f"i{row % 30}"], allow=None if row % 4 else [f"i{i}" for i in range(0, 30, 2)],
            rank_by="like" if row % 5 == 0 else None,
        )
        for row in range(40)
    ]  # fmt: skip
    expected = [rec.recommend_batch([request])[0] for request in requests]
    similar = [rec.similar_items(f"i{row % 30}", 5) for row in range(40)]
    end = time.monotonic() + seconds
    together = threading.Barrier(16)

    def ask(number: int) -> int:
        rng = np.random.default_rng(number)
        together.wait()
        count = 0
        while time.monotonic() < end or count == 0:
            row = int(rng.integers(40))
            assert_same(rec.recommend_batch([requests[row]])[0], expected[row])
            assert_same(rec.similar_items(f"i{row % 30}", 5), similar[row])
            count += 2
        return count

    with ThreadPoolExecutor(16) as pool:
        return sum(pool.map(ask, range(16)))


def test_sixteen_threads_get_the_answers_of_one(rec: Recommender):
    assert _hammer(rec, seconds=1.0) >= 32


@pytest.mark.slow
def test_sixteen_threads_for_a_minute_get_the_answers_of_one(rec: Recommender):
    assert _hammer(rec, seconds=60.0) > 1000
