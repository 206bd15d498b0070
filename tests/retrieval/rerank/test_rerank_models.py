"""The models that tests of the language-model tier run on."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_small_model_loads_and_labels_are_single_tokens(small_lm_folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(small_lm_folder)
    for label in [*"ABCDEFGHIJKLMNOPQRST", " A", "yes", " no"]:
        assert len(tokenizer.encode(label, add_special_tokens=False)) == 1, label
    text = "a title of ünïcode <|x|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert AutoModelForCausalLM.from_pretrained(small_lm_folder).num_parameters() < 100_000


@pytest.mark.slow
def test_smollm2_answers(smollm2_folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder)
    chat = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, ids["input_ids"].shape[1] :])
