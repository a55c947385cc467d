"""How fast all pairs of hashes within a Hamming radius are found, beside imagededup's default search and faiss.

    python benchmarks/hamming_search.py           20,000 hashes beside imagededup, 1,000,000 alone: 10 minutes
    python benchmarks/hamming_search.py --quick   5,000 hashes beside imagededup: under a minute

Hashes are random, a tenth of them others with 0 to 12 bits flipped. What is compiled on first use is compiled before
anything is timed. Pairs, and their distances, must be the same on both sides. imagededup runs once, by
``find_duplicates(encoding_map=...)`` with its own defaults; ours starts from the same encoding map, and the best of
several turns counts. The last line is a JSON object: ``over_imagededup`` is our rate over imagededup's,
``over_faiss`` over that of faiss's IndexBinaryFlat with as many threads (it compares each pair from both ends),
``bands_over_tiles`` that of our index over our exhaustive search at 64 and 256 bits; ``gpairs_per_s`` counts the
n (n - 1) / 2 pairs of a set in 1e9 a second. Without ``--quick``, also the seconds and the peak memory of a process
that does nothing but the search among 1,000,000.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from unmem.mitigations.dedup import bands, hamming
from unmem.mitigations.dedup.pairs import Pairs

T = TypeVar("T")
Codes = npt.NDArray[np.uint64]
RADIUS = {64: 10, 256: 31}
MEBIBYTE = 2**20


def hashes(n: int, bits: int) -> Codes:
    """Random codes [n, bits / 64], a tenth of them others with 0 to 12 bits flipped."""
    random = np.random.default_rng(n + bits)
    codes = random.integers(0, 2**64, (n, bits // 64), np.uint64)
    rows = random.permutation(n)[: n // 10]
    codes[rows] = codes[random.integers(0, n, len(rows))]
    for turn, chosen in enumerate(np.array_split(rows, 13)):
        for _ in range(turn):  # the same bit twice is flipped back: at most so many
            bit = random.integers(0, bits, len(chosen))
            codes[chosen, bit // 64] ^= np.uint64(1) << (bit % 64).astype(np.uint64)
    return codes


def best(run: Callable[[], T], turns: int) -> tuple[T, float]:
    """What it gives, and the seconds of its best turn."""
    seconds = []
    for _ in range(turns):
        before = time.perf_counter()
        found = run()
        seconds.append(time.perf_counter() - before)
    return found, min(seconds)


def must_agree(found: Pairs, left: npt.ArrayLike, right: npt.ArrayLike, distance: npt.ArrayLike, peer: str) -> None:
    """Stop where a peer's pairs are not ours."""
    theirs = Pairs.sort(np.asarray(left, np.int64), np.asarray(right, np.int64), distance)
    if not all(np.array_equal(ours, other) for ours, other in zip(found, theirs, strict=True)):
        sys.exit(f"{peer} finds {len(theirs.left)} pairs, ours are {len(found.left)} or differ from them")


def from_encoding_map(encoding_map: dict[str, str]) -> Pairs:
    """Our search from where imagededup's begins."""
    codes = np.fromiter((int(code, 16) for code in encoding_map.values()), np.uint64, len(encoding_map))
    return hamming.within(codes, RADIUS[64])


def beside_imagededup(n: int) -> dict[str, float]:
    """Both searches from an encoding map."""
    from imagededup.methods import PHash

    encoding_map = {str(row): f"{int(code):016x}" for row, code in enumerate(hashes(n, 64)[:, 0])}
    ours, our_seconds = best(lambda: from_encoding_map(encoding_map), 5)
    hasher = PHash(verbose=False)
    theirs, their_seconds = best(
        lambda: hasher.find_duplicates(encoding_map=encoding_map, max_distance_threshold=RADIUS[64], scores=True), 1
    )
    pairs = [(int(a), int(b), bits) for a, near in theirs.items() for b, bits in near if int(a) < int(b)]
    left, right, distance = zip(*pairs, strict=True)
    must_agree(ours, left, right, distance, "imagededup")
    line("imagededup, default search", n, 64, their_seconds)
    line("tiles, from the same map", n, 64, our_seconds)
    return {"imagededup_hashes": n, "pairs_found": len(pairs), "over_imagededup": their_seconds / our_seconds}


