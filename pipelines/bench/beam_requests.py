"""A model, histories and catalogues for :mod:`recsys.pipelines.bench.beam`.

Suffixes: I = items, L = levels, B = requests, D = width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.code_decoder import CodeDecoding
from recsys.events import History
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.user_state import UserStates

__all__ = ["CODES", "LEVELS", "Requests", "generative_model", "made_codes"]

CODES, LEVELS = 256, 4
_DIM = 64
_LOGIT_STD = 2.5
"""Of a level's logits. 256 codes then have the entropy of 10 to 20 equal ones, as those of trained decoders do: beams
gather on few prefixes and there are no ties."""
_ITEMS_READ = 10_000
"""Items that histories are made of; the catalogue searched is the trie's."""
_START = 1_700_000_000


@dataclass(frozen=True, slots=True)
class Requests:
    """Histories and a model to answer them with."""

    model: UnifiedModel
    histories: Sequence[History]
    at_B: Tensor

    @classmethod
    def of(cls, model: UnifiedModel, batch: int, events: int) -> Requests:
        """Made histories of equal length, asked a minute after their last event."""
        rng = np.random.default_rng(batch)
        histories = [
            History(
                item=rng.integers(0, _ITEMS_READ, events),
                timestamp=_START + np.cumsum(np.exp(rng.uniform(0, 14, events)).astype(np.int64)),
                yes=rng.integers(0, 8, events),
                known=np.full(events, 7),
                surface=rng.integers(0, 2, events),
                time_known=np.ones(events, dtype=np.bool_),
            )
            for _ in range(batch)
        ]
        return cls(model, histories, torch.tensor([int(history.timestamp[-1]) + 60 for history in histories]))

    @property
    def num_requests(self) -> int:
        return len(self.histories)

    def encoded(self) -> tuple[UserStates, CodeDecoding]:
        """States of the histories, and a decoding begun on them."""
        states = self.model.encode(self.histories)
        return states, self.model.decode(states, self.at_B, torch.zeros_like(self.at_B))

    def queried(self) -> tuple[UserStates, Tensor]:
        """States of the histories and their [B, D] query vectors."""
        states = self.model.encode(self.histories)
        return states, self.model.query(states, self.at_B, torch.zeros_like(self.at_B))


def generative_model(window: int, sizes: tuple[int, ...] = (CODES,) * LEVELS, seed: int = 0) -> UnifiedModel:
    """Two HSTU blocks and a decoder of two blocks with random weights, of which the logits depend on history and prefix
    as strongly as a trained model's do. It has vectors for codes and for all pairs of first codes, as many as a trained
    one can have."""
    torch.manual_seed(seed)
    model = UnifiedModel(
        ModelConfig(
            num_items=_ITEMS_READ,
            num_actions=3,
            num_surfaces=2,
            positive_mask=3,
            dim=_DIM,
            num_blocks=2,
            num_heads=2,
            block="hstu",
            window=window,
            code_sizes=sizes,
            code_blocks=2,
            code_pairs=sizes[0] * sizes[1],
        )
    )
    assert model.code_decoder is not None
    for module in model.code_decoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, module.in_features**-0.5)
    for out in model.code_decoder.out:
        assert isinstance(out, nn.Linear)
        nn.init.normal_(out.weight, 0.0, _LOGIT_STD * out.in_features**-0.5)
    pair_P2 = torch.cartesian_prod(torch.arange(sizes[0]), torch.arange(sizes[1]))
    code_PL = F.pad(pair_P2, (0, len(sizes) - 2))
    model.code_decoder.start_from(torch.randn(len(pair_P2), _DIM) * _DIM**-0.5, code_PL)
    return model.eval()


def made_codes(num_items: int, *, zipf: bool, sizes: tuple[int, ...] = (CODES,) * LEVELS) -> NDArray[np.int64]:
    """[I, L] codes, independent by level; uniform, or the r-th most frequent code of a level with probability ∝ 1/r."""
    rng = np.random.default_rng(num_items)
    columns = []
    for size in sizes:
        if zipf:
            weight = 1 / np.arange(1, size + 1)
            columns.append(rng.permutation(size)[rng.choice(size, num_items, p=weight / weight.sum())])
        else:
            columns.append(rng.integers(0, size, num_items))
    return np.stack(columns, 1)
