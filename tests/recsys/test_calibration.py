"""Calibrated probabilities: the right temperature and offset, the same order, plain arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.calibration import Calibration
from recsys.ranking_metrics import logloss


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def labels(seed: int = 0, rows: int = 20_000):
    """Logits that are too sure and too high for action 0, right for action 1, and of an action nobody took."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(-1, 1.2, (rows, 3))
    yes = rng.random((rows, 3)) < sigmoid(truth)
    yes[:, 2] = False
    logit = truth.copy()
    logit[:, 0] = truth[:, 0] * 2 + 1
    return logit.astype(np.float32), yes, np.ones_like(yes)


def test_it_finds_the_temperature_and_the_offset():
    logit, yes, known = labels()
    found = Calibration.fit(logit, yes, known)
    np.testing.assert_allclose(found.scale_A[:2], [0.5, 1.0], atol=0.03)
    np.testing.assert_allclose(found.offset_A[:2], [-0.5, 0.0], atol=0.05)
    assert found.scale_A[2] == 1.0 and found.offset_A[2] == 0.0
    prob = found.probabilities(torch.from_numpy(logit)).numpy()
    fresh_logit, fresh_yes, _ = labels(seed=1)
    after = found.probabilities(torch.from_numpy(fresh_logit)).numpy()[:, 0]
    before = sigmoid(fresh_logit[:, 0].astype(np.float64))
    assert logloss(fresh_yes[:, 0], after.astype(np.float64)) < logloss(fresh_yes[:, 0], before) - 0.02
    assert (np.diff(prob[np.argsort(logit[:, 0]), 0]) >= 0).all()


def test_unknown_labels_count_for_nothing():
    logit, yes, known = labels()
    wrong = yes.copy()
    known[::2, 0] = False
    wrong[::2, 0] = ~wrong[::2, 0]
    one, other = Calibration.fit(logit, yes, known), Calibration.fit(logit, wrong, known)
    assert np.array_equal(one.scale_A, other.scale_A) and np.array_equal(one.offset_A, other.offset_A)


def test_a_handful_of_rows_hardly_moves_the_logits_and_never_turns_their_order():
    logit = np.array([[-4.0], [-5.0], [-6.0], [-3.0]], dtype=np.float32)
    yes = np.array([[False], [False], [True], [False]])
    found = Calibration.fit(logit, yes, np.ones_like(yes))
    assert 0.3 < found.scale_A[0] < 1.7
    turned = Calibration.fit(np.repeat(logit, 500, 0), np.repeat(yes, 500, 0), np.ones((2000, 1), dtype=bool))
    assert turned.scale_A[0] > 0


def test_files_hold_what_was_fitted(tmp_path):
    found = Calibration.fit(*labels(rows=500))
    found.save(tmp_path / "calibration.safetensors")
    again = Calibration.load(tmp_path / "calibration.safetensors")
    assert np.array_equal(found.scale_A, again.scale_A) and np.array_equal(found.offset_A, again.offset_A)
    assert not again.is_identity and Calibration.identity(3).is_identity


def test_a_scale_at_its_bound_leaves_the_mean_logit_where_the_fit_put_it():
    rng = np.random.default_rng(0)
    logit_R1 = rng.normal(4.0, 1.0, (4000, 1)).astype(np.float32)
    yes_R1 = rng.random((4000, 1)) < 1 / (1 + np.exp(2 * (logit_R1 - 4)))  # the larger the logit, the rarer
    fitted = Calibration.fit(logit_R1, yes_R1, np.ones_like(yes_R1))
    assert fitted.scale_A[0] == 0.1  # the least
    chance = fitted.probabilities(torch.from_numpy(logit_R1))
    assert float(chance.mean()) == pytest.approx(yes_R1.mean(), abs=0.03)
