"""Pieces lose nothing and stay within their limits, whatever the text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.retrieval.rag.chunking import ChunkLimits, chunks
from recsys.retrieval.rag.passage import estimated_tokens, passage_id, plain_text
from recsys.retrieval.rag.sentences import sentence_spans

TEXTS = st.lists(
    st.sampled_from([*"ab .!?\n\t。…[]1", "Dr. ", "e.g. ", "3.5 ", "word ", "word" * 30, "红色", "\u0301", "😀", "[1]"])
    | st.text(max_size=8),
    max_size=60,
).map("".join)  # fmt: skip
LIMITS = st.builds(
    lambda tokens, chars, share: ChunkLimits(max_tokens=tokens, max_chars=chars, overlap_tokens=int(share * tokens)),
    st.integers(8, 60), st.integers(8, 120), st.floats(0, 0.9),
)  # fmt: skip


def letters(text: str) -> list[int]:
    return [at for at, sign in enumerate(text) if not sign.isspace()]


@settings(deadline=None)
@given(TEXTS)
def test_every_sign_is_in_one_sentence(text: str) -> None:
    spans = sentence_spans(text)
    covered = [at for begin, end in spans for at in range(begin, end) if not text[at].isspace()]
    assert covered == letters(text)
    assert all(text[begin:end] == text[begin:end].strip() != "" for begin, end in spans)


@settings(deadline=None)
@given(TEXTS, LIMITS)
def test_nothing_is_lost_and_limits_hold(text: str, limits: ChunkLimits) -> None:
    made = chunks(text, limits)
    assert {at for chunk in made for at in range(chunk.begin, chunk.end)} >= set(letters(text))
    for chunk in made:
        assert chunk.text == text[chunk.begin : chunk.end] and chunk.text.strip()
        assert len(chunk.text) <= limits.max_chars
        assert chunk.tokens == estimated_tokens(plain_text(chunk.text)) <= limits.max_tokens
    for one, two in zip(made, made[1:], strict=False):
        assert one.begin < two.begin and one.end < two.end
        shared = text[two.begin : one.end] if two.begin < one.end else ""
        assert estimated_tokens(shared) <= limits.overlap_tokens


def test_whole_sentences_stay_whole_and_overlap() -> None:
    text = " ".join(f"Sentence number {number} says little." for number in range(12))
    made = chunks(text, ChunkLimits(max_tokens=40, overlap_tokens=12))
    assert len(made) > 3 and all(chunk.text.startswith("Sentence") and chunk.text.endswith("little.") for chunk in made)
    assert all(two.begin < one.end for one, two in zip(made, made[1:], strict=False))
    apart = chunks(text, ChunkLimits(max_tokens=40, overlap_tokens=0))
    assert all(one.end < two.begin for one, two in zip(apart, apart[1:], strict=False))


def test_a_counter_of_its_own_holds() -> None:
    by_sign = chunks("word " * 200, ChunkLimits(max_tokens=30, overlap_tokens=5), count=len)
    assert max(len(chunk.text) for chunk in by_sign) <= 30


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Mr. J. Smith paid 3.50 in the U.S. for it. Fine!", ["Mr. J. Smith paid 3.50 in the U.S. for it.", "Fine!"]),
        ("It is red. [1] It is old [2].", ["It is red. [1]", "It is old [2]."]),
        ("It is red.[1][2] Old.", ["It is red.[1][2]", "Old."]),
        ("- one\n- two\n\nthree", ["- one", "- two", "three"]),
        ("红色。火车！", ["红色。", "火车！"]),
        ('She said "Stop!" Then: go...', ['She said "Stop!"', "Then: go..."]),
        ("v1.2.3 is out", ["v1.2.3 is out"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert [text[begin:end] for begin, end in sentence_spans(text)] == sentences


def test_a_long_text_takes_no_longer_than_its_length() -> None:
    for text in ("." * 300_000, "[1" * 100_000, "a. " * 100_000, "[1]" * 100_000, "\n \t" * 100_000):
        assert len(sentence_spans(text)) >= 0
    line, took = "It is red and of wood. ", list[float]()
    for times in (20_000, 160_000):  # 0.5 and 3.7 MB in one line
        started = time.process_time()
        assert len(sentence_spans(line * times)) == times
        took.append(time.process_time() - started)
    assert took[1] < 24 * took[0]  # 8 times as much, and 64 times where each sentence looks back over the line
    assert len(chunks("x" * 200_000, ChunkLimits(max_tokens=100, max_chars=300))) > 600


def test_limits_that_cannot_be_meant() -> None:
    with pytest.raises(InputError, match=r"ChunkLimits\.max_tokens must be an integer of at least 8, got 7"):
        ChunkLimits(max_tokens=7)
    with pytest.raises(InputError, match="overlap_tokens 50 must be below max_tokens 50"):
        ChunkLimits(max_tokens=50, overlap_tokens=50)


def test_ids_belong_to_the_content() -> None:
    assert passage_id("a", "b") != passage_id("a", "b", "None") != passage_id("ab", "", "None")
