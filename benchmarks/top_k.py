"""How fast top_k is beside the bare matrix products it needs, and beside faiss's exact index.

    python benchmarks/top_k.py           65,536 queries, 50,000 points, 3,072 dimensions: 5 to 10 minutes
    python benchmarks/top_k.py --quick   2,048 of the queries: under a minute

They take turns in one process, with the same number of threads, and the best turn of each counts. The last
line is a JSON object: ``over_matmul`` is top_k's rate over that of ``torch.mm`` in the same tiles,
``over_faiss`` over that of IndexFlatL2, and ``over_onednn`` over that of oneDNN's products in the same tiles,
which are what top_k uses where torch has them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unmem.neighbors import top_k

POINTS, DIMENSIONS, K = 50_000, 3_072, 50
ROWS, COLUMNS = 4_096, 1_024  # top_k's own tile
SECONDS = 34  # for the turns of --quick


def images(random: np.random.Generator, centres: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float32]:
    """Noisy variants of the centres, in [0, 1]."""
    rows = random.standard_normal((count, DIMENSIONS), np.float32)
    rows *= 0.1
    for part in np.split(rows, range(4096, count, 4096)):  # no second copy of a gigabyte
        part += centres[random.integers(0, len(centres), len(part))]
    return np.clip(rows, 0, 1, out=rows)


def multiply(queries: npt.NDArray[np.float32], points: npt.NDArray[np.float32]) -> None:
    """Every product that a search needs, each into the same memory."""
    tile = torch.empty(ROWS * COLUMNS)
    for rows in torch.split(torch.from_numpy(queries), ROWS):
        for columns in torch.split(torch.from_numpy(points), COLUMNS):
            torch.mm(rows, columns.T, out=tile[: len(rows) * len(columns)].view(len(rows), len(columns)))


def multiply_onednn(queries: npt.NDArray[np.float32], points: npt.NDArray[np.float32]) -> None:
    """The same by oneDNN, for which tensors are copied to its own kind."""
    for rows in torch.split(torch.from_numpy(queries), ROWS):
        packed = rows.to_mkldnn()
        for columns in torch.split(torch.from_numpy(points), COLUMNS):
            torch.nn.functional.linear(packed, columns.to_mkldnn())


def main() -> None:
    try:
        import faiss
    except ImportError:
        sys.exit("top_k is compared with faiss, which is missing: pip install faiss-cpu")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer queries: under a minute")
    quick = parser.parse_args().quick

    random = np.random.default_rng(0)
    centres = random.random((500, DIMENSIONS), np.float32)
    points = images(random, centres, POINTS)
    queries = images(random, centres, 2_048 if quick else 65_536)
    threads = torch.get_num_threads()
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatL2(DIMENSIONS)
    index.add(points)

    contenders: dict[str, Callable[[npt.NDArray[np.float32]], Any]] = {
        "top_k": lambda some: top_k(some, points, K),
        "torch.mm": lambda some: multiply(some, points),
        "faiss": lambda some: index.search(some, K),
    }
    if torch.backends.mkldnn.is_available():
        contenders["oneDNN"] = lambda some: multiply_onednn(some, points)
    for run in contenders.values():  # what starts up once is not timed
        run(queries[:32])

    rates: dict[str, list[float]] = {name: [] for name in contenders}
    agreement = []
    start = time.perf_counter()
    for some in [queries] * 8 if quick else np.split(queries, 4):
        round_start = time.perf_counter()
        found: dict[str, Any] = {}
        for name, run in contenders.items():
            before = time.perf_counter()
            found[name] = run(some)
            rates[name].append(len(some) / (time.perf_counter() - before))
        agreement.append(float((found["top_k"].indices == found["faiss"][1]).mean()))
        now = time.perf_counter()
        if quick and 2 * now - round_start - start > SECONDS:  # another round like this would take too long
            break

    best = {name: max(each) for name, each in rates.items()}
    print(f"{'':10}{'queries/s':>12}{'GFLOP/s':>10}{'top_k over it':>15}")
    for name, rate in best.items():
        flops = 2 * rate * POINTS * DIMENSIONS
        print(f"{name:10}{rate:12.1f}{flops / 1e9:10.1f}{best['top_k'] / rate:15.3f}")
    summary = {
        "over_matmul": best["top_k"] / best["torch.mm"],
        "over_faiss": best["top_k"] / best["faiss"],
        "over_onednn": best["top_k"] / best["oneDNN"] if "oneDNN" in best else None,
        "agreement_with_faiss": min(agreement),
        "queries": len(queries),
        "points": POINTS,
        "dimensions": DIMENSIONS,
        "k": K,
        "threads": threads,
        "rounds": len(agreement),
    }
    print(json.dumps({key: round(it, 3) if isinstance(it, float) else it for key, it in summary.items()}))


if __name__ == "__main__":
    main()
