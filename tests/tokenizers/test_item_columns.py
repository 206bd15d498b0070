"""Columns as numbers: every type that tables have, what is missing in them, and values that come later."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.tokenizers.item_columns import MAX_CATEGORIES, column_rows, directions, fit_column


def fitted(values: Any, reading: str | None = None, **kind: Any) -> tuple[dict[str, Any], np.ndarray]:
    column = values if isinstance(values, pl.Series) else pl.Series("c", values, **kind)
    ids = pl.Series([f"i{at}" for at in range(len(column))])
    block = json.loads(json.dumps(fit_column(column, ids, reading), allow_nan=False))  # a manifest keeps it as JSON
    return block, column_rows(block, column, ids)


def later(block: dict[str, Any], values: Any, **kind: Any) -> np.ndarray:
    column = pl.Series("c", values, **kind)
    return column_rows(block, column, pl.Series([f"new{at}" for at in range(len(column))]))


def test_numbers_in_units_of_their_spread() -> None:
    block, rows = fitted([1.0, 2.0, 3.0, None, math.nan, math.inf, -math.inf])
    spread = math.sqrt(2 / 3)
    np.testing.assert_allclose(rows[:, 0], [-1 / spread, 0, 1 / spread, 0, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(later(block, [4, None])[:, 0], [2 / spread, 0], rtol=1e-6)  # integers now
    np.testing.assert_allclose(later(block, ["3.0"])[:, 0], [1 / spread], rtol=1e-6)
    assert later(block, [1e9, -math.inf])[:, 0].tolist() == [5, 0]
    with pytest.raises(ValueError, match=r"List.* is no column of numbers, which it was"):
        later(block, [[1.0]])


def test_a_huge_number_does_not_drown_the_rest() -> None:
    _, rows = fitted([0.0] * 99 + [1e6])
    assert rows.max() == 5.0 and np.abs(rows[:99]).max() < 0.2
    _, rows = fitted([1e300, -1e300, 5.0])
    assert np.isfinite(rows).all() and rows[0] > 0 > rows[1]


@pytest.mark.parametrize("values", [[0.1] * 3, [7, 7, None], [None, None], [math.nan], [True, True], []])
def test_a_column_that_says_nothing_is_zero(values: list[Any]) -> None:
    _, rows = fitted(values, strict=False)
    assert rows.shape == (len(values), 1) and not rows.any()


def test_flags_dates_and_durations_are_numbers() -> None:
    assert fitted([True, False, None])[1][:, 0].tolist() == [1, -1, 0]
    days = [date(2024, 1, 1), date(2024, 1, 3), None]
    block, rows = fitted(days)
    assert rows[:, 0].tolist() == [-1, 1, 0]
    for series in (
        pl.Series([None if day is None else datetime(day.year, day.month, day.day, tzinfo=UTC) for day in days]),
        pl.Series(["2024-01-01", "2024-01-03T00:00:00Z", None]),
    ):
        again, same = fitted(series)
        assert again == block and same.tolist() == rows.tolist()
        assert column_rows(block, series, series).tolist() == rows.tolist()
    assert later(block, ["2024-01-02", "soon"])[:, 0].tolist() == [0, 0]
    assert fitted([timedelta(hours=1), timedelta(hours=3)])[1][:, 0].tolist() == [-1, 1]


def test_categories_are_the_frequent_values() -> None:
    block, rows = fitted(["x ", "x", "y", "y", "", None, "once"])
    assert block["categories"] == ["x", "y"]
    assert rows.tolist() == [[1, 0], [1, 0], [0, 1], [0, 1], [0, 0], [0, 0], [0, 0]]
    assert later(block, ["y", "never seen", None]).tolist() == [[0, 1], [0, 0], [0, 0]]
    many, rows = fitted([f"v{at % 100:02}" for at in range(200)] + ["v99"])
    assert (many["num_values"], rows.shape) == (100, (201, MAX_CATEGORIES))
    assert many["categories"][:2] == ["v99", "v00"]
    for kind in (pl.Categorical(), pl.Enum(["a", "b"])):
        assert fitted(pl.Series(["a", "b", "a", "b"], dtype=kind))[0]["categories"] == ["a", "b"]


def test_lists_name_several_categories() -> None:
    expected = [[1, 1], [0, 1], [0, 0], [0, 0], [1, 0]]
    names = [["p", "q", "q"], ["q"], None, [], ["p", None]]
    assert fitted(names)[1].tolist() == expected
    assert fitted([[3, 4], [4], None, [], [3]])[1].tolist() == expected
    written = ["p, q|q", "q", None, "", " p ;"]
    block, rows = fitted(written, "list")
    assert rows.tolist() == expected
    assert later(block, [["q", "z"]]).tolist() == [[0, 1]]  # a table of another kind may hold real lists
    assert fitted(written)[1].shape[1] == 0  # without being told, each text is one name
    assert fitted(pl.Series([["a", "b"], ["a", "b"]], dtype=pl.Array(pl.String, 2)))[0]["categories"] == ["a", "b"]
    assert fitted(pl.Series([[None], []], dtype=pl.List(pl.Null)))[1].shape == (2, 0)


def test_codes_can_be_read_as_names() -> None:
    assert fitted([7, 9, 7, 9, None])[0]["kind"] == "number"
    block, rows = fitted([7, 9, 7, 9, None], "category")
    assert block["categories"] == ["7", "9"] and rows[:, 0].tolist() == [1, 0, 1, 0, 0]
    assert later(block, [7.0, math.nan]).tolist() == [[1, 0], [0, 0]]  # integers with gaps, as pandas has them
    assert later(block, ["9"]).tolist() == [[0, 1]]


def test_vectors_are_centred_directions() -> None:
    vectors = [[1.0, 0.0], [0.0, 1.0], None, [], [1.0, 1.0]]
    block, rows = fitted(vectors)
    there = np.array([[1, 0], [0, 1], [1, 1]]) - 2 / 3
    expected = there / np.linalg.norm(there, axis=1, keepdims=True) * math.sqrt(2)
    np.testing.assert_allclose(rows[[0, 1, 4]], expected, rtol=1e-6)
    assert not rows[[2, 3]].any()
    np.testing.assert_allclose(later(block, [[0, 1]]), expected[1:2], rtol=1e-6)
    np.testing.assert_array_equal(fitted(pl.Series([[1, 0], [0, 1], None, None, [1, 1]]), "vector")[1], rows)
    written = ["[1.0, 0.0]", "0 1", None, "", "1;1"]
    np.testing.assert_array_equal(fitted(written, "vector")[1], rows)
    assert not fitted([[0.3, 0.7]] * 3)[1].any()  # all the same: nothing is left but rounding
    assert fitted(pl.Series([None, []], dtype=pl.List(pl.Float32)))[1].shape == (2, 0)


@pytest.mark.parametrize("broken", [[1.0], [1.0, 2.0, 3.0], [1.0, None], [math.nan, 0.0], [math.inf, 0.0]])
def test_a_broken_vector_is_named(broken: list[Any]) -> None:
    block, _ = fitted([[1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match="id 'new1': a vector must hold 2 finite numbers; mend it or leave it empty"):
        later(block, [None, broken])
    with pytest.raises(ValueError, match="id 'i[01]': a vector must hold [23] finite numbers"):
        fitted([[0.0, 1.0], broken])


def test_types_that_cannot_be_read() -> None:
    for values in ([{"a": 1}], [b"x"], [[[1.0]]], [[date(2024, 1, 1)]]):
        with pytest.raises(ValueError, match="cannot be read; give "):
            fitted(values)
    with pytest.raises(ValueError, match="holds no vectors; give lists of numbers"):
        fitted([1.0], "vector")
    with pytest.raises(ValueError, match="columns of kind 'odd' are unknown here"):
        later({"kind": "odd"}, [1])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.none(), st.floats(), st.floats(1, 2)), min_size=1, max_size=8), st.integers(0, 7))
def test_rows_are_finite_and_do_not_depend_on_their_neighbours(values: list[float | None], place: int) -> None:
    block, rows = fitted(values, dtype=pl.Float64)
    assert np.isfinite(rows).all() and np.abs(rows).max() <= 5
    place %= len(values)
    np.testing.assert_array_equal(later(block, values[place : place + 1], dtype=pl.Float64), rows[place : place + 1])


def test_directions_are_zero_where_only_rounding_is_left() -> None:
    row = np.array([[0.6, 0.8], [0.6 + 1e-8, 0.8], [0.8, 0.6]])
    unit = directions(row, row[0])
    assert not unit[:2].any()
    np.testing.assert_allclose(unit[2], [math.sqrt(0.5), -math.sqrt(0.5)])
