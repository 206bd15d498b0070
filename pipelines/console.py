"""Where commands write for people: results to stdout, progress to stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as ProgressTask
from rich.text import Text

__all__ = ["progress_bar", "stderr_console", "stdout_console"]


def stdout_console() -> Console:
    """For results: tables and sentences that a pipe may read.

    Ids, names and paths of callers are shown as they are: never recoloured, nor read as markup or as names of emoji.
    """
    return Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def stderr_console() -> Console:
    """For progress and remarks."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


class _Speed(ProgressColumn):
    """Steps per second over the last seconds."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: ProgressTask) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {self._unit}/s")


class _Bar(Progress):
    """A bar that leaves nothing behind once its display is transient, in a file not even an empty line."""

    def stop(self) -> None:
        if self.live.transient:
            self.live.stop()
        else:
            super().stop()


@contextmanager
def progress_bar(label: str, total: int | None, unit: str = "steps") -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr with the speed in ``unit`` per second.

    Args:
        label: what is being done.
        total: number of steps; None where it is not known.
        unit: plural noun for one step.

    Yields:
        A function that takes how many more steps are done. The bar goes away where the work is broken off.
    """
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), _Speed(unit), TimeRemainingColumn())
    with _Bar(*columns, console=stderr_console()) as progress:
        task = progress.add_task(label, total=total)
        try:
            yield lambda steps: progress.update(task, advance=steps)
        except BaseException:
            progress.live.transient = True  # what went wrong is one line
            raise
