"""Tokens of chats: the template's special tokens are the template's alone, whatever the messages say."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from recsys.errors import InputError, shown
from recsys.retrieval.rerank.lm.protocol import Chat
from recsys.tokenizers.text_encoder import LOADING_ERRORS

__all__ = ["ChatTokens"]

_ROLES = ("system", "user", "assistant")


class ChatTokens:
    """Encodes chats with a tokenizer's own template.

    The template is rendered with a mark in place of every text, its special tokens are looked for there, and only then
    the texts are put in, in pieces between special tokens that are encoded without any. Harmless texts so give exactly
    the tokens of ``apply_chat_template``.
    """

    def __init__(self, tokenizer: Any, where: object) -> None:
        """
        Args:
            tokenizer: a fast one of transformers, with a chat template.
            where: the folder, for messages.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(f"{where}: the tokenizer is of the slow kind; save it with a tokenizer.json")
        if not tokenizer.chat_template:
            raise InputError(f"{where}: there is no chat template; add a chat_template.jinja to the folder")
        self._tokenizer = tokenizer
        self._lock = threading.Lock()  # rendering is python code of the template
        backend = tokenizer.backend_tokenizer
        spec, self._leads = _without_lead(backend.to_str())
        self._plain = type(backend).from_str(spec)
        self._plain.no_truncation()
        self._plain.no_padding()
        self._whole = type(backend).from_str(backend.to_str())
        self._whole.no_truncation()
        self._whole.no_padding()
        self._plain.encode_special_tokens = True
        self._whole.encode_special_tokens = False
        added = tokenizer.added_tokens_decoder
        self._added = frozenset(added)
        # One-letter and blank added tokens of some tokenizers are text like any other.
        self._forbidden = frozenset(
            token for token, content in added.items() if content.special or len(str(content).strip()) > 1
        )
        self._pieces = lru_cache(maxsize=256)(self._split)
        self._option = lru_cache(maxsize=4096)(self._find_option)
        self.stop_ids = self._find_stop_ids()

    def encode(self, chat: Chat, prefill: str = "") -> tuple[list[int], str]:
        """Tokens of a chat up to where the answer goes on after ``prefill``, and the text after the last special token.

        Raises:
            InputError: the chat is empty, or the template refuses its roles or leaves a message out.
        """
        ids: list[int] = []
        spans = self.spans(chat, prefill)
        if spans and isinstance(spans[0], str) and self._leads and not spans[0].startswith(" "):
            spans[0] = " " + spans[0]
        for span in spans:
            ids += self.text_ids(span) if isinstance(span, str) else [span]
        return ids, spans[-1] if spans and isinstance(spans[-1], str) else ""

    def spans(self, chat: Chat, prefill: str = "") -> list[int | str]:
        """What :meth:`encode` encodes: special tokens, and the texts between them.

        Raises:
            InputError: see :meth:`encode`.
        """
        spans: list[int | str] = []
        for piece in (*self._pieces(tuple(message.role for message in chat)), prefill):
            if isinstance(piece, int) and piece >= 0:
                spans.append(piece)
                continue
            text = piece if isinstance(piece, str) else chat[-1 - piece].text
            if spans and isinstance(spans[-1], str):
                spans[-1] += text
            elif text:
                spans.append(text)
        return spans

    def text_ids(self, text: str) -> list[int]:
        """Tokens of a plain text that stands after a special token, none of them special."""
        if not text:
            return []
        try:
            encoded = self._plain.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):  # halves of a pair without the other one
            text = text.encode("utf-8", "replace").decode()
            encoded = self._plain.encode(text, add_special_tokens=False)
        ids: list[int] = encoded.ids
        if self._forbidden.isdisjoint(ids):
            return ids
        # A tokenizer may hold a special token among its ordinary pieces: cut the text inside of it. Every part is
        # shorter than the text, and one letter that still is such a token is left out.
        out: list[int] = []
        done = 0
        for token, (start, end) in zip(ids, encoded.offsets, strict=True):
            if token in self._forbidden and start >= done:
                cut = (start + end) // 2 if end - start > 1 else start
                out += self.text_ids(text[done:cut])
                done = cut if end - start > 1 else start + 1
        return out + self.text_ids(text[done:])

    def next_ids(self, text: str, before: str) -> list[int]:
        """Tokens of a plain text where it goes on after ``before``, which ends with whole tokens: many tokenizers put
        a space before a text that goes on after nothing."""
        stem, joint = self.text_ids(before), self.text_ids(before + text)
        return joint[len(stem) :] if joint[: len(stem)] == stem else self.text_ids(text)

    def option_ids(self, options: Sequence[str], before: str) -> list[int]:
        """The token of each option.

        Args:
            options: texts.
            before: what :meth:`encode` says stands before them since the last special token.

        Raises:
            InputError: an option is not a single token, or two options are the same one.
        """
        ids = [self._option(option, before) for option in options]
        if len(set(ids)) < len(ids):
            at = next(place for place, token in enumerate(ids) if token in ids[:place])
            first = options[ids.index(ids[at])]
            raise InputError(f"options {shown(first)} and {shown(options[at])} are the same token; give distinct ones")
        return ids

    def _find_option(self, option: str, before: str) -> int:
        for ids in (self.next_ids(option, before), alone := self.text_ids(option)):
            if len(ids) == 1:
                return ids[0]
        raise InputError(
            f"option {shown(option)} is {len(alone)} tokens for this model; give options of one token each"
        )

    def _split(self, roles: tuple[str, ...]) -> tuple[int | str, ...]:
        """The template for these roles: special tokens, plain text, and -1 - i for the text of message i."""
        if not roles:
            raise InputError("a chat holds no message; give at least one")
        for role in roles:
            if role not in _ROLES:
                raise InputError(f"{shown(role)} is no role of a message; use {', '.join(_ROLES)}")
        marks = [f"@{at:04d}mark{at:04d}@" for at in range(len(roles))]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        rendered = self._render(messages, add_generation_prompt=True)
        pieces: list[int | str] = []
        while rendered:
            first = min(((rendered.find(mark), at) for at, mark in enumerate(marks) if mark in rendered), default=None)
            if first is None:
                pieces += self._template_pieces(rendered)
                break
            place, at = first
            pieces += self._template_pieces(rendered[:place])
            pieces.append(-1 - at)
            rendered = rendered[place + len(marks[at]) :]
        for at, role in enumerate(roles):
            if -1 - at not in pieces:
                raise InputError(f"the chat template of this model leaves out message {at} ({role}); reorder the chat")
        return tuple(pieces)

    def _template_pieces(self, text: str) -> list[int | str]:
        encoded = self._whole.encode(text, add_special_tokens=False)
        pieces: list[int | str] = []
        done = 0
        for token, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
            if token in self._added:
                if start > done:
                    pieces.append(text[done:start])
                pieces.append(token)
                done = end
        if done < len(text):
            pieces.append(text[done:])
        return pieces

    def _render(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        try:
            with self._lock:
                rendered: str = self._tokenizer.apply_chat_template(
                    messages, add_generation_prompt=add_generation_prompt, tokenize=False
                )
        except LOADING_ERRORS as error:  # a template is a program
            roles = ", ".join(message["role"] for message in messages)
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"the chat template of this model refuses a chat of {roles}: {reason}") from None
        return rendered

    def _find_stop_ids(self) -> frozenset[int]:
        """The end of a text, and what the template puts after an assistant's answer."""
        found = set()
        if self._tokenizer.eos_token_id is not None:
            found.add(int(self._tokenizer.eos_token_id))
        mark = "@answer@"
        question = {"role": "user", "content": "@question@"}
        rendered = self._render([question, {"role": "assistant", "content": mark}], add_generation_prompt=False)
        after = self._template_pieces(rendered.partition(mark)[2])
        if after and isinstance(after[0], int):
            found.add(after[0])
        return frozenset(found)


def _without_lead(spec: str) -> tuple[str, bool]:
    """A tokenizer's description without the space that it puts at the beginning of all that it reads and nowhere else,
    and whether there was one: texts are encoded one by one here, and few of them stand at that beginning."""
    described, leads = json.loads(spec), False
    outer = described["pre_tokenizer"] or {}
    for part in (outer, *outer.get("pretokenizers", ())):
        if part.get("type") == "Metaspace" and part.get("prepend_scheme") == "first":
            part["prepend_scheme"], leads = "never", True
    return json.dumps(described), leads
