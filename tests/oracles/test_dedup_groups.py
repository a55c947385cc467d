"""Who stays, against a plain restatement; the four classes and the threshold against counted and published values."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmem.mitigations.dedup import classes, hamming
from unmem.mitigations.dedup.distinct import first_equal, number
from unmem.mitigations.dedup.groups import representatives
from unmem.mitigations.dedup.outcome import GROUPS, Choice, groups_table
from unmem.mitigations.dedup.relations import Equal, NearCaption, NearHash, NearVector, WithCaption
from unmem.mitigations.dedup.threshold import chance_pairs, choose, degrees_of_freedom
from unmem.mitigations.dedup.union_find import UnionFind
from unmem.mitigations.ledger import copies
from unmem.rng import stream


@dataclass(frozen=True)
class Line:
    """Items on a line; near within a reach."""

    places: np.ndarray
    reach: float
    stage: str = "line"

    def distances(self, item: int, others: np.ndarray) -> np.ndarray:
        gap = np.abs(self.places[others] - self.places[item]).astype(np.float32)
        return np.where(gap <= self.reach, gap, np.inf).astype(np.float32)


def components(relation: Line, n: int) -> np.ndarray:
    union = UnionFind(n)
    pairs = [(i, j) for i in range(n) for j in range(i) if relation.distances(i, np.array([j]))[0] < np.inf]
    union.add(np.array(pairs, np.int64).reshape(-1, 2))
    return union.labels()


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=25), st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_kept_are_a_maximal_independent_set_and_stand_for_their_nearest(places, reach, random) -> None:
    line = Line(np.array(places), reach)
    order = list(range(len(places)))
    random.shuffle(order)
    kept = representatives(components(line, len(places)), np.array(order), [line])
    stays = [i for i in order if kept.by[i] == i]
    plain: list[int] = []
    for i in order:
        if all(abs(places[i] - places[j]) > reach for j in plain):
            plain.append(i)
    assert stays == plain
    for i in set(order) - set(stays):
        gaps = [abs(places[i] - places[j]) for j in stays]
        assert kept.distance[i] == min(gaps) <= reach
        assert abs(places[i] - places[kept.by[i]]) == kept.distance[i]
        assert kept.relation[i] == 0
    assert (kept.relation[stays] == -1).all()


def test_a_chain_is_cut() -> None:
    line = Line(np.array([0, 2, 4, 6, 50]), 2)
    kept = representatives(components(line, 5), np.arange(5), [line])
    assert kept.by.tolist() == [0, 0, 2, 2, 4]


def test_the_strictest_relation_that_holds_is_named() -> None:
    near, equal = Line(np.array([0, 1, 5]), 10), Line(np.array([0, 9, 0]), 0, "equal")
    kept = representatives(np.zeros(3, np.int64), np.array([0, 1, 2]), [equal, near])
    assert kept.relation.tolist() == [-1, 1, 0]
    assert kept.distance.tolist() == [0, 1, 0]


def test_rejected_pairs_stay_apart_and_may_fall_to_another() -> None:
    line = Line(np.array([0, 1, 2]), 2)
    labels = np.zeros(3, np.int64)
    assert representatives(labels, np.arange(3), [line], {0: {2}, 2: {0}}).by.tolist() == [0, 0, 2]
    assert representatives(labels, np.arange(3), [line], {0: {1}, 1: {0}}).by.tolist() == [0, 1, 1]


def test_against_another_set_only_its_items_stand_for_others() -> None:
    line = Line(np.array([0, 0, 1, 1, 30, 31]), 1)
    anchors = np.array([True, True, False, False, False, False])
    kept = representatives(components(line, 6), np.arange(6), [line], anchors=anchors)
    assert kept.by.tolist() == [0, 1, 0, 0, 4, 5]  # the anchors are equal, and both stay; so do 4 and 5


def test_hash_relation_is_the_search() -> None:
    rng = stream(0, "codes")
    codes = rng.integers(0, 2**64, (60, 1), dtype=np.uint64)
    codes[30:] = codes[:30] ^ (np.uint64(1) << rng.integers(0, 64, (30, 1), dtype=np.uint64))
    present = rng.random(60) < 0.8
    relation = NearHash(codes, present, 12)
    pairs = hamming.within(codes, 12)
    expected = {(i, j): d for i, j, d in zip(*pairs, strict=True) if present[i] and present[j]}
    for i in range(60):
        for j, distance in enumerate(relation.distances(i, np.arange(60))):
            if i < j:
                assert (distance < np.inf) == ((i, j) in expected)
                assert distance == np.inf or distance == expected[i, j]


def test_turned_images_are_near_both_ways() -> None:
    turned = stream(0, "turned").integers(0, 2**64, (2, 8, 1), dtype=np.uint64)
    turned[1, 3] = turned[0, 0] ^ np.uint64(1)
    relation = NearHash(turned[:, 0], np.ones(2, bool), 4, turned)
    assert relation.distances(0, np.array([1])) == relation.distances(1, np.array([0])) == 1
    assert np.isinf(NearHash(turned[:, 0], np.ones(2, bool), 4).distances(0, np.array([1]))).all()


def test_missing_keys_and_empty_vectors_equal_nothing() -> None:
    equal = Equal("pixels", np.zeros((3, 2), np.uint64), np.array([True, True, False]))
    assert equal.distances(0, np.arange(3)).tolist() == [0, 0, np.inf]
    assert np.isinf(equal.distances(2, np.arange(3))).all()
    vectors = np.array([[1, 0], [0.6, 0.8], [0, 0]], np.float32)
    assert NearVector(vectors, 0.5).distances(0, np.array([1, 2])).tolist() == pytest.approx([0.4, np.inf])


def test_both_needs_a_near_caption_too() -> None:
    captions = NearCaption([["a cat on a mat"], ["A cat on a mat!", "x"], ["a dog"], []], 0.7)
    both = WithCaption(Line(np.zeros(4), 1), captions)
    assert (both.distances(0, np.array([1, 2, 3])) < np.inf).tolist() == [True, False, False]


def facts(*rows: dict) -> pa.Table:
    blank = {"width": 8, "height": 8, "file_bytes": 10, "sharpness": None, "captions": []}
    names = ("id", "width", "height", "file_bytes", "sharpness", "captions")
    return pa.Table.from_pylist([blank | row for row in rows], pa.schema([GROUPS.field(name) for name in names]))


@pytest.mark.parametrize(
    ("policy", "stays", "why"),
    [
        ("largest", "b", "largest: 9 x 8 pixels, 10 bytes"),
        ("sharpest", "c", "sharpest: 7"),
        ("longest_caption", "a", "longest caption: 5 characters"),
        ("first", "a", "first by id"),
    ],
)
def test_policies(policy: str, stays: str, why: str) -> None:
    table = facts(
        {"id": "c", "sharpness": 7.0},
        {"id": "a", "captions": ["x", "hello"]},
        {"id": "b", "width": 9, "captions": ["X"]},
    )
    groups = groups_table(table, np.zeros(3, np.int64), [Line(np.zeros(3), 0)], Choice(policy, merge_captions=True))
    (kept,) = [row for row in groups.to_pylist() if row["kept"]]
    assert (kept["id"], kept["why"], kept["copies"]) == (stays, why, 3)
    assert sorted(text.lower() for text in kept["merged_captions"]) == ["hello", "x"]


def test_groups_do_not_depend_on_the_order_of_rows() -> None:
    rows = [{"id": f"{i:02}", "width": 1 + i % 3} for i in range(12)]
    places = np.array([0, 1, 2, 3, 20, 21, 40, 41, 42, 60, 80, 80])
    tables = []
    for order in (np.arange(12), stream(0, "order").permutation(12)):
        line = Line(places[order], 1)
        labels = components(line, 12)
        tables.append(groups_table(facts(*(rows[i] for i in order)), labels, [line], Choice()))
    assert tables[0].equals(tables[1])
    assert "09" not in tables[0]["id"].to_pylist()  # alone, so in no group


def slow_classes(item, image, pixels, caption, near) -> dict[str, int]:
    found: dict[str, set[int]] = {
        name: set()
        for name in (
            "same image, same caption", "same image, other captions",
            "other images, same caption", "near image, near caption",
        )
    }  # fmt: skip
    for a, b in itertools.permutations(range(len(item)), 2):
        same_image, same_caption = image[a] == image[b], caption[a] == caption[b]
        if item[a] != item[b] and same_image and same_caption:
            found["same image, same caption"].add(item[a])
        if item[a] != item[b] and same_image and near[a] != near[b]:
            found["same image, other captions"].add(item[a])
        if not same_image and same_caption:
            found["other images, same caption"].add(item[a])
        if same_image and pixels[a] != pixels[b] and near[a] == near[b] and not same_caption:
            found["near image, near caption"].add(item[a])
    return {name: len(items) for name, items in found.items()}


def test_four_classes_by_hand() -> None:
    item, image, pixels = np.arange(6), np.array([0, 0, 0, 3, 4, 4]), np.array([0, 0, 2, 3, 4, 5])
    caption, near = np.array([0, 0, 1, 0, 2, 3]), np.array([0, 0, 1, 0, 2, 2])
    expected = {
        "same image, same caption": 2,
        "same image, other captions": 3,
        "other images, same caption": 3,
        "near image, near caption": 2,
    }
    assert classes.count(item, image, pixels, caption, near) == expected
    assert slow_classes(item, image, pixels, caption, near) == expected


@pytest.mark.parametrize("seed", range(20))
def test_four_classes_against_all_pairs(seed: int) -> None:
    rng = stream(seed, "classes")
    n = int(rng.integers(0, 14))
    near_of = rng.integers(0, 3, 6)
    pixels_of = rng.integers(0, 2, 8)
    item = np.sort(rng.integers(0, 8, n))
    pixels = rng.integers(0, 5, 8)[item]
    image = pixels_of[pixels]
    caption = rng.integers(0, 6, n)
    near = near_of[caption]
    assert classes.count(item, image, pixels, caption, near) == slow_classes(item, image, pixels, caption, near)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30))
def test_equal_rows_are_given_their_first(rows: list[tuple[int, int]]) -> None:
    words = np.array(rows, np.uint64).reshape(-1, 2)
    first = first_equal(words)
    assert first.tolist() == [rows.index(row) for row in rows]
    firsts, numbers = number(first)
    assert [rows[i] for i in firsts] == list(dict.fromkeys(rows))
    assert [rows[firsts[k]] for k in numbers] == rows


# The table of thresholds for ideal 64-bit hashes, and the chance pairs among a million at imagededup's default.
@pytest.mark.parametrize(
    ("images", "largest"), [(10**4, 10), (10**5, 7), (10**6, 5), (10**7, 3), (10**8, 2), (10**9, 0)]
)
def test_chance_allows_what_is_known(images: int, largest: int) -> None:
    assert chance_pairs(images, 64, largest) < 1 <= chance_pairs(images, 64, largest + 1)


def test_chance_pairs_of_known_size() -> None:
    assert chance_pairs(10**6, 64, 10) == pytest.approx(4975, rel=0.02)
    assert chance_pairs(10**9, 256, 31) == pytest.approx(4e-20, rel=0.2)
    assert chance_pairs(5, 64, 64) == 10


def test_threshold_of_ideal_hashes_and_of_dependent_bits() -> None:
    rng = stream(0, "threshold")
    ideal = rng.integers(0, 2**64, (3000, 1), dtype=np.uint64)
    free, differ = degrees_of_freedom(ideal[:800])
    assert free == pytest.approx(64, rel=0.1)
    assert differ == pytest.approx(0.5, abs=0.02)
    assert choose(10**4, ideal, rng).max_distance in (9, 10)
    assert choose(10**5, ideal, rng).max_distance in (6, 7)
    doubled = ideal & np.uint64(0x5555555555555555)  # each bit twice: 32 independent ones
    doubled |= doubled << np.uint64(1)
    assert degrees_of_freedom(doubled[:800])[0] == pytest.approx(32, rel=0.1)
    chosen = choose(10**4, doubled, rng)
    assert chosen.max_distance < 6
    assert "independent bits" in chosen.reason
    wide = rng.integers(0, 2**64, (1000, 4), dtype=np.uint64)
    assert choose(10**9, wide, rng).max_distance == 51
    assert choose(10**9, wide, rng, most=15).max_distance == 15
    assert choose(10**4, ideal, rng, comparisons=8).max_distance < choose(10**4, ideal, rng).max_distance
    assert "even where equal" in choose(10**6, ideal & np.uint64(0xFF), rng).reason


def test_the_threshold_does_not_depend_on_the_order_of_images() -> None:
    codes = stream(0, "order").integers(0, 2**64, (5000, 1), dtype=np.uint64) & np.uint64(0x00FFFFFFFFFFFFFF)
    chosen = {choose(5000, stream(k, "p").permutation(codes), stream(0, "threshold")) for k in range(5)}
    assert len(chosen) == 1


def test_the_threshold_makes_about_as_many_chance_pairs_as_it_says() -> None:
    codes = stream(0, "simulated").integers(0, 2**64, (20_000, 1), dtype=np.uint64)
    for radius in (11, 12):
        found = len(hamming.within(codes, radius).left)
        expected = chance_pairs(20_000, 64, radius)
        assert abs(found - expected) < 6 * expected**0.5


def test_copies_are_counted_through_several_mitigations() -> None:
    assert copies([("b", "a"), ("c", "a"), ("a", "z"), ("y", "x")]) == {"a": 4, "b": 4, "c": 4, "z": 4, "x": 2, "y": 2}
    assert copies([]) == {}
