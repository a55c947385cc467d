"""Caption signatures against datasketch's, and the search against Python's sets and brute force."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from datasketch import MinHash, MinHashLSH
from hypothesis import given, settings
from hypothesis import strategies as st

from unmem.mitigations.dedup import captions, minhash
from unmem.mitigations.dedup.captions import Bands, bucket_keys, choose_bands, forest, similar, verify
from unmem.mitigations.dedup.union_find import UnionFind

ANYTHING = st.text(st.characters(exclude_categories=()))  # lone surrogates, too
AWKWARD = [
    "",
    "a",
    "abcd",
    "abcde",
    "a red bicycle leans against a brick wall",
    "aaaaaaaaaaaa",
    "Der Fluß, naïve café, Ångström, ĳ, ﬁ",
    "e\N{COMBINING ACUTE ACCENT}" * 7,
    "一只猫坐在红色的椅子上",
    "\N{GRINNING FACE}\N{DOG FACE}\N{FIRE} \N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}",
    "\ud83d lone \udc36 surrogates",
    "\x00 zero \x00",
    "long " * 2_000,
    "一" * 10_000,
]


def oracle(strings: list[str], num_perm: int = 128, size: int = 5, seed: int = 1) -> npt.NDArray[np.uint32]:
    """datasketch's hash values, one n-gram after the other."""
    rows = []
    for string in strings:
        sketch = MinHash(num_perm=num_perm, seed=seed)
        for i in range(max(len(string) - size + 1, 1) if string else 0):
            sketch.update(string[i : i + size].encode("utf-8", "surrogatepass"))
        rows.append(sketch.hashvalues)
    return np.stack(rows)


def corpus(seed: int = 0, count: int = 250) -> list[str]:
    """Captions, some of which are there again: with a word changed, or with other case and spacing."""
    draw = random.Random(seed)
    vocabulary = ["".join(draw.choices("abcdefghiklmnoprstuvyéß猫", k=draw.randint(2, 9))) for _ in range(400)]
    found = [[vocabulary[int(400 * draw.random() ** 3)] for _ in range(draw.randint(3, 18))] for _ in range(count)]
    for words in draw.sample(found, count // 2):
        changed = list(words)
        changed[draw.randrange(len(words))] = draw.choice(vocabulary)
        found.append(changed)
    texts = [" ".join(words) for words in found]
    texts += [text.upper().replace(" ", "\t ") for text in draw.sample(texts, 30)] + ["", " ", "xy", "XY"]
    draw.shuffle(texts)
    return texts


def near(texts: list[str], threshold: float) -> dict[tuple[int, int], float]:
    """Brute force by Python's sets."""
    sets, equal = [captions.shingles(text) for text in texts], [captions.normalise(text) for text in texts]
    found = {}
    for left, right in itertools.combinations(range(len(texts)), 2):
        if equal[left] == equal[right]:
            found[left, right] = 1.0
        elif sets[left] and sets[right]:
            found[left, right] = len(sets[left] & sets[right]) / len(sets[left] | sets[right])
    return {pair: value for pair, value in found.items() if value >= threshold}


def labels(n: int, edges: npt.NDArray[np.int64]) -> list[int]:
    union = UnionFind(n)
    union.add(edges)
    return union.labels().tolist()


# Signatures


def test_equal_to_datasketch() -> None:
    found = minhash.signatures(AWKWARD)
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found, oracle(AWKWARD))
    assert (found[0] == 2**32 - 1).all()
    assert len(np.unique(found, axis=0)) == len(AWKWARD)


@pytest.mark.parametrize(
    ("num_perm", "size", "seed"), [(1, 1, 0), (7, 2, 1), (100, 3, 42), (256, 9, 5), (33, 13, 2**32 - 1)]
)
def test_equal_to_datasketch_with_other_settings(num_perm: int, size: int, seed: int) -> None:
    found = minhash.signatures(AWKWARD, num_perm=num_perm, size=size, seed=seed)
    np.testing.assert_array_equal(found, oracle(AWKWARD, num_perm, size, seed))


@settings(deadline=None, max_examples=60)
@given(st.lists(ANYTHING, min_size=1, max_size=6), st.integers(1, 13))
def test_equal_to_datasketch_on_any_text(strings: list[str], size: int) -> None:
    np.testing.assert_array_equal(minhash.signatures(strings, num_perm=16, size=size), oracle(strings, 16, size))


def test_another_seed_or_size_is_another_signature() -> None:
    plain = minhash.signatures(AWKWARD[4:5])
    assert (minhash.signatures(AWKWARD[4:5], seed=2) != plain).all()
    assert (minhash.signatures(AWKWARD[4:5], size=6) != plain).any()


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = corpus()
    whole = minhash.signatures(texts)
    monkeypatch.setattr(minhash, "_BATCH", 100)
    np.testing.assert_array_equal(minhash.signatures(texts), whole)


