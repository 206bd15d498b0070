"""Curves beside Platt scaling: only where unseen users gain, monotone, served without scikit-learn."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from recsys.calibration import Calibration
from recsys.isotonic_curve import IsotonicCurve
from recsys.pipelines.calibrate import calibrate_rows, isotonic
from recsys.ranking_metrics import auc, calibration_error, logloss


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def made(seed: int = 3, rows: int = 12_000):
    """Logits whose true probability is a staircase of them in action 0 and a sigmoid in action 1; nobody took 2."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(0, 2, (rows, 3))
    stairs = 0.15 + 0.5 * (logit[:, 0] > 0.5) + 0.3 * (logit[:, 0] > 2.5)
    truth = np.stack([stairs, sigmoid(1.3 * logit[:, 1] - 1), np.zeros(rows)], 1)
    yes = rng.random((rows, 3)) < truth
    return logit.astype(np.float32), yes, np.ones_like(yes), rng.integers(0, 400, rows)


@pytest.fixture(scope="module")
def fitted():
    return calibrate_rows(*made())


def test_a_curve_is_used_only_where_unseen_users_gain(fitted):
    assert set(fitted.calibration.curves) == {0}
    assert set(fitted.figures) == {0, 1}
    stairs, straight = fitted.figures[0], fitted.figures[1]
    assert (stairs["method"], straight["method"]) == ("isotonic", "platt")
    assert stairs["logloss_isotonic"] < stairs["logloss_platt"] - 0.01 < stairs["logloss_raw"]
    assert stairs["calibration_error_isotonic"] < 0.4 * stairs["calibration_error_platt"]
    assert straight["calibration_error_platt"] < 0.5 * straight["calibration_error_raw"]


def test_it_holds_for_fresh_rows_and_keeps_their_order(fitted):
    logit, yes, _, _ = made(seed=9)
    prob = fitted.calibration.probabilities(torch.from_numpy(logit)).numpy()[:, 0].astype(np.float64)
    straight = Calibration(fitted.calibration.scale_A, fitted.calibration.offset_A)
    platt = straight.probabilities(torch.from_numpy(logit)).numpy()[:, 0].astype(np.float64)
    assert logloss(yes[:, 0], prob) < logloss(yes[:, 0], platt) - 0.01
    assert calibration_error(yes[:, 0], prob) < 0.02
    assert 0 < prob.min() and prob.max() < 1
    order = np.argsort(logit[:, 0], kind="stable")
    assert (np.diff(prob[order]) >= 0).all()
    assert auc(yes[:, 0], prob) == pytest.approx(auc(yes[:, 0], logit[:, 0].astype(np.float64)), abs=1e-4)


def test_labels_of_unknown_rows_and_few_rows_change_nothing():
    logit, yes, known, user = made(rows=2000)
    known[::2] = False
    other = yes.copy()
    other[::2] = ~other[::2]
    one, two = calibrate_rows(logit, yes, known, user), calibrate_rows(logit, other, known, user)
    assert one.figures == two.figures
    few = calibrate_rows(logit[:80], yes[:80], known[:80], user[:80])
    assert few.figures == {} and not few.calibration.curves


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**16), rows=st.integers(1, 60), values=st.integers(1, 8))
def test_a_curve_is_the_regression_of_scikit_learn(seed, rows, values):
    from sklearn.isotonic import IsotonicRegression

    rng = np.random.default_rng(seed)
    logit = rng.integers(0, values, rows).astype(np.float32) - 3
    yes = rng.random(rows) < 0.5
    asked = np.concatenate([logit, rng.normal(0, 4, 20).astype(np.float32), [-1e30, 1e30]]).astype(np.float32)
    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(logit.astype(np.float64), yes)
    found = isotonic(logit, yes)(torch.from_numpy(asked)).numpy()
    np.testing.assert_allclose(found, model.predict(asked.astype(np.float64)), atol=1e-9)


def test_files_hold_curves_and_older_files_load(fitted, tmp_path):
    path = tmp_path / "calibration.safetensors"
    fitted.calibration.save(path)
    again = Calibration.load(path)
    logit = torch.from_numpy(made()[0][:500])
    assert torch.equal(again.probabilities(logit), fitted.calibration.probabilities(logit))
    save_file({"scale": np.array([2.0, 1.0]), "offset": np.array([0.5, 0.0])}, path)
    old = Calibration.load(path)
    assert not old.curves
    assert torch.equal(old.probabilities(torch.tensor([1.0, 1.0])), torch.sigmoid(torch.tensor([2.5, 1.0])))
    only_curve = Calibration(np.ones(1), np.zeros(1), {0: IsotonicCurve(np.array([0.0]), np.array([0.5]))})
    assert not only_curve.is_identity


@pytest.mark.parametrize(
    ("logit", "probability", "said"),
    [
        ([0.0, 0.0], [0.1, 0.2], "must be finite and rise"),
        ([0.0, 1.0], [0.2, 0.1], "must be finite and rise"),
        ([0.0, np.nan], [0.1, 0.2], "must be finite and rise"),
        ([0.0, 1.0], [0.1, 1.2], "must be from 0 to 1"),
        ([0.0], [0.1, 0.2], "as many logits as probabilities"),
    ],
)
def test_a_curve_that_is_none_is_refused(logit, probability, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        IsotonicCurve(np.array(logit), np.array(probability))
    arrays = {"curve_logit_0": np.array(logit), "curve_probability_0": np.array(probability)}
    save_file({"scale": np.ones(1), "offset": np.zeros(1), **arrays}, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match=said):
        Calibration.load(tmp_path / "c.safetensors")


def test_curves_of_other_actions_are_refused(tmp_path):
    arrays = {"curve_logit_4": np.zeros(1), "curve_probability_4": np.zeros(1)}
    save_file({"scale": np.ones(1), "offset": np.zeros(1), **arrays}, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="curves are of actions"):
        Calibration.load(tmp_path / "c.safetensors")


def test_serving_a_curve_needs_no_scikit_learn(fitted, tmp_path):
    fitted.calibration.save(tmp_path / "c.safetensors")
    code = (
        "import sys, pathlib, torch; from recsys.calibration import Calibration;"
        "print(Calibration.load(pathlib.Path(sys.argv[1])).probabilities(torch.zeros(3)).tolist());"
        "sys.exit('sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, str(tmp_path / "c.safetensors")], capture_output=True)
    assert done.returncode == 0, done.stderr
