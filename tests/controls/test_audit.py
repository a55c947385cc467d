"""The split: by identity, before anything else, and the same for all; planted near-copies are what they claim."""

from __future__ import annotations

import numpy as np
import pytest

from unmem.component import UserError
from unmem.evaluate.audit import Audit, Planted, Split, draw
from unmem.evaluate.planting import near_copy
from unmem.rng import stream
from unmem.train.imageset import ImageSet

SPLIT = Split(members=30, nonmembers=20, planted=Planted(images=3, copies=4))


def test_the_split_does_not_depend_on_the_order_of_files(digits: ImageSet) -> None:
    shuffled = digits.take(stream(0, "shuffle").permutation(len(digits)))
    first, second = draw(digits, SPLIT, seed=5), draw(shuffled, SPLIT, seed=5)
    assert (first.members, first.nonmembers, first.planted) == (second.members, second.nonmembers, second.planted)
    np.testing.assert_array_equal(first.training.images(), second.training.images())
    assert draw(digits, SPLIT, seed=6).members != first.members


def test_parts_are_disjoint_and_counted(digits: ImageSet) -> None:
    audit = draw(digits, SPLIT, seed=5)
    assert not set(audit.members) & set(audit.nonmembers)
    assert set(audit.planted) <= set(audit.members)
    assert len(audit.training) == 30 + 3 * 3
    assert sorted(set(audit.copies.values())) == sorted(audit.planted)
    assert audit.is_planted().sum() == 3
    for copy, original in audit.copies.items():
        np.testing.assert_array_equal(audit.data.select([copy]).images(), audit.data.select([original]).images())


def test_equal_images_never_stand_on_both_sides(digits: ImageSet) -> None:
    """A source full of copies: the held-out half must not hold what was trained on."""
    few = digits.images(slice(0, 40))
    doubled = ImageSet.of(np.concatenate([few] * 3), [f"file/{i}" for i in range(120)])
    for seed in range(20):
        audit = draw(doubled, Split(members=50, nonmembers=60), seed)
        contents = [{name.split(":")[0] for name in part} for part in (audit.members, audit.nonmembers)]
        assert not contents[0] & contents[1]
    with pytest.raises(UserError, match="are not copies of members"):
        draw(
            ImageSet.of(np.concatenate([few[:1]] * 9), [f"f/{i}" for i in range(9)]), Split(members=4, nonmembers=4), 0
        )


def test_what_is_refused(digits: ImageSet) -> None:
    with pytest.raises(UserError, match="1500 members and 500 nonmembers are 2000 images, but the source has 1797"):
        draw(digits, Split(members=1500, nonmembers=500), 0)
    with pytest.raises(UserError, match=r"planted\.images: 9 is more than the 5 members"):
        draw(digits, Split(members=5, nonmembers=5, planted=Planted(images=9, copies=2)), 0)


def test_save_and_open(digits: ImageSet, tmp_path) -> None:
    audit = draw(digits, SPLIT, seed=5)
    audit.save(tmp_path)
    again = Audit.open(tmp_path)
    assert isinstance(again.data.store, np.memmap)
    assert (again.members, again.copies, again.planted) == (audit.members, audit.copies, audit.planted)
    np.testing.assert_array_equal(again.training.images(), audit.training.images())
    np.testing.assert_array_equal(again.training.labels, audit.training.labels)
    (tmp_path / "data" / "images.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match=r"images\.npy: cannot be read"):
        Audit.open(tmp_path)


def test_near_copies_are_what_they_claim() -> None:
    from sklearn.datasets import load_sample_images

    photo = load_sample_images().images[0][200:296, 200:296]
    rng = stream(0, "near copies")
    distance = {
        variant: float(np.sqrt(((near_copy(photo, variant, 1, rng) - photo.astype(float)) ** 2).mean()) / 255)
        for variant in ("exact", "reencoded", "shifted", "brightness")
    }
    assert distance["exact"] == 0
    assert 0.001 < distance["reencoded"] < 0.1
    assert distance["shifted"] > 0.01
    assert 0 < distance["brightness"] < 0.15
    shifted = near_copy(photo, "shifted", 1, rng)
    moves = [
        (down, right) for down in (-6, 6) for right in (-6, 6)
        if np.array_equal(np.roll(photo, (down, right), (0, 1))[6:-6, 6:-6], shifted[6:-6, 6:-6])
    ]  # fmt: skip
    assert len(moves) == 1
    grey = near_copy(photo[..., :1], "reencoded", 1, rng)
    assert grey.shape == (96, 96, 1)
    in_turn = {near_copy(photo, "mixed", k, stream(0, "turn", k)).tobytes() for k in range(4)}
    assert len(in_turn) == 4
