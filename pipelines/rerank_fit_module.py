"""The Lightning module that fine-tunes a language model on lists.

Suffixes: B = lists, N = tokens, C = candidates, A = tokens of an answer, V = vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from recsys.errors import InputError
from recsys.pipelines.rerank_fit_examples import Batch, Example, collate
from recsys.retrieval.rerank.losses import (
    first_loss,
    importance_weighted_loss,
    importance_weights,
    irpo_loss,
    ndcg_of_orders,
    pg_rank_loss,
)

__all__ = ["FIGURE", "LOSSES", "LossName", "RerankModule", "Tuning", "in_parts", "score_examples"]

LossName = Literal["first", "full-list", "pg-rank", "irpo"]
LOSSES: tuple[LossName, ...] = ("first", "full-list", "pg-rank", "irpo")
FIGURE = "val/figure"
"""What the best epoch is chosen by, larger is better: NDCG@10, or minus the loss of written orders."""
_PART_TOKENS = {"cpu": 1_024}
_OTHER_PART_TOKENS = 8_192
"""Padded tokens that go forth and back through the network together, by device: their activations are what a step needs
memory for. On a processor more at once gain nothing."""
_LARGEST_GRADIENT = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How a model is trained."""

    loss: LossName = "first"
    lr: float = 2e-4
    epochs: int = 1
    batch_lists: int = 8
    """Lists of one step."""
    rank_weight: float = 1.0
    """Of FIRST's ranking loss beside that of the language model."""
    separator_weight: float = 1.0
    """Of the tokens between labels, in the loss of a written order."""
    num_samples: int = 16
    """Orders drawn for each list by the policy gradient."""
    beta: float = 1.0
    """Of IRPO."""
    seed: int = 0


