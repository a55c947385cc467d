"""Whatever a file holds, the decoder gives the right pixels or a reason."""

from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, features

from unmem.train.decode import decode

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
CORNERS = np.array([[RED, GREEN, BLUE], [WHITE, RED, GREEN]], dtype=np.uint8)  # 2 high, 3 wide, no symmetry


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(data: bytes | Path, size: int | None = None, channels: int = 3) -> np.ndarray:
    result = decode(data, size, channels)
    assert isinstance(result, np.ndarray), result
    assert result.dtype == np.uint8
    assert result.ndim == 3
    assert result.shape[2] == channels
    return result


def reason(data: bytes | Path) -> str:
    result = decode(data, None, 3)
    assert isinstance(result, str)
    return result


def png(width: int, height: int, bits: int, color: int, rows: list[bytes], *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand: kinds that Pillow reads but cannot write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*each) for each in chunks) + data + chunk(b"IEND", b"")


def photograph(height: int = 60, width: int = 50) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([y * 4, x * 5, (x * y) % 256], axis=-1).astype(np.uint8))


VALID = {
    "png": encoded(photograph(), "PNG"),
    "jpeg": encoded(photograph(), "JPEG"),
    "progressive": encoded(photograph(), "JPEG", progressive=True),
    "gif": encoded(photograph(), "GIF"),
    "webp": encoded(photograph(), "WEBP"),
    "lossless": encoded(photograph(), "WEBP", lossless=True),
    "bmp": encoded(photograph(), "BMP"),
    "tiff": encoded(photograph(), "TIFF"),
    "lzw": encoded(photograph(), "TIFF", compression="tiff_lzw"),
    "ppm": encoded(photograph(), "PPM"),
    "ico": encoded(photograph(), "ICO"),
    "jpeg2000": encoded(photograph(), "JPEG2000"),
    **({"avif": encoded(photograph(), "AVIF")} if features.check("avif") else {}),
}


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_pixels_are_exact_from_bytes_and_from_a_file(kind: str, tmp_path: Path) -> None:
    data = encoded(Image.fromarray(CORNERS), kind)
    (tmp_path / "image").write_bytes(data)
    assert np.array_equal(pixels(data), CORNERS)
    assert np.array_equal(pixels(tmp_path / "image"), CORNERS)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, CORNERS),
        (2, CORNERS[:, ::-1]),
        (3, CORNERS[::-1, ::-1]),
        (4, CORNERS[::-1]),
        (5, CORNERS.transpose(1, 0, 2)),
        (6, np.rot90(CORNERS, -1)),  # the camera was turned: show it turned clockwise
        (7, np.rot90(CORNERS, 2).transpose(1, 0, 2)),
        (8, np.rot90(CORNERS, 1)),
    ],
)
def test_exif_orientation_is_applied(orientation: int, upright: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(encoded(Image.fromarray(CORNERS), "PNG", exif=exif)), upright)


def test_orientation_of_16_bit_grey() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.array([[0, 257], [514, 771]], dtype=np.uint16)).convert("I;16")
    assert pixels(encoded(image, "PNG", exif=exif), channels=1)[..., 0].tolist() == [[2, 0], [3, 1]]


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(levels / 257).astype(np.uint8)
    rows = [row.astype(">u2").tobytes() for row in levels]
    image = pixels(png(256, 256, 16, 0, rows), channels=1)[..., 0]
    assert image.min() == 0
    assert image.max() == 255
    assert np.array_equal(image, expected)
    tiff = encoded(Image.frombytes("I;16", (256, 256), levels.astype("<u2").tobytes()), "TIFF")
    assert np.array_equal(pixels(tiff, channels=1)[..., 0], expected)
    assert np.array_equal(pixels(tiff)[..., 2], expected)


def test_16_bit_colour_keeps_black_and_white() -> None:
    row = np.array([[0, 0, 0], [65535, 65535, 65535], [65535, 0, 257 * 100]], dtype=">u2").tobytes()
    assert pixels(png(3, 1, 16, 2, [row]))[0].tolist() == [[0, 0, 0], [255, 255, 255], [255, 0, 100]]


