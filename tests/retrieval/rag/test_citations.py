"""Citations are read, looked up and weighed; no text makes the check fail."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.retrieval.rag.citations import check_answer, cited_in, judged_answer
from recsys.retrieval.rag.nli import EntailmentModel
from recsys.retrieval.rag.passage import Passage

PASSAGES = [
    Passage.of("The red train is made of wood and costs 25 dollars.", "item", 1),
    Passage.of("The blue ship floats in the bath.", "item", 2),
]
TEXTS = st.lists(
    st.sampled_from(["[1]", "[2, 1]", "[9]", "[1-99999999]", "[", "]", "【2】", "[^1]", ". ", "\n", "train ", "25"])
    | st.text(max_size=6),
    max_size=40,
).map("".join)  # fmt: skip


def test_a_supported_answer_passes() -> None:
    checked = check_answer("The train is made of wood [1]. The ship floats. [2]", PASSAGES)
    assert checked.passed and checked.cited == (1, 2) and checked.judged_by == "overlap"
    assert [sentence.support for sentence in checked.sentences] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("text", "unknown", "unsupported"),
    [
        ("The train is made of wood [3].", (3,), (0,)),
        ("The train is made of wood [1][7].", (7,), ()),
        ("The train is made of wood.", (), (0,)),  # true, and cites nothing
        ("The train is made of wood [2].", (), (0,)),  # cites the wrong one
        ("The dragon breathes purple fire [1].", (), (0,)),
        ("The red train costs 99 dollars [1].", (), (0,)),  # every word stands there but the figure
        ("The red train costs 25 dollars [1].", (), ()),
        ("The red train and the blue ship [1-2].", (), ()),
        ("Yes! The train is of wood [1].", (), ()),  # "Yes!" claims nothing
        ("Wood [0].", (0,), (0,)),
        ("Wood [1, 99].", (99,), ()),
        ("Wood [-1].", (), (0,)),
        ("Wood [one].", (), (0,)),
    ],
)
def test_what_is_wrong_is_said(text: str, unknown: tuple[int, ...], unsupported: tuple[int, ...]) -> None:
    checked = check_answer(text, PASSAGES)
    assert (checked.unknown_citations, checked.unsupported) == (unknown, unsupported)
    assert checked.passed is (not unknown and not unsupported)


def test_the_threshold_is_a_share_of_the_content_words() -> None:
    text = "The red train flies today [1]."  # two of four
    assert check_answer(text, PASSAGES).sentences[0].support == pytest.approx(0.5)
    assert not check_answer(text, PASSAGES).unsupported
    assert check_answer(text, PASSAGES, min_overlap=0.51).unsupported == (0,)
    with pytest.raises(InputError, match=r"min_overlap must be from 0 to 1, got 1\.5"):
        check_answer(text, PASSAGES, min_overlap=1.5)


def test_nothing_given_and_nothing_said() -> None:
    assert not check_answer("", PASSAGES).passed
    checked = check_answer("The train is red [1].", [])
    assert checked.unknown_citations == (1,) and checked.unsupported == (0,) and checked.cited == ()


@settings(deadline=None)
@given(TEXTS, st.integers(0, 3))
@example("[" * 500 + "1" + "]" * 500, 2)
@example("[" + "1," * 5000 + "1]", 2)
@example("[" + "9" * 400 + "]", 2)
@example("a" * 100_000, 1)
def test_no_text_makes_it_fail(text: str, count: int) -> None:
    checked = check_answer(text, PASSAGES[:count])
    assert set(checked.cited) <= set(range(1, min(count, 2) + 1))
    assert not set(checked.unknown_citations) & set(checked.cited)
    assert all(0 <= place < len(checked.sentences) for place in checked.unsupported)
    assert "".join("".join(sentence.text for sentence in checked.sentences).split()) == "".join(text.split())
    for sentence in checked.sentences:
        assert sentence.support is None or 0 <= sentence.support <= 1


def test_forms_of_citations() -> None:
    assert cited_in("a[1]b[2,3] [4; 5] 【6】 [^7] [8–10]") == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    assert cited_in("[3-1] [x] [] [1.5] (1)") == (3, 1)
    assert len(cited_in("[1-999999999]")) == 51
    many = check_answer("The train is red [1-900].", ["the red train"] * 60)
    assert many.unknown_citations == (900,) and not many.passed, "where a long range ends nobody gave anything"


def test_an_entailment_model_judges(small_nli_folder: Path) -> None:
    judge = EntailmentModel.load(small_nli_folder)
    pairs = [("the red train is made of wood", "the train is red"), ("a ship", "a castle of steel " * 40)] * 20
    chances = judge(pairs)
    assert len(chances) == 40 and all(0 <= chance <= 1 for chance in chances) and judge([]) == []
    assert chances[0] == pytest.approx(judge(pairs[:1])[0], abs=1e-5)  # whatever else is in the batch
    text = "The train is red [1]. The ship is blue [2][1]. Yes."
    checked = check_answer(text, PASSAGES, entails=judge, min_probability=0.0)
    assert checked.judged_by == "entailment" and checked.unsupported == ()
    (first,) = judge([(PASSAGES[0].text, "The train is red .")])
    assert checked.sentences[0].support == pytest.approx(first, abs=1e-5)
    assert check_answer(text, PASSAGES, entails=judge, min_probability=1.0).unsupported == (0, 1)


def test_a_judge_that_cannot_compute_leaves_the_overlap() -> None:
    def judge(pairs: object) -> list[float]:
        raise RuntimeError("no\nmemory")

    checked, notes = judged_answer("The train is red [1].", PASSAGES, min_overlap=0.5, entails=judge)
    assert checked == check_answer("The train is red [1].", PASSAGES) and checked.judged_by == "overlap"
    assert notes == ("the entailment model failed ('no memory'); words that overlap were counted",)


def test_a_judge_whose_tokenizer_cannot_pad_leaves_the_overlap(small_nli_folder: Path) -> None:
    judge = EntailmentModel.load(small_nli_folder)
    judge._tokenizer.pad_token = None  # as that of a classifier made of GPT-2
    checked, (note,) = judged_answer("The train is red [1].", PASSAGES, min_overlap=0.5, entails=judge)
    assert checked.judged_by == "overlap" and "pad" in note


def test_a_judge_is_asked_about_each_citation_and_all_together() -> None:
    asked: list[tuple[str, str]] = []

    def judge(pairs: object) -> list[float]:
        asked.extend(pairs)  # type: ignore[call-overload]
        return [0.9 if "\n" in premise else 0.1 for premise, _ in pairs]  # type: ignore[attr-defined]

    assert check_answer("The train and the ship [1][2].", PASSAGES, entails=judge).passed
    assert [premise.count("\n") for premise, _ in asked] == [0, 0, 1]
    assert check_answer("The ship sinks [2].", PASSAGES, entails=judge).unsupported == (0,)


def test_a_classifier_without_entailment_is_refused(small_nli_folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(small_nli_folder, tmp_path / "other")
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"entailment"', '"yes"'))
    with pytest.raises(InputError, match="labels contradiction, yes, neutral and not one called entailment"):
        EntailmentModel.load(other)
    (other / "config.json").write_text(config.replace('"contradiction"', '"not_entailment"'))
    EntailmentModel.load(other)
    (other / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be loaded as a classifier"):
        EntailmentModel.load(other)
    with pytest.raises(InputError, match=r"holds no config\.json"):
        EntailmentModel.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text",
    [
        "It has 1000 parts [1].",
        "It costs 20.00 dollars [2].",
        "1. It has 1,000 parts [1].\n2) It costs 20 dollars [2].",
    ],
)
def test_spellings_of_numbers_and_of_lists_are_no_faults(text: str) -> None:
    passages = ["The ship has 1,000 parts.", "The train costs 20 dollars."]
    checked = check_answer(text, passages)
    assert checked.passed, checked.sentences
    assert not check_answer(text.replace("20", "21").replace("1000", "1001").replace("1,000", "1,001"), passages).passed
