"""Settings that fit a data set, chosen from its sizes alone and said aloud.

The figures behind the rules were measured on Amazon Toys, goodbooks and the simulated world: a small batch with many
steps, embeddings of standard deviation 0.02 whose inputs are scaled by √D, and dropout around 0.3 reach in two minutes
what a batch four times as large with smaller initial vectors did not reach at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from recsys.dataset import Dataset
from recsys.events import Requests
from recsys.model_config import ModelConfig
from recsys.pipelines.machine import multiplies_bfloat16

__all__ = [
    "Recipe",
    "by_length",
    "changed_model",
    "chosen_batch_tokens",
    "chosen_code_epochs",
    "chosen_recipe",
    "useful_actions",
    "validation_requests",
]

_FULL_SOFTMAX_ITEMS = 50_000
"""Catalogues up to this size train with the full softmax."""
_STEPS_PER_EPOCH = 500
_EPOCHS = 12
_NEIGHBOUR_TARGETS = 0.2
"""With twelve epochs instead of ten, .2 raised validation NDCG@10 of the learned part on Amazon Toys with text vectors
from .0811 to .0830, and Recall@100 from .309 to .317."""
_LONG_HISTORIES = 16
"""Median events of a training history from which HSTU blocks are chosen. Validation NDCG@10 of the learned part on the
simulated world (50 events) .1385 against .1313; goodbooks (109) and KuaiRand (37) hardly differ, and an epoch takes
about half the time; on Amazon Toys (4) softmax blocks are ahead among baselines of ids alone."""
_WIDE: dict[str, Any] = {"dim": 96, "dropout": 0.2}
"""Where slates are ranked by rates too: labels of both kinds carry more. KuaiRand, two epochs, three seeds: validation
NDCG@10 of the learned part .0495 instead of .0483, of the sum .0542 instead of .0515, AUC of clicks .7540 instead of
.7537, a step 1.25 times as long; simulated world, all epochs: NDCG@10 times 2 AUC − 1 .0836 instead of .0801."""
_VALIDATION_USERS = 20_000
_CODE_EPOCHS, _CODE_EVENTS = 2, 1_000_000
"""Passes in which the heads of semantic IDs learn, and about how many events these are at most. KuaiRand, a frozen
encoder: one pass in batches of 2,048 tokens ends where two of 8,192 do (validation NDCG@10 .0599, .0588, .0564 of the
three heads instead of .0599, .0586, .0565) and takes 348 s of processor time instead of about 490 for each pass; of
4,096: .0599, .0576, .0545."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What ``fit`` uses where the caller says nothing."""

    model: ModelConfig
    batch_tokens: int
    """Events and candidates of a batch, about."""
    max_epochs: int
    reasons: dict[str, str]
    """By setting, a sentence that says what was chosen and why."""


def useful_actions(dataset: Dataset) -> bool:
    """Whether some action has both outcomes among its known labels, so that there is something to predict."""
    parts = [(dataset.events.yes, dataset.events.known)]
    if dataset.slates is not None:
        parts.append((dataset.slates.yes, dataset.slates.known))
    for action in range(len(dataset.manifest.actions)):
        yes = sum(int(((y >> action) & 1).sum()) for y, _ in parts)
        known = sum(int(((k >> action) & 1).sum()) for _, k in parts)
        if 0 < yes < known:
            return True
    return False


def chosen_batch_tokens(tokens: int) -> int:
    """The power of two that makes about 500 steps of an epoch of so many tokens, from 128 to 8192."""
    return int(min(8192, max(128, 2 ** round(np.log2(max(tokens, 1) / _STEPS_PER_EPOCH)))))


def chosen_code_epochs(num_events: int) -> int:
    """Passes over so many training events for the heads of semantic IDs: two, one where they are many.

    >>> [chosen_code_epochs(events) for events in (10_000, 1_000_000, 50_000_000)]
    [2, 1, 1]
    """
    return min(_CODE_EPOCHS, max(1, round(_CODE_EVENTS / max(1, num_events))))


def changed_model(model: ModelConfig, changes: Mapping[str, Any]) -> ModelConfig:
    """A recipe's model with what a caller sets; what there is no use for without actions goes with them."""
    if changes.get("use_actions") is False:
        changes = {"past_rates": False, **changes}
    return replace(model, **changes)


