"""Tables on pages and the files they come from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from recsys.errors import InputError
from recsys.files import read_json
from recsys.pipelines import results

ROW = {
    "model": "dense",
    "ndcg@10": 0.0652,
    "ndcg@10_ci": [0.063, 0.0674],
    "users": 19412,
    "seconds": 152.4,
    "auc": None,
}
COLUMNS = ["model", "ndcg@10", "users", "seconds", "auc"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small git repository with a README that shows one table."""
    (tmp_path / "README.md").write_text("# x\n<!-- results:toys -->\n<!-- /results -->\nafter\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "README.md"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    return tmp_path


def recorded(root: Path, **changes: object) -> Path:
    row = ROW | changes
    return results.record("toys", "Toys", "recsys evaluate", [row], COLUMNS, data_hash="ab" * 32, device="x", root=root)


def test_pages_and_result_files_of_this_repository_agree(root: Path) -> None:
    assert results.check(root) == []


def test_written_page_shows_the_recorded_figures_and_keeps_the_rest(repository: Path) -> None:
    recorded(repository)
    assert results.write(repository) == [repository / "README.md"]
    text = (repository / "README.md").read_text()
    assert "| dense | 0.0652 [0.0630, 0.0674] | 19,412 | 152 | – |" in text
    assert text.startswith("# x\n") and text.endswith("<!-- /results -->\nafter\n")
    assert "`recsys evaluate`" in text and "abababababab" in text
    assert results.check(repository) == []


def test_a_changed_figure_is_noticed(repository: Path) -> None:
    recorded(repository)
    results.write(repository)
    recorded(repository, users=19413)
    assert results.check(repository) == [repository / "README.md"]


def test_a_record_names_the_commit_it_was_measured_at(repository: Path) -> None:
    head = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    assert read_json(recorded(repository))["commit"] == head.stdout.strip()


def test_a_missing_result_file_is_an_error_and_a_missing_pattern_is_not(repository: Path) -> None:
    with pytest.raises(InputError, match=r"toys\.json is missing"):
        results.check(repository)
    (repository / "README.md").write_text("<!-- results:gpu-* -->\n<!-- /results -->\n")
    results.write(repository)
    assert "No figures are recorded" in (repository / "README.md").read_text()


def test_a_row_without_any_column_is_refused(repository: Path) -> None:
    with pytest.raises(InputError, match="row 0 holds none"):
        results.record("toys", "Toys", "recsys", [{"other": 1}], COLUMNS, root=repository)


def test_the_command_fails_on_a_stale_page(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(repository)
    monkeypatch.chdir(repository)
    assert results.main(["check"]) == 1
    assert "README.md" in capsys.readouterr().out
    assert results.main(["write"]) == 0
    assert results.main(["check"]) == 0
    assert results.main([]) == 2