def test_16_bit_grey_with_a_transparent_level() -> None:
    row = np.array([0, 257, 514], dtype=">u2").tobytes()
    data = png(3, 1, 16, 0, [row], (b"tRNS", struct.pack(">H", 257)))
    assert pixels(data, channels=1).ravel().tolist() == [0, 255, 2]


def test_32_bit_integers_without_a_known_white_are_refused() -> None:
    fits = Image.fromarray(np.array([[0, 65535]], dtype=np.int32))
    assert pixels(encoded(fits, "TIFF"), channels=1).ravel().tolist() == [0, 255]
    for value in (-1, 65536, 2**31 - 1):
        image = Image.fromarray(np.array([[0, value]], dtype=np.int32))
        assert "not within 0..65535" in reason(encoded(image, "TIFF"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 99.6, 255.0], [0, 100, 255]), ([0, 0, 0], [0, 0, 0])],
)
def test_floats(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert pixels(encoded(image, "TIFF"), channels=1).ravel().tolist() == expected


@pytest.mark.parametrize("value", [-0.1, 255.5, float("nan"), float("inf")])
def test_floats_without_a_known_white_are_refused(value: float) -> None:
    image = Image.fromarray(np.array([[0.0, value]], dtype=np.float32))
    assert "floating-point" in reason(encoded(image, "TIFF"))


def test_cmyk_becomes_rgb() -> None:
    inks = [[(0, 0, 0, 0), (0, 255, 255, 0)], [(255, 0, 255, 0), (0, 0, 0, 255)]]
    image = Image.fromarray(np.array(inks, dtype=np.uint8), mode="CMYK")
    expected = [[WHITE, RED], [GREEN, (0, 0, 0)]]
    assert pixels(encoded(image, "TIFF")).tolist() == np.array(expected).tolist()
    jpeg = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)  # stored inverted, as Adobe does
    assert np.abs(pixels(jpeg).astype(int) - RED).max() <= 3
    assert pixels(encoded(image, "TIFF"), channels=1)[..., 0].tolist() == [[255, 76], [150, 0]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(mode: str) -> None:
    black, half, clear = (0, 0, 0, 255), (0, 0, 0, 128), (0, 0, 0, 0)
    image = Image.fromarray(np.array([[black, half, clear]], dtype=np.uint8)).convert(mode)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert pixels(encoded(image, kind, **options))[0].tolist() == [[0] * 3, [127] * 3, [255] * 3]


def test_palettes_with_and_without_transparency() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), mode="P")
    image.putpalette([*RED, *GREEN, *BLUE])
    assert pixels(encoded(image, "PNG"))[0].tolist() == [list(RED), list(GREEN), list(BLUE)]
    assert pixels(encoded(image, "GIF", transparency=1))[0].tolist() == [list(RED), list(WHITE), list(BLUE)]
    levels = bytes([255, 128, 0])
    assert pixels(encoded(image, "PNG", transparency=levels))[0].tolist() == [list(RED), [127, 255, 127], list(WHITE)]


def test_a_transparent_colour_of_rgb_and_grey() -> None:
    assert pixels(encoded(Image.fromarray(CORNERS), "PNG", transparency=RED))[0, 0].tolist() == list(WHITE)
    grey = Image.fromarray(np.array([[0, 7]], dtype=np.uint8))
    assert pixels(encoded(grey, "PNG", transparency=7), channels=1).ravel().tolist() == [0, 255]


def test_one_bit_images_are_black_and_white() -> None:
    image = Image.fromarray(np.array([[True, False, True]]))
    for kind in ("PNG", "TIFF", "BMP"):
        assert pixels(encoded(image, kind), channels=1).ravel().tolist() == [255, 0, 255]


def test_grey_is_pillows() -> None:
    assert pixels(encoded(Image.fromarray(CORNERS), "PNG"), channels=1)[..., 0].tolist() == [
        [76, 150, 29],
        [255, 76, 150],
    ]
    assert pixels(encoded(Image.fromarray(CORNERS[..., 0]), "PNG"))[..., 1].tolist() == CORNERS[..., 0].tolist()


def frames(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (4, 4), (60 * i, 0, 0)) for i in range(count)]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_are_refused(kind: str) -> None:
    first, *rest = frames(3)
    assert reason(encoded(first, kind, save_all=True, append_images=rest)) == "animated: 3 frames"


