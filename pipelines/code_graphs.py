"""The graphs of items with codes alike, for the heads that predict all codes of an item at once."""

from __future__ import annotations

import torch

from recsys.index.code_neighbours import CodeNeighbours
from recsys.model import UnifiedModel

__all__ = ["code_neighbours"]


def code_neighbours(model: UnifiedModel) -> dict[str, CodeNeighbours]:
    """Graphs by kind of codes, built where there is a CUDA device on it; empty where the model has no such heads."""
    heads = {"parallel_codes": model.parallel_codes, "set_codes": model.set_codes}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        kind: CodeNeighbours.build(model.codes.of(kind), head.codes_JKD.detach().to(device)).to("cpu")
        for kind, head in heads.items()
        if head is not None
    }
