"""Questions in rounds: they end, each round is recorded, and no budget is exceeded."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.retrieval.rag.answer import Answerer
from recsys.retrieval.rag.passage import Passage
from recsys.retrieval.rag.passage_store import PassageStore
from recsys.retrieval.rag.rounds import RoundAnswerer, read_round
from recsys.retrieval.rerank.lm.protocol import Generation
from recsys.retrieval.rerank.lm.usage import Usage

pytest.importorskip("bm25s", reason="needs the extra rag")

TEXTS = [
    "The red train is made by Acme.",
    "Acme sits in Oslo.",
    "Oslo is cold in winter.",
    "Kites fly.",
    "Ships float.",
]
QUESTION = "Where does the maker of the red train sit?"


@pytest.fixture(scope="module")
def store() -> PassageStore:
    return PassageStore.build([Passage.of(text, f"document {number}") for number, text in enumerate(TEXTS)])


@pytest.fixture
def answerer(saying_lm: Any, store: PassageStore) -> Answerer:
    return Answerer(saying_lm, store, k=1, max_tokens=60)


def test_a_question_is_looked_up_and_then_answered(answerer: Answerer, saying_server: Any) -> None:
    saying_server.say(
        "Follow up: In which city is Acme?", "Answer: Acme, which makes the red train, sits in Oslo [1][2]."
    )
    found = RoundAnswerer(answerer).answer(QUESTION)
    assert found.ended == "answered" and found.answer.citations.passed
    assert [one.question for one in found.rounds] == [QUESTION, "In which city is Acme?"]
    assert [[passage.text for passage in one.found] for one in found.rounds] == [[TEXTS[0]], [TEXTS[1]]]
    assert found.answer.usage.calls == 2 and found.answer.usage.prompt_tokens == 14
    assert "Looked up before: In which city is Acme?" in saying_server.asked[1]
    assert "Looked up before" not in saying_server.asked[0]


@pytest.mark.parametrize("rounds", [1, 3, 5])
def test_rounds_end(answerer: Answerer, saying_server: Any, rounds: int) -> None:
    saying_server.say(*(f"Follow up: Acme Oslo {number}?" for number in range(rounds)), "It sits in Oslo [1].")
    found = RoundAnswerer(answerer, max_rounds=rounds).answer(QUESTION)
    assert (found.ended, len(found.rounds), len(saying_server.asked)) == ("rounds", rounds, rounds + 1)
    assert found.answer.status == "answered" and "rounds ended: rounds" in found.answer.notes


@pytest.mark.parametrize(
    ("says", "ended"),
    [
        (f"Follow up: {QUESTION.upper()}", "repeated question"),
        ("Follow up:", "unreadable"),
        ("Follow up: ???", "unreadable"),
        ("Answer:", "unreadable"),
        ("Follow up: \n\n  Answer: ", "unreadable"),
    ],
)
def test_bad_rounds_end_in_a_plain_answer(answerer: Answerer, saying_server: Any, says: str, ended: str) -> None:
    saying_server.say(says, "The red train is made by Acme [1].")
    found = RoundAnswerer(answerer).answer(QUESTION)
    assert (found.ended, found.answer.text) == (ended, "The red train is made by Acme [1].")
    assert len(found.rounds) == 1 and len(saying_server.asked) == 2 and found.answer.citations.passed


def test_the_last_answer_reads_what_was_chosen_in_its_order(saying_lm: Any, saying_server: Any) -> None:
    """The strongest at both ends, and what was looked up among them: chosen once, not from the choice again."""
    texts = [f"The red train {'of the maker ' * number}has wagon number {number}." for number in range(5)]
    store = PassageStore.build([Passage.of(text, f"document {number}") for number, text in enumerate([*texts, *TEXTS])])
    answerer = Answerer(saying_lm, store, k=5, max_tokens=60)
    saying_server.say("Follow up: winter cold Oslo?", "Follow up: winter cold Oslo?", "Oslo is cold in winter [1].")
    found = RoundAnswerer(answerer).answer("red train of the maker")
    assert found.ended == "repeated question" and len(found.rounds) == 2
    every = [hit for wanted in (found.answer.question, "winter cold Oslo?") for hit in store.search(wanted, 5)]
    once = list({hit.passage.id: hit for hit in every}.values())
    given = answerer.choose("red train of the maker winter cold Oslo?", once).given
    assert found.answer.passages == given and TEXTS[2] in {passage.text for passage in given} and len(given) > 3


def test_no_round_begins_beyond_the_budget(answerer: Answerer, saying_server: Any) -> None:
    saying_server.say("Follow up: Acme?", "Follow up: Oslo?", "Follow up: winter?")
    none = RoundAnswerer(answerer, budget_tokens=50).answer(QUESTION)
    assert none.ended == "budget" and saying_server.asked == [] and none.answer.status == "failed"
    assert "of 50 tokens 0 are spent" in " ".join(none.answer.notes) and TEXTS[0] in none.answer.text
    cost = RoundAnswerer(answerer)._cost(RoundAnswerer(answerer)._chat(QUESTION, none.answer.passages, []))
    one = RoundAnswerer(answerer, budget_tokens=cost + 5).answer(QUESTION)
    assert one.ended == "budget" and len(one.rounds) == 2 and one.rounds[1].said == ""
    assert len(saying_server.asked) == 2 and one.answer.text == "Follow up: Oslo?", "one round and the last answer"


def test_a_small_budget_takes_fewer_passages(saying_lm: Any, saying_server: Any) -> None:
    """What fits is read, rather than nothing because not all of the answerer's budget is left."""
    texts = [f"The red train has wagon {number}, which somebody painted in colour {number}." for number in range(40)]
    store = PassageStore.build([Passage.of(text, f"document {number}") for number, text in enumerate(texts)])
    answerer = Answerer(saying_lm, store, k=40, max_tokens=60, selection="top")
    for budget in (420, 700):
        saying_server.asked.clear()
        saying_server.say("Answer: The red train has wagon 1 [1].")
        found = RoundAnswerer(answerer, budget_tokens=budget).answer("red train wagon colour")
        assert found.ended == "answered" and 1 <= len(found.answer.passages) < 40
        (asked,) = saying_server.asked
        assert saying_lm.count_tokens([asked])[0] + 60 <= budget
    saying_server.asked.clear()
    saying_server.say("Follow up: wagon 7?", "The red train has wagon 1 [1].")
    last = RoundAnswerer(answerer, budget_tokens=420, max_rounds=1).answer("red train wagon colour")
    assert (last.ended, last.answer.status, len(saying_server.asked)) == ("rounds", "answered", 2)


