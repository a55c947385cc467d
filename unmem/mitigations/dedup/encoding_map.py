"""Hashes as text, and the maps of them that imagededup's users keep: JSON of ``{file name: 16 hexadecimal digits}``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unmem.component import UserError
from unmem.rundir import write_json

_HEX = re.compile("[0-9a-fA-F]*")


def to_hex(codes: npt.NDArray[np.uint64]) -> list[str]:
    """Each hash as lower-case hexadecimal digits, those of 64 bits as imagededup writes them.

    Args:
        codes: uint64 [n] or [n, words].
    """
    words = (codes[:, None] if codes.ndim == 1 else codes).astype(">u8")
    return [row.tobytes().hex() for row in words]


def from_hex(texts: Sequence[str], bits: int = 64) -> npt.NDArray[np.uint64]:
    """The hashes that :func:`to_hex` wrote, in digits of either case.

    Args:
        texts: each of ``bits / 4`` hexadecimal digits.
        bits: of one hash, a multiple of 64.

    Returns:
        uint64 [n, bits / 64].

    Raises:
        UserError: naming the position and the value of the first that is something else.
    """
    for position, text in enumerate(texts):
        if not _is_hash(text, bits):
            raise UserError(f"hash {position} must be {bits // 4} hexadecimal digits, is {text!r}")
    words = np.frombuffer(bytes.fromhex("".join(texts)), ">u8").astype(np.uint64)
    return words.reshape(len(texts), bits // 64)


def read_encoding_map(path: Path) -> dict[str, str]:
    """Read what imagededup's ``encode_images`` gave, stored as JSON.

    Args:
        path: a JSON object of file names, each with its hash of 64 bits in 16 hexadecimal digits.

    Returns:
        File names, in the file's order, with their hashes in lower case.

    Raises:
        UserError: naming the file, and the key and the value at fault.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=list)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        raise UserError(f"{path}: not JSON: {error}") from None
    if not (isinstance(entries, list) and all(isinstance(entry, tuple) for entry in entries)):
        raise UserError(f"{path}: must be a JSON object of file names and their hashes")
    found: dict[str, str] = {}
    for name, value in entries:
        if not _is_hash(value, 64):
            raise UserError(f"{path}: the hash of {name!r} must be 16 hexadecimal digits, is {value!r}")
        if name in found:
            raise UserError(f"{path}: {name!r} is there twice, with the hashes {found[name]} and {value.lower()}")
        found[name] = value.lower()
    return found


def write_encoding_map(path: Path, encoding_map: Mapping[str, str]) -> None:
    """Write file names and their hashes as JSON, whole or not at all.

    imagededup takes it: ``PHash().find_duplicates(encoding_map=json.load(open(path)))``.

    Args:
        path: the file.
        encoding_map: file names, each with its hash of 64 bits in 16 hexadecimal digits (:func:`to_hex`).

    Raises:
        UserError: naming the key and the value of what is no such hash.
    """
    for name, value in encoding_map.items():
        if not _is_hash(value, 64):
            raise UserError(f"{path}: the hash of {name!r} must be 16 hexadecimal digits, is {value!r}")
    write_json(path, dict(encoding_map))


def _is_hash(value: object, bits: int) -> bool:
    """Whether a value is a hash in digits."""
    return isinstance(value, str) and len(value) == bits // 4 and _HEX.fullmatch(value) is not None
