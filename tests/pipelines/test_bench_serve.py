import pytest
import torch

from recsys.pipelines import measure
from recsys.pipelines.bench import command, serve
from recsys.pipelines.bench.serve import shape_cases, window_of
from recsys.pipelines.bench.serve_memory import growth_case, memory_case
from recsys.pipelines.bench.serve_visits import Visits, counted_ratio, seen_ratio
from recsys.pipelines.bench.serve_ways import bench_bundle, recommenders

WAYS = ["separate", "shared", "kept", "few kept", "plain"]


@pytest.fixture(scope="module")
def bundles():
    return bench_bundle(32, 40), bench_bundle(32, 40, plain=True)


def test_counted_ratios_are_those_of_the_operations():
    n, k, d = 1024, 200, 64
    history, delta = 10 * n * d**2 + 2 * n**2 * d, 10 * k * d**2 + 4 * k * n * d
    appended = 20 * d**2 + 8 * n * d
    assert counted_ratio(n, k) == pytest.approx((2 * history + delta) / (0.2 * history + 0.8 * appended + delta))
    assert counted_ratio(n, k, kept=False) == pytest.approx((2 * history + delta) / (history + delta))
    assert round(counted_ratio(1024, 200), 2) == 4.29 and round(counted_ratio(256, 200), 2) == 2.34


def test_a_window_shows_as_many_events_as_a_case_names():
    for events in (1024, 256, 64):
        window = window_of(events)
        shown = [window - late for late in range(window // 4)]  # every phase of its sliding
        log = bench_bundle(window, 40).histories.events
        first = bench_bundle(window, 1).model.config.first_visible
        lengths = (log.offsets[1:] - log.offsets[:-1]).tolist()
        seen = [length - first(length) for length in lengths]
        assert sum(seen) / len(seen) == pytest.approx(events, rel=0.02) and max(seen) - min(seen) > 0.22 * window
        assert window % 4 == 0 and sum(shown) / len(shown) == pytest.approx(events, rel=0.01)


def test_the_three_ways_answer_alike_while_users_return(bundles):
    ways = recommenders(*bundles, 64)
    assert list(ways) == WAYS
    visits = Visits(bundles[0], 50, 20)
    for some in ([*visits.first()], visits.take(40), visits.take(40)):
        pages = {name: way.recommend_batch([visit.request for visit in some]) for name, way in ways.items()}
        for name in ("shared", "kept", "few kept"):
            for ours, theirs in zip(pages[name], pages["separate"], strict=True):
                assert len(ours) == 20
                chances = torch.tensor([hit.actions["click"] for hit in ours])
                assert torch.allclose(chances, torch.tensor([hit.actions["click"] for hit in theirs]), atol=1e-5)
                assert len({hit.item_id for hit in ours} ^ {hit.item_id for hit in theirs}) <= 2
        assert any(a[0].actions != b[0].actions for a, b in zip(pages["plain"], pages["shared"], strict=True))


def test_each_way_does_the_work_it_stands_for(bundles):
    ways = recommenders(*bundles, 64)
    visits = Visits(bundles[0], 50, 20)
    first, later = visits.first(), visits.take(60)
    for way in ways.values():
        for part in (first, later):
            for visit in part:
                way.recommend_batch([visit.request])
    counts = {name: way.state_counts for name, way in ways.items()}
    continued = sum(visit.num_new is not None for visit in later)
    assert 20 < continued < 48  # a fifth is new, and in a window of 32 about every fourth return slides
    assert counts["kept"].appended == continued and counts["kept"].encoded == 80 - continued
    assert counts["few kept"].encoded > counts["kept"].encoded and counts["few kept"].evicted > 0
    assert counts["separate"].encoded == counts["shared"].encoded == 80
    one = sum(visit.visible for visit in [*first, *later])
    assert counts["shared"].tokens_encoded == counts["separate"].tokens_encoded == one
    ranker = ways["separate"].states.ranker
    assert ranker.model is not ways["separate"].states.model
    assert 1.0 < seen_ratio(later, 50) < counted_ratio(32, 50)


def test_users_return_with_one_to_three_events_and_a_fifth_is_new(bundles):
    visits = Visits(bundles[0], 50, 20)
    before = {visit.request.user_id: 0 for visit in visits.first()}
    stored = bundles[0].histories.events.offsets
    some = visits.take(200)
    new = [visit for visit in some if str(visit.request.cache_key).startswith("new")]
    assert len(new) == 40 and len({visit.request.cache_key for visit in new}) == 40
    slid = 0
    for visit in some:
        user, events = visit.request.user_id, len(visit.request.new_events)
        total = stored[user + 1] - stored[user] + events
        assert visit.visible == total - bundles[0].model.config.first_visible(int(total)) and 24 < visit.visible <= 32
        if visit in new:
            assert user >= 20 and not events
            continue
        assert 1 <= events - before[user] <= 3 and visit.num_new in (None, events - before[user])
        slid += visit.num_new is None
        before[user] = events
    assert 15 < slid < 70  # two events of the eight of a stride, on average


def test_rows_of_the_benchmark(monkeypatch):
    monkeypatch.setattr(serve, "_SHAPES", ((32, 50),))
    monkeypatch.setattr(
        serve, "shape_cases", lambda *shape, **_: shape_cases(*shape, rounds=2, open_s=0.2, num_users=40, returning=20)
    )
    monkeypatch.setattr(serve, "memory_case", lambda events: memory_case(events // 16, 1 << 20))
    assert "serve" in command.BENCHES
    rows = measure._bench_rows("serve")
    assert len(rows) == 9 and all(row["times better"] > 0 for row in rows)
    assert rows[0]["case"] == "32 events, 50 candidates: kept states"
    assert rows[0]["predicted"] == counted_ratio(32, 50) and "counted_as_seen" in rows[0]["ours"]
    assert rows[1]["predicted"] == counted_ratio(32, 50, kept=False)
    for row in rows[:5]:
        assert "p50_ms" in row["ours"] and "p50_ms" in row["compared with"]


def test_memory_over_many_requests():
    case = growth_case(320, events=32, candidates=20)
    assert list(case.ours)[1:] == [f"after_{32 * number}" for number in range(1, 11)]
    assert 0.5 < case.ratio < 1.5 and case.predicted_ratio == 1.0
