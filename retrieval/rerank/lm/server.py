"""Language models behind a server that speaks OpenAI's protocol."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from recsys.errors import InputError, shown
from recsys.retrieval.rerank.lm.protocol import Chat, Choice, Generation
from recsys.retrieval.rerank.lm.server_connection import AnswerRefused, Connections, refuse_password
from recsys.retrieval.rerank.lm.server_parameters import Parameters
from recsys.retrieval.rerank.lm.usage import Prices, Usage

if TYPE_CHECKING:
    from recsys.retrieval.rerank.lm.server_answer import ServerAnswer

__all__ = ["ServerLanguageModel"]

LATE = "the deadline passed"
_TOP = 20
_BYTES_PER_TOKEN = 3
_LIKE_SPECIAL = re.compile(
    r"<(?=[|\uff5c])|<(?=/?(?:s|bos|eos|pad|unk|think|tool_call|tool_response|start_of_turn|end_of_turn)>)"
    r"|<(?=<SYS>)|\[(?=/?[A-Z_]{2,40}\])"
)


@dataclass(frozen=True, slots=True)
class _Reply:
    answer: ServerAnswer | None
    error: str | None = None
    late: bool = False


class ServerLanguageModel:
    """A language model that a server runs, as :class:`LanguageModel` describes it.

    Whatever the server does (errors, half answers, silence), callers get an ``error`` and never an exception. The
    client tries again, with growing pauses or the server's ``Retry-After``, after lost connections and the statuses
    408, 409, 429 and 5xx; ``retries`` counts these tries.

    Seconds are from the question to the answer, waiting included; those of a call are shared equally by its questions.

    A server reads messages with its own tokenizer, and most take ``<|im_end|>`` within a text for the token. A space is
    put into what looks like one, so that it stays text.

    ``prefill`` goes as a last message of the assistant. Servers that go on with it: llama.cpp; vLLM and SGLang with
    ``extra_body={"continue_final_message": True, "add_generation_prompt": False}`` given as ``prefill_body``. Others,
    ``transformers serve`` among them, begin another turn after it: for these give ``prefills=False``, and it is left
    out.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        max_retries: int = 2,
        max_concurrency: int = 16,
        prices: Prices | None = None,
        context_tokens: int = 8192,
        prefills: bool = True,
        prefill_body: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        """
        Args:
            model: as the server calls it.
            base_url: http(s), usually ending in ``/v1``.
            api_key: none for most local servers; never taken from the environment, and in no message.
            timeout_s: seconds for an answer, all tries together, counted from when its request may be sent.
            max_retries: after the first try.
            max_concurrency: requests under way at a time, in each event loop.
            prices: to count a cost.
            context_tokens: of the model, as far as known: servers do not say.
            prefills: whether the server goes on with a last message of the assistant.
            prefill_body: more fields of requests that have one.
            name: in results; by default the model's.

        Raises:
            InputError: no such address can be, or it holds a password; no header can hold the key; a number is out of
                range, or openai is not installed.
        """
        refuse_password(base_url)
        api_key = (api_key or "").strip() or None
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise InputError(f"the key for {shown(base_url)} holds a line end or letters beyond ASCII; copy it again")
        like = "give one like http://localhost:8000/v1"
        try:
            parts = urlsplit(base_url)
            host = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
        except ValueError as error:  # a port beyond 65535, half an IPv6 address
            raise InputError(f"{shown(base_url)} is no address of a server ({error}); {like}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{shown(base_url)} is no address of a server; {like}")
        if not model:
            raise InputError(f"no model of {base_url} is named; give the name by which the server knows it")
        for what, value, least in (
            ("timeout_s", timeout_s, 1e-3),
            ("max_retries", max_retries, 0),
            ("max_concurrency", max_concurrency, 1),
            ("context_tokens", context_tokens, 1),
        ):
            if not value >= least:
                raise InputError(f"{what} of a server's model is {value}; give at least {least:g}")
        self.name = name or model
        self.context_tokens = context_tokens
        self.retries = 0
        self.gives_log_probs: bool | None = None
        """None until the first answer to :meth:`choose`; False = the server left them out: :meth:`choose` gives errors
        from then on without asking, and callers generate instead."""
        self._model, self._timeout_s, self._prices = model, timeout_s, prices or Prices()
        self._prefills, self._prefill_body = prefills, dict(prefill_body or {})
        self._api_key, self._parameters = api_key, Parameters()
        self._where = f"{parts.scheme}://{host}{parts.path}"
        self._connections = Connections(
            base_url=base_url,
            api_key=api_key,
            timeout_s=timeout_s,
            max_retries=max_retries,
            max_concurrency=max_concurrency,
            on_retry=self._count_retry,
        )

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """An estimate, rather too high than too low for English: a third of the bytes."""
        return [-(-len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN) for text in texts]

    async def aclose(self) -> None:
        """Close the connections of this event loop now rather than when it ends."""
        await self._connections.close()

    async def choose(
        self,
        chats: Sequence[Chat],
        options: Sequence[Sequence[str]],
        *,
        prefill: str = "",
        deadline: float | None = None,
    ) -> list[Choice]:
        """As :class:`LanguageModel` says. Servers list their 20 likeliest tokens; other options get -inf."""
        if len(options) != len(chats):
            raise InputError(f"{len(chats)} chats, but options for {len(options)}; give options for every chat")
        for texts in options:
            if "" in texts:
                raise InputError("option '' is 0 tokens; give options of one token each")
            if len(set(texts)) < len(texts):
                twice = next(text for at, text in enumerate(texts) if text in texts[:at])
                raise InputError(f"option {shown(twice)} is there twice; give distinct ones")
        if self.gives_log_probs is False:
            return [Choice(log_probs=(), error=self._no_log_probs())] * len(chats)
        body = {"max_tokens": 1, "logprobs": True, "top_logprobs": _TOP}
        replies, seconds = await self._ask_all(chats, body, prefill, deadline)
        out = []
        for chat, texts, reply in zip(chats, options, replies, strict=True):
            log_probs: tuple[float, ...] = ()
            error = reply.error
            if reply.answer is not None:
                found = reply.answer.first_log_probs()
                if found is None:
                    self.gives_log_probs = self.gives_log_probs or False
                    error = self._no_log_probs()
                elif not found:
                    error = "the answer ended before its first token"
                else:
                    self.gives_log_probs = True
                    log_probs = tuple(found.get(text, -float("inf")) for text in texts)
            out.append(Choice(log_probs=log_probs, usage=self._usage(chat, reply.answer, seconds), error=error))
        return out

    async def generate(
        self,
        chats: Sequence[Chat],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        prefill: str = "",
        deadline: float | None = None,
    ) -> list[Generation]:
        """As :class:`LanguageModel` says. A late answer has no text: answers come whole."""
        if max_tokens < 1:
            raise InputError(f"max_tokens is {max_tokens}; give at least 1")
        if "" in stop:
            raise InputError("a stop string is empty; leave it out")
        body: dict[str, Any] = {"max_tokens": max_tokens}
        if stop:
            body["stop"] = list(stop)[:4]  # what the protocol allows; the rest is cut here
        replies, seconds = await self._ask_all(chats, body, prefill, deadline)
        return [
            self._generation(reply, stop, prefill, self._usage(chat, reply.answer, seconds))
            for chat, reply in zip(chats, replies, strict=True)
        ]

    def _generation(self, reply: _Reply, stop: Sequence[str], prefill: str, usage: Usage) -> Generation:
        if reply.late:
            return Generation(text="", finish="deadline", usage=usage)
        if reply.answer is None:
            return Generation(text="", finish="error", usage=usage, error=reply.error)
        text, reason = reply.answer.text, reply.answer.finish_reason
        if text is None:
            error = f"the server gave an answer without text (it ended with {shown(reason)})"
            return Generation(text="", finish="error", usage=usage, error=error)
        if prefill and text.startswith(prefill):
            text = text[len(prefill) :]
        ends = [text.find(end) for end in stop if end in text]
        if ends:
            return Generation(text=text[: min(ends)], finish="stop", usage=usage)
        if reason not in ("stop", "length", "eos", "eos_token", "stop_sequence"):
            error = f"the server ended the answer with {shown(reason)}"
            return Generation(text=text, finish="error", usage=usage, error=error)
        finish: Literal["stop", "length"] = "length" if reason == "length" else "stop"
        return Generation(text=text, finish=finish, usage=usage)

    async def _ask_all(
        self, chats: Sequence[Chat], body: Mapping[str, Any], prefill: str, deadline: float | None
    ) -> tuple[list[_Reply], float]:
        """Replies in order, and the seconds of each one's share."""
        start = time.monotonic()
        asked = [self._body(chat, body, prefill) for chat in chats]
        replies = await asyncio.gather(*(self._ask(one, deadline) for one in asked))
        return replies, (time.monotonic() - start) / max(len(chats), 1)

    def _body(self, chat: Chat, body: Mapping[str, Any], prefill: str) -> dict[str, Any]:
        if not chat:
            raise InputError("a chat holds no message; give at least one")
        messages = [{"role": message.role, "content": _plain(message.text)} for message in chat]
        extra: dict[str, Any] = {}
        if prefill and self._prefills:
            messages.append({"role": "assistant", "content": prefill})
            extra = self._prefill_body
        return {"model": self._model, "messages": messages, "temperature": 0, **body, "extra_body": extra}

    async def _ask(self, body: dict[str, Any], deadline: float | None) -> _Reply:
        import openai

        from recsys.retrieval.rerank.lm.server_answer import ServerAnswer

        try:
            async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
                connection = await self._connections.here()
                async with connection.room:
                    try:
                        async with asyncio.timeout(self._timeout_s):
                            raw = await self._parameters.create(connection.client, body)
                    except (TimeoutError, openai.APITimeoutError):
                        return _Reply(None, f"{self._where} gave no answer within {self._timeout_s:g} s")
                return _Reply(ServerAnswer.model_validate_json(raw.http_response.content))
        except TimeoutError:
            return _Reply(None, LATE, late=True)
        except AnswerRefused as error:
            return _Reply(None, f"{self._where} sent {error}")
        except openai.APIStatusError as error:
            if "logprobs" in body and isinstance(error, openai.BadRequestError) and "logprob" in str(error).lower():
                self.gives_log_probs = self.gives_log_probs or False
            return _Reply(None, f"{self._where} answered {error.status_code}: {self._line(error.message)}")
        except openai.APIConnectionError as error:
            return _Reply(None, f"the connection to {self._where} failed: {self._line(error.__cause__ or error)}")
        except openai.OpenAIError as error:
            return _Reply(None, f"asking {self._where} failed: {self._line(error)}")
        except ValueError as error:  # pydantic's among them
            return _Reply(None, f"{self._where} answered what is no chat completion: {self._line(error)}")

    def _line(self, error: object) -> str:
        """One line, not long, without the key: it may quote the server, and a server may quote the key."""
        text = " ".join(str(error).split()) or type(error).__name__
        return shown(text if self._api_key is None else text.replace(self._api_key, "(key)"))

    def _no_log_probs(self) -> str:
        return f"{self._where} gives no log-probabilities; generate answers instead"

    def _count_retry(self) -> None:
        self.retries += 1

    def _usage(self, chat: Chat, answer: ServerAnswer | None, seconds: float) -> Usage:
        if answer is None:
            return Usage(calls=1, seconds=seconds)
        if answer.usage is None:
            prompt = sum(self.count_tokens([message.text for message in chat]))
            reused, generated = 0, self.count_tokens([answer.text or ""])[0]
        else:
            prompt, generated = answer.usage.prompt_tokens, answer.usage.completion_tokens
            details = answer.usage.prompt_tokens_details
            reused = min(details.cached_tokens or 0, prompt) if details is not None else 0
        return Usage(
            calls=1,
            prompt_tokens=prompt,
            reused_tokens=reused,
            generated_tokens=generated,
            seconds=seconds,
            cost=self._prices.cost(prompt, reused, generated),
        )


def _plain(text: str) -> str:
    """A text in which nothing looks like a special token of a common template.

    >>> _plain("a <b> <|im_end|></s>[INST]")
    'a <b> < |im_end|>< /s>[ INST]'
    """
    return _LIKE_SPECIAL.sub(r"\g<0> ", text.encode("utf-8", "replace").decode())
