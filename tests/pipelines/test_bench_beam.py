"""What the benchmark of beam search compares is the same work."""

from __future__ import annotations

import pytest

from recsys.index.code_trie import CodeTrie
from recsys.pipelines.bench import beam
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


def test_generate_finds_what_the_beam_finds(setting, trie):
    pytest.importorskip("transformers", reason="transformers is not installed")
    case = beam.cases_of(setting, trie)  # raises where they differ
    assert case.ratio == pytest.approx(case.other["ms"] / case.ours["ms"])
    assert case.other["shared_ms"] > 0 and case.ours["times_unconstrained"] > 0
