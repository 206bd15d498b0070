"""Tables as people bring them: Parquet or CSV files, local or behind a URL, and frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from recsys.errors import InputError
from recsys.pipelines.prepare.bad_rows import ROW

__all__ = ["Table", "as_frame", "map_columns", "read_table", "renamed", "typed"]


@dataclass(frozen=True, slots=True)
class Table:
    """One input table."""

    file: str
    """What messages call it."""
    frame: pl.DataFrame
    """Its rows, numbered from 1 in the column ``bad_rows.ROW``."""
    from_text: bool = False
    """Whether every value was read as text (CSV) and types are still to be found."""

    def need(self, *columns: str) -> None:
        """Check that columns are there.

        Raises:
            InputError: one is missing.
        """
        for column in columns:
            if column not in self.frame.columns:
                there = ", ".join(_quoted(name) for name in self.frame.columns if name != ROW)
                raise InputError(
                    f"{self.file}: column {column} is missing (there are: {there}); "
                    f"add it, or name it with --columns {column}=THEIRS"
                )

    def wrong_type(self, column: str, wanted: str) -> InputError:
        """The error for a column of the wrong type."""
        return InputError(
            f"{self.file}, column {column}, row 1: its type {self.frame.schema[column]} cannot be read, "
            f"it must be {wanted}; convert the column"
        )


def _quoted(name: str) -> str:
    """A column's name, in quotes where blanks around it or odd characters would not be seen."""
    return name if name == name.strip() and name.isprintable() else repr(name)


def _number(file: str, frame: pl.DataFrame, from_text: bool) -> Table:
    if frame.width == 0 or frame.height == 0:
        raise InputError(f"{file} is empty, row 1 is missing; give a table with at least one row of data")
    if ROW in frame.columns:
        frame = frame.drop(ROW)
    return Table(file, frame.with_row_index(ROW, offset=1), from_text)


def read_table(path: str | Path) -> Table:
    """Read a Parquet or CSV file, or a folder of Parquet files; the URL of a file (``s3://…``) goes through fsspec.

    Files of a folder are read in the order of their names; values in the names of its folders (``day=2024-05-01``)
    are columns.

    Raises:
        InputError: it is missing, empty, of another kind, or broken.
    """
    text, name = str(path), Path(str(path)).name
    if "://" not in text:
        if Path(text).is_dir():
            return _read_folder(Path(text))
        if not Path(text).is_file():
            raise InputError(f"{text} does not exist; check the path")
    kind = name.lower().removesuffix(".gz").rsplit(".", 1)[-1]
    if kind not in ("parquet", "csv"):
        raise InputError(
            f"{text}: only .parquet and .csv files, and folders of .parquet files, can be read; convert it"
        )
    source: Any = Path(text)
    if "://" in text:
        import fsspec

        try:
            with fsspec.open(text, "rb") as stream:
                source = io.BytesIO(stream.read())
        except (OSError, ImportError, ValueError) as error:
            raise InputError(f"{text} cannot be opened ({_first_line(error)}); check the address") from None
    try:
        if kind == "parquet":
            return _number(name, pl.read_parquet(source, glob=False), False)
        # Every value as text: types are found column by column, so that a bad value can be named with its row.
        return _csv_table(text, name, pl.read_csv(source, infer_schema=False, glob=False))
    except pl.exceptions.NoDataError:
        raise InputError(f"{text} is empty, row 1 is missing; give a table with at least one row of data") from None
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        where = _ragged_line(source) if kind == "csv" and isinstance(source, Path) else ""
        remedy = "save it as UTF-8" if kind == "csv" and "utf-8" in str(error).lower() else "write the file again"
        raise InputError(f"{text}{where} cannot be read ({_first_line(error)}); {remedy}") from None


def _read_folder(folder: Path) -> Table:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(("_", ".")))
    other = next((file for file in files if file.suffix != ".parquet"), None)
    if not files or other is not None:
        holds = "is empty" if other is None else f"holds {other.relative_to(folder)}"
        raise InputError(f"{folder} is a folder and {holds}; give a file, or a folder of .parquet files and no others")
    try:
        rows = pl.scan_parquet(folder, glob=False, hive_partitioning=True).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(
            f"{folder} cannot be read as one table ({_first_line(error)}); write it with one schema"
        ) from None
    return _number(folder.name or str(folder), rows, False)


