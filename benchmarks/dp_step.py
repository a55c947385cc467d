"""What a DP-SGD step costs over a plain one: time and peak memory, by engine.

    python benchmarks/dp_step.py [--quick | --profile]

A UNet2DModel with attention and 2.7 million weights; batches of 32 and 64, 16x16 and 32x32 pixels (--quick: the first
of each). Steps are whole ones: optimizer, and for DP-SGD clipping and noise. All are timed in turn in one run, the best
of the repeats. Memory is by how much a rule and its steps raise a fresh process's resident set at most, over what the
plain ones do. Every engine has passed the self-check against one example at a time before it is timed. Prints a table
and, last, one JSON object, of the last row.
"""

from __future__ import annotations

import argparse
import json

import torch
from _dp_network import best_times, network, peak_mebibytes, step

RULES = {"plain": "plain", "bookkeeping": "bookkeeping", "hooks": "opacus-hooks", "ghost": "opacus-ghost"}
CASES = [(16, 32), (16, 64), (32, 32), (32, 64)]


def profile(side: int, batch: int) -> None:
    """The operations that a plain and a private step spend most in."""
    for name in ("plain", "bookkeeping"):
        make = step(RULES[name], side, batch)
        make()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            make()
        print(name)
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=16, max_name_column_width=40))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one case, fewer repeats")
    parser.add_argument("--profile", action="store_true", help="no timing: where a plain and a private step spend time")
    arguments = parser.parse_args()
    if arguments.profile:
        profile(*CASES[0])
        return
    quick = arguments.quick
    print(f"{sum(p.numel() for p in network(16).parameters()) / 1e6:.2f} million weights")
    result: dict[str, object] = {}
    worst = 0.0
    for side, batch in CASES[:1] if quick else CASES:
        best = best_times({name: step(engine, side, batch) for name, engine in RULES.items()}, 5 if quick else 10)
        peak = {name: peak_mebibytes(engine, side, batch) for name, engine in RULES.items()}
        result = {f"{name}_over_plain": round(best[name] / best["plain"], 3) for name in RULES if name != "plain"}
        result["memory_over_plain_mb"] = {n: round(peak[n] - peak["plain"]) for n in RULES if n != "plain"}
        worst = max(worst, best["bookkeeping"] / best["plain"])
        print(
            f"{side}x{side}, batch {batch}: plain {best['plain']:.3f} s, {peak['plain']:.0f} MiB; {result}", flush=True
        )
    print(json.dumps({**result, "worst_bookkeeping_over_plain": round(worst, 3)}))


if __name__ == "__main__":
    main()
