"""What noise multiplicity costs: time and peak memory of a DP-SGD step with K draws an image.

    python benchmarks/dp_multiplicity.py [--quick]

The network of dp_step.py at 16x16, K = 1, 8 and 32 (--quick: 1 and 8), 64 rows of the network held at once whatever K
is. Book-keeping sums an image's draws as it contracts them; Opacus's hooks, the peer, form a gradient a row. Times are
by draw and in turn in one run; memory is by how much a rule and its steps raise a fresh process's resident set at most.
Prints a table and, last, one JSON object: time a draw and memory over those at K = 1, and hooks over book-keeping at
the largest K.
"""

from __future__ import annotations

import argparse
import json

from _dp_network import best_times, peak_mebibytes, step

SIDE, ROWS = 16, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="K = 1 and 8, fewer repeats")
    quick = parser.parse_args().quick
    draws = (1, 8) if quick else (1, 8, 32)
    engines = ("bookkeeping", "opacus-hooks")
    made = {(engine, k): step(engine, SIDE, ROWS // k, k, ROWS) for engine in engines for k in draws}
    best = {case: spent / ROWS for case, spent in best_times(made, 3 if quick else 8).items()}
    peak = {case: peak_mebibytes(case[0], SIDE, ROWS // case[1], case[1], ROWS) for case in made}
    for (engine, k), spent in best.items():
        print(f"{engine:>14}  K = {k:<3} {1000 * spent:6.2f} ms a draw  {peak[engine, k]:6.0f} MiB")
    own, last = "bookkeeping", draws[-1]
    result = {
        "time_a_draw_over_k1": {k: round(best[own, k] / best[own, 1], 3) for k in draws[1:]},
        "memory_over_k1": {k: round(peak[own, k] / peak[own, 1], 3) for k in draws[1:]},
        "hooks_over_bookkeeping": round(best["opacus-hooks", last] / best[own, last], 2),
        "hooks_memory_mb": round(peak["opacus-hooks", last]),
        "bookkeeping_memory_mb": round(peak[own, last]),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
