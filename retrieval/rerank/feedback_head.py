"""The folder of a trained head of embedding feedback.

::

    feedback.json            what it reads, the bundle it belongs to, its weight and how that was chosen
    feedback.safetensors     its weights, and the item vectors of a text encoder where it reads some

Suffixes: I = items, V = width of text vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys.errors import InputError
from recsys.files import atomic_folder, read_json, write_json
from recsys.list_head import ListHead

__all__ = ["FeedbackHead"]

_MARKER, _WEIGHTS = "feedback.json", "feedback.safetensors"
_FORMAT = "recsys-feedback-head"
_VERSION = 1
_REMEDY = "fit the reranker again"


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackHead:
    """A trained head. It belongs to the bundle whose model it was fitted with."""

    head: ListHead
    """With weight 0 the order stays as it was."""
    model_hash: str
    text_IV: Tensor | None = None
    """Vectors of the item texts, where a text encoder was given."""
    report: dict[str, Any] = field(default_factory=dict)
    """How it was fitted and what it did on validation."""

    def save(self, folder: Path) -> None:
        """Write the folder; it appears at once."""
        tensors = self.head.tensors()
        if self.text_IV is not None:
            tensors["text"] = self.text_IV.half()
        with atomic_folder(folder, marker=_MARKER) as temporary:
            kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(kept, temporary / _WEIGHTS)
            content = {
                "format": _FORMAT, "version": _VERSION, "names": list(self.head.names), "weight": self.head.weight,
                "model_hash": self.model_hash, "report": self.report,
            }  # fmt: skip
            write_json(temporary / _MARKER, content)

    @classmethod
    def load(cls, folder: Path | str) -> FeedbackHead:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the folder is missing, broken, or none of these.
        """
        folder = Path(folder)
        if not (folder / _MARKER).is_file():
            raise InputError(f"{folder} holds no feedback head (no {_MARKER}); give what `recsys rerank fit` wrote")
        content = read_json(folder / _MARKER)
        try:
            if content["format"] != _FORMAT or content["version"] != _VERSION:
                raise ValueError(f"{content['format']!r} version {content['version']!r}")
            tensors = load_file(folder / _WEIGHTS)
            text_IV = tensors.pop("text", None)
            if text_IV is not None:
                text_IV = text_IV.float()
                if text_IV.dim() != 2 or not bool(text_IV.isfinite().all()):
                    raise ValueError("text vectors have no rows, or hold numbers that are not finite")
            names = tuple(str(name) for name in content["names"])
            head = ListHead.from_tensors(names, tensors, float(content["weight"]))
            return cls(
                head=head,
                model_hash=str(content["model_hash"]),
                text_IV=text_IV,
                report=dict(content.get("report") or {}),
            )
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            line = " ".join(str(error).split())[:200]
            raise InputError(f"{folder} cannot be read as a feedback head ({line}); {_REMEDY}") from None

    def check_bundle(self, model_hash: str, names: tuple[str, ...], where: object) -> None:
        """Refuse the features of another bundle.

        Raises:
            InputError: the head was fitted with another model, or with relations that the bundle lacks.
        """
        if model_hash != self.model_hash:
            raise InputError(f"this feedback head was fitted with another model than that of {where}; {_REMEDY}")
        if names != self.head.names:
            raise InputError(f"{where} has other vectors or relations than this feedback head reads; {_REMEDY}")
