"""A walk as wide as the catalogue finds what scoring every item finds; a narrow one returns nothing it may not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from recsys.bundle import Bundle
from recsys.errors import InputError
from recsys.index.code_neighbours import CodeNeighbours
from recsys.parallel_codes import code_scores
from recsys.pipelines.export import export_model
from recsys.retrieval import code_catalogue
from recsys.retrieval.bundle_retrievers import bundle_retrievers
from recsys.retrieval.code_catalogue import CodeCatalogue
from recsys.retrieval.code_walk import CodeWalkConfig, code_walk
from recsys.retrieval.parallel import ParallelRetriever
from recsys.retrieval.set_retriever import SetRetriever

AT = 1_702_000_000


def made(num_items, num_users, *, parts=8, size=32, width=12, seed=0):
    """Codes of clustered items, the vectors of the codes, and what users near some items think of each code."""
    draw = torch.Generator().manual_seed(seed)
    centre = torch.randn(max(2, num_items // 40), width, generator=draw)
    item_IZ = centre[torch.randint(len(centre), (num_items,), generator=draw)]
    item_IZ = F.normalize(item_IZ + 0.5 * torch.randn(num_items, width, generator=draw), dim=1)
    vector_JKD = F.normalize(torch.randn(parts, size, width, generator=draw), dim=2)
    code_IJ = torch.stack([(item_IZ @ book.T).argmax(1) for book in vector_JKD], 1).int()
    user_BZ = item_IZ[torch.randint(num_items, (num_users,), generator=draw)]
    user_BZ = F.normalize(user_BZ + 0.15 * torch.randn(num_users, width, generator=draw), dim=1)
    return code_IJ, vector_JKD, (torch.einsum("bz,jkz->jbk", user_BZ, vector_JKD) * 12).log_softmax(-1)


def lists(draw, num_users, num_items):
    """Exclusions and allowed items."""
    exclude_BE = torch.randint(-1, num_items, (num_users, 5), generator=draw)
    return exclude_BE, (torch.rand(num_items, generator=draw) < 0.6).nonzero().flatten()


@settings(deadline=None, max_examples=60)
@given(
    num_items=st.integers(1, 400),
    size=st.integers(2, 6),
    k=st.integers(1, 30),
    cut=st.booleans(),
    wide=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_as_wide_as_the_catalogue_it_is_exact(num_items, size, k, cut, wide, seed):
    code_IJ, vector_JKD, logp_JBK = made(num_items, 4, parts=3, size=size, width=3, seed=seed)
    graph = CodeNeighbours.build(code_IJ, vector_JKD, num_neighbours=3, num_orders=1)
    if wide:  # from one item alone: only the neighbours lead to the others
        graph = CodeNeighbours(graph.neighbour_IM, graph.entry_E[:1], graph.code_hash)
    limits = lists(torch.Generator().manual_seed(seed), 4, num_items) if cut else (None, None)
    config = CodeWalkConfig(num_beams=num_items, num_steps=num_items)
    walked = code_walk(graph, code_IJ, logp_JBK, k, config, exclude_BE=limits[0], allow_N=limits[1])
    exact = CodeCatalogue(code_IJ).search(logp_JBK, k, *limits)
    assert torch.equal(walked.ids_QK, exact.ids_QK) and torch.equal(walked.scores_QK, exact.scores_QK)
    assert (walked.visited_B == num_items).all()


@settings(deadline=None, max_examples=60)
@given(
    num_beams=st.integers(1, 60),
    num_steps=st.integers(0, 6),
    k=st.integers(1, 40),
    cut=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_what_it_returns_is_allowed_and_scored_exactly(num_beams, num_steps, k, cut, seed):
    code_IJ, vector_JKD, logp_JBK = made(300, 4, parts=4, size=8, width=4, seed=seed % 5)
    graph = CodeNeighbours.build(code_IJ, vector_JKD, num_neighbours=5, num_orders=2)
    graph = CodeNeighbours(graph.neighbour_IM, graph.entry_E[seed % 7 :: 20], graph.code_hash)
    exclude_BE, allow_N = lists(torch.Generator().manual_seed(seed), 4, 300)
    config = CodeWalkConfig(num_beams=num_beams, num_steps=num_steps)
    gone_I = torch.arange(300) % 7 == seed % 7
    hits = code_walk(
        graph, code_IJ, logp_JBK, k, config,
        exclude_BE=exclude_BE, allow_N=allow_N if cut else None, gone_I=gone_I if seed % 2 else None,
    )  # fmt: skip
    score_BI = code_scores(logp_JBK, code_IJ)
    for user in range(4):
        ids = hits.ids_QK[user][hits.ids_QK[user] >= 0]
        assert len(ids.unique()) == len(ids) <= int(hits.visited_B[user]) <= 300
        assert not torch.isin(ids, exclude_BE[user]).any()
        assert not cut or torch.isin(ids, allow_N).all()
        assert not (seed % 2 and gone_I[ids].any())
        found = hits.scores_QK[user, : len(ids)]
        assert torch.equal(found, score_BI[user, ids]) and (found.diff() <= 0).all()
        assert (hits.ids_QK[user, len(ids) :] == -1).all()
        assert (hits.scores_QK[user, len(ids) :] == -torch.inf).all()


def test_a_narrow_walk_finds_most_and_visits_little():
    code_IJ, vector_JKD, logp_JBK = made(20_000, 32)
    graph = CodeNeighbours.build(code_IJ, vector_JKD, num_neighbours=24, num_orders=4)
    exact = CodeCatalogue(code_IJ).search(logp_JBK, 10, None, None)
    found = []
    for num_steps in (0, 6):
        walked = code_walk(graph, code_IJ, logp_JBK, 10, CodeWalkConfig(num_beams=50, num_steps=num_steps))
        same = (walked.ids_QK[:, :, None] == exact.ids_QK[:, None]).any(2).float().mean()
        found.append((float(same), float(walked.visited_B.float().mean()) / 20_000))
    assert found[0][0] < 0.2  # the entries by themselves
    assert found[1][0] > 0.9 and found[1][1] < 0.3


def test_a_user_does_not_depend_on_the_others():
    code_IJ, vector_JKD, logp_JBK = made(800, 6)
    graph = CodeNeighbours.build(code_IJ, vector_JKD, num_neighbours=6, num_orders=2)
    config = CodeWalkConfig(num_beams=20, num_steps=3)
    together = code_walk(graph, code_IJ, logp_JBK, 10, config)
    for user in range(6):
        alone = code_walk(graph, code_IJ, logp_JBK[:, user : user + 1], 10, config)
        assert torch.equal(alone.ids_QK[0], together.ids_QK[user])
        assert torch.equal(alone.scores_QK[0], together.scores_QK[user])
    nobody = code_walk(graph, code_IJ, logp_JBK[:, :0], 10, config)
    assert nobody.ids_QK.shape == (0, 10)


@pytest.mark.parametrize("at_once", [7, 64, 10_000])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("num_users", [1, 5])
def test_blocks_of_a_catalogue_give_the_sorted_scores(at_once, cut, num_users, monkeypatch):
    monkeypatch.setattr(code_catalogue, "_SCORES_AT_ONCE", at_once)
    monkeypatch.setattr(code_catalogue, "_USERS_AT_ONCE", 2)
    code_IJ, _, logp_JBK = made(200, num_users, parts=2, size=4, width=3)  # many items of equal codes
    score_BI = code_scores(logp_JBK, code_IJ)
    catalogue = CodeCatalogue(code_IJ)
    assert torch.equal(catalogue.scores(logp_JBK), score_BI)
    item_BC = torch.randint(-1, 200, (num_users, 9))
    assert torch.equal(catalogue.scores_of(logp_JBK, item_BC), score_BI.gather(1, item_BC.clamp_min(0)))
    exclude_BE, allow_N = lists(torch.Generator().manual_seed(1), num_users, 200) if cut else (None, None)
    catalogue = CodeCatalogue(code_IJ, torch.arange(200) % 9 == 4)
    score_BI[:, 4::9] = -torch.inf
    if cut:
        score_BI[:, ~torch.isin(torch.arange(200), allow_N)] = -torch.inf
        row_P, place_P = (exclude_BE >= 0).nonzero(as_tuple=True)
        score_BI[row_P, exclude_BE[row_P, place_P]] = -torch.inf
    best_BI, order_BI = score_BI.sort(dim=1, descending=True, stable=True)
    for k in (1, 20, 250):
        hits = catalogue.search(logp_JBK, k, exclude_BE, allow_N)
        legal = best_BI[:, :k] > -torch.inf
        assert torch.equal(hits.scores_QK[:, : legal.shape[1]], best_BI[:, :k])
        assert torch.equal(hits.ids_QK[:, : legal.shape[1]], order_BI[:, :k].masked_fill(~legal, -1))
        assert (hits.ids_QK[:, 200:] == -1).all()


@pytest.mark.parametrize("kind", ["parallel_codes", "set_codes"])
def test_a_retriever_walks_where_it_has_a_graph_and_fills_what_the_walk_left(code_model, toy_dataset, kind):
    retriever_of = ParallelRetriever if kind == "parallel_codes" else SetRetriever
    head = code_model.parallel_codes if kind == "parallel_codes" else code_model.set_codes
    graph = CodeNeighbours.build(code_model.codes.of(kind), head.codes_JKD.detach(), num_neighbours=3)
    one = CodeNeighbours(graph.neighbour_IM, graph.entry_E[:1], graph.code_hash)
    states = code_model.encode([toy_dataset.events.history(user, user) for user in range(8)])
    request = {"at_B": torch.full((8,), AT), "surface_B": torch.arange(8) % 3}
    allowed = {"allow_N": torch.arange(4, 30), "exclude_QE": torch.arange(8)[:, None]}
    exact = retriever_of(code_model)
    narrow = retriever_of(code_model, None, one, CodeWalkConfig(num_beams=1, num_steps=1, exact_below=0))
    for limits in ({}, allowed):
        wide = retriever_of(code_model, None, graph, CodeWalkConfig(num_beams=30, num_steps=30, exact_below=0))
        for k in (4, 30):
            wanted = exact.search(states, k, **request, **limits)
            assert torch.equal(wide.search(states, k, **request, **limits).ids_QK, wanted.ids_QK)
        # One item and its neighbours cannot be thirty items.
        assert torch.equal(narrow.search(states, 30, **request, **limits).ids_QK, wanted.ids_QK)
    gone_I = torch.arange(30) % 4 == 1
    for at_beams in (1, 30):
        config = CodeWalkConfig(num_beams=at_beams, num_steps=30, exact_below=0)
        left = retriever_of(code_model, gone_I, graph, config).search(states, 30, **request).ids_QK
        assert torch.equal(left, retriever_of(code_model, gone_I).search(states, 30, **request).ids_QK)
        assert not gone_I[left[left >= 0]].any() and (left >= 0).sum(1).eq(30 - int(gone_I.sum())).all()
    few = narrow.search(states, 1, **request)
    assert (few.scores_QK < exact.search(states, 1, **request).scores_QK).any()  # it did walk
    kept = retriever_of(code_model, None, one, CodeWalkConfig(num_beams=1, num_steps=0, exact_below=26))
    assert torch.equal(
        kept.search(states, 2, **request, **allowed).ids_QK, exact.search(states, 2, **request, **allowed).ids_QK
    )
    foreign = CodeNeighbours(graph.neighbour_IM[:20], graph.entry_E[:1], graph.code_hash)
    with pytest.raises(ValueError, match="holds 20 items and the catalogue 30"):
        retriever_of(code_model, None, foreign)


def test_a_large_catalogue_is_exported_with_its_graph(code_model, toy_dataset, tmp_path):
    export_model(code_model, toy_dataset, tmp_path / "small", walk_above=30)
    export_model(code_model, toy_dataset, tmp_path / "large", walk_above=29)
    small, large = Bundle.open(tmp_path / "small"), Bundle.open(tmp_path / "large")
    assert not small.neighbours and sorted(large.neighbours) == ["parallel_codes", "set_codes"]
    for name in ("parallel", "set"):
        assert bundle_retrievers(small, [name])[name].neighbours is None
        assert bundle_retrievers(large, [name])[name].neighbours is not None


def test_a_graph_of_other_codes_is_refused(code_model, toy_dataset, tmp_path, monkeypatch):
    wrong = CodeNeighbours.build(code_model.codes.of("parallel_codes").flip(0), code_model.parallel_codes.codes_JKD)
    monkeypatch.setattr("recsys.pipelines.export.code_neighbours", lambda model: {"parallel_codes": wrong})
    export_model(code_model, toy_dataset, tmp_path / "bundle", walk_above=0)
    with pytest.raises(InputError, match="other codes than the model's"):
        Bundle.open(tmp_path / "bundle")


@pytest.mark.parametrize("options", [{"num_beams": 0}, {"num_steps": -1}, {"exact_below": -1}])
def test_settings_that_cannot_work_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be at least"):
        CodeWalkConfig(**options)
