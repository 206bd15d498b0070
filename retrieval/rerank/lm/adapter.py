"""Language models that were trained here: whole ones, and adapters beside the model that they change."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch

from recsys.errors import InputError, shown
from recsys.files import read_json
from recsys.tokenizers.text_encoder import LOADING_ERRORS

__all__ = ["TRAINED", "fingerprint", "is_adapter", "load_adapter"]

TRAINED = "rerank.json"
"""What `recsys rerank fit` says of the model beside it."""
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_READ = 1 << 20


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter instead of a whole model."""
    return (folder / _CONFIG).is_file()


def fingerprint(folder: Path) -> str:
    """Tells models apart without reading all of their weights: a hash of the configuration, and of the size and the
    first MiB of every file of weights."""
    digest = hashlib.sha256()
    for file in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        with file.open("rb") as stream:
            digest.update(f"{file.name} {file.stat().st_size}\n".encode() + stream.read(_READ))
    return digest.hexdigest()


def load_adapter(folder: Path | str, *, base: Path | str | None = None, dtype: torch.dtype | None = None) -> Any:
    """The model that an adapter was trained on, with the adapter merged into its weights.

    Args:
        folder: what `recsys rerank fit` wrote. base: folder of the model beneath; None = where it was in training.
        dtype: of the weights; None = as they are stored.

    Returns:
        A causal language model of transformers, in eval mode. Nothing is fetched, no code of a folder is run.

    Raises:
        InputError: a part is missing, of another kind, or of another model; or an optional package is.
    """
    folder = Path(folder)
    try:
        from peft import LoraConfig, PeftModel
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise InputError(f"adapters need transformers and peft ({error}); pip install 'recsys[llm]'") from None
    for name in (_CONFIG, _WEIGHTS, TRAINED):
        if not (folder / name).is_file():  # without the safetensors file, peft would look for a pickle
            raise InputError(f"{folder} holds no {name}; write it again with `recsys rerank fit`")
    about, config = read_json(folder / TRAINED), read_json(folder / _CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise InputError(f"{folder / _CONFIG} describes an adapter of kind {shown(kind)}; only LORA is read")
    if not isinstance(about, dict) or not isinstance(about.get("base_model"), str):
        raise InputError(f"{folder / TRAINED} does not name the model beneath; write it again with `recsys rerank fit`")
    beneath = Path(about["base_model"] if base is None else base)
    if not (beneath / "config.json").is_file():
        raise InputError(f"the adapter of {folder} belongs to the model in {beneath}, which is not there; put it back")
    if fingerprint(beneath) != about.get("base_fingerprint"):
        raise InputError(f"{beneath} is not the model that the adapter of {folder} was trained on; give that one")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            beneath, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=dtype or "auto"
        )
        stated = LoraConfig.from_pretrained(str(folder))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is deprecated", category=FutureWarning)
            merged = PeftModel.from_pretrained(model, str(folder), config=stated).merge_and_unload()
    except LOADING_ERRORS as error:
        raise InputError(f"the adapter of {folder} cannot be read: {' '.join(str(error).split())[:300]}") from None
    return merged.eval()
