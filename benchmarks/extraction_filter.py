"""How long the extraction attack takes beside the bare matrix products that it needs.

    python benchmarks/extraction_filter.py           65,536 samples, 50,000 members, 50,000 held-out images: minutes
    python benchmarks/extraction_filter.py --quick   4,096 of the samples: under a minute

The attack is ``generate_and_filter`` as a recipe runs it, over members and over held-out images of 32 x 32 x 3: copies
joined into groups, the 50 nearest groups of each sample, the ratio. The bare products are those of samples by members
and samples by held-out images, float32, in top_k's tiles, by oneDNN and by ``torch.mm``; the faster one counts. The
attack itself multiplies pixels as bytes, and ``over_byte_products`` is beside those products alone. Grouping could be
had by a product of images by images; the attack gets it with less, and ``over_all_products`` has that product on the
other side too. With ``--quick`` all that the attack does but group is scaled to 65,536 samples. ``cpu_`` figures are of
all threads' processor time, which other programs disturb less than the clock's. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from top_k import COLUMNS, ROWS, multiply, multiply_onednn

from unmem.evaluate.attacks.generate_and_filter import GenerateAndFilter
from unmem.evaluate.audit import Audit, Split, draw
from unmem.evaluate.groups import group_images
from unmem.evaluate.results import Matches
from unmem.rng import stream
from unmem.train.imageset import ImageSet, as_vectors

SAMPLES, IMAGES, SIDE = 65_536, 50_000, 32
Times = tuple[float, float]  # by the clock, and of the processors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samples: under a minute")
    quick = parser.parse_args().quick

    samples = 4_096 if quick else SAMPLES
    source = ImageSet.of(images(2 * IMAGES, 0), [str(i) for i in range(2 * IMAGES)])
    audit = draw(source, Split(members=IMAGES, nonmembers=IMAGES), seed=0)
    generated = images(samples, 1)
    generated[::8] = audit.data.images(slice(0, len(generated[::8]))) // 2 + 60  # members with less contrast
    small = draw(source.take(np.arange(400)), Split(members=200, nonmembers=200), seed=0)
    attack(generated[:32], small)  # what starts up once is not timed

    spent: dict[str, Times] = {}
    check(attack(generated[:4], audit), generated[:4], audit)
    before = resident("VmRSS", forget=True)
    _, spent["attack"] = timed(attack, generated, audit)
    memory = resident("VmHWM") - before
    queries, points = as_vectors(generated), audit.member_images.flat()
    _, spent["grouping"] = timed(group_images, points, 0.03)
    _, spent["torch.mm"] = timed(multiply, queries, points)
    if torch.backends.mkldnn.is_available():
        _, spent["oneDNN"] = timed(multiply_onednn, queries, points)
        _, spent["bytes"] = timed(multiply_bytes, generated, audit.member_images.images())
    print(json.dumps(summary(spent, samples) | {"mebibytes_beyond_inputs": round(memory), "load": os.getloadavg()[0]}))


def attack(generated: np.ndarray, audit: Audit) -> Matches:
    """Extraction by the rule's default settings, from these samples."""
    return GenerateAndFilter(samples=len(generated)).run(Folder(generated), audit, 0)


def multiply_bytes(generated: np.ndarray, images: np.ndarray) -> None:
    """The products of pixels, uint8 [., h, w, c], as the search takes them."""
    flat = (torch.from_numpy(each).flatten(1) for each in (generated, images))
    queries, points = (each.bitwise_xor(128).view(torch.int8) for each in flat)
    for rows in torch.split(queries, ROWS):
        for columns in torch.split(points, COLUMNS):
            torch._int_mm(rows, columns.T)


class Folder:
    """A target whose samples are given."""

    def __init__(self, generated: np.ndarray) -> None:
        self._generated = generated

    def samples(self, count: int) -> np.ndarray:
        return self._generated[:count]


def images(count: int, seed: int) -> np.ndarray:
    """Random images with structure at every scale, uint8 [count, 32, 32, 3]; each 500th is nearly the one before."""
    made = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for start in range(0, count, 4096):
        rng = stream(seed, "images", start)
        pixels = np.full((min(4096, count - start), SIDE, SIDE, 3), 128, np.float32)
        for side, spread in ((1, 30), (2, 30), (4, 25), (8, 18), (16, 10), (32, 6)):
            field = rng.standard_normal((len(pixels), side, side, 3), np.float32) * spread
            pixels += field.repeat(SIDE // side, 1).repeat(SIDE // side, 2)
        pixels[500::500] = pixels[499:-1:500] + 2
        made[start : start + 4096] = pixels.clip(0, 255)
    return made


def check(matches: Matches, generated: np.ndarray, audit: Audit) -> None:
    """The attack's answers are those of plain distances, from each sample to each image, one by one."""
    for data, found, ratio in (
        (audit.member_images, matches.member, matches.member_ratio),
        (audit.nonmember_images, matches.nonmember, matches.nonmember_ratio),
    ):
        points = data.flat()
        for i, query in enumerate(as_vectors(generated)):
            distances = np.sqrt(np.square(points - query).mean(1, dtype=np.float64))
            nearest = np.argsort(distances)[:150]
            alone: list[int] = []  # images that are no near-copies of nearer ones
            for image in nearest:
                apart = np.sqrt(np.square(points[alone] - points[image]).mean(1)) > 0.03
                if apart.all():
                    alone.append(image)
            expected = distances[alone[0]] / (0.5 * distances[alone[:50]].mean())
            assert np.isclose(ratio[i], expected, rtol=1e-5), (ratio[i], expected)
            assert np.square(points[found[i]] - points[alone[0]]).mean() <= 0.03**2


def timed(run: Callable[..., Any], *arguments: Any) -> tuple[Any, Times]:
    """The answer, and how long it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    answer = run(*arguments)
    return answer, (time.perf_counter() - wall, time.process_time() - cpu)


def summary(spent: dict[str, Times], samples: int) -> dict[str, Any]:
    """The ratios, by the clock and of the processors, and what they come from."""
    found: dict[str, Any] = {}
    print(f"{'seconds':12}{'clock':>10}{'processors':>12}   {samples} samples; grouping, products: of one set")
    for name, (wall, cpu) in spent.items():
        print(f"{name:12}{wall:10.2f}{cpu:12.2f}")
    for column, prefix in ((0, ""), (1, "cpu_")):
        each = {name: times[column] for name, times in spent.items()}
        grouping = 2 * each["grouping"]
        whole = grouping + (each["attack"] - grouping) * SAMPLES / samples
        names = ("torch.mm", "oneDNN", "bytes")
        products = {name: 2 * each[name] * SAMPLES / samples for name in names if name in each}
        of_bytes = products.pop("bytes", None)
        fastest = min(products.values())
        found |= {
            f"{prefix}time_over_matmul": whole / fastest,
            f"{prefix}over_torch_mm": whole / products["torch.mm"],
            **({} if of_bytes is None else {f"{prefix}over_byte_products": whole / of_bytes}),
            f"{prefix}over_all_products": whole / (fastest * (1 + IMAGES / SAMPLES)),
            f"{prefix}grouping_over_matmul": grouping / fastest,
        }
    settings = {"samples": samples, "images": IMAGES, "threads": torch.get_num_threads()}
    return {name: round(value, 3) for name, value in found.items()} | settings


def resident(field: str, forget: bool = False) -> float:
    """A field of the process's status, MiB (Linux); the largest so far may be forgotten first."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


if __name__ == "__main__":
    main()