def test_interchange_with_datasketch() -> None:
    texts = ["a red bicycle leans against a wall", "a red bicycle leans against the wall"]
    row, other = minhash.signatures(texts)
    ours = MinHash(num_perm=128, seed=1, scheme="affine32", hashvalues=row)
    theirs = MinHash(num_perm=128, seed=1)
    theirs.update_batch(shingle.encode() for shingle in captions.shingles(texts[0]))
    assert ours == theirs
    theirs.clear()
    theirs.update_batch(shingle.encode() for shingle in captions.shingles(texts[1]))
    assert ours.jaccard(theirs) == (row == other).mean()
    assert abs(ours.jaccard(theirs) - captions.jaccard(*texts)) < 0.2
    stacked = np.stack([row, theirs.hashvalues])
    assert (stacked == minhash.signatures(texts)).all()
    assert similar(texts, 0.5, signatures=stacked).left.tolist() == [0]


def test_signatures_of_captions_are_of_their_normal_form() -> None:
    texts = ["A  Red\tBICYCLE", "ﬁne Straße"]
    np.testing.assert_array_equal(captions.signatures(texts), minhash.signatures(["a red bicycle", "fine strasse"]))


# Normal form, n-grams, Jaccard


@pytest.mark.parametrize(
    ("caption", "normal"),
    [
        ("  A  red\n\tCar ", "a red car"),
        ("STRASSE Straße", "strasse strasse"),
        ("ｆｕｌｌ\u3000width", "full width"),
        ("cafe\N{COMBINING ACUTE ACCENT}", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"),
        ("No. 5, no. 6!", "no. 5, no. 6!"),
        ("\ud800X", "\ud800x"),
        (" \n", ""),
    ],
)
def test_normalise(caption: str, normal: str) -> None:
    assert captions.normalise(caption) == normal


def test_normalising_twice_changes_nothing() -> None:
    every = [f"A{chr(code)}\N{COMBINING GREEK YPOGEGRAMMENI}\N{COMBINING ACUTE ACCENT}" for code in range(0x30000)]
    once = [captions.normalise(text) for text in every]
    assert [captions.normalise(text) for text in once] == once


def test_shingles() -> None:
    assert captions.shingles("Ab  cdef") == {"ab cd", "b cde", " cdef"}
    assert captions.shingles("Abc") == {"abc"}
    assert captions.shingles("abcab", 2) == {"ab", "bc", "ca"}
    assert captions.shingles(" ") == set()
    assert captions.jaccard("abcdef", "abcdeg") == 1 / 3
    assert captions.jaccard("", " ") == 1
    assert captions.jaccard("", "a") == 0


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text("abé猫\ud800 ", max_size=30), min_size=2, max_size=5), st.integers(1, 13))
def test_verify_against_sets(texts: list[str], size: int) -> None:
    pairs = np.array(list(itertools.product(range(len(texts)), repeat=2)))
    want = [captions.jaccard(texts[left], texts[right], size) for left, right in pairs.tolist()]
    assert verify(texts, pairs, size).tolist() == want
    for threshold in (0.3, 0.5, 0.8, 1.0):
        found = verify(texts, pairs, size, threshold=threshold).tolist()
        assert all(got == value or (got == 0 and value < threshold) for got, value in zip(found, want, strict=True))


def test_verify_on_captions() -> None:
    texts = corpus()
    pairs = np.array(list(itertools.combinations(range(0, len(texts), 5), 2)))
    want = [captions.jaccard(texts[left], texts[right]) for left, right in pairs.tolist()]
    assert verify(texts, pairs).tolist() == want
    assert verify(texts, pairs[::-1]).tolist() == want[::-1]
    assert verify(texts, pairs[:0]).tolist() == []


def test_colliding_keys_are_told_apart() -> None:
    """The hash set's key folds every eighth byte onto one: these two n-grams have the same."""
    one, two = "abcdefghXjklm".lower(), "xbcdefghajklm"
    texts = [one, two, one + "-" * 13 + two]
    pairs = np.array(list(itertools.product(range(3), repeat=2)))
    want = [captions.jaccard(texts[left], texts[right], 13) for left, right in pairs.tolist()]
    assert want[1] == 0
    assert verify(texts, pairs, 13).tolist() == want


# Bands


@pytest.mark.parametrize(
    ("bands", "curve"),
    [
        (Bands(16, 8), [0.06, 0.24, 0.61, 0.95, 1.00]),
        (Bands(14, 8), [0.05, 0.21, 0.56, 0.92, 1.00]),
        (Bands(20, 13), [0.00, 0.03, 0.18, 0.68, 1.00]),
        (Bands(32, 4), [0.87, 0.99, 1.00, 1.00, 1.00]),
        (Bands(25, 5), [0.55, 0.87, 0.99, 1.00, 1.00]),
    ],
)
def test_known_curves(bands: Bands, curve: list[float]) -> None:
    assert [round(bands.probability(tenths / 10), 2) for tenths in range(5, 10)] == curve


