"""Which folder may import which, read off the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MAY_IMPORT = {
    "kernels": {"kernels"},
    "tokenizers": {"tokenizers", "kernels"},
    "index": {"index", "kernels"},
    "recsys": {"recsys", "kernels", "tokenizers", "index"},
    "retrieval": {"retrieval", "recsys", "kernels", "tokenizers", "index"},
    "pipelines": {"pipelines", "retrieval", "recsys", "kernels", "tokenizers", "index"},
}
FOLDERS = [name for name in MAY_IMPORT if name != "recsys"]
SERVING = ["kernels", "tokenizers", "index", "recsys", "retrieval"]
TRAINING = {"lightning", "pytorch_lightning", "sklearn", "jsonargparse"}
OPTIONAL = {"faiss", "triton", "pandas", "pyarrow", "lightgbm", "transformers"}


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of every import below a node, those by ``import_module("…")`` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "." * node.level + (node.module or "")
            elif node.module == "recsys":
                yield from (f"recsys.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            if node.args and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def layer_of(name: str) -> str | None:
    """The folder that a dotted name lives in; None for the standard library and third parties."""
    head, _, rest = name.partition(".")
    if head != "recsys":
        return None
    second = rest.split(".")[0]
    return second if second in FOLDERS else "recsys"


def violations(source: str, folder: str) -> list[str]:
    """What one module of ``folder`` imports and may not."""
    found = []
    for name in imported(ast.parse(source)):
        head = name.split(".")[0]
        if name.startswith("."):
            found.append(f"{name}: relative")
        elif head in {"kernels", "index", "retrieval", "pipelines"}:
            found.append(f"{name}: a second copy of recsys.{name}")
        elif (layer := layer_of(name)) is not None and layer not in MAY_IMPORT[folder]:
            found.append(f"{name}: {layer} comes after {folder}")
    return found


def at_import_time(tree: ast.Module) -> Iterator[str]:
    """Imports that run when the module is imported: not those in functions or under TYPE_CHECKING."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imported(node)
        elif isinstance(node, ast.If):
            typing_only = "TYPE_CHECKING" in ast.unparse(node.test)
            waiting += node.orelse if typing_only else node.body + node.orelse
        elif isinstance(node, ast.Try):
            waiting += node.body + node.orelse + node.finalbody + [line for h in node.handlers for line in h.body]
        elif isinstance(node, ast.ClassDef | ast.With):
            waiting += node.body


def modules(root: Path, folder: str) -> list[Path]:
    """The Python files of one folder, without what its links lead to."""
    files = (root / folder).rglob("*.py")
    return sorted(
        path for path in files if folder != "recsys" or path.relative_to(root / folder).parts[0] not in FOLDERS
    )


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_folder_imports_only_the_layers_before_it(root: Path, folder: str) -> None:
    # The lazy public names of recsys/__init__.py are the one way from a layer to a later one.
    files = [path for path in modules(root, folder) if path != root / "recsys" / "__init__.py"]
    found = {path.name: wrong for path in files if (wrong := violations(path.read_text(encoding="utf-8"), folder))}
    assert found == {}


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        ("from recsys.retrieval import page", "index"),
        ("from recsys import errors", "index"),
        ("import recsys.pipelines.cli", "retrieval"),
        ("def late():\n    from recsys.pipelines import cli", "recsys"),
        ("importlib.import_module('recsys.retrieval.page')", "recsys"),
        ("from index.hits import Hits", "pipelines"),
        ("from .hits import Hits", "index"),
        ("from recsys.index import hits", "tokenizers"),
    ],
)
def test_a_forbidden_import_is_seen(source: str, folder: str) -> None:
    assert violations(source, folder)


@pytest.mark.parametrize("folder", SERVING)
def test_the_core_imports_nothing_of_the_language_model_tier(root: Path, folder: str) -> None:
    tier = {root / "retrieval" / "rerank", root / "retrieval" / "rag"}
    for path in modules(root, folder):
        if not tier & set(path.parents):
            names = imported(ast.parse(path.read_text(encoding="utf-8")))
            assert not [name for name in names if name.startswith(("recsys.retrieval.rerank", "recsys.retrieval.rag"))]


@pytest.mark.parametrize("folder", SERVING)
def test_serving_folders_import_no_training_library(root: Path, folder: str) -> None:
    for path in modules(root, folder):
        names = at_import_time(ast.parse(path.read_text(encoding="utf-8")))
        heads = {name.split(".")[0] for name in names}
        if path.stem.startswith("faiss"):
            heads.discard("faiss")  # the one module of the extra, imported when it is asked for
        if path.stem.endswith("_triton"):
            heads.discard("triton")
        assert not heads & (TRAINING | OPTIONAL), path


def fresh(code: str, root: Path) -> str:
    """What a new interpreter in the root prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_recsys_is_light(root: Path) -> None:
    heavy = "{'torch', 'polars', 'numpy', 'lightning', 'sklearn'}"
    assert fresh(f"import sys, recsys, recsys.pipelines.cli; print(sorted({heavy} & set(sys.modules)))", root) == "[]"


def test_importing_the_recommender_loads_no_training_library(root: Path) -> None:
    unwanted = TRAINING | OPTIONAL - {"triton"}  # CUDA builds of torch import triton themselves
    code = f"import sys; from recsys import Recommender, Event; print(sorted({unwanted} & set(sys.modules)))"
    assert fresh(code, root) == "[]"
