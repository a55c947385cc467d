"""Hashes are imagededup's to the bit; turned, faint, stored and half-decoded images are what they claim to be."""

from __future__ import annotations

import functools
import json
import multiprocessing
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import sklearn.datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageFilter, features

from unmem.component import UserError
from unmem.mitigations.dedup import perceptual
from unmem.mitigations.dedup.encoding_map import from_hex, read_encoding_map, to_hex, write_encoding_map
from unmem.mitigations.dedup.perceptual import (
    DIHEDRAL,
    DRAFT,
    SHARPNESS_SIDE,
    SIZES,
    code,
    code_and_flat,
    codes_of_arrays,
    detail,
    dihedral_codes,
    flat_of_arrays,
    is_flat,
    sharpness,
    shrink,
)
from unmem.train.decode import Opened, decode, open_rgb

HASHES = ("phash", "dhash", "whash", "ahash")
PHOTOGRAPHS = [Image.fromarray(each) for each in sklearn.datasets.load_sample_images().images]
PHOTOGRAPH = PHOTOGRAPHS[0]


@functools.cache
def theirs(hash: str) -> object:
    import imagededup.methods

    names = {"phash": "PHash", "dhash": "DHash", "whash": "WHash", "ahash": "AHash"}
    return getattr(imagededup.methods, names[hash])(verbose=False)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def opened(data: bytes | Path, **options: object) -> Opened:
    result = open_rgb(data, **options)
    assert isinstance(result, Opened), result
    assert result.image.mode == "RGB"
    return result


def hexadecimal(image: Image.Image, hash: str) -> str:
    return f"{code(image, hash)[0]:016x}"


def apart(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> int:
    return int(np.bitwise_count(a ^ b).sum())


def turned(orientation: int) -> dict[str, Image.Exif]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


def cut_out(image: Image.Image) -> Image.Image:
    """Transparent outside an ellipse, with what is hidden left in place."""
    y, x = np.mgrid[-1 : 1 : image.height * 1j, -1 : 1 : image.width * 1j]
    result = image.copy()
    result.putalpha(Image.fromarray(((x**2 + y**2 < 0.6) * 255).astype(np.uint8)))
    return result


SMALL = PHOTOGRAPH.resize((301, 203))
DIGITS = sklearn.datasets.load_digits().images
FILES = {
    "jpeg": encoded(PHOTOGRAPH, "JPEG", quality=90),
    "jpeg progressive": encoded(SMALL, "JPEG", progressive=True, subsampling=0),
    "jpeg grey": encoded(SMALL.convert("L"), "JPEG"),
    "jpeg cmyk": encoded(SMALL.convert("CMYK"), "JPEG"),
    "jpeg turned": encoded(SMALL, "JPEG", **turned(6)),
    "mpo": encoded(SMALL, "MPO", save_all=True, append_images=[SMALL.transpose(Image.Transpose.ROTATE_90)]),
    "png": encoded(SMALL, "PNG"),
    "png alpha": encoded(cut_out(SMALL), "PNG"),
    "png grey and alpha": encoded(cut_out(SMALL).convert("LA"), "PNG"),
    "png colour key": encoded(SMALL, "PNG", transparency=SMALL.getpixel((150, 100))),
    "png palette": encoded(SMALL.quantize(64), "PNG"),
    "png palette and alpha": encoded(SMALL.quantize(64), "PNG", transparency=bytes(range(0, 256, 4))),
    "png one bit": encoded(SMALL.convert("1"), "PNG"),
    "gif": encoded(SMALL.quantize(200), "GIF", transparency=3),
    "webp": encoded(SMALL, "WEBP"),
    "webp alpha": encoded(cut_out(SMALL), "WEBP", lossless=True, exact=True),
    "bmp": encoded(SMALL, "BMP"),
    "tiff": encoded(SMALL, "TIFF", compression="tiff_lzw"),
    "tiff turned": encoded(SMALL, "TIFF", **turned(8)),
    "tiff cmyk": encoded(SMALL.convert("CMYK"), "TIFF"),
    "ppm": encoded(SMALL, "PPM"),
    "one pixel": encoded(Image.new("RGB", (1, 1), (9, 99, 200)), "PNG"),
    "one row": encoded(SMALL.crop((0, 50, 301, 51)), "PNG"),
    "one column": encoded(SMALL.crop((50, 0, 51, 203)), "PNG"),
    "odd": encoded(SMALL.crop((10, 20, 47, 51)), "PNG"),
    "white": encoded(Image.new("L", (50, 40), 255), "PNG"),
    "halves": encoded(Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 32, axis=1)), "PNG"),
    "digit": encoded(Image.fromarray((DIGITS[7] * 15).astype(np.uint8)), "PNG"),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # theirs