def test_describe() -> None:
    assert Bands(16, 8).describe() == (
        "16 bands x 8 rows: P(candidate) at Jaccard .5/.6/.7/.8/.9 = 0.061/0.237/0.613/0.947/1.000"
    )


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
@pytest.mark.parametrize("num_perm", [100, 128, 256])
@pytest.mark.parametrize("recall", [0.5, 0.95, 0.99])
def test_chosen_bands_are_the_longest(threshold: float, num_perm: int, recall: float) -> None:
    chosen = choose_bands(threshold, num_perm, recall)
    assert chosen.b * chosen.r <= num_perm
    assert chosen.probability(threshold) >= recall
    longer = [Bands(num_perm // r, r) for r in range(chosen.r + 1, num_perm + 1)]
    assert all(bands.probability(threshold) < recall for bands in longer)


@pytest.mark.parametrize("jaccard", [0.5, 0.7, 0.8])
def test_curve_is_the_rate_of_candidates(jaccard: float) -> None:
    draw = np.random.default_rng(0)
    left = draw.integers(0, 2**32, (20_000, 128), np.uint32)
    right = np.where(draw.random(left.shape) < jaccard, left, draw.integers(0, 2**32, left.shape, np.uint32))
    for bands in (Bands(16, 8), Bands(21, 6), Bands(32, 4)):
        rate = (bucket_keys(left, bands) == bucket_keys(right, bands)).any(axis=1).mean()
        for off, agrees in ((0, True), (-0.05, False)):
            p = bands.probability(jaccard + off)
            tolerance = 5 * np.sqrt(max(p * (1 - p), 1e-4) / len(left))
            assert agrees == (abs(rate - p) < tolerance) or p > 0.995


def test_buckets_are_datasketchs() -> None:
    signatures, bands = captions.signatures(corpus()), Bands(32, 4)
    index = MinHashLSH(num_perm=128, params=bands)
    sketches = [MinHash(num_perm=128, seed=1, scheme="affine32", hashvalues=row) for row in signatures]
    for i, sketch in enumerate(sketches):
        index.insert(i, sketch)
    keys = bucket_keys(signatures, bands)
    assert keys.dtype == np.uint64
    assert keys.shape == (len(signatures), 32)
    assert len(np.unique(keys)) == sum(len(np.unique(column)) for column in keys.T)  # no key in two bands
    for sketch, row in zip(sketches, keys, strict=True):
        assert set(index.query(sketch)) == set(np.flatnonzero((keys == row).any(axis=1)).tolist())


def test_keys_do_not_depend_on_the_batch() -> None:
    signatures = captions.signatures(corpus())
    whole = bucket_keys(signatures, Bands(21, 6))
    np.testing.assert_array_equal(bucket_keys(signatures[::3], Bands(21, 6)), whole[::3])
    assert whole[0, 0] == bucket_keys(signatures[:1, :6], Bands(1, 6))[0, 0]


# Search


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_similar_against_brute_force(threshold: float, seed: int) -> None:
    """All candidates within the threshold, no others, and hardly any missed."""
    texts = corpus(seed)
    want = near(texts, threshold)
    keys = bucket_keys(captions.signatures(texts), choose_bands(threshold))
    reachable = {pair for pair in want if (keys[pair[0]] == keys[pair[1]]).any()}
    found = similar(texts, threshold)
    assert (found.left.dtype, found.right.dtype, found.distance.dtype) == (np.int64, np.int64, np.float32)
    pairs = list(zip(found.left.tolist(), found.right.tolist(), strict=True))
    assert pairs == sorted(reachable)
    assert found.distance.tolist() == [np.float32(1 - want[pair]) for pair in pairs]
    assert len(pairs) >= 0.99 * len(want) > 30
    assert min(want.values()) < 1 or threshold == 1


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_forest_spans_what_is_similar(threshold: float) -> None:
    texts = corpus(2)
    pairs, edges = similar(texts, threshold), forest(texts, threshold)
    assert edges.dtype == np.int64
    assert {tuple(edge) for edge in edges.tolist()} <= set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))
    assert labels(len(texts), edges) == labels(len(texts), np.stack(pairs[:2], axis=1))
    assert len(edges) == len(texts) - len(set(labels(len(texts), edges))) < len(pairs.left)
    assert edges.tolist() == sorted(edges.tolist())


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = corpus(3)
    pairs, edges = similar(texts, 0.4), forest(texts, 0.4)
    monkeypatch.setattr(captions, "_ROOM", 1)
    monkeypatch.setattr(captions, "_BLOCK", 7)
    for got, want in zip(similar(texts, 0.4), pairs, strict=True):
        np.testing.assert_array_equal(got, want)
    assert labels(len(texts), forest(texts, 0.4)) == labels(len(texts), edges)


