"""What all rerankers share that ask a language model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from recsys.errors import InputError, shown
from recsys.retrieval.rerank.as_data import as_data
from recsys.retrieval.rerank.item_lines import candidate_lines, history_lines
from recsys.retrieval.rerank.lm.protocol import Chat, LanguageModel
from recsys.retrieval.rerank.prompt import Prompt
from recsys.retrieval.rerank.request import RerankRequest
from recsys.retrieval.rerank.reranker import Reranker

__all__ = ["PromptedReranker"]

_QUERY_CHARS = 300


class PromptedReranker(Reranker):
    """A reranker that puts questions to a language model by a prompt file."""

    default_prompt: str
    """Name of the prompt that is used where none is given."""
    needed: frozenset[str]
    """Placeholders that a prompt of this method must have."""
    offered: frozenset[str] = frozenset()
    """Those that it may have, beside ``history`` and ``query``."""

    def __init__(
        self,
        lm: LanguageModel,
        *,
        prompt: str | Path | Prompt | None = None,
        history_items: int | None = None,
        item_chars: int | None = None,
    ) -> None:
        """
        Args:
            prompt: name or path of a prompt file, or a prompt. Placeholders that every method offers are ``history``
                (the user's latest items) and ``query`` (what was asked for, or nothing).
            history_items: most items of the history that are shown, the latest; None = what the prompt says, or 10.
            item_chars: most characters of an item; None = what the prompt says, or 80.
        """
        self.lm = lm
        if prompt is None:
            prompt = self.default_prompt
        self.prompt = prompt if isinstance(prompt, Prompt) else Prompt.load(prompt)
        declared, known = set(self.prompt.placeholders), self.needed | self.offered | {"history", "query"}
        where = f"prompt {self.prompt.source or self.prompt.name}"
        if missing := sorted(self.needed - declared):
            raise InputError(f"{where}: {self.name} needs the placeholder {missing[0]!r}; declare it and use it")
        if unknown := sorted(declared - known):
            known_names = ", ".join(sorted(known))
            raise InputError(f"{where}: {self.name} fills no placeholder {unknown[0]!r}; it has {known_names}")
        self.history_items = at_least(0, "history_items", history_items, self.prompt.option("history_items", 10))
        self.item_chars = at_least(1, "item_chars", item_chars, self.prompt.option("item_chars", 80))

    @abstractmethod
    def questions(self, request: RerankRequest) -> list[Chat]:
        """What would be put to the model first for one request, without asking: a dry view.

        Each answer begins with ``prompt.prefill``.
        """

    def chat(self, request: RerankRequest, **values: object) -> Chat:
        """A conversation about one request: its user and ``values``, as far as the prompt has places for them."""
        values["history"] = history_lines(request.history, self.history_items, self.item_chars)
        values["query"] = as_data(request.query or "", _QUERY_CHARS)
        return self.prompt.render(**{name: value for name, value in values.items() if name in self.prompt.placeholders})

    def lines(self, request: RerankRequest, places: Sequence[int], names: Sequence[str]) -> str:
        """Some candidates, each behind its label."""
        return candidate_lines((request.candidates[place] for place in places), names, self.item_chars)

    def answers(self, default: tuple[str, str]) -> tuple[str, str]:
        """The two words that the prompt wants to be answered with."""
        words = self.prompt.option("answers", list(default))
        if len(words) != 2 or not all(isinstance(word, str) and word for word in words) or words[0] == words[1]:
            where = self.prompt.source or self.prompt.name
            raise InputError(f"prompt {where}: option 'answers' must hold two words, got {shown(words)}")
        return (words[0], words[1])


def at_least(least: int, name: str, given: int | None, default: int) -> int:
    """A whole number of a caller, checked."""
    value = default if given is None else given
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be a whole number from {least} on, got {shown(value)}")
    return value
