"""Near-duplicate captions: equal ones first, then candidates by MinHash LSH, every one verified by exact Jaccard."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from unmem.mitigations.dedup import minhash
from unmem.mitigations.dedup.jaccard import Jaccard
from unmem.mitigations.dedup.minhash import Ints, Words
from unmem.mitigations.dedup.pairs import Pairs
from unmem.mitigations.dedup.union_find import UnionFind

_BLOCK = 2**16  # signatures at a time
_ROOM = 2**20  # candidates at a time


def normalise(caption: str) -> str:
    """Reduce a caption to what makes it equal to another: characters, not their case, form or spacing.

    Case is folded and compatibility forms are composed as in Unicode's compatibility caseless matching (D146, but
    NFKC); each run of white space becomes one space, and none is left at the ends. Punctuation, digits, accents
    and the order of words stay: they tell captions apart. Normalising twice changes nothing more.
    """
    if caption.isascii():
        return " ".join(caption.lower().split())
    for _ in range(2):  # a fold may undo a composition, and a decomposition may show another capital
        caption = unicodedata.normalize("NFKC", caption).casefold()
    return " ".join(unicodedata.normalize("NFKC", caption).split())


def shingles(caption: str, size: int = 5) -> set[str]:
    """The character n-grams of the normalised caption; itself, if it is shorter; none, if it is empty.

    Raises:
        ValueError: ``size`` is not 1 to 13.
    """
    minhash.check_size(size)
    text = normalise(caption)
    return {text[i : i + size] for i in range(max(len(text) - size + 1, 1))} if text else set()


def jaccard(a: str, b: str, size: int = 5) -> float:
    """How much two captions share: common n-grams over all their n-grams, 1 where both are empty.

    Raises:
        ValueError: ``size`` is not 1 to 13.
    """
    left, right = shingles(a, size), shingles(b, size)
    return len(left & right) / len(left | right) if left or right else 1.0


def signatures(captions: Sequence[str], *, num_perm: int = 128, size: int = 5, seed: int = 1) -> npt.NDArray[np.uint32]:
    """``minhash.signatures`` of the normalised captions: uint32 [n, num_perm], interchangeable with datasketch's."""
    return minhash.signatures([normalise(each) for each in captions], num_perm=num_perm, size=size, seed=seed)


class Bands(NamedTuple):
    """How a signature is cut for LSH: two captions are candidates if they agree in all rows of some band.

    Attributes:
        b: Bands.
        r: Rows of a band; the first ``b * r`` values of a signature are used.
    """

    b: int
    r: int

    def probability(self, jaccard: float) -> float:
        """That captions at this Jaccard similarity become candidates: 1 - (1 - J^r)^b."""
        return float(1 - (1 - jaccard**self.r) ** self.b)

    def describe(self) -> str:
        """One line with the S-curve."""
        curve = "/".join(f"{self.probability(tenths / 10):.3f}" for tenths in range(5, 10))
        return f"{self.b} bands x {self.r} rows: P(candidate) at Jaccard .5/.6/.7/.8/.9 = {curve}"


