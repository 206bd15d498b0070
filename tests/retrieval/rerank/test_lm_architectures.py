"""Architectures other than Llama: batches and kept states give what the model gives alone, or the model is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from recsys.errors import InputError
from recsys.retrieval.rerank.lm import Message

pytest.importorskip("transformers", reason="needs the extra llm")

from recsys.retrieval.rerank.lm.local import LocalLanguageModel

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
KINDS: dict[str, dict[str, Any]] = {
    "qwen2": SMALL,
    "mistral": {**SMALL, "sliding_window": 16},
    "gemma2": {**SMALL, "sliding_window": 16, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512, "initializer_range": 0.3},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},
    "gpt_neox": {**{key: SMALL[key] for key in list(SMALL)[:4]}, "initializer_range": 0.3},
}
REFUSED: dict[str, dict[str, Any]] = {
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}


def save(kind: str, settings: dict[str, Any], tokenizer_of: Path, folder: Path) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **ends, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_other_architectures(kind: str, small_lm_folder: Path, tmp_path: Path) -> None:
    lm = LocalLanguageModel.load(save(kind, KINDS[kind], small_lm_folder, tmp_path / kind), device="cpu")
    shared = "what all have in common, longer than a window of attention"
    chats = [[Message("system", shared), Message("user", "x" * at)] for at in (1, 9, 40)]
    for _ in range(2):
        choices = asyncio.run(lm.choose(chats, [["A", "yes"]] * 3))
        answers = asyncio.run(lm.generate(chats, max_tokens=20))
        for chat, choice, answer in zip(chats, choices, answers, strict=True):
            ids = torch.tensor([lm.encode_chat(chat)])
            log_prob_V = lm.model(ids).logits[0, -1].log_softmax(-1)
            expected = [log_prob_V[lm.tokenizer.encode(text)[0]].item() for text in ("A", "yes")]
            assert choice.log_probs == pytest.approx(expected, abs=1e-4)
            for _ in range(20):
                token = lm.model(ids).logits[0, -1].argmax()
                if token == 2:
                    break
                ids = torch.cat([ids, token[None, None]], 1)
            new = ids[0, len(lm.encode_chat(chat)) :]
            assert answer.text == lm.tokenizer.decode(new, skip_special_tokens=True)
    assert choices[0].usage.reused_tokens > len(shared) // 2


def test_lengths_that_turn_all_positions_otherwise_are_no_context(small_lm_folder: Path, tmp_path: Path) -> None:
    rotary = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 3.0, 9.0, 20.0]}
    settings = {key: value for key, value in SMALL.items() if key != "head_dim"}
    settings |= {"rope_parameters": {**rotary, "rope_theta": 1e4}, "original_max_position_embeddings": 64}
    lm = LocalLanguageModel.load(save("phi3", settings, small_lm_folder, tmp_path / "phi3"), device="cpu")
    assert lm.context_tokens == 64
    chats = [[Message("user", "x" * at)] for at in (1, 30, 90)]
    for _ in range(2):
        short, middle, long = asyncio.run(lm.choose(chats, [["A", "yes"]] * 3))
        assert long.error is not None and "takes 63" in long.error
        for chat, choice in zip(chats, (short, middle), strict=False):
            log_prob_V = lm.model(torch.tensor([lm.encode_chat(chat)])).logits[0, -1].log_softmax(-1)
            expected = [log_prob_V[lm.tokenizer.encode(text)[0]].item() for text in ("A", "yes")]
            assert choice.log_probs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_reused_is_refused(kind: str, small_lm_folder: Path, tmp_path: Path) -> None:
    folder = save(kind, REFUSED[kind], small_lm_folder, tmp_path / kind)
    with pytest.raises(InputError, match=rf"a {kind} (keeps no|cannot go on|answers otherwise).*give"):
        LocalLanguageModel.load(folder, device="cpu")
