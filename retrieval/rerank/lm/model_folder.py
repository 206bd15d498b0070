"""Causal language models of transformers, loaded from folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from recsys.errors import InputError
from recsys.retrieval.rerank.lm.adapter import is_adapter, load_adapter
from recsys.tokenizers.text_encoder import LOADING_ERRORS

__all__ = ["load_model_folder"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def load_model_folder(path: Path, *, device: str, dtype: str) -> tuple[Any, Any]:
    """A model, ready to answer, and its tokenizer. Nothing is fetched, and no code of the folder is run.

    Args:
        path: folder as ``save_pretrained`` writes it, or one with an adapter that `recsys rerank fit` wrote.
        device: as torch names it; auto = the GPU if there is one.
        dtype: bfloat16, float16 or float32; auto = bfloat16 on a GPU that has it, else float32, whatever is stored.

    Raises:
        InputError: the folder is missing or holds no such model, or transformers is not installed.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise InputError(f"local language models need transformers ({error}); pip install 'recsys[llm]'") from None
    adapter = is_adapter(path)
    if not adapter and not (path / "config.json").is_file():
        raise InputError(f"{path} holds no language model (no config.json); give a folder of save_pretrained")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"
    if dtype not in _DTYPES:
        raise InputError(f"dtype {dtype!r} is not known; choose from auto, {', '.join(_DTYPES)}")
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        place = torch.device(device)
        tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        model: Any
        if adapter:
            model = load_adapter(path, dtype=_DTYPES[dtype])
        else:
            model = AutoModelForCausalLM.from_pretrained(
                path, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=_DTYPES[dtype]
            )
        model = model.to(place)
    except InputError:
        raise
    except LOADING_ERRORS as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"{path} cannot be loaded as a causal language model on {device}: {reason}") from None
    finally:
        if bars:
            logging.enable_progress_bar()
    if getattr(model, "_is_stateful", False):
        raise InputError(f"{path}: a {model.config.model_type} keeps no keys and values; give a transformer")
    return model.eval().requires_grad_(False), tokenizer
