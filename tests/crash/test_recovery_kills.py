"""Workers killed at random moments of a training run that goes on. ISOHUB_RECOVERY_KILLS says how many; 500 is all."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable

import pytest
import torch

import isohub
from isohub.errors import RestartError, WorkerError
from tests.helpers.waiting import until

KILLS = int(os.environ.get("ISOHUB_RECOVERY_KILLS", "12"))
# Every other process is killed so soon, often before it is ready; those between them only after some steps, since a
# process that dies again and again without a step is not started again for a while.
LONGEST_LIFE_S = 0.3
HUBCONF = """
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1000))
            self.norm = torch.nn.BatchNorm1d(4)

        def forward(self, x):
            self.norm(x)
            return x[:, :1] * self.weight

    def net():
        return Net()
"""


@pytest.mark.timeout(120 + 10 * KILLS)
def test_training_survives_kills(repo_of: Callable[..., str], one_thread: None):
    """However often its worker is killed, a run comes to its end, and each step that succeeded was done once."""
    model = isohub.load(repo_of(HUBCONF), "net", isolate=isohub.Isolation(restart="on-crash"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    (worker,) = isohub.workers()
    before = id(model.weight), model.weight.data_ptr()
    x = torch.ones(2, 4)
    x[1] = 0.0
    done = threading.Event()
    moment = random.Random(0)

    def kill_again_and_again() -> None:
        for number in range(KILLS):
            pid, at_first = worker.pid, steps
            if number % 2:
                done.wait(moment.uniform(0.0, LONGEST_LIFE_S))
            else:
                until(lambda at_first=at_first: steps > at_first, timeout_s=120.0)
                done.wait(moment.uniform(0.0, LONGEST_LIFE_S / 10))
            worker.kill()
            until(lambda pid=pid: worker.pid != pid, timeout_s=120.0)
        done.set()

    killer = threading.Thread(target=kill_again_and_again, daemon=True)
    forwards = steps = failed = pauses = 0
    killer.start()
    while not done.is_set():
        optimizer.zero_grad()
        try:
            loss = model(x).sum()
            forwards += 1
            loss.backward()
        except WorkerError as error:
            failed += 1
            if isinstance(error, RestartError) and error.retry_after_s is not None:
                pauses += 1
                threading.Event().wait(error.retry_after_s)
            continue
        optimizer.step()
        steps += 1
    killer.join()

    print(f"{KILLS} kills, {worker.restarts} restarts, {steps} steps, {failed} failed, {pauses} pauses")
    # Each step takes exactly 1 from each weight, and nothing else writes there.
    assert [-float(steps)] * 1000 == model.weight.tolist()
    assert worker.restarts == KILLS
    assert before == (id(model.weight), model.weight.data_ptr())
    # The worker counts its batches itself: those of calls that failed may have been counted before it died.
    assert forwards <= int(model.norm.num_batches_tracked) <= forwards + failed
