"""Tables in the README and the docs, generated from the files under docs/results/.

A result file holds one table: the command that printed it, the commit, the date, the data's hash, the device and its
rows. A page holds ``<!-- results:NAME -->`` and ``<!-- /results -->``; what stands between is written from
``docs/results/NAME.json``. NAME may hold ``*``: every file that matches, or a line saying that there is none.

``python -P -m recsys.pipelines.results write`` renders all pages again, ``check`` names those that differ.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recsys.errors import InputError
from recsys.files import atomic_file, read_json, write_json
from recsys.pipelines.machine import device_name

__all__ = ["check", "record", "render", "write"]

FOLDER = Path("docs") / "results"
_FIELDS = ("name", "title", "command", "commit", "date", "data_hash", "device", "columns", "rows", "notes")
_BLOCK = re.compile(r"(<!-- results:([\w*.-]+) -->\n).*?(<!-- /results -->)", re.DOTALL)


def record(
    name: str,
    title: str,
    command: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    *,
    data_hash: str | None = None,
    notes: Sequence[str] = (),
    device: str | None = None,
    root: Path = Path(),
) -> Path:
    """Write one result file with the current commit and date.

    Args:
        name: file name without ``.json``.
        title: heading of the table.
        command: the command line that printed the figures.
        rows: one mapping per row; ``KEY_ci`` beside ``KEY`` is shown as its interval.
        columns: keys of the rows in the order shown; they are the headings too.
        data_hash: content hash of the dataset, None where none was read.
        notes: sentences below the table.
        device: what it ran on; this machine's device where it is None.
        root: root of the repository.

    Returns:
        The file's path.
    """
    path = root / FOLDER / f"{name}.json"
    result = {
        "name": name,
        "title": title,
        "command": command,
        "commit": _commit(root),
        "date": datetime.now(UTC).date().isoformat(),
        "data_hash": data_hash,
        "device": device or device_name(),
        "columns": list(columns),
        "rows": [dict(row) for row in rows],
        "notes": list(notes),
    }
    render(result, str(path))  # what cannot be shown is not recorded
    write_json(path, result)
    return path


def _commit(root: Path) -> str:
    """The short commit of the tree, marked where tracked Python files differ from it."""
    head = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
        changed = ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no", "--", "*.py"]
        dirty = subprocess.run(changed, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"{root.absolute()} is no git repository; record results from a clone ({error})") from None
    return f"{commit}+" if dirty else commit


def render(result: Mapping[str, Any], path: str) -> str:
    """One result as Markdown: title, table, notes and where it comes from.

    Raises:
        InputError: the file at ``path`` lacks a field, or a row holds none of the columns.
    """
    missing = [field for field in _FIELDS if field not in result]
    if missing:
        raise InputError(f"{path} lacks {missing[0]!r}; write it with recsys.pipelines.results.record")
    columns = result["columns"]
    lines = [f"**{result['title']}**", "", _line(columns), _line(["---"] * len(columns))]
    for number, row in enumerate(result["rows"]):
        if not any(column in row for column in columns):
            raise InputError(f"{path}: row {number} holds none of the columns {columns}")
        lines.append(_line([_cell(row, column) for column in columns]))
    lines += ["", *(f"{note}  " for note in result["notes"])]
    data = f", data `{result['data_hash'][:12]}`" if result["data_hash"] else ""
    lines.append(
        f"<sub>`{result['command']}` · commit {result['commit']}, {result['date']}, {result['device']}{data}</sub>"
    )
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(row: Mapping[str, Any], column: str) -> str:
    text = _figure(row.get(column))
    interval = row.get(f"{column}_ci")
    return text if interval is None else f"{text} [{_figure(interval[0])}, {_figure(interval[1])}]"


def _figure(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        size = abs(value)
        return f"{value:.4f}" if size < 1 else f"{value:.2f}" if size < 100 else f"{value:,.0f}"
    return str(value).replace("|", "\\|")


def pages(root: Path) -> list[Path]:
    """The pages that may hold tables."""
    return [path for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))) if path.exists()]


def rendered(page: Path, root: Path) -> str:
    """A page's text with every table as the result files have it."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}{_tables(match[2], page, root)}{match[3]}"

    return _BLOCK.sub(block, page.read_text(encoding="utf-8"))


def _tables(name: str, page: Path, root: Path) -> str:
    files = sorted((root / FOLDER).glob(f"{name}.json"))
    if not files and "*" not in name:
        raise InputError(
            f"{page} shows the results {name!r}, but {FOLDER / name}.json is missing; run its command again"
        )
    if not files:
        return "No figures are recorded here yet.\n"
    return "\n".join(render(read_json(path), str(path)) for path in files)


def check(root: Path) -> list[Path]:
    """The pages whose tables differ from the result files."""
    return [page for page in pages(root) if rendered(page, root) != page.read_text(encoding="utf-8")]


def write(root: Path) -> list[Path]:
    """Render every page again; the pages that changed."""
    changed = check(root)
    for page in changed:
        text = rendered(page, root)
        with atomic_file(page) as partial:
            partial.write_text(text, encoding="utf-8")
    return changed


def main(argv: Sequence[str]) -> int:
    """``write`` or ``check`` the pages of the repository in the current folder."""
    if list(argv) not in (["write"], ["check"]):
        sys.stderr.write("usage: python -P -m recsys.pipelines.results write|check\n")
        return 2
    try:
        pages_at_fault = write(Path()) if argv[0] == "write" else check(Path())
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for page in pages_at_fault:
        sys.stdout.write(f"{page}: {'written' if argv[0] == 'write' else 'differs from docs/results'}\n")
    return int(argv[0] == "check" and bool(pages_at_fault))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
