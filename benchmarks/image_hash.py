"""How fast images are hashed beside imagededup, from JPEG files to 64 bits, in one process and one thread.

    python benchmarks/image_hash.py           96 files, 12 rounds: about two minutes
    python benchmarks/image_hash.py --quick   24 files: under 50 s

The files are crops of the photographs that scikit-learn and scikit-image carry, at 1024 x 768 with a sensor's noise,
150 to 250 kB each. The contenders take turns at every file, and the best turn of each at each file counts: what else
the machine does at the time falls out. The last line is a JSON object:
``equal_bits_over_imagededup`` is our rate over that of imagededup's ``PHash().encode_image`` for the same bits, which
are checked; ``scaled_over_imagededup`` is the rate with the decoding scaled down by libjpeg, which changes
``scaled_bits_mean`` of the 64 bits on average and ``scaled_bits_max`` at most. ``encode_images``, imagededup's own loop
over a folder with one worker process, is slower than a loop over ``encode_image``, and is shown only.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sklearn.datasets
from imagededup.methods import PHash
from PIL import Image

from unmem.mitigations.dedup.encoding_map import to_hex
from unmem.mitigations.dedup.perceptual import DRAFT, SHARPNESS_SIDE, SIZES, Hash, code, detail, sharpness, shrink
from unmem.train.decode import Opened, open_rgb

WIDTH, HEIGHT, QUALITY, NOISE = 1024, 768, 90, 5
SECONDS = 22  # for the turns of --quick
ALL: tuple[Hash, ...] = ("phash", "dhash", "whash", "ahash")


def photographs() -> list[Image.Image]:
    """Whatever real photographs are installed."""
    found = [Image.fromarray(image) for image in sklearn.datasets.load_sample_images().images]
    try:
        from skimage import data
    except ImportError:
        return found
    names = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "rocket", "retina")
    return [*found, *(Image.fromarray(getattr(data, name)()).convert("RGB") for name in names)]


def write_files(folder: Path, count: int) -> list[Path]:
    """JPEGs of random crops."""
    random = np.random.default_rng(0)
    sources = photographs()
    paths = []
    for number in range(count):
        source = sources[number % len(sources)]
        scale = random.uniform(0.5, 1) * min(source.width / WIDTH, source.height / HEIGHT)
        left, top = (random.uniform(0, source.width - scale * WIDTH), random.uniform(0, source.height - scale * HEIGHT))
        box = (left, top, left + scale * WIDTH, top + scale * HEIGHT)
        crop = np.asarray(source.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS, box=box), np.float32)
        crop = np.clip(crop + NOISE * random.standard_normal(crop.shape, np.float32), 0, 255)
        paths.append(folder / f"{number:04}.jpg")
        Image.fromarray(crop.astype(np.uint8)).save(paths[-1], quality=QUALITY)
    return paths


def opened(path: Path, draft: int | None = None) -> Opened:
    result = open_rgb(path, draft=draft)
    assert isinstance(result, Opened), result
    return result


def ours(path: Path, hash: Hash = "phash", bits: int = 64, *, scaled: bool) -> npt.NDArray[np.uint64]:
    return code(opened(path, DRAFT[hash, bits] if scaled else None).image, hash, bits)


def four(path: Path, *, scaled: bool) -> None:
    image = opened(path, DRAFT["whash", 64] if scaled else None).image
    for hash in ALL:
        code(shrink(image, DRAFT[hash, 64]) if scaled else image, hash)


def signature(path: Path) -> None:
    """What a deduplication job asks of an image."""
    image = opened(path, SHARPNESS_SIDE).image
    sharpness(image)
    small = shrink(image, DRAFT["phash", 256])
    code(small, "phash"), code(small, "phash", 256), detail(small)


def bits_changed(paths: list[Path]) -> dict[str, list[int]]:
    """By the scaled decode, and by shrinking after a full one: bits of each file, for each hash."""
    found: dict[str, list[int]] = {}
    for path in paths:
        full = opened(path).image
        for hash, bits in SIZES:
            exact = code(full, hash, bits)
            for way, image in (
                ("scaled decode", opened(path, DRAFT[hash, bits]).image),
                ("shrunk", shrink(full, DRAFT[hash, bits])),
            ):
                changed = int(np.bitwise_count(code(image, hash, bits) ^ exact).sum())
                found.setdefault(f"{hash} {bits}, {way}", []).append(changed)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer files and rounds: under 50 s")
    quick = parser.parse_args().quick

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_files(folder, 24 if quick else 96)
        sizes = [path.stat().st_size / 1e3 for path in paths]
        print(f"{len(paths)} files, {min(sizes):.0f} to {max(sizes):.0f} kB, {np.mean(sizes):.0f} on average")
        theirs = PHash(verbose=False)
        expected = [theirs.encode_image(image_file=path) for path in paths]
        found = to_hex(np.stack([ours(path, scaled=False) for path in paths]))
        assert found == expected, "the bits differ from imagededup's"
        changed = bits_changed(paths)

        contenders: dict[str, Callable[[Path], object]] = {
            "imagededup": lambda path: theirs.encode_image(image_file=path),
            "equal bits": partial(ours, scaled=False),
            "scaled decode": partial(ours, scaled=True),
            "256 bits, scaled": partial(ours, hash="phash", bits=256, scaled=True),
            "only decode": opened,
            "only decode, scaled": partial(opened, draft=DRAFT["phash", 64]),
            "four hashes": partial(four, scaled=False),
            "four hashes, scaled": partial(four, scaled=True),
            "two hashes, detail, sharpness": signature,
        }
        seconds = np.full((len(contenders), len(paths)), np.inf)
        start = time.perf_counter()
        for _ in range(12):
            round_start = time.perf_counter()
            for column, path in enumerate(paths):
                for row, run in enumerate(contenders.values()):
                    before = time.perf_counter()
                    run(path)
                    seconds[row, column] = min(seconds[row, column], time.perf_counter() - before)
            now = time.perf_counter()
            if quick and 2 * now - round_start - start > SECONDS:  # another round like this would take too long
                break
        before = time.perf_counter()
        theirs.encode_images(folder, num_enc_workers=1)
        folder_rate = len(paths) / (time.perf_counter() - before)

    best = dict(zip(contenders, (len(paths) / seconds.sum(axis=1)).tolist(), strict=True))
    peer = best["imagededup"]
    print(f"{'':32}{'images/s':>9}{'over imagededup':>17}")
    for name, rate in {**best, "imagededup's encode_images": folder_rate}.items():
        print(f"{name:32}{rate:9.1f}{rate / peer:17.2f}")
    print(f"\n{'bits changed':36}{'mean':>6}{'most':>6}")
    for name, counts in changed.items():
        print(f"{name:36}{np.mean(counts):6.2f}{max(counts):6}")
    result = {
        "equal_bits_over_imagededup": round(best["equal bits"] / peer, 3),
        "scaled_over_imagededup": round(best["scaled decode"] / peer, 3),
        "scaled_bits_mean": round(float(np.mean(changed["phash 64, scaled decode"])), 3),
        "scaled_bits_max": max(changed["phash 64, scaled decode"]),
        "scaled_256_over_imagededup": round(best["256 bits, scaled"] / peer, 3),
        "four_scaled_over_imagededup": round(best["four hashes, scaled"] / peer, 3),
        "signature_over_imagededup": round(best["two hashes, detail, sharpness"] / peer, 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