def beside_faiss(n: int, threads: int) -> dict[str, float]:
    """Both searches from arrays."""
    import faiss

    faiss.omp_set_num_threads(threads)
    codes = hashes(n, 64)
    ours, our_seconds = best(lambda: hamming.within(codes, RADIUS[64], threads=threads), 5)
    index = faiss.IndexBinaryFlat(64)
    octets = codes.view(np.uint8)
    index.add(octets)
    # its radius is the first distance that is too far
    (limits, distance, right), their_seconds = best(lambda: index.range_search(octets, RADIUS[64] + 1), 2)
    left = np.repeat(np.arange(n), np.diff(limits.astype(np.int64)))
    chosen = left < right
    must_agree(ours, left[chosen], right[chosen], distance[chosen], "faiss")
    line("faiss IndexBinaryFlat", n, 64, their_seconds)
    line("tiles", n, 64, our_seconds)
    return {"faiss_hashes": n, "over_faiss": their_seconds / our_seconds}


def tiles_and_bands(n: int, bits: int, turns: int) -> tuple[float, float]:
    """Seconds of our two searches."""
    codes = hashes(n, bits)
    exhaustive, tile_seconds = best(lambda: hamming.within(codes, RADIUS[bits]), turns)
    indexed, band_seconds = best(lambda: bands.within(codes, RADIUS[bits]), turns)
    must_agree(exhaustive, *indexed, "the index")
    line("tiles", n, bits, tile_seconds)
    line("bands", n, bits, band_seconds)
    return tile_seconds, band_seconds


def line(name: str, n: int, bits: int, seconds: float, memory: str = "") -> None:
    rate = n * (n - 1) / 2 / seconds / 1e9
    print(f"{name:28}{n:>10,}{bits:>6}{RADIUS[bits]:>8}{seconds:12.4f}{rate:12.3f}{memory:>12}", flush=True)


def alone(name: str, n: int, bits: int) -> tuple[float, float]:
    """Seconds of a search, and the peak memory of this process in MiB, which had nothing else to do."""
    search = {"tiles": hamming.within, "bands": bands.within}[name]
    search(hashes(100, bits), RADIUS[bits])
    codes = hashes(n, bits)
    _, seconds = best(lambda: search(codes, RADIUS[bits]), 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, else KiB
    return seconds, peak / (MEBIBYTE if sys.platform == "darwin" else 1024)


def a_million() -> dict[str, float]:
    """Each search in a process of its own."""
    n, summary = 1_000_000, {}
    for name, bits in (("tiles", 64), ("bands", 64), ("bands", 256)):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            seconds, mebibytes = pool.submit(alone, name, n, bits).result()
        line(f"{name}, in its own process", n, bits, seconds, f"{mebibytes:.0f}")
        summary |= {f"million_{name}_{bits}_seconds": seconds, f"million_{name}_{bits}_mib": mebibytes}
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer hashes: under a minute")
    quick = parser.parse_args().quick
    for package in ("faiss", "imagededup"):
        try:
            __import__(package)
        except ImportError:
            sys.exit(f"the search is compared with {package}, which is missing: pip install -e '.[dev]'")

    threads = os.cpu_count() or 1
    for bits in RADIUS:  # compiled here
        tiny = hashes(100, bits)
        hamming.within(tiny, RADIUS[bits])
        bands.within(tiny, RADIUS[bits])

    print(f"{'':28}{'hashes':>10}{'bits':>6}{'radius':>8}{'seconds':>12}{'Gpairs/s':>12}{'peak MiB':>12}")
    summary: dict[str, Any] = {} if quick else a_million()  # first: a process begins with its parent's peak memory
    summary |= beside_imagededup(5_000 if quick else 20_000)
    summary |= beside_faiss(20_000 if quick else 100_000, threads)
    n = 150_000 if quick else 300_000
    for bits in RADIUS:
        tile_seconds, band_seconds = tiles_and_bands(n, bits, 3)
        summary[f"bands_over_tiles_{bits}"] = tile_seconds / band_seconds
        rate = n * (n - 1) / 2 / tile_seconds / 1e9
        summary["gpairs_per_s" if bits == 64 else f"gpairs_per_s_{bits}"] = rate
    summary |= {"threads": threads, "quick": quick}
    print(json.dumps({key: round(it, 3) if isinstance(it, float) else it for key, it in summary.items()}))


if __name__ == "__main__":
    main()