def test_rounds_leave_enough_for_a_last_answer(saying_lm: Any, saying_server: Any) -> None:
    """A model that asks on and on is asked to answer in the end, whatever the budget, and stays within it."""

    class Counting:
        """The same model, whose answers cost what their prompts are counted as, and all that an answer may be."""

        spent = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(saying_lm, name)

        async def generate(self, chats: Any, *, max_tokens: int, **settings: Any) -> list[Generation]:
            found = await saying_lm.generate(chats, max_tokens=max_tokens, **settings)
            prompts = [sum(saying_lm.count_tokens([message.text for message in chat])) for chat in chats]
            self.spent += sum(prompts) + max_tokens * len(chats)
            costs = [Usage(calls=1, prompt_tokens=one, generated_tokens=max_tokens) for one in prompts]
            return [replace(one, usage=cost) for one, cost in zip(found, costs, strict=True)]

    texts = [f"The red train has wagon {number}, which somebody painted in colour {number}." for number in range(40)]
    store = PassageStore.build([Passage.of(text, f"document {number}") for number, text in enumerate(texts)])
    lm, rounds = Counting(), set[int]()
    answerer = Answerer(lm, store, k=10, max_tokens=60, selection="top")
    for budget in range(600, 3000, 150):
        lm.spent = 0
        saying_server.say(*(f"Follow up: wagon {number}?" for number in range(11, 16)), "It has wagon 1 [1].")
        found = RoundAnswerer(answerer, budget_tokens=budget).answer("red train wagon colour")
        usage = found.answer.usage
        assert found.answer.status != "failed" and usage.prompt_tokens + usage.generated_tokens == lm.spent <= budget
        rounds.add(len(found.rounds))
    assert len(rounds) >= 3