def choose_bands(threshold: float, num_perm: int = 128, recall: float = 0.99) -> Bands:
    """Choose the longest bands, thus the fewest false candidates, that still find what is at the threshold.

    Every candidate is verified, so a false one costs time and a missed one is lost: the recall is held where it
    is least, at the threshold, and all bands that the signature has room for are used.

    Args:
        threshold: The least Jaccard similarity that is to be found, above 0 and at most 1.
        num_perm: Length of the signatures, at least 1.
        recall: The least probability of becoming a candidate at the threshold, above 0 and below 1.

    Raises:
        ValueError: an argument is out of its range, or no bands reach the recall.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}")
    if num_perm < 1:
        raise ValueError(f"num_perm must be at least 1, got {num_perm}")
    if not 0 < recall < 1:
        raise ValueError(f"recall must be above 0 and below 1, got {recall}")
    for r in range(num_perm, 0, -1):
        bands = Bands(num_perm // r, r)
        if bands.probability(threshold) >= recall:
            return bands
    raise ValueError(
        f"no bands over {num_perm} permutations find Jaccard {threshold} with probability {recall}: "
        f"{Bands(num_perm, 1).probability(threshold):.3f} at most; take more permutations or a lower recall"
    )


def bucket_keys(signatures: npt.NDArray[np.uint32], bands: Bands) -> npt.NDArray[np.uint64]:
    """One key per band: rows with equal keys are candidates, wherever they were computed.

    A key mixes the band's index and its values by xor, multiplication and shift, the same on every machine. Two
    bands that differ get equal keys with a chance of 2^-64, which costs a verification and no more.

    Args:
        signatures: uint32 [n, num_perm], from here or from datasketch's ``affine32``.
        bands: b * r may not exceed num_perm.

    Returns:
        uint64 [n, b].

    Raises:
        ValueError: the signatures have another type or shape, or fewer values than the bands need.
    """
    if signatures.ndim != 2 or signatures.dtype != np.uint32:
        raise ValueError(f"signatures must be uint32 [n, num_perm], got {list(signatures.shape)} of {signatures.dtype}")
    if bands.b < 1 or bands.r < 1 or bands.b * bands.r > signatures.shape[1]:
        raise ValueError(f"{bands.b} bands x {bands.r} rows do not fit into signatures of {signatures.shape[1]} values")
    keys = np.empty((len(signatures), bands.b), np.uint64)
    _bucket_keys(signatures, bands.r, keys)
    return keys


def verify(
    captions: Sequence[str], candidates: npt.NDArray[np.int64], size: int = 5, *, threshold: float = 0.0
) -> npt.NDArray[np.float64]:
    """Compute the exact Jaccard similarity of each candidate pair: fastest if pairs with one left come together.

    Args:
        captions: [n], normalised or not.
        candidates: int64 [m, 2], positions in ``captions``.
        size: Characters of an n-gram, 1 to 13.
        threshold: A similarity below it may be given as 0: what is far apart is settled after a few n-grams.

    Returns:
        float64 [m], equal to ``jaccard`` of each pair.

    Raises:
        ValueError: the candidates have another type or shape or name a caption that is not there, or ``size`` is out
            of its range.
    """
    if candidates.ndim != 2 or candidates.shape[1] != 2 or candidates.dtype != np.int64:
        raise ValueError(f"candidates must be int64 [m, 2], got {list(candidates.shape)} of {candidates.dtype}")
    if candidates.size and not 0 <= (low := int(candidates.min())) <= (high := int(candidates.max())) < len(captions):
        raise ValueError(f"candidates must be 0 to {len(captions) - 1}, got {low if low < 0 else high}")
    return Jaccard([normalise(each) for each in captions], size).of(candidates, threshold)


def similar(
    captions: Sequence[str],
    threshold: float = 0.8,
    *,
    num_perm: int = 128,
    size: int = 5,
    signatures: npt.NDArray[np.uint32] | None = None,
) -> Pairs:
    """Find all pairs of captions at a Jaccard similarity of at least ``threshold``.

    Captions that are equal once normalised, empty ones too, are pairs at distance 0: a group of g has g(g - 1)/2
    of them, so take ``forest`` where groups are large. The others are found with the probability that
    ``choose_bands(threshold, num_perm).describe()`` shows, at least 0.99. No pair is wrong: each is verified.

    Args:
        captions: [n].
        threshold: Above 0, at most 1.
        num_perm: Length of the signatures.
        size: Characters of an n-gram, 1 to 13.
        signatures: uint32 [n, num_perm], those of ``signatures(captions)`` if they are there already.

    Returns:
        The pairs, with 1 - Jaccard as their distance.

    Raises:
        ValueError: an argument is out of its range, or there are no bands for threshold and num_perm.
    """
    groups = _Groups.of(captions)
    found = [np.empty((0, 2), np.int64)]
    distances = [np.empty(0)]
    for pairs, similarities in groups.near(threshold, num_perm, size, signatures):
        found.append(pairs)
        distances.append(1 - similarities)
    # A group is a pair of itself with itself, of which only one half counts.
    own = np.repeat(np.flatnonzero(np.diff(groups.bounds) > 1), 2).reshape(-1, 2)
    pairs, source = groups.expand(np.concatenate([*found, own]))
    distance = np.concatenate([*distances, np.zeros(len(own))])[source]
    return Pairs.sort(pairs[:, 0], pairs[:, 1], distance)


def forest(
    captions: Sequence[str],
    threshold: float = 0.8,
    *,
    num_perm: int = 128,
    size: int = 5,
    signatures: npt.NDArray[np.uint32] | None = None,
) -> npt.NDArray[np.int64]:
    """Find a spanning forest of the pairs of ``similar``, in memory that grows with the captions only.

    Equal captions hang on the first of them; verified pairs of firsts join the groups, and are no longer looked at
    where both ends are joined already.

    Args and errors are those of ``similar``.

    Returns:
        int64 [m, 2], m < n, in lexicographic order, the smaller position first.
    """
    groups = _Groups.of(captions)
    union = UnionFind(len(groups.texts))
    edges = [np.empty((0, 2), np.int64)]
    for pairs, _ in groups.near(threshold, num_perm, size, signatures, union):
        edges.append(groups.firsts[pairs[union.add(pairs)]])
    others = np.delete(groups.members, groups.bounds[:-1])
    edges.append(np.stack([np.repeat(groups.firsts, np.diff(groups.bounds) - 1), others], axis=1))
    every = np.concatenate(edges)
    return every[np.lexsort(every.T[::-1])]


class _Groups(NamedTuple):
    """Captions that are equal once normalised: ``members[bounds[g] : bounds[g + 1]]`` have ``texts[g]``."""

    texts: list[str]
    members: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int64]

    @classmethod
    def of(cls, captions: Sequence[str]) -> _Groups:
        """Groups in the order of their first members, and members in theirs."""
        numbers: dict[str, int] = {}
        group = np.array([numbers.setdefault(normalise(each), len(numbers)) for each in captions], np.int64)
        bounds = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=len(numbers)))])
        return cls(list(numbers), np.argsort(group, kind="stable"), bounds.astype(np.int64))

    @property
    def firsts(self) -> npt.NDArray[np.int64]:
        """int64 [groups]: the first member of each."""
        return self.members[self.bounds[:-1]]

    def near(
        self,
        threshold: float,
        num_perm: int,
        size: int,
        signatures: npt.NDArray[np.uint32] | None,
        union: UnionFind | None = None,
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
        """Pairs of groups within the threshold, and their similarities; with a union, none that it has joined."""
        bands = choose_bands(threshold, num_perm)
        if signatures is not None and signatures.shape != (len(self.members), num_perm):
            wanted = [len(self.members), num_perm]
            raise ValueError(f"signatures must be {wanted}, a row per caption, got {list(signatures.shape)}")
        keys = np.empty((len(self.texts), bands.b), np.uint64)
        for start in range(0, len(keys), _BLOCK):  # signatures take more room than keys, and are not needed again
            block = slice(start, start + _BLOCK)
            if signatures is None:
                some = minhash.signatures(self.texts[block], num_perm=num_perm, size=size)
            else:
                some = signatures[self.firsts[block]]
            keys[block] = bucket_keys(some, bands)
        exact = Jaccard(self.texts, size)
        for pairs in _candidates(keys):
            if union is not None:
                labels = union.labels()
                pairs = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]
            similarities = exact.of(pairs, threshold)
            kept = similarities >= threshold
            yield pairs[kept], similarities[kept]

    def expand(self, pairs: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Pairs of members out of pairs of groups, smaller first and each once, and which pair each is from."""
        sizes = np.diff(self.bounds)[pairs]
        counts = sizes.prod(axis=1)
        source = np.repeat(np.arange(len(pairs)), counts)
        within = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
        steps = np.stack(np.divmod(within, sizes[source, 1]), axis=1)
        members = self.members[self.bounds[pairs[source]] + steps]
        once = (pairs[source, 0] != pairs[source, 1]) | (members[:, 0] < members[:, 1])
        return np.sort(members[once], axis=1), source[once]


