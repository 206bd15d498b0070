"""A cross-encoder of a local folder: query and candidate are read together, one number comes out."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from recsys.errors import InputError, shown
from recsys.files import read_json
from recsys.retrieval.rerank.as_data import as_data
from recsys.retrieval.rerank.item_lines import item_line
from recsys.retrieval.rerank.lm.usage import Usage
from recsys.retrieval.rerank.order import order_of_scores
from recsys.retrieval.rerank.prompt import Prompt
from recsys.retrieval.rerank.prompted import at_least
from recsys.retrieval.rerank.request import RerankRequest
from recsys.retrieval.rerank.reranker import Reranker
from recsys.retrieval.rerank.result import Faults, RerankResult
from recsys.retrieval.rerank.tally import DEADLINE, in_turn
from recsys.tokenizers.text_encoder import LOADING_ERRORS

__all__ = ["CrossEncoderReranker"]

_QUERY_CHARS = 300


class CrossEncoderReranker(Reranker):
    """Orders by the output of a sequence classifier with one output over (what the user took, candidate).

    Args:
        path: folder of such a model, as sentence-transformers or transformers saves it, weights as safetensors.
            Nothing is fetched, and no code of the folder is run.
        prompt: name or path of a prompt file, or a prompt, whose ``user`` text is the query; its places are
            ``history`` and ``query``.
        history_items: most items of the history in the query, the newest first; None = what the prompt says, or 5.
        item_chars: most characters of an item; None = what the prompt says, or 200.
        batch_pairs: pairs computed together; the deadline is looked at in between.
        device: as torch names it; auto = the GPU if there is one.

    Raises:
        InputError: the folder holds no such model, or sentence-transformers is not installed.
    """

    name = "cross-encoder"

    def __init__(
        self,
        path: str | Path,
        *,
        prompt: str | Path | Prompt = "cross_encoder",
        history_items: int | None = None,
        item_chars: int | None = None,
        batch_pairs: int = 32,
        device: str = "auto",
    ) -> None:
        self.prompt = prompt if isinstance(prompt, Prompt) else Prompt.load(prompt)
        if unknown := sorted(set(self.prompt.placeholders) - {"history", "query"}):
            where = self.prompt.source or self.prompt.name
            raise InputError(f"prompt {where}: a cross-encoder fills no placeholder {unknown[0]!r}; remove it")
        self.history_items = at_least(0, "history_items", history_items, self.prompt.option("history_items", 5))
        self.item_chars = at_least(1, "item_chars", item_chars, self.prompt.option("item_chars", 200))
        self.batch_pairs = at_least(1, "batch_pairs", batch_pairs, 32)
        self.model = _loaded(Path(path), device)
        self._one_at_a_time = threading.Lock()  # tokenizers may fail where two threads use one

    def query(self, request: RerankRequest) -> str:
        """What the model reads of the user: a dry view. The newest item stands first, since the end may be cut off."""
        newest = request.history[::-1][: self.history_items]
        values = {
            "history": "; ".join(item_line(item, self.item_chars) for item in newest),
            "query": as_data(request.query or "", _QUERY_CHARS),
        }
        chat = self.prompt.render(**{name: values[name] for name in self.prompt.placeholders})
        return chat[-1].text.strip()

    async def rerank_async(
        self, requests: Sequence[RerankRequest], *, deadline: float | None = None
    ) -> list[RerankResult]:
        """As :class:`Reranker` says; a list whose candidates did not all get a number keeps its order."""
        return await asyncio.to_thread(self._rerank, list(requests), deadline)

    def _rerank(self, requests: list[RerankRequest], deadline: float | None) -> list[RerankResult]:
        # Lists of one candidate need no model.
        asked = [
            (row, place, self.query(request), item_line(item, self.item_chars))
            for row, request in enumerate(requests)
            if len(request.candidates) > 1
            for place, item in enumerate(request.candidates)
        ]
        scores: list[dict[int, float]] = [{} for _ in requests]
        usages = [Usage() for _ in requests]
        # Pairs of like length share a batch, those of one list as far as possible.
        asked.sort(key=lambda pair: (pair[0] // 64, len(pair[2]) + len(pair[3])))
        why = DEADLINE
        for low in range(0, len(asked), self.batch_pairs):
            batch = asked[low : low + self.batch_pairs]
            pairs = [(query, text) for _, _, query, text in batch]
            if not in_turn(self._one_at_a_time, deadline):
                break
            start = time.monotonic()
            try:
                values = self.model.predict(
                    pairs, batch_size=self.batch_pairs, show_progress_bar=False, activation_fn=torch.nn.Identity()
                )
                lengths = self._lengths(pairs)
            except (IndexError, RuntimeError) as error:  # torch's own: too little memory, no such token, …
                why = f"computing failed: {shown(' '.join(str(error).split()))}"
                break
            finally:
                self._one_at_a_time.release()
            seconds = (time.monotonic() - start) / len(batch)
            for (row, place, _, _), value, length in zip(batch, values.tolist(), lengths, strict=True):
                scores[row][place] = float(value)
                usages[row] += Usage(calls=1, prompt_tokens=length, seconds=seconds)
        return [_result(*one, why) for one in zip(requests, scores, usages, strict=True)]

    def _lengths(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        queries, texts = zip(*pairs, strict=True)
        encoded = self.model.tokenizer(list(queries), list(texts), truncation=True, max_length=self.model.max_length)
        return [len(ids) for ids in encoded["input_ids"]]


def _result(request: RerankRequest, score_of: dict[int, float], usage: Usage, why: str) -> RerankResult:
    """The order by the scores; the earlier one, and why, where candidates have none."""
    count = len(request.ids)
    if count < 2:
        return RerankResult(ids=request.ids, candidates=request.ids, usage=usage)
    if len(score_of) < count:
        faults = Faults(failed=count - len(score_of))
        return RerankResult.unchanged(request.ids, why, usage=usage, faults=faults)
    scores = [score_of[place] for place in range(count)]
    if not all(map(math.isfinite, scores)):
        note = "the model gave numbers that are not finite"
        return RerankResult.unchanged(request.ids, note, usage=usage, faults=Faults(malformed=1))
    ids = tuple(request.ids[place] for place in order_of_scores(scores))
    return RerankResult(ids=ids, candidates=request.ids, scores=tuple(scores), usage=usage)


def _loaded(path: Path, device: str) -> Any:
    try:
        from sentence_transformers import CrossEncoder
    except ImportError as error:
        raise InputError(f"cross-encoders need sentence-transformers ({error}); pip install 'recsys[rag]'") from None
    if not (path / "config.json").is_file():
        raise InputError(f"{path} holds no cross-encoder (no config.json); give a folder of save_pretrained")
    config = read_json(path / "config.json")
    kinds = (config.get("architectures") if isinstance(config, dict) else None) or ["nothing"]
    if not str(kinds[0]).endswith("ForSequenceClassification"):
        hint = "makes one vector per text" if (path / "modules.json").is_file() else "has no output to rank by"
        raise InputError(
            f"{path} is no cross-encoder: it holds {kinds[0]}, which {hint}; give a model for sequence classification"
        )
    if not any(path.glob("*.safetensors")):
        raise InputError(f"{path} holds no .safetensors weights; save the model with save_pretrained")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = CrossEncoder(
            str(path), device=device, local_files_only=True, trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )  # fmt: skip
    except LOADING_ERRORS as error:
        line = " ".join(str(error).split())[:300]
        raise InputError(f"{path} cannot be loaded as a cross-encoder ({line}); give another model") from None
    outputs = int(model.num_labels)
    if outputs != 1:
        raise InputError(
            f"{path} has {outputs} outputs; give a cross-encoder with one, which says how well two texts fit"
        )
    model.model.eval().requires_grad_(False)
    return model
