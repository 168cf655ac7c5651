"""Data sets of any length."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import isohub

pytestmark = pytest.mark.usefixtures("forkserver", "one_thread")

MOST_GROWTH_BYTES = 8 << 20


def private_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


def test_ten_thousand_images(digits: Path):
    """Ten thousand images stream through two versions with flat memory, in this process and in the workers."""
    seen: dict[int, list[int]] = {}

    def images() -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        for number in range(200):
            if number in (20, 199):
                pids = [os.getpid(), *(worker.pid for worker in isohub.workers())]
                seen[number] = [private_bytes(pid) for pid in pids]
            yield torch.rand(50, 1, 8, 8, generator=generator) * 16

    found = isohub.compare(f"git+file://{digits}", "digits", ["v1", "v2"], images(), checks=["outputs"])

    assert (found.calls, found.samples, found.pairs[0].outputs[0].elements) == (200, 10_000, 100_000)
    assert len(seen[20]) == len(seen[199]) == 3
    growth = [after - before for before, after in zip(seen[20], seen[199], strict=True)]
    assert max(growth) < MOST_GROWTH_BYTES


def test_two_batches_at_a_time(digits: Path):
    """Of a stream no more than the batch that is compared and the next one are held."""
    alive: set[int] = set()
    most = 0

    def images() -> Iterator[torch.Tensor]:
        nonlocal most
        for number in range(30):
            batch = torch.rand(2, 1, 8, 8)
            alive.add(number)
            weakref.finalize(batch, alive.discard, number)
            most = max(most, len(alive))
            yield batch
            del batch

    isohub.compare(f"git+file://{digits}", "digits", ["v1", "v2"], images(), checks=["outputs"])

    # The first one is kept for what is measured afterwards.
    assert most <= 4
