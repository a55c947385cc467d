"""Progress in images, reported to whoever listens: a terminal, a parent process, or nobody."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

INTERVAL = 0.2  # seconds between two messages of one task: smooth to the eye, cheap for the pipe


class Reporter(Protocol):
    """Shows what is going on."""

    def update(self, task: str, done: int, total: int, unit: str) -> None:
        """Task ``task`` has done ``done`` of ``total`` units; done == total ends it."""

    def say(self, text: str) -> None:
        """One line for the user."""


class Quiet:
    """Lines for the log, no bars: for files, pipes and use as a library."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out

    def update(self, task: str, done: int, total: int, unit: str) -> None:
        """Bars are not drawn."""

    def say(self, text: str) -> None:
        """Print the line, where there is somewhere to print it."""
        if self._out is not None:
            print(text, file=self._out, flush=True)


class Lines:
    """One JSON object a line, for a parent process that draws the bars (see :func:`replay`)."""

    def update(self, task: str, done: int, total: int, unit: str) -> None:
        """Send the position."""
        print(json.dumps({"task": task, "done": done, "total": total, "unit": unit}), flush=True)

    def say(self, text: str) -> None:
        """Send the line."""
        print(json.dumps({"say": text}), flush=True)


class Bars:
    """Bars in a terminal, with rate and time left."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}  {task.fields[rate]}"),
            TimeRemainingColumn(),
            transient=True,
        )
        self._tasks: dict[str, tuple[Any, float, int]] = {}
        self._progress.start()

    def update(self, task: str, done: int, total: int, unit: str) -> None:
        """Move the task's bar; a finished one disappears."""
        now = time.monotonic()
        if task not in self._tasks:
            self._tasks[task] = (self._progress.add_task(task, total=total, unit=unit, rate=""), now, done)
        bar, started, initial = self._tasks[task]
        rate = f"{(done - initial) / max(now - started, 1e-9):,.0f} {unit}/s" if done > initial else ""
        self._progress.update(bar, completed=done, rate=rate)
        if done >= total:
            self._progress.remove_task(bar)
            del self._tasks[task]

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        """Give the terminal back."""
        self._progress.stop()


_reporter: Reporter = Quiet()


def use(reporter: Reporter) -> None:
    """Send everything to ``reporter`` from now on."""
    global _reporter
    _reporter = reporter


@contextmanager
def shown(*, quiet: bool) -> Iterator[None]:
    """Show a command's progress for as long as it runs; ``quiet`` shows none of it."""
    reporter = Quiet() if quiet else for_terminal()
    use(reporter)
    try:
        yield
    finally:
        if isinstance(reporter, Bars):
            reporter.stop()


def say(text: str) -> None:
    """One line for the user."""
    _reporter.say(text)


Advance = Callable[[int], None]
"""``advance(count)``: so many more are done."""


@contextmanager
def track(task: str, total: int, unit: str = "images", start: int = 0) -> Iterator[Advance]:
    """Yield ``advance(count)``, which reports at most every fifth of a second."""
    done, last = start, 0.0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if (now := time.monotonic()) - last >= INTERVAL and done < total:
            last = now
            _reporter.update(task, done, total, unit)

    _reporter.update(task, start, total, unit)
    try:
        yield advance
    finally:
        _reporter.update(task, total, total, unit)


@contextmanager
def within(prefix: str) -> Iterator[None]:
    """Prefix the names of all tasks and lines of a block, such as an arm's."""
    outer = _reporter

    class Prefixed:
        def update(self, task: str, done: int, total: int, unit: str) -> None:
            outer.update(f"{prefix}/{task}", done, total, unit)

        def say(self, text: str) -> None:
            outer.say(f"{prefix}/{text}")

    use(Prefixed())
    try:
        yield
    finally:
        use(outer)


def replay(line: str) -> bool:
    """Pass on a line that a child's :class:`Lines` wrote; False when it is something else."""
    try:
        message = json.loads(line)
    except json.JSONDecodeError:
        return False
    if not isinstance(message, dict):
        return False
    if "say" in message:
        _reporter.say(message["say"])
    elif "task" in message:
        _reporter.update(message["task"], message["done"], message["total"], message["unit"])
    return True


def for_terminal() -> Reporter:
    """Bars where a person looks on, plain lines elsewhere."""
    return Bars() if sys.stderr.isatty() and sys.stdout.isatty() else Quiet(sys.stdout)
