"""Passages and questions as prompts show them, and the prompts of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recsys.retrieval.rag.passage import Passage
from recsys.retrieval.rerank.as_data import as_data
from recsys.retrieval.rerank.prompt import Prompt

__all__ = ["load_prompt", "numbered", "shown_answer"]

_FOLDER = Path(__file__).parent / "prompts"


def load_prompt(source: str | Path | Prompt) -> Prompt:
    """A prompt of this folder by its name, any by the path of its file, or one that is there already.

    Raises:
        InputError: no such file, or not a prompt.
    """
    if isinstance(source, Prompt):
        return source
    file = _FOLDER / f"{source}.yaml"
    return Prompt.load(file if file.is_file() and file.parent == _FOLDER else source)


def numbered(passages: Sequence[Passage], max_chars: int) -> list[str]:
    """One line each, from 1; what stands in the passages cannot look like a number in brackets.

    >>> numbered([Passage.of("Red [2] train\\nfor children", "item")], 100)
    ['[1] Red (2) train for children']
    """
    return [f"[{number}] {as_data(passage.text, max_chars)}" for number, passage in enumerate(passages, start=1)]


def shown_answer(text: str) -> str:
    """What a model wrote, without controls that a terminal would obey; line breaks stay.

    >>> shown_answer("A\\x1b[31m red train. [1]\\r\\n")
    'A[31m red train. [1]'
    """
    lines = ("".join(sign for sign in line if sign.isprintable()) for line in text.splitlines())
    return "\n".join(line.strip() for line in lines).strip()
