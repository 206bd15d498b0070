"""Order-invariant listwise reranking: a language model reads the candidates as a set.

Set-based prompting (arXiv 2406.06581): candidates begin at the same position and do not see each other, so that nothing
says which comes first. A candidate's score is how likely its own text is as the answer, given the user and the whole
set: all answers are read in the same pass, beside each other. How likely it is when nothing is known of the user, which
is mostly how common its words are, can be taken off.

Suffixes: N = tokens of one pass, R = rows whose next token is looked at, V = vocabulary.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from recsys.errors import InputError, shown
from recsys.retrieval.rerank.item_lines import item_line
from recsys.retrieval.rerank.lm.local import LocalLanguageModel
from recsys.retrieval.rerank.lm.protocol import Chat, LanguageModel, Message
from recsys.retrieval.rerank.lm.usage import Usage
from recsys.retrieval.rerank.prompt import Prompt
from recsys.retrieval.rerank.prompted import PromptedReranker
from recsys.retrieval.rerank.request import RerankRequest
from recsys.retrieval.rerank.result import Faults, RerankResult
from recsys.retrieval.rerank.set_mask import set_layout
from recsys.retrieval.rerank.tally import DEADLINE, in_turn

__all__ = ["SetPromptingReranker"]

_MARK = "[|candidates|]"
"""Stands for the candidates; no text from outside can hold it."""
_NEVER = -3e4
"""Added to the score of what a token does not see; its weight underflows to 0 in every float type."""


class SetPromptingReranker(PromptedReranker):
    """Orders by the mean log-likelihood per token of each candidate as the answer, given the set of all.

    The result is the same for every order of the candidates, bit for bit: the mask makes it so up to rounding, and
    inside they stand in an order of their own. Equal scores follow that order too.

    Args:
        lm: run in this process, since no server takes masks.
        prompt, history_items, item_chars: as :class:`PromptedReranker` says; the place ``candidates`` is the set.
        calibrate: whether the likelihood without any history is taken off, which doubles the work.

    Raises:
        InputError: another kind of language model, or one whose attention takes no mask.
    """

    name = "set"
    default_prompt = "set"
    needed = frozenset({"candidates"})

    def __init__(
        self,
        lm: LanguageModel,
        *,
        prompt: str | Path | Prompt | None = None,
        history_items: int | None = None,
        item_chars: int | None = None,
        calibrate: bool = False,
    ) -> None:
        super().__init__(lm, prompt=prompt, history_items=history_items, item_chars=item_chars)
        if not isinstance(lm, LocalLanguageModel):
            raise InputError("the method 'set' needs a language model in a local folder: no server takes its masks")
        attention = getattr(lm.model.config.get_text_config(), "_attn_implementation", "sdpa")
        if attention not in ("sdpa", "eager"):
            raise InputError(f"{lm.name} runs {attention} attention, which takes no mask; load it with sdpa or eager")
        if "$candidates" not in self.prompt.user and "${candidates}" not in self.prompt.user:
            raise InputError(f"prompt {self.prompt.source or self.prompt.name}: $candidates must stand in `user`")
        self.local, self.calibrate = lm, calibrate
        self._one_at_a_time = threading.Lock()

    def questions(self, request: RerankRequest) -> list[Chat]:
        """One, with the candidates below each other in the order in which they stand inside."""
        order = self._canonical(request)
        lines = [f"- {item_line(request.candidates[place], self.item_chars)}" for place in order]
        return [self.chat(request, candidates="\n".join(lines))] if len(order) > 1 else []

    async def rerank_async(
        self, requests: Sequence[RerankRequest], *, deadline: float | None = None
    ) -> list[RerankResult]:
        """As :class:`Reranker` says; the deadline is looked at between passes, one or two for each list, and bounds how
        long a list waits for those of other callers."""
        return await asyncio.to_thread(lambda: [self._one(request, deadline) for request in requests])

    def _canonical(self, request: RerankRequest) -> list[int]:
        """Places of the candidates by their text, then by id."""
        return sorted(
            range(len(request.ids)),
            key=lambda place: (
                item_line(request.candidates[place], self.item_chars), str(request.ids[place]),
                type(request.ids[place]).__name__,
            ),
        )  # fmt: skip

    def _one(self, request: RerankRequest, deadline: float | None) -> RerankResult:
        ids = request.ids
        if len(ids) < 2:
            return RerankResult(ids=ids, candidates=ids)
        order = self._canonical(request)
        unknown = replace(request, history=(), query=None)
        usage, found = Usage(), list[list[float]]()
        for asked in (request, unknown) if self.calibrate else (request,):
            if not in_turn(self._one_at_a_time, deadline):
                return RerankResult.unchanged(ids, DEADLINE, usage=usage, faults=Faults(failed=1))
            start = time.monotonic()
            try:
                parts = self.parts(asked, order)
                num_tokens = sum(len(segment) for group in parts for segment in group)
                longest = sum(max(map(len, group)) for group in parts)
                if longest > self.local.context_tokens:
                    note = f"the prompt spans {longest} tokens, and {self.local.name} takes {self.local.context_tokens}"
                    return RerankResult.unchanged(ids, note, usage=usage, faults=Faults(failed=1))
                found.append(self.answer_likelihoods(parts))
            except (IndexError, RuntimeError) as error:  # torch's own: too little memory, no such token, …
                note = f"computing failed: {shown(' '.join(str(error).split()))}"
                return RerankResult.unchanged(ids, note, usage=usage, faults=Faults(failed=1))
            finally:
                self._one_at_a_time.release()
            cost = self.local.prices.cost(num_tokens, 0, 0)
            usage += Usage(calls=1, prompt_tokens=num_tokens, seconds=time.monotonic() - start, cost=cost)
        scores = [one[0] - sum(one[1:]) for one in zip(*found, strict=True)]
        if not all(score == score for score in scores):
            note = "the model gave numbers that are none"
            return RerankResult.unchanged(ids, note, usage=usage, faults=Faults(malformed=1))
        best = sorted(range(len(order)), key=lambda at: -scores[at])
        by_place = dict(zip(order, scores, strict=True))
        return RerankResult(
            ids=tuple(ids[order[at]] for at in best),
            candidates=ids,
            scores=tuple(by_place[place] for place in range(len(ids))),
            usage=usage,
        )

    def parts(self, request: RerankRequest, order: Sequence[int]) -> list[list[list[int]]]:
        """Tokens of the segments of each group: what comes before, the candidates, what comes after, the answers.

        Args:
            order: places of the candidates, in which their tokens stand.
        """
        chat = self.chat(request, candidates=_MARK)
        before, _, after = chat[-1].text.partition(_MARK)

        def around(text: str) -> list[int]:
            return self.local.encode_chat([*chat[:-1], Message("user", text)], self.prompt.prefill)

        # What the template puts after a message is what two messages with different ends share at their ends.
        ending = _shared_end(around("a"), around("b"))
        whole = around(before)
        texts = [item_line(request.candidates[place], self.item_chars) for place in order]
        encode = self.local.encode_text
        return [
            [whole[: len(whole) - len(ending)]],
            [encode(f"- {text}\n") for text in texts],
            [encode(after.lstrip("\n")) + ending],
            [encode(text) for text in texts],
        ]

    @torch.inference_mode()
    def answer_likelihoods(self, parts: Sequence[Sequence[Sequence[int]]]) -> list[float]:
        """Mean natural logarithm per token of each segment of the last group, in one pass.

        Args:
            parts: of :meth:`parts`; the group before the last holds one segment, and no segment of the last is empty.
        """
        layout = set_layout([[len(segment) for segment in group] for group in parts])
        model, tokens = self.local.model, [token for group in parts for segment in group for token in segment]
        dtype = next(model.parameters()).dtype
        mask_NN = torch.where(layout.visible_NN, 0.0, _NEVER).to(dtype)
        answers, first = parts[-1], len(tokens) - sum(map(len, parts[-1]))
        rows: list[int] = []
        start = first
        for answer in answers:  # the last token before the answers says what comes first in each
            rows += [first - 1, *range(start, start + len(answer) - 1)]
            start += len(answer)
        device = model.device
        logits_RV = model(
            input_ids=torch.tensor([tokens], device=device),
            attention_mask=mask_NN[None, None].to(device),
            position_ids=layout.position_N[None].to(device),
            use_cache=False,
            logits_to_keep=torch.tensor(rows, device=device),
        ).logits[0]
        answer_R = torch.tensor([token for answer in answers for token in answer], device=device)
        log_prob_R = logits_RV.float().log_softmax(-1).gather(1, answer_R[:, None])[:, 0].cpu()
        return [float(part.mean()) for part in log_prob_R.split([len(answer) for answer in answers])]


def _shared_end(one: list[int], other: list[int]) -> list[int]:
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]
