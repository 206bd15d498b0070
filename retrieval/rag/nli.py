"""Does a claim follow from a text? Judged by a sequence classifier of transformers, read from a folder."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from recsys.errors import InputError
from recsys.tokenizers.text_encoder import LOADING_ERRORS, offline_loading

__all__ = ["EntailmentModel"]

_BATCH = 16
_MOST_TOKENS = 512


class EntailmentModel:
    """A loaded model; call it with (premise, claim) pairs. Any thread may."""

    def __init__(self, model: Any, tokenizer: Any, label: int) -> None:
        self._model, self._tokenizer, self._label = model, tokenizer, label
        self._lock = threading.Lock()
        self._most = min(_MOST_TOKENS, int(tokenizer.model_max_length))

    @classmethod
    def load(cls, folder: Path | str, *, device: str = "cpu") -> EntailmentModel:
        """Read a model with safetensors weights; nothing is looked up in a network and no code of the folder runs.

        Raises:
            InputError: transformers is missing, the folder holds no classifier, or none of its labels is entailment.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} holds no config.json; give the folder of a transformers classifier")
        with offline_loading():
            try:
                from transformers import AutoModelForSequenceClassification, AutoTokenizer
            except ImportError:
                raise InputError("an entailment model needs transformers; pip install 'recsys[llm]'") from None
            try:
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
                model = AutoModelForSequenceClassification.from_pretrained(
                    folder, local_files_only=True, use_safetensors=True
                )
            except LOADING_ERRORS as error:
                line = " ".join(str(error).split())[:300]
                raise InputError(f"{folder} cannot be loaded as a classifier ({line}); give another") from error
        return cls(model.float().to(device).eval(), tokenizer, _entailment(folder, model.config.id2label))

    @torch.inference_mode()
    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Probability of entailment of each pair; premises are cut where a pair is longer than the model reads."""
        chances: list[float] = []
        for low in range(0, len(pairs), _BATCH):
            part = pairs[low : low + _BATCH]
            with self._lock:  # tokenizers may fail where two threads use one
                fed = self._tokenizer(
                    [premise for premise, _ in part],
                    [claim for _, claim in part],
                    # A claim longer than the model's whole window leaves nothing of the premise: both are cut then.
                    truncation="longest_first",
                    max_length=self._most,
                    padding=True,
                    return_tensors="pt",
                ).to(self._model.device)
            chances += self._model(**fed).logits.float().softmax(-1)[:, self._label].tolist()
        return chances


def _entailment(folder: Path, labels: Mapping[int, str]) -> int:
    named = {number: name.lower().replace("-", "_") for number, name in labels.items()}
    found = [
        number for number, name in named.items() if "entail" in name and not name.startswith(("not", "non", "no_"))
    ]
    if len(found) != 1:
        raise InputError(
            f"{folder} has the labels {', '.join(labels.values())} and not one called entailment; name them in "
            "id2label of its config.json"
        )
    return int(found[0])
