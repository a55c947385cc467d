"""Time and memory of a deduplication job after signing, for made-up signatures: what another image costs.

    python benchmarks/dedup_job.py --quick        50,000 and 200,000 images
    python benchmarks/dedup_job.py                250,000 and 1,000,000

A tenth of the images are near copies of others, by hash and by caption. Each size runs in a process of its own, with
one worker. The last line is a JSON object: seconds and peak memory of the larger job, and the bytes that one more image
adds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unmem.mitigations.dedup.captions import normalise
from unmem.mitigations.dedup.engine import Local
from unmem.mitigations.dedup.find import find
from unmem.mitigations.dedup.signatures import SCHEMA, Signing, _key
from unmem.mitigations.dedup.work import Settings, Source, Work

SHARD = 10_000
SYLLABLES = ("ka", "lo", "mi", "nu", "re", "sa", "to", "vi", "bel", "dor", "fin", "gam", "lus", "por", "qui", "zet")
WORDS = ["".join(parts) for parts in itertools.product(SYLLABLES, repeat=3)]


def write_tables(folder: Path, count: int, bits: int) -> list[Path]:
    """Signature tables of ``count`` images."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**64, (count, bits // 64), dtype=np.uint64)
    copies = rng.choice(count, count // 10, replace=False)
    codes[copies] = codes[rng.integers(0, count, len(copies))]
    codes[copies, 0] ^= np.uint64(1) << rng.integers(0, 64, len(copies), dtype=np.uint64)
    words = rng.choice(WORDS, (count, 12))
    words[copies, :11] = words[rng.integers(0, count, len(copies)), :11]
    paths = []
    for start in range(0, count, SHARD):
        rows = range(start, min(start + SHARD, count))
        texts = [" ".join(words[row]) for row in rows]
        columns = {name: [None] * len(rows) for name in SCHEMA.names} | {
            "id": [f"{start // SHARD:05}.tar/{row:09}" for row in rows],
            "bytes_key": [_key(b"b%d" % row) for row in rows],
            "pixels_key": [_key(b"p%d" % row) for row in rows],
            "code": [codes[row].astype(">u8").tobytes() for row in rows],
            "width": [512] * len(rows),
            "height": [512] * len(rows),
            "file_bytes": [50_000 + row % 1000 for row in rows],
            "captions": [[text] for text in texts],
            "caption_keys": [[_key(normalise(text).encode())] for text in texts],
        }
        paths.append(folder / f"{start:09}.parquet")
        pq.write_table(pa.table(columns, SCHEMA), paths[-1], compression="zstd")
    return paths


def job(folder: Path, tables: list[Path], bits: int, results: multiprocessing.Queue) -> None:
    """Run a job over these tables; report seconds, peak memory in bytes, dropped images."""
    source = Source(folder, (), tuple(tables), ())
    start = time.perf_counter()
    with patch.object(Work, "sign", lambda *_: source):
        outcome = find(folder, folder / "out", Settings(signing=Signing(bits=bits)), Local(1))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    results.put((seconds, peak, outcome.report["dropped"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--bits", type=int, choices=(64, 256), default=64)
    options = parser.parse_args()
    sizes = (50_000, 200_000) if options.quick else (250_000, 1_000_000)
    context = multiprocessing.get_context("spawn")
    peaks = []
    print(f"{'images':>10} {'seconds':>8} {'peak MiB':>9} {'dropped':>9}")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            tables = write_tables(Path(folder), size, options.bits)
            results = context.Queue()
            process = context.Process(target=job, args=(Path(folder), tables, options.bits, results))
            process.start()
            seconds, peak, dropped = results.get()
            process.join()
        peaks.append(peak)
        print(f"{size:>10,} {seconds:>8.1f} {peak / 2**20:>9.0f} {dropped:>9,}", flush=True)
    more = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
    summary = {"images": sizes[1], "seconds": seconds, "peak_mib": peaks[1] / 2**20, "bytes_per_image": more}
    print(json.dumps({key: round(value, 1) for key, value in summary.items()}))


if __name__ == "__main__":
    main()
