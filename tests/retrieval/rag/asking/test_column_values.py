"""Wordings of a question find the values that stand in columns."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.retrieval.rag.sql.column_values import ColumnValues


@pytest.fixture(scope="module")
def values(shop_items: pl.DataFrame) -> ColumnValues:
    return ColumnValues.of(shop_items)


def test_columns_are_read_as_what_they_are(values: ColumnValues) -> None:
    assert set(values.columns) == {"title", "kind", "maker", "tags", "colors"}
    assert values.columns["title"].names_items and not values.columns["kind"].names_items
    assert values.columns["tags"].separators == (",",) and "science-fiction" in values.columns["tags"].values
    assert values.columns["colors"].listed and values.columns["colors"].values == ("blue", "green", "red")
    assert sum(values.columns["kind"].counts) == 30


def test_codes_addresses_and_long_texts_are_left_out() -> None:
    paths = ["Toys > Trains", "Toys > Dolls | Gifts", "Toys > Trains | Gifts > Small"]
    items = pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(50)],
            "code": [f"B00{n}XZ" for n in range(50)],
            "picture": [f"https://pictures.example/{n % 3}.jpg" for n in range(50)],
            "story": ["once upon a time there was a very long story " * 5 + str(n) for n in range(50)],
            "path": [paths[n % 3] for n in range(50)],
        }
    )
    values = ColumnValues.of(items)
    assert set(values.columns) == {"path"}
    assert values.columns["path"].separators == (" > ", "|")
    assert set(values.columns["path"].values) == {"Toys", "Trains", "Dolls", "Gifts", "Small"}


@pytest.mark.parametrize(
    ("question", "column", "value", "words"),
    [
        ("a science fiction toy", "tags", "science-fiction", "science fiction"),
        ("something by TOYMAKER please", "maker", "J.K. Toymaker", "TOYMAKER"),
        ("of marklin & sons?", "maker", "Märklin & Sons", "marklin & sons"),
        ("trains", "kind", "train", "trains"),
        ("c++ kits", "maker", "C++ {Kits}", "c++ kits"),
    ],
)
def test_wordings_find_values(values: ColumnValues, question: str, column: str, value: str, words: str) -> None:
    found = [match for match in values.match(question) if (match.column, match.value) == (column, value)]
    assert len(found) == 1 and found[0].words == words
    assert question[found[0].begin : found[0].end] == words and 0.5 < found[0].score <= 1


def test_the_column_s_own_spelling_is_given(values: ColumnValues) -> None:
    assert values.known("kind", "TRAIN") == "train" and values.known("maker", "märklin and sons") == "Märklin & Sons"
    assert values.known("kind", "submarine") is None and values.known("nowhere", "train") is None


def test_the_most_frequent_values_are_kept(shop_items: pl.DataFrame) -> None:
    few = ColumnValues.of(shop_items, max_values=2, columns=["tags"])
    assert set(few.columns) == {"tags"} and few.columns["tags"].truncated and len(few.columns["tags"].values) == 2


def test_an_encoder_finds_what_letters_do_not(shop_items: pl.DataFrame) -> None:
    class Meaning:
        """Vessels are ships; everything else is itself."""

        def encode(self, texts: object) -> np.ndarray:
            assert isinstance(texts, list)
            known = {"ship": 0, "vessel": 0, "train": 1}
            rows = np.zeros((len(texts), 3), dtype=np.float32)
            for row, text in enumerate(texts):
                rows[row, known.get(str(text), 2)] = 1 if str(text) in known else 0.001
            return rows

    without = ColumnValues.of(shop_items, columns=["kind"]).match("a vessel")
    (found,) = ColumnValues.of(shop_items, columns=["kind"], encoder=Meaning()).match("a vessel")
    assert without == [] and (found.value, found.words) == ("ship", "vessel")


@settings(deadline=None, max_examples=40)
@given(question=st.text(max_size=80))
def test_any_question_is_matched_without_an_error(values: ColumnValues, question: str) -> None:
    for match in values.match(question):
        assert question[match.begin : match.end] == match.words and match.value in values.columns[match.column].values