def chosen_recipe(dataset: Dataset) -> Recipe:
    """The recipe for a data set."""
    manifest = dataset.manifest
    reasons: dict[str, str] = {}
    train_end = dataset.train_end
    num_train = int(train_end.sum())

    typical = int(np.percentile(train_end[train_end > 0], 99)) + 2 if (train_end > 0).any() else 4
    window = int(min(256, max(16, 4 * -(-typical // 4))))
    reasons["window"] = f"window {window}: 99 % of the training histories are shorter, at most 256"

    median = float(np.median(train_end[train_end > 0])) if (train_end > 0).any() else 0.0
    hstu = median >= _LONG_HISTORIES
    reasons["block"] = f"{'HSTU' if hstu else 'softmax'} blocks: half of the histories have {median:.0f} events or more"

    tokens = num_train
    if dataset.slates is not None:
        tokens += int(np.diff(dataset.slates.offsets)[dataset.slates.split == 0].sum())
    batch_tokens = chosen_batch_tokens(tokens)
    reasons["batch_tokens"] = f"batches of {batch_tokens} tokens: about {max(1, tokens // batch_tokens)} steps an epoch"

    use_actions = useful_actions(dataset)
    if not use_actions:
        reasons["use_actions"] = "no action has both outcomes: tokens hold no actions and nothing is trained to rank"
    use_time = manifest.clock == "real"
    if not use_time:
        reasons["use_time"] = "timestamps are an order, not a clock: no time bias and no time features"
    past_rates = use_actions and use_time and dataset.slates is not None and bool((dataset.slates.split == 0).any())
    if past_rates:
        reasons["past_rates"] = "ranking also reads how often each action followed before"
        # KuaiRand, four epochs: validation AUC of clicks .7549 instead of .7499, where it fell from the third epoch on.
        reasons["detach_candidates"] = "with such rates the vectors of ranked items are left to retrieval"
        reasons["dim"] = f"vectors {_WIDE['dim']} wide and dropout {_WIDE['dropout']:g}, since slates teach as well"
    use_surfaces = len(manifest.surfaces) > 2
    content = dataset.content
    content_dim = 0 if content is None else content.shape[1]
    reasons["use_content"] = (
        f"item vectors from ids and {content_dim} content features"
        if content_dim
        else "item vectors from ids alone: the items have no text"
    )
    if dataset.user_dim:
        reasons["user_dim"] = f"retrieval and ranking read {dataset.user_dim} features of the user"
    spreads = dataset.sparse_text is not None or bool(dataset.relation_vectors)
    if spreads:
        reasons["neighbour_targets"] = f"{_NEIGHBOUR_TARGETS:.0%} of each label goes to items that read alike"
    num_trained = int((dataset.train_item_counts() > 0).sum())
    full = num_trained <= _FULL_SOFTMAX_ITEMS
    reasons["retrieval_loss"] = f"{'full' if full else 'sampled'} softmax over {num_trained:,} trained items"
    halves = full and multiplies_bfloat16() and not torch.cuda.is_available()
    if halves:
        reasons["softmax_factors"] = "its products have bfloat16 factors: this processor multiplies them directly"
    config = ModelConfig(
        num_items=dataset.num_items,
        num_actions=len(manifest.actions),
        num_surfaces=len(manifest.surfaces),
        positive_mask=manifest.positive_mask,
        content_dim=content_dim,
        user_dim=dataset.user_dim,
        block="hstu" if hstu else "softmax",
        window=window,
        use_actions=use_actions,
        use_surfaces=use_surfaces,
        use_time=use_time,
        past_rates=past_rates,
        detach_candidates=past_rates,
        retrieval_loss="full" if full else "sampled",
        softmax_factors="bfloat16" if halves else "float32",
        neighbour_targets=_NEIGHBOUR_TARGETS if spreads else 0.0,
        **(_WIDE if past_rates else {}),
    )
    return Recipe(model=config, batch_tokens=batch_tokens, max_epochs=_EPOCHS, reasons=reasons)


def validation_requests(dataset: Dataset) -> Requests:
    """Requests that training looks at: all of them, or a fixed sample of 20,000; sorted by length of history."""
    requests = dataset.requests("validation")
    if len(requests) > _VALIDATION_USERS:
        picked = np.random.default_rng(0).choice(len(requests), _VALIDATION_USERS, replace=False)
        requests = requests.rows(np.sort(picked))
    return by_length(requests)


def by_length(requests: Requests) -> Requests:
    """The requests, those with short histories first."""
    return requests.rows(np.argsort(requests.end, kind="stable"))
