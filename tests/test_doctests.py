"""The examples in docstrings say what happens."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ["kernels", "tokenizers", "index", "recsys", "retrieval", "pipelines"]


def modules_with_examples() -> list[str]:
    """Import names of the modules whose source holds an example."""
    names = set()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            lines = path.read_text(encoding="utf-8").splitlines()
            if any(">>> " in line and "+SKIP" not in line for line in lines):
                dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
                names.add(dotted if folder == "recsys" else f"recsys.{dotted}")
    return sorted(names)


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_of_a_module_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0 and result.failed == 0
