"""Semantic IDs on a CUDA device: the same items with the same scores as on the CPU.

Tests that need the device are skipped without one. That nothing is made on another device than the inputs' is seen on a
CPU too, with a default device on which no numbers exist.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
import torch

from recsys.index.code_neighbours import CodeNeighbours
from recsys.index.code_trie import CodeTrie
from recsys.index.exact import ExactIndex
from recsys.index.item_graph import ItemGraph
from recsys.index.memory_terms import MemoryWeights
from recsys.index.trie_filter import TrieFilter
from recsys.retrieval.beam_config import BeamConfig
from recsys.retrieval.beam_search import beam_search
from recsys.retrieval.bundle_retrievers import RetrieverParts
from recsys.retrieval.code_catalogue import CodeCatalogue
from recsys.retrieval.code_walk import CodeWalkConfig, code_walk
from recsys.retrieval.generative import GenerativeRetriever
from recsys.retrieval.hybrid_weights import HybridWeights

AT = 1_702_000_000
SIZES = (7, 5, 40)
NUM_ROWS = 61


class Tables:
    """Logits from tables, by request and the codes that were asked for."""

    def __init__(self, tables, num_requests):
        self.tables, self.level = tables, 0
        self.row_BW = torch.arange(num_requests, device=tables[0].device)[:, None]

    def logits(self, parent_BW, code_BW):
        if parent_BW is not None:
            self.row_BW = (self.row_BW.gather(1, parent_BW) * 31 + code_BW * 7 + 1) % NUM_ROWS
        self.level += 1
        return self.tables[self.level - 1][self.row_BW]


def world(seed, num_items=300):
    """A trie with removed items, logits, exclusions of three requests and allowed items.

    Logits are multiples of 128 with one largest per row, so that log-probabilities are whole numbers and sums exact.
    """
    rng = np.random.default_rng(seed)
    codes_IL = np.stack([np.minimum(rng.zipf(1.6, num_items) - 1, size - 1) for size in SIZES], 1)
    trie = CodeTrie.build(codes_IL, SIZES).without(torch.from_numpy(rng.choice(num_items, 30, replace=False)))
    steps = [np.stack([rng.permutation(size) for _ in range(NUM_ROWS)]) for size in SIZES]
    tables = [torch.from_numpy(step.astype(np.float32) * 128) for step in steps]
    exclude_BE = torch.from_numpy(rng.integers(-1, num_items + 3, (3, 25)))
    allow_N = torch.from_numpy(np.flatnonzero(rng.random(num_items) < 0.4))
    return trie, tables, exclude_BE, allow_N


def there(value, device):
    return None if value is None else value.to(device)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cut", ["nothing", "exclusions", "allowed", "both"])
@pytest.mark.parametrize(
    "config",
    [
        BeamConfig(widths=(300,)),
        BeamConfig(widths=(6, 9)),
        BeamConfig(widths=(6,), num_groups=2),
        BeamConfig(widths=(8,), mass=0.7, least=2),
        BeamConfig(widths=(9,), normalise="children"),
    ],
)
def test_a_beam_search_finds_the_same_items_on_both_devices(seed, cut, config):
    trie, tables, exclude_BE, allow_N = world(seed)
    exclude_BE = exclude_BE if cut in ("exclusions", "both") else None
    allow_N = allow_N if cut in ("allowed", "both") else None
    here = beam_search(trie, Tables(tables, 3), 3, 20, config, exclude_BE=exclude_BE, allow_N=allow_N)
    cuda_tables = Tables([table.cuda() for table in tables], 3)
    limits = {"exclude_BE": there(exclude_BE, "cuda"), "allow_N": there(allow_N, "cuda")}
    found = beam_search(trie.to("cuda"), cuda_tables, 3, 20, config, **limits)
    assert found.ids_QK.is_cuda and (here.ids_QK >= 0).any()
    assert torch.equal(found.ids_QK.cpu(), here.ids_QK)
    assert torch.equal(found.scores_QK.cpu(), here.scores_QK)
    assert torch.equal(found.reachable_Q.cpu(), here.reachable_Q)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cut", ["nothing", "exclusions", "allowed", "both"])
def test_a_filter_cuts_the_same_nodes_on_both_devices(seed, cut):
    trie, _, exclude_BE, allow_N = world(seed)
    exclude_BE = exclude_BE if cut in ("exclusions", "both") else None
    allow_N = allow_N if cut in ("allowed", "both") else None
    seen = []
    for device in ("cpu", "cuda"):
        moved = trie.to(device)
        with torch.device(device):
            filters = TrieFilter(moved, 3, allow_N=there(allow_N, device), exclude_BE=there(exclude_BE, device))
            node_BW = torch.zeros(3, 1, dtype=torch.int64)
            below_BE, steps = None, [filters.reachable()]
            for number, level in enumerate(moved.levels):
                children, below_BE = filters.cut(number, node_BW, level.spread(node_BW), below_BE)
                steps.append(children.node_T)
                node_BW = torch.arange(min(6, level.num_nodes)).expand(3, -1).contiguous()
            steps += filters.items(len(SIZES) - 1, node_BW, torch.zeros(node_BW.shape), 9)
        seen.append([step.cpu() for step in steps])
    assert all(torch.equal(*pair) for pair in zip(*seen, strict=True))


def retrievers(model, device):
    """All that a model of codes has, the walks of the parallel and the set head among them."""
    model = copy.deepcopy(model).to(device)
    vectors_ID = model.item_vectors().detach()
    trie = CodeTrie.build(model.codes.of("codes").cpu(), model.config.code_sizes).to(device)
    heads = {"parallel_codes": model.parallel_codes, "set_codes": model.set_codes}
    graphs = {
        kind: CodeNeighbours.build(model.codes.of(kind).cpu(), head.codes_JKD.detach().cpu()).to(device)
        for kind, head in heads.items()
    }
    follows_II = scipy.sparse.eye_array(model.config.num_items, k=1, format="csr")
    graph = ItemGraph.build(model.config.num_items, transitions=follows_II).to(device)
    plain, walking = (
        RetrieverParts(
            model=model, vectors_ID=vectors_ID, index=ExactIndex(vectors_ID), graph=graph,
            memory_weights=MemoryWeights.from_dict({"learned": 1.0, "relations": {}}), trie=trie, neighbours=neighbours,
        )
        for neighbours in ({}, graphs)
    )  # fmt: skip
    weights = HybridWeights({"generative": 0.5, "parallel": 0.5, "set": 0.5}, 0.0, {})
    walks = walking.by_codes()[1:]
    for one in walks:
        one.walk = CodeWalkConfig(num_beams=30, num_steps=30, exact_below=0)
    return model, {**{one.name: one for one in plain.by_codes()}, "hybrid": plain.hybrid(weights)}, walks


@pytest.mark.gpu
def test_retrievers_by_codes_answer_alike_on_both_devices(code_model, toy_dataset):
    answers = []
    for device in ("cpu", "cuda"):
        model, named, walks = retrievers(code_model, device)
        states = model.encode([toy_dataset.events.history(user, user) for user in range(8)])
        request = {"at_B": torch.full((8,), AT, device=device), "surface_B": torch.arange(8, device=device) % 3}
        limits = {
            "exclude_QE": torch.arange(8, device=device)[:, None],
            "allow_N": torch.arange(3, 30, device=device),
        }
        hits = [one.search(states, 30, **request, **limits) for one in [*named.values(), *walks]]
        scores = [one.scores(states, **request) for one in named.values()]
        answers.append(([(hit.ids_QK.cpu(), hit.scores_QK.cpu()) for hit in hits], [one.cpu() for one in scores]))
    (hits, scores), (cuda_hits, cuda_scores) = answers
    for (ids_QK, score_QK), (cuda_ids_QK, cuda_score_QK) in zip(hits, cuda_hits, strict=True):
        # All that may be returned are asked for: scores equal to rounding may change places.
        assert torch.equal(ids_QK.sort(1).values, cuda_ids_QK.sort(1).values)
        torch.testing.assert_close(cuda_score_QK, score_QK, atol=1e-4, rtol=0)
    for score_BI, cuda_score_BI in zip(scores, cuda_scores, strict=True):
        torch.testing.assert_close(cuda_score_BI, score_BI, atol=1e-4, rtol=0)


@pytest.mark.gpu
def test_a_graph_of_codes_is_alike_on_both_devices():
    draw = torch.Generator().manual_seed(0)
    code_IJ, vector_JKD = torch.randint(0, 8, (2000, 6), generator=draw), torch.randn(6, 8, 5, generator=draw)
    here, found = CodeNeighbours.build(code_IJ, vector_JKD), CodeNeighbours.build(code_IJ, vector_JKD.cuda())
    assert found.neighbour_IM.is_cuda
    how = []
    for graph in (here, found.to("cpu")):
        near_IMJ = code_IJ[graph.neighbour_IM[:, :-1].long()]
        unit_JKD = torch.nn.functional.normalize(vector_JKD, dim=2)
        cosine_IMJ = (unit_JKD[torch.arange(6), near_IMJ] * unit_JKD[torch.arange(6), code_IJ][:, None]).sum(3)
        how.append(float(cosine_IMJ.mean()))
    assert how[1] == pytest.approx(how[0], abs=0.02) and how[0] > 0.4  # of pairs drawn at random about 0
    logp_JBK = torch.randn(6, 4, 8, generator=draw).log_softmax(-1)
    config = CodeWalkConfig(num_beams=2000, num_steps=2000)
    walked = code_walk(found, code_IJ.cuda(), logp_JBK.cuda(), 50, config)
    exact = CodeCatalogue(code_IJ).search(logp_JBK, 50, None, None)
    assert torch.equal(walked.ids_QK.cpu(), exact.ids_QK)


@pytest.mark.parametrize(
    "config",
    [
        BeamConfig(widths=(6, 9), num_groups=2),
        BeamConfig(widths=(8,), mass=0.7, least=2),
        BeamConfig(widths=(9,), normalise="children"),
    ],
)
def test_beams_and_scores_of_items_lie_where_the_trie_lies(config, elsewhere):
    trie, tables, exclude_BE, allow_N = world(0)
    item_BC, seen = torch.arange(60).view(3, 20), []
    for device in (torch.device("cpu"), elsewhere):
        moved, logits = trie.to(device), [table.to(device) for table in tables]
        limits = {"exclude_BE": exclude_BE.to(device), "allow_N": allow_N.to(device)}
        hits = [beam_search(moved, Tables(logits, 3), 3, 9, config, **some) for some in ({}, limits)]
        retriever = GenerativeRetriever.__new__(GenerativeRetriever)  # without a model, of which only this is read:
        codes = SimpleNamespace(of=lambda kind, where=device: trie.codes().int().to(where))
        retriever.model = SimpleNamespace(codes=codes, decode=lambda *request, tables=logits: Tables(tables, 3))
        retriever.trie, retriever.config = moved, config
        found = retriever.scores_of(None, item_BC.to(device), at_B=None, surface_B=None)
        parts = [part for hit in hits for part in (hit.ids_QK, hit.scores_QK, hit.num_found_Q, hit.reachable_Q)]
        seen.append([part.tolist() for part in (*parts, found)])
    assert seen[0] == seen[1]


def test_nothing_is_made_on_a_device_of_its_own(code_model, toy_dataset):
    _, named, walks = retrievers(code_model, "cpu")
    states = code_model.encode([toy_dataset.events.history(user, user) for user in range(8)])
    request = {"at_B": torch.full((8,), AT), "surface_B": torch.arange(8) % 3}
    limits = {"exclude_QE": torch.arange(8)[:, None], "allow_N": torch.arange(3, 30)}
    code_IJ, vector_JKD = code_model.codes.of("parallel_codes"), code_model.parallel_codes.codes_JKD.detach()
    with pytest.raises(RuntimeError), torch.device("meta"):
        torch.arange(3) + torch.arange(3, device="cpu")  # what the test relies on
    for one in (named["parallel"], named["set"], *walks):
        wanted = one.search(states, 30, **request, **limits)
        with torch.device("meta"):
            hits, scores = one.search(states, 30, **request, **limits), one.scores(states, **request)
        assert hits.ids_QK.device.type == scores.device.type == "cpu"
        assert torch.equal(hits.ids_QK, wanted.ids_QK)
    with torch.device("meta"):
        CodeNeighbours.build(code_IJ, vector_JKD)
