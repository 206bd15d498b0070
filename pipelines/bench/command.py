"""``recsys bench``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from recsys.errors import InputError
from recsys.files import write_json
from recsys.pipelines.bench.case import Case
from recsys.pipelines.console import stdout_console
from recsys.pipelines.machine import device_name, versions

__all__ = ["BENCHES", "bench", "run_bench"]

BENCHES = (
    "unify",
    "train",
    "layouts",
    "softmax",
    "candidates",
    "graph",
    "beam",
    "codes",
    "serve",
    "rerank-prefix",
    "chunk-reuse",
)
_OPTIONS = {"layouts": ("data",), "rerank-prefix": ("lm",), "chunk-reuse": ("lm", "data")}
"""Benchmarks that take more than ``long``."""


def run_bench(name: str, *, long: bool = False, lm: Path | None = None, data: Path | None = None) -> dict[str, object]:
    """Run one benchmark; the first case is its headline.

    Raises:
        InputError: there is no benchmark of that name, or it takes no ``lm`` or ``data``.
    """
    if name not in BENCHES:
        raise InputError(f"there is no benchmark {name!r}; choose from {', '.join(BENCHES)}")
    given: dict[str, Path] = {option: path for option, path in (("lm", lm), ("data", data)) if path is not None}
    for option in given:
        if option not in _OPTIONS.get(name, ()):
            takers = " and ".join(taker for taker, options in _OPTIONS.items() if option in options)
            raise InputError(f"--{option} is for the benchmark {takers}; leave it out")
    module = name.replace("-", "_")
    function: Callable[..., list[Case]] = getattr(
        importlib.import_module(f"recsys.pipelines.bench.{module}"), f"bench_{module}"
    )
    cases = function(long=long, **given)
    return {
        "bench": name,
        "device": device_name(),
        "versions": versions(),
        "cases": [asdict(case) for case in cases],
        "headline": {"name": cases[0].name, "ratio": cases[0].ratio},
    }


def bench(
    name: str, json: Path | None = None, long: bool = False, lm: Path | None = None, data: Path | None = None
) -> None:
    """Compare two ways of doing the same work in one run; a ratio above 1 means that ours is so many times better.

    Args:
        name: unify, train, layouts, softmax, candidates, graph, beam, codes, serve, rerank-prefix or chunk-reuse.
        json: file for the figures.
        long: more repeats.
        lm: folder of a language model, for rerank-prefix and chunk-reuse; without it a small made one.
        data: prepared data that layouts trains on; for chunk-reuse, with lm, items whose texts are the chunks.
    """
    result = run_bench(name, long=long, lm=lm, data=data)
    table = Table("case", "ours", "other", "ratio", title=f"{name} on {result['device']}")
    cases = result["cases"]
    assert isinstance(cases, list)
    for case in cases:
        table.add_row(case["name"], _line(case["ours"]), _line(case["other"]), f"{case['ratio']:.2f}×")
    stdout_console().print(table)
    if json is not None:
        write_json(json, result)


def _line(figures: dict[str, object]) -> str:
    parts = [str(figures.get("what", ""))]
    parts += [f"{name} {value:,.3g}" for name, value in figures.items() if isinstance(value, int | float)]
    return "\n".join(part for part in parts if part)
