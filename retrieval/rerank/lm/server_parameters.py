"""Parameters of a request that some models behind the same protocol refuse."""

from __future__ import annotations

from typing import Any

__all__ = ["Parameters"]

_OTHER_NAME = {"max_tokens": "max_completion_tokens", "temperature": None}
"""What is sent in the place of one that is refused; None = nothing. Old servers know the first name only, newer models
of OpenAI the second one only; those that think before they answer choose their temperature themselves."""


class Parameters:
    """Sends requests with the parameters that a model takes, as far as its refusals have told."""

    def __init__(self) -> None:
        self._refused: set[str] = set()

    async def create(self, client: Any, body: dict[str, Any]) -> Any:
        """The raw answer; a request is sent again where a parameter is refused that there is something else for.

        Args:
            client: an ``openai.AsyncOpenAI``.
            body: of a chat completion.

        Raises:
            openai.OpenAIError: as the client does.
        """
        import openai

        while True:
            sent = self.taken(body)
            try:
                return await client.chat.completions.with_raw_response.create(**sent)
            except openai.BadRequestError as error:
                names = [name for name in _OTHER_NAME if name in sent and _is_refused(name, error.param, error.message)]
                if not names:
                    raise
                self._refused.update(names)

    def taken(self, body: dict[str, Any]) -> dict[str, Any]:
        """The request without what was refused.

        >>> parameters = Parameters()
        >>> parameters._refused |= {"max_tokens", "temperature"}
        >>> parameters.taken({"model": "m", "temperature": 0, "max_tokens": 5})
        {'model': 'm', 'max_completion_tokens': 5}
        """
        named = {_OTHER_NAME[name] if name in self._refused else name: value for name, value in body.items()}
        return {name: value for name, value in named.items() if name is not None}


def _is_refused(name: str, param: str | None, message: str) -> bool:
    """Whether it is the parameter that is not taken: one that is too large is, as a rule.

    >>> _is_refused("max_tokens", "max_tokens", "'max_tokens' is not supported with this model")
    True
    >>> _is_refused("max_tokens", "max_tokens", "'max_tokens' is too large: 500")
    False
    """
    return (param == name or f"'{name}'" in message) and "support" in message.lower()
