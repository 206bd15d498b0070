"""A picture of a code trie: its first two levels as rows of rectangles, each as wide as it has items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from recsys.index.code_trie import CodeTrie
from recsys.pipelines.report_charts import Rectangle, rectangle_chart

__all__ = ["Branch", "tree_branches", "tree_chart"]

_LEVELS = 2
_FULLEST = 6
_WIDTH = 920
_MOST_DRAWN = 150
"""Rectangles of a level that stand for one branch each."""
_LEAST_PIXELS = 2.0
_MOST_EXAMPLES = 40
"""Branches of a level that name items."""
_NUM_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Branch:
    """A node of the trie, or several small ones with one parent together."""

    codes: tuple[int, ...]
    """Of the node; of small ones together the parent's."""
    left: int
    """Items to the left of it in the picture."""
    num_items: int
    examples: tuple[int, ...] = ()
    """Some of its items, spread evenly over its leaves."""
    num_merged: int = 0
    """Nodes that stand together here; 0 = it is one."""


def tree_branches(trie: CodeTrie, fullest: int | None = None) -> list[list[Branch]]:
    """The rectangles of the picture, level by level.

    The branches of a node stand side by side, the fullest first, equal ones by code. A branch of which little would be
    seen, or that is none of the 150 fullest of its level, stands together with its like at the right of its siblings.

    Args:
        trie: of at least one item.
        fullest: show only so many first codes, those with the most items.
    """
    found: list[list[Branch]] = []
    drawn = {0: Branch((), 0, trie.num_items)}
    for depth, level in enumerate(trie.levels[:_LEVELS]):
        size_N, child_M1 = level.start_N1.long().diff().tolist(), level.child_M1.tolist()
        children = {
            node: sorted(range(child_M1[node], child_M1[node + 1]), key=size_N.__getitem__, reverse=True)
            for node in drawn
        }
        if not depth and fullest is not None:
            children[0] = children[0][:fullest]
            drawn = {0: Branch((), 0, sum(size_N[child] for child in children[0]))}
        total = sum(one.num_items for one in (found[0] if found else drawn.values()))
        seen = [
            child
            for siblings in children.values()
            for child in siblings
            if size_N[child] * _WIDTH >= _LEAST_PIXELS * total
        ]
        largest = sorted(sorted(seen), key=size_N.__getitem__, reverse=True)  # a stable sort
        kept, named = set(largest[:_MOST_DRAWN]), set(largest[:_MOST_EXAMPLES])
        row, below = [], {}
        for node, parent in drawn.items():
            left = parent.left
            for child in children[node]:
                if child not in kept:
                    continue
                first, count = int(level.start_N1[child]), size_N[child]
                codes = (*parent.codes, int(level.code_N[child]))
                examples = _spread(trie, first, count) if child in named else ()
                below[child] = Branch(codes, left, count, examples)
                row.append(below[child])
                left += count
            small = [child for child in children[node] if child not in kept]
            if small:
                rest = parent.left + parent.num_items - left
                row.append(Branch(parent.codes, left, rest, num_merged=len(small)))
        found.append(row)
        drawn = below
    return found


def _spread(trie: CodeTrie, first: int, count: int) -> tuple[int, ...]:
    wanted = min(_NUM_EXAMPLES, count)
    places = (first + (2 * place + 1) * count // (2 * wanted) for place in range(wanted))
    return tuple(int(trie.item_P[place]) for place in places)


def tree_chart(trie: CodeTrie, name: Callable[[int], str]) -> str:
    """The picture as inline SVG, and where it is too small for the second codes one of the fullest branches.

    What a rectangle stands for shows up under the pointer.

    Args:
        trie: of at least one item.
        name: what to call an item.
    """
    rows = tree_branches(trie)
    depth = "first code" if len(rows) == 1 else "first two codes"
    text = _drawn(
        rows, name, f"Code tree: the {depth} of {trie.num_items:,} items, every branch as wide as it has items"
    )
    if len(rows) > 1 and trie.levels[0].num_nodes > _FULLEST and any(one.num_merged for one in rows[1]):
        larger = tree_branches(trie, fullest=_FULLEST)
        text += _drawn(larger, name, f"The {_FULLEST} fullest of its first codes, larger")
    return text


def _drawn(rows: list[list[Branch]], name: Callable[[int], str], title: str) -> str:
    drawn = [
        [Rectangle(one.left, one.num_items, _label(one), _said(one, name), bool(one.num_merged)) for one in row]
        for row in rows
    ]
    return rectangle_chart(drawn, title=title, total=sum(one.num_items for one in rows[0]), width=_WIDTH)


def _label(branch: Branch) -> str:
    return f"+{branch.num_merged:,}" if branch.num_merged else str(branch.codes[-1])


def _said(branch: Branch, name: Callable[[int], str]) -> str:
    items = f"{branch.num_items:,} item{'' if branch.num_items == 1 else 's'}"
    codes = ", ".join(map(str, branch.codes))
    if branch.num_merged:
        below = f" below {codes}" if codes else ""
        return f"{branch.num_merged:,} small branch{'' if branch.num_merged == 1 else 'es'}{below}: {items}"
    such = f"; such as {'; '.join(name(item) for item in branch.examples)}" if branch.examples else ""
    return f"{codes}: {items}{such}"
