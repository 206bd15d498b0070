"""The pages: every block marked as runnable runs, links lead somewhere, the command reference is current."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.pipelines.cli import COMMANDS
from recsys.pipelines.cli_reference import PAGE, command_reference

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(bash|python) run\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of the runnable blocks of a page."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def test_the_pages_have_runnable_blocks() -> None:
    with_blocks = {page.name for page in PAGES if blocks(page)}
    assert with_blocks >= {"README.md", "getting-started.md", "bring-your-own-data.md"}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_runnable_blocks_of_a_page_run_in_order(page: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for language, text in blocks(page):
        command = ["bash", "-euo", "pipefail", "-c", text] if language == "bash" else [sys.executable, "-P", "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{page.name}:\n{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []


def test_the_command_reference_is_current(root: Path) -> None:
    page = (root / PAGE).read_text(encoding="utf-8")
    assert page == command_reference(), "write it again: python -P -m recsys.pipelines.cli_reference"


def test_every_command_exists_with_help_for_every_flag() -> None:
    reference = command_reference()
    for name, command in COMMANDS.items():
        assert callable(command.load())
        assert command.example.startswith(f"recsys {name}") and command.example in reference
    flags_without_help = [line for line in reference.splitlines() if line.startswith("| `--") and line.endswith("|  |")]
    assert flags_without_help == []
