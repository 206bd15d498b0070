"""Ways to damage a bundle and to ask odd questions, driven by whoever makes the choices.

Hypothesis and the coverage-guided fuzzer make them; whatever they choose, an answer or one clear line is all that may
come back. A module of helpers, loaded by path.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import MISSING
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recsys.errors import InputError
from recsys.events import Event
from recsys.retrieval.page import Page
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.rules import MMR, Boost, Cap, Explore, Floor, Freshness, Pin, Rule, Where

ODD_JSON: list[Any] = [
    None, True, False, 0, 1, -1, 2, 31, 32, 10**9, 2**31, 2**63, -(2**63), 10**30, 0.5, -1e308, "", "x", "\0", "../x",
    "/etc/passwd", "i1", [], [1], ["click"], [[]], {}, {"a": 1}, "é" * 300, [0] * 50,
]  # fmt: skip
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 3, 10**9, 2**62, 2**63, -(2**63) - 1, 10**5000, 0.0, 1.5, float("nan"), float("inf"),
    -float("inf"), "", "i1", "u1", "click", "click+like", "nothing", "+", "\0", "\ud800", "a\nb", "x" * 5000, b"i1",
    bytearray(b"x"), [], ["i1"], [["i1"]], (), ("i1", None, 7, "i2"), {}, {"click": 1.0}, {"click": float("nan")},
    {"click": "1"}, {1: 2}, {"hide": -(10.0**300)}, set(), {"i1", "i2"}, range(5), range(10**9), object(),
    np.int64(3), np.float32("nan"), np.array([1, 2]), np.array([["i1"]]), pl.Series(["i1", None]), pl.Series([1.5]),
    iter(["i1"]), Event(item_id="i1"), [Event(item_id="i1")], ["dense"], ("dense", "dense", "memory"), ["nobody"],
]  # fmt: skip
REQUEST_FIELDS = (
    "user_id", "history", "new_events", "k", "retrievers", "exclude", "allow", "exclude_history", "at", "surface",
    "rank", "rank_by", "candidates", "user_features", "rules", "max_candidates",
)  # fmt: skip
EVENT_FIELDS = ("item_id", "actions", "timestamp", "surface", "value", "unknown")
RULES = (Where, Cap, MMR, Floor, Freshness, Boost, Pin, Explore)
FITTING: dict[str, list[Any]] = {
    "column": ["title", "text", "item_id"], "values": ["title 3", ["title 1", "title 2"]], "n": [1, 2], "place": [1, 2],
    "items": [["i1", "i2"]], "item": ["i3"], "on": ["retrieval", "rank_by", "action"], "action": ["like"],
    "mode": ["add", "multiply"], "missing": ["free", "group", True], "negate": [True], "scale": [False],
    "at_least": ["a", -1.0], "seed": [7], "lam": [0.5], "epsilon": [0.3], "temperature": [0.5], "weight": [2.0],
}  # fmt: skip
MOST_CHARACTERS = 2_000
"""Of an error."""


class Choices(Protocol):
    """Where decisions come from."""

    def integer(self, low: int, high: int) -> int: ...


def pick(choices: Choices, values: Any) -> Any:
    """One of some values."""
    return values[choices.integer(0, len(values) - 1)]


def clear(error: InputError) -> None:
    """What every refusal must be: one line that can be printed, not empty, not endless."""
    line = str(error)
    assert line.strip() and "\n" not in line and len(line) <= MOST_CHARACTERS, f"unclear error: {line[:3000]!r}"
    line.encode("utf-8")


# -- requests --------------------------------------------------------------------------------------------------------


def odd_event(choices: Choices) -> Event:
    """An event with one to three odd fields."""
    fields: dict[str, Any] = {"item_id": f"i{choices.integer(0, 40)}"}
    if choices.integer(0, 1):
        fields |= {"actions": pick(choices, ["click", "like", "", "hide"]), "timestamp": choices.integer(0, 2 * 10**9)}
    for _ in range(choices.integer(0, 2)):
        fields[pick(choices, EVENT_FIELDS)] = pick(choices, ODD_VALUES)
    return Event(**fields)


def odd_request(choices: Choices) -> dict[str, Any]:
    """Fields of a request, some of them odd."""
    fields: dict[str, Any] = {"k": choices.integer(1, 40)}
    if choices.integer(0, 1):
        fields["user_id"] = f"u{choices.integer(0, 50)}"
    else:
        fields["history"] = [odd_event(choices) for _ in range(choices.integer(0, 4))]
    if choices.integer(0, 1):
        fields["retrievers"] = pick(choices, [("dense",), ("memory",), ("dense_learned", "memory")])
    if choices.integer(0, 1):
        made = [odd_rule(choices) for _ in range(choices.integer(1, 3))]
        fields["rules"] = [rule for rule in made if rule is not None]
    for _ in range(choices.integer(0, 3)):
        fields[pick(choices, REQUEST_FIELDS)] = pick(choices, ODD_VALUES)
    return fields


def odd_rule(choices: Choices) -> Rule | None:
    """A rule some of whose fields are odd; None where it was refused in one clear line."""
    kind: Any = pick(choices, RULES)
    fields = {}
    for one in fields_of(kind):
        if one.default is MISSING or choices.integer(0, 2) == 0:
            fits = one.name in FITTING and choices.integer(0, 3)
            fields[one.name] = pick(choices, FITTING[one.name] if fits else ODD_VALUES)
    try:
        rule: Rule = kind(**fields)
    except InputError as error:
        clear(error)
        return None
    return rule


def ask(rec: Recommender, fields: dict[str, Any]) -> Page | None:
    """A page that keeps its promises, or None for a request that was refused in one clear line."""
    try:
        page = rec.recommend(**fields)
    except InputError as error:
        clear(error)
        return None
    items = page.item_ids
    assert len(items) == len(set(items)) <= fields["k"]
    assert set(items) <= set(rec.items["item_id"].to_list())
    for note in page.notes:
        assert "\n" not in note and len(note) <= MOST_CHARACTERS
    return page


# -- bundles ---------------------------------------------------------------------------------------------------------


class Workplace:
    """A bundle that is damaged and made whole again, file by file; keep it on a memory file system."""

    def __init__(self, whole: Path, folder: Path) -> None:
        self.whole, self.folder = whole, folder
        self.names = sorted(file.relative_to(whole).as_posix() for file in whole.rglob("*") if file.is_file())
        shutil.copytree(whole, folder)

    def restore(self) -> None:
        """Make it whole."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            name = path.relative_to(self.folder).as_posix()
            if path.is_symlink() or (not path.is_dir() and (name not in self.names or not path.is_file())):
                path.unlink()
            elif path.is_dir() and not (self.whole / name).is_dir():
                shutil.rmtree(path)
        for name in self.names:
            there = self.folder / name
            there.parent.mkdir(parents=True, exist_ok=True)
            if not there.is_file() or there.read_bytes() != (self.whole / name).read_bytes():
                shutil.copyfile(self.whole / name, there)

    def open(self) -> Recommender | None:
        """The recommender of the bundle as it is, or None where it was refused in one clear line."""
        try:
            return Recommender.load(self.folder)
        except InputError as error:
            clear(error)
            return None

    def damage(self, choices: Choices) -> str:
        """Do one of the damages; its name."""
        damages: tuple[Callable[[Choices], None], ...] = (
            self._bytes, self._json, self._tensors, self._tensors, self._table, self._place, self._json,
        )  # fmt: skip
        chosen = pick(choices, damages)
        chosen(choices)
        return chosen.__name__

    # Each damage. Hashes are repaired most of the time, as somebody would who means harm.

    def _bytes(self, choices: Choices) -> None:
        file = self.folder / pick(choices, self.names)
        raw = bytearray(file.read_bytes())
        kind = choices.integer(0, 5)
        if kind == 0:
            raw = raw[: choices.integer(0, max(0, len(raw) - 1))]
        elif kind == 1 and raw:
            for _ in range(choices.integer(1, 4)):
                raw[choices.integer(0, len(raw) - 1)] ^= 1 << choices.integer(0, 7)
        elif kind == 2:
            raw = bytearray((self.folder / pick(choices, self.names)).read_bytes())
        elif kind == 3:
            raw[0:0] = bytes([choices.integer(0, 255) for _ in range(8)])
        elif kind == 4:
            raw = bytearray(b"\x80\x04cposix\nsystem\n(S'true'\ntR.")
        else:
            raw = bytearray(b"[" * 100_000 if choices.integer(0, 1) else b'{"a":' * 50_000)
        file.write_bytes(bytes(raw))
        self._repair(choices)

    def _json(self, choices: Choices) -> None:
        file = self.folder / pick(choices, [name for name in self.names if name.endswith(".json")])
        value = json.loads(file.read_text())
        for _ in range(choices.integer(1, 2)):
            _change(choices, value)
        file.write_text(json.dumps(value))
        self._repair(choices)

    def _tensors(self, choices: Choices) -> None:
        file = self.folder / pick(choices, [name for name in self.names if name.endswith(".safetensors")])
        arrays = load_file(file)
        name = pick(choices, sorted(arrays))
        array, kind = arrays[name].copy(), choices.integer(0, 7)
        if kind == 0:
            del arrays[name]
        elif kind == 1:
            arrays[name] = array.flatten()
        elif kind == 2:
            arrays[name] = array[: len(array) // 2] if array.ndim else np.zeros(2, array.dtype)
        elif kind == 3:
            arrays[name] = array.astype(pick(choices, ["int64", "float32", "int32", "uint8", "float16", "bool"]))
        elif kind == 4:
            arrays["more"] = array
        elif kind == 5 and array.ndim:
            arrays[name] = np.concatenate([array, array])
        elif array.size:
            odd = [-1, 2**31 - 1, 0, 7] if array.dtype.kind in "iu" else [np.nan, np.inf, -1e30, 0]
            where = choices.integer(0, array.size - 1)
            array.reshape(-1)[where] = np.array(pick(choices, odd)).astype(array.dtype)
            arrays[name] = array
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, file)
        self._repair(choices)

    def _table(self, choices: Choices) -> None:
        file = self.folder / pick(choices, [name for name in self.names if name.endswith(".parquet")])
        frame = pl.read_parquet(file)
        column, kind = pick(choices, frame.columns), choices.integer(0, 6)
        if kind == 0:
            frame = frame.drop(column)
        elif kind == 1:
            frame = frame.with_columns(pl.lit(None).alias(column))
        elif kind == 2:
            frame = frame.head(choices.integer(0, len(frame)))
        elif kind == 3:
            frame = pl.concat([frame, frame])
        elif kind == 4:
            frame = frame.reverse() if choices.integer(0, 1) else frame.with_columns(frame[column].reverse())
        elif kind == 5:
            frame = frame.with_columns(pl.lit(pick(choices, [1, 1.5, "x", True])).alias(column))
        elif isinstance(frame[column].dtype, pl.List):
            odd = pick(choices, [-5, 10**6, None])
            element = pl.lit(odd).cast(frame[column].dtype.inner, strict=False)
            longer = pl.col(column).list.concat(element) if choices.integer(0, 1) else pl.col(column).list.eval(element)
            frame = frame.with_columns(longer.alias(column))
        frame.write_parquet(file)
        self._repair(choices)

    def _place(self, choices: Choices) -> None:
        name = pick(choices, self.names)
        file, kind = self.folder / name, choices.integer(0, 6)
        if kind == 6:  # the manifest names something else
            path = self.folder / "bundle.json"
            manifest = json.loads(path.read_text())
            hashes = manifest["files"]
            odd = pick(
                choices, ["/etc/hostname", "../outside", "a/../../b", "", ".", "\0", "é", "a\\b", "x" * 5000, "index"]
            )
            hashes[odd] = hashes.pop(pick(choices, sorted(hashes)))
            path.write_text(json.dumps(manifest))
            self._repair(choices)
            return
        content = file.read_bytes()
        file.unlink()
        if kind == 0:
            file.symlink_to(self.whole / name)
        elif kind == 1:
            os.mkfifo(file)
        elif kind == 2:
            file.mkdir()
        elif kind == 3:
            file.with_name("other.bin").write_bytes(content)
        elif kind == 4:
            file.symlink_to("/dev/zero")
        elif file.parent != self.folder:
            shutil.rmtree(file.parent)
            file.parent.symlink_to((self.whole / name).parent)

    def _repair(self, choices: Choices) -> None:
        """Make the hashes right again, in most cases."""
        if choices.integer(0, 9) == 0:
            return
        with contextlib.suppress(
            OSError, ValueError, RecursionError, TypeError, AttributeError, KeyError, SafetensorError
        ):
            for inner in ("graph_now/graph.json", "graph_train/graph.json", "index/index.json", "trie/trie.json"):
                if (self.folder / inner).is_file():
                    self._repair_parts(self.folder / inner)
        with contextlib.suppress(OSError, ValueError, RecursionError, TypeError, AttributeError, KeyError):
            path = self.folder / "bundle.json"
            manifest = json.loads(path.read_text())
            for name in manifest["files"]:
                if (self.folder / name).is_file():
                    manifest["files"][name] = _sha256(self.folder / name)
            path.write_text(json.dumps(_signed(manifest)))

    def _repair_parts(self, path: Path) -> None:
        header = json.loads(path.read_text())
        for name, part in header["parts"].items():
            file = path.parent / name
            part.update(sha256=_sha256(file), bytes=file.stat().st_size)
        path.write_text(json.dumps(_signed(header)))


def _change(choices: Choices, value: Any) -> None:
    """Replace, remove or add something somewhere in a JSON value."""
    places = list(_places(value))
    parent, key = pick(choices, places) if places else (value, None)
    if key is None:
        return
    kind = choices.integer(0, 4)
    if kind == 0 and isinstance(parent, dict):
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    elif kind == 2 and isinstance(parent[key], int):
        parent[key] += pick(choices, [1, -1, 10**9])
    else:
        parent[key] = copy.deepcopy(pick(choices, ODD_JSON))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def _signed(header: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in header.items() if name != "checksum"}
    return {**rest, "checksum": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
