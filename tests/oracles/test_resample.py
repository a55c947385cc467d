"""What is resampled here has the bytes that the installed Pillow gives, whatever the shape and the mode."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unmem.mitigations.dedup import resample
from unmem.mitigations.dedup.resample import PIXELS, lanczos

SIZES = ((32, 32), (9, 8), (8, 8), (256, 256))
NOISE = np.random.default_rng(0).integers(0, 256, 1 << 21, np.uint8)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """The check at first use is to be made anew, in the test and after it."""
    resample._agrees.cache_clear()
    yield
    resample._agrees.cache_clear()


def noise(width: int, height: int, mode: str, seed: int = 0) -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    pixels = np.roll(NOISE, -7919 * seed)[: np.prod(shape)].reshape(shape)
    return Image.fromarray(pixels)


def by_pillow(image: Image.Image, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def by_definition(pixels: npt.NDArray[np.uint8], m: int) -> npt.NDArray[np.uint8]:
    """Lines [n, ...] reduced to [m, ...] by the formula."""
    n = len(pixels)
    scale = n / m
    found = []
    for output in range(m):
        centre = (output + 0.5) * scale
        low, high = max(int(centre - 3 * scale + 0.5), 0), min(int(centre + 3 * scale + 0.5), n)
        x = (np.arange(low, high) - centre + 0.5) / scale
        weights = np.sinc(x) * np.sinc(x / 3)
        fixed = np.round(weights / weights.sum() * 2**22).astype(np.int64)
        found.append(np.clip((np.tensordot(fixed, pixels[low:high].astype(np.int64), 1) + 2**21) >> 22, 0, 255))
    return np.array(found, np.uint8)


def test_the_installed_pillow_is_matched() -> None:
    """Else the other tests compare Pillow with itself."""
    assert resample._agrees()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("width", "height"),
    [
        *((1024, 768), (640, 427), (427, 640), (300, 300), (301, 299), (257, 257), (513, 301), (258, 258)),
        *((2000, 16), (16, 2000), (20000, 1), (1, 20000), (5000, 33), (33, 5000), (700, 12), (400, 600), (400, 800)),
        *((32, 32), (9, 8), (8, 8), (256, 256), (256, 700), (700, 256), (32, 600), (600, 32), (9, 2000), (2000, 8)),
        *((1, 1), (2, 3), (31, 31), (33, 33), (64, 64), (128, 128), (127, 129), (255, 300)),
    ],
)
def test_noise_of_any_shape(width: int, height: int, size: tuple[int, int], mode: str) -> None:
    image = noise(width, height, mode) if width * height < 2**19 else noise(width, height, "L").convert(mode)
    found = lanczos(image, size)
    assert (found.mode, found.size) == (mode, size)
    np.testing.assert_array_equal(np.asarray(found), by_pillow(image, size))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 500), st.integers(1, 500), st.sampled_from(SIZES), st.sampled_from(["RGB", "L"]), st.integers(0, 99)
)
def test_any_shape(width: int, height: int, size: tuple[int, int], mode: str, seed: int) -> None:
    image = noise(width, height, mode, seed)
    np.testing.assert_array_equal(np.asarray(lanczos(image, size)), by_pillow(image, size))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(SIZES), st.sampled_from(["RGB", "L"]))
def test_what_is_reduced_here(data: st.DataObject, size: tuple[int, int], mode: str) -> None:
    """Shapes that are ours, up to the very edge to those that Pillow takes down first."""
    width = data.draw(st.integers(size[0] + 130, size[0] + 300))
    limit = size[1] + 2 * (width - size[0])
    height = data.draw(st.integers(size[1] + 130, limit - 1) | st.integers(limit - 3, limit - 1))
    image = noise(width, height, mode)
    assert resample._is_ours(image, size)
    np.testing.assert_array_equal(np.asarray(resample._reduced(image, size)), by_pillow(image, size))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cell", [1, 2, 7, 20, 90])
def test_checkerboards_overshoot_and_are_clipped(cell: int, size: tuple[int, int], mode: str) -> None:
    y, x = np.mgrid[:420, :555] // cell
    for board in (x + y, x, y):
        image = Image.fromarray((board % 2 * 255).astype(np.uint8)).convert(mode)
        assert resample._is_ours(image, size)
        np.testing.assert_array_equal(np.asarray(lanczos(image, size)), by_pillow(image, size))


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_constant_images_stay_constant(level: int, mode: str) -> None:
    for size in SIZES:
        found = np.asarray(lanczos(Image.new("L", (401, 333), level).convert(mode), size))
        assert (found == level).all()


def test_channels_are_kept_apart() -> None:
    image = Image.merge("RGB", [noise(300, 200, "L", seed) for seed in range(3)])
    for found, channel in zip(lanczos(image, (32, 32)).split(), image.split(), strict=True):
        np.testing.assert_array_equal(np.asarray(found), by_pillow(channel, (32, 32)))


@pytest.mark.parametrize("size", [(32, 32), (9, 8)])
def test_the_definition(size: tuple[int, int]) -> None:
    image = noise(211, 187, "RGB")
    across = by_definition(np.asarray(image).transpose(1, 0, 2), size[0]).transpose(1, 0, 2)
    np.testing.assert_array_equal(np.asarray(resample._reduced(image, size)), by_definition(across, size[1]))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_that_pillow_keeps_in_pieces(mode: str) -> None:
    image = noise(1500, 1000, "L").convert(mode).resize((3001, 2003), Image.Resampling.NEAREST)
    if mode == "RGB":
        assert len(list(resample._strips(image))) > 1
    np.testing.assert_array_equal(np.asarray(lanczos(image, (32, 32))), by_pillow(image, (32, 32)))


def test_the_image_is_left_alone() -> None:
    image = noise(300, 200, "RGB")
    before = image.tobytes()
    first = lanczos(image, (32, 32))
    assert image.tobytes() == before
    image.paste("red", (0, 0, 300, 200))
    assert image.getpixel((7, 7)) == (255, 0, 0)
    assert (np.asarray(lanczos(image, (32, 32))) == (255, 0, 0)).all()
    assert not (np.asarray(first) == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("shape", "size", "ours"),
    [
        ((1024, 768), (32, 32), True),
        ((768, 1024), (256, 256), True),
        ((232, 431), (32, 32), True),
        ((232, 432), (32, 32), False),  # the limit itself is Pillow's
        ((100, 20000), (32, 32), False),
        ((256, 400), (256, 256), False),
        ((400, 256), (256, 256), False),
        ((200, 200), (256, 256), False),
        ((260, 260), (256, 256), True),
        ((500, 40), (3, 2), False),  # a window would not fit
        ((PIXELS // 64, 64), (32, 32), True),
        ((PIXELS // 64 - 1, 64), (32, 32), False),
    ],
)
def test_what_is_ours(shape: tuple[int, int], size: tuple[int, int], ours: bool) -> None:
    image = Image.new("L", shape)
    assert resample._is_ours(image, size) == ours


def test_another_pillow_takes_over(monkeypatch: pytest.MonkeyPatch, unchecked: None) -> None:
    """Whose bits differ in the least: the weights are off by one part in four million."""
    image = noise(400, 300, "RGB")
    weigh, calls = resample._windows, []

    def other(n: int, m: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        calls.append((n, m))
        starts, weights = weigh(n, m)
        return starts, weights + np.int32(1)

    monkeypatch.setattr(resample, "_windows", other)
    for size in SIZES:
        np.testing.assert_array_equal(np.asarray(lanczos(image, size)), by_pillow(image, size))
    assert calls[0][0] != image.width  # the check, not the image, saw it
    assert not resample._agrees()
    assert (np.asarray(resample._reduced(image, (32, 32))) != by_pillow(image, (32, 32))).any()


def test_a_pillow_that_does_not_know_arrow_takes_over(monkeypatch: pytest.MonkeyPatch, unchecked: None) -> None:
    monkeypatch.delattr(Image.Image, "__arrow_c_array__")
    image = noise(400, 300, "RGB")
    assert not resample._agrees()
    np.testing.assert_array_equal(np.asarray(lanczos(image, (9, 8))), by_pillow(image, (9, 8)))


def test_tiny_pieces_are_left_to_pillow(unchecked: None) -> None:
    size = Image.core.get_block_size()
    Image.core.set_block_size(4096)
    try:
        image = Image.merge("RGB", [noise(400, 300, "L")] * 3)
        assert not resample._agrees()
        np.testing.assert_array_equal(np.asarray(lanczos(image, (9, 8))), by_pillow(image, (9, 8)))
    finally:
        Image.core.set_block_size(size)
