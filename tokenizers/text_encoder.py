"""Item text as vectors of a sentence-transformers model, read from a folder and never from a network.

Suffixes: N = texts, K = dimensions.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LOADING_ERRORS", "TextEncoder", "check_encoder", "copy_encoder", "encoder_name", "offline_loading"]

_KEPT = (".json", ".txt", ".safetensors", ".model", ".vocab", ".tiktoken")
"""Configuration, vocabularies and weights: files that run no code when they are read."""
_LEFT_OUT = ("onnx", "openvino")
"""Sub-folders with the same weights for other engines."""
LOADING_ERRORS = (Exception,)
"""What libraries raise over a folder that is no model of theirs: anything. Those of safetensors (weights cut off) and
huggingface_hub (a field of another type) share no other class."""
_TEXTS_AT_ONCE = 512
_BATCH = 64

Floats = NDArray[np.float32]


def encoder_name(folder: Path) -> str:
    """A short name from that of the folder, or of the one above where it is just called ``model``.

    >>> encoder_name(Path("/models/all-MiniLM-L6-v2")), encoder_name(Path("/models/gte-small/model/"))
    ('all_minilm_l6_v2', 'gte_small')
    """
    folder = folder.absolute()
    name = folder.parent.name if folder.name.lower() == "model" and folder.parent.name else folder.name
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "encoder"


def copy_encoder(source: Path, target: Path) -> None:
    """Copy what loading a sentence-transformers model needs, and nothing that could run code.

    Args:
        source: folder of the model.
        target: folder that appears.

    Raises:
        ValueError: one line saying why ``source`` cannot be used.
    """
    check_encoder(source)
    files = [file for file in sorted(source.rglob("*")) if file.is_file() and not _skipped(file.relative_to(source))]
    kept = [file for file in files if file.suffix in _KEPT]
    if not any(file.suffix == ".safetensors" for file in kept):
        raise ValueError(f"{source} holds no .safetensors weights; give the folder of a sentence-transformers model")
    for file in kept:
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def check_encoder(folder: Path) -> None:
    """Whether a folder holds a sentence-transformers model whose loading runs no code of its own.

    Raises:
        ValueError: one line saying why it cannot be used.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give the folder of a sentence-transformers model")
    _check_modules(folder)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not _skipped(file.relative_to(folder))]
    for part in {file.parent for file in files}:
        if not any(part.glob("*.safetensors")):
            for pickled in sorted(part.glob("pytorch_model*.bin")):
                raise ValueError(
                    f"{pickled} holds weights as a pickle, which can run code when it is read; save the model as "
                    "safetensors (sentence-transformers does by default) and give that folder"
                )


def _skipped(path: Path) -> bool:
    return any(part.startswith(".") or part in _LEFT_OUT for part in path.parts)


def _check_modules(folder: Path) -> None:
    """Only the library's own modules: it would import, and run, any other that the folder names."""
    if not (folder / "modules.json").is_file():
        raise ValueError(f"{folder} holds no modules.json; give the folder of a sentence-transformers model")
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        kinds = [str(module["type"]) for module in modules]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / 'modules.json'} cannot be read; copy the model again") from None
    for kind in kinds:
        if not kind.startswith("sentence_transformers."):
            raise ValueError(
                f"{folder / 'modules.json'} asks for the class {kind}, code from outside sentence-transformers; "
                "give a model made of its own modules"
            )


class TextEncoder:
    """A loaded sentence-transformers model; see :meth:`load`."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.dim = int(np.asarray(model.encode(["a"], show_progress_bar=False)).shape[1])
        """Dimensions K."""

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> TextEncoder:
        """Load a model that :func:`copy_encoder` would accept. Nothing is looked up in a network.

        Raises:
            ValueError: sentence-transformers is missing, or the folder holds no model that it can read, or one that
                could run code when it is read.
        """
        check_encoder(folder)
        with offline_loading():
            try:
                from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found, unused-ignore]
            except ImportError:
                raise ValueError(
                    f"the text encoder {folder.name} needs sentence-transformers; pip install 'recsys[text]'"
                ) from None
            try:
                # Half-precision checkpoints too are computed in single precision: the same numbers everywhere.
                model = SentenceTransformer(str(folder), device=device, local_files_only=True).float().eval()
            except LOADING_ERRORS as error:
                line = " ".join(str(error).split())[:300]
                raise ValueError(
                    f"the text encoder {folder.name} cannot be loaded by sentence-transformers ({line}); give another"
                ) from error
        return cls(model)

    def encode(self, texts: Sequence[str | None], *, progress: Callable[[int], None] | None = None) -> Floats:
        """[N, K] vectors as the model gives them; a zero row for a text that is None or blank.

        Args:
            texts: one per item.
            progress: called with the number of texts just done.
        """
        given = [place for place, text in enumerate(texts) if text and text.strip()]
        # Long ones first: texts of a batch are alike in length, and a batch that does not fit fails at once.
        given.sort(key=lambda place: -len(texts[place] or ""))
        whole_NK = np.zeros((len(texts), self.dim), dtype=np.float32)
        for low in range(0, len(given), _TEXTS_AT_ONCE):
            places = given[low : low + _TEXTS_AT_ONCE]
            made = self._model.encode([texts[place] for place in places], batch_size=_BATCH, show_progress_bar=False)
            whole_NK[places] = made
            if progress is not None:
                progress(len(places))
        return whole_NK


@contextmanager
def offline_loading() -> Iterator[None]:
    """No look-ups in the Hugging Face hub and no bars of its loaders; afterwards all is as it was."""
    # huggingface_hub reads the variable once, when it is imported, which may have been long before: both are set.
    try:
        from huggingface_hub import constants
        from transformers.utils import logging as loaders
    except ImportError:  # the package that needs them is missing too, which `load` says
        yield
        return
    variable, constant, bars = (
        os.environ.get("HF_HUB_OFFLINE"),
        constants.HF_HUB_OFFLINE,
        loaders.is_progress_bar_enabled(),
    )
    remarks = logging.getLogger("sentence_transformers")
    level = remarks.level
    os.environ["HF_HUB_OFFLINE"], constants.HF_HUB_OFFLINE = "1", True
    loaders.disable_progress_bar()
    remarks.setLevel(logging.ERROR)
    try:
        yield
    finally:
        remarks.setLevel(level)
        if bars:
            loaders.enable_progress_bar()
        constants.HF_HUB_OFFLINE = constant
        if variable is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = variable
