"""Deduplication against imagededup's own search and against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import grey_set
from unmem.evaluate.planting import near_copy
from unmem.mitigations.exact_duplicates import ExactDuplicates
from unmem.mitigations.near_duplicates import NearDuplicates, pairs_within, perceptual_hashes
from unmem.rng import stream
from unmem.train.imageset import ImageSet

METHODS = ("phash", "dhash", "whash", "ahash")


@pytest.fixture(scope="module")
def photographs() -> ImageSet:
    """Crops of real photographs, four near-copies of some of them."""
    from sklearn.datasets import load_sample_images

    crops = [
        image[y : y + 96, x : x + 96] for image in load_sample_images().images
        for y in range(0, 330, 110) for x in range(0, 540, 180)
    ]  # fmt: skip
    rng = stream(0, "photographs")
    copies = [near_copy(crop, "mixed", k, rng) for crop in crops[::3] for k in range(4)]
    images = np.stack(crops + copies)
    return ImageSet.of(images, [f"photo/{i}" for i in range(len(images))])


@pytest.mark.parametrize("method", METHODS)
def test_hashes_and_neighbours_are_imagededups(photographs: ImageSet, method: str) -> None:
    import imagededup.methods

    encoder = getattr(
        imagededup.methods, {"phash": "PHash", "dhash": "DHash", "whash": "WHash", "ahash": "AHash"}[method]
    )(verbose=False)
    encodings = {str(i): encoder.encode_image(image_array=image) for i, image in enumerate(photographs.images())}
    hashes = perceptual_hashes(photographs, method)
    assert [f"{value:016x}" for value in hashes.tolist()] == list(encodings.values())
    found = encoder.find_duplicates(encoding_map=encodings, max_distance_threshold=10, search_method="brute_force")
    theirs = {(int(i), int(j)) for i, near in found.items() for j in near if int(i) < int(j)}
    ours = {(int(i), int(j)) for block in pairs_within(hashes, 10) for i, j in block}
    assert ours == theirs
    assert ours


def test_pairs_within_against_brute_force_across_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmem.mitigations.near_duplicates.TILE", 7)
    hashes = stream(0, "hashes").integers(0, 2**64, 50, dtype=np.uint64)
    hashes[30:] = hashes[:20] ^ np.uint64(0b101)
    for limit in (0, 2, 28, 64):
        ours = {(int(i), int(j)) for block in pairs_within(hashes, limit) for i, j in block}
        slow = {
            (i, j) for i in range(50) for j in range(i + 1, 50)
            if bin(int(hashes[i]) ^ int(hashes[j])).count("1") <= limit
        }  # fmt: skip
        assert ours == slow


@pytest.mark.parametrize("method", METHODS)
def test_one_of_each_group_stays_and_the_ledger_says_which(photographs: ImageSet, method: str) -> None:
    kept, ledger = NearDuplicates(hash=method, max_distance=6).apply(photographs, stream(0, "x"))
    dropped = {entry.id for entry in ledger}
    assert set(kept.ids) | dropped == set(photographs.ids)
    assert not set(kept.ids) & dropped
    assert {entry.kept for entry in ledger} <= set(kept.ids)
    assert len(kept) >= 1
    # exact copies of an image never survive, and the first of them is the one that does
    assert not any(name.split(":")[0] in {k.split(":")[0] for k in kept.ids[:i]} for i, name in enumerate(kept.ids))


def test_a_chain_is_one_group_that_keeps_its_first(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = np.array([0b0, 0b11, 0b1111, 0b111111, 1 << 60 | 1 << 61 | 1 << 62], dtype=np.uint64)
    monkeypatch.setattr("unmem.mitigations.near_duplicates.perceptual_hashes", lambda data, method: chain)
    data = grey_set(stream(0, "chain").integers(0, 256, (5, 8, 8), dtype=np.uint8))
    kept, ledger = NearDuplicates(max_distance=2).apply(data, stream(0, "x"))
    assert kept.ids == (data.ids[0], data.ids[4])
    assert [entry.distance for entry in ledger] == [2, 4, 6]


def test_all_images_equal_leaves_one() -> None:
    data = grey_set(np.full((9, 8, 8), 77, np.uint8))
    for mitigation in (ExactDuplicates(), NearDuplicates(max_distance=0), NearDuplicates(max_distance=64)):
        kept, ledger = mitigation.apply(data, stream(0, "x"))
        assert kept.ids == data.ids[:1]
        assert len(ledger) == 8


def test_exact_duplicates_are_pixels_not_hashes(digits: ImageSet) -> None:
    doubled = ImageSet.of(np.concatenate([digits.images(slice(0, 50))] * 2), [f"i/{i}" for i in range(100)])
    kept, ledger = ExactDuplicates().apply(doubled, stream(0, "x"))
    assert kept.ids == doubled.ids[:50]
    assert [entry.kept for entry in ledger] == list(doubled.ids[:50])
    one_off = doubled.images()
    one_off[50, 0, 0, 0] ^= 1
    kept, _ = ExactDuplicates().apply(ImageSet.of(one_off, [f"i/{i}" for i in range(100)]), stream(0, "x"))
    assert len(kept) == 51
