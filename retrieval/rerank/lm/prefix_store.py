"""Keys and values of earlier prompts, found again by their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from recsys.retrieval.rerank.lm.kept_states import KeptStates

__all__ = ["PrefixStore", "shared_length"]


def shared_length(left: Sequence[int], right: Sequence[int], start: int = 0) -> int:
    """Where two sequences first differ, or the shorter one ends; they agree before ``start``.

    >>> shared_length([5, 6, 7], [5, 6, 8, 9])
    2
    """
    end = min(len(left), len(right))
    if left[start:end] == right[start:end]:
        return end
    low, high = start, end  # they differ at some place in [low, high)
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low


class _Node:
    """A run of tokens after those of the nodes above it."""

    __slots__ = ("children", "parent", "states", "tokens", "used", "visits")

    def __init__(self, tokens: list[int], states: KeptStates | None, parent: _Node | None) -> None:
        self.tokens, self.states, self.parent = tokens, states, parent
        self.children: dict[int, _Node] = {}  # by first token
        self.used = 0
        self.visits = 0


class PrefixStore:
    """A tree of token runs with their keys and values, kept within a number of bytes.

    Tokens themselves are compared, no hashes of them. Above the limit, what was never asked for again goes first, then
    what was asked for longest ago; a run goes only after all that follow it. What :meth:`match` returned stays valid.
    Not for several threads at a time.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._root = _Node([], None, None)
        self._clock = 0

    @property
    def num_tokens(self) -> int:
        """Kept now."""
        return sum(len(node.tokens) for node in self._nodes())

    def match(self, tokens: list[int]) -> list[KeptStates]:
        """Keys and values of the longest kept prefix, in pieces that follow each other; none where nothing is kept."""
        self._clock += 1
        node, at = self._root, 0
        found: list[KeptStates] = []
        while at < len(tokens) and (child := node.children.get(tokens[at])) is not None:
            length = shared_length(child.tokens, tokens[at : at + len(child.tokens)])
            assert child.states is not None
            child.used, child.visits = self._clock, child.visits + 1
            found.append(child.states if length == len(child.tokens) else child.states.cut(0, length))
            at += length
            if length < len(child.tokens):
                break
            node = child
        return found

    def add(self, tokens: list[int], states: KeptStates) -> None:
        """Keep the states of the last tokens of a prompt; those of the earlier ones must be here, else nothing is kept.

        Args:
            tokens: from the beginning of the prompt.
            states: of the last ``len(states)`` of them; copied.
        """
        start = len(tokens) - len(states)
        if states.num_bytes > self.max_bytes:
            return
        node, at = self._root, 0
        while at < len(tokens) and (child := node.children.get(tokens[at])) is not None:
            length = shared_length(child.tokens, tokens[at : at + len(child.tokens)])
            if length < len(child.tokens):
                child = self._split(child, length)
            node, at = child, at + length
        if not start <= at < len(tokens):
            return
        new = _Node(tokens[at:], states.cut(at - start, len(states)).copy(), node)
        assert new.states is not None
        new.used = self._clock
        node.children[new.tokens[0]] = new
        self.num_bytes += new.states.num_bytes
        if self.num_bytes > self.max_bytes:
            self._shrink()

    def clear(self) -> None:
        """Forget everything."""
        self._root = _Node([], None, None)
        self.num_bytes = 0

    def _split(self, node: _Node, length: int) -> _Node:
        assert node.states is not None and node.parent is not None
        first = _Node(node.tokens[:length], node.states.cut(0, length).copy(), node.parent)
        first.used, first.visits = node.used, node.visits
        node.parent.children[first.tokens[0]] = first
        node.tokens, node.states = node.tokens[length:], node.states.cut(length, len(node.tokens)).copy()
        node.parent = first
        first.children[node.tokens[0]] = node
        return first

    def _nodes(self) -> Iterator[_Node]:
        todo = list(self._root.children.values())
        while todo:
            node = todo.pop()
            yield node
            todo += node.children.values()

    def _shrink(self) -> None:
        """Remove leaves until a tenth of the room is free, so that not every new run has to search for one."""
        while self.num_bytes > 0.9 * self.max_bytes:
            leaves = sorted(
                (node for node in self._nodes() if not node.children), key=lambda node: (node.visits > 0, node.used)
            )
            for leaf in leaves:
                assert leaf.states is not None and leaf.parent is not None
                del leaf.parent.children[leaf.tokens[0]]
                self.num_bytes -= leaf.states.num_bytes
                if self.num_bytes <= 0.9 * self.max_bytes:
                    break
