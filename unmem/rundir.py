"""Stages that are skipped when done, writes that are whole or absent, and the record of where numbers came from."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from unmem.component import UserError

PARTIAL = ".partial"
PACKAGES = ("unmem", "torch", "torchvision", "diffusers", "accelerate", "opacus", "imagededup", "numpy", "scikit-learn")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it takes the name ``path`` only when the block ends well.

    The bytes reach the disk before the name does, so a kill at any moment leaves the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all; NaN and infinity are refused (write ``null`` and say why).

    Letters beyond ASCII are escaped, so that even broken text, such as a lone surrogate in a caption, survives.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: naming the file when it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged ({error}); remove it to compute it again") from None


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write a compressed ``.npz``, whole or not at all."""
    with atomic(path) as partial, partial.open("wb") as out:
        np.savez_compressed(out, **arrays)  # type: ignore[arg-type]


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an ``.npy`` file, whole or not at all; pickled objects are refused."""
    with atomic(path) as partial, partial.open("wb") as out:
        np.save(out, array, allow_pickle=False)


def read_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Read these arrays of an ``.npz``, those that it has, or every one; pickled objects are refused."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if not names or name in names}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # a damaged zip raises anything from zlib.error to EOFError
        raise UserError(f"{path}: damaged ({error}); remove it to compute it again") from None


def digest(value: Any) -> str:
    """SHA-256 of plain data, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


class Stage:
    """One directory, one set of inputs: finished once, then skipped; refused for other inputs.

    ``key.json`` holds the inputs from the first moment, so that even half a stage is never continued with
    another configuration.
    """

    def __init__(self, directory: Path, inputs: Mapping[str, Any]) -> None:
        """Args: the stage's own directory, and all that its result depends on (upstream keys included)."""
        self.directory = directory
        self.inputs = json.loads(json.dumps(inputs))
        self.key = digest(self.inputs)
        self._file = directory / "key.json"

    @property
    def finished(self) -> bool:
        """Whether the stage is done, for exactly these inputs.

        Raises:
            UserError: when the directory belongs to other inputs; the message names the first that differs.
        """
        if not self._file.exists():
            return False
        record = read_json(self._file)
        if record["key"] != self.key:
            raise UserError(
                f"{self.directory}: made from other inputs ({first_difference(record['inputs'], self.inputs)})"
            )
        return bool(record["finished"])

    def begin(self) -> None:
        """Claim the directory for these inputs."""
        if not self.finished:
            self._started = time.monotonic()
            self._write(finished=False, seconds=0.0)

    def finish(self) -> None:
        """Mark the stage as done; call it after its last file is in place."""
        self._write(finished=True, seconds=round(time.monotonic() - self._started, 3))

    @property
    def seconds(self) -> float:
        """How long the stage's last, successful attempt took."""
        return float(read_json(self._file)["seconds"])

    def _write(self, *, finished: bool, seconds: float) -> None:
        record = {"key": self.key, "finished": finished, "seconds": seconds, "inputs": self.inputs}
        write_json(self._file, record)


def first_difference(old: Any, new: Any, path: str = "") -> str:
    """The first place where two plain values differ, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if old.get(key) != new.get(key):
                return first_difference(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
    return f"{path} was {json.dumps(old)[:80]}, now {json.dumps(new)[:80]}"


def provenance(arguments: list[str], device: str, processes: int = 1) -> dict[str, Any]:
    """What was typed, which code and packages ran, on what kind of machine; no paths, no host name."""
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "command": ["unmem", *(_without_folder(argument) for argument in arguments)],
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "packages": {name: version for name, version in versions.items() if version},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device,
        "processes": processes,
    }


def _without_folder(argument: str) -> str:
    """An argument as typed, but for the folders of absolute paths, which tell about a machine and not about a run."""
    name, equals, value = argument.rpartition("=")
    return name + equals + (Path(value).name if Path(value).is_absolute() else value)


def free_bytes(directory: Path) -> int:
    """Free space where ``directory`` is, or will be."""
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free


def _version(package: str) -> str | None:
    """An installed package's version."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """A git command's output in the source tree, where there is one."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
