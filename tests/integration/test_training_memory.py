"""What training costs in memory: everything once, in whichever of the two processes it is."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import isohub
from tests.helpers.repos import make_repo, url, write_files
from tests.helpers.training import HUBCONF, held_bytes

ROOT = Path(__file__).parents[2]
MIB = 1 << 20

DEEP = """
    from torch import nn

    def deep():
        return nn.Sequential(*[layer for _ in range(3) for layer in (nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())])
"""


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_takes_what_it_takes_in_process(tmp_path: Path, forkserver: int, optimizer: str):
    """Private memory rises no higher than in process, within a tenth of what training needs; the rest is there once."""
    write_files(tmp_path, {"hubconf.py": HUBCONF})
    found = {}
    for how in ("plain", "isolated"):
        command = [sys.executable, "-m", "tests.helpers.training", str(tmp_path), how, optimizer]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        found[how] = json.loads(done.stdout)
    plain, isolated = found["plain"], found["isolated"]

    assert (plain["processes"], isolated["processes"]) == (1, 2)
    assert plain["needed"] == isolated["needed"] >= 3 * 64 * MIB
    assert plain["private"] >= plain["needed"]
    assert isolated["private"] <= plain["private"] + plain["needed"] // 10, found
    assert 2 * 64 * MIB <= isolated["shared"] <= 2 * 64 * MIB * 11 // 10, found  # weights and gradients


def test_outputs_dropped_without_a_backward_leave_nothing(tmp_path: Path, one_thread: None, forkserver: int):
    """1,000 forward calls in grad mode whose outputs are dropped leave neither process larger than before."""
    model = isohub.load(url(make_repo(tmp_path / "owner" / "deep", {"v1": {"hubconf.py": DEEP}}), "v1"), "deep")
    x = torch.rand(128, 64, requires_grad=True)
    pid = model.isohub.pid

    def call(times: int) -> list[int]:
        for _ in range(times):
            assert model(x).requires_grad
        gc.collect()
        with torch.no_grad():
            model(x)  # tells the worker what was dropped last
        return [held_bytes("self"), held_bytes(pid)]

    before = call(200)
    after = call(1000)

    # A graph that stays would take some 300 kB, and one object of Python's for each call more than this together.
    assert [max(0, grown - MIB // 2) for grown in (after[0] - before[0], after[1] - before[1])] == [0, 0]
