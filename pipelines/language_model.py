"""The language model that a command's ``--lm`` names, and the flags beside it."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from typing import Any, Literal

from recsys.errors import InputError, shown
from recsys.retrieval.rerank.lm.protocol import LanguageModel
from recsys.retrieval.rerank.lm.usage import Prices, Usage

__all__ = ["ModelDtype", "ModelOptions", "cost_text", "named_model", "usage_text"]

ModelDtype = Literal["bfloat16", "float16", "float32"]
_KEY = "RECSYS_API_KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """The flags beside ``--lm``. Refused at once: what cannot be meant, or belongs to another kind of model."""

    prices: Prices | None = None
    """Of any model; without them its costs count as 0 and are not shown."""
    dtype: ModelDtype | None = None
    """Of a folder; None = as :meth:`recsys.retrieval.rerank.lm.local.LocalLanguageModel.load` chooses."""
    timeout_s: float | None = None
    """Of a server, as are the two below; None = the default of
    :class:`recsys.retrieval.rerank.lm.server.ServerLanguageModel`."""
    retries: int | None = None
    prefill: bool = True

    @classmethod
    def of_flags(
        cls,
        lm_dtype: ModelDtype | None,
        lm_prices: str | None,
        lm_timeout_s: float | None,
        lm_retries: int | None,
        lm_prefill: bool,
    ) -> ModelOptions:
        """From the parameters of a command.

        Raises:
            InputError: prices that are no three numbers, or a number that cannot be meant.
        """
        if lm_timeout_s is not None and not 0 < lm_timeout_s < math.inf:
            raise InputError(f"--lm-timeout-s must be a number above 0, got {lm_timeout_s}")
        if lm_retries is not None and lm_retries < 0:
            raise InputError(f"--lm-retries must be at least 0, got {lm_retries}")
        prices = None if lm_prices is None else _prices(lm_prices)
        return cls(dtype=lm_dtype, prices=prices, timeout_s=lm_timeout_s, retries=lm_retries, prefill=lm_prefill)

    @property
    def server_flags(self) -> tuple[str, ...]:
        """Given ones that only a server reads."""
        given = {
            "--lm-timeout-s": self.timeout_s is not None,
            "--lm-retries": self.retries is not None,
            "--no-lm-prefill": not self.prefill,
        }
        return tuple(flag for flag, is_given in given.items() if is_given)

    @property
    def flags(self) -> tuple[str, ...]:
        """Given ones."""
        given = {"--lm-prices": self.prices is not None, "--lm-dtype": self.dtype is not None}
        return (*(flag for flag, is_given in given.items() if is_given), *self.server_flags)

    def check(self, lm: str | None) -> None:
        """Whether these flags go with a model.

        Raises:
            InputError: there is none, or they are of the other kind.
        """
        if lm is None and self.flags:
            raise InputError(f"{self.flags[0]} is of a language model; give --lm, or leave it out")
        if lm is not None and "://" not in lm and self.server_flags:
            raise InputError(f"{self.server_flags[0]} is of a server, and --lm names a folder; leave it out")
        if lm is not None and "://" in lm and self.dtype is not None:
            raise InputError("--lm-dtype is of a folder, and --lm names a server; leave it out")

    def priced(self) -> dict[str, Any]:
        """The prices as a field of a result; nothing without them, so that nobody takes a cost of 0 for one."""
        return {} if self.prices is None else {"prices_per_million_tokens": asdict(self.prices)}


def named_model(lm: str, options: ModelOptions | None = None) -> LanguageModel:
    """Open the model; the key of a server is that of the environment's ``RECSYS_API_KEY``.

    Args:
        lm: a folder, or ``http(s)://host/v1#model``.
        options: the flags beside it.

    Raises:
        InputError: as :func:`recsys.retrieval.rerank.lm.open.open_language_model` and :meth:`ModelOptions.check`.
    """
    from recsys.retrieval.rerank.lm.open import open_language_model

    options = options or ModelOptions()
    options.check(lm)
    settings: dict[str, Any] = {"prices": options.prices}
    if "://" in lm:
        settings |= {"api_key": os.environ.get(_KEY) or None, "prefills": options.prefill}
        settings |= {} if options.timeout_s is None else {"timeout_s": options.timeout_s}
        settings |= {} if options.retries is None else {"max_retries": options.retries}
    elif options.dtype is not None:
        settings["dtype"] = options.dtype
    return open_language_model(lm, **settings)


def usage_text(usage: Usage, prices: Prices | None) -> str:
    """What calls took, for people; the cost only where there are prices."""
    cost = "" if prices is None else f", {cost_text(usage.cost)}"
    return (
        f"{usage.calls:,} calls, {usage.prompt_tokens:,} tokens read ({usage.reused_tokens:,} of them kept), "
        f"{usage.generated_tokens:,} written, {1000 * usage.seconds:,.0f} ms{cost}"
    )


def cost_text(cost: float) -> str:
    """A cost in the currency of the prices, small ones as well.

    >>> cost_text(0.0001126), cost_text(12.5)
    ('cost 0.000113', 'cost 12.500000')
    """
    return f"cost {cost:,.6f}"


def _prices(text: str) -> Prices:
    parts = [part.strip() for part in text.split(",")]
    try:
        prompt, reused, generated = (float(part) for part in parts)
        return Prices(prompt=prompt, reused=reused, generated=generated)
    except ValueError:  # InputError among them
        raise InputError(
            f"--lm-prices {shown(text)}: give three numbers from 0, for a million tokens each: INPUT,CACHED,OUTPUT, "
            "such as 2.50,1.25,10"
        ) from None