@pytest.mark.parametrize("hash", HASHES)
@pytest.mark.parametrize("kind", FILES)
def test_files_hash_as_imagededup_does(kind: str, hash: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(FILES[kind])
    expected = theirs(hash).encode_image(image_file=tmp_path / "image")
    for data in (FILES[kind], tmp_path / "image"):
        assert hexadecimal(opened(data, as_stored=True).image, hash) == expected


def test_16_bit_grey_is_scaled_where_imagededup_clips_or_refuses() -> None:
    grey = SMALL.convert("L")
    deep = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    for hash in HASHES:
        assert hexadecimal(opened(encoded(deep, "PNG"), as_stored=True).image, hash) == hexadecimal(grey, hash)


IMAGES = st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3])).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 255) | st.sampled_from([0, 255]))
)


@settings(max_examples=60, deadline=None)
@given(IMAGES, st.sampled_from(HASHES))
def test_arrays_hash_as_imagededup_does(images: npt.NDArray[np.uint8], hash: str) -> None:
    found = codes_of_arrays(images, hash)
    assert found.shape == (len(images), 1)
    assert found.dtype == np.uint64
    channels = 3 // images.shape[3]
    expected = [theirs(hash).encode_image(image_array=np.repeat(image, channels, axis=2)) for image in images]
    assert to_hex(found) == expected


