"""What the answers to one request took and lacked."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence

from recsys.retrieval.rerank.lm.protocol import Choice, Generation
from recsys.retrieval.rerank.lm.usage import Usage
from recsys.retrieval.rerank.request import RerankRequest
from recsys.retrieval.rerank.result import Faults, RerankResult

__all__ = ["DEADLINE", "Tally", "in_turn", "passed"]

DEADLINE = "the deadline passed"


def passed(deadline: float | None) -> bool:
    """Whether it is later than a reading of :func:`time.monotonic`."""
    return deadline is not None and time.monotonic() >= deadline


def in_turn(lock: threading.Lock, deadline: float | None) -> bool:
    """Take a lock that other callers may hold; False, and it is not taken, where the deadline passes before."""
    if deadline is None:
        return lock.acquire()
    left = min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
    return not passed(deadline) and lock.acquire(timeout=left)


class Tally:
    """Adds up what the calls for one request took, and what was wrong with them."""

    def __init__(self) -> None:
        self.usage = Usage()
        self.faults = Faults()
        self._notes: Counter[str] = Counter()

    def add(self, answer: Choice | Generation) -> bool:
        """Count an answer; whether it came whole."""
        self.usage += answer.usage
        finish = answer.finish if isinstance(answer, Generation) else "stop"
        if answer.error is None and finish in ("stop", "length"):
            return True
        late = finish == "deadline" or answer.error == DEADLINE
        self.fail(DEADLINE if late else f"no answer: {answer.error or 'it broke off'}")
        return False

    def fail(self, note: str, count: int = 1) -> None:
        """Count calls without an answer, or never made."""
        self.faults += Faults(failed=count)
        self._notes[note] += count

    def note(self, text: str) -> None:
        """Something that the result should say."""
        self._notes[text] += 1

    def result(
        self, request: RerankRequest, places: Sequence[int], scores: Sequence[float] | None = None
    ) -> RerankResult:
        """The result of a request.

        Args:
            places: of its candidates, best first.
            scores: in the order of the candidates.
        """
        return RerankResult(
            ids=tuple(request.ids[place] for place in places),
            candidates=request.ids,
            scores=None if scores is None else tuple(scores),
            complete=not self.faults.failed,
            usage=self.usage,
            faults=self.faults,
            notes=tuple(text if count == 1 else f"{text} ({count} times)" for text, count in self._notes.items()),
        )
