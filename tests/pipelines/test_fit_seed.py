"""One seed decides a training, whichever of its two flags names it."""

from __future__ import annotations

import pytest
import torch

from recsys.pipelines import cli
from recsys.pipelines.checkpoint import load_model


@pytest.mark.parametrize("flag", ["--seed_everything", "--data.seed"])
def test_both_flags_of_the_seed_decide_the_weights(flag, toy_dataset, tmp_path):
    def initial(run: str, *more: str) -> dict[str, torch.Tensor]:
        where = ["--data.path", str(toy_dataset.path), "--trainer.default_root_dir", str(tmp_path / run)]
        rest = ["--trainer.max_epochs", "0", "--trainer.enable_progress_bar", "false", "--memory", "false"]
        assert cli.main(["fit", *where, *rest, *more]) == 0
        return load_model(tmp_path / run / "checkpoints" / "best.ckpt")[0].state_dict()

    default, other = initial("default"), initial("other", flag, "5")
    assert any(not torch.equal(value, other[name]) for name, value in default.items())
    same = initial("same", "--data.seed", "5")
    assert all(torch.equal(value, same[name]) for name, value in other.items())


def test_seeds_that_differ_are_an_error(toy_dataset, tmp_path, capsys):
    where = ["--data.path", str(toy_dataset.path), "--trainer.default_root_dir", str(tmp_path / "run")]
    assert cli.main(["fit", *where, "--seed_everything", "1", "--data.seed", "2"]) == 2
    assert "--seed_everything 1 and --data.seed 2 differ; give one" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
