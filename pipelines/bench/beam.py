"""Beam search over the code trie, against Hugging Face ``generate`` and against the same beam without a constraint.

Every way answers the same requests with the same weights, from raw histories to the best semantic IDs; they take turns.
The other way is ``generate`` of transformers with a cache, ``prefix_allowed_tokens_fn`` and a dictionary of prefixes
(:mod:`recsys.pipelines.bench.beam_generate`), whose beams hold copies of the history's keys and values as in
transformers' own encoder-decoder models; ``shared_ms`` is kinder: all beams read one copy there too. ``generate`` ends
with semantic IDs, ours with items. Before it is timed, a case checks that both give the same semantic IDs with the same
log-probabilities. The catalogue is that of the trie alone: the item table of the model is small and makes histories.

Suffixes: B = requests, W = beams, K = codes of a level, L = levels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from recsys.index.code_trie import CodeTrie
from recsys.pipelines.bench.beam_levels import TimedDecoding, found_codes, verify
from recsys.pipelines.bench.beam_requests import CODES, LEVELS, Requests, generative_model, made_codes
from recsys.pipelines.bench.case import Case, interleaved_seconds
from recsys.retrieval.beam_config import BeamConfig
from recsys.retrieval.beam_search import BeamHits, beam_search

__all__ = ["Setting", "against_generate", "bench_beam", "by_mass", "drafting", "growth", "unconstrained"]

_EVENTS, _BEAMS, _HITS = 200, 50, 10
_SMALL, _MIDDLE, _LARGE = 12_000, 1_000_000, 10_000_000
_MASSES = (0.9, 0.99)
_CLOSE = 1e-4
"""Log-probabilities of two ways may be so far apart, in nats."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What the ways have in common."""

    requests: Requests
    config: BeamConfig
    k: int

    def ours(self, trie: CodeTrie, config: BeamConfig | None = None) -> BeamHits:
        """From histories to items."""
        _, decoding = self.requests.encoded()
        return beam_search(trie, decoding, self.requests.num_requests, self.k, config or self.config)

    def free(self) -> Tensor:
        """The same without a trie: scores of the best tuples of codes, whether or not they are any item's."""
        _, decoding = self.requests.encoded()
        return unconstrained(decoding.logits, self.requests, self.config)


def bench_beam(*, long: bool) -> list[Case]:
    """Sizes, kinds of codes and batches, 1M items at 16 requests first; then growth, width by mass, and drafting."""
    model = generative_model(window=256)
    config = BeamConfig(widths=(_BEAMS,))
    one, many = (Setting(Requests.of(model, batch, _EVENTS), config, _HITS) for batch in (1, 16))
    repeats = 3 if long else 1
    cases = []
    for zipf in (True, False):
        kind = "Zipf-like" if zipf else "uniform"
        tries = {
            size: CodeTrie.build(made_codes(size, zipf=zipf), (CODES,) * LEVELS)
            for size in (_MIDDLE, _SMALL, *([_LARGE] if long else []))
        }
        for size, trie in tries.items():
            for setting in (many, one):
                cases.append(against_generate(f"{size:,} items, {kind} codes", setting, trie, repeats=repeats))
        for size in tries:
            if size > _SMALL:
                name = f"{size:,} items beside {_SMALL:,}, {kind} codes"
                cases += [growth(name, setting, tries[_SMALL], tries[size], repeats=repeats) for setting in (many, one)]
        if zipf:
            cases += [by_mass(many, tries[_MIDDLE], mass, repeats=repeats) for mass in _MASSES]
            cases += [drafting(setting, tries[_MIDDLE], repeats=repeats) for setting in (many, one)]
    return cases


def _at_once(setting: Setting) -> str:
    number = setting.requests.num_requests
    return f"{number} requests at once" if number > 1 else "1 request"


