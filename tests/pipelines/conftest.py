"""Made data on which a head of lists has something to learn."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.pipelines.export import export_model
from recsys.pipelines.prepare.build import prepare_frames


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Bundle]:
    """After item i mostly comes item i + 1; an untrained model that knows nothing of it, its terms left out."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(110):
        item = int(rng.integers(0, 40))
        for step in range(9):
            rows.append((f"u{user}", f"i{item}", 1_700_000_000 + 1000 * step, "click"))
            item = (item + 1) % 40 if rng.random() < 0.8 else int(rng.integers(0, 40))
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "action"], orient="row")
    folder = tmp_path_factory.mktemp("chain")
    dataset = prepare_frames(interactions=frame, output=folder / "data")
    config = ModelConfig(
        num_items=dataset.num_items, num_actions=1, num_surfaces=len(dataset.manifest.surfaces), positive_mask=1,
        dim=16, window=12, use_actions=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UnifiedModel(config)
    model.items.set_catalogue(None, torch.from_numpy(dataset.train_item_counts() > 0))
    export_model(model.eval(), dataset, folder / "bundle", histories=True)
    return dataset, Bundle.open(folder / "bundle")
