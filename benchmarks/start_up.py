"""How long a user waits for the help, and for a finished run that is started again, over a bare ``import click``.

    python benchmarks/start_up.py [--quick]

Prints a table and, last, one JSON object: seconds and their ratio to the bare import, the best of the repeats,
measured in turn in one run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def seconds(command: list[str], folder: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    repeats = 3 if parser.parse_args().quick else 10
    run = [sys.executable, "-m", "unmem", "run", "quickstart", "--smoke", "--arm", "baseline", "--out", "run"]
    commands = {
        "bare": [sys.executable, "-c", "import click"],
        "help": [sys.executable, "-m", "unmem", "--help"],
        "finished_run": run,
    }
    with tempfile.TemporaryDirectory() as folder:
        assert not Path(folder, "run").exists()
        subprocess.run(run, check=True, cwd=folder, stdout=subprocess.DEVNULL)
        best = dict.fromkeys(commands, float("inf"))
        for _ in range(repeats):
            for name, command in commands.items():
                best[name] = min(best[name], seconds(command, folder))
    for name, value in best.items():
        print(f"{name:>14}  {value:6.2f} s  {value / best['bare']:6.1f} x bare")
    result = {f"{name}_seconds": round(value, 3) for name, value in best.items()}
    print(json.dumps(result | {"help_over_bare": round(best["help"] / best["bare"], 2)}))


if __name__ == "__main__":
    main()
