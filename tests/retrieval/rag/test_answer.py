"""Answers of the small model and of a server that says what is wanted: what is given, checked and told."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import InputError
from recsys.retrieval.rag.answer import Answerer
from recsys.retrieval.rag.chunk_search import SearchSettings, joined_texts
from recsys.retrieval.rag.model_reward import enough_by_model
from recsys.retrieval.rag.passage import Passage
from recsys.retrieval.rag.passage_store import PassageStore
from recsys.retrieval.rag.prompt_lines import load_prompt
from recsys.retrieval.rerank.lm.local import LocalLanguageModel

pytest.importorskip("bm25s", reason="needs the extra rag")
pytest.importorskip("transformers", reason="needs the extra llm")

TEXTS = [
    "The red train costs 25 dollars.",
    "The red train is made of wood and has a wagon.",
    "The blue ship floats in the bath.",
    "A red train for small children.",
    "The steel car costs 12 dollars.",
]


@pytest.fixture(scope="module")
def store() -> PassageStore:
    return PassageStore.build([Passage.of(text, "item", number) for number, text in enumerate(TEXTS)])


@pytest.fixture(scope="module")
def lm(small_lm_folder: Path) -> LocalLanguageModel:
    return LocalLanguageModel.load(small_lm_folder)


def test_a_local_model_answers_from_what_is_found(lm: LocalLanguageModel, store: PassageStore) -> None:
    answer = Answerer(lm, store, max_tokens=12).answer("How much does the red train cost?")
    assert answer.status in ("answered", "cut") and answer.text and answer.usage.calls == 1
    assert answer.usage.generated_tokens <= 12 and answer.seconds > 0
    assert {passage.item_id for passage in answer.passages} <= {0, 1, 3, 4}
    assert answer.passages[0].text == TEXTS[0]  # the strongest first
    assert set(answer.citations.cited) <= set(range(1, len(answer.passages) + 1))


def test_the_prompt_shows_numbered_lines_with_the_strongest_at_both_ends(
    lm: LocalLanguageModel, store: PassageStore
) -> None:
    answerer = Answerer(lm, store, selection="top")
    found = store.search("red train cost dollars", 20)
    given = answerer.choose("red train cost dollars", found).given
    assert [passage.id for passage in (given[0], given[-1])] == [hit.passage.id for hit in found[:2]]
    text = answerer.chat("How much?", given)[-1].text
    assert all(f"\n[{number}] {passage.text}\n" in text for number, passage in enumerate(given, 1))
    assert "Question: How much?" in text


@pytest.mark.parametrize("selection", ["greedy", "tree", "top"])
def test_the_budget_holds(lm: LocalLanguageModel, store: PassageStore, selection: str) -> None:
    answerer = Answerer(lm, store, selection=selection)
    found = store.search("red train costs dollars wood", 20)
    for budget in (1, 40, 70, 120, 1000):
        choice = answerer.choose("red train costs dollars wood", found, budget)
        given, notes = choice.given, choice.notes
        lines = [f"[{number}] {passage.text}" for number, passage in enumerate(given, 1)]
        assert sum(lm.count_tokens(lines)) <= budget
        assert (len(given) < len(found)) == any("passages found were given" in note for note in notes)
    assert answerer.answer("red train", budget_tokens=1).status == "nothing found"


def test_a_small_window_of_the_model_holds_too(store: PassageStore, saying_server: Any) -> None:
    pytest.importorskip("openai", reason="needs the extra llm")
    from recsys.retrieval.rerank.lm.server import ServerLanguageModel

    small = ServerLanguageModel("m", base_url=saying_server.url, context_tokens=260)
    saying_server.say("The red train costs 25 dollars [1].")
    answer = Answerer(small, store, max_tokens=50).answer("How much does the red train cost?")
    assert any("room for" in note for note in answer.notes) and 0 < len(answer.passages) < 4
    tiny = ServerLanguageModel("m", base_url=saying_server.url, context_tokens=60)
    assert Answerer(tiny, store, max_tokens=50).answer("the red train").status == "nothing found"


def test_given_passages_are_not_searched_for(store: PassageStore, saying_server: Any, saying_lm: Any) -> None:
    saying_server.say("The kite is green [1].")
    kite = [Passage.of("The kite is green.", "note")]
    answer = Answerer(saying_lm, store).answer("What colour?", passages=kite)
    assert answer.passages == tuple(kite) and answer.citations.passed and not answer.notes
    assert Answerer(saying_lm, store).answer("What colour?", passages=[]).status == "nothing found"


def test_filters_reach_the_search(store: PassageStore, saying_server: Any, saying_lm: Any) -> None:
    saying_server.say("It is [1].")
    answer = Answerer(saying_lm, store).answer("red train costs dollars", item_ids=[4])
    assert [passage.item_id for passage in answer.passages] == [4]
    assert Answerer(saying_lm, store).answer("red train", sources=["nowhere"]).status == "nothing found"


def test_a_failed_answer_shows_what_was_found(store: PassageStore, saying_server: Any, saying_lm: Any) -> None:
    saying_server.say({"status": 500, "raw": "no"})
    answer = Answerer(saying_lm, store).answer("How much does the red train cost?")
    assert answer.status == "failed" and "The red train costs 25 dollars. [1]" in answer.text
    assert "500" in answer.notes[-1] and "the model gave no answer" in answer.notes[-1]
    assert answer.citations.unknown_citations == ()


def test_a_reward_of_its_own_chooses(store: PassageStore, saying_server: Any, saying_lm: Any) -> None:
    saying_server.say("Yes.")

    def reward(question: str, passages: Any) -> Any:
        texts = [passage.text for passage in passages]
        return joined_texts(question, texts, lambda pairs: [float("ship" in text) / len(text) for _, text in pairs])

    answerer = Answerer(saying_lm, store, selection="tree", reward=reward)
    assert [passage.text for passage in answerer.answer("red train or blue ship").passages] == [TEXTS[2]]
    with pytest.raises(InputError, match="reward belongs to selection 'tree'"):
        Answerer(saying_lm, store, reward=reward)


def test_threads_get_their_own_answers(lm: LocalLanguageModel, store: PassageStore) -> None:
    answerer = Answerer(lm, store, max_tokens=5)
    questions = ["red train", "blue ship", "steel car"]
    alone = {question: answerer.answer(question).text for question in questions}
    got: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda question=question: got.update({question: answerer.answer(question).text}))
        for question in questions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == alone


def test_settings_that_cannot_be_meant(lm: LocalLanguageModel, store: PassageStore, tmp_path: Path) -> None:
    for settings, message in (
        ({"k": 0}, "k must be a positive integer, got 0"),
        ({"budget_tokens": True}, "budget_tokens must be a positive integer, got True"),
        ({"selection": "best"}, "no selection 'best'; choose one of greedy, tree, top"),
        ({"min_overlap": 2}, "min_overlap must be from 0 to 1"),
        ({"prompt": tmp_path / "gone.yaml"}, "gone.yaml"),
    ):
        with pytest.raises(InputError, match=message):
            Answerer(lm, store, **settings)
    with pytest.raises(InputError, match="a question must be text, got 7"):
        Answerer(lm, store).answer(7)  # type: ignore[arg-type]


def test_prompts_by_name_and_by_path(tmp_path: Path, store: PassageStore, saying_server: Any, saying_lm: Any) -> None:
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nplaceholders: {passages: p, question: q, sentences: s}\n"
        "user: |\n  Facts\n  $passages\n  Now $question, $sentences\n"
    )
    saying_server.say("Yes.")
    Answerer(saying_lm, store, prompt=tmp_path / "mine.yaml").answer("red train")
    assert saying_server.asked[0].startswith("Facts\n[1] ") and "Now red train, 4" in saying_server.asked[0]
    assert load_prompt("answer").name == "answer" and load_prompt(load_prompt("round")).name == "round"
    with pytest.raises(InputError):
        load_prompt("../prompts/answer")


def test_a_late_deadline_is_kept(lm: LocalLanguageModel, store: PassageStore) -> None:
    start = time.monotonic()
    answer = Answerer(lm, store, max_tokens=2000).answer("the red train", deadline=start + 0.3)
    assert time.monotonic() - start < 10 and answer.status in ("cut", "failed")
    assert any("deadline" in note for note in answer.notes)


def test_a_language_model_values_lists_of_passages(
    lm: LocalLanguageModel, store: PassageStore, saying_server: Any, saying_lm: Any, tmp_path: Path
) -> None:
    reward = enough_by_model(lm)("red train", store.passages)
    values = reward([(0,), (2, 1), (1, 2)])
    assert all(0 < value < 1 for value in values) and values[1] != values[2]
    assert values == pytest.approx([reward([order])[0] for order in ((0,), (2, 1), (1, 2))], abs=1e-5)
    answerer = Answerer(
        lm, store, selection="tree", reward=enough_by_model(lm), max_tokens=3, search=SearchSettings(max_evaluations=12)
    )
    answer = answerer.answer("red train")
    assert answer.usage.calls == 13 and answer.usage.prompt_tokens > 13 * 40, "twelve lists and the answer"
    late = answerer.answer("red train", deadline=time.monotonic() + 0.01)
    assert late.usage.calls < 13 and any("deadline ended the choice" in note for note in late.notes)
    chosen = [store.passages.index(passage) for passage in answer.passages]
    assert chosen and reward([tuple(chosen)])[0] > 0
    saying_server.say({"status": 500, "raw": "no"})
    assert enough_by_model(saying_lm)("red train", store.passages)([(0,)]) == [0.0]
    failing = Answerer(lm, store, selection="tree", reward=enough_by_model(saying_lm), max_tokens=3)
    plain = Answerer(lm, store, max_tokens=3)
    assert failing.answer("red train").passages == plain.answer("red train").passages
    (tmp_path / "bad.yaml").write_text("name: bad\nuser: Well?\noptions: {answers: [yes please]}\n")
    with pytest.raises(InputError, match="option 'answers' must hold two words"):
        enough_by_model(lm, prompt=tmp_path / "bad.yaml")
