"""Every patch in ``tests/mutations`` breaks one promise; the test that it names must then fail.

A patch is applied to a copy of the sources, which stands first on the path of a fresh process. Its head says what it
breaks and which test notices; the same test passes on an unpatched copy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PATCHES = sorted((Path(__file__).parent / "mutations").glob("*.patch"))
FOLDERS = ("recsys", "retrieval", "tokenizers", "index", "kernels", "pipelines", "tests")


def head(patch: Path, key: str) -> str:
    lines = [line for line in patch.read_text(encoding="utf-8").splitlines() if line.startswith(f"{key}: ")]
    assert len(lines) == 1, f"{patch.name} must have one line '{key}: …'"
    return lines[0].removeprefix(f"{key}: ")


@pytest.fixture(scope="module")
def pristine(root, tmp_path_factory) -> Path:
    """A copy of the sources."""
    copy = tmp_path_factory.mktemp("sources")
    for name in FOLDERS:
        shutil.copytree(root / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", copy)
    return copy


def run_test(copy: Path, test: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    check = "import recsys, pathlib, sys; sys.exit(not pathlib.Path(recsys.__file__).is_relative_to(sys.argv[1]))"
    assert subprocess.run([sys.executable, "-P", "-c", check, str(copy)], env=environment).returncode == 0
    command = [sys.executable, "-P", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", test]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=600)


def test_there_are_enough_and_each_names_an_existing_test(root):
    assert len(PATCHES) >= 12
    for patch in PATCHES:
        file, name = head(patch, "test").split("::")
        assert f"def {name}(" in (root / file).read_text(encoding="utf-8"), patch.name
        assert len(head(patch, "breaks")) > 10


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_patch_still_applies(patch, root):
    subprocess.run(["git", "apply", "--check", str(patch)], check=True, cwd=root)


@pytest.mark.slow
@pytest.mark.parametrize("test", sorted({head(patch, "test") for patch in PATCHES}))
def test_named_test_passes_on_the_unpatched_copy(test, pristine):
    done = run_test(pristine, test)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_patch_is_caught(patch, pristine, tmp_path):
    copy = tmp_path / "mutant"
    shutil.copytree(pristine, copy, symlinks=True)
    subprocess.run(["git", "apply", "--unsafe-paths", f"--directory={copy}", str(patch)], check=True, cwd="/")
    done = run_test(copy, head(patch, "test"))
    assert done.returncode == 1, f"{head(patch, 'breaks')}: not noticed\n{done.stdout[-2000:]}"
