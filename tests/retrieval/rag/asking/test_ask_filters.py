"""Filters of questions: by rules, by a model's answer, over columns of every kind."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.retrieval.rag.ask_carried import asks_for_others, carried_over, starts_over
from recsys.retrieval.rag.ask_filter import Filter, FilterColumns
from recsys.retrieval.rag.ask_model import read_filters, united, without_denied
from recsys.retrieval.rag.ask_words import asks_for_facts, filters_in, left_words
from recsys.retrieval.rag.sql.column_values import ColumnValues
from recsys.retrieval.rag.words import content_words

ANSWERS = yaml.safe_load((Path(__file__).parent / "hostile" / "ask_filters.yaml").read_text(encoding="utf-8"))


WORDS = [
    *"no not without nothing but don't anything by brio trains dolls red or and , wood under 20 free".split(),
    "in stock",
]


@pytest.fixture(scope="module")
def columns(shop_items: pl.DataFrame) -> FilterColumns:
    return FilterColumns(shop_items, ColumnValues.of(shop_items))


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("a train", ["kind is train"]),
        ("trains or ships", ["kind is train or ship"]),
        ("something, but not a doll", ["kind is not doll"]),
        ("no dolls or cars please", ["kind is not doll", "kind is not car"]),
        ("a toy by toymaker", ["maker is J.K. Toymaker"]),
        ("from marklin and sons", ["maker is Märklin & Sons"]),
        ("science fiction, in green", ["tags is science-fiction", "colors is green"]),
        ("wood under $20", ["tags is wood", "price at most 20"]),
        ("a ship between 10 and 30 euros", ["kind is ship", "price from 10 to 30"]),
        ("cars rated at least 3.5", ["kind is car", "average rating at least 3.5"]),
        ("4 stars or more", ["average rating at least 4"]),
        ("a train from the 1990s", ["kind is train", "year from 1990 to 1999"]),
        ("made before the year 2000", ["year at most 1999"]),
        ("released after 2000", ["released at least 2001-01-01"]),
        ("cars, 20 dollars or less", ["kind is car", "price at most 20"]),
        ("a ship, $10-$30", ["kind is ship", "price from 10 to 30"]),
        ("cars for 20 dollars max", ["kind is car", "price at most 20"]),
        ("my budget is 40 dollars", ["price at most 40"]),
        ("a ship under 19,99 €", ["kind is ship", "price at most 19.99"]),
        ("between 10 and 1,000 dollars", ["price from 10 to 1000"]),
        ("between 10,50 and 1.299,00 euros", ["price from 10.5 to 1299"]),
        ("more expensive than 50", ["price at least 50"]),
        ("better than 4", ["average rating at least 4"]),
        ("3 stars or less", ["average rating at most 3"]),
        ("from 1990 until 1999", ["year from 1990 to 1999"]),
        ("a train from 2005 onwards", ["kind is train", "year at least 2005"]),
        ("a train from the 90s", ["kind is train", "year from 1990 to 1999"]),
        ("made after the 1990s", ["year at least 2000"]),
        ("from the 1980s or 1990s", ["year from 1980 to 1999"]),
        (
            "a green train or a blue doll",
            ["(colors is green and kind is train) or (colors is blue and kind is doll)"],
        ),
        ("a train, or something by brio", ["kind is train or maker is Brio"]),
        ("trains or red dolls", ["kind is train or (colors is red and kind is doll)"]),
        ("wood or brio trains", ["tags is wood or maker is Brio", "kind is train"]),
        ("a green or red train", ["colors is green or red", "kind is train"]),
        ("wood, green or by brio", ["tags is wood", "colors is green or maker is Brio"]),
        ("a train, a doll or something by brio", ["kind is train or doll or maker is Brio"]),
        ("a train ship or brio or car doll", ["kind is train or ship or car or doll or maker is Brio"]),
        ("a train, red or green", ["kind is train", "colors is red or green"]),
        ("trains, ships or cars", ["kind is train or ship or car"]),
        ("brio or trains or ships under 20 dollars", ["maker is Brio or kind is train or ship", "price at most 20"]),
        ("non-wood trains", ["tags is not wood", "kind is train"]),
        ("trains that are in stock", ["kind is train", "in stock is yes"]),
        ("not in stock", ["in stock is no"]),
        ("hello there", []),
        ("", []),
    ],
)
def test_words_become_filters(columns: FilterColumns, question: str, expected: list[str]) -> None:
    read = filters_in(question, columns)
    assert [str(one) for one in read.filters] == expected
    assert read.notes == read.unread == []


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("a toy, nothing from brio", ["maker is not Brio"]),
        ("no toys by brio", ["maker is not Brio"]),
        ("nothing made by brio", ["maker is not Brio"]),
        ("I don't want anything by brio", ["maker is not Brio"]),
        ("I don’t want to see trains", ["kind is not train"]),
        ("a gift, anyone but brio", ["maker is not Brio"]),
        ("something different from trains", ["kind is not train"]),
        ("a train without wood by brio", ["kind is train", "tags is not wood", "maker is Brio"]),
        ("wood-free trains", ["tags is not wood", "kind is train"]),
        ("not a train or a ship", ["kind is not train", "kind is not ship"]),
        ("no dolls, cars or ships", ["kind is not doll", "kind is not car", "kind is not ship"]),
        ("neither trains nor ships", ["kind is not train", "kind is not ship"]),
        ("no dolls for my son who likes trains", ["kind is not doll", "kind is train"]),
        ("no dolls but trains", ["kind is not doll", "kind is train"]),
        ("no red trains", ["not (kind is train and colors is red)"]),
        ("nothing with number 7", ["title without “number 7”"]),
        ("no green ship please", ["not (kind is ship and colors is green)"]),
        ("nothing over 50 dollars", ["price at most 50"]),
        ("I do not want to spend more than 50 dollars", ["price at most 50"]),
        ("no more than 50 dollars for a train", ["kind is train", "price at most 50"]),
        ("not under 20 dollars", ["price at least 20"]),
        ("nothing made before the year 2000", ["year at least 2000"]),
        ("not from the 1990s", ["year not from 1990 to 1999"]),
        # two denials, or none at all
        ("nothing but trains", ["kind is train"]),
        ("nothing except trains", ["kind is train"]),
        ("no toys other than trains", ["kind is train"]),
        ("not without wood", ["tags is wood"]),
        ("not only trains", ["kind is train"]),
        ("why not a train?", ["kind is train"]),
        ("No, a train please", ["kind is train"]),
        ("I don't care, a train", ["kind is train"]),
        ("trains I haven't seen", ["kind is train"]),
    ],
)
def test_what_is_denied_is_excluded_and_nothing_else(
    columns: FilterColumns, question: str, expected: list[str]
) -> None:
    read = filters_in(question, columns)
    assert [str(one) for one in read.filters] == expected
    assert read.notes == read.unread == []


@pytest.mark.parametrize(
    ("question", "expected", "unread"),
    [
        ("don't exclude trains", [], "don't exclude trains"),
        ("no cheap plastic trains", [], "no cheap plastic trains"),
        ("nothing by an unheard of maker", [], "nothing by an unheard of maker"),
        ("no dolls, trains please", ["kind is not doll"], "no dolls, trains"),
        ("no dolls under 20 dollars", ["kind is not doll"], "no dolls under 20"),
        ("nothing that is not in stock", [], "nothing that is not in stock"),
        ("a not too expensive train", ["kind is train"], "not too expensive"),
        ("I already have a brio train, what else?", [], "I already have a brio train"),
        ("we own dolls under 20 dollars but want ships", ["kind is ship"], "we own dolls under 20 dollars"),
        ("I've read science fiction and want a doll", ["kind is doll"], "I've read science fiction"),
    ],
)
def test_a_denial_that_is_not_plain_is_said_and_never_guessed(
    columns: FilterColumns, question: str, expected: list[str], unread: str
) -> None:
    read = filters_in(question, columns)
    assert [str(one) for one in read.filters] == expected
    assert read.unread == [unread] and unread in read.unread_notes()[0]
    assert not set(content_words(unread)) & set(left_words(question, read.filters, read.unread)), "nor searched for"


def test_a_refused_title_leaves_out_its_items_only(columns: FilterColumns, shop_items: pl.DataFrame) -> None:
    for part, refused in (("number 7", {"i7"}), ("the green doll number 11", {"i11"}), ("Number 1", {"i1"})):
        left = set(shop_items["item_id"].filter(columns.mask(filters_in(f"anything but {part}", columns).filters)))
        assert set(shop_items["item_id"]) - left == refused, part


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join))
def test_no_order_of_words_breaks_the_rules(columns: FilterColumns, question: str) -> None:
    read = filters_in(question, columns)
    assert len(columns.mask(read.filters)) == 30
    assert all(stretch in question for stretch in read.unread)
    values = [(one.column, value) for one in read.filters if not one.negate for value in one.values]
    assert not {
        (one.column, value) for one in read.filters if one.negate and not one.together for value in one.values
    } & {*values}, "no value is both asked for and excluded"


def test_a_number_that_fits_no_column_is_said(columns: FilterColumns) -> None:
    read = filters_in("a train with under 9000000 wheels", columns)
    assert [str(one) for one in read.filters] == ["kind is train"]
    assert len(read.notes) == 1 and "9000000" in read.notes[0]


@pytest.mark.parametrize(
    ("question", "left_out"),
    [
        ("a train with more than 40 pieces", "more than 40 pieces"),
        ("a train of 1000 pieces", "of 1000 pieces"),
        ("a train with over 2000 parts", "over 2000 parts"),
        ("a train for up to 20 players", "up to 20 players"),
        ("a train for kids older than 10", "older than 10"),
        ("a train for children over 10", "over 10"),
        ("a train, between 6 and 9 years", "between 6 and 9 years"),
        ("a train, 10 or more players", "10 or more players"),
        ("a train cheaper than 2000", "cheaper than 2000"),
        ("a train under $10 or over $60", "“under $10” and “over $60”"),
        ("a cheaper train", "cheaper"),
    ],
)
def test_a_number_of_something_else_is_no_price_and_no_year(
    columns: FilterColumns, question: str, left_out: str
) -> None:
    read = filters_in(question, columns)
    assert [str(one) for one in read.filters if one.column != "kind"] == []
    assert [note for note in read.notes if left_out in note and "left out" in note] == read.notes != []


def test_a_number_goes_to_the_column_of_what_it_counts(shop_items: pl.DataFrame) -> None:
    items = shop_items.with_columns(ratings_count=pl.int_range(pl.len()) * 100, pages=pl.int_range(pl.len()) * 90)
    columns = FilterColumns(items, ColumnValues.of(items))
    for question, expected in (
        ("with more than 2000 ratings", "ratings count at least 2000"),
        ("at least 3 ratings", "ratings count at least 3"),
        ("over 2000 pages", "pages at least 2000"),
        ("rated at least 3", "average rating at least 3"),
    ):
        assert [str(one) for one in filters_in(question, columns).filters] == [expected], question


FILTERS = [
    Filter(column="kind", values=("train", "ship")),
    Filter(column="kind", values=("train",), negate=True),
    Filter(column="maker", values=("C++ {Kits}",)),
    Filter(column="maker", values=("J.K. Toymaker", "Märklin & Sons"), negate=True),
    Filter(column="tags", values=("wood",)),
    Filter(column="tags", values=("a.b*c", "small")),
    Filter(column="tags", values=("science-fiction",), negate=True),
    Filter(column="colors", values=("blue", "none")),
    Filter(column="colors", values=("red",), negate=True),
    Filter(column="price", at_most=30),
    Filter(column="price", at_least=10.5, at_most=40),
    Filter(column="price", at_least=10.5, negate=True),
    Filter(column="year", at_least=1990, at_most=1999),
    Filter(column="year", at_least=1990, at_most=1999, negate=True),
    Filter(column="title", values=("green Dolls",), within=True, negate=True),
    Filter(column="kind", values=("ship",), negate=True, together=(Filter(column="colors", values=("red",)),)),
    Filter(column="in_stock", values=(True,)),
    Filter(column="in_stock", values=(False,), negate=True),
    Filter(column="kind", values=("ship",), either=(Filter(column="colors", values=("red",)),)),
    Filter(
        column="kind",
        values=("ship",),
        together=(Filter(column="colors", values=("green",)),),
        either=(Filter(column="maker", values=("Brio",), together=(Filter(column="price", at_most=30),)),),
    ),
]


def test_a_choice_is_one_of_its_sides_and_nothing_else(columns: FilterColumns, shop_items: pl.DataFrame) -> None:
    passed = shop_items.filter(columns.mask(filters_in("a green train or a blue doll", columns).filters))
    green, blue = pl.col("colors").list.contains("green"), pl.col("colors").list.contains("blue")
    sides = (green & (pl.col("kind") == "train")) | (blue & (pl.col("kind") == "doll"))
    assert passed.equals(shop_items.filter(sides)) and 0 < len(passed) < len(shop_items)
    assert {"train", "doll"} == set(passed["kind"])


def test_what_somebody_has_is_a_fact_in_a_question_about_facts(columns: FilterColumns) -> None:
    read = filters_in("how many trains have I already bought?", columns)
    assert [str(one) for one in read.filters] == ["kind is train"] and read.unread == []
    read = filters_in("how many of what I already own are trains?", columns)
    assert [str(one) for one in read.filters] == ["kind is train"] and read.unread == []


def test_the_table_and_sql_agree_on_every_filter(columns: FilterColumns, shop_items: pl.DataFrame) -> None:
    pytest.importorskip("duckdb", reason="needs the extra rag")
    from datetime import date

    from recsys.retrieval.rag.sql.limits import SqlLimits
    from recsys.retrieval.rag.sql.tables import ItemDatabase

    dated = [Filter(column="released", at_least=date(1990, 1, 1), at_most=date(1999, 12, 31))]
    groups = [[one] for one in [*FILTERS, *dated]] + [FILTERS[:1] + FILTERS[4:5] + FILTERS[9:10], []]
    database = ItemDatabase(shop_items)
    with database.open([], SqlLimits(rows=100)) as tables:
        for filters in groups:
            ids = shop_items["item_id"].filter(columns.mask(filters)).to_list()
            query = f"SELECT item_id FROM items WHERE {columns.sql(filters)}"
            assert sorted(row[0] for row in tables.query(query).rows) == sorted(ids), columns.sql(filters)
            if len(filters) == 1:
                assert 0 < len(ids) < 30, "a filter that decides nothing shows nothing"
    database.close()


def test_filters_of_a_conversation_go_on_are_replaced_and_end(columns: FilterColumns) -> None:
    def after(earlier: list[Filter], question: str) -> list[str]:
        return [str(one) for one in carried_over(earlier, filters_in(question, columns).filters, question)]

    first = filters_in("a wood train under 40 dollars", columns).filters
    assert after(first, "in stock") == ["tags is wood", "kind is train", "price at most 40", "in stock is yes"]
    assert after(first, "rather a ship") == ["tags is wood", "price at most 40", "kind is ship"]
    assert after(first, "no, not a train") == ["tags is wood", "price at most 40", "kind is not train"]
    assert after(first, "under 20 dollars") == ["tags is wood", "kind is train", "price at most 20"]
    assert after(first, "over 10 dollars") == ["tags is wood", "kind is train", "price at most 40", "price at least 10"]
    assert after(first, "no red trains")[-2:] == ["price at most 40", "not (kind is train and colors is red)"]
    refused = filters_in("no red trains, not from the 1990s, no green doll number 11", columns).filters
    assert after(refused, "a train") == [*(str(one) for one in refused), "kind is train"]
    assert "not (kind is train and colors is red)" not in after(refused, "a red train")
    assert after(refused, "from the 1990s")[-1] == "year from 1990 to 1999"
    assert "year not from 1990 to 1999" not in after(refused, "from the 1990s")
    titles = [one for one in refused if one.within]
    assert [str(one) for one in titles] == ["title without “green doll number 11”"]
    assert after(titles, "rather the green doll number 11") == ["colors is green", "kind is doll"]
    assert after(titles, "a ship") == ["title without “green doll number 11”", "kind is ship"]
    assert after(first, "start over: a doll") == ["kind is doll"]
    choice = filters_in("a green train or a blue doll", columns).filters
    assert after(choice, "under 40 dollars") == [str(choice[0]), "price at most 40"]
    assert after(choice, "rather a ship") == ["kind is ship"]
    assert after(choice, "also by brio")[0] == str(choice[0])
    assert after(choice, "no dolls") == ["colors is green and kind is train", "kind is not doll"]
    assert after(choice, "no dolls, no green") == ["kind is not doll", "colors is not green"]
    assert after(first, "a doll or something by brio") == [
        "tags is wood",
        "price at most 40",
        "kind is doll or maker is Brio",
    ]
    assert "kind is not train" not in after(filters_in("no trains", columns).filters, "trains or brio")


def test_kinds_of_questions() -> None:
    for question in ("How many trains did I buy?", "what did I buy last", "Which toys have I had?", "average price"):
        assert asks_for_facts(question), question
    for question in ("a train for my son", "Which train would I like?", "something like my last train"):
        assert not asks_for_facts(question), question
    assert asks_for_others("something else") and not asks_for_others("a train")
    assert starts_over("forget that, a doll") and not starts_over("a doll")


def test_what_no_filter_says_is_left_to_search_for(columns: FilterColumns) -> None:
    question = "I want a wood train with bells"
    assert left_words(question, filters_in(question, columns).filters) == ["bell"]


QUESTION = "a train in green under 20 dollars, by kits, of wood"


@pytest.mark.parametrize("answer", ANSWERS)
def test_no_answer_of_a_model_breaks_filters(columns: FilterColumns, shop_items: pl.DataFrame, answer: str) -> None:
    read = read_filters(answer, QUESTION, columns, columns.values.match(QUESTION))
    for one in read.filters:
        assert one.column in {"kind", "maker", "tags", "colors", "price"}
        assert set(one.values) <= {"train", "C++ {Kits}", "green", "wood"}
        assert one.at_most in (None, 20) and one.at_least is None
    assert len(columns.mask(read.filters)) == len(shop_items)
    assert all("\n" not in sentence and len(sentence) < 300 for sentence in read.dropped)


def test_a_good_answer_is_taken_and_a_bad_part_of_it_named(columns: FilterColumns) -> None:
    answer = (
        '[{"column": "Kind", "is": ["TRAIN", "submarine"]}, {"column": "price", "at_most": "20"},'
        ' {"column": "colors", "not": ["green"]}, {"column": "size", "is": ["xl"]}]'
    )
    read = read_filters(answer, QUESTION, columns, columns.values.match(QUESTION))
    assert [str(one) for one in read.filters] == ["kind is train", "price at most 20", "colors is not green"]
    assert not read.malformed and len(read.dropped) == 2
    assert "submarine" in read.dropped[0] and "size" in read.dropped[1]
    rules = filters_in(QUESTION, columns).filters
    both = [str(one) for one in united(read.filters, rules)]
    assert (
        both[:3] == [str(one) for one in read.filters] and "tags is wood" in both and both.count("kind is train") == 1
    )


def test_a_model_does_not_turn_a_plain_exclusion_round(columns: FilterColumns) -> None:
    question = "a train, nothing by brio, no ships"
    answer = '[{"column": "maker", "is": ["Brio"]}, {"column": "kind", "is": ["train", "ship"]}]'
    rules = filters_in(question, columns).filters
    read = without_denied(read_filters(answer, question, columns, columns.values.match(question)), rules)
    assert [str(one) for one in read.filters] == ["kind is train"]
    assert any("excludes “Brio”" in said for said in read.dropped)
    both = [str(one) for one in united(read.filters, rules)]
    assert both == ["kind is train", "maker is not Brio", "kind is not ship"]


def test_a_model_may_be_believed_beyond_the_words(columns: FilterColumns) -> None:
    answer = '[{"column": "kind", "is": ["ship"]}]'
    question = "a vessel"
    matches = columns.values.match(question)
    assert read_filters(answer, question, columns, matches).filters == ()
    (believed,) = read_filters(answer, question, columns, matches, grounded=False).filters
    assert str(believed) == "kind is ship"
