"""One, two and four processes: the same sums before the noise, one noise, equal weights, and nobody waits for ever."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

STEPS, LOUD = 6, 1e6
WORKER = """
import json, sys
import numpy as np, torch
from accelerate import Accelerator
from tests.oracles.test_dp_processes import LOUD, STEPS
from tests.oracles.test_dp_sgd import private, unet, unet_losses
from unmem.mitigations.dp.plan import DPPlan

def train(sigma, accelerator):
    plan = DPPlan(n=12, expected_batch=2, steps=STEPS, clip=0.05, noise_multiplier=sigma, delta=1e-2)
    rule, model, every = private(plan, secret=8), unet(), unet_losses(12)
    forward = rule.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0), accelerator)
    rule.rehearse(3, lambda slots: every(forward, slots))
    sums, seen = [], []
    for step in range(plan.steps):
        positions, mine = rule.positions(step), []
        def losses(slots):
            mine.extend(positions[slots].tolist())
            return every(forward, positions[slots])
        rule.update(step, len(positions), losses)
        seen.append(mine)
        sums.append(torch.cat([total.flatten() for total in rule._sums.values()]).numpy())
    rule._engine.detach()
    return np.stack(sums), seen, torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()

accelerator = Accelerator(cpu=True)
sums, seen, weights = train(0.0, accelerator)
loud, _, loud_weights = train(LOUD, accelerator)
np.savez(f"{sys.argv[1]}/{accelerator.num_processes}-{accelerator.process_index}.npz", sums=sums, weights=weights,
         loud=loud, loud_weights=loud_weights, seen=json.dumps(seen))
"""


def launch(folder: Path, processes: int) -> list[dict[str, np.ndarray]]:
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
        command = [sys.executable, "-c", WORKER, str(folder)]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=200)[1] for process in running]
    assert all(process.returncode == 0 for process in running), errors
    return [dict(np.load(folder / f"{processes}-{rank}.npz")) for rank in range(processes)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return launch(tmp_path_factory.mktemp("alone"), 1)[0]


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_sums_noise_and_weights_do_not_depend_on_the_number_of_processes(
    alone: dict[str, np.ndarray], tmp_path: Path, processes: int
) -> None:
    together = launch(tmp_path, processes)
    whole, seen = json.loads(str(alone["seen"])), [json.loads(str(each["seen"])) for each in together]
    assert min(map(len, whole)) < processes  # somebody's share is empty, and nobody hangs
    for step in range(STEPS):
        assert sorted(i for shares in seen for i in shares[step]) == sorted(whole[step])  # disjoint, and all of it
    for each in together:
        np.testing.assert_allclose(each["sums"], alone["sums"], atol=1e-7, rtol=1e-4)
        for weights in ("weights", "loud_weights"):
            np.testing.assert_array_equal(each[weights], together[0][weights])
        # were noise drawn by each process, its scale would be off by the root of their number
        np.testing.assert_allclose(each["loud"][0], alone["loud"][0], rtol=1e-4)
    assert abs(float(together[0]["loud"][0].std()) / (LOUD * 0.05) - 1) < 0.05