@pytest.mark.parametrize(
    "shape", [(32, 32, 3), (28, 28, 1), (8, 8, 1), (64, 64, 3), (37, 90, 3), (9, 300, 1), (90, 37, 3), (50, 7, 1)]
)
@pytest.mark.parametrize(("hash", "bits"), SIZES)
def test_batches_do_not_change_the_codes(
    shape: tuple[int, ...], hash: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    height, width, channels = shape
    crops = [PHOTOGRAPH.crop((x, x, x + 3 * width, x + 3 * height)).resize((width, height)) for x in range(0, 60, 7)]
    images = np.stack([np.asarray(each.convert("L" if channels == 1 else "RGB")) for each in crops])
    images = np.concatenate([images.reshape(-1, *shape)] * 2)
    expected = [code(Image.fromarray(image[..., 0] if channels == 1 else image), hash, bits) for image in images]
    np.testing.assert_array_equal(codes_of_arrays(images, hash, bits), expected)
    strided = np.ascontiguousarray(images.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(codes_of_arrays(strided, hash, bits), expected)
    np.testing.assert_array_equal(codes_of_arrays(images[:1], hash, bits), expected[:1])
    assert codes_of_arrays(images[:0], hash, bits).shape == (0, bits // 64)
    monkeypatch.setattr(perceptual, "BATCH", 5 * max(height * width, SIZES[hash, bits][0] * SIZES[hash, bits][1]))
    np.testing.assert_array_equal(codes_of_arrays(images, hash, bits), expected)  # 18 images by fives


def test_grey_is_rgb_with_equal_channels() -> None:
    grey = PHOTOGRAPH.convert("L")
    for hash, bits in SIZES:
        assert apart(code(grey, hash, bits), code(grey.convert("RGB"), hash, bits)) == 0


def test_256_bits_by_the_definition() -> None:
    """From the cosines themselves."""
    for photograph in PHOTOGRAPHS:
        small = np.asarray(photograph.convert("L").convert("F").resize((64, 64), Image.Resampling.LANCZOS), np.float64)
        cosines = np.cos(np.pi * np.arange(16)[:, None] * (2 * np.arange(64) + 1) / 128)
        block = (cosines @ small @ cosines.T).ravel()
        bits = block >= np.median(block[1:])
        found = code(photograph, "phash", 256)
        assert found.shape == (4,)
        np.testing.assert_array_equal(np.unpackbits(found.astype(">u8").view(np.uint8)), bits)
        assert np.count_nonzero(bits[1:]) == 128


def test_copies_are_near_and_others_far() -> None:
    for bits, near, far in ((64, 4, 18), (256, 12, 90)):
        first, second = (code(each, "phash", bits) for each in PHOTOGRAPHS)
        copies = [
            opened(encoded(PHOTOGRAPH, "JPEG", quality=30)).image,
            PHOTOGRAPH.resize((200, 130)),
            PHOTOGRAPH.resize((900, 700)),
        ]
        assert max(apart(code(copy, "phash", bits), first) for copy in copies) <= near
        assert apart(first, second) >= far


@pytest.mark.parametrize(("hash", "bits"), SIZES)
def test_drafts_cost_few_bits(hash: str, bits: int) -> None:
    large = PHOTOGRAPH.resize((1280, 854), Image.Resampling.LANCZOS)
    data = encoded(large, "JPEG", quality=90)
    draft = opened(data, draft=DRAFT[hash, bits])
    assert (draft.width, draft.height) == (1280, 854)
    assert draft.image.width <= 640
    assert min(draft.image.size) >= DRAFT[hash, bits]
    full = opened(data).image
    assert apart(code(draft.image, hash, bits), code(full, hash, bits)) <= 4
    small = shrink(full, DRAFT[hash, bits])
    assert small.size == draft.image.size
    assert apart(code(small, hash, bits), code(full, hash, bits)) <= 4


def test_shrinking_keeps_the_side() -> None:
    image = Image.new("L", (100, 400))
    assert [shrink(image, side).size for side in (12, 13, 25, 50)] == [(13, 50), (25, 100), (25, 100), (50, 200)]
    assert shrink(image, 51) is image


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_dihedral_codes_are_those_of_the_turned_image(mode: str) -> None:
    for photograph in PHOTOGRAPHS:
        image = photograph.convert(mode)
        for bits, most in ((64, 2), (256, 4)):
            found = dihedral_codes(image, bits)
            assert found.shape == (8, bits // 64)
            np.testing.assert_array_equal(found[0], code(image, "phash", bits))
            for turn, each in zip(DIHEDRAL, found, strict=True):
                right = image if turn is None else image.transpose(turn)
                assert apart(each, code(right, "phash", bits)) <= most, turn
            assert min(apart(found[0], other) for other in found[1:]) > bits // 8  # else the check proves nothing


@settings(max_examples=40, deadline=None)
@given(arrays(np.uint8, (32, 32)))
def test_dihedral_codes_of_what_is_hashed_itself(pixels: npt.NDArray[np.uint8]) -> None:
    """At 32 x 32 nothing is resampled, so that only ties with the median may differ."""
    found = dihedral_codes(Image.fromarray(pixels))
    for turn, each in zip(DIHEDRAL, found, strict=True):
        image = Image.fromarray(pixels)
        image = image if turn is None else image.transpose(turn)
        cosines = np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(32) + 1) / 64)
        block = (cosines @ np.asarray(image, np.float64) @ cosines.T).ravel()
        ties = np.abs(block - np.median(block[1:])) < 1e-6 * (1 + np.abs(block).max())
        differ = np.unpackbits((each ^ code(image, "phash")).astype(">u8").view(np.uint8)).astype(bool)
        assert not (differ & ~ties).any()


def noise(side: int, levels: float) -> Image.Image:
    values = 128 + levels * np.random.default_rng(0).standard_normal((side, side, 3))
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))


