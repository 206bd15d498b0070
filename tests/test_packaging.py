"""One import package from several folders: in the root, in the wheel, and for mypy."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

FOLDERS = ["kernels", "tokenizers", "index", "retrieval", "pipelines"]


def run(*command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


def copy_sources(root: Path, to: Path) -> Path:
    """What a build reads, links kept as links."""
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in [*FOLDERS, "recsys"]:
        shutil.copytree(root / folder, to / folder, symlinks=True, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, to / name)
    return to


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources."""
    sources = copy_sources(root, tmp_path_factory.mktemp("sources") / "recsys-sources")
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    run(*pip, out, ".", cwd=sources)
    (built,) = out.glob("recsys-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, and the dependencies of this one in sight."""
    home = tmp_path_factory.mktemp("environment") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home.parent)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel, cwd=home.parent)
    (site,) = home.glob("lib/python*/site-packages")
    # A path line adds the folder alone, without the editable installation that its own .pth files would bring.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return home


def test_the_links_lead_to_the_sibling_folders(root: Path) -> None:
    for folder in FOLDERS:
        link = root / "recsys" / folder
        assert link.is_symlink() and link.resolve() == root / folder
    assert not (root / "tokenizers" / "__init__.py").exists()


def test_plain_python_in_the_root_finds_ours_and_the_third_party_tokenizers(root: Path) -> None:
    code = (
        "from transformers import AutoTokenizer; import recsys.tokenizers.text_svd, recsys.index, tokenizers; "
        "print(recsys.index.__file__); print(tokenizers.Tokenizer.__module__); print(recsys.tokenizers.__file__)"
    )
    lines = run(sys.executable, "-c", code, cwd=root).stdout.splitlines()
    assert Path(lines[0]).resolve() == root / "index" / "__init__.py"
    assert lines[1:] == ["tokenizers", "None"]


def test_the_test_run_itself_resolves_the_folders(root: Path) -> None:
    import recsys.index.hits

    assert Path(recsys.index.hits.__file__).resolve() == root / "index" / "hits.py"


def test_the_wheel_holds_one_package_with_every_module_and_no_extra_one(root: Path, wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    heads = {name.split("/")[0] for name in names}
    assert {head.split("-")[0] for head in heads} == {"recsys"}
    for folder in FOLDERS:
        sources = {path.relative_to(root).as_posix() for path in (root / folder).rglob("*.py")}
        assert {f"recsys/{name}" for name in sources} <= names
    assert {"recsys/py.typed", "recsys/errors.py"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_installed_wheel_loads_a_bundle_and_recommends(installed: Path, toy_bundle: Path, tmp_path: Path) -> None:
    code = (
        "import recsys, sys; from recsys import Recommender; "
        "page = Recommender.load(sys.argv[1]).recommend(user_id='u1', k=3); "
        "print(recsys.__file__); print(len(page)); "
        "from transformers import AutoTokenizer; import recsys.tokenizers.text_svd"
    )
    lines = run(installed / "bin" / "python", "-c", code, toy_bundle, cwd=tmp_path).stdout.splitlines()
    assert Path(lines[0]).is_relative_to(installed)
    assert lines[1] == "3"


def test_the_installed_console_script_runs(installed: Path, tmp_path: Path) -> None:
    assert run(installed / "bin" / "recsys", "--version", cwd=tmp_path).stdout == "recsys 0.1.0\n"
    done = run(installed / "bin" / "recsys", "doctor", cwd=tmp_path)
    assert "torch" in done.stdout


@pytest.mark.slow
def test_mypy_accepts_the_tree_and_sees_an_error_behind_a_link(root: Path, tmp_path: Path) -> None:
    sources = copy_sources(root, tmp_path / "tree")
    mypy = [sys.executable, "-m", "mypy", "--cache-dir", tmp_path / "cache"]
    run(*mypy, cwd=sources)
    with (sources / "index" / "hits.py").open("a") as stream:
        stream.write('\n\ndef wrong() -> int:\n    return "text"\n')
    done = run(*mypy, cwd=sources, check=False)
    assert done.returncode == 1
    assert "recsys/index/hits.py" in done.stdout and "return-value" in done.stdout
