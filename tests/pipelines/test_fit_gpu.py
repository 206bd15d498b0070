"""The same code trains on CUDA."""

from __future__ import annotations

import pytest
import torch

from recsys.objective import Objective
from recsys.pipelines.checkpoint import load_model
from recsys.pipelines.data_module import PreparedData
from recsys.pipelines.unified_module import build_network


@pytest.mark.gpu
@pytest.mark.parametrize("block", ["softmax", "hstu"])
@pytest.mark.parametrize("layout", ["mam", "lagged", "interleaved"])
def test_losses_and_gradients_on_cuda_are_those_on_the_cpu(toy_dataset, block, layout):
    data = PreparedData(str(toy_dataset.path))
    counts = torch.from_numpy(toy_dataset.train_item_counts())
    found = {}
    for device in ("cpu", "cuda"):
        # No masks and no dropout: the generators of the two devices draw different numbers.
        changes = {"block": block, "layout": layout, "dropout": 0.0, "id_dropout": 0.0, "mask_prob": 0.0}
        model = build_network(data, changes).to(device)
        objective = Objective(model, counts)
        objective.to(torch.device(device))
        losses = objective(data.examples(model.config).batch(0).to(device))
        losses.total.backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        found[device] = torch.stack([losses.total.detach().cpu(), norm.cpu()])
    assert torch.allclose(found["cpu"], found["cuda"], rtol=1e-3)


@pytest.mark.gpu
def test_fit_runs_on_cuda_and_its_checkpoint_loads_on_a_cpu(toy_dataset, tmp_path):
    from recsys.pipelines.fit import fit_dataset

    best = fit_dataset(toy_dataset, tmp_path / "run", quiet=True, accelerator="gpu", devices=1, max_epochs=2)
    model, meta = load_model(best)
    assert meta["data_hash"] == toy_dataset.manifest.data_hash
    states = model.encode([toy_dataset.events.history(0)])
    assert states.last_BD.isfinite().all()
