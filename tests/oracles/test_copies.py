"""Planted images with numbers of copies of their own, and extraction by these, against plain counting."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from unmem.component import Problem, dump, validate
from unmem.evaluate.analysis import Compare, analyse
from unmem.evaluate.attacks.generate_and_filter import GenerateAndFilter
from unmem.evaluate.audit import Audit, Planted, Split, draw
from unmem.evaluate.results import Matches
from unmem.evaluate.statistics import rate
from unmem.train.imageset import ImageSet

TIMES = (1, 2, 5)


@pytest.fixture(scope="module")
def mixed(digits: ImageSet) -> Audit:
    """40 members, of which seven stand 1, 2, 5, 1, 2, 5 and 1 times."""
    return draw(digits, Split(members=40, nonmembers=30, planted=Planted(images=7, copies=TIMES)), seed=0)


def test_each_planted_image_takes_a_number_in_turn(mixed: Audit) -> None:
    pixels = Counter(image.tobytes() for image in mixed.training.images(slice(None)))
    for k, name in enumerate(mixed.planted):
        image = mixed.data.select([name]).images(slice(None))[0]
        assert pixels[image.tobytes()] == TIMES[k % 3]
    assert len(mixed.training) == 40 + 0 + 1 + 4 + 0 + 1 + 4 + 0


def test_copies_of_members_are_those_of_the_training_set(mixed: Audit) -> None:
    for name, copies in zip(mixed.members, mixed.member_copies.tolist(), strict=True):
        assert copies == sum(mixed.copies.get(other, other) == name for other in mixed.training.ids)


def test_a_list_of_one_number_is_that_number(digits: ImageSet) -> None:
    one, several = (
        draw(digits, Split(members=40, nonmembers=30, planted=Planted(images=3, copies=copies)), seed=1)
        for copies in (4, (4,))
    )
    assert (one.data.ids, one.copies, one.planted) == (several.data.ids, several.copies, several.planted)
    assert np.array_equal(one.data.images(slice(None)), several.data.images(slice(None)))


def test_a_number_stays_a_number_in_the_resolved_recipe() -> None:
    """It is hashed into every stage's key."""
    assert dump(Planted(images=2, copies=8)) == {"images": 2, "copies": 8, "variant": "exact"}
    assert dump(Planted(images=2, copies=(1, 8)))["copies"] == [1, 8]


@pytest.mark.parametrize("copies", [0, -1, [], [1, 0], True, [True], "4", 2.5, None, [[1]]])
def test_other_copies_are_refused_in_one_sentence(copies: object) -> None:
    problems: list[Problem] = []
    assert validate(Planted, {"images": 2, "copies": copies}, "data.planted", problems) is None
    assert [str(problem) for problem in problems] == [
        f"data.planted.copies: must be a whole number from 1 on, or a list of them; got {copies!r}"
    ]


def some_matches(audit: Audit, samples: int = 60) -> Matches:
    """Nearest images and ratios at random, about half of them below the threshold."""
    rng = np.random.default_rng(7)
    near = [rng.integers(0, len(names), samples) for names in (audit.members, audit.nonmembers)]
    ratio = [rng.uniform(0, 2, samples) for _ in near]
    copies = np.ones(len(audit.members), int)
    return Matches(near[0], ratio[0], ratio[0], near[1], ratio[1], ratio[1], copies, np.array(1.0), np.array(0.03))


def test_extraction_by_copies_is_what_counting_finds(mixed: Audit) -> None:
    matches = some_matches(mixed)
    found = analyse(matches, mixed, frozenset(), Compare(), seed=0)["estimates"]
    assert {name for name in found if name.startswith("extracted_by_copies")} == {
        f"extracted_by_copies[{k}]" for k in TIMES
    }
    hits = 0
    for times in TIMES:
        members = [i for i, name in enumerate(mixed.members) if list(mixed.copies.values()).count(name) + 1 == times]
        hit = sum(
            any(m == i and r < 1 for m, r in zip(matches.member, matches.member_ratio, strict=True)) for i in members
        )
        assert found[f"extracted_by_copies[{times}]"] == rate(hit, len(members), 0.95).as_json()
        hits += hit
    assert hits == found["extracted"]["n"]["successes"] > 0


@pytest.mark.parametrize("planted", [None, Planted(images=5, copies=3), Planted(images=5, copies=(3, 3))])
def test_without_a_difference_in_copies_there_is_no_such_figure(digits: ImageSet, planted: Planted | None) -> None:
    audit = draw(digits, Split(members=40, nonmembers=30, planted=planted), seed=0)
    found = analyse(some_matches(audit), audit, frozenset(), Compare(), seed=0)["estimates"]
    assert not [name for name in found if name.startswith("extracted_by_copies")]


def test_extracted_images_are_counted_by_the_images_like_them(mixed: Audit) -> None:
    """By definition: for each k, the extracted members with at most k images in their group."""
    matches = some_matches(mixed)
    copies = np.random.default_rng(3).integers(1, 12, len(mixed.members))
    report = analyse(replace(matches, copies=copies), mixed, frozenset(), Compare(), 0)
    hit = set(matches.member[matches.member_ratio < 1].tolist())
    largest = max(int(copies[i]) for i in hit)
    steps = [1, 2, 4, 8, 16][: 1 + int(np.ceil(np.log2(largest)))]
    assert report["eidetic"] == [{"k": k, "extracted": sum(copies[i] <= k for i in hit)} for k in steps]


def test_planted_images_are_as_many_as_they_were_planted(mixed: Audit) -> None:
    class Copier:
        def samples(self, count: int) -> np.ndarray:
            return mixed.member_images.images(slice(0, count))

    found = GenerateAndFilter(samples=8).run(Copier(), mixed, 0)
    assert found.copies.sum() == len(mixed.member_training)
    planted = mixed.is_planted()
    assert (found.copies[planted] >= mixed.member_copies[planted]).all()
