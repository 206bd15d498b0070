"""Prompts are files: what is said to a language model, with declared places for what is filled in.

A prompt file is YAML::

    name: choose
    description: Which of two.
    placeholders:
      history: what the user took lately, one line each
      query: what the user asked for, or nothing
    system: You recommend.
    user: |
      $history
      They ask for: $query
    prefill: "["
    options:
      answers: ["A", "B"]

``$name`` marks a place, ``$$`` a dollar sign. What is filled in is never looked at again, so that a ``$`` in it means
nothing. A line of the template that has places, all of which are empty, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import Any

import yaml

from recsys.errors import InputError, shown
from recsys.retrieval.rerank.lm.protocol import Message

__all__ = ["Prompt"]

_FOLDER = Path(__file__).parent / "prompts"
_FIELDS = {"name", "description", "placeholders", "system", "user", "prefill", "options"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What is said to a language model. The constructor checks that text and declared placeholders agree."""

    name: str
    user: str
    """Template of the question."""
    system: str = ""
    """Template of the system message; empty = none is sent."""
    prefill: str = ""
    """Beginning of the answer, already there. Holds no placeholders."""
    placeholders: Mapping[str, str] = field(default_factory=dict)
    """Name -> what is filled in."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Whatever belongs to the wording and not to the code, such as the words to answer with."""
    description: str = ""
    source: str = ""
    """The file, for messages."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "placeholders", MappingProxyType(dict(self.placeholders)))
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))
        used: set[str] = set()
        for part, text in (("system", self.system), ("user", self.user)):
            if not Template(text).is_valid():
                raise InputError(f"{self._where}: a $ in {part!r} begins no name; write $$ for a dollar sign")
            used.update(Template(text).get_identifiers())
        if unknown := sorted(used - set(self.placeholders)):
            raise InputError(f"{self._where}: ${unknown[0]} is not among its placeholders; declare it")
        if unused := sorted(set(self.placeholders) - used):
            raise InputError(f"{self._where}: placeholder {unused[0]!r} stands nowhere in the text; remove it")

    @classmethod
    def load(cls, source: str | Path) -> Prompt:
        """A prompt of this package by name, or any by the path of its file (a name with ``.yaml`` or a folder in it).

        Raises:
            InputError: no such file, not a prompt, or text and placeholders disagree; names the file.
        """
        named = isinstance(source, str) and not source.endswith((".yaml", ".yml")) and not set(source) & set("/\\")
        path = _FOLDER / f"{source}.yaml" if named else Path(source)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            known = ", ".join(cls.names())
            raise InputError(f"no prompt {str(source)!r}; give the path of a YAML file or one of {known}") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"prompt {path} cannot be read: {reason}") from None
        return cls._of(content, str(path))

    @staticmethod
    def names() -> list[str]:
        """Prompts of this package."""
        return sorted(path.stem for path in _FOLDER.glob("*.yaml"))

    @classmethod
    def _of(cls, content: Any, source: str) -> Prompt:
        if not isinstance(content, dict):
            raise InputError(f"prompt {source} is no mapping; it needs at least `name` and `user`")
        if unknown := sorted(str(name) for name in content if name not in _FIELDS):
            raise InputError(
                f"prompt {source}: unknown key {shown(unknown[0])}; known are {', '.join(sorted(_FIELDS))}"
            )
        for name in ("name", "user"):
            if not content.get(name):
                raise InputError(f"prompt {source}: `{name}` is missing")
        for name in ("name", "description", "system", "user", "prefill"):
            if not isinstance(content.get(name) or "", str):
                raise InputError(f"prompt {source}: `{name}` must be text, got {shown(content[name])}")
        for name in ("placeholders", "options"):
            given = content.get(name) or {}
            if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
                raise InputError(f"prompt {source}: `{name}` must map names to values, got {shown(given)}")
        fields = {name: value for name, value in content.items() if value is not None}
        for name in ("system", "user"):
            fields[name] = fields.get(name, "").strip("\n")
        return cls(**fields, source=source)

    def render(self, /, **values: Any) -> tuple[Message, ...]:
        """The conversation that is put to the model, every place filled.

        Args:
            values: of exactly the declared placeholders. Text from outside has gone through
                :func:`recsys.retrieval.rerank.as_data.as_data` before.

        Raises:
            InputError: a value is missing, or its placeholder is not declared.
        """
        texts = {name: str(value) for name, value in values.items()}
        if missing := sorted(set(self.placeholders) - set(texts)):
            raise InputError(f"{self._where}: placeholder {missing[0]!r} has no value")
        if unknown := sorted(set(texts) - set(self.placeholders)):
            raise InputError(f"{self._where}: there is no placeholder {unknown[0]!r}; the file must declare and use it")
        user = Message("user", _filled(self.user, texts))
        return (Message("system", _filled(self.system, texts)), user) if self.system else (user,)

    def option(self, name: str, default: Any) -> Any:
        """One of the options, of the type of its default.

        Raises:
            InputError: the file says something of another type.
        """
        value = self.options.get(name, default)
        if isinstance(value, bool) is not isinstance(default, bool) or not isinstance(value, type(default)):
            kind = type(default).__name__
            raise InputError(f"{self._where}: option {name!r} must be of type {kind}, got {shown(value)}")
        return value

    @property
    def _where(self) -> str:
        return f"prompt {self.source or self.name}"


def _filled(template: str, texts: Mapping[str, str]) -> str:
    lines = []
    for line in template.split("\n"):
        places = Template(line).get_identifiers()
        if not places or any(texts[name] for name in places):
            lines.append(Template(line).substitute(texts))
    return "\n".join(lines)
