"""What a run may spend, written down and sealed before the first private query; a resumed run is held to it."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unmem.component import UserError
from unmem.mitigations.dp.accounting import rounded_up
from unmem.mitigations.dp.plan import DPPlan
from unmem.rundir import digest, first_difference, read_json, write_json
from unmem.train.imageset import ImageSet

FILE = "budget.json"
CHUNK = 4096  # images that are read at once
AGAIN = "to train again, remove the folder {folder}; that spends a second budget (see dp_sgd.tuning_runs)"


def begin(plan: DPPlan, data: ImageSet, state: Path, known_seed: int | None = None) -> int:
    """The secret of the run's randomness, once ``budget.json`` beside ``state`` promises this plan on this data.

    The secret is drawn and written first and the budget second; private images are asked after both. So a run that
    was killed between the two has asked nothing, and one that was killed later repeats its own draws.

    Args:
        plan: what the run is going to ask.
        data: the training set.
        state: the trainer's resumable state; the secret lies there until training ends.
        known_seed: takes the secret's place, for debugging.

    Raises:
        UserError: naming the file, where it was edited, belongs to other data or to another plan, or where only one
            of budget and secret is left of a run that had begun.
    """
    file = state.parent / FILE
    secret = _secret(state / "secret.json", file) if known_seed is None else known_seed
    promised = {
        "epsilon": rounded_up(plan.epsilon),
        "delta": plan.delta,
        "clip": plan.clip,
        "queries": [asdict(query) for query in plan.queries],
        "data": fingerprint(data, secret),
    }
    if file.exists():
        _hold(file, promised, secret)
        return secret
    if (checkpoint := state / "checkpoint.safetensors").exists():
        again = AGAIN.format(folder=file.parent)
        raise UserError(f"{file}: missing, though training had begun ({checkpoint} is there); put it back; {again}")
    write_json(file, {**promised, "seal": _seal(promised, secret)})
    return secret


def fingerprint(data: ImageSet, secret: int) -> str:
    """HMAC-SHA256 of ids, pixels, labels and texts; whoever lacks the secret cannot try images against it."""
    said: dict[str, Any] = {"ids": data.ids, "labels": None if data.labels is None else data.labels.tolist()}
    if data.captions is not None:
        said |= {"captions": data.captions, "alternatives": data.alternatives}
    seen = hmac.new(_key(secret, "data"), digest(said).encode(), hashlib.sha256)
    for start in range(0, len(data), CHUNK):
        seen.update(data.images(slice(start, start + CHUNK)).tobytes())
    return seen.hexdigest()


def _hold(file: Path, promised: dict[str, Any], secret: int) -> None:
    """Refuse a budget that is not the one promised."""
    found = read_json(file)
    seal = str(found.pop("seal", "")) if isinstance(found, dict) else ""
    if not hmac.compare_digest(seal.encode(), _seal(found, secret).encode()):
        raise UserError(f"{file}: was edited, or is of another run: its seal does not fit; put the original back")
    if found["data"] != promised["data"]:
        raise UserError(
            f"{file}: belongs to another data set: ids, pixels, labels or captions have changed since it was written"
        )
    if found != promised:
        raise UserError(f"{file}: belongs to another plan ({first_difference(found, promised)})")


def _seal(promised: Any, secret: int) -> str:
    """HMAC-SHA256 of what is promised."""
    return hmac.new(_key(secret, "seal"), digest(promised).encode(), hashlib.sha256).hexdigest()


def _key(secret: int, purpose: str) -> bytes:
    """A key for one purpose, from which neither the secret nor another key follows."""
    return hashlib.sha256(f"{secret}/{purpose}".encode()).digest()


def _secret(file: Path, budget: Path) -> int:
    """The randomness of batches and noise: from the system, never from the recipe; kept only to resume.

    A resumed run draws the very batches and noise again that it had drawn, so that nothing is released twice.
    """
    again = AGAIN.format(folder=budget.parent)
    if file.exists():
        try:
            return int(json.loads(file.read_text())["secret"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: damaged ({error}); {again}") from None
    if budget.exists():
        raise UserError(f"{budget}: begun, but its secret {file} is gone: other noise would spend it twice; {again}")
    file.parent.mkdir(parents=True, exist_ok=True)
    secret = secrets.randbits(128)
    partial = file.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as out:
        json.dump({"secret": str(secret)}, out)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(file)
    return secret
