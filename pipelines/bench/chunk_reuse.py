"""Prompts whose chunks recur in other orders: kept keys and values with some tokens computed again, against prefix
caching and against computing everything.

With a language model and the item texts of a prepared data set, the answers are compared as well; the model made here
is untrained, its attention means nothing, and only tokens and time are counted.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from recsys.errors import InputError
from recsys.pipelines.bench.case import Case
from recsys.retrieval.rag.chunk_forward import weights_hash
from recsys.retrieval.rag.chunk_reuse import ChunkReuse
from recsys.retrieval.rag.chunk_store import ChunkStore

__all__ = ["Figures", "Prompt", "bench_chunk_reuse", "compare", "item_prompts", "made_prompts"]

_ALPHAS = (0.0, 0.3, 0.6, 1.0, 1.5)
_PREFIX_CACHING = math.inf
_ANSWER = 16
"""Tokens of an answer."""
_BYTES = 4 << 30
_SYSTEM = "You are a helpful assistant of a toy shop. Answer from the products listed, in a few words."
_CHUNKS, _POOL = 6, 24
"""Chunks of a prompt, and chunks that there are."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens of its parts."""

    prefix: Sequence[int]
    chunks: Sequence[Sequence[int]]
    question: Sequence[int]

    @property
    def tokens(self) -> list[int]:
        return [*self.prefix, *(token for chunk in self.chunks for token in chunk), *self.question]


@dataclass(slots=True)
class Figures:
    """Of one way, one entry a prompt."""

    computed: list[int] = field(default_factory=list)
    recomputed: list[int] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    """Until the first token is known."""
    first_equal: list[bool] = field(default_factory=list)
    """The likeliest first token is that of computing everything."""
    all_equal: list[bool] = field(default_factory=list)
    """So are all tokens of the answer, decoded greedily."""
    token_equal: list[float] = field(default_factory=list)
    """Share of the answer's tokens that are the likeliest ones behind those before them."""
    kl_nats: list[float] = field(default_factory=list)
    """Of the first token's distribution, from that of computing everything."""

    def summary(self, what: str, *, answers: bool) -> dict[str, Any]:
        out: dict[str, Any] = {"what": what, "tokens": sum(self.computed), "ms": _mean(self.ms)}
        if self.recomputed:
            out["tokens_again"] = sum(self.recomputed)
        if answers and self.kl_nats:
            out["first_token_equal"] = _mean(self.first_equal)
            out["answer_equal"] = _mean(self.all_equal)
            out["tokens_equal"] = _mean(self.token_equal)
            out["kl_nats"] = _mean(self.kl_nats)
        return out


def bench_chunk_reuse(*, long: bool, lm: Path | None = None, data: Path | None = None) -> list[Case]:
    """One case for each alpha against prefix caching, the default alpha first, then it against computing everything."""
    if (lm is None) != (data is None):
        raise InputError("give --lm and --data together: a model's answers are compared on the texts of items")
    if lm is not None and data is not None:
        model, tokenizer = _load(lm)
        prompts = item_prompts(tokenizer, _texts(data), num_prompts=100 if long else 24)
    else:
        model, prompts = _made_model(), made_prompts(num_prompts=100 if long else 20)
    figures = compare(model, prompts, _ALPHAS)
    default = ChunkReuse(model, max_bytes=0).alpha
    order = sorted(_ALPHAS, key=lambda alpha: (alpha != default, alpha))
    shape = {
        "prompts": len(prompts),
        "prompt_tokens": sum(len(prompt.tokens) for prompt in prompts),
        "chunks": len(prompts[0].chunks),
        "tokens_of_equal_beginnings": equal_beginnings(prompts),
    }
    cases = [_case(alpha, figures, "prefix caching", _PREFIX_CACHING, shape, answers=lm is not None) for alpha in order]
    return [*cases, _case(order[0], figures, "everything computed", None, shape, answers=lm is not None)]


def _case(
    alpha: float,
    figures: dict[float | None, Figures],
    what: str,
    other: float | None,
    shape: dict[str, Any],
    *,
    answers: bool,
) -> Case:
    ours, theirs = figures[alpha], figures[other]
    return Case(
        name=f"alpha {alpha:g} against {what}",
        shape=shape,
        ours=ours.summary(f"chunks reused, alpha {alpha:g}", answers=answers),
        other=theirs.summary(what, answers=answers),
        ratio=sum(theirs.ms) / sum(ours.ms),
        predicted_ratio=sum(theirs.computed) / sum(ours.computed),
    )