def stripes() -> Image.Image:
    return Image.fromarray(np.repeat(np.array([0, 200, 90], np.uint8), 20)[:, None].repeat(90, axis=1))


@pytest.mark.parametrize(
    "image",
    [
        *(Image.new("RGB", (64, 48), colour) for colour in ("white", "black", "red", (200, 201, 202))),
        Image.new("L", (1, 1), 77),
        *(noise(side, levels) for side, levels in ((32, 1), (32, 2), (64, 2), (256, 8))),
        Image.linear_gradient("L"),
        stripes(),
    ],
)
def test_flat_images(image: Image.Image) -> None:
    assert is_flat(image)


@pytest.mark.parametrize(
    "image",
    [
        *PHOTOGRAPHS,
        *(each.resize((32, 32)) for each in PHOTOGRAPHS),
        *(each.point(lambda level: 100 + level // 8) for each in PHOTOGRAPHS),
        noise(32, 60),
        *(Image.fromarray((digit * 15).astype(np.uint8)) for digit in DIGITS[:50]),
    ],
)
def test_images_with_something_in_them(image: Image.Image) -> None:
    assert not is_flat(image)


def test_detail_counts_firm_bits() -> None:
    assert detail(Image.new("L", (40, 40))) == 0
    assert 50 < detail(PHOTOGRAPH) <= 62
    faint = PHOTOGRAPH.point(lambda level: 120 + level // 32)
    assert detail(faint) < detail(PHOTOGRAPH.point(lambda level: 100 + level // 8)) < detail(PHOTOGRAPH)


def test_firm_bits_survive_rounding() -> None:
    """What the count promises: noise of a rounding's size flips none of them."""
    grey = np.asarray(PHOTOGRAPH.convert("L").resize((32, 32), Image.Resampling.LANCZOS)).astype(np.int16)
    shaken = grey + np.random.default_rng(0).integers(-1, 2, grey.shape)
    image, copy = (Image.fromarray(np.clip(each, 0, 255).astype(np.uint8)) for each in (grey, shaken))
    assert apart(code(image, "phash"), code(copy, "phash")) <= 63 - detail(image)


def test_sharpness_ranks_copies() -> None:
    large = PHOTOGRAPHS[1].resize((1280, 854), Image.Resampling.LANCZOS)
    blurred = large.filter(ImageFilter.GaussianBlur(8))
    enlarged = large.resize((128, 85)).resize((1280, 854), Image.Resampling.BICUBIC)
    values = [sharpness(each) for each in (large, blurred, enlarged, large.resize((128, 85)))]
    assert max(values[1:]) < 0.7 * values[0]
    assert sharpness(Image.new("RGB", (30, 500), "red")) == 0
    assert sharpness(large.crop((0, 0, 1, 854))) >= 0
    data = encoded(large, "JPEG", quality=95)
    draft = opened(data, draft=SHARPNESS_SIDE)
    assert draft.image.width < 1280
    assert sharpness(draft.image) == pytest.approx(sharpness(opened(data).image), rel=0.02)


@pytest.mark.parametrize(("hash", "bits"), [("phash", 128), ("dhash", 256), ("crop", 64)])
def test_unknown_hashes_are_refused(hash: str, bits: int) -> None:
    with pytest.raises(UserError, match=rf"no perceptual hash {hash} of {bits} bits: known are phash 64, phash 256"):
        code(PHOTOGRAPH, hash, bits)
    with pytest.raises(UserError, match="no perceptual hash"):
        codes_of_arrays(np.zeros((0, 8, 8, 1), np.uint8), hash, bits)


# The opened image


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_upright_is_the_default(orientation: int, kind: str) -> None:
    data = encoded(SMALL, kind, **turned(orientation))
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # PIL.Image.Transpose
    plain = opened(encoded(SMALL, kind)).image
    physical = plain.transpose(Image.Transpose(turn[orientation])) if orientation > 1 else plain
    upright = opened(data)
    np.testing.assert_array_equal(np.asarray(upright.image), np.asarray(physical))
    assert (upright.width, upright.height) == physical.size
    if kind != "TIFF":  # Pillow turns it unasked
        stored = opened(data, as_stored=True)
        np.testing.assert_array_equal(np.asarray(stored.image), np.asarray(plain))
        assert (stored.width, stored.height, stored.oriented) == (*SMALL.size, False)
    assert upright.oriented == (orientation > 1)
    for hash in HASHES:
        assert hexadecimal(upright.image, hash) == hexadecimal(physical, hash)


def test_a_draft_is_turned_too() -> None:
    large = PHOTOGRAPH.resize((1280, 854))
    result = opened(encoded(large, "JPEG", **turned(6)), draft=100)
    assert result.image.size == (107, 160)
    assert (result.width, result.height, result.oriented) == (854, 1280, True)
    physical = large.transpose(Image.Transpose.ROTATE_270)
    assert apart(code(result.image, "phash"), code(physical, "phash")) <= 4


@pytest.mark.parametrize("kind", ["png alpha", "png grey and alpha", "png palette and alpha", "gif", "webp alpha"])
def test_transparency_over_white_or_dropped(kind: str) -> None:
    flat, stored = opened(FILES[kind]), opened(FILES[kind], as_stored=True)
    assert flat.flattened
    assert not stored.flattened
    np.testing.assert_array_equal(np.asarray(flat.image), decode(FILES[kind], None, 3))
    assert not np.array_equal(np.asarray(flat.image), np.asarray(stored.image))


@pytest.mark.parametrize("kind", FILES)
def test_an_opened_image_has_the_decoders_pixels(kind: str) -> None:
    result = opened(FILES[kind])
    np.testing.assert_array_equal(np.asarray(result.image), decode(FILES[kind], None, 3))
    assert (result.width, result.height) == result.image.size
    assert result.oriented == ("turned" in kind)
    draft = opened(FILES[kind], draft=64)
    assert (draft.width, draft.height) == result.image.size
    if not kind.startswith(("jpeg", "mpo")):
        assert draft.image.size == result.image.size


@pytest.mark.parametrize("kind", ["JPEG2000", "ICO", *(["AVIF"] if features.check("avif") else [])])
def test_formats_that_imagededup_does_not_know(kind: str) -> None:
    data = encoded(SMALL.resize((200, 200)), kind)
    result = opened(data)
    np.testing.assert_array_equal(np.asarray(result.image), decode(data, None, 3))
    assert apart(code(shrink(result.image, 64), "phash"), code(SMALL, "phash")) <= 6


@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("options", [{}, {"draft": 16}, {"as_stored": True}])
def test_reasons_are_the_decoders(options: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green")]
    unusable = [
        b"",
        b"plain text",
        FILES["jpeg"][: len(FILES["jpeg"]) // 2],
        FILES["png"][: len(FILES["png"]) // 2],
        encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        encoded(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF"),
    ]
    for data in unusable:
        assert open_rgb(data, **options) == decode(data, None, 3)
        assert isinstance(open_rgb(data, **options), str)
    assert open_rgb(Path("absent"), **options) == "cannot be decoded: No such file or directory"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 640 * 427 - 1)  # of the original, not of the draft
    assert str(open_rgb(FILES["jpeg"], **options)).startswith("decompression bomb: 640 x 427")


# Text


@given(arrays(np.uint64, st.tuples(st.integers(0, 5), st.sampled_from([1, 4]))))
def test_hexadecimal_round_trip(codes: npt.NDArray[np.uint64]) -> None:
    texts = to_hex(codes)
    assert texts == ["".join(f"{word:016x}" for word in row) for row in codes]
    found = from_hex([text.upper() for text in texts], bits=64 * codes.shape[1])
    assert found.dtype == np.uint64
    np.testing.assert_array_equal(found, codes)
    assert to_hex(codes[:, 0]) == [text[:16] for text in texts]


@pytest.mark.parametrize("text", ["", "0" * 15, "0" * 17, "g" * 16, " " + "0" * 15, "0x" + "0" * 14, "٣" * 16, None])
def test_what_is_no_hash_is_refused(text: str | None) -> None:
    with pytest.raises(UserError, match="hash 1 must be 16 hexadecimal digits, is "):
        from_hex(["0" * 16, text])


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # theirs
def test_maps_come_from_imagededup_and_go_back(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, photograph in zip(("a.jpg", "ä b.jpg"), PHOTOGRAPHS, strict=True):
        photograph.save(folder / name)
    PHOTOGRAPHS[0].resize((320, 213)).save(folder / "copy.png")
    known = {path.name: theirs("phash").encode_image(image_file=path) for path in sorted(folder.iterdir())}
    (tmp_path / "theirs.json").write_text(json.dumps(known), encoding="utf-8")
    assert read_encoding_map(tmp_path / "theirs.json") == known

    codes = np.stack([code(opened(path, as_stored=True).image, "phash") for path in sorted(folder.iterdir())])
    write_encoding_map(tmp_path / "ours.json", dict(zip(known, to_hex(codes), strict=True)))
    ours = read_encoding_map(tmp_path / "ours.json")
    assert ours == known
    assert list(ours) == list(known)
    with pytest.warns(RuntimeWarning, match="num_enc_workers"):
        found = theirs("phash").find_duplicates(encoding_map=ours, num_dist_workers=0)
    assert found == {"a.jpg": ["copy.png"], "copy.png": ["a.jpg"], "ä b.jpg": []}
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "must be a JSON object of file names and their hashes"),
        ("3", "must be a JSON object"),
        ("{", "not JSON: "),
        ('{"a.jpg": "12"}', "the hash of 'a.jpg' must be 16 hexadecimal digits, is '12'"),
        ('{"a.jpg": null}', "the hash of 'a.jpg' must be 16 hexadecimal digits, is None"),
        ('{"a.jpg": {"b": 1}}', "the hash of 'a.jpg' must be"),
        ('{"a": "0000000000000000", "a": "FFFFFFFFFFFFFFFF"}', "'a' is there twice, with the hashes 0{16} and f{16}"),
    ],
)
def test_damaged_maps_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(UserError, match=rf"map\.json: {message}"):
        read_encoding_map(tmp_path / "map.json")


def test_other_maps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json: cannot be read: No such file"):
        read_encoding_map(tmp_path / "absent.json")
    (tmp_path / "latin").write_bytes('{"ä": 1}'.encode("latin-1"))
    with pytest.raises(UserError, match="latin: not JSON"):
        read_encoding_map(tmp_path / "latin")
    write_encoding_map(tmp_path / "empty.json", {})
    assert read_encoding_map(tmp_path / "empty.json") == {}
    (tmp_path / "upper.json").write_text('{"a": "abABabABabABabAB"}')
    assert read_encoding_map(tmp_path / "upper.json") == {"a": "abababababababab"}
    with pytest.raises(UserError, match=r"map\.json: the hash of 'a' must be 16 hexadecimal digits, is 'x'"):
        write_encoding_map(tmp_path / "map.json", {"a": "x"})
    assert not (tmp_path / "map.json").exists()


@pytest.mark.parametrize(("hash", "bits"), SIZES)
def test_code_and_flatness_together_are_what_they_are_apart(hash: str, bits: int) -> None:
    rng = np.random.default_rng(0)
    for image in (
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)),
        Image.new("RGB", (40, 40), "red"),
        Image.new("L", (33, 17), 200),
    ):
        together, flat = code_and_flat(image, hash, bits)
        assert (together == code(image, hash, bits)).all()
        assert flat == is_flat(image)


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (20, 30, 3), (30, 20, 1)])
def test_flatness_of_many_is_that_of_each(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, *shape), dtype=np.uint8)
    images[::3] //= 128  # two grey levels: nothing to see
    expected = [is_flat(Image.fromarray(image[..., 0] if shape[2] == 1 else image)) for image in images]
    assert flat_of_arrays(images).tolist() == expected
    assert 0 < sum(expected) < 40
    assert flat_of_arrays(images[:0]).tolist() == []
