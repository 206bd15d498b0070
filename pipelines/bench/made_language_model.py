"""A small untrained language model with a tokenizer and a chat template, for what does not depend on its words."""

from __future__ import annotations

from typing import Any

import torch

from recsys.errors import InputError
from recsys.retrieval.rerank.lm.local import LocalLanguageModel

__all__ = ["made_language_model"]

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def made_language_model(words: list[str], **settings: Any) -> LocalLanguageModel:
    """A Llama of 3 million weights that reads the words given, after a space or not, as one token each, other text by
    bytes.

    Args:
        words: of letters.
        settings: of :class:`LocalLanguageModel`.

    Raises:
        InputError: transformers is not installed.
    """
    try:
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    except ImportError as error:
        raise InputError(f"local language models need transformers ({error}); pip install 'recsys[llm]'") from None
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    known, merges = set(vocabulary), []
    for word in [start + word for word in dict.fromkeys(words) for start in ("", "\u0120")]:
        for end in range(2, len(word) + 1):
            if word[:end] not in known:
                known.add(word[:end])
                vocabulary.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    backend = Tokenizer(models.BPE(vocab={word: at for at, word in enumerate(vocabulary)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=special[0], bos_token=special[1], eos_token=special[2]
    )
    tokenizer.chat_template = _TEMPLATE
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return LocalLanguageModel(model, tokenizer, name="made", **settings)
