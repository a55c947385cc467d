"""Jobs side by side: each in a place of its own, and none after one has failed."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from unmem.component import UserError
from unmem.recipes import fleet
from unmem.recipes.fleet import Job

JOBS = [Job(Path("run"), "arm", f"shadow-{k}") for k in range(9)]


def test_places_are_never_shared_at_once_and_all_jobs_are_done() -> None:
    busy: set[int] = set()
    done, lock = [], threading.Lock()

    def start(job: Job, place: int) -> None:
        with lock:
            assert place not in busy
            busy.add(place)
        threading.Event().wait(0.01)
        with lock:
            busy.remove(place)
            done.append(job)

    fleet._side_by_side(JOBS, 3, start)
    assert sorted(job.part for job in done) == sorted(job.part for job in JOBS)


def test_after_a_failure_nothing_more_is_begun() -> None:
    begun = []

    def start(job: Job, place: int) -> None:
        begun.append(job)
        raise UserError("bad")

    with pytest.raises(UserError, match="bad"):
        fleet._side_by_side(JOBS, 1, start)
    assert len(begun) == 1


def test_where_failures_are_collected_the_others_go_on() -> None:
    failures: fleet.Failures = {}
    begun = []

    def start(job: Job, place: int) -> None:
        begun.append(job)
        if job.part in ("shadow-2", "shadow-5"):
            raise SystemExit(1) if job.part == "shadow-2" else UserError("bad")

    fleet._side_by_side(JOBS, 2, start, failures)
    assert sorted(begun, key=lambda job: job.part) == JOBS
    assert {job.part: type(error) for job, error in failures.items()} == {"shadow-2": SystemExit, "shadow-5": UserError}


def test_a_cells_jobs_are_told_apart_by_its_name() -> None:
    job = Job(Path("sweep/cells/a"), "plain", "shadow-3", "copies=8")
    assert job.title == "copies=8/plain shadow-3"
    assert job.command[-2:] == ["--cell", "copies=8"]
    assert "--cell" not in JOBS[0].command


def test_jobs_without_threads_take_the_gpus_in_turn_where_several_run_at_once() -> None:
    seen = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
        patch.setattr(fleet, "_child", lambda _, environment: seen.add(environment["CUDA_VISIBLE_DEVICES"]) or (0, ""))
        fleet.run(JOBS, None, None, most=2)
        assert seen == {"2", "5"}
        seen.clear()
        fleet.run(JOBS, None, None)  # one after the other: each has the whole machine
        assert seen == {"2,5"}


def test_jobs_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, set[str]] = {}

    def child(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
        seen.setdefault(int(command[-1].removeprefix("shadow-")), set()).add(environment["CUDA_VISIBLE_DEVICES"])
        return 0, ""

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.setattr(fleet, "_child", child)
    start = fleet._local(1)
    for place, job in enumerate(JOBS):
        start(job, place)
    assert [seen[k] for k in range(3)] == [{"2"}, {"5"}, {"2"}]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,5"


def test_a_job_that_cannot_use_its_input_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_child", lambda command, environment: (2, "data: too small\n"))
    with pytest.raises(UserError, match="arm arm shadow-0: data: too small"):
        fleet.run(JOBS[:1], None, None)
