"""Jobs in processes of their own: on this machine's cores, or on a Ray cluster that sees the same files.

A process of its own lets small jobs run side by side, and none inherits another's state.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from unmem import progress
from unmem.component import UserError


@dataclass(frozen=True)
class Job:
    """A part of an arm.

    Attributes:
        root: the run's directory.
        arm: whose.
        part: ``all``, ``model``, ``shadow-K``, or ``attacks``.
        cell: of a sweep; empty for a run of its own.
    """

    root: Path
    arm: str
    part: str
    cell: str = ""

    @property
    def title(self) -> str:
        """What progress calls it."""
        arm = f"{self.cell}/{self.arm}" if self.cell else self.arm
        return f"{arm} {self.part}" if self.part.startswith("shadow-") else arm

    @property
    def command(self) -> list[str]:
        """What a child process is started with."""
        where = ["arm", str(self.root.absolute()), self.arm, "--part", self.part]
        return [sys.executable, "-m", "unmem", *where, *(["--cell", self.cell] if self.cell else [])]


Start = Callable[[Job, int], None]
"""Does a job in one of the places that there are side by side."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster whose machines see the run's directory under the same path.

    Attributes:
        address: as ``ray.init`` takes it; ``local`` starts Ray on this machine.
        gpus: of a job; a fraction lets jobs share one.
    """

    address: str
    gpus: float = 0.0


Failures = dict[Job, BaseException]
"""What became of the jobs that failed."""


def run(
    jobs: list[Job],
    threads: int | None,
    cluster: Cluster | None,
    most: int | None = None,
    failures: Failures | None = None,
) -> None:
    """Do all jobs.

    Args:
        jobs: in any order.
        threads: CPU threads of one; without a number each takes the whole machine, one after the other.
        cluster: where to; this machine when unset.
        most: jobs at once; as many as there are cores for, or on a cluster all, when unset.
        failures: receives the jobs that fail, and the others go on; without it the first that fails stops those that
            have not begun.

    Raises:
        UserError: for what a job could not do with its input.
    """
    if not jobs:
        return
    if cluster is None:
        fitting = max(1, (os.cpu_count() or 1) // threads) if threads else 1
        places = most or fitting
        _side_by_side(jobs, places, _local(threads, places), failures)
    else:
        with _ray(cluster, threads) as start:
            _side_by_side(jobs, most or len(jobs), start, failures)


def _side_by_side(jobs: list[Job], most: int, start: Start, failures: Failures | None = None) -> None:
    """At most so many at once, each in a place of its own."""
    places: Queue[int] = Queue()
    for place in range(most):
        places.put(place)
    errors: list[BaseException] = []

    def work(job: Job) -> None:
        place = places.get()
        try:
            if not errors:
                start(job, place)
        except BaseException as error:
            if failures is None:
                errors.append(error)
            else:
                failures[job] = error
        finally:
            places.put(place)

    # daemons: who interrupts us does not wait for what is at work, and children leave with us
    workers = [threading.Thread(target=work, args=(job,), daemon=True) for job in jobs]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except BaseException as error:
        errors.append(error)
        raise
    if errors:
        raise errors[0]


def _local(threads: int | None, places: int = 1) -> Start:
    """How a job is done on this machine: those side by side take the GPUs that there are in turn."""
    gpus = _gpus() if threads or places > 1 else []

    def start(job: Job, place: int) -> None:
        mine = {"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else {}
        code, complaint = _child(job.command, {**os.environ, **_limits(threads), **mine})
        _judge(job, code, complaint)

    return start


@contextmanager
def _ray(cluster: Cluster, threads: int | None) -> Iterator[Start]:
    """How a job is done on the cluster.

    Raises:
        UserError: when ray is not installed, or the cluster cannot be reached.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("--ray: ray is not installed; run pip install 'unmem[cluster]'") from None
    try:
        ray.init(address=None if cluster.address == "local" else cluster.address, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"--ray {cluster.address}: cannot be reached ({str(error).splitlines()[0]})") from None
    remote = ray.remote(_on_node).options(num_cpus=threads or 1, num_gpus=cluster.gpus, max_retries=1)

    def start(job: Job, place: int) -> None:
        code, said = ray.get(remote.remote(job.command, _limits(threads)))
        complaint = "".join(line for line in said.splitlines(keepends=True) if not progress.replay(line))
        _judge(job, code, complaint)

    try:
        yield start
    finally:
        ray.shutdown()


def _on_node(command: list[str], limits: dict[str, str]) -> tuple[int, str]:
    """A job on a node of the cluster, whose own environment says which GPUs it may see: exit code and all it said."""
    return _child(command, {**os.environ, **limits}, hear=lambda _: False)


def _gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]


def _limits(threads: int | None) -> dict[str, str]:
    """What keeps a child to its threads."""
    return {} if threads is None else {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}


def _child(
    command: list[str], environment: dict[str, str], hear: Callable[[str], bool] = progress.replay
) -> tuple[int, str]:
    """Run a child; returns its exit code and the lines that ``hear`` did not take.

    The child holds our end of a pipe as its standard input and stops when that closes, so that killing the parent
    leaves nobody behind.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, encoding="utf-8", env=environment) as child:
        assert child.stdout is not None
        left = "".join(line for line in child.stdout if not hear(line))
        return child.wait(), left


def _judge(job: Job, code: int, complaint: str) -> None:
    """Pass on how a job ended."""
    if code == 2:
        raise UserError(f"arm {job.title}: {complaint.strip()}")
    if code != 0:
        progress.say(f"error: arm {job.title} stopped with exit code {code}; its own words stand above")
        raise SystemExit(1)