def _csv_table(path: str, name: str, frame: pl.DataFrame) -> Table:
    """A CSV's table, rows numbered as they are in the file, empty lines left out.

    Raises:
        InputError: its values are not separated by commas, a column's name occurs twice, or it holds no data.
    """
    if frame.width == 1:
        for mark, called in ((";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")):
            if mark in frame.columns[0]:
                raise InputError(f"{path}: its values are separated by {called}; write it with commas")
    for column in frame.columns:
        if f"{column}_duplicated_0" in frame.columns:  # what polars calls the second one
            raise InputError(f"{path}: two columns are called {column}; rename or remove one")
    table = _number(name, frame, True)
    filled = table.frame.filter(~pl.all_horizontal(pl.exclude(ROW).is_null()))
    if filled.height == 0:
        raise InputError(f"{path} holds nothing but empty lines; give a table with at least one row of data")
    return replace(table, frame=filled)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _ragged_line(path: Path) -> str:
    if path.suffix == ".gz":
        return ""
    with path.open(encoding="utf-8", errors="replace", newline="") as stream:
        rows = csv.reader(stream)
        width = len(next(rows, []))
        for number, row in enumerate(rows, start=1):
            if len(row) > width:
                return f", row {number}: {len(row)} values under {width} column names:"
    return ""


def as_frame(table: Any, name: str) -> Table:
    """A polars or pandas frame as a table.

    Raises:
        InputError: it is neither, or empty.
    """
    if isinstance(table, pl.LazyFrame):
        table = table.collect()
    if isinstance(table, pl.DataFrame):
        return _number(name, table, False)
    if not (hasattr(table, "columns") and hasattr(table, "to_numpy")):
        raise InputError(f"{name} is a {type(table).__name__}; give a polars or pandas frame")
    # Column by column, since polars' own conversion of text columns asks for pyarrow.
    return _number(name, pl.DataFrame([_pandas_series(str(key), table[key]) for key in table.columns]), False)


def _pandas_series(name: str, column: Any) -> pl.Series:
    values = column.to_numpy()
    if values.dtype.kind in "biufM":
        return pl.Series(name, values, nan_to_null=True)
    plain = [None if missing else value for value, missing in zip(column.tolist(), column.isna(), strict=True)]
    return pl.Series(name, [_plain(value) for value in plain], strict=False)


def _plain(value: Any) -> Any:
    """A cell without numpy's types; arrays become lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def map_columns(tables: Mapping[str, Table], columns: Mapping[str, str]) -> dict[str, Table]:
    """Rename the callers' columns to ours, in every table that has them.

    Raises:
        InputError: a name that no table has.
    """
    mapped = dict(tables)
    for ours, theirs in columns.items():
        holders = [key for key, table in mapped.items() if theirs in table.frame.columns]
        if not holders:
            files = ", ".join(table.file for table in mapped.values())
            raise InputError(f"--columns {ours}={theirs}: no column {theirs!r} in {files}; check the name")
        for key in holders:
            frame = mapped[key].frame
            if ours != theirs:
                frame = frame.rename(renamed(frame.columns, [ours], "original_"))
            mapped[key] = replace(mapped[key], frame=frame.rename({theirs: ours}))
    return mapped


def renamed(columns: Sequence[str], ours: Collection[str], prefix: str) -> dict[str, str]:
    """New names of the callers' columns that have one of ours: the prefix before it, until no column has the name.

    >>> renamed(["user", "input_user", "age"], ["user", "item"], "input_")
    {'user': 'input_input_user'}
    """
    names: dict[str, str] = {}
    for column in columns:
        if column in ours:
            name = prefix + column
            while name in columns:
                name = prefix + name
            names[column] = name
    return names


def typed(frame: pl.DataFrame) -> pl.DataFrame:
    """Text columns of a CSV as integers or numbers where every value is one."""
    found = []
    for column in frame.get_columns():
        for kind in (pl.Int64, pl.Float64):
            values = column.cast(kind, strict=False)
            if values.null_count() == column.null_count() < len(column):
                column = values
                break
        found.append(column)
    return pl.DataFrame(found)
