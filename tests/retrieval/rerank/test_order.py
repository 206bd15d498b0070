"""An order is read from any text whatever, and is always a permutation."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.retrieval.rerank import Faults
from recsys.retrieval.rerank.item_lines import labels
from recsys.retrieval.rerank.order import order_of_scores, read_order

LETTERS, NUMBERS = labels(5, letters=True), labels(5, letters=False)
pieces = st.one_of(
    st.text(max_size=6),
    st.sampled_from([*LETTERS, *NUMBERS, "0", "-1", "-2", "6", "99", "٣", "Z", "a", '"', "{", "}", "null"]),
    st.sampled_from(["[", "]", " > ", ", ", "\n", ".", ":", "(", ")", " ", "```", "["]),
)


@settings(deadline=None, max_examples=300)
@given(parts=st.lists(pieces, max_size=30), letters=st.booleans(), count=st.integers(0, 5), top=st.integers(0, 6))
def test_any_text_gives_a_permutation(parts: list[str], letters: bool, count: int, top: int) -> None:
    order = read_order("".join(parts), labels(count, letters=letters), expected=top)
    assert sorted(order.places) == list(range(count))
    assert list(order.places[order.read :]) == sorted(order.places[order.read :]), "what was not read stays in order"
    assert 0 <= order.faults.missing <= min(top, count)


@settings(deadline=None, max_examples=100)
@given(
    data=st.data(),
    letters=st.booleans(),
    form=st.sampled_from(["[{}]", "{}"]),
    between=st.sampled_from([" > ", ", ", "\n"]),
)
def test_what_was_written_is_what_is_read(data: st.DataObject, letters: bool, form: str, between: str) -> None:
    names = labels(20, letters=letters)
    places = data.draw(st.permutations(range(20)))
    order = read_order(between.join(form.format(names[place]) for place in places), names)
    assert list(order.places) == places and order.read == 20 and not order.faults


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("[3] > [1]", [2, 0]),
        ("[3] > [1] > [2] > [5] > [4]", [2, 0, 1, 4, 3]),
        ("The order is: [3] > [1].", [2, 0]),
        ("Here are the top 2 items: 3, 1", [2, 0]),
        ("3 1", [2, 0]),
        ("[3, 1]", [2, 0]),
        ('["3", "1"]', [2, 0]),
        ('```json\n{"order": [3, 1]}\n```', [2, 0]),
        ('[{"label": 3, "why": "red"}, {"label": 1}]', [2, 0]),
        ("1. [3] A train\n2. [1] A ship", [2, 0]),
        ("1. 3\n2. 1", [2, 0]),
        ("**[3]** > *[1]*", [2, 0]),
        ("[[3]] > [[1]]", [2, 0]),
        ("3: A red, blue, green and yellow train\n1: a ship", [2, 0]),
    ],
)
def test_forms_of_answers(text: str, places: list[int]) -> None:
    order = read_order(text, NUMBERS)
    assert list(order.places[: order.read]) == places
    assert order.faults == Faults(missing=5 - len(places))


@pytest.mark.parametrize(
    ("text", "places"),
    [("C, A, B", [2, 0, 1]), ("C > A", [2, 0]), ("c a", [2, 0]), ("(C) > (A)", [2, 0]), ("1. C\n2. A", [2, 0])]
    + [("C: a train\nA: a ship", [2, 0]), ("[C] A train\n[A] a ship", [2, 0]), ("C", [2]), ("```\nC\nA\n```", [2, 0])],
)
def test_forms_of_letters(text: str, places: list[int]) -> None:
    order = read_order(text, LETTERS)
    assert list(order.places[: order.read]) == places


@pytest.mark.parametrize(
    ("text", "foreign"),
    [("[0] > [-2]", 2), ("[0]", 1), ("0, -1, -2", 3), ("[6] > [99]", 2), ("[١] > [２]", 2), ("[1.0]", 1), ("[01]", 1)]
    + [("[true, null, 1.5]", 3), ("[A] > [B]", 2), ('[{"x": null}]', 1), ("[1e0] > [0x1]", 2), ("[+1]", 1)],
)
def test_no_label_is_computed_with(text: str, foreign: int) -> None:
    """Zero, negative numbers and numbers beyond the list take nobody's place, not even from the list's end."""
    order = read_order(text, NUMBERS)
    assert order.places == (0, 1, 2, 3, 4) and order.read == 0
    assert order.faults == Faults(foreign=foreign, malformed=1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n ",
        "None",
        "null",
        "{}",
        "[]",
        "I'm sorry, but I cannot rank these.",
        "A is a word and I am too",
        "[",
        "]]",
    ]
    + ["I think that the user, who likes trains, will choose a ship.", "[a remark of several words]", "<C> <A>", "🤖"],
)
def test_words_are_no_order(text: str) -> None:
    order = read_order(text, LETTERS)
    assert order.places == (0, 1, 2, 3, 4) and order.faults == Faults(malformed=1)


def test_faults_are_counted_and_the_rest_keeps_its_order() -> None:
    order = read_order("[4] > [2] > [4] > [7] > [2] > [0]", NUMBERS)
    assert order.places == (3, 1, 0, 2, 4)
    assert order.read == 2 and order.faults == Faults(missing=3, repeated=2, foreign=2)
    assert read_order("[4] > [2]", NUMBERS, expected=2).faults == Faults()
    assert read_order("[4]", NUMBERS, expected=3).faults == Faults(missing=2)


@pytest.mark.parametrize(
    "text",
    ["[" * 10**5, "[" * 50_000 + "]" * 50_000, "[A] > " * 20_000, "A " * 50_000, "1. " + " " * 10**5, "{" * 10**5]
    + [
        "A" + " " * 10**5 + "x",
        " :" * 50_000,
        "A:\n" * 40_000,
        "a" * 10**6,
        "[1," * 40_000,
        "\n" * 10**5 + "`",
        "9" * 10**5,
    ],
)
def test_long_answers_are_read_at_once(text: str) -> None:
    start = time.process_time()
    order = read_order(text, LETTERS)
    assert sorted(order.places) == [0, 1, 2, 3, 4]
    assert time.process_time() - start < 2.0


def test_scores_that_are_no_numbers_come_last() -> None:
    nan, inf = float("nan"), float("inf")
    assert order_of_scores([nan, 1.0, -inf, nan, 2.0, 1.0]) == [4, 1, 5, 2, 0, 3]
    assert order_of_scores([]) == []
