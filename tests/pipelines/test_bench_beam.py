"""What the benchmark of beam search compares is the same work."""

from __future__ import annotations

import itertools

import pytest
import torch

from recsys.index.code_trie import CodeTrie
from recsys.pipelines.bench import beam
from recsys.pipelines.bench.beam_levels import found_codes, verify
from recsys.pipelines.bench.beam_requests import Requests, generative_model, made_codes
from recsys.retrieval.beam_config import BeamConfig

SIZES = (6, 6, 6)


@pytest.fixture(scope="module")
def setting():
    model = generative_model(window=32, sizes=SIZES)
    return beam.Setting(Requests.of(model, 3, 20), BeamConfig(widths=(5,)), 4)


@pytest.fixture(scope="module")
def trie():
    return CodeTrie.build(made_codes(60, zipf=True, sizes=SIZES), SIZES)


def test_generate_finds_what_the_beam_finds(setting, trie, monkeypatch):
    pytest.importorskip("transformers", reason="transformers is not installed")
    case = beam.against_generate("small", setting, trie, repeats=1)  # raises where they differ
    assert case.name == "small, 3 requests at once" and case.shape["items"] == 60
    assert case.ratio == pytest.approx(case.other["ms"] / case.ours["ms"])
    assert case.ours["times_unconstrained"] == pytest.approx(case.ours["ms"] / case.ours["unconstrained_ms"])
    foreign = CodeTrie.build(made_codes(61, zipf=True, sizes=SIZES), SIZES)
    ours = beam.Setting.ours
    monkeypatch.setattr(beam.Setting, "ours", lambda self, trie, config=None: ours(self, foreign, config))
    with pytest.raises(RuntimeError, match="they do not do the same work"):
        beam.against_generate("small", setting, trie, repeats=1)


def test_without_transformers_the_other_way_is_the_free_beam(setting, trie, monkeypatch):
    monkeypatch.setattr(beam, "find_spec", lambda name: None)
    case = beam.against_generate("small", setting, trie, repeats=1)
    assert "transformers is not installed" in case.other["what"] and "shared_ms" not in case.other
    assert case.ratio == pytest.approx(case.ours["unconstrained_ms"] / case.ours["ms"])


def test_over_a_full_trie_both_beams_find_the_same(setting):
    """Every tuple is an item, so that the constraint leaves nothing out."""
    full = CodeTrie.build(torch.tensor(list(itertools.product(*map(range, SIZES)))), SIZES)
    with torch.inference_mode():
        torch.testing.assert_close(setting.ours(full).scores_QK, setting.free()[:, : setting.k])


def test_one_pass_gives_the_log_probabilities_of_the_levels(setting, trie):
    requests = setting.requests
    with torch.inference_mode():
        hits = setting.ours(trie)
        states, query_BD = requests.queried()
        code_BWL = found_codes(trie, hits)
        logits = verify(requests.model.code_decoder, states, query_BD, code_BWL)
        total_BW = sum(
            level.log_softmax(1).view(3, 4, -1).gather(2, code_BWL[..., place : place + 1])[..., 0]
            for place, level in enumerate(logits)
        )
    is_hit_BW = hits.ids_QK >= 0
    assert is_hit_BW.any(1).all()
    torch.testing.assert_close(total_BW[is_hit_BW], hits.scores_QK[is_hit_BW], atol=1e-4, rtol=0)


def test_what_is_left_out_is_counted(setting, trie):
    whole = beam.by_mass(setting, trie, 1.0, repeats=1)
    assert whole.ours["share_of_top_4"] == 1.0 and whole.shape["mass"] == 1.0
    narrow = beam.Setting(setting.requests, BeamConfig(widths=(5,), least=1), 4)
    assert beam.by_mass(narrow, trie, 0.05, repeats=1).ours["share_of_top_4"] < 1.0


def test_growth_and_drafting_name_both_sides(setting, trie):
    larger = CodeTrie.build(made_codes(200, zipf=False, sizes=SIZES), SIZES)
    case = beam.growth("grown", setting, trie, larger, repeats=1)
    assert case.other["times_as_long"] == pytest.approx(1 / case.ratio) and case.shape["items"] == 200
    case = beam.drafting(setting, trie, repeats=1)
    assert {f"level_{level}_ms" for level in (1, 2, 3)} <= set(case.ours)
    assert case.ratio == pytest.approx(case.other["ms"] / case.ours["ms"])