class RerankModule(L.LightningModule):
    """Trains whatever parameters of a network want gradients.

    Args:
        net: a causal language model of transformers, perhaps with adapters in it.
        examples: of training.
        judged: of validation; may be empty.
        tuning: how.
    """

    def __init__(self, net: Any, examples: Sequence[Any], judged: Sequence[Any], tuning: Tuning) -> None:
        super().__init__()
        self.net, self.tuning = net, tuning
        self._examples, self._judged = examples, judged
        self.strict_loading = False  # checkpoints hold what is trained and nothing else
        self.automatic_optimization = False  # a step is several passes back

    @property
    def judges(self) -> bool:
        """Whether lists choose the best epoch."""
        return bool(self._judged)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self._examples) // self.tuning.batch_lists)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if name in trained}

    def train_dataloader(self) -> DataLoader[int]:
        return _numbers(self.steps_per_epoch)

    def val_dataloader(self) -> DataLoader[int]:
        return _numbers(-(-len(self._judged) // self.tuning.batch_lists))

    @property
    def part_tokens(self) -> int:
        """Of a part of a step, as :meth:`training_step` makes them; a longer list is a part by itself."""
        return _PART_TOKENS.get(self.device.type, _OTHER_PART_TOKENS)

    def training_step(self, number: int, batch_idx: int) -> None:
        """One step over ``batch_lists`` lists. Their losses add up, so that parts of them may go through the network
        one after the other: the gradients add up as well.

        Raises:
            InputError: the loss is no number, which would leave no weight that is one.
        """
        epoch, place = divmod(self.global_step, self.steps_per_epoch)
        order = np.random.default_rng([self.tuning.seed, epoch]).permutation(len(self._examples))
        low = place * self.tuning.batch_lists
        examples = [self._examples[row] for row in order[low : low + self.tuning.batch_lists]]
        torch.manual_seed(self.tuning.seed * 1_000_003 + self.global_step)
        generator = torch.Generator(device=self.device)
        generator.manual_seed(self.tuning.seed * 1_000_003 + self.global_step)
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        total = 0.0
        for part in in_parts(examples, self.part_tokens):
            loss = self._losses(self._batch(part), generator).sum() / len(examples)
            self.manual_backward(loss)
            total += float(loss.detach())
        if not math.isfinite(total):
            step, lr = self.global_step + 1, self.tuning.lr
            raise InputError(f"the loss of step {step} is no number; give a lower --lr than {lr:g}")
        self.clip_gradients(optimizer, _LARGEST_GRADIENT, "norm")
        optimizer.step()
        schedule: Any = self.lr_schedulers()
        schedule.step()
        self.log("train/loss", total, batch_size=len(examples), prog_bar=True)

    def validation_step(self, number: int, batch_idx: int) -> None:
        low = number * self.tuning.batch_lists
        batch = self._batch(self._judged[low : low + self.tuning.batch_lists])
        if self.tuning.loss == "full-list":
            figure = -self._losses(batch).mean()
        else:
            score_BC = self._scores(batch)[0].masked_fill(~batch.there_BC, -torch.inf)
            order_BC = score_BC.argsort(dim=1, descending=True, stable=True)
            figure = ndcg_of_orders(batch.gain_BC, order_BC[:, None], 10).mean()
        self.log(FIGURE, figure, batch_size=len(batch), prog_bar=True)

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.tuning.lr, weight_decay=0.0)
        total = max(1, self.steps_per_epoch * self.tuning.epochs)
        warmup = max(1, total // 10)

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / warmup) * max(0.05, 1.0 - max(0, step - warmup) / total)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _batch(self, examples: Sequence[Any]) -> Any:
        return collate(examples, pad_id=0).to(self.device)

    def _scores(self, batch: Any) -> tuple[Tensor, Tensor]:
        """[B, C] scores of the candidates, and [B, 1] the logsumexp of them and of whatever competes with them."""
        score_BC, logit_BV = _label_scores(self.net, batch)
        return score_BC, logit_BV.logsumexp(dim=1, keepdim=True)

    def _losses(self, batch: Any, generator: torch.Generator | None = None) -> Tensor:
        """[B] of one batch; ``generator`` draws orders for the policy gradient."""
        tuning = self.tuning
        if tuning.loss == "full-list":
            length = batch.answer_rank_BA.shape[1]
            logit_BAV = _logits(self.net, batch, length + 1)[:, :-1]
            weight_BA = importance_weights(batch.answer_rank_BA, separator_weight=tuning.separator_weight)
            return importance_weighted_loss(logit_BAV, batch.ids_BN[:, -length:], weight_BA)
        score_BC, all_B1 = self._scores(batch)
        if tuning.loss == "pg-rank":
            return pg_rank_loss(
                score_BC, batch.gain_BC, batch.there_BC, num_samples=tuning.num_samples, generator=generator
            )
        if tuning.loss == "irpo":
            return irpo_loss(score_BC, batch.reference_BC, batch.gain_BC, batch.there_BC, beta=tuning.beta)
        best_BC = batch.there_BC & (batch.rank_BC == 1)
        log_prob_BC = score_BC - all_B1
        lm_nats_B = -log_prob_BC.masked_fill(~best_BC, -torch.inf).logsumexp(dim=1)
        return first_loss(score_BC, batch.rank_BC, batch.there_BC, lm_nats_B, rank_weight=tuning.rank_weight)


def in_parts(examples: Sequence[Any], most_tokens: int) -> list[list[Any]]:
    """Examples in parts of so many tokens with padding, one of like length beside the other; a longer one is alone."""
    parts: list[list[Any]] = []
    for example in sorted(examples, key=lambda one: one.num_tokens):
        if parts and (len(parts[-1]) + 1) * example.num_tokens <= most_tokens:  # it is the longest so far
            parts[-1].append(example)
        else:
            parts.append([example])
    return parts


def _numbers(count: int) -> DataLoader[int]:
    """Numbers of steps: what a step reads follows from how many were made, so that a resumed run goes on exactly."""
    return DataLoader(range(count), batch_size=None)  # type: ignore[arg-type]


def _logits(net: Any, batch: Batch, keep: int) -> Tensor:
    """[B, keep, V] float32 logits of the last tokens."""
    out = net(
        input_ids=batch.ids_BN,
        attention_mask=batch.mask_BN,
        position_ids=batch.place_BN,
        use_cache=False,
        logits_to_keep=keep,
    )
    logits: Tensor = out.logits.float()
    return logits


def _label_scores(net: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """[B, C] logits of the labels as the next token, and [B, V] those of all tokens."""
    logit_BV = _logits(net, batch, 1)[:, -1]
    return logit_BV.gather(1, batch.option_BC), logit_BV


@torch.inference_mode()
def score_examples(net: Any, examples: Sequence[Example], batch_lists: int) -> list[tuple[float, ...]]:
    """Log-probabilities of every example's labels, in its order."""
    found: list[tuple[float, ...]] = []
    device = next(net.parameters()).device
    for low in range(0, len(examples), batch_lists):
        part = examples[low : low + batch_lists]
        score_BC, logit_BV = _label_scores(net, collate(part, pad_id=0).to(device))
        log_prob_BC = score_BC - logit_BV.logsumexp(dim=1, keepdim=True)
        found += [tuple(row[: len(one.gains)]) for row, one in zip(log_prob_BC.cpu().tolist(), part, strict=True)]
    return found