@torch.no_grad()
def compare(model: Any, prompts: Sequence[Prompt], alphas: Sequence[float]) -> dict[float | None, Figures]:
    """Every prompt read in every way, one way after the other, each with a store of its own, empty at first.

    Returns:
        figures by alpha; infinity is prefix caching, None the model's own forward pass over everything.
    """
    model_hash = weights_hash(model)
    ways = {
        alpha: ChunkReuse(model, ChunkStore(model_hash, max_bytes=_BYTES), alpha=alpha)
        for alpha in (*alphas, _PREFIX_CACHING)
    }
    ways[_PREFIX_CACHING].store.max_variants = None
    figures: dict[float | None, Figures] = {alpha: Figures() for alpha in (None, *ways)}
    for reuse in ways.values():
        reuse.read(prompts[0].prefix, prompts[0].chunks, prompts[0].question)
        reuse.store.clear()
    _whole(model, prompts[0])
    for prompt in prompts:
        began = time.perf_counter()
        truth_W, kept = _whole(model, prompt)
        figures[None].ms.append((time.perf_counter() - began) * 1e3)
        figures[None].computed.append(len(prompt.tokens))
        answer = _decoded(model, truth_W, kept)
        for alpha, reuse in ways.items():
            began = time.perf_counter()
            state = reuse.read(prompt.prefix, prompt.chunks, prompt.question, room=_ANSWER)
            _ready(state.logits_W)
            found = figures[alpha]
            found.ms.append((time.perf_counter() - began) * 1e3)
            found.computed.append(state.counts.computed)
            found.recomputed.append(state.counts.recomputed)
            logits_NW = reuse.follow(state, answer[:-1])
            # Greedy decoding goes another way exactly where a token behind those before it is another one.
            equal_N = logits_NW.argmax(1).cpu() == torch.tensor(answer)
            found.first_equal.append(bool(equal_N[0]))
            found.all_equal.append(bool(equal_N.all()))
            found.token_equal.append(float(equal_N.float().mean()))
            logp_W, true_logp_W = state.logits_W.log_softmax(0), truth_W.log_softmax(0)
            found.kl_nats.append(max(0.0, float((true_logp_W.exp() * (true_logp_W - logp_W)).sum())))
    return figures


def equal_beginnings(prompts: Sequence[Prompt]) -> int:
    """Tokens that a prefix cache without limits, token by token, computes."""
    tokens = [prompt.tokens for prompt in prompts]
    shared = [
        max((len(os.path.commonprefix([one, other])) for other in tokens[:at]), default=0)
        for at, one in enumerate(tokens)
    ]
    return sum(len(one) - min(both, len(one) - 1) for one, both in zip(tokens, shared, strict=True))


def made_prompts(num_prompts: int) -> list[Prompt]:
    """Chunks of random tokens, by Zipf's law, in random order."""
    draw = random.Random(0)
    pool = [[draw.randrange(3, 2000) for _ in range(draw.randrange(60, 140))] for _ in range(_POOL)]
    prefix = [draw.randrange(3, 2000) for _ in range(40)]
    return [
        Prompt(prefix, [pool[at] for at in _some(draw)], [draw.randrange(3, 2000) for _ in range(20)])
        for _ in range(num_prompts)
    ]


def item_prompts(tokenizer: Any, texts: Sequence[tuple[str, str]], num_prompts: int) -> list[Prompt]:
    """Chunks of item texts, by Zipf's law, in random order; the question is about one of them.

    Args:
        tokenizer: with a chat template.
        texts: title and text of each item.
    """
    draw = random.Random(0)
    picked = draw.sample(list(texts), _POOL)
    mark = "@@@@"
    roles = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": mark}]
    head, tail = tokenizer.apply_chat_template(roles, tokenize=False, add_generation_prompt=True).split(mark)
    prefix = tokenizer(f"{head}Products:\n", add_special_tokens=False)["input_ids"]

    def encoded(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    pool = [encoded(f"- {text}\n") for _, text in picked]
    end = tokenizer(tail, add_special_tokens=False)["input_ids"]
    prompts = []
    for _ in range(num_prompts):
        some = _some(draw)
        title = picked[draw.choice(some)][0]
        question = encoded(f"\nWhich category is {title} in?")
        prompts.append(Prompt(prefix, [pool[at] for at in some], [*question, *end]))
    return prompts


def _some(draw: random.Random) -> list[int]:
    """Distinct chunks, the n-th of the pool drawn in proportion to 1 / n."""
    left = list(range(_POOL))
    some = []
    for _ in range(_CHUNKS):
        some.append(draw.choices(left, [1 / (at + 1) for at in left])[0])
        left.remove(some[-1])
    draw.shuffle(some)
    return some


def _texts(data: Path) -> list[tuple[str, str]]:
    file = data / "items.parquet"
    if not file.is_file():
        raise InputError(f"there is no {file}; give the folder of a prepared data set with item texts")
    items = pl.read_parquet(file)
    if not {"title", "text"} <= set(items.columns):
        raise InputError(f"{file} has no columns title and text; give a data set with item texts")
    rows = items.select("title", "text").drop_nulls().filter(pl.col("text").str.len_chars().is_between(60, 400)).rows()
    if len(rows) < _POOL:
        raise InputError(f"{file} holds {len(rows)} items with a text, the benchmark needs {_POOL}")
    return rows


def _load(folder: Path) -> tuple[Any, Any]:
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise InputError(f"the benchmark needs transformers ({error}); pip install 'recsys[llm]'") from error
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no language model; give a folder with config.json, weights and tokenizer")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    return model.to(device).eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _made_model() -> Any:
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise InputError(f"the benchmark needs transformers ({error}); pip install 'recsys[llm]'") from error
    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(config)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _whole(model: Any, prompt: Prompt) -> tuple[Tensor, Any]:
    """Logits of the next token, and keys and values, of the model's own forward pass."""
    out = model(input_ids=torch.tensor([prompt.tokens], device=model.device), use_cache=True, logits_to_keep=1)
    logits_W = out.logits[0, -1].float()
    _ready(logits_W)
    return logits_W, out.past_key_values


def _decoded(model: Any, logits_W: Tensor, kept: Any) -> list[int]:
    tokens = [int(logits_W.argmax())]
    while len(tokens) < _ANSWER:
        out = model(input_ids=torch.tensor([tokens[-1:]], device=model.device), past_key_values=kept, use_cache=True)
        kept = out.past_key_values
        tokens.append(int(out.logits[0, -1].argmax()))
    return tokens


def _ready(logits_W: Tensor) -> None:
    if logits_W.is_cuda:
        torch.cuda.synchronize()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