def test_several_pages_are_refused_but_a_phones_mpo_is_a_photograph() -> None:
    first, second = frames(2)
    assert reason(encoded(first, "TIFF", save_all=True, append_images=[second])) == "multi-page: 2 frames"
    mpo = encoded(first, "MPO", save_all=True, append_images=[second])
    with Image.open(BytesIO(mpo)) as image:
        assert image.format == "MPO"
        assert image.n_frames == 2
    assert pixels(mpo).max() == 0


def test_decompression_bombs_are_refused_at_pillows_warning_level(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("L", (50, 50)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2500)
    assert pixels(data).shape == (50, 50, 3)
    for limit in (2499, 1250, 1249):  # warns, warns, raises
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for action in ("ignore", "error"):
            with warnings.catch_warnings():
                warnings.simplefilter(action)
                assert reason(data).startswith("decompression bomb: ")


def test_a_real_bomb_is_refused_before_it_is_unpacked() -> None:
    assert reason(png(60_000, 60_000, 8, 0, [])).startswith("decompression bomb: ")


def test_the_centre_square_is_taken() -> None:
    image = np.zeros((4, 10, 3), dtype=np.uint8)
    image[:, 3:7] = np.random.default_rng(0).integers(0, 256, (4, 4, 3))
    for data in (encoded(Image.fromarray(image), "PNG"), encoded(Image.fromarray(image.transpose(1, 0, 2)), "PNG")):
        square = pixels(data, size=4)
        assert np.array_equal(square, image[:, 3:7]) or np.array_equal(square.transpose(1, 0, 2), image[:, 3:7])


def test_reduction_is_antialiased_and_enlargement_works() -> None:
    stripes = np.zeros((64, 64), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = pixels(encoded(Image.fromarray(stripes), "PNG"), size=8, channels=1)
    assert small.shape == (8, 8, 1)
    assert np.abs(small.astype(int) - 128).max() < 20
    assert pixels(encoded(Image.fromarray(CORNERS), "PNG"), size=9).shape == (9, 9, 3)


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1)])
def test_extreme_ratios(shape: tuple[int, int]) -> None:
    data = encoded(Image.fromarray(np.full(shape, 9, dtype=np.uint8)), "PNG")
    assert (pixels(data, size=64) == 9).all()
    assert pixels(data).shape == (*shape, 3)


def test_nothing_at_all(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert reason(b"") == reason(tmp_path / "empty") == "empty file"
    assert reason(tmp_path / "absent") == "cannot be decoded: No such file or directory"
    assert reason(tmp_path).startswith("cannot be decoded: ")
    assert reason(b"plain text") == "not an image of a known format"


def test_postscript_is_never_handed_to_ghostscript() -> None:
    assert (
        reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n") == "not an image of a known format"
    )


@pytest.mark.parametrize("kind", VALID)
@pytest.mark.filterwarnings("ignore:::PIL")
def test_truncated_files_give_a_reason_or_all_pixels(kind: str) -> None:
    data, whole = VALID[kind], pixels(VALID[kind])
    last = range(len(data) - 30, len(data))
    cuts = {*range(0, min(len(data), 400), 7), *range(0, len(data), max(1, len(data) // 150)), *last}
    for cut in sorted(cuts):
        result = decode(data[:cut], None, 3)
        if isinstance(result, str):
            assert result
            assert "0x" not in result
        elif kind != "jpeg2000":  # cut at the end of its headers, it decodes to plain grey
            assert np.array_equal(result, whole), cut
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
@pytest.mark.filterwarnings("ignore:::PIL")
def test_random_bytes_never_raise(data: bytes) -> None:
    assert isinstance(decode(data, 8, 3), str | np.ndarray)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(VALID)), st.data())
@pytest.mark.filterwarnings("ignore:::PIL")
def test_damaged_files_never_raise(kind: str, draw: st.DataObject) -> None:
    data = bytearray(VALID[kind])
    for _ in range(draw.draw(st.integers(1, 8))):
        where = draw.draw(st.integers(0, min(len(data), 200) - 1) | st.integers(0, len(data) - 1))
        data[where] = draw.draw(st.integers(0, 255))
    result = decode(bytes(data), 8, 1)
    assert isinstance(result, str) or result.shape == (8, 8, 1)