def test_given_signatures_are_used() -> None:
    texts = corpus(4)
    signatures = captions.signatures(texts, num_perm=64)
    given_them, making_them = (similar(texts, 0.7, num_perm=64, signatures=each) for each in (signatures, None))
    for got, want in zip(given_them, making_them, strict=True):
        np.testing.assert_array_equal(got, want)
    unlike = np.arange(signatures.size, dtype=np.uint32).reshape(signatures.shape)
    assert (similar(texts, 0.7, num_perm=64, signatures=unlike).distance == 0).all()  # equal captions only


def test_large_groups_of_equal_captions() -> None:
    texts = ["A title", "a  title"] * 1_500 + ["a titles"] + ["", " "]
    edges = forest(texts, 0.5)
    assert edges.tolist() == [[0, i] for i in range(1, 3_001)] + [[3_001, 3_002]]
    assert len(similar(texts[:100], 0.5).left) == 100 * 99 // 2


def test_near_groups_are_crossed() -> None:
    texts = ["a very plain caption", "a very plain captions", "A very plain caption", "A very plain captions"]
    found = similar(texts, 0.9)
    assert list(zip(found.left, found.right, strict=True)) == list(itertools.combinations(range(4), 2))
    far = np.float32(1 - captions.jaccard(*texts[:2]))
    assert found.distance.tolist() == [far, 0, far, far, 0, far]


@pytest.mark.parametrize("texts", [[], [""], ["one caption"], ["one", "other"]])
def test_nothing_to_find(texts: list[str]) -> None:
    assert [len(each) for each in similar(texts)] == [0, 0, 0]
    assert forest(texts).shape == (0, 2)
    assert minhash.signatures(texts).shape == (len(texts), 128)


NONE = np.empty((0, 2), np.int64)
ROWS = np.zeros((2, 128), np.uint32)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (minhash.signatures, {"strings": [], "num_perm": 0}, "num_perm must be at least 1, got 0"),
        (minhash.signatures, {"strings": [], "size": 0}, "size must be 1 to 13 characters, got 0"),
        (captions.signatures, {"captions": [], "size": 14}, "size must be 1 to 13 characters, got 14"),
        (minhash.signatures, {"strings": [], "seed": -1}, "seed must be 0 to 2.32 - 1, got -1"),
        (captions.shingles, {"caption": "a", "size": 0}, "size must be 1 to 13"),
        (choose_bands, {"threshold": 0}, "threshold must be above 0 and at most 1, got 0"),
        (choose_bands, {"threshold": float("nan")}, "threshold must be above 0 and at most 1, got nan"),
        (choose_bands, {"threshold": 0.8, "num_perm": 0}, "num_perm must be at least 1, got 0"),
        (choose_bands, {"threshold": 0.8, "recall": 1}, "recall must be above 0 and below 1, got 1"),
        (choose_bands, {"threshold": 0.01}, "no bands over 128 permutations find Jaccard 0.01 .*: 0.724 at most"),
        (bucket_keys, {"signatures": ROWS, "bands": Bands(16, 9)}, "16 bands x 9 rows do not fit .* 128 values"),
        (bucket_keys, {"signatures": ROWS, "bands": Bands(0, 9)}, "0 bands x 9 rows do not fit"),
        (bucket_keys, {"signatures": ROWS[0], "bands": Bands(1, 1)}, r"got \[128\] of uint32"),
        (bucket_keys, {"signatures": ROWS.astype(int), "bands": Bands(1, 1)}, r"got \[2, 128\] of int64"),
        (verify, {"captions": ["a"], "candidates": NONE + 0.0}, r"candidates must be int64 .* of float64"),
        (verify, {"captions": ["a"], "candidates": np.array([[0, 1]])}, "candidates must be 0 to 0, got 1"),
        (verify, {"captions": ["a"], "candidates": np.array([[-1, 0]])}, "candidates must be 0 to 0, got -1"),
        (similar, {"captions": ["a"], "threshold": 1.1}, "threshold must be .* got 1.1"),
        (similar, {"captions": ["a"], "signatures": ROWS}, r"signatures must be \[1, 128\], a row per .* \[2, 128\]"),
        (forest, {"captions": ["a", "b"], "signatures": ROWS.astype(int)}, "signatures must be uint32"),
        (forest, {"captions": ["a"], "size": 14}, "size must be 1 to 13"),
    ],
)
def test_errors(function: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(**arguments)
