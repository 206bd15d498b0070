"""What a chat completion of an OpenAI-compatible server must hold to be one; everything else in it is ignored."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

__all__ = ["ServerAnswer"]

Count = Annotated[int, Field(ge=0, le=1 << 40)]


class _Token(BaseModel):
    token: str
    logprob: Annotated[float, Field(le=1e-3)]
    bytes: list[Annotated[int, Field(ge=0, lt=256)]] | None = None

    def texts(self) -> set[str]:
        """The token as text; some servers write a leading space as their tokenizer's mark of one."""
        found = {self.token}
        if self.token[:1] in ("\u0120", "\u2581"):
            found.add(" " + self.token[1:])
        if self.bytes is not None:
            found.add(bytes(self.bytes).decode("utf-8", "replace"))
        return found


class _Place(BaseModel):
    top_logprobs: list[_Token] = []


class _LogProbs(BaseModel):
    content: list[_Place] | None = None


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _LogProbs | None = None


class _PromptDetails(BaseModel):
    cached_tokens: Count | None = None


class _Usage(BaseModel):
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    prompt_tokens_details: _PromptDetails | None = None


class ServerAnswer(BaseModel):
    """A chat completion with one answer or more, of which the first counts."""

    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: _Usage | None = None

    @property
    def text(self) -> str | None:
        """The answer."""
        return self.choices[0].message.content

    @property
    def finish_reason(self) -> str:
        """Why it ended."""
        return self.choices[0].finish_reason or "stop"

    def first_log_probs(self) -> dict[str, float] | None:
        """Of the likeliest first tokens: empty where the answer is, None where the server left them out."""
        given = self.choices[0].logprobs
        if given is not None and given.content == [] and not self.text:
            return {}
        if given is None or not given.content or not given.content[0].top_logprobs:
            return None
        found: dict[str, float] = {}
        for token in given.content[0].top_logprobs:
            for text in token.texts():
                found[text] = max(token.logprob, found.get(text, -float("inf")))
        return found
