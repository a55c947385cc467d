"""Who stays and why, as tables: the ledger, the groups, the copies that each kept image stands for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from unmem.mitigations.dedup.captions import normalise
from unmem.mitigations.dedup.groups import Relation, representatives

Policy = Literal["largest", "sharpest", "longest_caption", "first"]

FACTS = ("id", "width", "height", "file_bytes", "sharpness", "captions")
GROUPS = pa.schema(
    [
        ("group", pa.int64()),
        ("id", pa.string()),
        ("kept", pa.bool_()),
        ("kept_id", pa.string()),
        ("stage", pa.string()),
        ("distance", pa.float32()),
        ("why", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("file_bytes", pa.int64()),
        ("sharpness", pa.float32()),
        ("captions", pa.list_(pa.string())),
        ("merged_captions", pa.list_(pa.string())),
        ("copies", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Choice:
    """How the image of a group that stays is chosen.

    Attributes:
        policy: largest (pixels, then bytes), sharpest, longest caption, or first by id; ties go to the first by id.
        merge_captions: whether it takes the captions of those it stands for.
        rejected: (dropped id, kept id) that a person declared to be no duplicates.
    """

    policy: Policy = "largest"
    merge_captions: bool = False
    rejected: frozenset[tuple[str, str]] = frozenset()


def groups_table(
    facts: pa.Table,
    labels: npt.NDArray[np.int64],
    relations: Sequence[Relation],
    choice: Choice,
    anchors: npt.NDArray[np.bool_] | None = None,
) -> pa.Table:
    """Every member of a group of two or more, who stays for it, and why; groups and members in the order of ids.

    Args:
        facts: a row per member with the columns ``FACTS``.
        labels: int64 [n], each member's connected component.
        relations: from the strictest to the loosest.
        choice: who stays.
        anchors: bool [n], members of another set that this one is held against, if any: they stay.

    Returns:
        A table with the schema ``GROUPS``; components in which nobody is dropped are left out.
    """
    members: list[dict[str, Any]] = facts.to_pylist()
    preference = [_preference(member, choice.policy) for member in members]
    ids = [member["id"] for member in members]
    first = np.zeros(len(members), bool) if anchors is None else anchors
    order = sorted(range(len(members)), key=lambda i: (not first[i], preference[i], ids[i]))
    kept = representatives(labels, np.array(order, np.int64), relations, _apart(ids, choice.rejected), anchors)
    stands_for = defaultdict(list)
    for i in order:
        stands_for[int(kept.by[i])].append(i)
    first_id: dict[int, str] = {}
    for i in sorted(range(len(members)), key=lambda i: ids[i]):
        first_id.setdefault(int(labels[i]), ids[i])
    rows = []
    for i, member in enumerate(members):
        keeper, stays = int(kept.by[i]), int(kept.by[i]) == i
        copies = stands_for[i]
        rows.append(
            {
                **member,
                "first": first_id[int(labels[i])],
                "kept": stays,
                "kept_id": ids[keeper],
                "stage": None if stays else relations[int(kept.relation[i])].stage,
                "distance": None if stays else float(kept.distance[i]),
                "why": _why(member, choice.policy) if stays else None,
                "merged_captions": _union([members[j]["captions"] for j in copies])
                if stays and choice.merge_captions
                else None,
                "copies": len(copies) if stays else None,
            }
        )
    cut = {row["first"] for row in rows if not row["kept"]}
    rows = sorted(
        (row for row in rows if row["first"] in cut), key=lambda row: (row["first"], not row["kept"], row["id"])
    )
    number = {first: position for position, first in enumerate(sorted(cut))}
    for row in rows:
        row["group"] = number[row.pop("first")]
    return pa.Table.from_pylist(rows, GROUPS)


def _preference(member: Mapping[str, Any], policy: Policy) -> tuple[float, ...]:
    """Smaller is better."""
    pixels = (member["width"] or 0) * (member["height"] or 0)
    size = (-float(pixels), -float(member["file_bytes"] or 0))
    if policy == "largest":
        return size
    if policy == "sharpest":
        return (-float(member["sharpness"] or 0), *size)
    if policy == "longest_caption":
        return (-float(max(map(len, member["captions"]), default=0)), *size)
    return ()


def _why(member: Mapping[str, Any], policy: Policy) -> str:
    """Why this member stays, for a person."""
    if policy == "largest":
        size = f"{member['width']} x {member['height']} pixels, " if member["width"] else ""
        return f"largest: {size}{member['file_bytes'] or 0:,} bytes"
    if policy == "sharpest":
        return f"sharpest: {member['sharpness'] or 0:,.0f}"
    if policy == "longest_caption":
        return f"longest caption: {max(map(len, member['captions']), default=0)} characters"
    return "first by id"


def _apart(ids: Sequence[str], rejected: frozenset[tuple[str, str]]) -> dict[int, set[int]]:
    """The rejected pairs by position, both ways."""
    where = {name: position for position, name in enumerate(ids)}
    apart: dict[int, set[int]] = defaultdict(set)
    for a, b in rejected:
        if a in where and b in where:
            apart[where[a]].add(where[b])
            apart[where[b]].add(where[a])
    return apart


def _union(captions: Sequence[Sequence[str]]) -> list[str]:
    """All captions, each once, told apart by their normalised text."""
    union: dict[str, str] = {}
    for text in (text for some in captions for text in some):
        union.setdefault(normalise(text), text)
    return list(union.values())