def _candidates(keys: npt.NDArray[np.uint64]) -> Iterator[npt.NDArray[np.int64]]:
    """Blocks of int64 [m, 2], left < right: every pair of rows that agree in some column, each pair once."""
    room = np.empty((max(_ROOM, len(keys)), 2), np.int64)  # no row has more partners in a column than there are rows
    for band in range(keys.shape[1]):
        order = np.argsort(keys[:, band])
        column = keys[order, band]
        same = column[1:] == column[:-1]
        shared = np.zeros(len(column), np.bool_)
        shared[1:] = same
        shared[:-1] |= same
        order, column = order[shared], column[shared]
        order = order[np.lexsort((order, column))]  # sorting without a promise about ties is several times faster
        ends = np.searchsorted(column, column, "right")
        at = 0
        while at < len(order):
            at, found = _enumerate(keys, order, ends, band, at, room)
            yield room[:found].copy()


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _bucket_keys(signatures: Words, r: int, keys: npt.NDArray[np.uint64]) -> None:
    """Mix each band into a key."""
    for i in range(len(keys)):
        for band in range(keys.shape[1]):
            key = np.uint64(band + 1) * np.uint64(0x9E3779B97F4A7C15)
            for k in range(band * r, band * r + r):
                key = (key ^ np.uint64(signatures[i, k])) * np.uint64(0xFF51AFD7ED558CCD)
                key ^= key >> np.uint64(33)
            keys[i, band] = key


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _enumerate(
    keys: npt.NDArray[np.uint64], order: Ints, ends: Ints, band: int, at: int, found: Ints
) -> tuple[int, int]:
    """Write the pairs of a band's buckets from ``order[at]`` on that no earlier band has, as far as there is room."""
    count = 0
    while at < len(order) and count + ends[at] - at - 1 <= len(found):
        left = order[at]
        for other in range(at + 1, ends[at]):
            right = order[other]
            earlier = 0
            while keys[left, earlier] != keys[right, earlier]:
                earlier += 1
            if earlier == band:
                found[count, 0], found[count, 1] = left, right
                count += 1
        at += 1
    return at, count
