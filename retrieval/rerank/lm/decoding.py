"""Answers that grow together, one token a step; rows come and go between steps.

Suffixes: B = rows, H = heads of keys, W = slots, V = vocabulary, D = dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from recsys.retrieval.rerank.lm.kept_states import GrowingLayer, KeptStates, model_cache
from recsys.retrieval.rerank.lm.question import Question

__all__ = ["Decoding"]


class Decoding:
    """Greedy decoding of some questions over one cache.

    ``lengths`` counts the tokens in the cache; the last token of every answer is not there yet.
    """

    def __init__(self, model: Any, take: Callable[[Question, int], None]) -> None:
        """
        Args:
            model: of transformers.
            take: adds a token to an answer, and ends the question where that was the last one.
        """
        self._model, self._take = model, take
        self.questions: list[Question] = []
        self._lengths: list[int] = []
        self._layers: list[GrowingLayer] = []

    def join(self, rows: Sequence[tuple[Question, list[KeptStates]]]) -> None:
        """Take rows in, each with its first token and with the states of its whole prompt."""
        for question, _ in rows:
            if not question.alive:
                question.end("deadline")
        rows = [row for row in rows if row[0].finish is None]
        if not rows:
            return
        added = [sum(map(len, parts)) for _, parts in rows]
        old_width = self._layers[0].width if self._layers else 0
        width = max(old_width, *added)
        room = max(question.max_tokens for question, _ in rows)
        layers = []
        for at in range(len(rows[0][1][0].keys)):
            both = []
            for kind in ("keys", "values"):
                first: Tensor = getattr(rows[0][1][0], kind)[at]
                num_rows = len(self.questions) + len(rows)
                out_BHWD = first.new_zeros((num_rows, first.shape[0], width + min(room, 64), first.shape[2]))
                if self._layers:
                    old = self._layers[at].states()[kind == "values"]
                    out_BHWD[: len(old), :, width - old_width : width] = old
                for row, (_, parts) in enumerate(rows, len(self.questions)):
                    stop = width
                    for part in reversed(parts):
                        out_BHWD[row, :, stop - len(part) : stop] = getattr(part, kind)[at]
                        stop -= len(part)
                both.append(out_BHWD)
            layer = GrowingLayer(*both)
            layer.width = width
            layers.append(layer)
        self._layers = layers
        self.questions += [question for question, _ in rows]
        self._lengths += added

    def step(self) -> None:
        """One token more for every answer that somebody waits for."""
        self._leave()
        if not self.questions:
            return
        width = self._layers[0].width
        length_B1 = torch.tensor(self._lengths)[:, None]
        mask_BW = (torch.arange(width + 1) >= width - length_B1).long()
        token_B1 = torch.tensor([question.tokens[-1] for question in self.questions])[:, None]
        device = self._model.device
        logits_BV = self._model(
            input_ids=token_B1.to(device),
            attention_mask=mask_BW.to(device),
            position_ids=length_B1.to(device),
            past_key_values=model_cache(self._layers),
            use_cache=True,
        ).logits[:, -1]
        self._lengths = [length + 1 for length in self._lengths]
        for question, token in zip(self.questions, logits_BV.argmax(-1).tolist(), strict=True):
            self._take(question, token)

    def _leave(self) -> None:
        stay = [row for row, question in enumerate(self.questions) if question.alive]
        for question in self.questions:
            if not question.alive:
                question.end("deadline")
        if len(stay) == len(self.questions):
            return
        self.questions = [self.questions[row] for row in stay]
        self._lengths = [self._lengths[row] for row in stay]
        if not stay:
            self._layers = []
            return
        for layer in self._layers:
            layer.keep(torch.tensor(stay, device=self._model.device), max(self._lengths))
