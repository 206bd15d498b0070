import pytest

from recsys.pipelines.bench import codes
from recsys.pipelines.bench.codes import against_gather, bench_codes, walked


def test_a_case_compares_searches_of_the_same_catalogue(monkeypatch):
    monkeypatch.setattr(codes, "_HITS", 20)
    case = against_gather(3000, 4, repeats=1)
    assert case.ratio == case.other["ms"] / case.ours["ms"] > 0
    assert case.name == "3,000 items, 4 requests" and case.shape["items"] == 3000


def test_wider_walks_find_and_visit_more(monkeypatch):
    monkeypatch.setattr(codes, "_HITS", 20)
    monkeypatch.setattr(codes, "_PARTS", 6)
    monkeypatch.setattr(codes, "_CODES", 32)
    narrow, middle, wide = walked(6000, 8, repeats=1)
    assert 0.17 < narrow.ours["share_visited"] < middle.ours["share_visited"] < wide.ours["share_visited"] <= 1
    assert 0.8 < narrow.ours["recall@20"] <= wide.ours["recall@20"] and wide.ours["recall@10"] > 0.95
    for case in (narrow, middle, wide):
        assert case.predicted_ratio * case.ours["share_visited"] == pytest.approx(1.0)


def test_the_headline_is_the_largest_catalogue(monkeypatch):
    monkeypatch.setattr(codes, "against_gather", lambda items, users, repeats: (items, users))
    monkeypatch.setattr(codes, "walked", lambda items, num_users, repeats: [(items, "walk")])
    assert bench_codes(long=False) == [(1_000_000, 16), (1_000_000, 1), (200_000, 16), (200_000, 1), (60_000, "walk")]
    assert bench_codes(long=True)[-1] == (200_000, "walk")
