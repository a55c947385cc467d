"""The recipe components that leave duplicates out, against imagededup's own search and against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from tests.conftest import grey_set
from unmem.component import UserError
from unmem.evaluate.planting import near_copy
from unmem.mitigations.caption_duplicates import CaptionDuplicates
from unmem.mitigations.dedup.captions import jaccard
from unmem.mitigations.embedding_duplicates import EmbeddingDuplicates
from unmem.mitigations.exact_duplicates import ExactDuplicates
from unmem.mitigations.near_duplicates import NearDuplicates
from unmem.rng import stream
from unmem.train.imageset import ImageSet

METHODS = {"phash": "PHash", "dhash": "DHash", "whash": "WHash", "ahash": "AHash"}


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
def test_what_stays_is_what_imagededup_leaves(photographs: ImageSet, method: str) -> None:
    import imagededup.methods

    from unmem.mitigations.dedup.perceptual import is_flat

    firm = photographs.take(
        np.array([i for i, image in enumerate(photographs.images()) if not is_flat(Image.fromarray(image))])
    )
    encoder = getattr(imagededup.methods, METHODS[method])(verbose=False)
    encodings = {
        name: encoder.encode_image(image_array=image) for name, image in zip(firm.ids, firm.images(), strict=True)
    }
    gone = encoder.find_duplicates_to_remove(encoding_map=encodings, max_distance_threshold=10, num_dist_workers=0)
    kept, ledger = NearDuplicates(hash=method, max_distance=10).apply(firm, stream(0, "x"))
    assert {entry.id for entry in ledger} == set(gone)
    assert gone
    hashes = {name: int(text, 16) for name, text in encodings.items()}
    for entry in ledger:
        assert entry.kept in kept.ids
        assert entry.distance == (hashes[entry.id] ^ hashes[entry.kept]).bit_count() <= 10
    assert all((hashes[a] ^ hashes[b]).bit_count() > 10 for a, b in itertools.combinations(kept.ids, 2))


@pytest.mark.parametrize("options", [{"bits": 256, "max_distance": 40}, {"dihedral": True, "max_distance": 8}, {}])
def test_every_dropped_image_is_accounted_for(photographs: ImageSet, options: dict) -> None:
    kept, ledger = NearDuplicates(**options).apply(photographs, stream(0, "x"))
    dropped = {entry.id for entry in ledger}
    assert set(kept.ids) | dropped == set(photographs.ids)
    assert not set(kept.ids) & dropped
    assert {entry.kept for entry in ledger} <= set(kept.ids)
    assert ledger


def test_turned_copies_are_found_when_asked_for(photographs: ImageSet) -> None:
    some = photographs.images(slice(0, 18))
    turned = ImageSet.of(np.concatenate([some, np.rot90(some, axes=(1, 2))]), [f"i/{i}" for i in range(36)])
    plain, _ = NearDuplicates(max_distance=6).apply(turned, stream(0, "x"))
    found, ledger = NearDuplicates(max_distance=6, dihedral=True).apply(turned, stream(0, "x"))
    assert len(found) < len(plain)
    quarter = {entry.id: entry.kept for entry in ledger}
    assert sum(quarter.get(turned.ids[18 + i]) == turned.ids[i] for i in range(18)) >= 12  # the others are flat


def test_flat_images_are_left_to_exact_duplicates() -> None:
    data = grey_set(np.stack([np.full((8, 8), value, np.uint8) for value in (77, 78, 77)]))
    kept, ledger = NearDuplicates(max_distance=64).apply(data, stream(0, "x"))
    assert len(kept) == 3
    assert not ledger
    kept, _ = ExactDuplicates().apply(data, stream(0, "x"))
    assert kept.ids == data.ids[:2]


def test_all_images_equal_leaves_one(digits: ImageSet) -> None:
    data = grey_set(np.repeat(digits.images(slice(0, 1))[..., 0], 9, axis=0))
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


def test_captions_near_and_equal() -> None:
    texts = ("A red car on a road", "a red  CAR on a road", "a red car on the road", "a blue boat at sea", "", "")
    data = grey_set(np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8))
    data = ImageSet(data.store, data.rows, data.ids, captions=texts)
    near = jaccard(texts[0], texts[2])
    for threshold, gone in ((near - 0.01, [1, 2, 5]), (near + 0.01, [1, 5]), (1.0, [1, 5])):
        _, ledger = CaptionDuplicates(jaccard=threshold).apply(data, stream(0, "x"))
        dropped = [data.ids.index(entry.id) for entry in ledger]
        assert [i for i in dropped if texts[i]] == [i for i in gone if texts[i]]
        assert not any(texts[i] == "" for i in dropped)  # no caption is like no other
    with pytest.raises(UserError, match="caption_duplicates: the data have no captions"):
        CaptionDuplicates().apply(grey_set(np.zeros((2, 8, 8), np.uint8)), stream(0, "x"))


def mean_colour(images: list[Image.Image]) -> np.ndarray:
    """An embedding for the tests: a 4 x 4 thumbnail."""
    return np.stack([np.asarray(image.convert("L").resize((4, 4)), np.float32).ravel() - 100 for image in images])


def test_embeddings_within_a_distance(photographs: ImageSet) -> None:
    vectors = mean_colour([Image.fromarray(image) for image in photographs.images()]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = 1 - vectors @ vectors.T
    kept: list[int] = []
    for i in range(len(photographs)):
        if all(cosine[i, j] > 0.02 for j in kept):
            kept.append(i)
    mitigation = EmbeddingDuplicates(model=f"{__name__}:mean_colour", max_distance=0.02)
    left, ledger = mitigation.apply(photographs, stream(0, "x"))
    assert left.ids == tuple(photographs.ids[i] for i in kept)
    for entry in ledger:
        i, j = photographs.ids.index(entry.id), photographs.ids.index(entry.kept)
        assert entry.distance == pytest.approx(cosine[i, j], abs=1e-5)