def test_faults_end_the_rounds(answerer: Answerer, saying_server: Any) -> None:
    saying_server.say("Follow up: Acme?", {"status": 500, "raw": ""})
    found = RoundAnswerer(answerer).answer(QUESTION)
    assert found.ended == "failed" and found.answer.status == "failed" and len(found.rounds) == 2
    assert len(saying_server.asked) == 2, "who failed is not asked once more"
    assert TEXTS[0] in found.answer.text and any("gave no answer" in note for note in found.answer.notes)
    saying_server.say({"text": "Follow up: Acme?", "wait": 0.1})
    start = time.monotonic()
    late = RoundAnswerer(answerer).answer(QUESTION, deadline=start + 0.25)
    assert late.ended in ("deadline", "repeated question", "failed") and time.monotonic() - start < 8
    over = RoundAnswerer(answerer).answer(QUESTION, deadline=start)
    assert over.ended == "deadline" and over.answer.status == "failed" and len(over.rounds) == 1


def test_nothing_found_asks_nobody(answerer: Answerer, saying_server: Any) -> None:
    saying_server.say("Answer: x")
    found = RoundAnswerer(answerer).answer("zebra", sources=["nowhere"])
    assert found.answer.status == "nothing found" and saying_server.asked == [] and found.rounds == ()
    assert found.ended == "nothing found"


def test_a_small_window_holds_in_every_round(store: PassageStore, saying_server: Any) -> None:
    from recsys.retrieval.rerank.lm.server import ServerLanguageModel

    lm = ServerLanguageModel("m", base_url=saying_server.url, context_tokens=330)
    saying_server.say(*(f"Follow up: Acme Oslo kites ships {number}?" for number in range(5)), "In Oslo [1].")
    RoundAnswerer(Answerer(lm, store, max_tokens=40)).answer(QUESTION)
    assert saying_server.asked
    assert all(lm.count_tokens([text])[0] + 40 <= 330 for text in saying_server.asked)


def test_a_small_model_ends_too(small_lm_folder: Path, store: PassageStore) -> None:
    pytest.importorskip("transformers", reason="needs the extra llm")
    from recsys.retrieval.rerank.lm.local import LocalLanguageModel

    lm = LocalLanguageModel.load(small_lm_folder)
    answerer = Answerer(lm, store, max_tokens=10)
    found = RoundAnswerer(answerer).answer(QUESTION)
    assert found.answer.text and 1 <= len(found.rounds) <= 5
    # The tokens of the chat template are of the budget as well.
    chat = RoundAnswerer(answerer)._chat(QUESTION, found.answer.passages, [])
    budget = sum(lm.count_tokens([message.text for message in chat])) + 10
    usage = RoundAnswerer(answerer, budget_tokens=budget).answer(QUESTION).answer.usage
    assert usage.prompt_tokens + usage.generated_tokens <= budget


@given(st.lists(st.sampled_from(["Answer:", "follow-up :", "Follow up:", "FOLLOW UP:", "\n", " ", "x", "?", "[1]"])
                | st.text(max_size=5), max_size=12).map("".join))  # fmt: skip
def test_whatever_is_written_is_read(text: str) -> None:
    answer, question = read_round(text)
    assert not (answer and question)
    if question is not None:
        assert question.strip() and len(question) <= 300 and "\n" not in question


def test_forms_of_rounds() -> None:
    assert read_round("So: Follow-up: Who?\nBecause") == ("", "Who?")
    assert read_round("Answer: Red [1].\nFollow up: More?") == ("Red [1].", None)
    assert read_round("follow up: " + "why " * 200)[1] == ("why " * 200)[:300].strip()
    assert read_round("") == ("", None)


def test_settings_that_cannot_be_meant(answerer: Answerer) -> None:
    for settings, message in (
        ({"max_rounds": 6}, "max_rounds must be from 1 to 5, got 6"),
        ({"max_rounds": 0}, "max_rounds must be from 1 to 5, got 0"),
        ({"budget_tokens": 0}, "budget_tokens must be a positive integer, got 0"),
    ):
        with pytest.raises(InputError, match=message):
            RoundAnswerer(answerer, **settings)