@torch.inference_mode()
def against_generate(name: str, setting: Setting, trie: CodeTrie, *, repeats: int) -> Case:
    ways: dict[str, Callable[[], object]] = {"ours": partial(setting.ours, trie), "unconstrained": setting.free}
    if find_spec("transformers") is not None:
        ways |= _generate_ways(setting, trie)
    number = setting.requests.num_requests
    seconds = interleaved_seconds(ways, repeats=repeats * (5 if number > 1 else 21))
    ms = {way: 1e3 * value / number for way, value in seconds.items()}
    has_generate = "generate" in ms
    other: dict[str, Any] = (
        {
            "what": "generate of Hugging Face, prefix_allowed_tokens_fn",
            "ms": ms["generate"],
            "shared_ms": ms["generate_shared"],
            "shared_ratio": ms["generate_shared"] / ms["ours"],
        }
        if has_generate
        else {"what": "without the constraint; transformers is not installed", "ms": ms["unconstrained"]}
    )
    return Case(
        name=f"{name}, {_at_once(setting)}",
        shape=_shape(setting, trie),
        ours={
            "what": "beam over the code trie",
            "ms": ms["ours"],
            "unconstrained_ms": ms["unconstrained"],
            "times_unconstrained": ms["ours"] / ms["unconstrained"],
        },
        other=other,
        ratio=other["ms"] / ms["ours"],
        predicted_ratio=None,
    )


def _generate_ways(setting: Setting, trie: CodeTrie) -> dict[str, Callable[[], object]]:
    """``generate``, with the history copied for every beam and shared; checked against ours."""
    from recsys.pipelines.bench.beam_generate import DictTrie, Generator

    requests, decoder = setting.requests, setting.requests.model.code_decoder
    assert decoder is not None
    generator, table = Generator(decoder).eval(), DictTrie(trie)

    def found(copied: bool) -> tuple[Tensor, Tensor]:
        return generator.search(*requests.queried(), table, setting.config.widths[0], copied=copied)

    code_IL = trie.codes()
    hits = setting.ours(trie)
    for copied in (True, False):
        _check_alike(code_IL, hits, *found(copied))
    return {"generate": partial(found, True), "generate_shared": partial(found, False)}


def _check_alike(code_IL: Tensor, hits: BeamHits, code_BWL: Tensor, score_BW: Tensor) -> None:
    """Raise unless every item found has the codes and the score of a beam of ``generate``, none better left out."""
    for id_K, mine_K, code_WL, score_W in zip(hits.ids_QK, hits.scores_QK, code_BWL, score_BW, strict=True):
        other = {tuple(code): score for code, score in zip(code_WL.tolist(), score_W.tolist(), strict=True)}
        mine = {
            tuple(code_IL[item].tolist()): score
            for item, score in zip(id_K.tolist(), mine_K.tolist(), strict=True)
            if item >= 0
        }
        apart = max(abs(other.get(code, torch.inf) - score) for code, score in mine.items())
        missed = max((score for code, score in other.items() if code not in mine), default=-torch.inf)
        if not apart <= _CLOSE or missed > min(mine.values()) + _CLOSE:
            raise RuntimeError(f"log-probabilities of the two ways are {apart} apart: they do not do the same work")


@torch.inference_mode()
def growth(name: str, setting: Setting, small: CodeTrie, large: CodeTrie, *, repeats: int) -> Case:
    seconds = interleaved_seconds(
        {"small": partial(setting.ours, small), "large": partial(setting.ours, large)}, repeats=21 * repeats
    )
    ms = {way: 1e3 * value / setting.requests.num_requests for way, value in seconds.items()}
    return Case(
        name=f"{name}, {_at_once(setting)}",
        shape=_shape(setting, large),
        ours={"what": f"{large.num_items:,} items", "ms": ms["large"]},
        other={"what": f"{small.num_items:,} items", "ms": ms["small"], "times_as_long": ms["large"] / ms["small"]},
        ratio=ms["small"] / ms["large"],
        predicted_ratio=None,
    )


