"""Prepared data as Lightning wants it: batches that depend on the seed and the step alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray

from recsys.candidate_features import feature_width
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.events import History, Requests
from recsys.index.item_graph import ItemGraph
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.pipelines.code_settings import KINDS, CodeSettings
from recsys.pipelines.item_codes import AUTO, GivenCodes, codes_for
from recsys.pipelines.item_graphs import training_graph
from recsys.pipelines.model_codes import codes_of_model
from recsys.pipelines.recipe import by_length, chosen_batch_tokens, chosen_recipe, validation_requests
from recsys.training_batches import TrainingBatch, TrainingExamples
from recsys.training_features import TrainingFeatures

__all__ = ["PreparedData"]


class _Steps:
    """The batches of one epoch. Where a batch stands in training is read off the loop itself, so that a resumed run
    continues with the very batch that was next; nothing is counted here."""

    def __init__(self, data: PreparedData, examples: TrainingExamples) -> None:
        self.data, self.examples = data, examples

    def __len__(self) -> int:
        return self.examples.steps_per_epoch

    def __iter__(self) -> Iterator[TrainingBatch]:
        trainer = self.data.trainer
        assert trainer is not None
        while True:
            yield self.examples.batch(trainer.fit_loop.epoch_loop.batch_progress.total.ready)


class _Requests:
    """Requests of a split in batches, sorted by length of history."""

    def __init__(self, requests: Requests, batch_users: int) -> None:
        self.requests, self.batch_users = requests, batch_users

    def __len__(self) -> int:
        return -(-len(self.requests) // self.batch_users)

    def __iter__(self) -> Iterator[Requests]:
        for low in range(0, len(self.requests), self.batch_users):
            yield self.requests.rows(slice(low, low + self.batch_users))


class PreparedData(L.LightningDataModule):
    """A folder written by ``recsys prepare``.

    Args:
        path: the prepared dataset.
        batch_tokens: events and candidates of a training batch, about; chosen from the data where it is None.
        batch_users: users of a validation or test batch.
        seed: decides windows, batches, masks and initial weights.
        slates: whether training reads slates.
        sids: semantic IDs of the items: ``auto`` = made of the model's own item vectors, ``content`` = made of
            content and transitions, ``none`` = the model has no heads for them, or what
            `recsys tokenize` wrote, or a Parquet file of item_id and codes.
        code_kinds: kinds of codes that the model gets heads for, A,B: codes, parallel_codes, set_codes.
    """

    def __init__(
        self,
        path: str,
        batch_tokens: int | None = None,
        batch_users: int = 512,
        seed: int = 0,
        slates: bool = True,
        sids: str = AUTO,
        code_kinds: str = "codes,parallel_codes,set_codes",
    ) -> None:
        super().__init__()
        if batch_tokens is not None and batch_tokens < 1:
            raise InputError(f"--data.batch_tokens must be positive, got {batch_tokens}")
        if batch_users < 1:
            raise InputError(f"--data.batch_users must be positive, got {batch_users}")
        self.dataset = Dataset.open(path)
        self.recipe = chosen_recipe(self.dataset)
        self.batch_tokens = batch_tokens
        self.batch_users, self.seed, self.slates = batch_users, seed, slates
        self.sids, self.code_kinds = sids, tuple(kind.strip() for kind in code_kinds.split(",") if kind.strip())
        for kind in self.code_kinds:
            if kind not in KINDS:
                raise InputError(f"--data.code_kinds: there is no {kind!r}; choose some of {', '.join(KINDS)}")
        self._features: tuple[Any, TrainingFeatures] | None = None
        if not (self.dataset.train_end > 0).any():
            raise InputError(f"{path} has no training events; choose another split or prepare more data")

    def examples(
        self, config: ModelConfig, *, slates: bool = True, batch_tokens: int | None = None
    ) -> TrainingExamples:
        """Training batches for a model; slates are read only where it has a ranking head, and if they are wanted."""
        dataset = self.dataset
        log, train_end, positive = dataset.events, dataset.train_end, dataset.is_positive()
        if config.positives_only:
            before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(positive, dtype=np.int64)])
            train_end = before[log.offsets[:-1] + train_end] - before[log.offsets[:-1]]
            log, positive = log.only(positive), np.ones(int(positive.sum()), dtype=bool)
        shown = dataset.slates if self.slates and slates and config.use_actions else None
        tokens = int(train_end.sum())
        if shown is not None:
            tokens += int(np.diff(shown.offsets)[shown.split == 0].sum())
        features = self.features(config)
        return TrainingExamples(
            log,
            train_end,
            positive,
            shown,
            window=config.window,
            crop=config.crop,
            feature_NF=None if features is None else features.events_NF,
            feature_RF=None if features is None or shown is None else features.slates_RF,
            user_UK=dataset.user_content if config.user_dim else None,
            batch_tokens=batch_tokens or self.batch_tokens or chosen_batch_tokens(tokens),
            seed=self.seed,
        )

    def features(self, config: ModelConfig) -> TrainingFeatures | None:
        """What a model's ranking head reads of the training events and of all slate rows; None where it reads nothing.

        Raises:
            InputError: the data has no clock, and past rates are asked for.
        """
        if not feature_width(config):
            return None
        asked = (config.past_rates, config.memory_features, config.relations, config.recent)
        if self._features is None or self._features[0] != asked:
            graph = self.graph if config.memory_features else None
            self._features = asked, TrainingFeatures.of(self.dataset, config, graph)
        return self._features[1]

    def codes(self, network: UnifiedModel, like: UnifiedModel | None = None) -> GivenCodes | None:
        """Semantic IDs of the items for a model that starts, made of its item vectors where they are automatic.

        Args:
            network: of this data.
            like: a model whose heads are to go on, so that automatic codes take the sizes of its codebooks.
        """
        if self.sids != AUTO or not self.code_kinds:
            return codes_for(self.dataset, self.sids, self.code_kinds, self.seed)
        return codes_of_model(network, self.dataset, CodeSettings(seed=self.seed, kinds=self.code_kinds), like=like)

    @cached_property
    def graph(self) -> ItemGraph:
        """The item graph of the training events."""
        return training_graph(self.dataset)

    def train_dataloader(self) -> _Steps:
        from recsys.pipelines.unified_module import UnifiedModule

        assert self.trainer is not None
        module = self.trainer.lightning_module
        assert isinstance(module, UnifiedModule)
        return _Steps(self, self.examples(module.config))

    def val_dataloader(self) -> _Requests:
        """While training a sample where there are many; on its own all requests, as `recsys evaluate` has them."""
        trains = self.trainer is None or self.trainer.state.fn == "fit"
        requests = validation_requests(self.dataset) if trains else by_length(self.dataset.requests("validation"))
        return _Requests(requests, self.batch_users)

    def test_dataloader(self) -> _Requests:
        return _Requests(by_length(self.dataset.requests("test")), self.batch_users)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device) if isinstance(batch, TrainingBatch) else batch

    def histories_of(self, requests: Requests) -> list[History]:
        """The histories that requests ask about."""
        events = self.dataset.events
        return [events.history(int(u), int(e)) for u, e in zip(requests.user, requests.end, strict=True)]

    @property
    def shown_rank_share(self) -> NDArray[np.float64] | None:
        """Share of training slate rows at each shown rank; None without slates."""
        slates = self.dataset.slates
        if slates is None:
            return None
        size = np.diff(slates.offsets)[slates.split == 0]
        if not size.sum():
            return None
        return np.array([(size > place).sum() for place in range(int(size.max()))], dtype=np.float64) / size.sum()
