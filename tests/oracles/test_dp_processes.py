"""One, two and four processes: the same sums before the noise, one noise, equal weights, and nobody waits for ever."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

WORKER = """
import sys
import numpy as np, torch
from accelerate import Accelerator
from tests.oracles.test_dp_sgd import private, unet, unet_losses
from unmem.mitigations.dp.plan import DPPlan

accelerator = Accelerator(cpu=True)
plan = DPPlan(n=12, expected_batch=2, steps=6, clip=0.05, noise_multiplier=float(sys.argv[2]), delta=1e-2)
rule, model, every = private(plan, secret=8), unet(), unet_losses(12)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
forward = rule.prepare(model, optimizer, accelerator)
rule.rehearse(3, lambda slots: every(forward, slots))
sums, seen = [], []
for step in range(plan.steps):
    positions = rule.positions(step)
    mine = []
    def losses(slots):
        mine.extend(positions[slots].tolist())
        return every(forward, positions[slots])
    rule.update(step, len(positions), losses)
    seen.append(mine)
    sums.append(torch.cat([total.flatten() for total in rule._sums.values()]).numpy())
weights = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()
np.savez(f"{sys.argv[1]}/{accelerator.num_processes}-{accelerator.process_index}.npz", sums=np.stack(sums),
         weights=weights, seen=np.array([str(mine) for mine in seen]), sizes=[len(rule.positions(s)) for s in range(6)])
"""


def launch(folder: Path, processes: int, sigma: float) -> list[dict[str, np.ndarray]]:
    """Run the worker in so many gloo processes; what each wrote."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    running = []
    for rank in range(processes):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        if processes > 1:
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": str(rank)}
            environment |= {"RANK": str(rank), "WORLD_SIZE": str(processes), "ACCELERATE_USE_CPU": "true"}
        command = [sys.executable, "-c", WORKER, str(folder), str(sigma)]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=200)[1] for process in running]
    assert all(process.returncode == 0 for process in running), errors
    return [dict(np.load(folder / f"{processes}-{rank}.npz")) for rank in range(processes)]


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_sums_noise_and_weights_do_not_depend_on_the_number_of_processes(tmp_path: Path, processes: int) -> None:
    alone = launch(tmp_path, 1, 0.0)[0]
    together = launch(tmp_path, processes, 0.0)
    assert min(alone["sizes"]) < processes  # somebody's share is empty, and nobody hangs
    for each in together:
        np.testing.assert_allclose(each["sums"], alone["sums"], atol=1e-7, rtol=1e-4)
        np.testing.assert_array_equal(each["weights"], together[0]["weights"])
    for step in range(6):
        shares = [eval(str(each["seen"][step])) for each in together]
        together_seen = sorted(i for share in shares for i in share)
        assert together_seen == sorted(eval(str(alone["seen"][step])))  # disjoint, and all of the batch


def test_noise_comes_in_once(tmp_path: Path) -> None:
    """Were it drawn by each process, its scale would be off by the root of their number."""
    quiet, alone, together = (launch(tmp_path, n, s)[0] for n, s in ((1, 0.0), (1, 1e6), (2, 1e6)))
    noise = [found["sums"][0] - quiet["sums"][0] for found in (alone, together)]
    np.testing.assert_allclose(noise[1], noise[0], rtol=1e-4)
    assert abs(float(noise[1].std()) / (1e6 * 0.05) - 1) < 0.05
