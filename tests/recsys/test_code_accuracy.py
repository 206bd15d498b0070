"""Right codes level by level: what a decoding of one request after the other counts."""

from __future__ import annotations

import pytest
import torch

from recsys.code_accuracy import CodeAccuracy, code_accuracy
from recsys.code_children import CodeChildren
from recsys.code_decoder import StateReader

AT = 1_702_000_000


def asked(model, dataset, users):
    states = model.encode([dataset.events.history(user, user % 6) for user in users])
    at_B, surface_B = torch.full((len(users),), AT), torch.zeros(len(users), dtype=torch.int64)
    return states, at_B, surface_B


def best_code(decoding, prefix, codes, constrained):
    """The most probable code after a prefix of one request."""
    logits = decoding.logits(None, None)
    for code in prefix:
        logits = decoding.logits(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[code]]))
    logits = logits[0, 0].tolist()
    allowed = range(len(logits))
    if constrained:
        allowed = sorted({row[len(prefix)] for row in codes if row[: len(prefix)] == prefix})
    return max(allowed, key=lambda code: logits[code])


@pytest.mark.parametrize("constrained", [False, True])
def test_counts_are_those_of_one_request_after_the_other(code_model, toy_dataset, constrained):
    users, levels = range(20), range(3)
    codes = code_model.codes.of("codes").tolist()
    wanted = {name: [0, 0, 0] for name in ("right", "strayed", "late")}
    targets = []
    for user in users:
        states, at_B, surface_B = asked(code_model, toy_dataset, [user])

        def choose(prefix, states=states, at_B=at_B, surface_B=surface_B):
            return best_code(code_model.decode(states, at_B, surface_B), prefix, codes, constrained)

        # Targets are drawn by user, those of every third one begin with the code that the model names itself.
        named = [item for item in range(30) if codes[item][0] == choose([])]
        targets.append(named[user % len(named)] if user % 3 == 0 and named else user)
        true, own = codes[targets[-1]], []
        for level in levels:
            wanted["right"][level] += choose(true[:level]) == true[level]
            strayed, code = own != true[:level], choose(own)
            wanted["strayed"][level] += strayed
            wanted["late"][level] += strayed and code == true[level]
            own.append(code)
    states, at_B, surface_B = asked(code_model, toy_dataset, users)
    code_NL = code_model.codes.of("codes")[torch.tensor(targets)].long()
    children = CodeChildren.of(code_NL.new_tensor(codes), (5, 4, 3)) if constrained else None
    found = code_accuracy(
        code_model.code_decoder, code_model.query(states, at_B, surface_B), code_NL, StateReader(states), children
    )
    assert found == CodeAccuracy(tuple(wanted["right"]), tuple(wanted["strayed"]), tuple(wanted["late"]), 20)
    assert 0 < found.right_L[0] < 20 and found.strayed_L == (0, 20 - found.right_L[0], found.strayed_L[2])
    assert 0 < found.right_strayed_L[1] < found.strayed_L[1]


def test_counts_of_batches_add_up_to_shares():
    one, two = CodeAccuracy((3, 1), (0, 1), (0, 1), 4), CodeAccuracy((1, 2), (0, 3), (0, 0), 4)
    assert (one + two).figures() == {
        "level1_accuracy": 4 / 8,
        "level2_accuracy": 3 / 8,
        "level2_accuracy_after_wrong": 1 / 4,
    }
    assert CodeAccuracy((0, 0), (0, 0), (0, 0), 0).figures() == {}
