"""How much of what the network adds to past rates ranking should believe, chosen on validation slates.

Training repeats the same labels for many epochs, and what the network adds to the logits of the candidate's own
features then fits them too well. Its share is a weight of stacked generalisation (Wolpert 1992): a logistic regression
on the two parts, of labels that training did not see. On KuaiRand, after twelve epochs, test AUC of clicks became .7526
instead of .7486, with shares around .4; the features alone reach .7502.

Suffixes: R = slate rows, A = actions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.dataset import Dataset
from recsys.event_counts import mask_bits
from recsys.files import atomic_file
from recsys.logistic import fit_logistic
from recsys.model import UnifiedModel
from recsys.pipelines.checkpoint import load_model
from recsys.pipelines.item_graphs import training_graph
from recsys.ranking import SlatePredictions, predict_slates
from recsys.training_features import DatasetFeatures

__all__ = ["add_ranking_shares", "chosen_shares", "shared_logits"]

VALIDATION = 1
_PRIOR_ROWS = 10.0
"""How many rows' worth of curvature pull towards leaving the parts as they are."""


def chosen_shares(
    features_RA: NDArray[np.float32], network_RA: NDArray[np.float32], yes_RA: NDArray[np.bool_],
    known_RA: NDArray[np.bool_],
) -> NDArray[np.float64]:  # fmt: skip
    """[A] weight of the second logit beside that of the first, from 0 to 1; 1 where there is nothing to learn from.

    Args:
        features_RA, network_RA: the parts of each logit, of rows that training did not see.
        yes_RA, known_RA: whether the action followed, and whether that is known.
    """
    share_A = np.ones(features_RA.shape[1])
    for action in range(len(share_A)):
        known_R = known_RA[:, action]
        yes_R = yes_RA[known_R, action]
        if not yes_R.any() or yes_R.all():
            continue
        parts = (features_RA[known_R, action], network_RA[known_R, action], np.ones(len(yes_R)))
        x_R3 = np.stack([part.astype(np.float64) for part in parts], 1)
        penalty_33 = 0.25 * _PRIOR_ROWS * (x_R3.T @ x_R3 / len(x_R3) + 1e-6 * np.eye(3))
        weight_3 = fit_logistic(x_R3, yes_R, np.array([1.0, 1.0, 0.0]), penalty_33)
        if weight_3[0] > 0:
            share_A[action] = float(np.clip(weight_3[1] / weight_3[0], 0.0, 1.0))
    return share_A


def shared_logits(
    model: UnifiedModel, predicted: SlatePredictions, feature_RF: NDArray[np.float32], dataset: Dataset
) -> NDArray[np.float32]:
    """[R, A] logits of slate rows with the shares that these rows choose, as :func:`add_ranking_shares` would.

    Args:
        model: that ranks with features.
        predicted: of slate rows that training did not see.
        feature_RF: features of these rows.
        dataset: with the slates.
    """
    head, slates = model.action_head, dataset.slates
    assert head is not None and slates is not None
    with torch.inference_mode():
        feature = torch.from_numpy(np.ascontiguousarray(feature_RF, dtype=np.float32)).to(model.device)
        features_RA = head.feature_logits(feature).cpu().numpy()
    network_RA = predicted.logit_RA - features_RA
    share_A = chosen_shares(
        features_RA,
        network_RA,
        mask_bits(slates.yes[predicted.row_R], head.num_actions),
        mask_bits(slates.known[predicted.row_R], head.num_actions),
    )
    logit_RA: NDArray[np.float32] = features_RA + share_A.astype(np.float32) * network_RA
    return logit_RA


def add_ranking_shares(checkpoint: Path, dataset: Dataset) -> dict[str, float]:
    """Weigh the network's part of every action's logit in a checkpoint; after the last epoch of a fit.

    The share multiplies the last layer of the ranking head, so that the model is the same otherwise.

    A checkpoint that has its shares is left as it is, so that a fit which was killed here goes on to the same bytes.

    Returns:
        The share of each action; empty where ranking reads no features or there are no validation slates, and then
        nothing is written.
    """
    model, meta = load_model(checkpoint)
    if "ranking_shares" in meta:
        return dict(meta["ranking_shares"])
    head, slates = model.action_head, dataset.slates
    if head is None or head.wide is None or slates is None or not (slates.split == VALIDATION).any():
        return {}
    graph = training_graph(dataset, model.config.relations) if model.config.memory_features else None
    feature_RF = DatasetFeatures(dataset, model.config, graph).slates(VALIDATION)
    whole = predict_slates(model, dataset, VALIDATION, feature_RF=feature_RF)
    num_actions = head.num_actions
    kept = head.out.weight.detach().clone(), head.out.bias.detach().clone()
    with torch.no_grad():
        head.out.weight[:num_actions] = 0.0
        head.out.bias[:num_actions] = 0.0
    features = predict_slates(model, dataset, VALIDATION, feature_RF=feature_RF)
    share_A = chosen_shares(
        features.logit_RA,
        whole.logit_RA - features.logit_RA,
        mask_bits(slates.yes[whole.row_R], num_actions),
        mask_bits(slates.known[whole.row_R], num_actions),
    )
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    factor_A = torch.from_numpy(share_A).float()
    for name, value in zip(("weight", "bias"), kept, strict=True):
        value[:num_actions] *= factor_A[:, None] if value.dim() > 1 else factor_A
        content["state_dict"][f"net.action_head.out.{name}"] = value
    shares: dict[str, float] = dict(zip(dataset.manifest.actions, share_A.tolist(), strict=True))
    content["recsys"]["ranking_shares"] = shares
    with atomic_file(checkpoint) as temporary:
        torch.save(content, temporary)
    return shares
