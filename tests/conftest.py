"""What every test may ask for: a device, the folder of real data; one thread and Triton's interpreter otherwise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported
torch.set_num_threads(1)  # several workers share the cores, and small shapes gain nothing from more


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` say why they do not run."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, torch sees none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return Path(__file__).parents[1]


@pytest.fixture
def device() -> torch.device:
    """CUDA where there is a device, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets that the environment variable RECSYS_DATA names."""
    folder = os.environ.get("RECSYS_DATA")
    if not folder:
        pytest.skip("RECSYS_DATA names no folder of real data sets")
    path = Path(folder)
    if not path.is_dir():
        pytest.skip(f"RECSYS_DATA={folder} is no folder")
    return path
