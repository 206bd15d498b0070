"""What `recsys doctor` finds in made and in real environments."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from recsys.files import read_json
from recsys.pipelines import cli, doctor

NEEDS = [
    Requirement(line)
    for line in (
        "torch>=2.6,<3",
        "polars>=1.20",
        "tomli>=2; python_version < '3'",
        'faiss-cpu>=1.9; extra == "faiss"',
        'faiss-gpu>=1.9; extra == "gpu"',
        'lightgbm>=4.3; extra == "baselines"',
    )
]
GOOD = {"torch": "2.13.0+cpu", "polars": "2.1.0", "faiss-cpu": "1.15.1", "lightgbm": "4.7.0"}


def problems(**changes: str | None) -> list[str]:
    named = {name.replace("_", "-"): version for name, version in changes.items()}
    installed = {name: version for name, version in (GOOD | named).items() if version is not None}
    return doctor.examine(installed, NEEDS).problems


def test_a_complete_environment_has_no_problem_and_no_line_to_run() -> None:
    findings = doctor.examine(GOOD, NEEDS)
    assert findings.problems == []
    assert [extra["install"] for extra in findings.extras.values()] == [None, None, None]
    assert findings.versions == GOOD
    assert len(findings.devices) >= 1 + torch.cuda.device_count()


def test_a_missing_extra_comes_with_its_line() -> None:
    installed = {name: version for name, version in GOOD.items() if name in ("torch", "polars")}
    extras = doctor.examine(installed, NEEDS).extras
    assert extras["baselines"] == {"missing": ["lightgbm>=4.3"], "install": "pip install 'lightgbm>=4.3'"}
    assert extras["faiss"]["install"] == "pip install 'faiss-cpu>=1.9'"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"polars": "0.20.1"}, "polars 0.20.1 is outside >=1.20; run: pip install 'polars>=1.20'"),
        ({"polars": None}, "polars is not installed"),
        ({"faiss_gpu": "1.15.1"}, "faiss-cpu and faiss-gpu overwrite each other"),
        ({"faiss_gpu_cu12": "1.14.1"}, "pip uninstall faiss-cpu faiss-gpu-cu12"),
        ({"torchrec": "1.8.0"}, "pip install --no-deps 'fbgemm-gpu-cpu==1.8.*'"),
        ({"torchrec": "1.8.0", "fbgemm_gpu_cpu": "1.9.0"}, "torchrec 1.8.0 with fbgemm-gpu-cpu 1.9.0 does not load"),
        ({"torchrec": "1.8.0", "fbgemm_gpu_cpu": "1.8.0", "torchmetrics": "1.0.3"}, "too old for lightning"),
    ],
)
def test_a_bad_version_or_pair_is_named(changes: dict[str, str | None], sentence: str) -> None:
    found = problems(**changes)
    assert len(found) == 1 and sentence in found[0]


def test_a_triton_that_torch_does_not_want_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requirements_of", lambda _: [Requirement("triton==3.7.1")])
    assert problems(triton="3.7.1") == []
    assert problems(triton="3.9.0") == [
        "torch 2.13.0+cpu wants triton==3.7.1, but 3.9.0 is installed; run: pip install 'triton==3.7.1'"
    ]


def test_the_command_reports_this_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json", str(tmp_path / "doctor.json")]) == 0
    found = read_json(tmp_path / "doctor.json")
    assert found["versions"]["torch"] == torch.__version__
    assert set(found["extras"]) >= {"faiss", "gpu", "baselines", "sweep", "dev"}
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}" in out and all(problem in out for problem in found["problems"])
