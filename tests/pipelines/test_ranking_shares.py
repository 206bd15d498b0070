"""What the network adds to past rates counts as much as validation says."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import pytest

from recsys.pipelines import fit as fit_module
from recsys.pipelines.checkpoint import load_model
from recsys.pipelines.fit import fit_dataset
from recsys.pipelines.ranking_shares import chosen_shares
from recsys.ranking import predict_slates
from recsys.ranking_metrics import auc

FAST = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False, "memory": False, "dim": 16, "window": 16}


class Watched(L.Callback):
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.figures = {name: float(value) for name, value in trainer.callback_metrics.items()}


def parts(noise: float, rows: int = 20_000) -> tuple[Any, Any, Any]:
    """Two parts of true logits, the second with noise of so many times its own spread, and labels."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, rows, 1))
    yes = rng.random((rows, 1)) < 1 / (1 + np.exp(-(first + second)))
    return first.astype(np.float32), (second + noise * rng.normal(size=(rows, 1))).astype(np.float32), yes


@pytest.mark.parametrize(("noise", "share"), [(0.0, 1.0), (1.0, 0.5), (2.0, 0.2)])
def test_a_noisy_part_is_believed_as_far_as_it_forecasts(noise, share):
    first, second, yes = parts(noise)
    found = chosen_shares(first, second, yes, np.ones_like(yes))
    assert found == pytest.approx([share], abs=0.05) and found <= 1


def test_labels_that_are_unknown_or_all_alike_teach_nothing():
    first, second, yes = parts(2.0, rows=400)
    known = np.zeros_like(yes)
    assert chosen_shares(first, second, yes, known) == [1.0]
    assert chosen_shares(first, second, np.zeros_like(yes), ~known) == [1.0]
    known[:200] = True
    expected = chosen_shares(first[:200], second[:200], yes[:200], known[:200])
    assert chosen_shares(first, second, yes, known) == pytest.approx(expected) and expected < 1


def test_a_fit_weighs_the_network_in_what_it_keeps(small_world, tmp_path, monkeypatch):
    found: dict[str, float] = {}
    add = fit_module.add_ranking_shares
    monkeypatch.setattr(fit_module, "add_ranking_shares", lambda *words: found.update(add(*words)) or found)
    weighed_at = fit_dataset(small_world, tmp_path / "weighed", max_epochs=1, **FAST)
    before = weighed_at.read_bytes()
    assert add(weighed_at, small_world) == found and weighed_at.read_bytes() == before, "a second time changes nothing"
    kept, _ = load_model(weighed_at)
    monkeypatch.setattr(fit_module, "add_ranking_shares", lambda *words: {})
    trained, _ = load_model(fit_dataset(small_world, tmp_path / "trained", max_epochs=1, **FAST))
    assert set(found) == set(small_world.manifest.actions) and min(found.values()) < 1

    whole = predict_slates(trained, small_world, 2).logit_RA
    head = trained.action_head
    assert head is not None
    head.out.weight.data[:] = 0.0
    head.out.bias.data[:] = 0.0
    features = predict_slates(trained, small_world, 2).logit_RA
    weighed = features + np.array([found[action] for action in small_world.manifest.actions]) * (whole - features)
    assert np.allclose(predict_slates(kept, small_world, 2).logit_RA, weighed, atol=1e-5)
    for name, value in trained.state_dict().items():
        if not name.startswith("action_head.out."):
            assert (kept.state_dict()[name] == value).all(), name


def test_an_epoch_is_judged_by_what_its_shares_will_leave_of_it(small_world, tmp_path):
    """The AUC that validation logs is that of the checkpoint after its last step, not of the network as it trains."""
    watcher = Watched()
    best = fit_dataset(small_world, tmp_path / "run", max_epochs=1, watchers=[watcher], **FAST)
    kept, meta = load_model(best)
    assert min(meta["ranking_shares"].values()) < 1
    predicted, slates = predict_slates(kept, small_world, 1), small_world.slates
    for place, action in enumerate(small_world.manifest.actions):
        known = ((slates.known[predicted.row_R] >> place) & 1).astype(bool)
        yes = ((slates.yes[predicted.row_R] >> place) & 1).astype(bool)[known]
        wanted = auc(yes, predicted.logit_RA[known, place])
        assert watcher.figures[f"val/{action}/auc"] == pytest.approx(float(wanted), abs=1e-5)
