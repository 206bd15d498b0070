"""The training loop of the unified model; the network and its losses run without it."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.code_accuracy import CodeAccuracy, code_accuracy
from recsys.code_children import CodeChildren
from recsys.code_decoder import StateReader
from recsys.errors import InputError
from recsys.events import Requests
from recsys.index.item_graph import ItemGraph
from recsys.index.memory_terms import MemoryTerms, MemoryWeights
from recsys.memory_features import readable_relations
from recsys.metrics import target_ranks
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.neighbour_targets import NeighbourTargets
from recsys.objective import Objective
from recsys.pipelines.checkpoint import names_to_store
from recsys.pipelines.content_neighbours import content_neighbours
from recsys.pipelines.data_module import PreparedData
from recsys.pipelines.item_codes import AUTO, CONTENT, NONE, GivenCodes
from recsys.pipelines.model_codes import CODE_HEADS, makes_codes_at, refresh_codes, set_codebooks, with_codes
from recsys.pipelines.ranking_shares import shared_logits
from recsys.pipelines.recipe import changed_model
from recsys.ranking import predict_slates
from recsys.training_batches import TrainingBatch

__all__ = ["SELECTION", "UnifiedModule"]

SELECTION = "val/selection"
"""What the epoch that is kept has most of: NDCG@10 of ``dense_learned`` over validation requests; where validation
slates are ranked, that times 2 AUC − 1, with the mean AUC of the actions weighted by the numbers of rarer labels. A
product, since either may be small: a hundredth more of one counts like a hundredth more of the other."""

_NEIGHBOURS = 8
"""Nearest items a target may be replaced by."""
_SPLITS = {"val": 1, "test": 2}
_CODE_REQUESTS = 512
"""Validation requests of an epoch, evenly spread, whose codes are looked at level by level."""


class UnifiedModule(L.LightningModule):
    """One stage, one optimiser: L = L_item + L_action. What is None is chosen from the data and said.

    Args:
        dim: width of the model.
        num_blocks: encoder layers.
        num_heads: attention heads of a layer.
        block: ``softmax`` transformer, ``hstu`` or gated ``ligr`` layers.
        layout: how events become tokens: ``mam``, ``interleaved`` or ``lagged``.
        window: most events a user state holds; a multiple of 4.
        dropout: in the encoder.
        id_dropout: share of items whose id part is dropped in a step, where there is content.
        surface_dropout: share of training requests whose surface is hidden.
        mask_prob: share of history actions hidden in training.
        use_content: False = ids only.
        use_user_features: False = columns of users are not read.
        user_dropout: share of training requests whose user's features are hidden.
        use_actions: False = no actions in the tokens and no ranking head.
        positives_only: the encoder sees positive events only.
        use_surfaces: False = surfaces are not read.
        use_time: False = no time bias and no time features.
        time_encoding: how attention sees times: ``bias`` of differences, ``rotary`` angles, ``both`` or ``none``.
        position_bias: whether attention has a learned bias of the distance in rows.
        positive_recency: whether a token says how many events ago the last positive event was.
        crop: share of training windows cut in two at a random place.
        score: retrieval by inner product (``dot``) or by ``cosine`` with a learned temperature.
        retrieval_loss: ``full`` or ``sampled`` softmax.
        softmax_factors: type of the factors in the products of the full softmax's loss.
        num_negatives: uniform negatives of the sampled softmax, joined by up to as many targets of the batch.
        neighbour_targets: share of a retrieval target's label that goes to the items nearest in content.
        label_smoothing: of the retrieval softmax.
        action_weight: weight of L_action.
        pairwise_weight: weight of the pairwise term inside slates.
        regress_value: whether a head predicts log(1 + value).
        detach_candidates: whether the action losses leave the vectors of ranked items to retrieval.
        past_rates: whether the ranking head reads how often each action followed before an event's time.
        memory_features: whether the ranking head reads what the item graph says of a candidate.
        cross_layers: low-rank cross layers of the ranking head.
        code_blocks: blocks of the decoder of semantic IDs.
        code_children: whether its softmax runs over the codes that continue a prefix in the catalogue alone; null =
            yes, but not where L_code trains the encoder too.
        set_blocks: blocks of the head that predicts codes as a set.
        code_weight: weight of L_code.
        detach_codes: whether L_code leaves the encoder to the other losses.
        lr: peak learning rate of AdamW.
        weight_decay: of matrices; vectors and norms have none.
        warmup_steps: steps until the peak.
        decay_share: last share of the steps over which the rate falls linearly.
    """

    def __init__(
        self,
        dim: int | None = None,
        num_blocks: int | None = None,
        num_heads: int | None = None,
        block: Literal["softmax", "hstu", "ligr"] | None = None,
        layout: Literal["mam", "interleaved", "lagged"] | None = None,
        window: int | None = None,
        dropout: float | None = None,
        id_dropout: float | None = None,
        surface_dropout: float | None = None,
        mask_prob: float | None = None,
        use_content: bool = True,
        use_user_features: bool = True,
        user_dropout: float | None = None,
        use_actions: bool | None = None,
        positives_only: bool | None = None,
        use_surfaces: bool | None = None,
        use_time: bool | None = None,
        time_encoding: Literal["bias", "rotary", "both", "none"] | None = None,
        position_bias: bool | None = None,
        positive_recency: bool | None = None,
        crop: float | None = None,
        score: Literal["dot", "cosine"] | None = None,
        retrieval_loss: Literal["full", "sampled"] | None = None,
        softmax_factors: Literal["float32", "bfloat16"] | None = None,
        num_negatives: int | None = None,
        neighbour_targets: float | None = None,
        label_smoothing: float | None = None,
        action_weight: float | None = None,
        pairwise_weight: float | None = None,
        regress_value: bool | None = None,
        detach_candidates: bool | None = None,
        past_rates: bool | None = None,
        memory_features: bool | None = None,
        cross_layers: int | None = None,
        code_blocks: int | None = None,
        code_children: bool | None = None,
        set_blocks: int | None = None,
        code_weight: float | None = None,
        detach_codes: bool | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        warmup_steps: int = 200,
        decay_share: float = 0.4,
    ) -> None:
        super().__init__()
        self.changes: dict[str, Any] = {
            name: value
            for name, value in {
                "dim": dim,
                "num_blocks": num_blocks,
                "num_heads": num_heads,
                "block": block,
                "layout": layout,
                "window": window,
                "dropout": dropout,
                "id_dropout": id_dropout,
                "surface_dropout": surface_dropout,
                "user_dropout": user_dropout,
                "mask_prob": mask_prob,
                "use_actions": use_actions,
                "positives_only": positives_only,
                "use_surfaces": use_surfaces,
                "use_time": use_time,
                "time_encoding": time_encoding,
                "position_bias": position_bias,
                "positive_recency": positive_recency,
                "crop": crop,
                "score": score,
                "retrieval_loss": retrieval_loss,
                "softmax_factors": softmax_factors,
                "num_negatives": num_negatives,
                "neighbour_targets": neighbour_targets,
                "label_smoothing": label_smoothing,
                "action_weight": action_weight,
                "pairwise_weight": pairwise_weight,
                "regress_value": regress_value,
                "detach_candidates": detach_candidates,
                "past_rates": past_rates,
                "memory_features": memory_features,
                "cross_layers": cross_layers,
                "code_blocks": code_blocks,
                "code_children": code_children,
                "set_blocks": set_blocks,
                "code_weight": code_weight,
                "detach_codes": detach_codes,
            }.items()
            if value is not None
        }
        if not use_content:
            self.changes["content_dim"] = 0
            self.changes.setdefault("neighbour_targets", 0.0)
        if not use_user_features:
            self.changes["user_dim"] = 0
        self.lr, self.weight_decay = lr, weight_decay
        self.warmup_steps, self.decay_share = warmup_steps, decay_share
        self.net: UnifiedModel | None = None
        self._objective: Objective | None = None
        self.tokenizers: dict[str, Tensor] | None = None
        self.codes_settled = False
        """Whether automatic codes mean something from the first step on: the network was trained before."""
        self.memory_weights: MemoryWeights | None = None
        """Of a checkpoint that has them: `validate` and `test` then judge ``dense`` as well."""
        self._terms: MemoryTerms | None = None
        self._ranks: dict[str, list[NDArray[np.int64]]] = {}
        self._items_ID: Tensor | None = None
        self._codes_right: CodeAccuracy | None = None

    # -- building -------------------------------------------------------------------------------------------------

    @property
    def data(self) -> PreparedData:
        module = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(module, PreparedData)
        return module

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def model(self) -> UnifiedModel:
        assert self.net is not None, "configure_model() has not run"
        return self.net

    def configure_model(self) -> None:
        """The hook of the trainer that :meth:`start` is for."""
        self.start(self.data)

    def start(self, data: PreparedData) -> None:
        """Build the network for a data set, where there is none yet; its initial weights depend on the seed alone.

        Raises:
            InputError: settings that make no network of this data.
        """
        if self.net is not None:
            return
        self.net, codes = started_network(data, self.changes)
        self.tokenizers = None if codes is None else codes.tokenizers()

    @property
    def objective(self) -> Objective:
        if self._objective is None:
            self._objective = self.objective_of(self.data)
            self._objective.to(self.device)
        return self._objective

    def objective_of(self, data: PreparedData) -> Objective:
        """The losses of training on a data set."""
        share = self.config.neighbour_targets
        near = content_neighbours(data.dataset, _NEIGHBOURS) if share else None
        return Objective(
            self.model,
            torch.from_numpy(data.dataset.train_item_counts()),
            None if near is None else NeighbourTargets(*near, share),
        )

    @cached_property
    def _names(self) -> dict[str, Any]:
        return names_to_store(self.data.dataset)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        manifest = self.data.dataset.manifest
        checkpoint["recsys"] = {
            "config": self.config.to_dict(),
            "data_hash": manifest.data_hash,
            "names": self._names,
            "tokenizers": self.tokenizers,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Training that goes on from a checkpoint with finished heads of semantic IDs trains them anew at its end."""
        if not self.model.codes.sizes:
            names = ("net.codes.", *(f"net.{prefix}" for prefix in CODE_HEADS))
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: value for name, value in state.items() if not name.startswith(names)}

    # -- steps ----------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: TrainingBatch, batch_idx: int) -> None:
        # Masks, dropout and negatives are functions of (seed, step): a resumed run draws what was next.
        torch.manual_seed(self.data.seed * 1_000_003 + self.trainer.global_step)
        epoch = self.trainer.current_epoch
        if self.model.codes.sizes and self.data.sids == AUTO:
            if not batch_idx and makes_codes_at(epoch, self.trainer.max_epochs):
                self._refresh_codes()
            self.objective.trains_codes = epoch > 0 or self.trainer.max_epochs == 1 or self.codes_settled

    def _refresh_codes(self) -> None:
        codes = refresh_codes(self.model, self.data.dataset, self.data.seed)
        if codes is not None:
            self.tokenizers = codes.tokenizers()
            self.objective.codes_changed()
            self.__dict__.pop("_children", None)  # those of the codes before

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        losses = self.objective(batch)
        size = max(losses.num_targets, 1)
        self.log("train/item_nats", losses.item, batch_size=size, prog_bar=True, on_step=True, on_epoch=False)
        self.log("train/action_nats", losses.action, batch_size=size, on_step=True, on_epoch=False)
        if losses.code is not None:
            self.log("train/code_nats", losses.code, batch_size=size, on_step=True, on_epoch=False)
        return losses.total

    def on_validation_epoch_start(self) -> None:
        self._start_ranks()
        self._codes_right = None

    def on_test_epoch_start(self) -> None:
        self._start_ranks()

    def validation_step(self, batch: Requests, batch_idx: int) -> None:
        self._rank_batch(batch)
        if self.model.code_decoder is not None:
            self._judge_codes(batch, batch_idx)

    def test_step(self, batch: Requests, batch_idx: int) -> None:
        self._rank_batch(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_ranks("val")
        if self._codes_right is not None:
            for name, value in self._codes_right.figures().items():
                self.log(f"val/codes/{name}", value)

    def on_test_epoch_end(self) -> None:
        self._log_ranks("test")

    def _start_ranks(self) -> None:
        self._ranks, self._items_ID = {"dense_learned": []}, self.model.item_vectors()
        if self.memory_weights is not None and self._terms is None:
            graph = self._weighted_graph(self.memory_weights)
            self._terms = MemoryTerms.weighted(graph, self.memory_weights, ~self.model.items.has_id_I)
        if self._terms is not None:
            self._ranks["dense"] = []

    def _weighted_graph(self, weights: MemoryWeights) -> ItemGraph:
        """That of the data, or one with the relations that the weights name."""
        from recsys.pipelines.item_graphs import training_graph, weighted_relations

        graph = self.data.graph
        if not set(weights.relations) <= set(graph.relations):
            graph = training_graph(self.data.dataset, weighted_relations(weights))
        return graph.to(self.device)

    def _rank_batch(self, requests: Requests) -> None:
        """Full-catalogue rank of each target, the history filtered out."""
        assert self._items_ID is not None
        model, histories = self.model, self.data.histories_of(requests)
        states = model.encode(histories, keep_cache=False, user_BK=self.data.dataset.user_rows(requests.user))
        at_B = torch.from_numpy(np.ascontiguousarray(requests.timestamp)).to(model.device)
        surface_B = torch.from_numpy(np.ascontiguousarray(requests.surface)).to(model.device)
        learned_BI = (model.query(states, at_B, surface_B) @ self._items_ID.T).float()
        seen = [h.item for h in histories]
        found = {"dense_learned": learned_BI}
        if self._terms is not None and self.memory_weights is not None:
            found["dense"] = learned_BI * self.memory_weights.learned
            self._terms.add_to(found["dense"], states.recent_BM, states.num_events_B == 0)
        for name, scores_BI in found.items():
            self._ranks[name].append(target_ranks(scores_BI.cpu().numpy(), requests.target, seen).rank_Q)

    @cached_property
    def _children(self) -> CodeChildren | None:
        if not self.config.code_children:
            return None
        return CodeChildren.of(self.model.codes.of("codes"), self.config.code_sizes)

    def _judge_codes(self, requests: Requests, batch_idx: int) -> None:
        """How often the decoder names the right code of a level, on some requests of a batch."""
        model, size = self.model, self.data.batch_users
        step = -(-size * int(np.sum(self.trainer.num_val_batches)) // _CODE_REQUESTS)
        requests = requests.rows(slice(-batch_idx * size % step, None, step))
        if model.code_decoder is None or not len(requests):
            return
        states = model.encode(self.data.histories_of(requests), user_BK=self.data.dataset.user_rows(requests.user))
        at_B = torch.from_numpy(np.ascontiguousarray(requests.timestamp)).to(model.device)
        surface_B = torch.from_numpy(np.ascontiguousarray(requests.surface)).to(model.device)
        target_B = torch.from_numpy(np.ascontiguousarray(requests.target)).to(model.device)
        found = code_accuracy(
            model.code_decoder, model.query(states, at_B, surface_B), model.codes.of("codes")[target_B].long(),
            StateReader(states), self._children,
        )  # fmt: skip
        self._codes_right = found if self._codes_right is None else self._codes_right + found

    def _log_ranks(self, stage: str) -> None:
        selection = 0.0
        for retriever, parts in self._ranks.items():
            for name, value in _figures(np.concatenate(parts) if parts else np.zeros(0, np.int64)).items():
                shown = retriever == "dense_learned" and name == "ndcg@10"
                self.log(f"{stage}/{retriever}/{name}", value, prog_bar=shown)
                if shown:
                    selection = value
        by_action, mean_auc = self._slate_figures(_SPLITS[stage])
        for name, value in by_action.items():
            self.log(f"{stage}/{name}", value)
        if stage == "val":
            self.log(SELECTION, selection * (max(0.0, 2 * mean_auc - 1) if by_action else 1.0))
        self._items_ID = None

    def _slate_figures(self, split: int) -> tuple[dict[str, float], float]:
        """AUC of every action over the slates of a split, and their mean by the number of rarer labels; 0 without."""
        dataset = self.data.dataset
        slates = dataset.slates
        if slates is None or self.model.action_head is None or not (slates.split == split).any():
            return {}, 0.0
        from recsys.ranking_metrics import auc

        features = self.data.features(self.config)
        feature_RF = None if features is None else features.slates_RF
        predicted = predict_slates(self.model, dataset, split, feature_RF=feature_RF)
        logit_RA = predicted.logit_RA
        if self.trainer.state.fn == "fit" and feature_RF is not None:
            # As the last step of the fit will leave it: by how much of the network holds on labels it has not seen.
            logit_RA = shared_logits(self.model, predicted, feature_RF[predicted.row_R], dataset)
        figures, weights = {}, []
        for place, action in enumerate(dataset.manifest.actions):
            known = ((slates.known[predicted.row_R] >> place) & 1).astype(bool)
            yes = ((slates.yes[predicted.row_R] >> place) & 1).astype(bool)[known]
            if yes.any() and not yes.all():
                figures[f"{action}/auc"] = float(auc(yes, logit_RA[known, place]))
                weights.append(min(int(yes.sum()), int((~yes).sum())))
        return figures, float(np.average(list(figures.values()), weights=weights)) if figures else 0.0

    # -- optimiser ------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        matrices = [p for p in self.parameters() if p.dim() > 1]
        others = [p for p in self.parameters() if p.dim() <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=self.lr,
            fused=True,
        )
        total = max(1, int(self.trainer.estimated_stepping_batches))
        warmup, decay = min(self.warmup_steps, max(1, total // 5)), max(1.0, self.decay_share * total)

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / warmup) * min(1.0, max(0.02, (total - step) / decay))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _figures(rank_Q: NDArray[np.int64]) -> dict[str, float]:
    """Retrieval figures of ranks from 1; only NDCG, of 0, where there are none."""
    if not len(rank_Q):
        return {"ndcg@10": 0.0}
    top = rank_Q <= 10
    return {
        "ndcg@10": float((top / np.log2(rank_Q + 1)).mean()),
        "recall@10": float(top.mean()),
        "recall@100": float((rank_Q <= 100).mean()),
        "mrr": float((1.0 / rank_Q).mean()),
    }


def started_network(data: PreparedData, changes: dict[str, Any]) -> tuple[UnifiedModel, GivenCodes | None]:
    """A fresh network for a data set with heads for its semantic IDs, and these.

    Where ``changes`` are the settings of a checkpoint, so are the codes: its weights bring them, and None is returned.
    Heads that leave the encoder alone are made after training; see :mod:`recsys.pipelines.code_training`.
    """
    network = build_network(data, changes)
    if "code_sizes" in changes:
        return network, None
    if changes.get("code_children") and (data.sids == NONE or "codes" not in data.code_kinds):
        raise InputError("model.code_children needs semantic IDs of the kind codes; give --data.sids, or leave it out")
    if network.config.detach_codes and data.sids in (AUTO, CONTENT, NONE):
        return network, None
    codes = data.codes(network)  # of a file: what is wrong with it is said now, not after training
    if codes is None or network.config.detach_codes:
        return network, None
    config = replace(with_codes(network.config, codes), code_children=bool(changes.get("code_children")))
    network = build_network(data, config.to_dict())
    network.codes.fill(codes.codes)
    set_codebooks(network, codes)
    return network, codes


def build_network(data: PreparedData, changes: dict[str, Any]) -> UnifiedModel:
    """A fresh network for a data set: the recipe's configuration with ``changes``, initial weights from the seed."""
    dataset = data.dataset
    config = changed_model(data.recipe.model, changes)
    if config.memory_features:
        config = replace(config, relations=readable_relations(dataset))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(data.seed)
        model = UnifiedModel(config)
    counts_I = torch.from_numpy(dataset.train_item_counts())
    content = dataset.content
    model.items.set_catalogue(
        torch.from_numpy(np.ascontiguousarray(content)) if config.content_dim and content is not None else None,
        counts_I > 0,
    )
    if model.action_head is not None:
        model.action_head.set_priors(_action_rates(data), _padded_share(data, config.max_shown_rank))
        features = data.features(config)
        if features is not None:
            model.action_head.set_features(features.start(dataset))
    return model


def _action_rates(data: PreparedData) -> Tensor:
    """[A] share of *yes* among known labels of training events."""
    events, train_end = data.dataset.events, data.dataset.train_end
    place = np.arange(len(events)) - np.repeat(events.offsets[:-1], np.diff(events.offsets))
    trains = place < np.repeat(train_end, np.diff(events.offsets))
    bits = np.arange(len(data.dataset.manifest.actions))
    yes = ((events.yes[trains, None] >> bits) & 1).sum(0)
    known = ((events.known[trains, None] >> bits) & 1).sum(0)
    return torch.from_numpy((yes + 1) / (known + 2)).float()


def _padded_share(data: PreparedData, places: int) -> Tensor | None:
    share = data.shown_rank_share
    if share is None:
        return None
    out = np.zeros(places)
    out[: min(places, len(share))] = share[:places]
    out[-1] += share[places:].sum()
    return torch.from_numpy(out).float()
