"""From signatures to groups: every search, its threshold, and who stays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from unmem.component import UserError
from unmem.mitigations.dedup import bands, classes, threshold, vectors
from unmem.mitigations.dedup.buckets import CaptionBuckets, HashBuckets, partitions_for, write_texts
from unmem.mitigations.dedup.captions import choose_bands
from unmem.mitigations.dedup.distinct import first_equal, number
from unmem.mitigations.dedup.encoding_map import read_encoding_map
from unmem.mitigations.dedup.engine import Engine
from unmem.mitigations.dedup.gather import Captions, Signatures
from unmem.mitigations.dedup.groups import Relation
from unmem.mitigations.dedup.outcome import FACTS, groups_table
from unmem.mitigations.dedup.relations import Equal, NearCaption, NearHash, NearVector, WithCaption
from unmem.mitigations.dedup.search import HashTiles, Method, VectorTiles
from unmem.mitigations.dedup.union_find import UnionFind
from unmem.mitigations.dedup.work import Settings, Source, Work
from unmem.rng import stream

TILED = 4_000_000  # distinct hashes up to which comparing all with all is the quicker way
SEED = 0  # of the sample that the threshold is chosen on: the same data give the same threshold
AGAINST = "against:"  # before the ids of the other set

Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """What was found.

    Attributes:
        source: the data set.
        against: the set that it was held against, if any.
        groups: every member of a group of two or more (schema ``GROUPS``).
        ids: of all images of the data set, sorted.
        copies: id, copies (images that it stands for) and caption_copies (images under one of its captions) of each
            image that is kept and has more than one of either.
        report: counts, thresholds and their reasons.
    """

    source: Source
    against: Source | None
    groups: pa.Table
    ids: pa.ChunkedArray
    copies: pa.Table
    report: dict[str, Any]


def find(data: Path, out: Path, settings: Settings, engine: Engine, against: Path | None = None) -> Outcome:
    """Find the duplicates within a data set, or between it and another one.

    Args:
        data: see :mod:`unmem.mitigations.dedup.sources`.
        out: the job's directory; what an earlier run left there is taken up.
        settings: what counts as a duplicate.
        engine: does the work.
        against: another data set: its items all stay, and those of ``data`` that duplicate one of them are dropped.

    Raises:
        UserError: when a data set holds no usable image, or the directory belongs to another job.
    """
    work = Work(out, settings, engine)
    source = work.sign(data, "data")
    other = None if against is None else work.sign(against, "against")
    signed = []
    for one in (*((other,) if other else ()), source):
        signed.append(Signatures.of(one.tables))
        if not len(signed[-1]):
            first = f" ({one.rejected[0].source}: {one.rejected[0].reason})" if one.rejected else ""
            raise UserError(f"{one.data}: holds no usable image{first}")
    search = _Search(work, source, other, Signatures.joined(signed), signed[-1])
    return search.outcome()


@dataclass(frozen=True)
class _Hashes:
    """The distinct perceptual hashes.

    Attributes:
        rows: int64 [u], the first row with each.
        numbers: int64 [m], the number of each row that has a hash.
        present: bool [n], which rows have one.
        codes: uint64 [n, w], zeros where there is none.
        turned: uint64 [n, 8, w], where flips and turns count.
        threshold: the radius, and why.
    """

    rows: Numbers
    numbers: Numbers
    present: Mask
    codes: npt.NDArray[np.uint64]
    turned: npt.NDArray[np.uint64] | None
    threshold: threshold.Threshold


@dataclass(frozen=True)
class _Search:
    """One run over all signatures: the other set's, if there is one, then those of the data set itself, ``mine``."""

    work: Work
    source: Source
    other: Source | None
    signatures: Signatures
    mine: Signatures

    @property
    def settings(self) -> Settings:
        return self.work.settings

    @property
    def tables(self) -> tuple[Path, ...]:
        return self.signatures.paths

    @cached_property
    def own(self) -> Mask:
        """bool [n]: which rows are of the data set itself."""
        return np.arange(len(self.signatures)) >= len(self.signatures) - len(self.mine)

    def outcome(self) -> Outcome:
        """Search, group, count."""
        exact = [Equal(stage, *self.signatures.words(f"{stage}_key")) for stage in ("bytes", "pixels")]
        relations: list[Relation] = list(exact)
        union = UnionFind(len(self.signatures))
        for relation in exact:
            rows = np.flatnonzero(relation.present)
            union.add(np.stack([rows[first_equal(relation.keys[rows])], rows], axis=1))
        pixels = union.labels()
        hashes = self._hashes() if self.settings.signing.hash is not None else None
        if hashes is not None:
            union.add(self._hash_edges(hashes))
            relations.append(NearHash(hashes.codes, hashes.present, hashes.threshold.max_distance, hashes.turned))
        if self.settings.embed is not None:
            embedded = self._embed()
            model = vectors.identity(self.settings.embed)
            method = VectorTiles(self.work.arrays, self.settings.embed_distance, model)
            union.add(self.work.search(method, len(embedded), self.tables))
            relations.append(NearVector(embedded, self.settings.embed_distance))
        labels = union.labels()
        captions = self.signatures.captions()
        near = self._near_captions(captions)
        groups, copies = self._choose(labels, relations, captions)
        own = self.own[captions.items]
        rows = captions.items[own]
        numbers = captions.numbers[own]
        joint = classes.count(rows, labels[rows], pixels[rows], numbers, near[numbers])
        ids = self._ids()
        return Outcome(self.source, self.other, groups, ids, copies, self._report(groups, hashes, joint, ids))

    def _hashes(self) -> _Hashes:
        """Read the hashes, and settle the radius."""
        codes, present = self.signatures.words("code")
        turned = None
        words = codes
        if self.settings.signing.dihedral:
            words = self.signatures.words("turned")[0]
            turned = words.reshape(len(words), 8, -1)
        having = np.flatnonzero(present)
        firsts, numbers = number(first_equal(words[having]))
        rows = having[firsts]
        self.work.array("codes.npy", codes[rows])
        if turned is not None:
            self.work.array("turned.npy", turned[rows])
        chosen = threshold.choose(
            len(rows),
            codes[rows],
            stream(SEED, "threshold"),
            most=threshold.BANDED if self._many(len(rows)) else None,
            comparisons=1 if turned is None else 8,
        )
        if self.settings.max_distance is not None:
            reason = f"as asked for; auto would take {chosen.max_distance}, {chosen.reason}"
            chosen = threshold.Threshold(self.settings.max_distance, reason)
        return _Hashes(rows, numbers, present, codes, turned, chosen)

    def _hash_edges(self, hashes: _Hashes) -> Numbers:
        """A spanning forest of the rows with near hashes."""
        distance, size = hashes.threshold.max_distance, len(hashes.rows)
        method: Method
        if self.settings.method == "bands" or (self.settings.method == "auto" and self._many(size)):
            keys = bands.bucket_keys(np.zeros((1, hashes.codes.shape[1]), np.uint64), distance).shape[1]
            method = HashBuckets(self.work.arrays, distance, self._partitions("perceptual", size * keys))
        else:
            method = HashTiles(self.work.arrays, distance, hashes.turned is not None)
        near = hashes.rows[self.work.search(method, size, self.tables)]
        rows = np.flatnonzero(hashes.present)
        return np.concatenate([near, np.stack([hashes.rows[hashes.numbers], rows], axis=1)])

    def _many(self, size: int) -> bool:
        """Whether so many hashes are better searched by bands."""
        return size > TILED and self.settings.signing.bits == 256 and not self.settings.signing.dihedral

    def _near_captions(self, captions: Captions) -> Numbers:
        """int64 [u]: the group of each distinct caption."""
        size = len(captions.firsts)
        if not size:
            return np.empty(0, np.int64)
        write_texts(self.work.arrays / "texts.arrow", captions.texts())
        keys = choose_bands(self.settings.jaccard).b
        method = CaptionBuckets(self.work.arrays, self.settings.jaccard, self._partitions("captions", size * keys))
        union = UnionFind(size)
        union.add(self.work.search(method, size, self.tables))
        return union.labels()

    def _partitions(self, name: str, entries: int) -> int:
        """How many partitions a search by bucket has: what it began with, or what fits now."""
        return self.work.recorded(name, "partitions") or partitions_for(entries)

    def _embed(self) -> npt.NDArray[np.float32]:
        """float32 [n, d]: all embeddings, memory-mapped."""
        assert self.settings.embed is not None
        sources = [source for source in (self.other, self.source) if source is not None]
        tasks = [
            vectors.EmbedTask(source.data, shard, self.settings.signing, table, self.settings.embed, self.work.folder)
            for source in sources
            for shard, table in zip(source.shards, source.tables, strict=True)
        ]
        return vectors.gather(tasks, self.work.arrays / "vectors.npy", self.work.engine)

    def _choose(self, labels: Numbers, relations: list[Relation], captions: Captions) -> tuple[pa.Table, pa.Table]:
        """Who stays, and how many copies each stands for."""
        grouped = np.bincount(labels, minlength=len(labels))[labels] > 1
        if self.other is not None:  # a group within one of the two sets is none of ours
            sides = np.zeros((len(labels), 2), bool)
            sides[labels, self.own.astype(int)] = True
            grouped &= sides[labels].all(axis=1)
        members = np.flatnonzero(grouped)
        facts = self._named(self.signatures.rows(members, FACTS), members)
        links = [_Members(relation, members) for relation in relations]
        near: list[Relation] = list(links)
        if self.settings.drop == "both":
            caption = NearCaption(facts["captions"].to_pylist(), self.settings.jaccard)
            near = [WithCaption(link, caption) for link in links]
        anchors = ~self.own[members] if self.other is not None else None
        groups = groups_table(facts, labels[members], near, self.settings.choice, anchors)
        return groups, self._copies(groups, captions)

    def _copies(self, groups: pa.Table, captions: Captions) -> pa.Table:
        """The images that stand for others, or share a caption; the most copied first."""
        own = self.own[captions.items]
        pairs = np.unique(np.stack([captions.items[own], captions.numbers[own]]), axis=1)
        shared = np.bincount(pairs[1], minlength=len(captions.firsts))
        most = np.zeros(len(self.signatures), np.int64)
        np.maximum.at(most, pairs[0], shared[pairs[1]])
        rows = np.flatnonzero(most > 1)
        by_caption = dict(zip(self.signatures.rows(rows, ["id"])["id"].to_pylist(), most[rows].tolist(), strict=True))
        kept = groups.filter(groups["kept"])
        by_image = dict(zip(kept["id"].to_pylist(), kept["copies"].to_pylist(), strict=True))
        gone = set(groups.filter(pc.invert(groups["kept"]))["id"].to_pylist())
        entries = [
            {"id": name, "copies": by_image.get(name, 1), "caption_copies": by_caption.get(name, 1)}
            for name in {*by_image, *by_caption} - gone
        ]
        entries = [entry for entry in entries if entry["copies"] > 1 or entry["caption_copies"] > 1]
        entries.sort(key=lambda entry: (-entry["copies"], -entry["caption_copies"], entry["id"]))
        schema = pa.schema([("id", pa.string()), ("copies", pa.int64()), ("caption_copies", pa.int64())])
        return pa.Table.from_pylist(entries, schema)

    def _named(self, facts: pa.Table, members: Numbers) -> pa.Table:
        """The facts, with the other set's ids marked as such."""
        if self.other is None:
            return facts
        marks = pa.array(np.where(self.own[members], "", AGAINST))
        return facts.set_column(0, "id", pc.binary_join_element_wise(marks, facts["id"].combine_chunks(), ""))

    def _ids(self) -> pa.ChunkedArray:
        """The data set's ids, sorted."""
        ids = self.mine.column("id")
        return ids.take(pc.sort_indices(ids))

    def _given(self, ids: pa.ChunkedArray) -> dict[str, dict[str, int]]:
        """How much of what the user handed over concerns images that are there: a stale file must not pass for one."""
        given = {}
        if self.settings.signing.encoding_map is not None:
            given["--read-encoding-map"] = list(read_encoding_map(Path(self.settings.signing.encoding_map)))
        if self.settings.choice.rejected:
            given["--decisions"] = [name for name, _ in self.settings.choice.rejected]
        return {
            option: {"given": len(names), "used": int(pc.sum(pc.is_in(pa.array(names), ids)).as_py() or 0)}
            for option, names in given.items()
        }

    def _report(
        self, groups: pa.Table, hashes: _Hashes | None, joint: dict[str, int], ids: pa.ChunkedArray
    ) -> dict[str, Any]:
        """Counts, thresholds, and what was done to the images."""
        gone = groups.filter(pc.invert(groups["kept"]))
        stages = {entry["values"]: entry["counts"] for entry in pc.value_counts(gone["stage"]).to_pylist()}
        images = int(self.own.sum())
        signing = self.settings.signing
        report: dict[str, Any] = {
            "images": images,
            "kept": images - len(gone),
            "dropped": len(gone),
            "groups": len(pc.unique(groups["group"])),
            "quarantined": len(self.source.rejected),
            "stages": stages,
            "classes": joint,
            "captions": {"jaccard": self.settings.jaccard, "bands": choose_bands(self.settings.jaccard).describe()},
            "policy": self.settings.choice.policy,
        }
        if hashes is not None:
            report["threshold"] = {
                "hash": signing.hash,
                "bits": signing.bits,
                "max_distance": hashes.threshold.max_distance,
                "reason": hashes.threshold.reason,
            }
            report["seen"] = {name: self.signatures.count(name) for name in ("flat", "oriented", "flattened")}
        if given := self._given(ids):
            report["given"] = given
        if self.settings.embed is not None:
            report["embedding"] = {"model": self.settings.embed, "max_distance": self.settings.embed_distance}
        if self.other is not None:
            report["against"] = {"images": int((~self.own).sum()), "quarantined": len(self.other.rejected)}
        return report


@dataclass(frozen=True)
class _Members:
    """A relation between rows, seen as one between the members of groups."""

    relation: Relation
    members: Numbers

    @property
    def stage(self) -> str:
        return self.relation.stage

    def distances(self, item: int, others: Numbers) -> npt.NDArray[np.float32]:
        return self.relation.distances(int(self.members[item]), self.members[others])
