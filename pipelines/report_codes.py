"""What the report says of semantic IDs: the code tree, how well codes stand for items, how often each code is right.

Suffixes: I = items, L = codes of an item.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.bundle import Bundle
from recsys.files import read_json
from recsys.pipelines.made_codes import SIDS_FILE
from recsys.pipelines.report_charts import line_chart
from recsys.pipelines.report_page import Section, note, table
from recsys.pipelines.report_tree import tree_branches, tree_chart
from recsys.pipelines.run_logs import curve, run_log
from recsys.tokenizers.health import CodeUse, code_use

__all__ = ["codes_section"]

_USED_BY = {"codes": "generative", "parallel_codes": "parallel", "set_codes": "set"}
_LONGEST_NAME = 60


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of codes of the bundle."""

    name: str
    sizes: tuple[int, ...]
    use: CodeUse
    made: dict[str, Any] | None
    """What ``sids.json`` says of it; None where the codes were not made here."""


def codes_section(run: Path, bundle: Bundle | None) -> Section:
    """Semantic IDs of a run and of its bundle.

    Args:
        run: folder of a run, for the accuracy of codes during training.
        bundle: for the code tree and the health of the codes; None leaves both out.
    """
    title = "Semantic IDs"
    if bundle is not None and not bundle.model.codes.sizes:
        return Section(title, absent="The model has no semantic IDs, so it retrieves by scores alone.")
    charts = _accuracy(run)
    if bundle is None and not charts:
        return Section(title, absent="It needs --bundle, and the logs of the run hold no accuracy of codes.")
    parts = [note("No --bundle was given: the code tree and the health of the codes are left out.")]
    if bundle is not None:
        parts = [_tree(bundle), _health(bundle)]
    return Section(title, "".join((*parts, charts or note("The logs of the run hold no accuracy of codes."))))


def _tree(bundle: Bundle) -> str:
    trie = bundle.trie
    if trie is None:
        return note("The model generates no codes one after the other, so there is no tree of them.")
    titles = bundle.items["title"] if "title" in bundle.items.columns else None

    def name(item: int) -> str:
        title = None if titles is None else titles[item]
        text = " ".join("".join(c if c.isprintable() else " " for c in str(title or "")).split())
        text = text or str(bundle.items["item_id"][item])
        return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"

    rows = tree_branches(trie)
    said = []
    for depth, row in enumerate(rows):
        merged = sum(one.num_merged for one in row)
        drawn = sum(not one.num_merged for one in row)
        what = ("first codes", "pairs of first and second code")[depth]
        hidden = trie.levels[depth].num_nodes - drawn - merged
        rest = [f"{merged:,} small ones stand together in grey"] if merged else []
        rest += [f"{hidden:,} lie below grey ones"] if hidden else []
        said.append(f"{trie.levels[depth].num_nodes:,} {what}" + (f" ({'; '.join(rest)})" if rest else ""))
    return note(f"{', then '.join(said)}. Siblings stand by size; the pointer shows their items.") + tree_chart(
        trie, name
    )


def _health(bundle: Bundle) -> str:
    kinds = _kinds(bundle)
    rows, small = [], {}
    levels = [[str(level + 1), *("" for _ in kinds)] for level in range(max(len(kind.sizes) for kind in kinds))]
    for column, kind in enumerate(kinds, start=1):
        use, health = kind.use, {} if kind.made is None else kind.made["health"]
        rows.append(
            [
                kind.name,
                _USED_BY[kind.name],
                "given" if kind.made is None else f"{kind.made['method']} of {', '.join(kind.made['blocks'])}",
                f"{use.num_leaves:,}",
                f"{use.num_collisions:,} of {use.num_items:,}",
                f"{use.largest_leaf:,}",
                f"{health['relative_error']:.3f}" if health else "not known",
                f"{health['neighbours_kept']:.1%}" if health else "not known",
            ]
        )
        for level, size in enumerate(kind.sizes):
            levels[level][column] = f"{use.entropy_bits[level]:.2f} of {use.max_bits[level]:.2f}"
            small[level, column] = f"{use.dead_codes[level]:,} of {size:,} codes unused"
    heads = ["kind", "retriever", "made with", "tuples", "items sharing theirs", "fullest", "error", "neighbours kept"]
    about = (
        "Items may share a tuple of codes; the fullest has most items. Error of reconstruction: 0 is exact, 1 is no "
        "better than one vector for all items. Neighbours kept: the share of an item's ten nearest that codes still "
        "tell."
    )
    bits = "Entropy of each level in bits, beside its most: that of codes which are all used equally often."
    return (
        "<h3>Health</h3>"
        + note(about)
        + table(heads, rows, text=(1, 2))
        + note(bits)
        + table(["level", *(kind.name for kind in kinds)], levels, intervals=small)
    )


def _kinds(bundle: Bundle) -> list[_Kind]:
    """The codes that the model holds, and what their tokenizers say where the bundle has them."""
    file = bundle.path / "tokenizers" / SIDS_FILE
    made = read_json(file)["kinds"] if file.is_file() else {}
    found = []
    for name, sizes in bundle.model.codes.sizes.items():
        code_IL = bundle.model.codes.of(name).cpu().numpy()
        found.append(_Kind(name, sizes, code_use(code_IL, sizes), made.get(name)))
    return found


def _accuracy(run: Path) -> str:
    """A chart per level: how often its code is right after right and after wrong codes."""
    log = run_log(run)
    if log is None:
        return ""
    charts = []
    level = 1
    while right := curve(log, f"val/codes/level{level}_accuracy"):
        wrong = curve(log, f"val/codes/level{level}_accuracy_after_wrong")
        given = ", no code before it" if level == 1 else "; dashed: after wrong codes" if wrong else ""
        charts.append(
            line_chart(right, title=f"code {level}: share of right ones{given}", x_label="step", beside=wrong)
        )
        level += 1
    if not charts:
        return ""
    said = (
        "Validation targets whose most probable code of a level is the right one, given the right codes before it, and "
        "where the model's own codes before it were wrong. Where training makes the codes anew, the figures before and "
        "after are of other codes."
    )
    return f'<h3>Accuracy by level</h3>{note(said)}<div class="charts">{"".join(charts)}</div>'
