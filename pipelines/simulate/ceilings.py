"""The best that anyone could predict: who sees the hidden type, and who knows the world but only the history.

Suffixes: Q = requests, I = items, V = visits, R = slate rows, Z = types, A = actions, K = places.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score

from recsys.pipelines.simulate.posterior import forward_beliefs
from recsys.pipelines.simulate.visits import PROBE, SEARCH, Memory, Visits
from recsys.pipelines.simulate.world import ACTIONS, World

__all__ = ["ceilings", "request_states", "slate_probabilities"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def ceilings(world: World, visits: Visits) -> dict[str, Any]:
    """Both ceilings of both held-out splits, under the protocol of the evaluation.

    ``true`` knows the hidden type at the moment of the target; ``posterior`` knows the world's parameters and the
    user's events strictly before the target or slate. Neither knows the place a row was shown at: places of probes
    are random, so both average over them.
    """
    belief_VZ = forward_beliefs(world, visits)
    known_VZ = np.eye(world.config.num_types)[visits.type]
    out: dict[str, Any] = {"world": world.config.digest(), "seed": world.config.seed}
    for split, target_at in (("validation", visits.valid_at_U), ("test", visits.test_at_U)):
        at = target_at[target_at >= 0]
        last, seen_QI = request_states(world, visits, at)
        slates = _held_out_slates(visits, split)
        split_out: dict[str, Any] = {"num_users": len(at), "num_slates": len(slates)}
        for name, who_VZ in (("true", known_VZ), ("posterior", belief_VZ)):
            score_QI = world.search_weights(last, who_VZ[at], seen_QI)
            split_out[name] = {
                "retrieval": _retrieval(score_QI, visits.item_VK[at, 0], seen_QI),
                "ranking": _ranking(slate_probabilities(world, visits, slates, who_VZ[slates]), visits.yes_VKA[slates]),
            }
        out[split] = split_out
    return out


def request_states(world: World, visits: Visits, at: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Last positive item [Q] and items met [Q, I] of the users of visits ``at`` (one a user), before those visits."""
    target_U = np.full(world.config.num_users, len(visits))
    target_U[visits.user[at]] = at
    memory = Memory(world.config.num_users, world.config.num_items)
    row = np.flatnonzero((np.arange(len(visits)) < target_U[visits.user]) & (visits.kind != PROBE))
    for step in range(int(visits.step.max(initial=-1)) + 1):
        now = row[visits.step[row] == step]
        memory.add(visits.user[now], visits.item_VK[now], visits.yes_VKA[now])
    return memory.last_U[visits.user[at]], memory.seen_UI[visits.user[at]]


def slate_probabilities(world: World, visits: Visits, at: Ints, belief_QZ: Floats) -> Floats:
    """[Q, K, A] probability of each action under a belief over types, averaged over the places of the slate."""
    item_QK, surface_Q1 = visits.item_VK[at], visits.surface[at][:, None]
    prob_QKA = np.zeros((*item_QK.shape, len(ACTIONS)))
    for place in range(item_QK.shape[1]):
        prob_QKZA = world.action_probabilities(item_QK, surface_Q1, place)
        prob_QKA += np.einsum("qkza,qz->qka", prob_QKZA, belief_QZ)
    return prob_QKA / item_QK.shape[1]


def _held_out_slates(visits: Visits, split: str) -> Ints:
    """Validation slates lie between the two targets, test slates after the test target."""
    row = np.arange(len(visits))
    test_V = visits.test_at_U[visits.user]
    if split == "test":
        return np.flatnonzero((test_V >= 0) & (row > test_V) & (visits.kind != SEARCH))
    valid_V = visits.valid_at_U[visits.user]
    return np.flatnonzero((valid_V >= 0) & (row > valid_V) & (row < test_V) & (visits.kind != SEARCH))


def _retrieval(score_QI: Floats, target: Ints, seen_QI: NDArray[np.bool_]) -> dict[str, float]:
    """Full ranking, the history filtered, exact ties against the target; a seen target is a miss."""
    row = np.arange(len(target))
    score_QI = np.where(seen_QI, -np.inf, score_QI)
    rank = (score_QI >= score_QI[row, target][:, None]).sum(1)  # 1 = best; counts the target itself
    rank = np.where(seen_QI[row, target], score_QI.shape[1] + 1, rank)
    return {
        "recall@10": float((rank <= 10).mean()),
        "ndcg@10": float(np.where(rank <= 10, 1 / np.log2(1 + rank), 0.0).mean()),
        "recall@100": float((rank <= 100).mean()),
        "mrr": float((1 / rank).mean()),
    }


def _ranking(prob_QKA: Floats, yes_QKA: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    """AUC over all rows and log loss, per action that both happened and did not."""
    out = {}
    for action, name in enumerate(ACTIONS):
        label, prob = yes_QKA[..., action].ravel(), prob_QKA[..., action].ravel()
        if label.any() and not label.all():
            out[name] = {"auc": float(roc_auc_score(label, prob)), "logloss": float(log_loss(label, prob))}
    return out