@torch.inference_mode()
def by_mass(setting: Setting, trie: CodeTrie, mass: float, *, repeats: int) -> Case:
    cut = replace(setting.config, mass=mass)
    whole, part = setting.ours(trie).ids_QK, setting.ours(trie, cut).ids_QK
    is_found_BK = whole >= 0
    is_kept_BK = is_found_BK & (whole[:, :, None] == part[:, None]).any(2)
    kept = int(is_kept_BK.sum()) / int(is_found_BK.sum())
    seconds = interleaved_seconds(
        {"part": partial(setting.ours, trie, cut), "whole": partial(setting.ours, trie)}, repeats=21 * repeats
    )
    ms = {way: 1e3 * value / setting.requests.num_requests for way, value in seconds.items()}
    return Case(
        name=f"width by {mass:.0%} of the probability",
        shape=_shape(setting, trie) | {"mass": mass, "least": cut.least},
        ours={"what": "beams that hold the share", "ms": ms["part"], f"share_of_top_{setting.k}": kept},
        other={"what": "full width", "ms": ms["whole"]},
        ratio=ms["whole"] / ms["part"],
        predicted_ratio=None,
    )


@torch.inference_mode()
def drafting(setting: Setting, trie: CodeTrie, *, repeats: int) -> Case:
    """The levels one by one beside one pass over what they find; histories are encoded before."""
    requests, number = setting.requests, setting.requests.num_requests
    decoder = requests.model.code_decoder
    assert decoder is not None
    states, query_BD = requests.queried()
    surface_B = torch.zeros_like(requests.at_B)
    rounds: list[list[float]] = []

    def search(k: int) -> BeamHits:
        timed = TimedDecoding(requests.model.decode(states, requests.at_B, surface_B))
        start = time.perf_counter()
        hits = beam_search(trie, timed, number, k, setting.config)
        rounds.append([*timed.seconds, time.perf_counter() - start - sum(timed.seconds)])
        return hits

    code_BWL = found_codes(trie, search(setting.config.widths[0]))
    rounds.clear()
    seconds = interleaved_seconds(
        {
            "levels": partial(search, setting.k),
            "encoding": requests.encoded,
            "pass": partial(verify, decoder, states, query_BD, code_BWL),
        },
        repeats=21 * repeats,
    )
    ms = {way: 1e3 * value / number for way, value in seconds.items()}
    *level_ms, search_ms = (1e3 * statistics.median(part) / number for part in zip(*rounds, strict=True))
    return Case(
        name=f"drafting at best, {_at_once(setting)}",
        shape=_shape(setting, trie),
        ours={
            "what": "level by level, histories encoded",
            "ms": ms["levels"],
            **{f"level_{place}_ms": value for place, value in enumerate(level_ms, 1)},
            "search_ms": search_ms,
            "encoding_ms": ms["encoding"],
        },
        other={"what": "one pass of the decoder over the codes found, no guess, no search", "ms": ms["pass"]},
        ratio=ms["pass"] / ms["levels"],
        predicted_ratio=None,
    )


def _shape(setting: Setting, trie: CodeTrie) -> dict[str, Any]:
    return {
        "items": trie.num_items,
        "levels": trie.num_levels,
        "codes": trie.sizes[0],
        "beams": setting.config.widths[0],
        "k": setting.k,
        "events": len(setting.requests.histories[0]),
        "requests_at_once": setting.requests.num_requests,
        "dim": setting.requests.model.config.dim,
        "blocks": setting.requests.model.config.num_blocks,
        "code_blocks": setting.requests.model.config.code_blocks,
        "threads": torch.get_num_threads(),
    }


def unconstrained(
    logits: Callable[[Tensor | None, Tensor | None], Tensor], requests: Requests, config: BeamConfig
) -> Tensor:
    """[B, W] scores, best first, of a plain beam search over all tuples of codes."""
    parent_BW: Tensor | None = None
    code_BW: Tensor | None = None
    score_BW = torch.zeros(requests.num_requests, 1)
    for level in range(len(requests.model.config.code_sizes)):
        logp_BWK = logits(parent_BW, code_BW).log_softmax(-1)
        total_BX = (score_BW[..., None] + logp_BWK).flatten(1)
        score_BW, place_BW = total_BX.topk(min(config.width(level), total_BX.shape[1]), dim=1)
        parent_BW = torch.div(place_BW, logp_BWK.shape[2], rounding_mode="floor")
        code_BW = place_BW - parent_BW * logp_BWK.shape[2]
    return score_BW
