"""Pictures for the report, as data URIs in JSON, so that a report can be rendered from JSON alone."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np

from unmem.evaluate.audit import Audit
from unmem.rundir import read_json, write_json

SAMPLES, PAIRS, GROUPS, GROUP_SIZE = 64, 24, 24, 8
SIDE = 64  # pixels: smaller images are enlarged without smoothing, larger ones are reduced


def make(arm: Path, audit: Audit, directory: Path) -> None:
    """Write ``gallery.json`` of one arm: samples, extracted pairs, and dropped groups."""
    file = arm / "samples" / "images.npy"
    samples = np.load(file, mmap_mode="r", allow_pickle=False) if file.exists() else None
    pairs = []
    for report in sorted(arm.glob("attacks/*/report.json")):
        drawn = arm / "drawn" / report.parent.name / "images.npy"  # the attack's own
        seen = np.load(drawn, mmap_mode="r", allow_pickle=False) if drawn.exists() else samples
        for match in read_json(report).get("matches", [])[:PAIRS]:
            assert seen is not None
            pairs.append(
                {
                    "attack": report.parent.name,
                    **match,
                    "generated": picture(np.asarray(seen[match["sample"]])),
                    "training": picture(_image(audit, match["id"])),
                }
            )
    gallery = {
        "samples": [] if samples is None else [picture(np.asarray(image)) for image in samples[:SAMPLES]],
        "pairs": pairs,
        **_groups(arm / "data" / "ledger.json", audit),
    }
    write_json(directory / "gallery.json", gallery)


def picture(image: np.ndarray) -> str:
    """A PNG data URI of an image uint8 [h, w, c]."""
    from PIL import Image

    drawn = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    longest = max(drawn.size)
    size = tuple(max(1, round(side * SIDE / longest)) for side in drawn.size)
    if drawn.size != size:
        enlarged = longest < SIDE
        drawn = drawn.resize((size[0], size[1]), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _image(audit: Audit, name: str) -> np.ndarray:
    """One image of the audit's data by id."""
    return np.asarray(audit.data.select([name]).images()[0])


def _groups(ledger: Path, audit: Audit) -> dict[str, Any]:
    """The largest groups that a data mitigation reduced to one image, and how many there are."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in read_json(ledger)["dropped"] if ledger.exists() else []:
        if entry["kept"] is not None:
            groups.setdefault(entry["kept"], []).append(entry)
    largest = sorted(groups.items(), key=lambda item: -len(item[1]))[:GROUPS]
    shown = [
        {
            "kept": kept,
            "picture": picture(_image(audit, kept)),
            "mitigation": entries[0]["mitigation"],
            "dropped": len(entries),
            "shown": [
                {"id": entry["id"], "distance": entry["distance"], "picture": picture(_image(audit, entry["id"]))}
                for entry in entries[:GROUP_SIZE]
            ],
        }
        for kept, entries in largest
    ]
    return {"groups": shown, "groups_in_all": len(groups)}
