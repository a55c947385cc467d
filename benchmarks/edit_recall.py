"""Which stage of deduplication finds which edit of an image, and how often it takes different images for one.

    python benchmarks/edit_recall.py --quick              photographs that ship with packages: under a minute
    python benchmarks/edit_recall.py                      the same, the network trained for longer: 5 minutes
    python benchmarks/edit_recall.py --data DIR           CIFAR-10, Noto emoji and openclipart as well: 5 minutes
    python benchmarks/edit_recall.py --images DIR         your own images
    python benchmarks/edit_recall.py --embed SPEC ...     your own model, as ``unmem dedup --embed`` takes it

Each original is edited in every way of ``_edits.py`` and compared with itself as it was: recall is the share that a
stage declares equal. Two rates of false pairs stand beside it, both over all pairs of different originals: as they are,
and with both edited in the same way, over all edits (bars and borders make pictures alike). What is different is taken
from the source: other photographs or parts of one, other emoji names, other titles; so a rate contains true duplicates
where the source has them.

The embedding, unless you bring one, is a small network that this program trains on other images than those it is
judged on (``_copy_network.py``): what SSCD or another published model would find is not measured here. Its threshold
is the largest at which pairs of calibration images, again others, are false at no more than ``--false-pairs``. Parts
of photographs are calibrated by CIFAR-10 where it is there, so for them the rate that is measured can be far from the
one that was asked for.

DIR of ``--data`` holds what is there of ``cifar10/*.webp`` (lossless strips of 32 x 32 pixels), ``noto_emoji64.npz``
(x, name, skin) and ``openclipart64.npz`` (x, title). The last line is a JSON object of recalls and false-pair rates.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import _copy_network
import numpy as np
import numpy.typing as npt
import torch
from _edits import CHANGES, EDITS, png
from PIL import Image

from unmem.mitigations.dedup import embedding, hamming, perceptual, threshold
from unmem.rundir import write_text
from unmem.train.decode import open_rgb

SIDE = 192  # of a photograph's parts
PARTS = 6  # of one photograph at most
TRAINED = 1_500  # random parts of the photographs to train on
CALIBRATED_EDITS = ("greyscale", "white border", "letterbox", "screenshot", "caption text")
TOGETHER = ("bytes", "pixels", "phash256 turned", "embedding")  # what one job runs

# Files of scikit-learn and scikit-image, by use.
EVALUATION = (
    "china.jpg",
    "flower.jpg",
    "astronaut.png",
    "coffee.png",
    "chelsea.png",
    "rocket.jpg",
    "motorcycle_left.png",
)
CALIBRATION = ("retina.jpg", "camera.png", "coins.png", "ihc.png", "hubble_deep_field.jpg")
TRAINING = ("brick.png", "grass.png", "gravel.png", "moon.png", "cell.png")

Images = list[Image.Image]


class Collection(NamedTuple):
    """Images of one source: to be judged on, to choose the threshold by, and to train on; no image twice."""

    name: str
    originals: Images
    calibration: Images
    training: Images


class Signatures(NamedTuple):
    """What the stages compare."""

    bytes: list[str]
    pixels: list[str]
    phash64: npt.NDArray[np.uint64]
    dhash64: npt.NDArray[np.uint64]
    turned256: npt.NDArray[np.uint64]
    vectors: npt.NDArray[np.float32]


class Stage(NamedTuple):
    """Whether each pair (left i, right i) is one image; and all i < j that are."""

    same: Callable[[Signatures, Signatures], npt.NDArray[np.bool_]]
    pairs: Callable[[Signatures], Any]


# stages


def stages(sizes: dict[str, float]) -> dict[str, Stage]:
    """All stages at their thresholds: ``phash64 auto`` and ``embedding`` as chosen."""
    return {
        "bytes": Stage(functools.partial(equal, "bytes"), functools.partial(equal_pairs, "bytes")),
        "pixels": Stage(functools.partial(equal, "pixels"), functools.partial(equal_pairs, "pixels")),
        **{
            name: Stage(functools.partial(near, field, radius), functools.partial(near_pairs, field, radius))
            for name, field, radius in (
                ("phash64 10", "phash64", 10),
                ("phash64 auto", "phash64", int(sizes["phash64 auto"])),
                ("dhash64 10", "dhash64", 10),
                ("phash256 51", "turned256", 51),
            )
        },
        "phash256 turned": Stage(functools.partial(turned, 51), functools.partial(turned_pairs, 51)),
        "embedding": Stage(
            functools.partial(close, sizes["embedding"]), functools.partial(close_pairs, sizes["embedding"])
        ),
    }


def equal(field: str, left: Signatures, right: Signatures) -> npt.NDArray[np.bool_]:
    return np.array(getattr(left, field)) == np.array(getattr(right, field))


def equal_pairs(field: str, some: Signatures) -> Any:
    _, group = np.unique(getattr(some, field), return_inverse=True)
    return hamming.within(group.astype(np.uint64)[:, None], 0)


def codes(field: str, some: Signatures) -> npt.NDArray[np.uint64]:
    found = getattr(some, field)
    return found[:, 0] if found.ndim == 3 else found


def near(field: str, radius: int, left: Signatures, right: Signatures) -> npt.NDArray[np.bool_]:
    return np.bitwise_count(codes(field, left) ^ codes(field, right)).sum(1, dtype=int) <= radius


def near_pairs(field: str, radius: int, some: Signatures) -> Any:
    return hamming.within(codes(field, some), radius)


def turned(radius: int, left: Signatures, right: Signatures) -> npt.NDArray[np.bool_]:
    return np.bitwise_count(left.turned256 ^ right.turned256[:, :1]).sum(2, dtype=int).min(1) <= radius


def turned_pairs(radius: int, some: Signatures) -> Any:
    variants = some.turned256
    return hamming.between(variants.reshape(-1, variants.shape[2]), np.ascontiguousarray(variants[:, 0]), radius)


def close(limit: float, left: Signatures, right: Signatures) -> npt.NDArray[np.bool_]:
    return np.square(left.vectors.astype(float) - right.vectors).sum(1) / 2 <= limit


def close_pairs(limit: float, some: Signatures) -> Any:
    return embedding.within(some.vectors, limit)


def false_pairs(stage: str, pairs: Any, count: int) -> npt.NDArray[np.int64]:
    """The pairs i < j as numbers i n + j, each once."""
    left = pairs.left // 8 if stage == "phash256 turned" else pairs.left
    low, high = np.minimum(left, pairs.right), np.maximum(left, pairs.right)
    return np.unique((low * count + high)[low < high])


def sign(files: list[bytes], model: embedding.Embed) -> Signatures:
    """The signatures of image files."""
    opened = [open_rgb(data) for data in files]
    images = [each.image for each in opened if not isinstance(each, str)]
    assert len(images) == len(files)
    return Signatures(
        [hashlib.sha256(data).hexdigest() for data in files],
        [hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest() for image in images],
        np.stack([perceptual.code(image, "phash", 64) for image in images]),
        np.stack([perceptual.code(image, "dhash", 64) for image in images]),
        np.stack([perceptual.dihedral_codes(image, 256) for image in images]),
        embedding.embed(images, model),
    )


def calibrate(images: Images, model: embedding.Embed, rate: float) -> tuple[float, int]:
    """The cosine distance that at most this share of different images comes within, and how many pairs were seen."""
    distances = []
    upper = np.triu_indices(len(images), 1)
    for change in (None, *(CHANGES[name] for name in CALIBRATED_EDITS)):
        vectors = embedding.embed(images if change is None else map(change, images), model).astype(float)
        distances.append((1 - vectors @ vectors.T)[upper])
    every = np.concatenate(distances)
    allowed = int(rate * len(every))
    return max(0.0, float(np.nextafter(np.partition(every, allowed)[allowed], -1))), len(every)


# images


def photographs() -> Collection:
    """Parts of the photographs in scikit-learn's and scikit-image's wheels."""
    import skimage
    import sklearn.datasets

    folders = [Path(skimage.__file__).parent / "data", Path(sklearn.datasets.__file__).parent / "images"]
    found = {path.name: path for folder in folders for path in folder.iterdir()}
    whole = {
        name: Image.open(found[name]).convert("RGB") for name in (*EVALUATION, *CALIBRATION, *TRAINING) if name in found
    }
    random = np.random.default_rng(0)
    training = []
    trained = [whole[name] for name in TRAINING if name in whole]
    for _ in range(TRAINED if trained else 0):
        image = trained[random.integers(len(trained))]
        side = int(random.integers(64, 257))
        x, y = random.integers(image.width - side), random.integers(image.height - side)
        training.append(image.crop((x, y, x + side, y + side)))
    originals, calibration = (
        [part for name in names if name in whole for part in parts(whole[name])] for names in (EVALUATION, CALIBRATION)
    )
    return Collection("photographs", originals, calibration, training)


def parts(image: Image.Image) -> Iterator[Image.Image]:
    """Squares of the image that do not overlap, at most ``PARTS``, spread over it."""
    boxes = [
        (x, y, x + SIDE, y + SIDE)
        for y in range(0, image.height - SIDE + 1, SIDE)
        for x in range(0, image.width - SIDE + 1, SIDE)
    ]
    for box in boxes[:: -(-len(boxes) // PARTS)]:
        yield image.crop(box)


def cifar10(folder: Path, count: int, random: np.random.Generator) -> Collection:
    """Test images to be judged on, training images for the rest."""
    test, train = (
        [
            Image.fromarray(square)
            for path in sorted(folder.glob(f"cifar10/{split}_*.webp"))[:20]
            for square in np.asarray(Image.open(path).convert("RGB")).reshape(-1, 32, 32, 3)
        ]
        for split in ("test", "train")
    )
    return split_up("CIFAR-10", test, count, random, others=train)


def emoji(folder: Path, count: int, random: np.random.Generator) -> Collection:
    """One emoji of each name: none in other skin tones."""
    with np.load(folder / "noto_emoji64.npz") as file:
        plain = np.flatnonzero(file["skin"] == "")
        _, first = np.unique(file["name"][plain], return_index=True)
        return split_up("Noto emoji", [Image.fromarray(x) for x in file["x"][plain[first]]], count, random)


def openclipart(folder: Path, count: int, random: np.random.Generator) -> Collection:
    """Pictures whose titles, but for digits and punctuation, are given once."""
    with np.load(folder / "openclipart64.npz") as file:
        titles = [re.sub(r"[\W\d_]+", " ", title).strip().lower() for title in file["title"].tolist()]
        _, first, times = np.unique(titles, return_index=True, return_counts=True)
        pictures = [Image.fromarray(x) for x in file["x"][first[times == 1]]]
    return split_up("openclipart", pictures, count, random)


def own(folder: Path, count: int, random: np.random.Generator) -> Collection:
    """The images that a folder and its subfolders hold."""
    opened = [open_rgb(path) for path in sorted(folder.rglob("*")) if path.is_file()]
    found = split_up("images", [each.image for each in opened if not isinstance(each, str)], count, random)
    if len(found.calibration) < 5:
        sys.exit(f"{folder}: at least 30 different images are needed, that are not flat")
    return found


def split_up(
    name: str, images: Images, count: int, random: np.random.Generator, others: Images | None = None
) -> Collection:
    """Up to ``count`` to be judged on, at most half of them all; the rest, or ``others``, to calibrate and to train."""
    _, first = np.unique([hashlib.sha256(image.tobytes()).hexdigest() for image in images], return_index=True)
    shuffled = [images[i] for i in random.permutation(first) if not perceptual.is_flat(images[i])]
    count = min(count, len(shuffled) // 2)
    rest = shuffled[count:] if others is None else others
    calibration = min(1_500, len(rest) // 3)
    return Collection(name, shuffled[:count], rest[:calibration], rest[calibration:])


# the measurement


def measure(
    collection: Collection, model: embedding.Embed, options: argparse.Namespace
) -> tuple[dict[str, dict[str, float]], str]:
    """Recall by edit and stage, and the rates of false pairs; and the same as text."""
    limit, calibrated = calibrate(collection.calibration, model, options.false_pairs)
    originals = collection.originals
    base = sign([png(image) for image in originals], model)
    auto = threshold.choose(options.size, base.phash64, np.random.default_rng(0))
    chosen = stages({"phash64 auto": auto.max_distance, "embedding": limit})

    rows: dict[str, dict[str, float]] = {}
    apart = {name: false_pairs(name, stage.pairs(base), len(originals)) for name, stage in chosen.items()}
    alike = dict.fromkeys([*chosen, "together"], 0)
    for name, edit in EDITS.items():
        found = sign([edit(image) for image in originals], model)
        same = {stage: chosen[stage].same(base, found) for stage in chosen}
        same["together"] = np.any([same[stage] for stage in TOGETHER], axis=0)
        rows[name] = {stage: float(hits.mean()) for stage, hits in same.items()}
        wrong = {stage: false_pairs(stage, chosen[stage].pairs(found), len(originals)) for stage in chosen}
        wrong["together"] = np.unique(np.concatenate([wrong[stage] for stage in TOGETHER]))
        for stage in alike:
            alike[stage] += len(wrong[stage])
    pairs = len(originals) * (len(originals) - 1) // 2
    apart["together"] = np.unique(np.concatenate([apart[stage] for stage in TOGETHER]))
    rows["false_pair_rate"] = {stage: len(apart[stage]) / pairs for stage in alike}
    rows["false_pair_rate_edited"] = {stage: alike[stage] / pairs / len(EDITS) for stage in alike}
    note = (
        f"{len(originals)} originals, {pairs:,} pairs ({pairs * len(EDITS):,} edited). phash64 auto: "
        f"{auto.max_distance} bits, for {options.size:,} images. embedding: cosine distance {limit:.4f}, false for "
        f"{int(options.false_pairs * calibrated)} of {calibrated:,} pairs of {len(collection.calibration)} other "
        f"images. A recall is within {98 / np.sqrt(len(originals)):.0f} points at 95 %."
    )
    return rows, table(collection.name, rows, note)


def table(name: str, rows: dict[str, dict[str, float]], note: str) -> str:
    """Markdown: recalls in percent, rates of false pairs as they are."""
    names = list(rows["false_pair_rate"])
    lines = [f"### {name}", "", note, "", "| edit | " + " | ".join(names) + " |", "|---" + "|--:" * len(names) + "|"]
    for edit, row in rows.items():
        if edit.startswith("false"):
            label = "false pairs, " + ("as they are" if edit == "false_pair_rate" else "edited alike")
            cells = [f"{rate:.1e}" if rate else "0" for rate in row.values()]
        else:
            label, cells = edit, [f"{100 * recall:.0f}" for recall in row.values()]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def collect(options: argparse.Namespace) -> list[Collection]:
    """The images asked for."""
    random = np.random.default_rng(0)
    if options.images:
        return [own(options.images, options.originals, random)]
    found = [photographs()]
    if options.data:
        sources = {"cifar10": cifar10, "noto_emoji64.npz": emoji, "openclipart64.npz": openclipart}
        present = [load for name, load in sources.items() if (options.data / name).exists()]
        found += [load(options.data, options.originals, random) for load in present]
        if cifar10 in present:  # the parts of five photographs are too few to choose a threshold by
            found[0] = found[0]._replace(calibration=found[1].calibration)
    return found


def trained(images: Images, seconds: float) -> tuple[embedding.Embed, str]:
    """A network trained here, and what to say about it."""
    squares = _copy_network.pixels(images, _copy_network.STORED)
    network, steps = _copy_network.train(squares, seconds, seed=0)
    weights = sum(map(torch.numel, network.parameters()))
    text = f"Embedding: a network of {weights:,} weights, trained here for {seconds:g} s, {steps} steps, on "
    return embedding.Embed("trained here", network.embed), f"{text}{len(images):,} other images; not SSCD.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer originals, little training: under a minute")
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10, Noto emoji, openclipart")
    parser.add_argument("--images", type=Path, help="folder of your own images, instead")
    parser.add_argument("--embed", help="your own model, instead of the one trained here")
    parser.add_argument("--originals", type=int, default=600, help="images of each source to be judged on")
    parser.add_argument("--seconds", type=float, default=200.0, help="how long to train")
    parser.add_argument("--false-pairs", type=float, default=1e-5, help="share of calibration pairs declared equal")
    parser.add_argument("--size", type=int, default=1_000_000, help="images of the set that phash64 auto is chosen for")
    parser.add_argument("--markdown", type=Path, help="file to write the tables to")
    options = parser.parse_args()
    if options.quick:
        options.originals, options.seconds = min(options.originals, 60), min(options.seconds, 18.0)
    start = time.perf_counter()
    collections = collect(options)
    if options.embed:
        model, text = embedding.load(options.embed), f"Embedding: `{options.embed}`.\n"
    else:
        model, text = trained([image for each in collections for image in each.training], options.seconds)
    print(text, flush=True)
    report, results = [text], {}
    for collection in collections:
        results[collection.name], text = measure(collection, model, options)
        report.append(text)
        print(text, flush=True)
    print(f"{time.perf_counter() - start:.0f} s")
    if options.markdown:
        write_text(options.markdown, "\n".join(report))
    flat = {
        f"{name}/{row}/{stage}": round(value, 8)
        for name, rows in results.items()
        for row, values in rows.items()
        for stage, value in values.items()
    }
    print(json.dumps(flat, ensure_ascii=False))


if __name__ == "__main__":
    main()
