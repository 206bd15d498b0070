import json

import pytest
import torch

from recsys.pipelines.bench import graph
from recsys.pipelines.bench.graph import bench_graph, measure


def figures(capsys, way, items=1500, events=6000):
    measure(way, items, events)
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("ours", "other"), [("transitions", "transitions_whole"), ("append", "rebuild")])
def test_both_ways_find_the_same_edges(ours, other, capsys):
    one, two = figures(capsys, ours), figures(capsys, other)
    assert one["edges"] == two["edges"] > 10_000
    assert one["seconds"] > 0 and one["peak_mib"] >= one["given_mib"] > 10


def test_the_compared_ways_of_counting_agree(tmp_path):
    ways = graph._ways(1500, 6000, tmp_path)
    (_, blocks), (_, whole) = ways["transitions"](), ways["transitions_whole"]()
    ours, plain = blocks(), whole()
    assert torch.equal(ours.indptr, plain.indptr_I1)
    assert torch.allclose(ours.values, plain.value_T)
    assert (ours.neighbours == plain.id_T).double().mean() > 0.999  # ties of values that round differently


def test_a_case_for_each_way_of_building(monkeypatch):
    def made(way, *, items, events):
        slower = 3.0 if way in ("transitions_whole", "rebuild", "dense_exact") else 1.0
        return {"what": way, "items": items, "edges": 1, "seconds": slower, "peak_mib": items, "cosine_sum": slower}

    monkeypatch.setattr(graph, "_in_a_process", made)
    cases = bench_graph(long=False)
    assert [case.ratio for case in cases] == [3.0, 3.0, 0.25, 3.0]
    assert cases[0].name == "transitions" and cases[3].ours["share_of_exact"] == pytest.approx(1 / 3)


def test_text_and_vectors_are_measured_too(capsys):
    assert figures(capsys, "text")["edges"] > 10_000
    assert figures(capsys, "dense_exact", items=300)["cosine_sum"] > 0
    pytest.importorskip("faiss", reason="the extra `faiss` is not installed")
    assert figures(capsys, "dense", items=300)["edges"] > 10_000
