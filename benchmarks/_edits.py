"""What happens to images that are copied: one edit each, on Pillow images in RGB."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

Edit = Callable[[Image.Image], bytes]

DARK, LIGHT = (18, 18, 20), (245, 245, 247)


def png(image: Image.Image, level: int = 1) -> bytes:
    """A lossless file, so that nothing is measured but the edit before it."""
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=level)
    return out.getvalue()


def jpeg(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def resize(image: Image.Image, width: float, height: float) -> Image.Image:
    size = (max(1, round(image.width * width)), max(1, round(image.height * height)))
    return image.resize(size, Image.Resampling.LANCZOS)


def crop(image: Image.Image, share: float) -> Image.Image:
    """Without this share of the width on the left and right, and of the height above and below; a pixel at least."""
    x, y = max(1, round(image.width * share)), max(1, round(image.height * share))
    return image.crop((x, y, image.width - x, image.height - y))


def rotate(image: Image.Image, degrees: float) -> Image.Image:
    """Turned on the spot: corners are cut, and black where nothing was."""
    return image.rotate(degrees, Image.Resampling.BICUBIC)


def border(image: Image.Image) -> Image.Image:
    return ImageOps.expand(image, max(1, round(0.08 * min(image.size))), "white")


def watermark(image: Image.Image) -> Image.Image:
    """White letters over the middle, half transparent."""
    layer = Image.new("RGBA", image.size)
    draw = ImageDraw.Draw(layer)
    font = ImageFont.load_default(max(8, image.width // 5))
    draw.text((image.width / 2, image.height / 2), "SAMPLE", (255, 255, 255, 128), font, "mm")
    return Image.alpha_composite(image.convert("RGBA"), layer.rotate(20)).convert("RGB")


def caption(image: Image.Image) -> Image.Image:
    """White letters with a black rim along the lower edge."""
    edited = image.copy()
    size = max(8, image.height // 8)
    ImageDraw.Draw(edited).text(
        (image.width / 2, image.height - size / 4), "WHEN YOU SEE IT", "white", ImageFont.load_default(size), "mb",
        stroke_width=max(1, size // 10), stroke_fill="black",
    )  # fmt: skip
    return edited


def letterbox(image: Image.Image) -> Image.Image:
    """Black bars above and below, each an eighth of the result."""
    bar = round(image.height / 6)
    return ImageOps.expand(image, (0, bar, 0, bar), "black")


def screenshot(image: Image.Image) -> Image.Image:
    """On a telephone: a status bar, a title, the picture, a row of buttons; 16 : 9 upright."""
    width = image.width
    screen = Image.new("RGB", (width, max(width * 16 // 9, round(1.3 * image.height))), DARK)
    draw = ImageDraw.Draw(screen)
    top, font = (screen.height - image.height) // 2, ImageFont.load_default(max(8, width // 14))
    draw.rectangle((0, 0, width, top // 3), LIGHT)
    draw.text((width * 0.04, top / 6), "9:41", DARK, font, "lm")
    draw.text((width * 0.96, top / 6), "87 %", DARK, font, "rm")
    draw.text((width * 0.04, top * 2 / 3), "Photos", LIGHT, font, "lm")
    below = (top + image.height + screen.height) / 2
    for x in (0.2, 0.5, 0.8):
        draw.circle((width * x, below), width * 0.04, LIGHT)
    screen.paste(image, (0, top))
    return screen


def repost(image: Image.Image) -> bytes:
    """Cropped a little, made smaller and compressed: what a second upload does."""
    return jpeg(resize(crop(image, 0.02), 0.7, 0.7), 60)


def edited(image: Image.Image, change: Callable[[Image.Image], Image.Image]) -> bytes:
    return png(change(image))


def _brighter(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.3)


def _grey(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "resize 0.5": partial(resize, width=0.5, height=0.5),
    "width 0.75": partial(resize, width=0.75, height=1),
    "greyscale": _grey,
    "brightness 1.3": _brighter,
    "crop 2 %": partial(crop, share=0.02),
    "crop 5 %": partial(crop, share=0.05),
    "crop 10 %": partial(crop, share=0.10),
    "rotate 5°": partial(rotate, degrees=5),
    "white border": border,
    "flip": ImageOps.mirror,
    "watermark": watermark,
    "caption text": caption,
    "letterbox": letterbox,
    "screenshot": screenshot,
}
EDITS: dict[str, Edit] = {
    "same file": png,
    "saved again, lossless": partial(png, level=9),
    "JPEG q30": partial(jpeg, quality=30),
    **{name: partial(edited, change=change) for name, change in CHANGES.items()},
    "crop 2 %, resize 0.7, JPEG q60": repost,
}
