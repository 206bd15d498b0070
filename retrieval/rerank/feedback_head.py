"""A small trained head that turns features of a list into refined scores, and its folder.

::

    feedback.json            what it reads, the bundle it belongs to, its weight and how that was chosen
    feedback.safetensors     its weights, and the item vectors of a text encoder where it reads some

Suffixes: M = members, F = features, H = hidden width, C = columns of one product, B = requests, K = candidates,
I = items, V = width of text vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.errors import InputError
from recsys.files import atomic_folder, read_json, write_json

__all__ = ["FeedbackHead", "FeedbackNet"]

_MARKER, _WEIGHTS = "feedback.json", "feedback.safetensors"
_FORMAT = "recsys-feedback-head"
_VERSION = 1
_MOST = 5.0
"""Standard deviations at which a feature is cut off."""
_REMEDY = "fit the reranker again"


class FeedbackNet(nn.Module):
    """Members with a linear part and one hidden layer each, trained together and apart from each other."""

    def __init__(self, num_features: int, hidden: int, members: int) -> None:
        super().__init__()
        self.linear_MF = nn.Parameter(torch.zeros(members, num_features))
        self.inner_MFH = nn.Parameter(torch.randn(members, num_features, hidden) * num_features**-0.5)
        self.bias_MH = nn.Parameter(torch.zeros(members, hidden))
        self.outer_MH = nn.Parameter(torch.zeros(members, hidden))

    def forward(self, feature_BKF: Tensor, dropout: float = 0.0) -> Tensor:
        """[M, B, K] what each member adds to the scores."""
        members, _, hidden = self.inner_MFH.shape
        # One product for all members, the linear parts as further columns.
        columns_FC = torch.cat([self.inner_MFH.transpose(0, 1).flatten(1), self.linear_MF.T], 1)
        out_BKC = feature_BKF @ columns_FC
        inner_BKMH = out_BKC[..., : members * hidden].unflatten(-1, (members, hidden)) + self.bias_MH
        inner_BKMH = F.dropout(F.gelu(inner_BKMH), dropout, self.training)
        added_BKM = (inner_BKMH * self.outer_MH).sum(-1) + out_BKC[..., members * hidden :]
        return added_BKM.permute(2, 0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackHead:
    """A trained head. It belongs to the bundle whose model it was fitted with."""

    names: tuple[str, ...]
    """Of the features, in their order."""
    mean_F: Tensor
    scale_F: Tensor
    """Standard deviations."""
    net: FeedbackNet
    weight: float
    """Of the head's score beside the dense one; 0 = not adopted, the order stays as it was."""
    model_hash: str
    text_IV: Tensor | None = None
    """Vectors of the item texts, where a text encoder was given."""
    report: dict[str, Any] = field(default_factory=dict)
    """How it was fitted and what it did on validation."""

    def standardised(self, feature_BKF: Tensor) -> Tensor:
        """[B, K, F] features as the net reads them."""
        return ((feature_BKF - self.mean_F) / self.scale_F).clamp(-_MOST, _MOST)

    @torch.inference_mode()
    def scores(self, feature_BKF: Tensor) -> Tensor:
        """[B, K] mean of the members."""
        scores: Tensor = self.net(self.standardised(feature_BKF)).mean(0)
        return scores

    def save(self, folder: Path) -> None:
        """Write the folder; it appears at once."""
        tensors = {"mean": self.mean_F, "scale": self.scale_F, **self.net.state_dict()}
        if self.text_IV is not None:
            tensors["text"] = self.text_IV.half()
        with atomic_folder(folder, marker=_MARKER) as temporary:
            kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(kept, temporary / _WEIGHTS)
            content = {
                "format": _FORMAT, "version": _VERSION, "names": list(self.names), "weight": self.weight,
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
            names = tuple(str(name) for name in content["names"])
            mean_F, scale_F, text_IV = tensors.pop("mean"), tensors.pop("scale"), tensors.pop("text", None)
            members, _, hidden = tensors["inner_MFH"].shape
            net = FeedbackNet(len(names), hidden, members)
            net.load_state_dict(tensors)
            if mean_F.shape != (len(names),) or scale_F.shape != (len(names),) or not bool((scale_F > 0).all()):
                raise ValueError("mean and scale do not fit the features")
            if text_IV is not None and text_IV.dim() != 2:
                raise ValueError("text vectors have no rows")
            every = [mean_F, scale_F, *tensors.values(), *([] if text_IV is None else [text_IV])]
            if not all(bool(tensor.isfinite().all()) for tensor in every):
                raise ValueError("it holds numbers that are not finite")
            weight = float(content["weight"])
            if not math.isfinite(weight) or weight < 0:
                raise ValueError(f"weight {weight}")
            text_IV = None if text_IV is None else text_IV.float()
            return cls(
                names=names, mean_F=mean_F.float(), scale_F=scale_F.float(), net=net.float().eval(), weight=weight,
                model_hash=str(content["model_hash"]), text_IV=text_IV, report=dict(content.get("report") or {}),
            )  # fmt: skip
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
        if names != self.names:
            raise InputError(f"{where} has other vectors or relations than this feedback head reads; {_REMEDY}")
