"""Who does the work: this process, a pool of processes, or a Ray cluster. The results do not depend on it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from types import FrameType
from typing import Any, Protocol, TypeVar

from unmem.component import UserError

TRIES = 4  # a task whose worker died is given to another one; who kills four has a fault of its own

T = TypeVar("T")


class Engine(Protocol):
    """Runs independent tasks; each writes its own files, so that a repeated one does no harm."""

    def run(self, work: Callable[[T], Any], tasks: Sequence[T]) -> Iterator[Any]:
        """What ``work`` gives back for each task, in the order in which they finish.

        Raises:
            UserError: when a task's workers keep dying, or when ``work`` raised one.
        """


@dataclass(frozen=True)
class Local:
    """A pool of processes on this machine; with one worker, this process itself.

    Attributes:
        workers: processes.
    """

    workers: int

    def run(self, work: Callable[[T], Any], tasks: Sequence[T]) -> Iterator[Any]:
        """See :class:`Engine`."""
        if self.workers == 1 or len(tasks) < 2:
            yield from map(work, tasks)
            return
        left = dict(enumerate(tasks))
        with _interrupted_once():
            for _ in range(TRIES):
                yield from self._try(work, left)
                if not left:
                    return
        raise UserError(_died(len(left)))

    def _try(self, work: Callable[[T], Any], left: dict[int, T]) -> Iterator[Any]:
        """Run what is left in one pool, taking out what is done, until it is done or a worker dies."""
        others = active_children()
        # spawned, not forked: a fork of a process whose libraries hold threads can hang
        pool = ProcessPoolExecutor(min(self.workers, len(left)), get_context("spawn"))
        try:
            running = {pool.submit(work, task): number for number, task in left.items()}
            for future in as_completed(running):
                result = future.result()
                del left[running[future]]
                yield result
        except BrokenProcessPool:
            pass
        finally:  # at once: a task leaves its file whole or not at all
            for worker in active_children():
                if worker not in others:
                    worker.kill()
            pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class Ray:
    """A Ray cluster, or a local one that is started for the purpose.

    Data and output must lie where every node finds them under the same path.

    Attributes:
        workers: tasks at once on a cluster of our own; a given cluster has its own limit.
        address: of the cluster; None starts one on this machine.
    """

    workers: int
    address: str | None = None

    def run(self, work: Callable[[T], Any], tasks: Sequence[T]) -> Iterator[Any]:
        """See :class:`Engine`."""
        ray = _connect(self.workers, self.address)
        remote = ray.remote(num_cpus=1, max_retries=TRIES - 1)(work)
        running = [remote.remote(task) for task in tasks]
        while running:
            ready, running = ray.wait(running)
            for reference in ready:
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    for other in running:
                        ray.cancel(other)
                    raise error.cause from None
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                    raise UserError(_died(len(running) + 1)) from None
                yield result


@contextmanager
def _interrupted_once() -> Iterator[None]:
    """Raise at the first Ctrl-C of a block, and ignore others until it has cleaned up: cut short, that would hang."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The first Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _connect(workers: int, address: str | None) -> Any:
    """Ray, connected."""
    try:
        import ray
    except ImportError:
        raise UserError('engine ray: Ray is not installed; pip install "unmem[cluster]"') from None
    if not ray.is_initialized():
        try:
            ray.init(
                address=address,
                num_cpus=workers if address is None else None,
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level="error",
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"--address {address}: no Ray cluster answers there ({error})") from None
    return ray


def _died(left: int) -> str:
    """The message for workers that keep dying."""
    return (
        f"workers were killed {TRIES} times over with {left} tasks left, most likely for want of memory; "
        "take fewer --workers, and the same command resumes"
    )
