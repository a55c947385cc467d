"""How long the clique filter takes for one prompt, distances included, beside a plain loop and networkx.

    python benchmarks/clique.py           500 samples of 512 x 512 a prompt: a minute or two
    python benchmarks/clique.py --quick   the same with fewer rounds: under 50 seconds

Three prompts of 500 samples each, without any model: one that is ``memorized`` (60 near-copies of one picture among
other pictures), one that is ``fresh`` (all samples differ, no edge at 0.15), and a ``flat`` one (noise on a grey page:
all samples are within the threshold of one another, at distances in no order, which is the hardest search). On the
first, both sides must give the same distances and the same largest clique. The plain loop is timed on a part of the
pairs, networkx on the memorized prompt, where it can list every clique.

The last line is a JSON object: ``seconds_per_prompt`` is of the slowest prompt, its best round; ``cpu_seconds`` what
that round took of all processors together, which other work on the machine does not lengthen; ``search_seconds`` what
random graphs of 500 vertices take at most, at densities around those where cliques of ten begin to occur;
``megabytes`` the most memory that was held beyond the images.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from itertools import combinations
from typing import Any

import numpy as np
import torch

from unmem.evaluate.cliques import Clique, largest_clique, tightest_clique, tiled_distances

SAMPLES, SIDE, THRESHOLD, SIZE = 500, 512, 0.15, 10
NEAR = 60
PAIRS = 100  # of the plain loop
QUICK, FULL = 6, 30  # seconds of rounds a prompt, about
DENSITIES = (0.2, 0.25, 0.28, 0.3, 0.32, 0.34, 0.36, 0.4, 0.6, 0.9)


def picture(random: np.random.Generator) -> np.ndarray:
    """Smooth colours, uint8 [512, 512, 3]: as far from one another as pictures are."""
    coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return coarse.repeat(SIDE // 8, 0).repeat(SIDE // 8, 1)


def noisy(image: np.ndarray, random: np.random.Generator, deviation: int) -> np.ndarray:
    """The same with noise of its own."""
    noise = random.integers(-2 * deviation, 2 * deviation + 1, image.shape, dtype=np.int16)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def prompt(kind: str) -> np.ndarray:
    """The samples of a prompt, uint8 [500, 512, 512, 3]."""
    random = np.random.default_rng(0)
    images = np.empty((SAMPLES, SIDE, SIDE, 3), dtype=np.uint8)
    memory, page = picture(random), np.full((SIDE, SIDE, 3), 128, dtype=np.uint8)
    for k in range(SAMPLES):
        if kind == "flat":
            images[k] = noisy(page, random, 8)
        elif kind == "memorized" and k % (SAMPLES // NEAR) == 0 and k // (SAMPLES // NEAR) < NEAR:
            images[k] = noisy(memory, random, 10)
        else:
            images[k] = picture(random)
    return images


def judge(images: np.ndarray) -> tuple[np.ndarray, Clique | None]:
    """What is timed: all distances, and the tightest clique."""
    distances = tiled_distances(images)
    return distances, tightest_clique(distances, THRESHOLD, SIZE)


def plain(first: np.ndarray, second: np.ndarray) -> float:
    """The patch distance of one pair."""
    squares = (first.astype(np.float32) - second) ** 2
    side = SIDE // 4
    tiles = squares.reshape(4, side, 4, side, 3).astype(np.float64).mean((1, 3, 4))
    return float(np.sqrt(tiles.max()) / 255)


def loop_seconds(images: np.ndarray, distances: np.ndarray) -> float:
    """What a plain loop over all pairs would take, from a part of them; the distances must agree."""
    pairs = list(combinations(range(SAMPLES), 2))
    chosen = pairs[:: len(pairs) // PAIRS]
    start = time.perf_counter()
    found = [plain(images[i], images[j]) for i, j in chosen]
    seconds = (time.perf_counter() - start) / len(chosen) * len(pairs)
    np.testing.assert_allclose(found, [distances[i, j] for i, j in chosen], rtol=1e-6)
    return seconds


def beside(images: np.ndarray, distances: np.ndarray) -> dict[str, float | None]:
    """Seconds of the peers on the memorized prompt, and of our search for its largest clique."""
    edges = (distances <= THRESHOLD) & ~np.eye(SAMPLES, dtype=bool)
    start = time.perf_counter()
    ours = largest_clique(edges, above=SIZE - 1)
    found: dict[str, float | None] = {"largest": time.perf_counter() - start, "largest_by_networkx": None}
    assert len(ours) == NEAR
    try:
        import networkx
    except ImportError:
        print("networkx is not installed")
    else:
        graph = networkx.from_numpy_array(edges)
        start = time.perf_counter()
        theirs = max(networkx.find_cliques(graph), key=len)
        found["largest_by_networkx"] = time.perf_counter() - start
        assert sorted(theirs) == ours.tolist()
        print(f"{'':10}{found['largest_by_networkx']:8.3f} s by networkx for the largest clique;", end=" ")
        print(f"{found['largest']:.3f} s ours")
    found["loop"] = loop_seconds(images, distances)
    print(f"{'':10}{found['loop']:8.0f} s by a plain loop over all pairs for the distances")
    return found


def search_seconds() -> float:
    """The longest search for ten among random graphs."""
    random, longest = np.random.default_rng(0), 0.0
    for density in DENSITIES:
        upper = np.triu(random.random((SAMPLES, SAMPLES)) < density, 1)
        start = time.perf_counter()
        largest_clique(upper | upper.T, above=SIZE - 1, enough=SIZE)
        longest = max(longest, time.perf_counter() - start)
    return longest


def peak() -> int:
    """The most memory that this process has held, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under 50 seconds")
    budget = QUICK if parser.parse_args().quick else FULL

    tightest_clique(tiled_distances(np.zeros((SIZE, 8, 8, 1), dtype=np.uint8)), THRESHOLD, SIZE)  # compile
    prompts: dict[str, tuple[float, float]] = {}
    summary: dict[str, Any] = {}
    extra = 0
    for kind in ("memorized", "fresh", "flat"):
        images = prompt(kind)
        before, first, turns = peak(), time.perf_counter(), []
        while not turns or time.perf_counter() - first + turns[-1][0] < budget:
            start, used = time.perf_counter(), time.process_time()
            distances, clique = judge(images)
            turns.append((time.perf_counter() - start, time.process_time() - used))
        prompts[kind] = min(turns)
        extra = max(extra, peak() - before)
        assert (clique is None) == (kind == "fresh")
        found = "no clique" if clique is None else f"mean distance in the clique {clique.mean:.4f}"
        print(f"{kind:10}{prompts[kind][0]:8.2f} s a prompt, {prompts[kind][1]:.2f} s of processors; {found}")
        if kind == "memorized":
            summary = beside(images, distances)
    slowest, cpu = max(prompts.values())
    summary = {
        "seconds_per_prompt": slowest,
        "cpu_seconds": cpu,
        **{kind: seconds for kind, (seconds, _) in prompts.items()},
        **summary,
        "loop_over_ours": summary["loop"] / prompts["memorized"][0],
        "search_seconds": search_seconds(),
        "megabytes": extra / 1e6,
        "samples": SAMPLES,
        "side": SIDE,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps({key: round(it, 4) if isinstance(it, float) else it for key, it in summary.items()}))


if __name__ == "__main__":
    main()
