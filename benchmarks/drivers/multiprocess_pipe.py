"""multiprocess, the library: a process that answers over a pipe. Tensors go through pickle."""

from __future__ import annotations

import multiprocess
import torch
import work


def serve(connection, threads: int) -> None:
    torch.set_num_threads(threads)
    while (request := connection.recv()) is not None:
        name, x = request
        connection.send(work.FUNCTIONS[name](x))


class Worker:
    def __init__(self, context) -> None:
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, torch.get_num_threads()))
        self._process.start()
        theirs.close()

    def call(self, name: str, x: torch.Tensor):
        self._connection.send((name, x))
        return self._connection.recv()

    def close(self) -> None:
        self._connection.send(None)
        self._process.join()
        self._connection.close()


class Driver:
    version = multiprocess.__version__

    def __init__(self) -> None:
        self._context = multiprocess.get_context("spawn")

    def worker(self) -> Worker:
        return Worker(self._context)

    def close(self) -> None:
        pass
