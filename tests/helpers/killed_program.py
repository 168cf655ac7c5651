"""A program that loads, calls, trains and closes without end, and tells each step, to be killed at any moment.

Run as a program: `python -m tests.helpers.killed_program REPO`. It prints a line for each event.
"""

from __future__ import annotations

import os
import sys

__all__ = ["EVENTS", "HUBCONF"]

HUBCONF = """
    import torch
    from torch import nn

    def net():
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
"""
# In this order, again and again; `pids` tells of new processes, and is no event of its own.
EVENTS = ("import", "load", "load another", "call", "large call", "step", "step", "close", "load again", "shutdown")


def tell(event: str, *pids: int | None) -> None:
    os.write(1, f"{event}\t{' '.join(str(pid) for pid in pids if pid)}\n".encode())


def main(repo: str) -> None:
    tell("import")
    import torch

    import isohub
    from isohub import api

    torch.set_num_threads(1)

    def pids() -> list[int | None]:
        return [api._registry.forkserver_pid, *(worker.pid for worker in isohub.workers())]

    while True:
        tell("load")
        api._registry.warm_up()
        tell("pids", *pids())
        net = isohub.load(repo, "net", verbose=False)
        tell("load another", *pids())
        own = isohub.load(repo, "net", verbose=False, isolate=isohub.Isolation(dedicated=True))
        tell("call", *pids())
        with torch.no_grad():
            net(torch.ones(1, 64))
            tell("large call")
            own(torch.ones(1 << 16, 64))
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        for _ in range(2):
            tell("step")
            optimizer.zero_grad()
            net(torch.ones(8, 64)).sum().backward()
            optimizer.step()
        tell("close")
        for worker in isohub.workers()[1:]:
            worker.close()
        tell("load again")
        isohub.load(repo, "net", verbose=False, isolate=isohub.Isolation(dedicated=True))
        tell("shutdown", *pids())
        del net, own, optimizer
        isohub.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
