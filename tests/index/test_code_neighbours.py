"""The graph of items with codes alike: its neighbours are near, nobody is cut off, and it belongs to its codes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from recsys.index import code_neighbours
from recsys.index.code_neighbours import CodeNeighbours


def made(num_items, *, parts=8, size=32, width=12, seed=0):
    """Codes of items that stand in clusters, and the vectors of the codes."""
    draw = torch.Generator().manual_seed(seed)
    centre = torch.randn(max(2, num_items // 40), width, generator=draw)
    item_IZ = centre[torch.randint(len(centre), (num_items,), generator=draw)]
    item_IZ = F.normalize(item_IZ + 0.5 * torch.randn(num_items, width, generator=draw), dim=1)
    vector_JKD = F.normalize(torch.randn(parts, size, width, generator=draw), dim=2)
    return torch.stack([(item_IZ @ book.T).argmax(1) for book in vector_JKD], 1).int(), vector_JKD


def similarities(code_IJ, vector_JKD):
    unit_IF = F.normalize(vector_JKD, dim=2)[torch.arange(len(vector_JKD)), code_IJ.long()].flatten(1)
    return (unit_IF @ unit_IF.T / len(vector_JKD)).fill_diagonal_(-torch.inf)


def test_neighbours_are_the_items_whose_codes_are_most_alike():
    code_IJ, vector_JKD = made(3000)
    graph = CodeNeighbours.build(code_IJ, vector_JKD, num_neighbours=17)
    near_IM = graph.neighbour_IM[:, :-1].long()
    how_II = similarities(code_IJ, vector_JKD)
    least_I1 = how_II.topk(16).values[:, -1:]
    found = (how_II.gather(1, near_IM.clamp_min(0)) >= least_I1 - 1e-5) & (near_IM >= 0)
    chance = (how_II[:, :16] >= least_I1 - 1e-5).float().mean()
    assert found.float().mean() > 0.75 > 10 * chance


@pytest.mark.parametrize("num_items", [1, 2, 5, 127, 300])
def test_the_last_neighbour_leads_through_all_items_and_no_item_is_its_own(num_items):
    code_IJ, vector_JKD = made(num_items, size=4)
    graph = CodeNeighbours.build(code_IJ, vector_JKD, num_neighbours=6)
    at, met = 0, []
    for _ in range(num_items):
        met.append(at)
        at = int(graph.neighbour_IM[at, -1])
    assert at == 0 and sorted(met) == list(range(num_items))
    near_IM = graph.neighbour_IM[:, :-1]
    assert (near_IM != torch.arange(num_items)[:, None]).all()
    for row in near_IM.tolist():
        there = [item for item in row if item >= 0]
        assert len(there) == len(set(there)) == min(5, num_items - 1)
        assert row[: len(there)] == there  # absent ones stand last
    assert (graph.entry_E.diff() > 0).all() and len(graph.entry_E) == num_items


def test_entries_are_spread_over_a_large_catalogue():
    code_IJ, vector_JKD = made(5000)
    graph = CodeNeighbours.build(code_IJ, vector_JKD, num_orders=1)
    assert 1024 <= len(graph.entry_E) <= 1500 and int(graph.entry_E[-1]) < 5000
    near_IE = similarities(code_IJ, vector_JKD).index_select(1, graph.entry_E).amax(1)
    assert (near_IE > 0.5).float().mean() > 0.9  # of pairs drawn at random .01 are as near


def test_blocks_and_seeds_decide_what_they_should(monkeypatch):
    code_IJ, vector_JKD = made(700)
    first = CodeNeighbours.build(code_IJ, vector_JKD, seed=1)
    assert torch.equal(first.neighbour_IM, CodeNeighbours.build(code_IJ, vector_JKD, seed=1).neighbour_IM)
    assert not torch.equal(first.neighbour_IM, CodeNeighbours.build(code_IJ, vector_JKD, seed=2).neighbour_IM)
    monkeypatch.setattr(code_neighbours, "_NUMBERS_AT_ONCE", 1)
    one_by_one = CodeNeighbours.build(code_IJ, vector_JKD, seed=1)
    same = (first.neighbour_IM == one_by_one.neighbour_IM).float().mean()
    assert same > 0.95  # sums of a product round otherwise in another batch


@pytest.mark.parametrize(
    ("part", "place", "value", "said"),
    [
        ("neighbour_IM", (3, 0), 60, r"neighbour must be from -1 to 59, got .* to 60"),
        ("neighbour_IM", (3, 0), -2, r"neighbour must be from -1 to 59, got -2 to"),
        ("neighbour_IM", (3, -1), -1, r"the next item of the ring, must be from 0"),
        ("entry_E", (0,), -1, r"entry must be from 0"),
        ("entry_E", (1,), 0, r"entry must rise"),
    ],
)
def test_a_foreign_graph_leads_nowhere_else(part, place, value, said, tmp_path):
    graph = CodeNeighbours.build(*made(60), num_neighbours=5)
    getattr(graph, part)[place] = value
    graph.save(tmp_path)
    with pytest.raises(ValueError, match=said + r".*build and save the graph again"):
        CodeNeighbours.load(tmp_path)


def test_a_graph_without_its_tensors_is_refused(tmp_path):
    graph = CodeNeighbours.build(*made(60), num_neighbours=5)
    replace(graph, neighbour_IM=graph.neighbour_IM.long()).save(tmp_path)
    with pytest.raises(ValueError, match=r"neighbour is torch.int64 .* and not torch.int32"):
        CodeNeighbours.load(tmp_path)
    replace(graph, entry_E=graph.entry_E[:0]).save(tmp_path)
    with pytest.raises(ValueError, match=r"none that a walk could begin at"):
        CodeNeighbours.load(tmp_path)


def test_saved_and_loaded_is_the_same_and_belongs_to_its_codes(tmp_path):
    code_IJ, vector_JKD = made(300)
    graph = CodeNeighbours.build(code_IJ, vector_JKD)
    graph.save(tmp_path / "graph")
    back = CodeNeighbours.load(tmp_path / "graph")
    assert torch.equal(back.neighbour_IM, graph.neighbour_IM) and torch.equal(back.entry_E, graph.entry_E)
    back.check(code_IJ)
    back.check(code_IJ.long())
    other_IJ = code_IJ.clone()
    other_IJ[7, 3] = (other_IJ[7, 3] + 1) % 32
    for codes in (other_IJ, code_IJ[:-1]):
        with pytest.raises(ValueError, match="other codes than the model's"):
            back.check(codes)
    file = tmp_path / "graph" / "neighbours.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match="SHA-256"):
        CodeNeighbours.load(tmp_path / "graph")


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (lambda code_IJ: code_IJ + 32, {}, "codes must be from 0 to 31"),
        (lambda code_IJ: code_IJ[:, :3], {}, r"codes must be \[items, 8\]"),
        (lambda code_IJ: code_IJ[:0], {}, "at least one item"),
        (lambda code_IJ: code_IJ, {"num_neighbours": 1}, "2 neighbours and 1 order at least, got 1 and 8"),
        (lambda code_IJ: code_IJ, {"num_orders": 0}, "got 32 and 0"),
    ],
)
def test_what_cannot_be_built_is_refused(change, options, said):
    code_IJ, vector_JKD = made(60)
    with pytest.raises(ValueError, match=said):
        CodeNeighbours.build(change(code_IJ), vector_JKD, **options)
