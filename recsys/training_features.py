"""Features of the rows of a dataset, each as of its own time: what training reads, and what slates are judged with.

Suffixes: N = events, R = slate rows, B = rows computed at once, F = features, as in
:mod:`recsys.candidate_features`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.candidate_features import feature_width
from recsys.dataset import Dataset
from recsys.event_counts import mask_bits
from recsys.index.item_graph import ItemGraph
from recsys.memory_features import MemoryLog
from recsys.model_config import ModelConfig
from recsys.past_counts import PastLog, event_owners, training_mask
from recsys.past_rates import log_features
from recsys.training_batches import events_before
from recsys.wide_start import WideStart

__all__ = ["DatasetFeatures", "TrainingFeatures"]

_START_ROWS = 1 << 18
_CHUNK = 1 << 17
"""Rows whose features are computed at once; bounds what float64 takes."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class DatasetFeatures:
    """Features of any rows of a dataset."""

    def __init__(self, dataset: Dataset, config: ModelConfig, graph: ItemGraph | None = None) -> None:
        """Count the dataset's events.

        Args:
            config: which features.
            graph: of training events' transitions, for a model with memory features.

        Raises:
            InputError: the data has no clock, and past rates are asked for.
        """
        self.dataset, self.width, self._past_rates = dataset, feature_width(config), config.past_rates
        self._past = PastLog.of(dataset) if config.past_rates else None
        self._memory = None
        if config.memory_features:
            if graph is None:
                raise ValueError("this model ranks with memory terms; give the graph of the training events")
            self._memory = MemoryLog(dataset, graph, config.relations, config.recent)

    def _of(self, user_R: Ints, item_R: Ints, surface_R: Ints, time_R: Ints) -> Iterator[tuple[slice, Floats]]:
        """[B, F] features of rows, block by block, and where each block is."""
        visible_R = events_before(self.dataset.events, user_R, time_R)
        for low in range(0, len(user_R), _CHUNK):
            b = slice(low, low + _CHUNK)
            parts = []
            if self._past is not None:
                parts.append(log_features(self._past, user_R[b], item_R[b], surface_R[b], time_R[b]))
            if self._memory is not None:
                parts.append(self._memory.features(user_R[b], visible_R[b], item_R[b]))
            yield b, np.concatenate(parts, 1)

    def events(self) -> NDArray[np.float16]:
        """[N, F] features of the training events, each as of its own time; zeros for the others.

        Half precision: 10 million events of 3 actions take 360 MB.
        """
        events, row_N = self.dataset.events, np.flatnonzero(training_mask(self.dataset))
        out_NF = np.zeros((len(events), self.width), dtype=np.float16)
        columns = (events.item[row_N], events.surface[row_N], events.timestamp[row_N])
        for block, feature_BF in self._of(event_owners(events)[row_N], *columns):
            out_NF[row_N[block]] = feature_BF
        return out_NF

    def slates(self, split: int | None = None) -> Floats:
        """[R, F] features of the slate rows of a split (of all where it is None) as of their slates' times; else
        zeros."""
        slates = self.dataset.slates
        assert slates is not None
        slate_R = np.repeat(np.arange(len(slates)), np.diff(slates.offsets))
        out_RF = np.zeros((len(slate_R), self.width), dtype=np.float32)
        row_R = np.arange(len(slate_R)) if split is None else np.flatnonzero(slates.split[slate_R] == split)
        of_R = slate_R[row_R]
        columns = (slates.item[row_R], slates.surface[row_R], slates.timestamp[of_R])
        for block, feature_BF in self._of(slates.user[of_R], *columns):
            out_RF[row_R[block]] = feature_BF
        return out_RF


@dataclass(frozen=True, slots=True)
class TrainingFeatures:
    """What training reads."""

    events_NF: NDArray[np.float16]
    slates_RF: Floats | None
    """Of all slate rows; None where the data has no slates."""
    past_rates: bool
    """Whether the first features are past rates."""

    @classmethod
    def of(cls, dataset: Dataset, config: ModelConfig, graph: ItemGraph | None = None) -> TrainingFeatures:
        """Features of the training events and of all slate rows; arguments as of :class:`DatasetFeatures`."""
        rows = DatasetFeatures(dataset, config, graph)
        return cls(rows.events(), None if dataset.slates is None else rows.slates(), config.past_rates)

    def start(self, dataset: Dataset) -> WideStart:
        """What the linear term of a ranking head begins with: a logistic regression on rows of the training slates,
        else on training events."""
        slates, num_actions = dataset.slates, len(dataset.manifest.actions)
        if slates is not None and self.slates_RF is not None and (slates.split == 0).any():
            row_R = np.flatnonzero(np.repeat(slates.split == 0, np.diff(slates.offsets)))
            row_R = row_R[:: 1 + len(row_R) // _START_ROWS]
            feature_RF: NDArray[np.floating] = self.slates_RF[row_R]
            yes_R, known_R = slates.yes[row_R], slates.known[row_R]
        else:
            row_R = np.flatnonzero(training_mask(dataset))
            row_R = row_R[:: 1 + len(row_R) // _START_ROWS]
            feature_RF = self.events_NF[row_R]
            yes_R, known_R = dataset.events.yes[row_R], dataset.events.known[row_R]
        return WideStart.fit(
            feature_RF.astype(np.float64),
            mask_bits(yes_R, num_actions),
            mask_bits(known_R, num_actions),
            past_rates=self.past_rates,
        )
