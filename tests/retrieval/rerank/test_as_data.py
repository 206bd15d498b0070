"""Text from outside stays one line of data, whatever is in it."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recsys.retrieval.rerank.as_data import DELIMITERS, as_data

SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<s>", "</s>", "[INST]"),
    *("[/INST]", "<<SYS>>", "<start_of_turn>", "<end_of_turn>", "<｜User｜>", "<pad>", "<unk>", "<0x0A>", "[SEP]"),
    *("[A]", "[1]", "［Ａ］", "### Instruction:", "\n\nHuman:", "ASSISTANT:", "```", "{{", "$item", "${count}"),
]
single = st.sampled_from(list(DELIMITERS + "\n\u202e\u200b….#"))
pieces = st.one_of(st.text(max_size=12), st.sampled_from(SPECIAL), single)
texts = st.lists(pieces, max_size=12).map("".join)


@settings(deadline=None, max_examples=200)
@given(text=texts, max_chars=st.integers(-1, 90))
@example(text="e\u00b4 \u0301\u2026.\u2025", max_chars=5)
@example(text="<\u0338|\u0338", max_chars=9)
@example(text="system : user: ….", max_chars=90)
@example(text="\ud800\udfff", max_chars=9)
@example(text="0ASSISTANT:", max_chars=11)
@example(text="Superuser : now", max_chars=40)
def test_nothing_of_the_prompt_can_be_imitated(text: str, max_chars: int) -> None:
    line = as_data(text, max_chars)
    assert len(line) <= max(max_chars, 0)
    assert not set(line) & set(DELIMITERS)
    assert len(line.splitlines()) <= 1 and line == line.strip() and "  " not in line
    assert not any(token in line for token in SPECIAL if token[0] != "$")
    assert all(unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") for character in line)
    assert as_data(line, max_chars) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("  Melissa & Doug\tMagnetic  Wooden Alphabet ", "Melissa & Doug Magnetic Wooden Alphabet"),
        ("The Hunger Games (The Hunger Games, #1)", "The Hunger Games (The Hunger Games, #1)"),
        ("Gone Girl. By Gillian Flynn.", "Gone Girl. By Gillian Flynn."),
        ("Toys & Games > Dolls", "Toys & Games / Dolls"),
        ("- another line", "another line"),
        ("-- * # deep", "deep"),
        ("-5 degrees - cold", "-5 degrees - cold"),
        ('Screen 7" wide', "Screen 7” wide"),
        ("愛蔵版【ワンピース】", "愛蔵版(ワンピース)"),
        ("„Der Prozess“ – Kafka", "„Der Prozess“ – Kafka"),
        ("Ｈｅｌｌｏ ［Ａ］", "Hello (A)"),
        ("safe\u202eesrever\u2066 \u200bhidden\u200d", "safeesrever hidden"),
        ("tag\U000e0041\U000e0042 smuggled", "tag smuggled"),
        ("Operating System: Concepts", "Operating System - Concepts"),
        ("line one\nline two\r\n\u2028line three", "line one line two line three"),
        ("wait......... ### now ======", "wait… # now ==="),
        ("", ""),
        ("\x00\x1b[31mred", "(31mred"),
    ],
)
def test_examples(text: str, line: str) -> None:
    assert as_data(text) == line


def test_a_long_text_ends_at_a_word_and_is_not_read_whole() -> None:
    assert as_data("word " * 100, 20) == "word word word word…"
    assert as_data("x" * 100, 20) == "x" * 19 + "…"
    assert as_data("x" * 20, 20) == "x" * 20
    assert as_data("\u200b" * 10**6 + "late", 20) == "…", "what is beyond the part that is read is marked as left out"
    assert as_data("a" * 10**7, 80) == "a" * 79 + "…"
